package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// protoPeers are those whose messages are protobuf's.
var protoPeers = []struct {
	peer   peer
	atMost int // bytes of a payload
}{
	{grpcPeer(), maxMessage},
	{connectPeer(), maxMessage},
	{drpcPeer(), maxMessage},
	{ttrpcPeer(), 4<<20 - 1<<10},
}

// eachProtoPeer runs test with a pair of each peer, in plain text and over TLS, and checks that
// nothing is left of it.
func eachProtoPeer(t *testing.T, callers, atLeast int, test func(t *testing.T, p pair)) {
	overTLS := tlsConfig(t, callers)
	for _, p := range protoPeers {
		for name, c := range map[string]config{
			"plain": {callers: callers},
			"tls":   overTLS,
		} {
			t.Run(p.peer.name+"/"+name, func(t *testing.T) {
				if p.atMost < atLeast {
					t.Skip("not to be had with this peer")
				}
				ignored, sockets := goleak.IgnoreCurrent(), openSockets(t)
				pr, err := p.peer.start(c)
				require.NoError(t, err)
				defer func() {
					assert.NoError(t, pr.close())
					assert.Equal(t, sockets, openSockets(t), "sockets after close")
					goleak.VerifyNone(t, ignored)
				}()
				test(t, pr)
			})
		}
	}
}

// openSockets counts this process's sockets; 0 where the system doesn't tell.
func openSockets(t *testing.T) int {
	const dir = "/proc/self/fd"
	fds, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	n := 0
	for _, fd := range fds {
		if to, err := os.Readlink(dir + "/" + fd.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// protoCaller is what all the callers of these peers can do.
type protoCaller interface {
	caller
	uploader
	typedCaller
	streamer
}

func callerOf(t *testing.T, p pair, i int) protoCaller {
	t.Helper()
	c, err := p.caller(i)
	require.NoError(t, err)
	pc, ok := c.(protoCaller)
	require.True(t, ok, "%T lacks a method", c)
	return pc
}

func TestProtoPeers_Call(t *testing.T) {
	eachProtoPeer(t, 1, 0, func(t *testing.T, p pair) {
		c := callerOf(t, p, 0)
		for _, size := range []int{0, 16, 512, 64 << 10, 1 << 20} {
			assert.NoError(t, c.echo(pattern(size)), "echo of %d bytes", size)
			assert.NoError(t, c.upload(pattern(size)), "upload of %d bytes", size)
		}
		assert.NoError(t, c.typed(theSample))
	})
}

func TestProtoPeers_CarryTheLargest(t *testing.T) {
	eachProtoPeer(t, 1, maxMessage, func(t *testing.T, p pair) {
		c, payload := callerOf(t, p, 0), pattern(maxMessage)
		assert.NoError(t, c.echo(payload))
		assert.NoError(t, c.upload(payload))
		assert.NoError(t, c.twoway(1, payload))
	})
}

func TestProtoPeers_TTRPCCannotCarryTheLargest(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	p, err := ttrpcPeer().start(config{callers: 1})
	require.NoError(t, err)
	defer p.close()
	c, payload := callerOf(t, p, 0), pattern(4<<20)
	assert.ErrorIs(t, c.echo(payload), errCannot)
	assert.ErrorIs(t, c.upload(payload), errCannot)
	assert.ErrorIs(t, c.responses(1, payload), errCannot)
	assert.ErrorIs(t, c.requests(1, payload), errCannot)
	assert.ErrorIs(t, c.twoway(1, payload), errCannot)
	assert.NoError(t, c.echo(pattern(4<<20-1<<10)), "afterwards")
}

func TestProtoPeers_Stream(t *testing.T) {
	eachProtoPeer(t, 1, 0, func(t *testing.T, p pair) {
		c := callerOf(t, p, 0)
		for _, s := range []struct{ n, size int }{{0, 16}, {1, 16}, {10, 512}, {1000, 512}, {50, 64 << 10}, {5, 1 << 20}} {
			what := fmt.Sprintf("%d messages of %d bytes", s.n, s.size)
			assert.NoError(t, c.responses(s.n, pattern(s.size)), what)
			assert.NoError(t, c.requests(s.n, pattern(s.size)), what)
			assert.NoError(t, c.twoway(s.n, pattern(s.size)), what)
		}
	})
}

func TestProtoPeers_ServeManyCallers(t *testing.T) {
	const callers = 16
	eachProtoPeer(t, callers, 0, func(t *testing.T, p pair) {
		var wg sync.WaitGroup
		for i := range callers {
			c := callerOf(t, p, i)
			wg.Go(func() {
				payload := pattern(512)
				for range 20 {
					assert.NoError(t, c.echo(payload))
					assert.NoError(t, c.upload(payload))
					assert.NoError(t, c.typed(theSample))
					assert.NoError(t, c.responses(10, payload))
					assert.NoError(t, c.requests(10, payload))
					assert.NoError(t, c.twoway(10, payload))
				}
			})
		}
		wg.Wait()
	})
}

func TestProtoPeers_KeepIdleStreams(t *testing.T) {
	eachProtoPeer(t, 1, 0, func(t *testing.T, p pair) {
		// Once it has answered, both ends of the caller's connection are open.
		require.NoError(t, callerOf(t, p, 0).echo(pattern(16)))
		sockets := openSockets(t)
		var ends []func()
		for range 10 {
			end, err := p.client.(idler).idle(context.Background())
			require.NoError(t, err)
			ends = append(ends, end)
		}
		assert.NoError(t, callerOf(t, p, 0).echo(pattern(16)), "meanwhile")
		for _, end := range ends {
			end()
		}
		assert.Eventually(t, func() bool { return openSockets(t) == sockets }, time.Second, time.Millisecond,
			"those that only idle streams had are closed")
		assert.NoError(t, callerOf(t, p, 0).echo(pattern(16)), "afterwards")
	})
}

func TestProtoPeers_CloseWithIdleStreams(t *testing.T) {
	eachProtoPeer(t, 1, 0, func(t *testing.T, p pair) {
		for range 10 {
			_, err := p.client.(idler).idle(context.Background())
			require.NoError(t, err)
		}
	})
}
