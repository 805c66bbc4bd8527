package calls

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// end is what the four ends of a stream have in common: M is a message.
type end[M any] interface {
	Recv() (M, error)
	RecvContext(ctx context.Context) (M, error)
}

var (
	_ end[[]byte]      = (*grid.Stream)(nil)
	_ end[[]byte]      = (*grid.ServerStream)(nil)
	_ end[*grid.Bytes] = (*grid.TypedStream[*grid.Bytes, *grid.Bytes])(nil)
	_ end[*grid.Bytes] = (*grid.TypedServerStream[*grid.Bytes, *grid.Bytes])(nil)
)

// waits receives until its time is over, then the message that has come meanwhile, and the end.
func waits[M any](ctx context.Context, s end[M], text func(M) string, come func()) error {
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	start := time.Now()
	_, err := s.RecvContext(short)
	switch {
	case !errors.Is(err, context.DeadlineExceeded):
		return errors.Join(errors.New("not the deadline"), err)
	case time.Since(start) != time.Second:
		return errors.New("not in its time")
	}
	come()
	if _, err := s.RecvContext(short); !errors.Is(err, context.DeadlineExceeded) {
		return errors.Join(errors.New("received after the deadline"), err)
	}
	for _, want := range []string{"one", "two"} {
		got, err := s.RecvContext(ctx)
		if err != nil || text(got) != want {
			return errors.Join(errors.New("lost "+want), err)
		}
	}
	if _, err := s.RecvContext(ctx); err != io.EOF {
		return errors.Join(errors.New("not the end"), err)
	}
	return nil
}

func TestRecvContext_AtTheFourEnds(t *testing.T) {
	raw := func(b []byte) string { return string(b) }
	ofBytes := func(b *grid.Bytes) string { return string(*b) }
	typed := grid.NewStream[grid.NoPayload, *grid.Bytes, *grid.Bytes](rig.Handler, nil, grid.NewBytes, grid.NewBytes)
	typed.InCapacity, typed.OutCapacity = 4, 4
	both := []string{"one", "two"}
	for name, server := range map[string]bool{"client": false, "server": true} {
		t.Run(name, func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				come, result := make(chan struct{}), make(chan error, 1)
				require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{InCapacity: 4, OutCapacity: 4, Serve: func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
					if server {
						result <- waits(ctx, s, raw, func() { close(come); time.Sleep(time.Second) })
						return nil
					}
					<-come
					for _, m := range both {
						_ = s.Send(ctx, []byte(m))
					}
					return nil
				}}, "raw"))
				require.NoError(t, typed.RegisterServe(g.Manager(1), func(ctx context.Context, _ grid.NoPayload, s *grid.TypedServerStream[*grid.Bytes, *grid.Bytes]) *grid.RemoteErr {
					if server {
						result <- waits(ctx, s, ofBytes, func() { close(come); time.Sleep(time.Second) })
						return nil
					}
					<-come
					for _, m := range both {
						_ = s.Send(ctx, grid.NewBytesWith([]byte(m)))
					}
					return nil
				}, "typed"))

				s, err := c.Subroute("raw").NewStream(t.Context(), rig.Handler, nil)
				require.NoError(t, err)
				if server {
					<-come
					for _, m := range both {
						require.NoError(t, s.Send([]byte(m)))
					}
					require.NoError(t, s.Finish(t.Context()))
					require.NoError(t, <-result)
				} else {
					require.NoError(t, waits(t.Context(), s, raw, func() { close(come); time.Sleep(time.Second) }))
				}

				come = make(chan struct{})
				ts, err := typed.Call(t.Context(), c.Subroute("typed"), grid.NoPayload{})
				require.NoError(t, err)
				if server {
					<-come
					for _, m := range both {
						require.NoError(t, ts.Send(grid.NewBytesWith([]byte(m))))
					}
					require.NoError(t, ts.Finish(t.Context()))
					require.NoError(t, <-result)
				} else {
					require.NoError(t, waits(t.Context(), ts, ofBytes, func() { close(come); time.Sleep(time.Second) }))
					require.NoError(t, ts.Finish(t.Context()))
				}
			})
		})
	}
}

// At the server a Recv with a context of its own tells of an abort first.
func TestRecvContext_TellsOfAnAbort(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		ends := make(chan error, 2)
		require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{InCapacity: 1, Serve: func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			derived, cancel := context.WithTimeout(ctx, time.Hour)
			defer cancel()
			_, err := s.RecvContext(derived)
			ends <- err
			_, err = s.RecvContext(ctx)
			ends <- err
			return nil
		}}))
		s, err := c.NewStream(t.Context(), rig.Handler, nil)
		require.NoError(t, err)
		g.Cut(0, 1)
		require.ErrorIs(t, <-ends, grid.ErrDisconnected)
		require.ErrorIs(t, <-ends, grid.ErrDisconnected)
		require.ErrorIs(t, s.Results(nil), grid.ErrDisconnected)
	})
}
