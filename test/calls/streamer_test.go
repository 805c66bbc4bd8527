package calls

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// stand is a Streamer of the application's.
type stand struct {
	grid.Streamer
	open func(ctx context.Context, id grid.HandlerID, payload []byte, o grid.StreamOptions) (*grid.Stream, error)
}

func (s stand) OpenStream(ctx context.Context, id grid.HandlerID, payload []byte, o grid.StreamOptions) (*grid.Stream, error) {
	return s.open(ctx, id, payload, o)
}

func TestStreamer_OfTheApplicationsCarriesTypedStreams(t *testing.T) {
	h := grid.NewStream[*grid.MSS, *grid.Bytes, *grid.Bytes](rig.Handler, grid.NewMSS, grid.NewBytes, grid.NewBytes)
	h.InCapacity, h.OutCapacity = 3, 0 // 0 is 1
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		require.NoError(t, h.RegisterServe(g.Manager(1), func(ctx context.Context, p *grid.MSS, s *grid.TypedServerStream[*grid.Bytes, *grid.Bytes]) *grid.RemoteErr {
			for b, err := range s.All() {
				if err != nil {
					return grid.NewRemoteErr(err)
				}
				if err := s.Send(ctx, grid.NewBytesWith(append([]byte(p.Get("k")), *b...))); err != nil {
					return grid.NewRemoteErr(err)
				}
			}
			return nil
		}))
		var seen []grid.StreamOptions
		type embeds struct{ *grid.Connection } // its OpenStream would be that of the Connection
		for name, conn := range map[string]grid.Streamer{
			"wrapper": stand{c, func(ctx context.Context, id grid.HandlerID, payload []byte, o grid.StreamOptions) (*grid.Stream, error) {
				seen = append(seen, o)
				return c.OpenStream(ctx, id, payload, o)
			}},
			"embeds": embeds{c}, "caller": c.With(grid.CallOptions{}),
		} {
			for _, open := range []func(context.Context, grid.Streamer, *grid.MSS) (*grid.TypedStream[*grid.Bytes, *grid.Bytes], error){h.Call, h.Start} {
				for _, channel := range []bool{false, true} {
					s, err := open(t.Context(), conn, grid.NewMSSWith(map[string]string{"k": "v"}))
					require.NoError(t, err, name)
					if channel {
						s.Requests <- grid.NewBytesWith([]byte("!"))
						close(s.Requests)
					} else {
						require.NoError(t, s.Send(grid.NewBytesWith([]byte("!"))))
						s.CloseSend()
					}
					b, err := s.Recv()
					require.NoError(t, err)
					require.Equal(t, "v!", string(*b))
					require.NoError(t, s.Finish(t.Context()))
				}
			}
		}
		want := grid.StreamOptions{OutCapacity: 1, InCapacity: 3, NoRequests: true}
		early := want
		early.Early = true
		require.Equal(t, []grid.StreamOptions{want, want, early, early}, seen)
	})
}

func TestStreamer_ThatIsOfNoUse(t *testing.T) {
	h := grid.NewStream[grid.NoPayload, *grid.Bytes, *grid.Bytes](rig.TwoWay, nil, grid.NewBytes, grid.NewBytes)
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		down := errors.New("down")
		for want, open := range map[string]func(ctx context.Context, id grid.HandlerID, payload []byte, o grid.StreamOptions) (*grid.Stream, error){
			"down": func(context.Context, grid.HandlerID, []byte, grid.StreamOptions) (*grid.Stream, error) {
				return nil, down
			},
			"neither a stream nor an error": func(context.Context, grid.HandlerID, []byte, grid.StreamOptions) (*grid.Stream, error) {
				return nil, nil
			},
			"not passed on its StreamOptions": func(ctx context.Context, id grid.HandlerID, payload []byte, _ grid.StreamOptions) (*grid.Stream, error) {
				return c.NewStream(ctx, id, payload)
			},
			"grid: OutCapacity is 65537, must be 1 to 65536": func(ctx context.Context, id grid.HandlerID, payload []byte, o grid.StreamOptions) (*grid.Stream, error) {
				o.OutCapacity = 65537
				return c.OpenStream(ctx, id, payload, o)
			},
			"grid: InCapacity is -1, must be 0 to 65536": func(ctx context.Context, id grid.HandlerID, payload []byte, o grid.StreamOptions) (*grid.Stream, error) {
				o.InCapacity = -1
				return c.OpenStream(ctx, id, payload, o)
			},
		} {
			_, err := h.Call(t.Context(), stand{nil, open}, grid.NoPayload{})
			require.ErrorContains(t, err, want)
			if want == "down" {
				require.ErrorIs(t, err, down)
			}
		}
		_, err := h.WithOutCapacity(-1).Call(t.Context(), c, grid.NoPayload{})
		require.ErrorContains(t, err, "OutCapacity is -1")
		_, err = h.Call(t.Context(), (*grid.Connection)(nil), grid.NoPayload{})
		require.ErrorIs(t, err, grid.ErrDisconnected)
		require.Zero(t, c.Stats().Streams)
	})
}

func TestOpenStream_WithoutRequests(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		for _, conn := range []grid.Streamer{c, c.With(grid.CallOptions{})} {
			s, err := conn.OpenStream(t.Context(), rig.TwoWay, nil, grid.StreamOptions{NoRequests: true})
			require.NoError(t, err)
			require.Nil(t, s.Requests)
			require.NoError(t, s.Send([]byte("x")))
			s.CloseSend()
			b, err := s.Recv()
			require.NoError(t, err)
			require.NotEmpty(t, b)
			require.NoError(t, s.Finish(t.Context()))
		}
		_, err := c.Subroute("no").OpenStream(t.Context(), rig.TwoWay, nil, grid.StreamOptions{})
		require.True(t, grid.IsRemoteErr(err))
	})
}

// All that registers takes the parts of the subroute last.
func TestRegister_TakesTheSubrouteLast(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		m := g.Manager(1)
		serve := func(_ context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr { return nil }
		reg := func(id grid.HandlerID, h grid.StreamHandler, parts ...string) error {
			h.Serve = serve
			return m.RegisterStreamingHandler(id, h, parts...)
		}
		require.NoError(t, reg(70, grid.StreamHandler{}, "a", "b"))
		require.ErrorIs(t, reg(70, grid.StreamHandler{Subroute: "a/b"}), grid.ErrHandlerAlreadyExists)
		require.ErrorIs(t, reg(70, grid.StreamHandler{Subroute: "a/b"}, "a", "b"), grid.ErrHandlerAlreadyExists)
		require.ErrorContains(t, reg(71, grid.StreamHandler{Subroute: "a"}, "b"), `subroute "b" is given, and StreamHandler.Subroute is "a"`)
		require.ErrorContains(t, reg(71, grid.StreamHandler{}, "a", ""), "empty subroute")
		s, err := c.Subroute("a").Subroute("b").NewStream(t.Context(), 70, nil)
		require.NoError(t, err)
		require.NoError(t, s.Finish(t.Context()))
		_, err = c.NewStream(t.Context(), 70, nil)
		require.True(t, grid.IsRemoteErr(err))
		require.True(t, m.Unregister(70, "a", "b"))
	})
}
