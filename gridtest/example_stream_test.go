package gridtest_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridtest"
)

// lines is a typed stream of a service, and firstLine its client, which is to be tested.
var lines = grid.NewStream[grid.NoPayload, grid.NoPayload, *grid.Bytes](2, nil, nil, grid.NewBytes)

func firstLine(ctx context.Context, conn grid.Streamer) (string, error) {
	stream, err := lines.Call(ctx, conn, grid.NoPayload{})
	if err != nil {
		return "", err
	}
	line, err := stream.Recv()
	if err != nil {
		return "", err
	}
	return string(*line), stream.Finish(ctx)
}

// flaky is a Streamer that fails when the test says so.
type flaky struct {
	grid.Streamer
	fail atomic.Bool
}

var errFlaky = errors.New("no stream today")

func (f *flaky) OpenStream(ctx context.Context, id grid.HandlerID, payload []byte, o grid.StreamOptions) (*grid.Stream, error) {
	if f.fail.Load() {
		return nil, errFlaky
	}
	return f.Streamer.OpenStream(ctx, id, payload, o)
}

// A client of a typed stream is tested without a network: the other end is a handler of the test's.
func TestLines_ClientOfATypedStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gridtest.New(t, 2, gridtest.WithHandlers(func(_ int, m *grid.Manager) error {
			return lines.RegisterServe(m, func(ctx context.Context, _ grid.NoPayload, s *grid.TypedServerStream[grid.NoPayload, *grid.Bytes]) *grid.RemoteErr {
				return grid.NewRemoteErr(s.Send(ctx, grid.NewBytesWith([]byte("sky"))))
			})
		}))
		conn := &flaky{Streamer: g.Conn(0, 1)}
		if line, err := firstLine(t.Context(), conn); line != "sky" || err != nil {
			t.Fatal(line, err)
		}
		conn.fail.Store(true)
		if _, err := firstLine(t.Context(), conn); !errors.Is(err, errFlaky) {
			t.Fatal(err)
		}
	})
}
