package grid_test

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

func echoServed(ctx context.Context, p *failing, s *grid.TypedServerStream[*failing, *failing]) *grid.RemoteErr {
	if p != nil {
		if err := s.Send(ctx, p); err != nil {
			return grid.NewRemoteErr(err)
		}
	}
	for v, err := range s.All() {
		if err == nil {
			err = s.Send(ctx, v)
		}
		if err != nil {
			return grid.NewRemoteErr(err)
		}
	}
	return nil
}

func TestTypedServe_ShapesAndRegistration(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		m := g.Manager(1)
		for i, h := range []*failingStream{
			newFailingStream(),
			grid.NewStream(rig.Handler, newFailing, newFailing, newFailing).WithInCapacity(20).WithOutCapacity(7),
			grid.NewStream[*failing](rig.Handler, nil, newFailing, newFailing),
			grid.NewStream[*failing, *failing](rig.Handler, newFailing, nil, newFailing),
		} {
			require.NoError(t, h.RegisterServe(m, echoServed))
			s, err := h.Call(t.Context(), c, &failing{Text: "payload"})
			require.NoError(t, err)
			var want []string
			if i != 2 {
				want = append(want, "payload")
			}
			if i != 3 {
				for n := range 50 {
					want = append(want, fmt.Sprint(n))
				}
				go func() {
					defer s.CloseSend()
					for n := range 50 {
						if err := s.Send(&failing{Text: fmt.Sprint(n)}); err != nil {
							t.Error(err)
						}
					}
				}()
			}
			got, err := collectTyped(s)
			require.NoError(t, err)
			require.Equal(t, want, got)
			require.True(t, m.Unregister(rig.Handler))
		}
		require.ErrorContains(t, newFailingStream().RegisterServe(m, nil), "nil handler")
		require.ErrorContains(t, newFailingStream().WithOutCapacity(-1).RegisterServe(m, echoServed), "OutCapacity")
		require.ErrorContains(t, newFailingStream().RegisterServe(m, echoServed, ""), "empty subroute")
		require.NoError(t, newFailingStream().RegisterServe(m, echoServed, "a", "b"))
		require.ErrorIs(t, newFailingStream().RegisterServe(m, echoServed, "a/b"), grid.ErrHandlerAlreadyExists)
	})
}

func TestTypedServe_UndecodableMessageEndsBothSides(t *testing.T) {
	for _, text := range []string{unmarshalError, unmarshalPanic} {
		rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
			h := newFailingStream().WithInCapacity(10)
			var seen []string
			ends := make(chan [3]error, 1)
			require.NoError(t, h.RegisterServe(g.Manager(1), func(ctx context.Context, _ *failing, s *grid.TypedServerStream[*failing, *failing]) *grid.RemoteErr {
				for {
					v, err := s.Recv()
					if err != nil {
						_, again := s.Recv()
						ends <- [3]error{err, again, context.Cause(ctx)}
						return nil // a handler that does not tell
					}
					seen = append(seen, v.Text)
				}
			}))
			s, err := h.Call(t.Context(), c, newFailing())
			require.NoError(t, err)
			go func() {
				defer s.CloseSend()
				for _, text := range []string{"good", text, "not to be seen", "not to be seen"} {
					_ = s.Send(&failing{Text: text})
				}
			}()
			err = s.Results(nil)
			require.True(t, grid.IsRemoteErr(err), err)
			require.ErrorContains(t, err, "coding *grid_test.failing: ")
			end := <-ends
			require.ErrorContains(t, end[0], "failing")
			require.Equal(t, end[0], end[1])
			require.Equal(t, end[0], end[2])
			require.Equal(t, []string{"good"}, seen)
			synctest.Wait()
			require.Zero(t, g.Conn(1, 0).Stats().KeptBytes)
		})
	}
}

func TestTypedServe_UndecodablePayload(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		h := newFailingStream()
		require.NoError(t, h.RegisterServe(g.Manager(1), echoServed))
		s, err := h.Call(t.Context(), c, &failing{Text: unmarshalError})
		require.NoError(t, err)
		_, err = collectTyped(s)
		require.True(t, grid.IsRemoteErr(err), err)
		require.ErrorContains(t, err, "payload")
		s.CloseSend()
	})
}

func TestTypedServe_SendOfTheUnencodableIsRefusedAndTheStreamLivesOn(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		h := newFailingStream()
		require.NoError(t, h.RegisterServe(g.Manager(1), func(ctx context.Context, _ *failing, s *grid.TypedServerStream[*failing, *failing]) *grid.RemoteErr {
			for _, text := range []string{marshalError, marshalPanic} {
				if err := s.Send(ctx, &failing{Text: text}); err == nil || ctx.Err() != nil {
					return grid.NewRemoteErrf("%v", err)
				}
			}
			return grid.NewRemoteErr(s.Send(ctx, &failing{Text: "good"}))
		}))
		s, err := h.Call(t.Context(), c, newFailing())
		require.NoError(t, err)
		s.CloseSend()
		got, err := collectTyped(s)
		require.NoError(t, err)
		require.Equal(t, []string{"good"}, got)
	})
}

// What is given to Send stays the handler's, and so does what it has received.
func TestTypedServe_RecyclesNothingByItself(t *testing.T) {
	newEmpty := func() *counted { return new(counted) }
	h := grid.NewStream(rig.Handler, newEmpty, newEmpty, newEmpty)
	var times atomic.Int64
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		require.NoError(t, h.RegisterServe(g.Manager(1), func(ctx context.Context, _ *counted, s *grid.TypedServerStream[*counted, *counted]) *grid.RemoteErr {
			v := &counted{failing{times: &times}}
			for n := range 10 {
				v.Text = fmt.Sprint(n)
				if err := s.Send(ctx, v); err != nil {
					return grid.NewRemoteErr(err)
				}
			}
			return nil
		}))
		s, err := h.Call(t.Context(), c, new(counted))
		require.NoError(t, err)
		s.CloseSend()
		n := 0
		require.NoError(t, s.Results(func(v *counted) error {
			require.Equal(t, fmt.Sprint(n), v.Text)
			n++
			return nil
		}))
		require.Equal(t, 10, n)
		require.Zero(t, times.Load())
	})
}

func TestTypedServe_GivesEveryBufferBack(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		h := grid.NewStream(rig.Handler, grid.NewBytes, grid.NewBytes, grid.NewBytes)
		require.NoError(t, h.RegisterServe(g.Manager(1), func(ctx context.Context, p *grid.Bytes, s *grid.TypedServerStream[*grid.Bytes, *grid.Bytes]) *grid.RemoteErr {
			for v, err := range s.All() {
				if err == nil {
					err = s.Send(ctx, v)
				}
				if err != nil {
					return grid.NewRemoteErr(err)
				}
				h.PutRequest(v)
			}
			return nil
		}))
		for range 50 {
			s, err := h.Call(t.Context(), c, grid.NewBytesWith([]byte("payload")))
			require.NoError(t, err)
			go func() {
				defer s.CloseSend()
				for n := range 20 {
					if err := s.Send(grid.NewBytesWith(make([]byte, n*n))); err != nil {
						t.Error(err)
					}
				}
			}()
			n := 0
			require.NoError(t, s.Results(func(v *grid.Bytes) error {
				require.Len(t, *v, n*n)
				n++
				h.PutResponse(v)
				return nil
			}))
			require.Equal(t, 20, n)
		}
	})
}

// A constructor that ends the goroutine ends the handler.
func TestTypedServe_ConstructorThatEndsTheGoroutine(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		h := grid.NewStream(rig.Handler, newFailing, func() *failing { runtime.Goexit(); return nil }, newFailing)
		require.NoError(t, h.RegisterServe(g.Manager(1), echoServed))
		s, err := h.Call(t.Context(), c, newFailing())
		require.NoError(t, err)
		require.NoError(t, s.Send(newFailing()))
		got, err := collectTyped(s)
		require.ErrorContains(t, err, "ended its goroutine")
		require.Len(t, got, 1)
		synctest.Wait()
		require.Zero(t, g.Conn(1, 0).Stats().Handlers)
		require.Zero(t, g.Conn(1, 0).Stats().KeptBytes)
		require.Error(t, s.Send(newFailing()))
	})
}

// A handler acts on what it was told if, and only if, Recv says io.EOF, by value or by errors.Is.
func TestTypedServe_HalfAnInputIsNotTakenForAWholeOne(t *testing.T) {
	for name, test := range map[string]struct {
		end   func(g *rig.Grid, s *grid.TypedStream[*failing, *failing], cancel context.CancelFunc)
		cause error
	}{
		"ended":     {func(_ *rig.Grid, s *grid.TypedStream[*failing, *failing], _ context.CancelFunc) { s.CloseSend() }, io.EOF},
		"cancelled": {func(_ *rig.Grid, _ *grid.TypedStream[*failing, *failing], cancel context.CancelFunc) { cancel() }, context.Canceled},
		"cut":       {func(g *rig.Grid, _ *grid.TypedStream[*failing, *failing], _ context.CancelFunc) { g.Cut(0, 1) }, grid.ErrDisconnected},
		"deadline":  {func(*rig.Grid, *grid.TypedStream[*failing, *failing], context.CancelFunc) { time.Sleep(time.Hour) }, context.DeadlineExceeded},
	} {
		for _, busy := range []bool{false, true} { // so that input waits when the end comes
			t.Run(fmt.Sprint(name, " busy=", busy), func(t *testing.T) {
				rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
					h := newFailingStream().WithInCapacity(4)
					ends := make(chan [3]error, 1)
					goOn := make(chan struct{})
					require.NoError(t, h.RegisterServe(g.Manager(1), func(ctx context.Context, _ *failing, s *grid.TypedServerStream[*failing, *failing]) *grid.RemoteErr {
						if busy {
							<-goOn
						}
						var last error
						for v, err := range s.All() {
							if last = err; (v == nil) != (err != nil) {
								t.Error(v, err)
							}
						}
						_, again := s.Recv()
						ends <- [3]error{last, again, context.Cause(ctx)}
						return nil
					}))
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					s, err := h.Call(ctx, c, newFailing())
					require.NoError(t, err)
					for range 3 {
						require.NoError(t, s.Send(newFailing()))
					}
					synctest.Wait()
					test.end(g, s, cancel)
					synctest.Wait()
					close(goOn)
					end := <-ends
					if test.cause == io.EOF {
						require.Equal(t, [3]error{nil, io.EOF, nil}, end)
						return
					}
					require.ErrorIs(t, end[0], test.cause)
					require.NotErrorIs(t, end[0], io.EOF)
					require.Equal(t, end[0], end[1])
					require.Equal(t, end[0], end[2])
				})
			})
		}
	}
}

// endless is a type whose decoder says io.EOF of what is too short, as many do.
type endless struct{ failing }

func (e *endless) UnmarshalMsg(b []byte) ([]byte, error) {
	o, err := e.failing.UnmarshalMsg(b)
	switch e.Text {
	case "short":
		return b, io.EOF
	case "shorter":
		return b, fmt.Errorf("in the middle: %w", io.EOF)
	}
	return o, err
}

// What a peer has sent is not the end of the stream, on either side.
func TestTyped_UndecodableMessageIsNoEOF(t *testing.T) {
	newEndless := func() *endless { return new(endless) }
	for _, text := range []string{"short", "shorter"} {
		rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
			h := grid.NewStream[grid.NoPayload](rig.Handler, nil, newEndless, newEndless)
			served := make(chan error, 1)
			require.NoError(t, h.RegisterServe(g.Manager(1), func(ctx context.Context, _ grid.NoPayload, s *grid.TypedServerStream[*endless, *endless]) *grid.RemoteErr {
				v, err := s.Recv()
				if err == nil {
					return grid.NewRemoteErr(s.Send(ctx, v))
				}
				served <- err
				return nil
			}))
			open := func() *grid.TypedStream[*endless, *endless] {
				s, err := h.Call(t.Context(), c, grid.NoPayload{})
				require.NoError(t, err)
				return s
			}
			s := open()
			require.NoError(t, s.Send(&endless{failing{Text: text}}))
			err := <-served
			require.NotErrorIs(t, err, io.EOF)
			require.ErrorContains(t, err, "EOF")
			require.Error(t, s.Results(nil))

			require.True(t, g.Manager(1).Unregister(rig.Handler))
			require.NoError(t, h.RegisterServe(g.Manager(1), func(ctx context.Context, _ grid.NoPayload, s *grid.TypedServerStream[*endless, *endless]) *grid.RemoteErr {
				return grid.NewRemoteErr(s.Send(ctx, &endless{failing{Text: text}}))
			}))
			s = open()
			<-s.Done() // well
			_, err = s.Recv()
			require.ErrorContains(t, err, "EOF")
			require.NotErrorIs(t, err, io.EOF)
			_, err = s.Recv()
			require.Error(t, err)
			require.NotErrorIs(t, err, io.EOF, "the stream has ended well, but not for its consumer")
			s.CloseSend()
		})
	}
}
