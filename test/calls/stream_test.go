package calls

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// numbered are n messages.
func numbered(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprint("message ", i))
	}
	return all
}

// The three shapes, with capacities that have nothing to do with the number of messages.
func TestStream_ShapesAndCapacities(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		var got []string // by the handler
		id := rig.Handler
		for _, out := range []int{0, 1, 2, 65} {
			for _, in := range []int{0, 1, 3, 1000} {
				id++
				require.NoError(t, g.Manager(1).RegisterStreamingHandler(id, grid.StreamHandler{
					OutCapacity: out, InCapacity: in,
					Handle: func(_ context.Context, payload []byte, input <-chan []byte, output chan<- []byte) *grid.RemoteErr {
						got = nil
						for i := range int(payload[0]) {
							output <- fmt.Append(nil, "message ", i)
						}
						for b := range input {
							got = append(got, string(b))
							if payload[1] != 0 {
								output <- b
							}
						}
						return nil
					},
				}))
				for _, n := range []int{0, 1, 3, 70} {
					what := fmt.Sprint("out ", out, " in ", in, " messages ", n)
					s, err := c.NewStream(t.Context(), id, []byte{byte(n), 0})
					require.NoError(t, err)
					require.Equal(t, in > 0, s.Requests != nil, what)
					if in > 0 {
						close(s.Requests)
					}
					results, err := rig.Collect(s, 0)
					require.NoError(t, err, what)
					require.Equal(t, numbered(n), results, what)
					if in == 0 {
						continue
					}

					for _, echo := range []byte{0, 1} {
						s, err = c.NewStream(t.Context(), id, []byte{0, echo})
						require.NoError(t, err)
						go func() {
							for _, text := range numbered(n) {
								s.Requests <- rig.Pooled(text)
							}
							close(s.Requests)
						}()
						results, err = rig.Collect(s, 0)
						require.NoError(t, err, what)
						require.Equal(t, numbered(n), got, what)
						if echo != 0 {
							require.Equal(t, numbered(n), results, what)
						}
					}
				}
			}
		}
	})
}

func TestStream_SendAndCloseSend(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		s, err := c.NewStream(t.Context(), rig.TwoWay, nil)
		require.NoError(t, err)
		sent := make(chan error, 1)
		go func() {
			buf := make([]byte, 0, 100) // stays ours, so we use it again at once
			for _, text := range numbered(200) {
				if err := s.Send(append(buf, text...)); err != nil {
					sent <- err
					return
				}
				clear(buf[:cap(buf)])
			}
			s.CloseSend()
			s.CloseSend()
			sent <- nil
		}()
		got, err := rig.Collect(s, 0)
		require.NoError(t, err)
		require.Equal(t, numbered(200), got)
		require.NoError(t, <-sent)
		require.Equal(t, io.EOF, s.Send([]byte("more")))

		s, err = c.NewStream(t.Context(), rig.Block, nil)
		require.NoError(t, err)
		s.CloseSend()
		require.ErrorContains(t, s.Send([]byte("more")), "input was closed")
	})
}

func TestStream_SendIsSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		s, err := c.NewStream(t.Context(), rig.TwoWay, nil)
		require.NoError(t, err)
		all := numbered(160)
		done := make(chan struct{})
		for part := range slices.Chunk(all, 20) {
			go func() {
				for _, text := range part {
					if err := s.Send([]byte(text)); err != nil {
						t.Error(err)
					}
				}
				done <- struct{}{}
			}()
		}
		go func() {
			for range 8 {
				<-done
			}
			s.CloseSend()
		}()
		got, err := rig.Collect(s, 0)
		require.NoError(t, err)
		require.ElementsMatch(t, all, got)
	})
}

func TestStream_SendWithoutInputIsAnErrorAtOnce(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		s, err := c.NewStream(t.Context(), rig.Stream, make([]byte, 3))
		require.NoError(t, err)
		require.Zero(t, rig.Elapsed(func() { require.ErrorContains(t, s.Send([]byte("x")), "takes no input") }))
		s.CloseSend()
		got, err := rig.Collect(s, 0)
		require.NoError(t, err)
		require.Len(t, got, 3)
	})
}

func TestStream_SendAboveTheSizeLimitIsRefusedAndItLivesOn(t *testing.T) {
	t.Parallel()
	const limit = 100_000
	edit := func(_ int, o *grid.ManagerOptions) { o.MaxMessageSize = limit }
	rig.InPair(t, edit, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		s, err := c.NewStream(t.Context(), rig.TwoWay, nil)
		require.NoError(t, err)
		go func() {
			for range 5 { // takes no credit
				err := s.Send(make([]byte, limit+1))
				if !errors.Is(err, grid.ErrMessageTooLarge) || s.Send(make([]byte, limit)) != nil {
					t.Error(err)
				}
			}
			s.CloseSend()
		}()
		n := 0
		require.NoError(t, s.Results(func(b []byte) error { n += len(b); return nil }))
		require.Equal(t, 5*limit, n)

		// Through the channel there is nobody to refuse it to but the consumer.
		s, err = c.NewStream(t.Context(), rig.TwoWay, nil)
		require.NoError(t, err)
		s.Requests <- make([]byte, limit+1)
		close(s.Requests)
		_, err = rig.Collect(s, 0)
		require.ErrorIs(t, err, grid.ErrMessageTooLarge)
		require.Zero(t, c.Stats().Reconnects)
	})
}

func TestStream_MessageAboveTheSizeLimitFromAHandler(t *testing.T) {
	t.Parallel()
	const limit = 100_000
	edit := func(_ int, o *grid.ManagerOptions) { o.MaxMessageSize = limit }
	rig.InPair(t, edit, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		causes := make(chan error, 1)
		g.Stream(4, 0, func(ctx context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			out <- make([]byte, limit)
			out <- make([]byte, limit+1)
			<-ctx.Done()
			causes <- context.Cause(ctx)
			return nil
		})
		s := rig.OpenStream(t, t.Context(), c)
		got, err := rig.Collect(s, 0)
		require.Len(t, got, 1)
		require.True(t, grid.IsRemoteErr(err), err)
		require.ErrorContains(t, err, "100001 bytes")
		require.ErrorContains(t, err, "100000 bytes")
		require.ErrorIs(t, <-causes, grid.ErrMessageTooLarge)
		require.Zero(t, c.Stats().Reconnects)
	})
}

func TestStream_DoneAndErr(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		release := make(chan struct{})
		g.Stream(2, 0, func(_ context.Context, payload []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			out <- []byte("waits")
			<-release
			if len(payload) > 0 {
				return grid.NewRemoteErrString(string(payload))
			}
			return nil
		})
		for _, fail := range []string{"", "failed"} {
			s := rig.OpenStream(t, t.Context(), c, []byte(fail)...)
			synctest.Wait()
			select {
			case <-s.Done():
				require.Fail(t, "ended too early")
			default:
			}
			require.NoError(t, s.Err())
			release <- struct{}{}
			<-s.Done()
			want := error(nil)
			if fail != "" {
				want = grid.NewRemoteErrString(fail)
			}
			require.Equal(t, want, s.Err())
			got, err := rig.Collect(s, 0)
			require.Equal(t, want, err)
			require.Equal(t, []string{"waits"}, got, "what came before the end is delivered after it")
			require.Equal(t, want, s.Err())
		}
	})
}

func TestStream_All(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		ended := make(chan error, 1)
		g.Stream(3, 0, func(ctx context.Context, payload []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			defer func() { ended <- ctx.Err() }()
			for _, text := range numbered(int(payload[0])) {
				out <- rig.Pooled(text)
			}
			if len(payload) > 1 {
				return grid.NewRemoteErrString("failed")
			}
			return nil
		})
		loop := func(s *grid.Stream, most int) (got []string, err error) {
			for b, failed := range s.All() {
				require.NoError(t, err, "nothing follows an error")
				if err = failed; err != nil {
					require.Nil(t, b)
					continue
				}
				if got = append(got, string(b)); len(got) == most {
					break
				}
			}
			return got, err
		}
		got, err := loop(rig.OpenStream(t, t.Context(), c, 10), 100)
		require.NoError(t, err)
		require.Equal(t, numbered(10), got)
		require.NoError(t, <-ended)

		got, err = loop(rig.OpenStream(t, t.Context(), c, 10, 'f'), 100)
		require.Equal(t, grid.NewRemoteErrString("failed"), err)
		require.Equal(t, numbered(10), got)
		require.NoError(t, <-ended)

		// Breaking off ends the stream and the handler's context. It is not mistaken for the end of
		// the stream by whoever looks again.
		s := rig.OpenStream(t, t.Context(), c, 200)
		got, err = loop(s, 4)
		require.NoError(t, err)
		require.Equal(t, numbered(4), got)
		require.Equal(t, context.Canceled, <-ended)
		<-s.Done()
		require.Error(t, s.Err())
		got, err = loop(s, 100)
		require.Error(t, err)
		require.Empty(t, got)
	})
}

func TestStream_SubroutesCallerAndDerivedContexts(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		type key struct{}
		describe := func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			derived, cancel := context.WithTimeout(context.WithValue(ctx, key{}, "own"), time.Hour)
			defer cancel()
			for _, ctx := range []context.Context{ctx, derived, context.WithoutCancel(derived)} {
				out <- fmt.Appendf(nil, "%s %q", grid.GetCaller(ctx).Name, grid.GetSubroute(ctx))
			}
			return nil
		}
		for _, route := range []string{"", "a", "a/b"} {
			require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{Handle: describe, Subroute: route}))
		}
		for conn, want := range map[grid.Streamer]string{
			c:                                     "http://node0:9000 \"\"",
			c.Subroute("a"):                       "http://node0:9000 \"a\"",
			c.Subroute("a/b"):                     "http://node0:9000 \"a/b\"",
			c.Subroute("a").Subroute("b"):         "http://node0:9000 \"a/b\"",
			g.Manager(0).Connection(c.HostName()): "http://node0:9000 \"\"",
		} {
			s, err := conn.NewStream(t.Context(), rig.Handler, nil)
			require.NoError(t, err)
			got, err := rig.Collect(s, 0)
			require.NoError(t, err)
			require.Equal(t, []string{want, want, want}, got)
		}
		require.Nil(t, grid.GetCaller(t.Context()))
		require.Empty(t, grid.GetSubroute(t.Context()))
		require.ErrorIs(t, g.Manager(1).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{Handle: describe, Subroute: "a"}), grid.ErrHandlerAlreadyExists)
	})
}

func TestStream_RegistrationChecksItsArguments(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		echo := func(_ context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			for b := range in {
				out <- b
			}
			return nil
		}
		m := g.Manager(1)
		require.ErrorContains(t, m.RegisterStreamingHandler(rig.Handler, grid.StreamHandler{}), "without Serve or Handle")
		for _, h := range []grid.StreamHandler{
			{OutCapacity: -1}, {OutCapacity: rig.MaxCapacity + 1}, {InCapacity: -1}, {InCapacity: rig.MaxCapacity + 1},
		} {
			h.Handle = echo
			require.ErrorContains(t, m.RegisterStreamingHandler(rig.Handler, h), "must be")
		}

		// The largest capacities work; the windows that are wider than any other still grow.
		require.NoError(t, m.RegisterStreamingHandler(rig.Handler, grid.StreamHandler{Handle: echo, OutCapacity: rig.MaxCapacity, InCapacity: rig.MaxCapacity}))
		s := rig.OpenStream(t, t.Context(), c)
		go func() {
			for _, text := range numbered(3000) {
				s.Requests <- rig.Pooled(text)
			}
			close(s.Requests)
		}()
		got, err := rig.Collect(s, 0)
		require.NoError(t, err)
		require.Equal(t, numbered(3000), got)
	})
}
