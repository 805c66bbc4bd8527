package gridtest

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gridrpc/grid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	whoami grid.HandlerID = iota + 1 // answers the number of the node
	block                            // a stream that waits for its context
	hold                             // says that it has begun and waits to be released
)

// inBoth runs f with a grid of n nodes in memory, in a bubble, and over TCP. The nodes have the
// handlers above but for hold, and short pings.
func inBoth(t *testing.T, n int, f func(t *testing.T, g *Grid), opts ...Option) {
	t.Helper()
	opts = append([]Option{WithHandlers(register), WithOptions(shortPings)}, opts...)
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			g := New(t, n, opts...)
			if !g.opts.allStopped {
				require.Zero(t, time.Since(began))
			}
			f(t, g)
			requireNothingLeft(t, g)
		})
	})
	t.Run("tcp", func(t *testing.T) {
		g := New(t, n, append(opts, TCP())...)
		f(t, g)
		requireNothingLeft(t, g)
	})
}

// requireNothingLeft closes a grid. Goroutines are looked at by TestMain, and by the bubble.
func requireNothingLeft(t *testing.T, g *Grid) {
	t.Helper()
	g.Close()
	require.Zero(t, g.net.open())
	for i := range g.Len() {
		require.Nil(t, g.Manager(i))
	}
}

func shortPings(_ int, o *grid.ManagerOptions) {
	o.PingInterval = 250 * time.Millisecond
	o.StreamPingInterval = 250 * time.Millisecond
}

func register(node int, m *grid.Manager) error {
	err := m.RegisterSingleHandler(whoami, func([]byte) ([]byte, *grid.RemoteErr) {
		return fmt.Append(nil, node), nil
	})
	if err != nil {
		return err
	}
	return m.RegisterStreamingHandler(block, grid.StreamHandler{
		Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
			<-ctx.Done()
			return nil
		},
	})
}

// ask calls whoami.
func ask(g *Grid, from, to int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	answer, err := g.Conn(from, to).SingleRequest(ctx, whoami, nil)
	if err == nil && string(answer) != fmt.Sprint(to) {
		err = fmt.Errorf("%q answers for node %d", answer, to)
	}
	return err
}

// requireReach checks who can call whom: those that are together, and run.
func requireReach(t *testing.T, g *Grid, together func(a, b int) bool) {
	t.Helper()
	for a := range g.Len() {
		for b := range g.Len() {
			if a == b {
				continue
			}
			err := ask(g, a, b)
			if together(a, b) {
				require.NoError(t, err, "%d to %d", a, b)
			} else {
				require.ErrorIs(t, err, grid.ErrDisconnected, "%d to %d", a, b)
			}
		}
	}
}

func everyone(a, b int) bool { return true }

// brokenTB is a test whose failure is what a test is about.
type brokenTB struct {
	testing.TB
	cleanups []func()
	logged   []string
	failure  string
}

func (t *brokenTB) Helper()          {}
func (t *brokenTB) Cleanup(f func()) { t.cleanups = append(t.cleanups, f) }

func (t *brokenTB) Logf(format string, args ...any) {
	t.logged = append(t.logged, fmt.Sprintf(format, args...))
}

func (t *brokenTB) Fatalf(format string, args ...any) {
	t.failure = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// fail runs f as a test of its own with its cleanups, and returns how it failed.
func fail(t *testing.T, f func(t testing.TB)) string {
	t.Helper()
	b := &brokenTB{TB: t}
	b.run(f)
	return b.failure
}

func (t *brokenTB) run(f func(t testing.TB)) {
	for _, part := range []func(){func() { f(t) }, func() {
		for i := len(t.cleanups) - 1; i >= 0; i-- {
			t.cleanups[i]()
		}
	}} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			part()
		}()
		<-done
	}
}
