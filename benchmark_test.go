package grid

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
)

const (
	benchRPC HandlerID = iota + 20
	benchStreamRequest
	benchStreamResponses
	benchStreamTwoWay

	benchPayload  = 512
	benchMessages = 10 // of a stream
	benchSubroute = "subroute/1"
)

func benchRPCHandler() *SingleHandler[*rpcRequest, *rpcResponse] {
	return NewSingleHandler(benchRPC, func() *rpcRequest { return new(rpcRequest) }, func() *rpcResponse { return new(rpcResponse) })
}

// benchGrid runs f with grids of 2 to 32 servers over loopback sockets.
func benchGrid(b *testing.B, f func(b *testing.B, g *testGrid)) {
	for n := 2; n <= 32; n *= 2 {
		b.Run(fmt.Sprint("servers=", n), func(b *testing.B) {
			g := newTCPGrid(b, n, nil)
			for _, n := range g.nodes {
				registerBenchHandlers(b, n.Manager)
			}
			f(b, g)
		})
	}
}

func registerBenchHandlers(b *testing.B, m *Manager) {
	require.NoError(b, benchRPCHandler().Register(m, func(req *rpcRequest) (*rpcResponse, *RemoteErr) {
		return &rpcResponse{OrgNum: req.Num, OrgString: req.String, Embedded: *req}, nil
	}))
	for id, h := range map[HandlerID]StreamHandler{
		benchStreamRequest: {InCapacity: 1, Handle: func(_ context.Context, payload []byte, in <-chan []byte, _ chan<- []byte) *RemoteErr {
			PutByteBuffer(payload)
			for b := range in {
				PutByteBuffer(b)
			}
			return nil
		}},
		benchStreamResponses: {Handle: func(_ context.Context, payload []byte, _ <-chan []byte, out chan<- []byte) *RemoteErr {
			for range benchMessages {
				out <- append(GetByteBufferCap(len(payload)), payload...)
			}
			PutByteBuffer(payload)
			return nil
		}},
		benchStreamTwoWay: {InCapacity: 1, Handle: func(_ context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *RemoteErr {
			PutByteBuffer(payload)
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

// benchParallel runs op from 1 to 32 times GOMAXPROCS goroutines, each between
// a random pair of servers. moved is the payload bytes of one op.
func benchParallel(b *testing.B, g *testGrid, moved int64, op func(c *Connection) error) {
	for p := 1; p <= 32; p *= 2 {
		b.Run(fmt.Sprint("par=", p*runtime.GOMAXPROCS(0)), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(moved)
			b.SetParallelism(p)
			var latency atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				rng := rand.New(rand.NewPCG(rand.Uint64(), 1))
				var sum time.Duration
				for pb.Next() {
					from := rng.IntN(len(g.nodes))
					to := (from + 1 + rng.IntN(len(g.nodes)-1)) % len(g.nodes)
					start := time.Now()
					if err := op(g.conn(from, to)); err != nil {
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
	benchGrid(b, func(b *testing.B, g *testGrid) {
		b.Run("bytes", func(b *testing.B) {
			benchParallel(b, g, 2*benchPayload, func(c *Connection) error {
				resp, err := c.SingleRequest(ctx, testEcho, payload)
				PutByteBuffer(resp)
				return err
			})
		})
		b.Run("rpc", func(b *testing.B) {
			size := (&rpcRequest{Num: 1, String: "some request"}).Msgsize()
			benchParallel(b, g, int64(size), func(c *Connection) error {
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
	put := func(b []byte) error { PutByteBuffer(b); return nil }
	send := func(s *Stream) {
		for range benchMessages {
			s.Requests <- append(GetByteBufferCap(benchPayload), payload...)
		}
		close(s.Requests)
	}
	shapes := []struct {
		name string
		id   HandlerID
		both int64 // how often a message passes
		run  func(s *Stream) error
	}{
		{"request", benchStreamRequest, 1, func(s *Stream) error { send(s); return s.Results(put) }},
		{"responses", benchStreamResponses, 1, func(s *Stream) error { return s.Results(put) }},
		{"twoway", benchStreamTwoWay, 2, func(s *Stream) error {
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
			benchGrid(b, func(b *testing.B, g *testGrid) {
				benchParallel(b, g, shape.both*benchMessages*benchPayload, func(c *Connection) error {
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
