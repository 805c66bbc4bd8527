package grid_test

import (
	"context"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// failingStream is a typed stream of what can go wrong.
type failingStream = grid.StreamTypeHandler[*failing, *failing, *failing]

func newFailingStream() *failingStream {
	return grid.NewStream(rig.Handler, newFailing, newFailing, newFailing)
}

// collectTyped consumes a typed stream.
func collectTyped(s *grid.TypedStream[*failing, *failing]) (got []string, err error) {
	err = s.Results(func(f *failing) error { got = append(got, f.Text); return nil })
	return got, err
}

// echoTyped answers with the payload and then its input.
func echoTyped(_ context.Context, payload *failing, in <-chan *failing, out chan<- *failing) *grid.RemoteErr {
	if payload != nil {
		out <- payload
	}
	for v := range in {
		out <- v
	}
	return nil
}

func TestTyped_StreamShapes(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		m := g.Manager(1)
		h := newFailingStream()
		require.NoError(t, h.Register(m, echoTyped))
		require.NoError(t, h.Register(m, echoTyped, "a", "b"))
		require.True(t, h.WithPayload)
		require.Equal(t, [2]int{1, 1}, [2]int{h.OutCapacity, h.InCapacity})
		require.ErrorIs(t, h.Register(m, echoTyped), grid.ErrHandlerAlreadyExists)
		require.ErrorContains(t, h.Register(m, echoTyped, ""), "empty subroute")
		require.ErrorContains(t, h.Register(m, nil, "c"), "nil handler")

		for _, conn := range []grid.Streamer{c, c.Subroute("a").Subroute("b")} {
			s, err := h.Call(t.Context(), conn, &failing{Text: "payload"})
			require.NoError(t, err)
			require.NoError(t, s.Err())
			go func() {
				for i := range 50 {
					s.Requests <- &failing{Text: fmt.Sprint(i)}
				}
				close(s.Requests)
			}()
			got, err := collectTyped(s)
			require.NoError(t, err)
			require.Len(t, got, 51)
			require.Equal(t, []string{"payload", "0", "1"}, got[:3])
			<-s.Done()
			require.NoError(t, s.Err())

			s, err = h.Call(t.Context(), conn, &failing{Text: "payload"})
			require.NoError(t, err)
			go func() {
				v := &failing{} // stays ours
				for i := range 50 {
					v.Text = fmt.Sprint(i)
					if err := s.Send(v); err != nil {
						t.Error(err)
					}
				}
				s.CloseSend()
			}()
			n := 0
			for v, err := range s.All() {
				require.NoError(t, err)
				require.Equal(t, n > 0, v.Text != "payload")
				n++
			}
			require.Equal(t, 51, n)
			require.Error(t, s.Send(&failing{}))
		}

		// Breaking off.
		s, err := h.Call(t.Context(), c, &failing{Text: "payload"})
		require.NoError(t, err)
		for range s.All() {
			break
		}
		<-s.Done()
		require.Error(t, s.Err())
	})
}

func TestTyped_StreamWithoutInputOrPayload(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		m := g.Manager(1)
		source := func(_ context.Context, p *failing, out chan<- *failing) *grid.RemoteErr {
			for range 5 {
				out <- &failing{Text: p.Text}
			}
			return nil
		}
		noInput := newFailingStream()
		require.ErrorContains(t, noInput.RegisterNoInput(m, nil), "nil handler")
		require.NoError(t, noInput.RegisterNoInput(m, source))
		// A client that does not know that hears of it.
		for _, client := range []*failingStream{noInput, newFailingStream(), grid.NewStream[*failing, *failing](rig.Handler, newFailing, nil, newFailing)} {
			s, err := client.Call(t.Context(), c, &failing{Text: "x"})
			require.NoError(t, err)
			require.Nil(t, s.Requests)
			require.Error(t, s.Send(&failing{}))
			got, err := collectTyped(s)
			require.NoError(t, err)
			require.Equal(t, []string{"x", "x", "x", "x", "x"}, got)
		}

		noPayload := grid.NewStream[grid.NoPayload](rig.Handler+1, nil, newFailing, newFailing)
		require.False(t, noPayload.WithPayload)
		require.ErrorContains(t, noPayload.RegisterNoPayload(m, nil), "nil handler")
		require.NoError(t, noPayload.RegisterNoPayload(m, func(ctx context.Context, in <-chan *failing, out chan<- *failing) *grid.RemoteErr {
			return echoTyped(ctx, nil, in, out)
		}))
		s, err := noPayload.Call(t.Context(), c, grid.NoPayload{})
		require.NoError(t, err)
		s.Requests <- &failing{Text: "one"}
		close(s.Requests)
		got, err := collectTyped(s)
		require.NoError(t, err)
		require.Equal(t, []string{"one"}, got)

		// Without WithPayload the payload is not looked at.
		h := grid.NewStream(rig.Handler+2, newFailing, newFailing, newFailing)
		require.NoError(t, h.RegisterNoPayload(m, func(context.Context, <-chan *failing, chan<- *failing) *grid.RemoteErr { return nil }))
		s, err = h.Call(t.Context(), c, &failing{Text: marshalPanic})
		require.NoError(t, err)
		close(s.Requests)
		require.NoError(t, s.Results(nil))

		require.ErrorContains(t, grid.NewStream[*failing, *failing](rig.Unused, newFailing, nil, newFailing).WithInCapacity(1).Register(m, echoTyped), "no constructor for requests")
		bad := grid.NewStream[*failing](rig.Unused, nil, newFailing, newFailing)
		bad.WithPayload = true
		require.ErrorContains(t, bad.Register(m, echoTyped), "no constructor for it")
		require.ErrorContains(t, newFailingStream().WithOutCapacity(-1).Register(m, echoTyped, "x"), "OutCapacity")
		require.ErrorContains(t, newFailingStream().WithInCapacity(rig.MaxCapacity+1).Register(m, echoTyped, "x"), "InCapacity")
	})
}

// The capacities that a client's own handler value has mean nothing between two peers of ours.
func TestTyped_StreamCapacitiesMayDiffer(t *testing.T) {
	capacities := [][2]int{{0, 1}, {1, 1}, {1, 50}, {50, 1}, {50, 50}}
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for i, server := range capacities {
			id := rig.Handler + grid.HandlerID(i)
			h := grid.NewStream(id, newFailing, newFailing, newFailing).WithOutCapacity(server[0]).WithInCapacity(server[1])
			require.NoError(t, h.Register(g.Manager(1), echoTyped))
			for _, client := range capacities {
				h := grid.NewStream(id, newFailing, newFailing, newFailing).WithOutCapacity(client[0]).WithInCapacity(client[1])
				s, err := h.Call(ctx, c, &failing{Text: "payload"})
				require.NoError(t, err)
				go func() {
					for i := range 120 {
						s.Requests <- &failing{Text: fmt.Sprint(i)}
					}
					close(s.Requests)
				}()
				got, err := collectTyped(s)
				require.NoError(t, err, "server %v, client %v", server, client)
				require.Len(t, got, 121)
			}
		}
	})
}

func TestTyped_StreamUndecodablePayload(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		h := newFailingStream()
		called := false
		require.NoError(t, h.Register(g.Manager(1), func(context.Context, *failing, <-chan *failing, chan<- *failing) *grid.RemoteErr {
			called = true
			return nil
		}))
		for _, text := range []string{marshalError, marshalPanic} {
			_, err := h.Call(t.Context(), c, &failing{Text: text})
			rig.RequireKind(t, err, rig.IsNothingElse, text)
			require.ErrorContains(t, err, "grid: handler 100: payload: encoding *grid_test.failing: ")
		}
		for _, text := range []string{unmarshalError, unmarshalPanic} {
			s, err := h.Call(t.Context(), c, &failing{Text: text})
			require.NoError(t, err)
			err = s.Results(nil)
			rig.RequireKind(t, err, rig.IsRemote, text)
			require.ErrorContains(t, err, "grid: handler 100: payload: decoding *grid_test.failing: ")
		}
		require.False(t, called)
		require.ErrorIs(t, errOf(h.Call(t.Context(), nil, &failing{})), grid.ErrDisconnected)
		require.ErrorIs(t, errOf(h.Call(t.Context(), (*grid.Connection)(nil), &failing{})), grid.ErrDisconnected)
		require.ErrorIs(t, errOf(h.Call(t.Context(), (*grid.Subroute)(nil), &failing{})), grid.ErrDisconnected)
	})
}

func errOf[T any](_ T, err error) error { return err }

// One bad message, in either direction, by either side's fault: the stream ends with an error on
// both, and nobody sees it half filled.
func TestTyped_StreamUndecodableMessageEndsBothSides(t *testing.T) {
	bad := []string{marshalError, marshalPanic, unmarshalError, unmarshalPanic}
	for _, text := range bad {
		t.Run("request/"+text, func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				h := newFailingStream().WithInCapacity(10)
				var seen []string
				causes := make(chan error, 1)
				require.NoError(t, h.Register(g.Manager(1), func(ctx context.Context, _ *failing, in <-chan *failing, _ chan<- *failing) *grid.RemoteErr {
					for v := range in {
						seen = append(seen, v.Text)
					}
					causes <- context.Cause(ctx)
					return nil // a handler that does not tell
				}))
				s, err := h.Call(t.Context(), c, newFailing())
				require.NoError(t, err)
				sent := make(chan struct{})
				go func() {
					for _, text := range []string{"good", text, "not to be seen", "not to be seen"} {
						s.Requests <- &failing{Text: text}
					}
					close(s.Requests)
					close(sent)
				}()
				err = s.Results(nil)
				<-sent
				require.ErrorContains(t, err, "coding *grid_test.failing: ")
				require.ErrorContains(t, err, "failing")
				local := text == marshalError || text == marshalPanic
				require.Equal(t, !local, grid.IsRemoteErr(err))
				require.Equal(t, err, s.Err())
				require.Error(t, <-causes)
				require.NotContains(t, seen, text)
				require.NotContains(t, seen, "not to be seen")
			})
		})
		t.Run("response/"+text, func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				h := newFailingStream().WithOutCapacity(10)
				causes := make(chan error, 1)
				require.NoError(t, h.Register(g.Manager(1), func(ctx context.Context, _ *failing, _ <-chan *failing, out chan<- *failing) *grid.RemoteErr {
					for _, text := range []string{"good", text, "not to be seen", "not to be seen"} {
						out <- &failing{Text: text}
					}
					<-ctx.Done()
					causes <- context.Cause(ctx)
					return nil
				}))
				s, err := h.Call(t.Context(), c, newFailing())
				require.NoError(t, err)
				got, err := collectTyped(s)
				require.Equal(t, []string{"good"}, got)
				require.ErrorContains(t, err, "coding")
				require.ErrorContains(t, err, "failing")
				remote := text == marshalError || text == marshalPanic
				require.Equal(t, remote, grid.IsRemoteErr(err))
				require.Equal(t, err, s.Err())
				require.ErrorContains(t, <-causes, "failing", "the handler hears what it was")
				s.CloseSend()
			})
		})
	}
}

func TestTyped_StreamSendOfTheUnencodableIsRefusedAndTheStreamLivesOn(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		h := newFailingStream()
		require.NoError(t, h.Register(g.Manager(1), echoTyped))
		s, err := h.Call(t.Context(), c, &failing{Text: "payload"})
		require.NoError(t, err)
		require.ErrorIs(t, s.Send(&failing{Text: marshalError}), errFailing)
		require.ErrorContains(t, s.Send(&failing{Text: marshalPanic}), "panic")
		require.NoError(t, s.Send(&failing{Text: "good"}))
		s.CloseSend()
		got, err := collectTyped(s)
		require.NoError(t, err)
		require.Equal(t, []string{"payload", "good"}, got)
		require.ErrorIs(t, s.Send(newFailing()), io.EOF)
	})
}

func TestTyped_StreamHandlerPanicIsAnErrorAndNothingLeaks(t *testing.T) {
	for name, bad := range rig.BadEnds {
		rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
			h := newFailingStream()
			require.NoError(t, h.Register(g.Manager(1), func(ctx context.Context, _ *failing, in <-chan *failing, out chan<- *failing) *grid.RemoteErr {
				go func() {
					for ctx.Err() == nil {
						select {
						case v := <-in:
							_ = v
						case out <- &failing{Text: "from the goroutine"}:
						case <-ctx.Done():
						}
					}
				}()
				bad.End()
				return nil
			}))
			s, err := h.Call(t.Context(), c, newFailing())
			require.NoError(t, err)
			sent := make(chan struct{})
			go func() {
				for range 20 {
					s.Requests <- newFailing()
				}
				close(s.Requests)
				close(sent)
			}()
			_, err = collectTyped(s)
			<-sent
			rig.RequireKind(t, err, rig.IsRemote, name)
			require.ErrorContains(t, err, bad.Want)
			synctest.Wait()
			require.Zero(t, g.Conn(1, 0).Stats().Handlers)
			require.ErrorIs(t, s.Send(newFailing()), err)
		})
	}
}
