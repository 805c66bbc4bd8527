package grid_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
	"github.com/gridrpc/grid/internal/seed"
)

const (
	benchRPC grid.HandlerID = iota + 20
	benchStreamRequest
	benchStreamResponses
	benchStreamTwoWay

	benchPayload  = 512
	benchMessages = 10 // of a stream
	benchSubroute = "subroute/1"
)

func benchRPCHandler() *grid.SingleHandler[*rpcRequest, *rpcResponse] {
	return grid.NewSingleHandler(benchRPC, func() *rpcRequest { return new(rpcRequest) }, func() *rpcResponse { return new(rpcResponse) })
}

// benchGrid runs f with grids of 2 to 32 servers over loopback sockets.
func benchGrid(b *testing.B, f func(b *testing.B, g *rig.Grid)) {
	for n := 2; n <= 32; n *= 2 {
		b.Run(fmt.Sprint("servers=", n), func(b *testing.B) {
			g := rig.NewTCP(b, n, nil)
			for _, n := range g.Nodes() {
				registerBenchHandlers(b, n.Manager)
			}
			f(b, g)
		})
	}
}

func registerBenchHandlers(b *testing.B, m *grid.Manager) {
	require.NoError(b, benchRPCHandler().Register(m, func(req *rpcRequest) (*rpcResponse, *grid.RemoteErr) {
		return &rpcResponse{OrgNum: req.Num, OrgString: req.String, Embedded: *req}, nil
	}))
	for id, h := range map[grid.HandlerID]grid.StreamHandler{
		benchStreamRequest: {InCapacity: 1, Handle: func(_ context.Context, payload []byte, in <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
			grid.PutByteBuffer(payload)
			for b := range in {
				grid.PutByteBuffer(b)
			}
			return nil
		}},
		benchStreamResponses: {Handle: func(_ context.Context, payload []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			for range benchMessages {
				out <- append(grid.GetByteBufferCap(len(payload)), payload...)
			}
			grid.PutByteBuffer(payload)
			return nil
		}},
		benchStreamTwoWay: {InCapacity: 1, Handle: func(_ context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			grid.PutByteBuffer(payload)
			for b := range in {
				out <- b
			}
			return nil
		}},
	} {
		h.Subroute, h.OutCapacity = benchSubroute, 1
		require.NoError(b, m.RegisterStreamingHandler(id, h))
	}
}

// benchParallel runs op from 1 to 32 times GOMAXPROCS goroutines, each between a random pair of
// servers. moved is the payload bytes of one op.
func benchParallel(b *testing.B, g *rig.Grid, moved int64, op func(c *grid.Connection) error) {
	for p := 1; p <= 32; p *= 2 {
		b.Run(fmt.Sprint("par=", p*runtime.GOMAXPROCS(0)), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(moved)
			b.SetParallelism(p)
			var latency, drawing atomic.Int64
			seed := seed.Of(b)
			b.RunParallel(func(pb *testing.PB) {
				rng := rand.New(rand.NewPCG(seed, uint64(drawing.Add(1))))
				var sum time.Duration
				for pb.Next() {
					from := rng.IntN(g.Len())
					to := (from + 1 + rng.IntN(g.Len()-1)) % g.Len()
					start := time.Now()
					if err := op(g.Conn(from, to)); err != nil {
						b.Error(err)
						return
					}
					sum += time.Since(start)
				}
				latency.Add(int64(sum))
			})
			b.ReportMetric(float64(latency.Load())/float64(b.N)/1e6, "ms/op")
		})
	}
}

func BenchmarkRequests(b *testing.B) {
	ctx := context.Background()
	payload := make([]byte, benchPayload)
	rpc := benchRPCHandler()
	benchGrid(b, func(b *testing.B, g *rig.Grid) {
		b.Run("bytes", func(b *testing.B) {
			benchParallel(b, g, 2*benchPayload, func(c *grid.Connection) error {
				resp, err := c.SingleRequest(ctx, rig.Echo, payload)
				grid.PutByteBuffer(resp)
				return err
			})
		})
		b.Run("rpc", func(b *testing.B) {
			size := (&rpcRequest{Num: 1, String: "some request"}).Msgsize()
			benchParallel(b, g, int64(size), func(c *grid.Connection) error {
				req := rpc.NewRequest()
				req.Num, req.String = 1, "some request"
				resp, err := rpc.Call(ctx, c, req)
				if err == nil {
					rpc.PutResponse(resp)
				}
				return err
			})
		})
	})
}

func BenchmarkStream(b *testing.B) {
	ctx := context.Background()
	payload := make([]byte, benchPayload)
	put := func(b []byte) error { grid.PutByteBuffer(b); return nil }
	send := func(s *grid.Stream) {
		for range benchMessages {
			s.Requests <- append(grid.GetByteBufferCap(benchPayload), payload...)
		}
		close(s.Requests)
	}
	shapes := []struct {
		name string
		id   grid.HandlerID
		both int64 // how often a message passes
		run  func(s *grid.Stream) error
	}{
		{"request", benchStreamRequest, 1, func(s *grid.Stream) error { send(s); return s.Results(put) }},
		{"responses", benchStreamResponses, 1, func(s *grid.Stream) error { return s.Results(put) }},
		{"twoway", benchStreamTwoWay, 2, func(s *grid.Stream) error {
			got := 0
			go send(s)
			err := s.Results(func(b []byte) error { got++; return put(b) })
			if err == nil && got != benchMessages {
				err = io.ErrUnexpectedEOF
			}
			return err
		}},
	}
	for _, shape := range shapes {
		b.Run(shape.name, func(b *testing.B) {
			benchGrid(b, func(b *testing.B, g *rig.Grid) {
				benchParallel(b, g, shape.both*benchMessages*benchPayload, func(c *grid.Connection) error {
					s, err := c.Subroute(benchSubroute).NewStream(ctx, shape.id, payload)
					if err != nil {
						return err
					}
					return shape.run(s)
				})
			})
		})
	}
}

// BenchmarkHandlersThatWait is how long 1,000 callers have to wait for handlers that do nothing but
// wait for 100 ms, all of them at a time: 100 µs for each is perfect.
func BenchmarkHandlersThatWait(b *testing.B) {
	g := rig.NewTCP(b, 2, nil)
	g.Single(func(p []byte) ([]byte, *grid.RemoteErr) {
		time.Sleep(100 * time.Millisecond)
		return p, nil
	})
	c, payload := g.Conn(0, 1), make([]byte, benchPayload)
	var worst atomic.Int64
	b.SetParallelism(1000 / runtime.GOMAXPROCS(0))
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			start := time.Now()
			answer, err := c.SingleRequest(context.Background(), rig.Handler, payload)
			if err != nil {
				b.Error(err)
				return
			}
			grid.PutByteBuffer(answer)
			took := int64(time.Since(start))
			for was := worst.Load(); took > was && !worst.CompareAndSwap(was, took); was = worst.Load() {
			}
		}
	})
	b.ReportMetric(float64(worst.Load())/1e6, "ms-worst")
}
