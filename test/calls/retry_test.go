package calls

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

func TestCanRetry_OnlyWhereNothingHasRun(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 2, func(i int, o *grid.ManagerOptions) {
			if o.MaxMessageSize = 64 << 10; i == 1 {
				o.MaxHandlers, o.MaxHostBytes = 2, 64<<10
			}
		})
		c := g.Conn(0, 1)
		require.NoError(t, g.Manager(1).RegisterSingleHandler(rig.Unused, func([]byte) ([]byte, *grid.RemoteErr) {
			return nil, grid.NewRemoteErr(fmt.Errorf("%w: of my own", grid.ErrOverloaded))
		}))
		release, let := rig.Gate(t)
		require.NoError(t, g.Manager(1).RegisterSingleHandler(rig.Unused+1, func(b []byte) ([]byte, *grid.RemoteErr) {
			<-release
			return nil, nil
		}))
		call := func(id grid.HandlerID) error {
			_, err := c.SingleRequest(t.Context(), id, nil)
			return err
		}
		cannot := func(err error) {
			t.Helper()
			require.Error(t, err)
			require.False(t, grid.CanRetry(err), err)
		}
		can := func(err error) {
			t.Helper()
			require.Error(t, err)
			require.True(t, grid.CanRetry(err), err)
			require.True(t, grid.CanRetry(fmt.Errorf("wrapped: %w", err)))
			require.False(t, grid.CanRetry(errors.Join(err, err)))
		}
		require.False(t, grid.CanRetry(nil))
		require.False(t, grid.CanRetry((*grid.RemoteErr)(nil)))
		cannot(grid.ErrDisconnected)
		cannot(grid.ErrOverloaded)
		cannot(call(rig.Unused))  // the handler's own words
		can(call(rig.Unused + 2)) // which is no handler
		cannot(call(0))

		// Refused by a limit, a stream as well.
		busy := []<-chan error{rig.InBackground(func() error { return call(rig.Unused + 1) }), rig.InBackground(func() error { return call(rig.Unused + 1) })}
		synctest.Wait()
		can(call(rig.Unused))
		_, err := c.NewStream(t.Context(), rig.Block, nil)
		require.ErrorIs(t, err, grid.ErrOverloaded)
		can(err)

		// Lost while it ran.
		g.Cut(0, 1)
		for _, b := range busy {
			cannot(<-b)
		}
		// And lost.
		can(call(rig.Unused))
		let()
		require.NoError(t, c.WaitForConnect(t.Context()))

		// A host that shuts down, and knows of the call before its caller knows of that.
		st, err := c.NewStream(t.Context(), rig.Block, nil)
		require.NoError(t, err)
		g.Net.Stall(g.Addr(1), g.Addr(0), true)
		down := rig.InBackground(func() error { return g.Manager(1).Shutdown(t.Context()) })
		synctest.Wait()
		late := rig.InBackground(func() error { return call(rig.Echo) })
		synctest.Wait()
		g.Net.Stall(g.Addr(1), g.Addr(0), false)
		err = <-late
		require.True(t, grid.IsRemoteErr(err))
		require.EqualError(t, err, "grid: the manager is shutting down (handler 1 of "+g.Host(1)+")")
		can(err)
		can(call(rig.Echo))
		require.NoError(t, st.Err())
		require.NoError(t, g.Manager(1).Close())
		<-down
		cannot(rig.Consume(st))
		can(func() error { _, err := (*grid.Connection)(nil).SingleRequest(t.Context(), 1, nil); return err }())
	})
}

// An answer that was dropped is one of a handler that has run.
func TestCanRetry_NotWhereTheAnswerWasDropped(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 2, func(i int, o *grid.ManagerOptions) {
			o.MaxMessageSize = 1 << 20
			if i == 0 {
				o.MaxHostBytes = 1 << 20
			}
		})
		require.NoError(t, g.Manager(1).RegisterSingleHandler(rig.Unused, func([]byte) ([]byte, *grid.RemoteErr) { return make([]byte, 900<<10), nil }))
		// What is kept for the other host leaves no room for the fragments of two answers.
		g.Net.Stall(g.Addr(1), g.Addr(0), true)
		var calls []<-chan error
		for range 4 {
			calls = append(calls, rig.InBackground(func() error {
				_, err := g.Conn(0, 1).SingleRequest(t.Context(), rig.Unused, nil)
				return err
			}))
		}
		synctest.Wait()
		g.Net.Stall(g.Addr(1), g.Addr(0), false)
		dropped := 0
		for _, call := range calls {
			if err := <-call; err != nil {
				require.ErrorIs(t, err, grid.ErrOverloaded)
				require.ErrorContains(t, err, "the answer was dropped")
				require.False(t, grid.CanRetry(err))
				dropped++
			}
		}
		require.Positive(t, dropped)
	})
}

// scripted is a Requester that answers with errors, one after the other, and then with its name.
type scripted struct {
	name  string
	err   error
	calls atomic.Int32
}

func (s *scripted) SingleRequest(ctx context.Context, _ grid.HandlerID, payload []byte) ([]byte, error) {
	s.calls.Add(1)
	if s.err != nil {
		return nil, s.err
	}
	return []byte(s.name + string(payload)), nil
}

// refusals are errors of real hosts: of one that is not connected, and of one that is overloaded.
func refusals(t *testing.T) (unsent, overloaded error) {
	_, unsent = (*grid.Connection)(nil).SingleRequest(t.Context(), 1, nil)
	g := rig.New(t, 2, func(i int, o *grid.ManagerOptions) { o.MaxHandlers = 1 })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := g.Conn(0, 1).NewStream(ctx, rig.Block, nil)
	require.NoError(t, err)
	_, overloaded = g.Conn(0, 1).SingleRequest(t.Context(), rig.Echo, nil)
	require.True(t, grid.CanRetry(unsent))
	require.True(t, grid.CanRetry(overloaded))
	return unsent, overloaded
}

func newRetrier(t *testing.T, o grid.RetryOptions, conns ...grid.Requester) *grid.Retrier {
	r, err := grid.NewRetrier(o, conns...)
	require.NoError(t, err)
	return r
}

func TestRetrier_GoesToAnotherHostFirst(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		unsent, overloaded := refusals(t)
		a, b, c := &scripted{err: unsent}, &scripted{err: overloaded}, &scripted{name: "c"}
		r := newRetrier(t, grid.RetryOptions{}, a, b, c)
		took := rig.Elapsed(func() {
			answer, err := r.SingleRequest(t.Context(), 1, []byte("!"))
			require.NoError(t, err)
			require.Equal(t, "c!", string(answer))
		})
		require.Zero(t, took, "no pause before all were asked")
		require.Equal(t, grid.RetryStats{Calls: 1, Retries: 2}, r.Stats())

		// What has perhaps run is not asked anew.
		for _, err := range []error{grid.NewRemoteErrString("bad"), grid.ErrDisconnected, grid.ErrOverloaded, context.DeadlineExceeded} {
			a.err = err
			_, got := r.SingleRequest(t.Context(), 1, nil)
			require.Equal(t, err, got)
		}
		require.EqualValues(t, 1, c.calls.Load())
	})
}

func TestRetrier_PausesBetweenRounds(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		unsent, _ := refusals(t)
		a, b := &scripted{err: unsent}, &scripted{err: unsent}
		r := newRetrier(t, grid.RetryOptions{Attempts: 10, MinBackoff: time.Second, MaxBackoff: 4 * time.Second}, a, b)
		took := rig.Elapsed(func() {
			_, err := r.SingleRequest(t.Context(), 1, nil)
			require.Equal(t, unsent, err)
		})
		require.EqualValues(t, 10, a.calls.Load()+b.calls.Load())
		require.GreaterOrEqual(t, took, (1+2+3+3)*time.Second)
		require.LessOrEqual(t, took, (1+2+4+4)*time.Second*3/2)

		// Not where the deadline would pass in the pause.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		took = rig.Elapsed(func() {
			_, err := r.SingleRequest(ctx, 1, nil)
			require.Equal(t, unsent, err)
		})
		require.Zero(t, took)

		ctx, giveUp := context.WithCancelCause(t.Context())
		mine := errors.New("changed my mind")
		time.AfterFunc(time.Second/2, func() { giveUp(mine) })
		took = rig.Elapsed(func() {
			_, err := r.SingleRequest(ctx, 1, nil)
			rig.RequireKind(t, err, rig.IsCanceled, "pause")
			require.ErrorIs(t, err, mine)
			require.ErrorContains(t, err, "last attempt: grid: disconnected")
		})
		require.Equal(t, time.Second/2, took)
	})
}

// However many calls are refused, a tenth of them at most is made again, beside what there was to
// begin with.
func TestRetrier_BudgetBoundsWhatOverloadedHostsGet(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		unsent, overloaded := refusals(t)
		a, b := &scripted{err: overloaded}, &scripted{err: overloaded}
		r := newRetrier(t, grid.RetryOptions{}, a, b)
		const n = 10_000
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				for range n / 10 {
					_, err := r.SingleRequest(t.Context(), 1, nil)
					if err != overloaded {
						t.Errorf("%v", err)
					}
				}
			})
		}
		all.Wait()
		extra := int(a.calls.Load()+b.calls.Load()) - n
		require.LessOrEqual(t, extra, n/10+10)
		require.GreaterOrEqual(t, extra, n/10)
		st := r.Stats()
		require.EqualValues(t, n, st.Calls)
		require.EqualValues(t, extra, st.Retries)
		require.Positive(t, st.Denied)

		// What was not sent costs nothing, so it goes on to the next host all the same.
		a.err, b.err, b.name = unsent, nil, "b"
		for range 100 {
			answer, err := r.SingleRequest(t.Context(), 1, nil)
			require.NoError(t, err)
			require.Equal(t, "b", string(answer))
		}
	})
}

func TestRetrier_BadOptionsAreNamed(t *testing.T) {
	some := &scripted{}
	for want, o := range map[string]grid.RetryOptions{
		"Attempts is -1, must be 1 to 1000":      {Attempts: -1},
		"Attempts is 1001":                       {Attempts: 1001},
		"Budget is -1, must be 0.001 to 1":       {Budget: -1},
		"Budget is 1.5":                          {Budget: 1.5},
		"MinBackoff is 1ns, must be 1ms to 720h": {MinBackoff: 1},
		"MaxBackoff is -1s":                      {MaxBackoff: -time.Second, MinBackoff: time.Second},
		"MinBackoff is 1m0s, must be no more":    {MinBackoff: time.Minute, MaxBackoff: time.Second},
	} {
		_, err := grid.NewRetrier(o, some)
		require.ErrorContains(t, err, "grid: RetryOptions."+want)
	}
	_, err := grid.NewRetrier(grid.RetryOptions{})
	require.ErrorContains(t, err, "without a Requester")
	_, err = grid.NewRetrier(grid.RetryOptions{}, some, nil)
	require.ErrorContains(t, err, "Requester 2 of 2 is nil")
	for _, o := range []grid.RetryOptions{{MinBackoff: time.Minute}, {MaxBackoff: time.Millisecond}} {
		newRetrier(t, o, some)
	}
}

// A service of three hosts goes on while they shut down one after the other: no call fails but one
// that was on its way when its host closed the link, and may have run.
func TestRetrier_HostsThatShutDown(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 4, nil)
		h := grid.NewSingleHandler(rig.Unused, grid.NewMSS, grid.NewMSS)
		for i := 1; i < 4; i++ {
			require.NoError(t, h.Register(g.Manager(i), func(req *grid.MSS) (*grid.MSS, *grid.RemoteErr) { return req, nil }))
		}
		r := newRetrier(t, grid.RetryOptions{}, othersOf(g.Manager(0))...)
		stop := make(chan struct{})
		served := make(chan int)
		lost := 0
		go func() {
			n := 0
			defer func() { served <- n }()
			for ; ; n++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				resp, err := h.Call(t.Context(), r, ask("me"))
				switch {
				case errors.Is(err, grid.ErrDisconnected) && !grid.CanRetry(err):
					lost++
				case err != nil || resp.Get("refuse") != "me":
					t.Errorf("%v", err)
				}
			}
		}()
		for i := 1; i < 3; i++ {
			require.NoError(t, g.Manager(i).Shutdown(t.Context()))
			time.Sleep(time.Second)
		}
		close(stop)
		require.Greater(t, <-served, 1000)
		require.LessOrEqual(t, lost, 2)
	})
}

// One Retrier goes on, with its budget, while hosts come and go.
func TestRetrierFunc_HostsThatComeAndGo(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		unsent, overloaded := refusals(t)
		a, b, c := &scripted{err: unsent}, &scripted{err: overloaded}, &scripted{name: "c"}
		var hosts atomic.Pointer[[]grid.Requester]
		set := func(to ...grid.Requester) { hosts.Store(&to) }
		r, err := grid.NewRetrierFunc(grid.RetryOptions{MinBackoff: time.Second, MaxBackoff: time.Second}, func() []grid.Requester { return *hosts.Load() })
		require.NoError(t, err)
		call := func() (string, error) {
			answer, err := r.SingleRequest(t.Context(), 1, []byte("!"))
			return string(answer), err
		}

		set()
		_, err = call()
		rig.RequireKind(t, err, rig.IsDisconnected, "no hosts")
		require.True(t, grid.CanRetry(err))
		require.Equal(t, "one of ", r.String())

		// Those that are there after the pause are asked then.
		set(a, nil)
		time.AfterFunc(time.Second/2, func() { set(c) })
		answer, err := call()
		require.NoError(t, err)
		require.Equal(t, "c!", answer)
		set(a)
		time.AfterFunc(time.Second/2, func() { set() })
		_, err = call()
		require.Equal(t, unsent, err)

		// As many attempts as there are hosts, and one budget for all lists.
		set(a, a, a, a, c)
		_, err = call()
		require.NoError(t, err)
		for range 20 {
			set(b, c)
			_, _ = call()
		}
		require.Positive(t, r.Stats().Denied)

		_, err = grid.NewRetrierFunc(grid.RetryOptions{}, nil)
		require.ErrorContains(t, err, "without a function")
		_, err = grid.NewRetrierFunc(grid.RetryOptions{Budget: 2}, func() []grid.Requester { return nil })
		require.ErrorContains(t, err, "Budget is 2")
	})
}

// The error says which host may have run the call.
func TestRetrier_ErrorsNameTheHost(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 3, nil)
		release, _ := rig.Gate(t)
		require.NoError(t, g.Manager(2).RegisterSingleHandler(rig.Unused, func(b []byte) ([]byte, *grid.RemoteErr) {
			if len(b) == 0 {
				return nil, grid.NewRemoteErr(errNo)
			}
			<-release
			return nil, nil
		}))
		g.Partition([]int{1}, []int{0, 2})
		synctest.Wait()
		r := newRetrier(t, grid.RetryOptions{}, g.Conn(0, 1), g.Conn(0, 2))
		named := func(payload string, cause error) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := r.SingleRequest(ctx, rig.Unused, []byte(payload))
			require.ErrorIs(t, err, cause)
			require.False(t, grid.CanRetry(err))
			var of *grid.AnswerError
			require.ErrorAs(t, err, &of)
			require.Equal(t, grid.Requester(g.Conn(0, 2)), of.Conn)
			require.ErrorContains(t, err, g.Host(2)+": ")
		}
		named("", errNo)
		named("x", context.DeadlineExceeded)
		time.AfterFunc(time.Second/2, func() { g.Cut(0, 2) })
		named("x", grid.ErrDisconnected)
		require.Equal(t, "one of "+g.Host(1)+", "+g.Host(2), fmt.Sprint(r))
	})
}

func TestRetrier_NilIsAHostThatCannotBeReached(t *testing.T) {
	var r *grid.Retrier
	_, err := r.SingleRequest(t.Context(), 1, nil)
	rig.RequireKind(t, err, rig.IsDisconnected, "request")
	require.Equal(t, "<nil>", r.String())
	require.Zero(t, r.Stats())
	_, err = whoAmI.Call(t.Context(), r, ask(""))
	rig.RequireKind(t, err, rig.IsDisconnected, "typed")
}

// Hosts without the handler are left out, and those that come later are asked all the same.
func TestRetrier_LeavesOutHostsWithoutTheHandlerAlone(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		_, lacks := g.Conn(0, 1).SingleRequest(t.Context(), rig.Unused, nil)
		require.ErrorIs(t, lacks, grid.ErrNoHandler)
		_, away := (*grid.Connection)(nil).SingleRequest(t.Context(), 1, nil)
		a, b, c, d := &answers{err: lacks}, &answers{err: away}, &answers{err: lacks}, &answers{}
		rounds := [][]grid.Requester{{a, b}, {c, d}}
		r, err := grid.NewRetrierFunc(grid.RetryOptions{Attempts: 10}, func() []grid.Requester {
			now := rounds[0]
			rounds = rounds[1:]
			return now
		})
		require.NoError(t, err)
		_, err = r.SingleRequest(t.Context(), 1, nil)
		require.NoError(t, err)
		require.Equal(t, 1, d.asked)

		twice, other := &answers{err: lacks}, &answers{err: lacks}
		r, err = grid.NewRetrier(grid.RetryOptions{Attempts: 10, MinBackoff: time.Second, MaxBackoff: time.Second}, twice, twice, other)
		require.NoError(t, err)
		require.Zero(t, rig.Elapsed(func() {
			_, err = r.SingleRequest(t.Context(), 1, nil)
			require.ErrorIs(t, err, grid.ErrNoHandler)
		}))
		require.Equal(t, 1, twice.asked)
	})
}

// answers is a Requester that answers alike.
type answers struct {
	err   error
	asked int
}

func (a *answers) SingleRequest(context.Context, grid.HandlerID, []byte) ([]byte, error) {
	a.asked++
	return nil, a.err
}
