package grid_test

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// moments are in an encoding of their own, numbers in gob.
var (
	moments = grid.CodecOf((*time.Time).MarshalBinary, (*time.Time).UnmarshalBinary)
	numbers = grid.CodecOf(
		func(v *big.Int) ([]byte, error) {
			var b bytes.Buffer
			err := gob.NewEncoder(&b).Encode(v)
			return b.Bytes(), err
		},
		func(v *big.Int, b []byte) error { return gob.NewDecoder(bytes.NewReader(b)).Decode(v) },
	)
)

func TestCoded_IsABinOfItsEncoding(t *testing.T) {
	now := time.Now().UTC().Round(0)
	text, err := now.MarshalBinary()
	require.NoError(t, err)
	b, err := moments.NewWith(&now).MarshalMsg([]byte("before"))
	require.NoError(t, err)
	require.Equal(t, msgp.AppendBytes([]byte("before"), text), b)

	got := moments.New()
	rest, err := got.UnmarshalMsg(append(b[len("before"):], "behind"...))
	require.NoError(t, err)
	require.Equal(t, "behind", string(rest))
	require.Equal(t, now, *got.Value())
	kept := got.Value()
	later := now.Add(time.Hour)
	b, err = moments.NewWith(&later).MarshalMsg(nil)
	require.NoError(t, err)
	_, err = got.UnmarshalMsg(b)
	require.NoError(t, err)
	require.Equal(t, now, *kept, "each decoding makes a new one")

	// No value, and one in no bytes.
	b, err = moments.New().MarshalMsg(nil)
	require.NoError(t, err)
	require.Equal(t, []byte{0xc0}, b)
	_, err = got.UnmarshalMsg(b)
	require.NoError(t, err)
	require.Nil(t, got.Value())
	require.Nil(t, (*grid.Coded[time.Time])(nil).Value())
	(*grid.Coded[time.Time])(nil).Recycle()
	empty := grid.CodecOf(func(*int) ([]byte, error) { return nil, nil }, func(v *int, b []byte) error { *v = len(b); return nil })
	b, err = empty.NewWith(new(int)).MarshalMsg(nil)
	require.NoError(t, err)
	require.Equal(t, []byte{0xc4, 0}, b)
	none := empty.New()
	_, err = none.UnmarshalMsg(b)
	require.NoError(t, err)
	require.Zero(t, *none.Value())
}

func TestCoded_BadOnes(t *testing.T) {
	c := moments.New()
	c.Set(new(time.Time))
	for _, b := range [][]byte{nil, {0xc4}, {0xc4, 5, 1}, {0xc6, 0xff, 0xff, 0xff, 0xff}, {0xa1, 'a'}, {0xc4, 1, 99}} {
		rest, err := c.UnmarshalMsg(b)
		require.ErrorContains(t, err, "grid: decoding Coded")
		require.Equal(t, b, rest)
		require.Nil(t, c.Value(), "nothing half filled")
	}
	var zero grid.Coded[int]
	_, err := zero.MarshalMsg(nil)
	require.NoError(t, err)
	zero.Set(new(int))
	_, err = zero.MarshalMsg(nil)
	require.ErrorContains(t, err, "no Codec")
	_, err = zero.UnmarshalMsg([]byte{0xc4, 0})
	require.ErrorContains(t, err, "no Codec")
	zero.Recycle()
	require.Panics(t, func() { grid.CodecOf[int](nil, nil) })
}

func TestCoded_ThroughTypedHandlers(t *testing.T) {
	square := grid.NewSingleHandler(rig.Unused, numbers.New, numbers.New)
	days := grid.NewStream[*grid.Coded[time.Time], grid.NoPayload, *grid.Coded[time.Time]](rig.Unused+1, moments.New, nil, moments.New)
	lists := grid.NewArrayOf(numbers.New)
	sum := grid.NewSingleHandler(rig.Unused+2, lists.New, numbers.New)
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		m := g.Manager(1)
		require.NoError(t, square.Register(m, func(req *grid.Coded[big.Int]) (*grid.Coded[big.Int], *grid.RemoteErr) {
			if req.Value() == nil {
				return nil, nil
			}
			v := req.Value()
			return numbers.NewWith(v.Mul(v, v)), nil
		}))
		require.NoError(t, days.Register(m, func(_ context.Context, from *grid.Coded[time.Time], _ <-chan grid.NoPayload, out chan<- *grid.Coded[time.Time]) *grid.RemoteErr {
			for i := range 3 {
				day := from.Value().AddDate(0, 0, i)
				out <- moments.NewWith(&day)
			}
			return nil
		}))
		require.NoError(t, sum.Register(m, func(req *grid.Array[*grid.Coded[big.Int]]) (*grid.Coded[big.Int], *grid.RemoteErr) {
			total := new(big.Int)
			for _, n := range req.Value() {
				total.Add(total, n.Value())
			}
			return numbers.NewWith(total), nil
		}))
		large, _ := new(big.Int).SetString("123456789012345678901234567890", 10)
		for range 3 { // with values that are used again
			resp, err := square.Call(t.Context(), c, numbers.NewWith(large))
			require.NoError(t, err)
			require.Equal(t, new(big.Int).Mul(large, large), resp.Value())
			square.PutResponse(resp)
		}
		resp, err := square.Call(t.Context(), c, numbers.New())
		require.NoError(t, err)
		require.Nil(t, resp)
		resp, err = sum.Call(t.Context(), c, lists.NewWith([]*grid.Coded[big.Int]{numbers.NewWith(large), numbers.NewWith(big.NewInt(1))}))
		require.NoError(t, err)
		require.Equal(t, new(big.Int).Add(large, big.NewInt(1)), resp.Value())

		now := time.Now().UTC().Round(0)
		st, err := days.Call(t.Context(), c, moments.NewWith(&now))
		require.NoError(t, err)
		i := 0
		for day, err := range st.All() {
			require.NoError(t, err)
			require.Equal(t, now.AddDate(0, 0, i), *day.Value())
			i++
		}
		require.Equal(t, 3, i)
	})
}

// What the functions of the application's do is the error of the call.
func TestCoded_FunctionsThatFailOrPanic(t *testing.T) {
	bad := errors.New("cannot")
	fails := func(enc, dec string) *grid.Codec[int] {
		do := func(how string) error {
			switch how {
			case "panic":
				panic(bad)
			case "error":
				return bad
			}
			return nil
		}
		return grid.CodecOf(func(*int) ([]byte, error) { return nil, do(enc) }, func(*int, []byte) error { return do(dec) })
	}
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Single(func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil })
		for _, how := range []string{"panic", "error"} {
			codec := fails(how, "")
			h := grid.NewSingleHandler(rig.Handler, codec.New, codec.New)
			_, err := h.Call(t.Context(), c, codec.NewWith(new(int)))
			require.ErrorContains(t, err, "request: encoding")
			require.ErrorContains(t, err, "cannot")
			codec = fails("", how)
			h = grid.NewSingleHandler(rig.Handler, codec.New, codec.New)
			resp, err := h.Call(t.Context(), c, codec.NewWith(new(int)))
			require.ErrorContains(t, err, "response: decoding")
			require.ErrorContains(t, err, "cannot")
			require.Nil(t, resp)
		}
	})
}

// An error of the application's functions is found by the caller on whichever side it happens.
func TestCoded_ErrorsAreFoundFromBothSides(t *testing.T) {
	bad := errors.New("cannot")
	good := grid.CodecOf(func(*int) ([]byte, error) { return nil, nil }, func(*int, []byte) error { return nil })
	encodes := grid.CodecOf(func(*int) ([]byte, error) { return nil, bad }, func(*int, []byte) error { return nil })
	decodes := grid.CodecOf(func(*int) ([]byte, error) { return nil, nil }, func(*int, []byte) error { return bad })
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		single := func(req, resp *grid.Codec[int]) {
			h := grid.NewSingleHandler(rig.Handler, req.New, resp.New)
			g.Manager(1).Unregister(rig.Handler)
			require.NoError(t, h.Register(g.Manager(1), func(*grid.Coded[int]) (*grid.Coded[int], *grid.RemoteErr) {
				return resp.NewWith(new(int)), nil
			}))
		}
		calls := grid.NewSingleHandler(rig.Handler, good.New, good.New)
		single(decodes, good)
		_, err := calls.Call(t.Context(), c, good.NewWith(new(int)))
		require.ErrorContains(t, err, "request: decoding")
		require.ErrorIs(t, err, bad)
		single(good, encodes)
		_, err = calls.Call(t.Context(), c, good.NewWith(new(int)))
		require.ErrorContains(t, err, "response: encoding")
		require.ErrorIs(t, err, bad)

		opens := grid.NewStream[*grid.Coded[int], grid.NoPayload, *grid.Coded[int]](rig.Stream, good.New, nil, good.New)
		serves := grid.NewStream[*grid.Coded[int], grid.NoPayload, *grid.Coded[int]](rig.Stream, decodes.New, nil, good.New)
		g.Manager(1).Unregister(rig.Stream)
		require.NoError(t, serves.RegisterServe(g.Manager(1), func(context.Context, *grid.Coded[int], *grid.TypedServerStream[grid.NoPayload, *grid.Coded[int]]) *grid.RemoteErr {
			return nil
		}))
		s, err := opens.Call(t.Context(), c, good.NewWith(new(int)))
		require.NoError(t, err)
		err = s.Finish(t.Context())
		require.ErrorContains(t, err, "payload: decoding")
		require.ErrorIs(t, err, bad)

		// So is that of a writer that has broken off.
		g.Manager(1).Unregister(rig.Stream)
		require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Stream, grid.StreamHandler{Serve: func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			_ = s.Writer(ctx).CloseWithError(fmt.Errorf("disk: %w", bad))
			return nil
		}}))
		raw, err := c.NewStream(t.Context(), rig.Stream, nil)
		require.NoError(t, err)
		err = raw.Finish(t.Context())
		require.ErrorContains(t, err, "has written a part only: disk: cannot")
		require.ErrorIs(t, err, bad)
	})
}
