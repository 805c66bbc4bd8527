package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// plainPeers are the ones that bring no streams of their own, and what each has.
var plainPeers = []struct {
	peer                         peer
	upload, typed, streams, idle bool
}{
	{peer: netrpcPeer(), upload: true, typed: true},
	{peer: natsPeer(), upload: true, typed: true},
	{peer: http1Peer(), upload: true, typed: true},
	{peer: yamuxPeer(), upload: true, typed: true, streams: true, idle: true},
	{peer: gorillaFloor()},
	{peer: tcpFloor()},
	{peer: muxFloor()},
}

// plainRun runs test with a pair, and checks that nothing is left of it.
func plainRun(t *testing.T, p peer, c config, test func(t *testing.T, p pair)) {
	t.Helper()
	goroutines, sockets := goleak.IgnoreCurrent(), plainSockets(t)
	pr, err := p.start(c)
	require.NoError(t, err)
	defer func() {
		assert.NoError(t, pr.close())
		goleak.VerifyNone(t, goroutines) // it waits, as NATS closes TLS connections in goroutines of its own
		assert.Equal(t, sockets, plainSockets(t), "sockets after close")
	}()
	test(t, pr)
}

// plainEach runs test for each peer, with TLS and without.
func plainEach(t *testing.T, callers int, test func(t *testing.T, p pair)) {
	c := config{callers: callers}
	overTLS := tlsConfig(t, callers)
	for _, p := range plainPeers {
		t.Run(p.peer.name, func(t *testing.T) { plainRun(t, p.peer, c, test) })
		t.Run(p.peer.name+"/tls", func(t *testing.T) { plainRun(t, p.peer, overTLS, test) })
	}
}

// tlsConfig is one for calls over TLS.
func tlsConfig(t *testing.T, callers int) config {
	t.Helper()
	id, err := newIdentity()
	require.NoError(t, err)
	c := config{callers: callers}
	require.NoError(t, id.addTo(&c))
	return c
}

// plainSockets counts the open sockets where the system lists them.
func plainSockets(t *testing.T) int {
	const dir = "/proc/self/fd/"
	if runtime.GOOS != "linux" {
		return 0
	}
	fds, err := os.ReadDir(dir)
	require.NoError(t, err)
	n := 0
	for _, fd := range fds {
		if to, err := os.Readlink(dir + fd.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// plainHandlers counts the goroutines that serve a stream.
func plainHandlers() int {
	stacks := make([]byte, 1<<20)
	return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), ".yamuxHandle(")
}

func plainCaller(t *testing.T, p pair, i int) caller {
	t.Helper()
	c, err := p.caller(i)
	require.NoError(t, err)
	return c
}

func TestPlainPeers_HaveWhatIsListed(t *testing.T) {
	for _, p := range plainPeers {
		t.Run(p.peer.name, func(t *testing.T) {
			plainRun(t, p.peer, config{callers: 1}, func(t *testing.T, pr pair) {
				c := plainCaller(t, pr, 0)
				_, upload := c.(uploader)
				_, typed := c.(typedCaller)
				_, streams := c.(streamer)
				_, idle := pr.client.(idler)
				assert.Equal(t, p.upload, upload, "upload")
				assert.Equal(t, p.typed, typed, "typed")
				assert.Equal(t, p.streams, streams, "streams")
				assert.Equal(t, p.idle, idle, "idle")
			})
		})
	}
}

func TestPlainPeers_AnswerEachMethod(t *testing.T) {
	plainEach(t, 1, func(t *testing.T, p pair) {
		c := plainCaller(t, p, 0)
		for _, size := range []int{0, 16, 512, 64 << 10, 1 << 20} {
			payload := pattern(size)
			assert.NoError(t, c.echo(payload), "echo of %d", size)
			if u, ok := c.(uploader); ok {
				assert.NoError(t, u.upload(payload), "upload of %d", size)
			}
			assert.Equal(t, pattern(size), payload, "payload is not written to")
		}
		if c, ok := c.(typedCaller); ok {
			assert.NoError(t, c.typed(theSample))
		}
		s, ok := c.(streamer)
		if !ok {
			return
		}
		for _, n := range []int{0, 1, 10, 1000} {
			for _, size := range []int{16, 512, 10_000} {
				assert.NoError(t, s.responses(n, pattern(size)), "responses %d x %d", n, size)
				assert.NoError(t, s.requests(n, pattern(size)), "requests %d x %d", n, size)
				assert.NoError(t, s.twoway(n, pattern(size)), "twoway %d x %d", n, size)
			}
		}
	})
}

// TestPlainPeers_CarryTheLargest has several of the largest messages on their way at once.
func TestPlainPeers_CarryTheLargest(t *testing.T) {
	if testing.Short() {
		t.Skip("takes much memory")
	}
	const callers = 4
	payload := pattern(maxMessage)
	for _, p := range plainPeers {
		t.Run(p.peer.name, func(t *testing.T) {
			plainRun(t, p.peer, config{callers: callers}, func(t *testing.T, p pair) {
				plainAll(t, p, callers, func(c caller) error {
					err := c.echo(payload)
					if u, ok := c.(uploader); ok {
						err = errors.Join(err, u.upload(payload))
					}
					return err
				})
			})
		})
	}
}

// plainAll calls from all callers at once.
func plainAll(t *testing.T, p pair, callers int, call func(caller) error) {
	t.Helper()
	errs := make([]error, callers)
	var wg sync.WaitGroup
	for i := range callers {
		c := plainCaller(t, p, i)
		wg.Go(func() { errs[i] = call(c) })
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
}

func TestPlainPeers_ServeManyCallers(t *testing.T) {
	const callers = 16
	plainEach(t, callers, func(t *testing.T, p pair) {
		plainAll(t, p, callers, func(c caller) error {
			for i := range 100 {
				// Of different lengths, so that each other's answers are noticed.
				payload := pattern(i * i * 10)
				err := c.echo(payload)
				if u, ok := c.(uploader); ok {
					err = errors.Join(err, u.upload(payload))
				}
				if c, ok := c.(typedCaller); ok {
					err = errors.Join(err, c.typed(sample{ID: uint64(i), Size: int64(i), Name: "name"}))
				}
				if s, ok := c.(streamer); ok {
					payload := pattern(16 + i)
					err = errors.Join(err, s.responses(10, payload), s.requests(10, payload), s.twoway(10, payload))
				}
				if err != nil {
					return fmt.Errorf("round %d: %w", i, err)
				}
			}
			return nil
		})
	})
}

func TestPlainPeers_KeepIdleStreams(t *testing.T) {
	const streams = 10
	plainEach(t, 1, func(t *testing.T, p pair) {
		i, ok := p.client.(idler)
		if !ok {
			t.Skip("has no streams")
		}
		var ends []func()
		for range streams {
			end, err := i.idle(context.Background())
			require.NoError(t, err)
			ends = append(ends, end)
		}
		assert.GreaterOrEqual(t, plainHandlers(), streams)
		require.NoError(t, plainCaller(t, p, 0).echo(pattern(smallPayload)))
		for _, end := range ends[1:] { // the first is left to close
			end()
		}
		const left = 2 // that one, and the caller's
		for deadline := time.Now().Add(5 * time.Second); plainHandlers() > left && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		assert.Equal(t, left, plainHandlers())
		canceled, cancel := context.WithCancel(context.Background())
		cancel()
		if end, err := i.idle(canceled); err == nil {
			end() // it was faster
		}
	})
}

// TestPlainPeers_FailOnceClosed checks that calls fail, and don't hang, after close.
func TestPlainPeers_FailOnceClosed(t *testing.T) {
	for _, p := range plainPeers {
		t.Run(p.peer.name, func(t *testing.T) {
			pr, err := p.peer.start(config{callers: 2})
			require.NoError(t, err)
			c := plainCaller(t, pr, 1)
			require.NoError(t, c.echo(pattern(smallPayload)))
			require.NoError(t, pr.close())
			assert.Error(t, c.echo(pattern(smallPayload)))
		})
	}
}
