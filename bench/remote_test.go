package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// TestRemote_ServesEveryPeer has the server of each in a process of its own, with TLS and without.
func TestRemote_ServesEveryPeer(t *testing.T) {
	for _, p := range everyPeer() {
		for name, c := range map[string]config{"plain": {callers: 2}, "tls": tlsConfig(t, 2)} {
			t.Run(p.name+"/"+name, func(t *testing.T) {
				c.limit, c.spins = 4, 10
				goroutines, sockets := goleak.IgnoreCurrent(), openSockets(t)
				pr, err := p.startIn(2, c)
				require.NoError(t, err)
				defer func() {
					assert.NoError(t, pr.close())
					goleak.VerifyNone(t, goroutines)
					assert.Equal(t, sockets, openSockets(t), "sockets after close")
				}()
				for i := range 2 {
					c, err := pr.caller(i)
					require.NoError(t, err)
					require.NoError(t, c.echo(pattern(smallPayload)))
					if w, ok := c.(worker); ok && strings.HasPrefix(p.name, "gr") {
						assert.NoError(t, w.work(t.Context(), pattern(smallPayload)))
					}
				}
			})
		}
	}
}

func TestRemote_CountsBothEnds(t *testing.T) {
	pr, err := grpcPeer().startIn(2, config{callers: 1})
	require.NoError(t, err)
	defer pr.close()
	local := takeAllocs()
	both, err := pr.allocs()
	require.NoError(t, err)
	assert.Greater(t, both.Objects, local.Objects+1000)
	assert.Greater(t, both.Bytes, local.Bytes+10_000)
	use, err := pr.footprint()
	require.NoError(t, err)
	assert.Greater(t, use.CPU, cpuTime(), "a process has taken some by now")
	assert.Greater(t, use.Used, 0.0)
}

func TestRemote_TellsErrors(t *testing.T) {
	_, err := newRemote("nobody", config{})
	assert.ErrorContains(t, err, `unknown peer "nobody"`)
	pr, err := netrpcPeer().startIn(2, config{callers: 1})
	require.NoError(t, err)
	_, err = pr.server.(*remote).ask(question("why"))
	assert.ErrorContains(t, err, `unknown question "why"`)
	require.NoError(t, pr.server.(*remote).cmd.Process.Kill())
	c, err := pr.caller(0)
	require.NoError(t, err)
	assert.Error(t, c.echo(nil), "without a server")
	_, err = pr.allocs()
	assert.Error(t, err)
	assert.Error(t, pr.close())

	var out bytes.Buffer
	require.Error(t, serveOrder(strings.NewReader("{"), &out))
	require.NoError(t, serveOrder(strings.NewReader(`{"Peer": "netrpc"}`), &out))
	assert.Contains(t, out.String(), `"Addr":"127.0.0.1:`)
}

func TestDeadline_EndsEveryPeersCalls(t *testing.T) {
	// A deadline that is over before an answer can be there.
	const d = time.Nanosecond
	for _, p := range []peer{gridPeer(), grpcPeer(), connectPeer(), drpcPeer(), ttrpcPeer(), natsPeer(), http1Peer(), yamuxPeer()} {
		t.Run(p.name, func(t *testing.T) {
			pr, err := p.start(config{callers: 1})
			require.NoError(t, err)
			defer pr.close()
			c, err := pr.caller(0)
			require.NoError(t, err)
			within := func(d time.Duration) error {
				if c, ok := c.(timeoutCaller); ok {
					return c.echoWithin(d, pattern(smallPayload))
				}
				ctx, cancel := context.WithTimeout(t.Context(), d)
				defer cancel()
				return c.(contextCaller).echoContext(ctx, pattern(smallPayload))
			}
			require.NoError(t, within(time.Minute))
			err = within(d)
			require.Error(t, err)
			assert.False(t, errors.Is(err, errCannot))
		})
	}
}

// TestRun_ReportsEveryShape makes a run that is as short as can be.
func TestRun_ReportsEveryShape(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while, and all cores")
	}
	id, err := newIdentity()
	require.NoError(t, err)
	r := &run{peers: append([]peer{gridPeer(), grpcPeer(), yamuxPeer()}, allFloors()...), rounds: 2, round: time.Millisecond,
		quick: true, long: 300 * time.Millisecond, processes: []int{1, 2}, identity: id}
	r.report = newReport(r, allFloors())
	for _, s := range shapes {
		if s.name != "overload" && s.name != "idle" && s.name != "hosts" {
			require.NoError(t, s.run(r), s.name)
		}
	}
	assert.Empty(t, r.report.Failed)
	for _, in := range []string{"", inTwo} {
		for _, size := range []string{"1", "2", "8", "64", "256"} {
			for _, p := range []string{"grid", "grpc", "yamux", "gorilla", "tcp", "mux", "window"} {
				assert.NotNil(t, r.report.find("unary"+in, size, p), "unary%s/%s/%s", in, size, p)
			}
		}
		for _, p := range []string{"grid", "grid-option", "grid-none", "grpc", "yamux"} {
			assert.NotNil(t, r.report.find("deadline"+in, "8", p), p)
		}
		for _, p := range []string{"grid", "grpc", "yamux", "tcp"} {
			assert.NotNil(t, r.report.find("bulk"+in, "64KiB", p), p)
			assert.Positive(t, r.report.value("bulk-rate"+in, "256KiB", p), p)
		}
		assert.Nil(t, r.report.find("payload"+in, "1MiB", "window"), "which can't have so much under way")
		assert.Positive(t, r.report.value("deadline-of-none"+in, "64", "grid-option"))
		assert.Positive(t, r.report.value("typed-of-unary"+in, "64", "grid"))
		assert.Positive(t, r.report.value("mixed"+in, "p99", "yamux"))
	}
}
