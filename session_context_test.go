package grid

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Whoever asks, and whenever for the first time, learns the same of the context of a handler as of
// one that package context has made at once.
func TestRequestContext_TellsWhatOneMadeAtOnceWould(t *testing.T) {
	lost := errors.New("lost")
	type step func(life *requestLife, end context.CancelCauseFunc)
	pass := func(*requestLife, context.CancelCauseFunc) { time.Sleep(time.Second) }
	lose := func(_ *requestLife, end context.CancelCauseFunc) { end(lost) }
	ret := func(life *requestLife, _ context.CancelCauseFunc) {
		life.end(!life.deadline.IsZero() && !time.Now().Before(life.deadline))
	}
	gone := func(life *requestLife, _ context.CancelCauseFunc) { life.clientGone() }
	most := func(*requestLife, context.CancelCauseFunc) { time.Sleep(time.Second - deadlineSlack) }
	for _, c := range []struct {
		name  string
		steps []step
		err   error
		cause error
	}{
		{"alive", nil, nil, nil},
		{"returned", []step{ret}, context.Canceled, context.Canceled},
		{"lost", []step{lose}, context.Canceled, lost},
		{"late", []step{pass}, context.DeadlineExceeded, context.DeadlineExceeded},
		{"returned, then lost", []step{ret, lose}, context.Canceled, context.Canceled},
		{"returned, then late", []step{ret, pass}, context.Canceled, context.Canceled},
		{"lost, then returned", []step{lose, ret}, context.Canceled, lost},
		{"late, then returned", []step{pass, ret}, context.DeadlineExceeded, context.DeadlineExceeded},
		{"given up", []step{gone}, context.Canceled, context.Canceled},
		{"given up twice", []step{gone, gone}, context.Canceled, context.Canceled},
		{"given up, then returned", []step{gone, ret}, context.Canceled, context.Canceled},
		{"given up, then late", []step{gone, pass}, context.Canceled, context.Canceled},
		{"given up, then returned late", []step{gone, pass, ret}, context.Canceled, context.Canceled},
		{"given up, then lost", []step{gone, lose}, context.Canceled, context.Canceled},
		{"lost, then given up", []step{lose, gone}, context.Canceled, lost},
		{"late, then given up", []step{pass, gone}, context.DeadlineExceeded, context.DeadlineExceeded},
		{"returned, then given up", []step{ret, gone}, context.Canceled, context.Canceled},
		{"given up near the deadline", []step{most, gone}, nil, nil},
		{"given up near the deadline, which passes", []step{most, gone, pass}, context.DeadlineExceeded, context.DeadlineExceeded},
		{"given up near the deadline, then returned", []step{most, gone, ret}, context.Canceled, context.Canceled},
	} {
		for askedAfter := range len(c.steps) + 1 {
			synctest.Test(t, func(t *testing.T) {
				session, end := context.WithCancelCause(context.Background())
				defer end(nil)
				life := &requestLife{session: session, deadline: time.Now().Add(time.Second)}
				defer life.end(false)
				for i := range len(c.steps) + 1 {
					if i == askedAfter {
						life.Done()
					}
					if i < len(c.steps) {
						c.steps[i](life, end)
						synctest.Wait()
					}
				}
				require.Equal(t, c.err, life.Err(), "%s, asked after %d", c.name, askedAfter)
				require.Equal(t, c.cause, context.Cause(life), "%s, asked after %d", c.name, askedAfter)
				select {
				case <-life.Done():
					require.Error(t, c.err)
				default:
					require.NoError(t, c.err)
				}
			})
		}
	}
}

// A handler that looks at its context now and then does not have one of package context made.
func TestRequestContext_CostsNothingAsLongAsItIsAlive(t *testing.T) {
	s := &session{conn: new(Connection)}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	defer s.cancel(nil)
	c := new(requestContext)
	c.init(s, "sub", time.Now().Add(time.Hour), nil)
	ctx := context.WithValue(context.Context(c), t, "a value")
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if ctx.Err() != nil || ctx.Value(s) != nil || GetSubroute(ctx) != "sub" {
			t.Error("it is not what it should be")
		}
	}))
	require.Nil(t, c.life.made)
	deadline, ok := ctx.Deadline()
	require.True(t, ok)
	require.Equal(t, c.life.deadline, deadline)

	// Those that are derived from it end with it.
	child, cancel := context.WithCancel(ctx)
	defer cancel()
	called := make(chan struct{})
	context.AfterFunc(ctx, func() { close(called) })
	c.life.end(false)
	<-child.Done()
	<-called
	require.Equal(t, context.Canceled, context.Cause(child))
}

func TestRequestContext_IsSafeForConcurrentUse(t *testing.T) {
	for range 200 {
		session, end := context.WithCancelCause(context.Background())
		life := &requestLife{session: session, deadline: time.Now().Add(time.Minute)}
		asked := make(chan (<-chan struct{}), 4)
		for range cap(asked) {
			go func() {
				_, _ = life.Err(), context.Cause(life)
				asked <- life.Done()
			}()
		}
		life.end(false)
		first := <-asked
		for range cap(asked) - 1 {
			require.Equal(t, first, <-asked)
		}
		<-first
		require.Equal(t, context.Canceled, life.Err())
		end(nil)
	}
}

// A session that ends after a handler which was too late is not the cause, asked before or not.
func TestRequestContext_CauseIsTheDeadlineWhereThatWasFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, asked := range []bool{true, false} {
			session, end := context.WithCancelCause(t.Context())
			life := &requestLife{session: session, deadline: time.Now().Add(time.Second)}
			if asked {
				life.Done()
			}
			time.Sleep(2 * time.Second)
			life.end(true)
			end(ErrDisconnected)
			require.ErrorIs(t, life.Err(), context.DeadlineExceeded)
			require.ErrorIs(t, context.Cause(life), context.DeadlineExceeded)
		}
	})
}
