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

// fickleStream is a typed stream of what can go wrong.
type fickleStream = grid.StreamTypeHandler[*fickle, *fickle, *fickle]

func newFickleStream() *fickleStream {
	return grid.NewStream(rig.Handler, newFickle, newFickle, newFickle)
}

// collectTyped consumes a typed stream.
func collectTyped(s *grid.TypedStream[*fickle, *fickle]) (got []string, err error) {
	err = s.Results(func(f *fickle) error { got = append(got, f.Text); return nil })
	return got, err
}

// echoTyped answers with the payload and then its input.
func echoTyped(_ context.Context, payload *fickle, in <-chan *fickle, out chan<- *fickle) *grid.RemoteErr {
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
		h := newFickleStream()
		require.NoError(t, h.Register(m, echoTyped))
		require.NoError(t, h.Register(m, echoTyped, "a", "b"))
		require.True(t, h.WithPayload)
		require.Equal(t, [2]int{1, 1}, [2]int{h.OutCapacity, h.InCapacity})
		require.ErrorIs(t, h.Register(m, echoTyped), grid.ErrHandlerAlreadyExists)
		require.ErrorContains(t, h.Register(m, echoTyped, ""), "empty subroute")
		require.ErrorContains(t, h.Register(m, nil, "c"), "nil handler")

		for _, conn := range []grid.Streamer{c, c.Subroute("a").Subroute("b")} {
			s, err := h.Call(t.Context(), conn, &fickle{Text: "payload"})
			require.NoError(t, err)
			require.NoError(t, s.Err())
			go func() {
				for i := range 50 {
					s.Requests <- &fickle{Text: fmt.Sprint(i)}
				}
				close(s.Requests)
			}()
			got, err := collectTyped(s)
			require.NoError(t, err)
			require.Len(t, got, 51)
			require.Equal(t, []string{"payload", "0", "1"}, got[:3])
			<-s.Done()
			require.NoError(t, s.Err())

			s, err = h.Call(t.Context(), conn, &fickle{Text: "payload"})
			require.NoError(t, err)
			go func() {
				v := &fickle{} // stays ours
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
			require.Error(t, s.Send(&fickle{}))
		}

		// Breaking off.
		s, err := h.Call(t.Context(), c, &fickle{Text: "payload"})
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
		source := func(_ context.Context, p *fickle, out chan<- *fickle) *grid.RemoteErr {
			for range 5 {
				out <- &fickle{Text: p.Text}
			}
			return nil
		}
		noInput := newFickleStream()
		require.ErrorContains(t, noInput.RegisterNoInput(m, nil), "nil handler")
		require.NoError(t, noInput.RegisterNoInput(m, source))
		// A client that does not know that hears of it.
		for _, client := range []*fickleStream{noInput, newFickleStream(), grid.NewStream[*fickle, *fickle](rig.Handler, newFickle, nil, newFickle)} {
			s, err := client.Call(t.Context(), c, &fickle{Text: "x"})
			require.NoError(t, err)
			require.Nil(t, s.Requests)
			require.Error(t, s.Send(&fickle{}))
			got, err := collectTyped(s)
			require.NoError(t, err)
			require.Equal(t, []string{"x", "x", "x", "x", "x"}, got)
		}

		noPayload := grid.NewStream[grid.NoPayload](rig.Handler+1, nil, newFickle, newFickle)
		require.False(t, noPayload.WithPayload)
		require.ErrorContains(t, noPayload.RegisterNoPayload(m, nil), "nil handler")
		require.NoError(t, noPayload.RegisterNoPayload(m, func(ctx context.Context, in <-chan *fickle, out chan<- *fickle) *grid.RemoteErr {
			return echoTyped(ctx, nil, in, out)
		}))
		s, err := noPayload.Call(t.Context(), c, grid.NoPayload{})
		require.NoError(t, err)
		s.Requests <- &fickle{Text: "one"}
		close(s.Requests)
		got, err := collectTyped(s)
		require.NoError(t, err)
		require.Equal(t, []string{"one"}, got)

		// Without WithPayload the payload is not looked at.
		h := grid.NewStream(rig.Handler+2, newFickle, newFickle, newFickle)
		require.NoError(t, h.RegisterNoPayload(m, func(context.Context, <-chan *fickle, chan<- *fickle) *grid.RemoteErr { return nil }))
		s, err = h.Call(t.Context(), c, &fickle{Text: marshalPanic})
		require.NoError(t, err)
		close(s.Requests)
		require.NoError(t, s.Results(nil))

		require.ErrorContains(t, grid.NewStream[*fickle, *fickle](rig.Unused, newFickle, nil, newFickle).WithInCapacity(1).Register(m, echoTyped), "no constructor for requests")
		bad := grid.NewStream[*fickle](rig.Unused, nil, newFickle, newFickle)
		bad.WithPayload = true
		require.ErrorContains(t, bad.Register(m, echoTyped), "no constructor for it")
		require.ErrorContains(t, newFickleStream().WithOutCapacity(-1).Register(m, echoTyped, "x"), "OutCapacity")
		require.ErrorContains(t, newFickleStream().WithInCapacity(rig.MaxCapacity+1).Register(m, echoTyped, "x"), "InCapacity")
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
			h := grid.NewStream(id, newFickle, newFickle, newFickle).WithOutCapacity(server[0]).WithInCapacity(server[1])
			require.NoError(t, h.Register(g.Manager(1), echoTyped))
			for _, client := range capacities {
				h := grid.NewStream(id, newFickle, newFickle, newFickle).WithOutCapacity(client[0]).WithInCapacity(client[1])
				s, err := h.Call(ctx, c, &fickle{Text: "payload"})
				require.NoError(t, err)
				go func() {
					for i := range 120 {
						s.Requests <- &fickle{Text: fmt.Sprint(i)}
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
		h := newFickleStream()
		called := false
		require.NoError(t, h.Register(g.Manager(1), func(context.Context, *fickle, <-chan *fickle, chan<- *fickle) *grid.RemoteErr {
			called = true
			return nil
		}))
		for _, text := range []string{marshalError, marshalPanic} {
			_, err := h.Call(t.Context(), c, &fickle{Text: text})
			rig.RequireKind(t, err, rig.IsNothingElse, text)
			require.ErrorContains(t, err, "grid: handler 100: payload: encoding *grid_test.fickle: ")
		}
		for _, text := range []string{unmarshalError, unmarshalPanic} {
			s, err := h.Call(t.Context(), c, &fickle{Text: text})
			require.NoError(t, err)
			err = s.Results(nil)
			rig.RequireKind(t, err, rig.IsRemote, text)
			require.ErrorContains(t, err, "grid: handler 100: payload: decoding *grid_test.fickle: ")
		}
		require.False(t, called)
		require.Equal(t, grid.ErrDisconnected, errOf(h.Call(t.Context(), nil, &fickle{})))
		require.Equal(t, grid.ErrDisconnected, errOf(h.Call(t.Context(), (*grid.Connection)(nil), &fickle{})))
		require.Equal(t, grid.ErrDisconnected, errOf(h.Call(t.Context(), (*grid.Subroute)(nil), &fickle{})))
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
				h := newFickleStream().WithInCapacity(10)
				var seen []string
				causes := make(chan error, 1)
				require.NoError(t, h.Register(g.Manager(1), func(ctx context.Context, _ *fickle, in <-chan *fickle, _ chan<- *fickle) *grid.RemoteErr {
					for v := range in {
						seen = append(seen, v.Text)
					}
					causes <- context.Cause(ctx)
					return nil // a handler that does not tell
				}))
				s, err := h.Call(t.Context(), c, newFickle())
				require.NoError(t, err)
				sent := make(chan struct{})
				go func() {
					for _, text := range []string{"good", text, "not to be seen", "not to be seen"} {
						s.Requests <- &fickle{Text: text}
					}
					close(s.Requests)
					close(sent)
				}()
				err = s.Results(nil)
				<-sent
				require.ErrorContains(t, err, "coding *grid_test.fickle: ")
				require.ErrorContains(t, err, "fickle")
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
				h := newFickleStream().WithOutCapacity(10)
				causes := make(chan error, 1)
				require.NoError(t, h.Register(g.Manager(1), func(ctx context.Context, _ *fickle, _ <-chan *fickle, out chan<- *fickle) *grid.RemoteErr {
					for _, text := range []string{"good", text, "not to be seen", "not to be seen"} {
						out <- &fickle{Text: text}
					}
					<-ctx.Done()
					causes <- context.Cause(ctx)
					return nil
				}))
				s, err := h.Call(t.Context(), c, newFickle())
				require.NoError(t, err)
				got, err := collectTyped(s)
				require.Equal(t, []string{"good"}, got)
				require.ErrorContains(t, err, "coding")
				require.ErrorContains(t, err, "fickle")
				remote := text == marshalError || text == marshalPanic
				require.Equal(t, remote, grid.IsRemoteErr(err))
				require.Equal(t, err, s.Err())
				require.ErrorContains(t, <-causes, "fickle", "the handler hears what it was")
				s.CloseSend()
			})
		})
	}
}

func TestTyped_StreamSendOfTheUnencodableIsRefusedAndTheStreamLivesOn(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		h := newFickleStream()
		require.NoError(t, h.Register(g.Manager(1), echoTyped))
		s, err := h.Call(t.Context(), c, &fickle{Text: "payload"})
		require.NoError(t, err)
		require.ErrorIs(t, s.Send(&fickle{Text: marshalError}), errFickle)
		require.ErrorContains(t, s.Send(&fickle{Text: marshalPanic}), "panic")
		require.NoError(t, s.Send(&fickle{Text: "good"}))
		s.CloseSend()
		got, err := collectTyped(s)
		require.NoError(t, err)
		require.Equal(t, []string{"payload", "good"}, got)
		require.ErrorIs(t, s.Send(newFickle()), io.EOF)
	})
}

func TestTyped_StreamHandlerPanicIsAnErrorAndNothingLeaks(t *testing.T) {
	for name, bad := range rig.BadEnds {
		rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
			h := newFickleStream()
			require.NoError(t, h.Register(g.Manager(1), func(ctx context.Context, _ *fickle, in <-chan *fickle, out chan<- *fickle) *grid.RemoteErr {
				go func() {
					for ctx.Err() == nil {
						select {
						case v := <-in:
							_ = v
						case out <- &fickle{Text: "from the goroutine"}:
						case <-ctx.Done():
						}
					}
				}()
				bad.End()
				return nil
			}))
			s, err := h.Call(t.Context(), c, newFickle())
			require.NoError(t, err)
			sent := make(chan struct{})
			go func() {
				for range 20 {
					s.Requests <- newFickle()
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
			require.ErrorIs(t, s.Send(newFickle()), err)
		})
	}
}
