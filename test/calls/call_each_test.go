package calls

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// whoAmI is answered with the number of the node, after so many seconds; the last node refuses.
var whoAmI = grid.NewSingleHandler(rig.Unused, grid.NewMSS, grid.NewMSS)

var errNo = errors.New("not me")

// asked is a grid of n nodes, of which node 0 asks the others. Node i answers after i seconds. ended
// counts the handlers that have returned.
func asked(t *testing.T, n int, edit func(i int, o *grid.ManagerOptions)) (g *rig.Grid, ended *atomic.Int32) {
	g = rig.New(t, n, edit)
	ended = new(atomic.Int32)
	for i := 1; i < n; i++ {
		require.NoError(t, whoAmI.RegisterContext(g.Manager(i), func(ctx context.Context, req *grid.MSS) (*grid.MSS, *grid.RemoteErr) {
			defer ended.Add(1)
			select {
			case <-time.After(time.Duration(i) * time.Second):
			case <-ctx.Done():
			}
			if req.Get("refuse") == fmt.Sprint(i) {
				return nil, grid.NewRemoteErr(errNo)
			}
			return grid.NewMSSWith(map[string]string{"node": fmt.Sprint(i)}), nil
		}))
	}
	return g, ended
}

// othersOf are the connections to all other hosts.
func othersOf(m *grid.Manager) []grid.Requester { return m.Requesters(m.Targets()...) }

func ask(refuse string) *grid.MSS { return grid.NewMSSWith(map[string]string{"refuse": refuse}) }

func TestCallEach_YieldsAnswersAsTheyCome(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g, _ := asked(t, 6, nil)
		m := g.Manager(0)
		require.Len(t, othersOf(m), 5)
		require.Empty(t, m.Requesters(), "nobody is not everybody")
		conns := m.Requesters(g.Host(4), "http://unknown:1", g.Host(2), g.Host(5), g.Host(1), g.Host(3))
		conns = append(conns, nil)
		g.Net.Cut(g.Addr(0), g.Addr(5)) // comes again
		g.Net.Partition(g.Addr(0), g.Addr(5))
		synctest.Wait()
		start := time.Now()
		var got []string
		for a := range whoAmI.CallEach(t.Context(), conns, ask("2")) {
			require.Equal(t, conns[a.Index], a.Conn)
			got = append(got, fmt.Sprintf("%v: %d: %s: %v", time.Since(start).Round(time.Second), a.Index, a.Value.Get("node"), a.Err))
		}
		require.Len(t, got, 7)
		slices.Sort(got[:3]) // at once, in any order
		require.Equal(t, "0s: 1: : "+noConnection, got[0])
		require.Contains(t, got[1], "0s: 3: : grid: disconnected: "+g.Host(5))
		require.Equal(t, "0s: 6: : "+noConnection, got[2])
		require.Equal(t, []string{"1s: 4: 1: <nil>", "2s: 2: : not me", "3s: 5: 3: <nil>", "4s: 0: 4: <nil>"}, got[3:])
	})
}

const noConnection = "grid: disconnected: nil Connection: its host was not among the Manager's hosts, or is the local one"

// A loop that is left ends the calls that nobody waits for any more, and the next loop asks anew.
func TestCallEach_BrokenOffEndsTheRest(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g, _ := asked(t, 5, nil)
		answers := whoAmI.CallEach(t.Context(), othersOf(g.Manager(0)), ask(""))
		for range 2 {
			for a := range answers {
				require.Equal(t, "1", a.Value.Get("node"))
				require.Equal(t, 4, callsOf(g.Manager(0))+1)
				break
			}
			synctest.Wait()
			require.Zero(t, callsOf(g.Manager(0)))
		}
		// So does a panic of the loop, or the end of its goroutine.
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range answers {
				runtime.Goexit()
			}
		}()
		<-done
		synctest.Wait()
		require.Zero(t, callsOf(g.Manager(0)))
	})
}

func callsOf(m *grid.Manager) int { return m.Stats().Calls }

func TestCallEach_EndsWithItsContext(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g, _ := asked(t, 4, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		n := 0
		for a := range whoAmI.CallEach(ctx, othersOf(g.Manager(0)), ask("")) {
			if n++; n > 1 {
				rig.RequireKind(t, a.Err, rig.IsDeadline, "late")
			}
		}
		require.Equal(t, 3, n)
		_, err := whoAmI.CallQuorum(ctx, 2, othersOf(g.Manager(0)), ask(""))
		rig.RequireKind(t, err, rig.IsDeadline, "quorum")
		for range whoAmI.CallEach(ctx, nil, ask("")) {
			require.Fail(t, "nobody was asked")
		}
	})
}

func TestCallQuorum_IsTheFirstWhoAgree(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g, _ := asked(t, 6, nil)
		m := g.Manager(0)
		conns := othersOf(g.Manager(0))
		nodes := func(answers []grid.Answer[*grid.MSS]) (all string) {
			for _, a := range answers {
				all += a.Value.Get("node")
			}
			return all
		}
		var err error
		var got []grid.Answer[*grid.MSS]
		took := rig.Elapsed(func() { got, err = whoAmI.CallQuorum(t.Context(), 3, conns, ask("2")) })
		require.NoError(t, err)
		require.Equal(t, "134", nodes(got))
		require.Equal(t, 4*time.Second, took)
		synctest.Wait()
		require.Zero(t, callsOf(g.Manager(0)))

		first, err := whoAmI.CallFirst(t.Context(), conns, ask("1"))
		require.NoError(t, err)
		require.Equal(t, "2", first.Value.Get("node"))
		require.Equal(t, 1, first.Index)

		all, err := whoAmI.CallAll(t.Context(), []grid.Requester{conns[4], conns[0], conns[2]}, ask(""))
		require.NoError(t, err)
		require.Equal(t, "513", nodes(all))

		// It is known as soon as there can't be enough.
		took = rig.Elapsed(func() { got, err = whoAmI.CallAll(t.Context(), conns, ask("2")) })
		require.Equal(t, 2*time.Second, took)
		require.Equal(t, "1", nodes(got))
		var quorum *grid.QuorumError
		require.ErrorAs(t, err, &quorum)
		require.Equal(t, []int{5, 5, 1}, []int{quorum.Need, quorum.Of, len(quorum.Errs)})
		require.ErrorIs(t, err, errNo)
		require.True(t, grid.IsRemoteErr(err))
		require.EqualError(t, err, "grid: fewer than 5 of 5 have answered without an error: "+g.Host(2)+": not me")
		require.False(t, grid.CanRetry(err))

		g.Net.Split([]string{g.Addr(0)}, []string{g.Addr(1), g.Addr(2), g.Addr(3), g.Addr(4), g.Addr(5)})
		synctest.Wait()
		conns = append(conns, m.RequestersWith(grid.CallOptions{Timeout: time.Second}, m.Targets()...)...)
		_, err = whoAmI.CallFirst(t.Context(), conns, ask(""))
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.ErrorContains(t, err, "; and 5 more")
		require.False(t, grid.CanRetry(err))
	})
}

func TestCallQuorum_OfNobody(t *testing.T) {
	got, err := whoAmI.CallQuorum(t.Context(), 0, []grid.Requester{standIn(nil)}, ask(""))
	require.NoError(t, err)
	require.Empty(t, got)
	_, err = whoAmI.CallFirst(t.Context(), nil, ask(""))
	require.EqualError(t, err, "grid: fewer than 1 of 0 have answered without an error")
	_, err = whoAmI.CallQuorum(t.Context(), 2, []grid.Requester{standIn(nil)}, ask(""))
	require.EqualError(t, err, "grid: fewer than 2 of 1 have answered without an error")
	_, err = whoAmI.CallAll(t.Context(), nil, ask(""))
	require.NoError(t, err)
}

// standIn is a Requester of a test's own.
type standIn func(payload []byte) ([]byte, error)

func (s standIn) SingleRequest(_ context.Context, _ grid.HandlerID, payload []byte) ([]byte, error) {
	return s(payload)
}

// Those that are left out do not count.
func TestCallEach_LeavesNilConnectionsOutWhereTheyAreIgnored(t *testing.T) {
	h := grid.NewSingleHandler(rig.Unused, grid.NewMSS, grid.NewMSS).IgnoreNilConn()
	echo := standIn(func(b []byte) ([]byte, error) { return append([]byte(nil), b...), nil })
	conns := []grid.Requester{nil, echo, (*grid.Connection)(nil), echo, (*grid.Caller)(nil)}
	all, err := h.CallAll(t.Context(), conns, ask("7"))
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.Equal(t, []int{1, 3}, []int{all[0].Index, all[1].Index})
	_, err = h.CallQuorum(t.Context(), 3, conns, ask(""))
	require.ErrorContains(t, err, "fewer than 3 of 2")
}

func TestCallEach_OfWhatCannotBeEncodedOrDecoded(t *testing.T) {
	pool := grid.NewJSONPool[any]()
	h := grid.NewSingleHandler(rig.Unused, pool.NewJSON, pool.NewJSON)
	bad := any(func() {})
	n := 0
	for a := range h.CallEach(t.Context(), []grid.Requester{standIn(nil), standIn(nil)}, pool.NewJSONWith(&bad)) {
		require.ErrorContains(t, a.Err, "request: encoding")
		n++
	}
	require.Equal(t, 2, n)
	_, err := whoAmI.CallFirst(t.Context(), []grid.Requester{standIn(func([]byte) ([]byte, error) { return []byte{0xc1}, nil })}, ask(""))
	require.ErrorContains(t, err, "response: decoding")
}

// What runs on goroutines of the call's own fails as it would on the caller's.
func TestCallEach_RequestersThatPanicOrExit(t *testing.T) {
	exits := standIn(func([]byte) ([]byte, error) { runtime.Goexit(); return nil, nil })
	_, err := whoAmI.CallFirst(t.Context(), []grid.Requester{exits}, ask(""))
	require.ErrorContains(t, err, "the goroutine of the call was ended")
	panics := standIn(func([]byte) ([]byte, error) { panic("oops") })
	func() {
		defer func() {
			err, ok := recover().(error)
			require.True(t, ok)
			require.ErrorContains(t, err, "has panicked: oops\n")
			require.ErrorContains(t, err, "TestCallEach_RequestersThatPanicOrExit", "the stack")
		}()
		_, _ = whoAmI.CallFirst(t.Context(), []grid.Requester{panics}, ask(""))
	}()
	wrapped := standIn(func([]byte) ([]byte, error) { panic(errNo) })
	func() {
		defer func() { require.ErrorIs(t, recover().(error), errNo) }()
		_, _ = whoAmI.CallFirst(t.Context(), []grid.Requester{wrapped}, ask(""))
	}()
}

// A panic is not lost where nobody waits for its call any more, whether it came before the loop was
// left or later.
func TestCallEach_APanicAfterTheLoopIsLogged(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		var book rig.LogBook
		old := slog.Default()
		slog.SetDefault(slog.New(slog.NewTextHandler(&book, nil)))
		defer slog.SetDefault(old)
		release, let := rig.Gate(t)
		good := standIn(func(b []byte) ([]byte, error) { return append([]byte(nil), b...), nil })
		early := standIn(func([]byte) ([]byte, error) { time.Sleep(time.Second); panic("early") })
		late := standIn(func([]byte) ([]byte, error) { <-release; panic("late") })
		for range whoAmI.CallEach(t.Context(), []grid.Requester{good, early, late}, ask("")) {
			time.Sleep(2 * time.Second)
			break
		}
		require.Len(t, book.About("panic=early"), 1)
		let()
		synctest.Wait()
		require.Len(t, book.About("panic=late"), 1)
		require.Contains(t, book.About("panic=late")[0], "TestCallEach_APanicAfterTheLoopIsLogged")
		require.Len(t, book.About("panic"), 2)
	})
}

// The same request goes out in each loop, though its value is reused after the first.
func TestCallEach_LoopsAnewWithAPooledRequest(t *testing.T) {
	h := grid.NewSingleHandler(rig.Unused, grid.NewMSS, grid.NewMSS).AllowCallRequestPool(true)
	echo := standIn(func(b []byte) ([]byte, error) { return append([]byte(nil), b...), nil })
	answers := h.CallEach(t.Context(), []grid.Requester{echo, echo}, ask("7"))
	for range 3 {
		n := 0
		for a := range answers {
			require.NoError(t, a.Err)
			require.Equal(t, "7", a.Value.Get("refuse"))
			n++
		}
		require.Equal(t, 2, n)
	}
}

// Who runs out of time learns what has come until then, and who is missing.
func TestCallQuorum_OutOfTimeSaysWhoIsMissing(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g, _ := asked(t, 6, nil)
		conns := othersOf(g.Manager(0))
		ctx, cancel := context.WithTimeoutCause(t.Context(), 3500*time.Millisecond, rig.ErrCause)
		defer cancel()
		got, err := whoAmI.CallQuorum(ctx, 4, conns, ask("2"))
		require.Len(t, got, 2)
		var quorum *grid.QuorumError
		require.ErrorAs(t, err, &quorum)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, rig.ErrCause)
		require.ErrorIs(t, err, errNo)
		require.Equal(t, []grid.Requester{conns[3], conns[4]}, quorum.Unanswered)
		require.Len(t, quorum.Errs, 1)
		var one *grid.AnswerError
		require.ErrorAs(t, quorum.Errs[0], &one)
		require.Equal(t, conns[1], one.Conn)
		require.EqualError(t, err, "grid: fewer than 4 of 5 have answered without an error: context deadline exceeded: "+rig.ErrCause.Error()+
			"; no answer from "+g.Host(4)+", "+g.Host(5)+"; "+g.Host(2)+": not me")

		// A timeout of each alone is an error of each.
		conns = g.Manager(0).RequestersWith(grid.CallOptions{Timeout: 2500 * time.Millisecond}, g.Manager(0).Targets()...)
		_, err = whoAmI.CallAll(t.Context(), conns, ask(""))
		require.ErrorAs(t, err, &quorum)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NoError(t, quorum.Cause)
		require.ErrorAs(t, err, &one)
		require.Contains(t, conns[2:], one.Conn)
		require.ErrorContains(t, err, fmt.Sprint(one.Conn)+": context deadline exceeded")
	})
}

// Whoever is asked under a subroute is named with the host, by the error and by itself.
func TestCallQuorum_NamesHostAndSubroute(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 3, nil)
		disk := func(i int) *grid.Subroute { return g.Conn(0, i).Subroute("disk").Subroute("1") }
		_, err := whoAmI.CallAll(t.Context(), []grid.Requester{disk(1)}, ask(""))
		require.ErrorContains(t, err, " have answered without an error: "+disk(1).String()+": grid: no request handler")
		require.Equal(t, g.Host(1)+" disk/1", fmt.Sprintf("%v", disk(1)))
		require.Equal(t, "<nil>", fmt.Sprintf("%v", (*grid.Subroute)(nil)))
	})
}

// One host can't be a majority.
func TestCallQuorum_OfOneHostTwiceIsRefused(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 3, nil)
		var asked atomic.Int32
		echo := func(req *grid.MSS) (*grid.MSS, *grid.RemoteErr) { asked.Add(1); return req, nil }
		for i := 1; i < 3; i++ {
			require.NoError(t, whoAmI.Register(g.Manager(i), echo))
			require.NoError(t, whoAmI.Register(g.Manager(i), echo, "disk"))
		}
		a, b := g.Conn(0, 1), g.Conn(0, 2)
		for name, conns := range map[string][]grid.Requester{
			"connection": {a, b, a},
			"options":    {a, b, a.WithTimeout(time.Second)},
			"subroutes":  {a.Subroute("disk"), b, a.Subroute("disk").With(grid.CallOptions{})},
		} {
			_, err := whoAmI.CallQuorum(t.Context(), 2, conns, ask(""))
			require.ErrorContains(t, err, "grid: CallQuorum: Requesters 1 and 3 of 3 are the same: "+g.Host(1), name)
		}
		require.Zero(t, asked.Load())
		other := standIn(func(b []byte) ([]byte, error) { return append([]byte(nil), b...), nil })
		got, err := whoAmI.CallQuorum(t.Context(), 6, []grid.Requester{a, a.Subroute("disk"), b, b.Subroute("disk"), other, other, nil, nil}, ask(""))
		require.NoError(t, err)
		require.Len(t, got, 6)
	})
}

// The request is encoded once, and its buffer goes back when the last one has done with it.
func TestCallEach_EncodesOnce(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		var encoded atomic.Int32
		codec := grid.CodecOf(func(v *string) ([]byte, error) { encoded.Add(1); return []byte(*v), nil },
			func(v *string, b []byte) error { *v = string(b); return nil })
		h := grid.NewSingleHandler(rig.Unused, codec.New, codec.New).AllowCallRequestPool(true)
		release, let := rig.Gate(t)
		slow := standIn(func(b []byte) ([]byte, error) { <-release; return append([]byte(nil), b...), nil })
		fast := standIn(func(b []byte) ([]byte, error) { return append([]byte(nil), b...), nil })
		text := "request"
		first, err := h.CallFirst(t.Context(), []grid.Requester{slow, fast, slow}, codec.NewWith(&text))
		require.NoError(t, err)
		require.Equal(t, text, *first.Value.Value())
		let()
		synctest.Wait()
		require.EqualValues(t, 1, encoded.Load())
	})
}

func TestCallEach_OverTCP(t *testing.T) {
	g := rig.NewTCP(t, 4, nil)
	for i := range 4 {
		require.NoError(t, whoAmI.Register(g.Manager(i), func(*grid.MSS) (*grid.MSS, *grid.RemoteErr) {
			if i == 3 {
				return nil, grid.NewRemoteErr(errNo)
			}
			return grid.NewMSSWith(map[string]string{"node": fmt.Sprint(i)}), nil
		}))
	}
	for range 100 {
		seen := map[string]bool{}
		for a := range whoAmI.CallEach(t.Context(), othersOf(g.Manager(0)), ask("")) {
			seen[fmt.Sprint(a.Value.Get("node"), a.Err)] = true
			whoAmI.PutResponse(a.Value)
		}
		require.Equal(t, map[string]bool{"1<nil>": true, "2<nil>": true, "not me": true}, seen)
		_, err := whoAmI.CallQuorum(t.Context(), 2, othersOf(g.Manager(0)), ask(""))
		require.NoError(t, err)
	}
}

func TestCallQuorum_OfARetrierIsRefused(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		r, err := grid.NewRetrier(grid.RetryOptions{}, c)
		require.NoError(t, err)
		h := grid.NewSingleHandler(rig.Echo, grid.NewBytes, grid.NewBytes)
		_, err = h.CallQuorum(t.Context(), 2, []grid.Requester{c, r}, grid.NewBytes())
		require.ErrorContains(t, err, "Requester 2 of 2 is a Retrier")
	})
}
