package grid

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/faultconn"
)

var allStates = []State{StateUnconnected, StateConnecting, StateConnected, StateConnectionError, StateShutdown}

// documentedTransitions are those of the picture in the design document: a
// fenced block between two marks, with a line for each state.
func documentedTransitions(t *testing.T) map[string][]string {
	text, err := os.ReadFile(filepath.Join("docs", "design.md"))
	require.NoError(t, err)
	_, after, found := strings.Cut(string(text), "<!-- states -->")
	require.True(t, found, "docs/design.md has no mark <!-- states -->")
	block, _, found := strings.Cut(after, "<!-- /states -->")
	require.True(t, found, "docs/design.md has no mark <!-- /states -->")
	table := map[string][]string{}
	for line := range strings.Lines(block) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "```") {
			continue
		}
		from, to, found := strings.Cut(line, "->")
		require.True(t, found, "no arrow in %q", line)
		from = strings.TrimSpace(from)
		require.NotContains(t, table, from, "two lines for one state")
		table[from] = []string{}
		for name := range strings.SplitSeq(to, ",") {
			if name = strings.TrimSpace(name); name != "" {
				table[from] = append(table[from], name)
			}
		}
	}
	return table
}

func TestTransitionsAreThoseOfTheDesignDocument(t *testing.T) {
	table := map[string][]string{}
	for from, tos := range transitions {
		names := []string{}
		for _, to := range tos {
			names = append(names, to.String())
		}
		table[from.String()] = names
	}
	require.Len(t, table, len(allStates))
	require.Equal(t, table, documentedTransitions(t))
}

func TestOnlyLegalTransitionsAreMade(t *testing.T) {
	for _, from := range allStates {
		for _, to := range allStates {
			legal := false
			for _, s := range transitions[from] {
				legal = legal || s == to
			}
			m := stateMachine{state: from}
			require.Equal(t, legal, m.set(to, nil), "%v to %v", from, to)
			want := from
			if legal {
				want = to
			}
			require.Equal(t, want, m.get(), "%v to %v", from, to)
		}
		require.False(t, (&stateMachine{state: StateShutdown}).set(from, nil), "shutdown is the last state")
	}
}

func TestStatesHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range allStates {
		require.NotContains(t, s.String(), "state")
		require.False(t, seen[s.String()])
		seen[s.String()] = true
	}
	require.Equal(t, "state 5", State(5).String())
	require.Equal(t, StateUnconnected, State(0), "the zero value")
}

// Every change that a connection makes is seen by one who polls it, in an order
// that the table allows.
func TestConnectionGoesThroughItsStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		block := make(chan struct{})
		g, raw := newLoneGrid(t, n, false, func(o *ManagerOptions) { o.BlockConnect = block })
		c := g.nodes[0].Connection(raw)
		require.Equal(t, StateUnconnected, c.State())
		n.Partition(hostAddr(loneHost), hostAddr(raw))
		close(block)
		synctest.Wait()
		require.Equal(t, StateConnecting, c.State())
		time.Sleep(c.opts.HandshakeTimeout)
		synctest.Wait()
		require.Equal(t, StateConnectionError, c.State())

		s := listenLone(t, n, rawConfig{})
		n.Heal(hostAddr(loneHost), hostAddr(raw))
		p := s.accept()
		synctest.Wait()
		require.Equal(t, StateConnected, c.State())
		p.close()
		synctest.Wait()
		require.Equal(t, StateConnectionError, c.State())
		s.accept()
		synctest.Wait()
		require.Equal(t, StateConnected, c.State())
		require.NoError(t, g.nodes[0].Close())
		require.Equal(t, StateShutdown, c.State())
	})
}

// Lesson 20.
func TestWaitForConnectWithACancelledContextLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, nil)
		c := g.nodes[0].Connection(raw)
		why := errors.New("lost patience")
		ctx, cancel := context.WithCancelCause(t.Context())
		errs := make(chan error, 100)
		for range cap(errs) {
			go func() { errs <- c.WaitForConnect(ctx) }()
		}
		synctest.Wait()
		require.Empty(t, errs)
		cancel(why)
		for range cap(errs) {
			require.Equal(t, why, <-errs)
		}
		require.Equal(t, why, c.WaitForConnect(ctx), "ended before")
		// The bubble ends here although the connection lives: nothing waits.
		require.Equal(t, StateUnconnected, c.State())

		late, cancelLate := context.WithTimeout(t.Context(), time.Second)
		defer cancelLate()
		begin := time.Now()
		require.ErrorIs(t, c.WaitForConnect(late), context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(begin))
	})
}

func TestWaitForConnectSaysWhatIsWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hosts := []string{"http://a", "http://b"}
		for _, local := range hosts {
			m, err := NewManager(t.Context(), ManagerOptions{
				Local: local, Hosts: hosts, Insecure: true, Logger: slog.New(slog.DiscardHandler),
				Dialer: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no route") },
			})
			require.NoError(t, err)
			defer m.Close()
			c := m.Connection(m.Targets()[0])
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err = c.WaitForConnect(ctx)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			if c.dials {
				require.ErrorContains(t, err, "no route")
			} else {
				require.Equal(t, context.DeadlineExceeded, err, "nobody has come")
			}
		}
	})
}

func TestWaitForConnectSeesEveryWaiterThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, nil)
		c := g.nodes[0].Connection(raw)
		errs := make(chan error, 100)
		for range cap(errs) {
			go func() { errs <- c.WaitForConnect(context.Background()) }()
		}
		synctest.Wait()
		require.Empty(t, errs)
		g.dialLone(raw, rawConfig{})
		for range cap(errs) {
			require.NoError(t, <-errs)
		}
		// Connected: at once, also with a context that has ended.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.NoError(t, c.WaitForConnect(ctx))
	})
}

func TestWaitForConnectReturnsAtOnceAfterShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, nil)
		c := g.nodes[0].Connection(raw)
		waited := make(chan error, 1)
		go func() { waited <- c.WaitForConnect(context.Background()) }()
		synctest.Wait()
		require.NoError(t, g.nodes[0].Close())
		require.ErrorIs(t, <-waited, ErrDisconnected)
		err := c.WaitForConnect(context.Background())
		require.ErrorIs(t, err, ErrDisconnected)
		require.ErrorContains(t, err, "closed")
		require.ErrorIs(t, c.Subroute("a").WaitForConnect(context.Background()), ErrDisconnected)
	})
}

func TestStateIsSafeToChangeAndWaitForConcurrently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m stateMachine
		var users sync.WaitGroup
		for range 4 {
			users.Go(func() {
				for range 1000 {
					m.set(StateConnecting, nil)
					m.set(StateConnectionError, nil)
					m.set(StateConnected, nil)
				}
			})
			users.Go(func() {
				for range 1000 {
					if err := m.waitConnected(t.Context()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		users.Wait()
	})
}
