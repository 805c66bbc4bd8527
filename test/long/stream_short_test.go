package long

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/rig"
)

// shortStreams is how many are run, all in all.
func shortStreams() int {
	switch {
	case bytepool.Strict || testing.Short():
		return 4_000
	default:
		return 100_000
	}
}

// A stream that ends normally never ends with an error, least of all with "context canceled",
// though everything around it is cancelled as soon as it has ended.
func TestStream_ShortOnesEndWell(t *testing.T) {
	const messages = 3
	echo := func(_ context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
		grid.PutByteBuffer(payload)
		for b := range in {
			out <- b
		}
		return nil
	}
	respond := func(_ context.Context, payload []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
		grid.PutByteBuffer(payload)
		for range messages {
			out <- rig.Pooled("response")
		}
		return nil
	}
	swallow := func(_ context.Context, payload []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
		grid.PutByteBuffer(payload)
		n := 0
		for b := range in {
			grid.PutByteBuffer(b)
			n++
		}
		if n != messages {
			return grid.NewRemoteErrf("%d messages", n)
		}
		return nil
	}
	send := func(s *grid.Stream) {
		for range messages {
			s.Requests <- rig.Pooled("request")
		}
		close(s.Requests)
	}
	shapes := []struct {
		name    string
		handler grid.StreamHandler
		send    func(s *grid.Stream)
		results int
	}{
		{"requests", grid.StreamHandler{Handle: swallow, InCapacity: 1}, send, 0},
		{"responses", grid.StreamHandler{Handle: respond}, nil, messages},
		{"two-way", grid.StreamHandler{Handle: echo, InCapacity: 1}, send, messages},
		{"requests, by Send", grid.StreamHandler{Handle: swallow, InCapacity: messages}, func(s *grid.Stream) {
			for range messages {
				if err := s.Send([]byte("request")); err != nil {
					t.Error(err)
				}
			}
			s.CloseSend()
		}, 0},
	}
	widths := []int{1, 4, 16, 64}
	g := rig.NewTCP(t, 2, nil)
	c := g.Conn(0, 1)
	for i, shape := range shapes {
		id := rig.Handler + grid.HandlerID(i)
		require.NoError(t, g.Manager(1).RegisterStreamingHandler(id, shape.handler))
		one := func() error {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s, err := c.NewStream(ctx, id, []byte("payload"))
			if err != nil {
				return err
			}
			if shape.send != nil {
				go shape.send(s)
			}
			n := 0
			if err := s.Results(func(b []byte) error { n++; grid.PutByteBuffer(b); return nil }); err != nil {
				return err
			}
			if n != shape.results {
				return fmt.Errorf("%d results, should be %d", n, shape.results)
			}
			return s.Err()
		}
		for _, width := range widths {
			var left atomic.Int64
			left.Store(int64(shortStreams() / len(shapes) / len(widths)))
			var runners sync.WaitGroup
			for range width {
				runners.Go(func() {
					for left.Add(-1) >= 0 && !t.Failed() {
						if err := one(); err != nil {
							t.Errorf("%s, %d at once: %v", shape.name, width, err)
						}
					}
				})
			}
			runners.Wait()
		}
	}
	require.Zero(t, c.Stats().Streams)
}
