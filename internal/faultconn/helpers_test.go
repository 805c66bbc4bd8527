package faultconn

import (
	"bytes"
	"context"
	"io"
	"net"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	hostA = "a.example:9000"
	hostB = "b.example:9000"
)

// dialPair connects host from to host to and returns both ends, which are closed with the test.
func dialPair(t *testing.T, n *Network, from, to string) (near, far net.Conn) {
	t.Helper()
	l, err := n.Listen(to)
	require.NoError(t, err)
	defer l.Close()
	near, err = n.Dialer(from)(t.Context(), "tcp", to)
	require.NoError(t, err)
	far, err = l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() {
		near.Close()
		far.Close()
	})
	return near, far
}

type result struct {
	n   int
	err error
}

// start runs a Read or Write in the background.
func start(call func([]byte) (int, error), b []byte) <-chan result {
	done := make(chan result, 1)
	go func() {
		n, err := call(b)
		done <- result{n, err}
	}()
	return done
}

// requireWaiting fails the test if the call has ended.
func requireWaiting(t *testing.T, done <-chan result) {
	t.Helper()
	select {
	case r := <-done:
		require.Failf(t, "did not wait", "%d, %v", r.n, r.err)
	default:
	}
}

func requireTimeout(t *testing.T, err error) {
	t.Helper()
	var ne net.Error
	require.ErrorAs(t, err, &ne)
	require.True(t, ne.Timeout(), "%v", err)
}

func readString(t *testing.T, c net.Conn) string {
	t.Helper()
	b := make([]byte, 64)
	n, err := c.Read(b)
	require.NoError(t, err)
	return string(b[:n])
}

func writeString(t *testing.T, c net.Conn, s string) {
	t.Helper()
	n, err := c.Write([]byte(s))
	require.NoError(t, err)
	require.Equal(t, len(s), n)
}

// requireWritesWhole writes from two goroutines at once and fails the test if their bytes are
// mixed.
func requireWritesWhole(t *testing.T, from, to net.Conn) {
	t.Helper()
	const size = 50
	one := start(from.Write, bytes.Repeat([]byte("1"), size))
	two := start(from.Write, bytes.Repeat([]byte("2"), size))
	got := make([]byte, 2*size)
	_, err := io.ReadFull(to, got)
	require.NoError(t, err)
	require.Equal(t, result{n: size}, <-one)
	require.Equal(t, result{n: size}, <-two)
	for half := range slices.Chunk(got, size) {
		require.Equal(t, size, bytes.Count(half, half[:1]), "%s", got)
	}
}

func dialResult(ctx context.Context, n *Network, from, to string) <-chan result {
	done := make(chan result, 1)
	go func() {
		c, err := n.Dialer(from)(ctx, "tcp", to)
		if c != nil {
			err = c.Close()
		}
		done <- result{err: err}
	}()
	return done
}
