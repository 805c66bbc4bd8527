package wsconn

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/bytepool"
)

// FuzzMask compares with masks byte by byte.
func FuzzMask(f *testing.F) {
	f.Add([]byte("hello"), uint32(0x12345678))
	f.Add(bytes.Repeat([]byte("x"), 3*maskStep+5), uint32(1))
	f.Add([]byte{}, uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, key uint32) {
		k := binary.LittleEndian.AppendUint32(nil, key)
		want := bytes.Clone(b)
		for i := range want {
			want[i] ^= k[i%4]
		}
		mask(b, key)
		require.True(t, bytes.Equal(want, b))
	})
}

// What the socket does not take without a wait is written later, and in front of all else.
func TestConn_TryWritesWhatTheSocketTakes(t *testing.T) {
	t.Parallel()
	go_, got := make(chan struct{}), make(chan []byte)
	c, err := dial(t, serve(t, func(c *Conn) {
		<-go_
		for {
			b, err := c.ReadMessage()
			if err != nil {
				return
			}
			got <- b
		}
	}), DialOptions{})
	require.NoError(t, err)
	if !c.CanTry() {
		t.Skip("not on this system")
	}
	message := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 100_000) }
	n := 0
	for c.TryWriteMessage(room(message(n))) {
		n++
		_, inWrite := c.Writing()
		require.False(t, inWrite)
		require.Less(t, n, 10_000)
	}
	_, inWrite := c.Writing()
	require.True(t, inWrite, "of the rest")
	wrote := make(chan error, 1)
	go func() { wrote <- c.WriteMessage(room([]byte("last"))) }()
	close(go_)
	for i := range n + 1 {
		b := <-got
		require.True(t, bytes.Equal(message(i), b), "message %d", i)
		bytepool.Put(b)
	}
	b := <-got
	require.Equal(t, "last", string(b))
	bytepool.Put(b)
	require.NoError(t, <-wrote)
	require.NoError(t, c.WriteRest(), "there is none")
}

// A message that could not be written in part has its error come out of what is written next.
func TestConn_TryOnASocketThatIsClosed(t *testing.T) {
	t.Parallel()
	c, err := dial(t, serve(t, func(*Conn) {}), DialOptions{})
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.False(t, c.TryWriteMessage(room([]byte("hello"))))
	require.Error(t, c.WriteRest())
}

// Under TLS, and over connections of the application's, nothing is written past them.
func TestConn_TriesOnlyOnSockets(t *testing.T) {
	t.Parallel()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := Upgrade(w, r, nil, limit, noDeadline, Counters{})
		if err == nil {
			defer c.Close()
			echo(c)
		}
	}))
	t.Cleanup(s.Close)
	c, err := dial(t, "ws"+strings.TrimPrefix(s.URL, "http"), DialOptions{TLS: s.Client().Transport.(*http.Transport).TLSClientConfig})
	require.NoError(t, err)
	require.False(t, c.CanTry())
	require.False(t, c.TryWriteMessage(room([]byte("hello"))))
	require.NoError(t, c.WriteRest())
	b, err := c.ReadMessage()
	require.NoError(t, err)
	require.Equal(t, "hello", string(b))
	bytepool.Put(b)
}

// The websocket library has the connection as well, and would answer a frame that breaks the rules.
func TestConn_LibraryWritesNothing(t *testing.T) {
	t.Parallel()
	read := make(chan []byte, 1)
	server := serve(t, func(c *Conn) {
		_ = c.writeFrame(3, room(nil)) // no op
		b, _ := io.ReadAll(c.link.Conn)
		read <- b
	})
	c, err := dial(t, server, DialOptions{})
	require.NoError(t, err)
	begin := time.Now()
	_, err = c.ReadMessage()
	require.ErrorContains(t, err, "opcode")
	require.Less(t, time.Since(begin), 10*time.Second)
	require.NoError(t, c.Close())
	require.Empty(t, <-read)
}

// idleConn is a connection that claims to write, and does not.
type idleConn struct {
	net.Conn
	writes int
	wrote  int // by the last one
}

func (c *idleConn) Write(p []byte) (int, error) {
	c.writes++
	if c.writes > 100 {
		return 0, net.ErrClosed // so the test ends
	}
	return c.wrote, nil
}

// A connection of the application's that writes nothing, and says so without an error, does not keep
// the writer busy: that would outlive the connection.
func TestConn_WriteOfNothingFails(t *testing.T) {
	t.Parallel()
	for _, wrote := range []int{0, -1} {
		socket := idleConn{wrote: wrote}
		c := Conn{link: &link{Conn: &socket, upgraded: true}}
		require.ErrorIs(t, c.WriteMessage(room([]byte("hello"))), io.ErrShortWrite)
		require.Equal(t, 1, socket.writes)
		n, inWrite := c.Writing()
		require.Zero(t, n)
		require.False(t, inWrite)
	}
}
