package calls

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/rig"
)

// fragmentEdges are sizes at which something changes, up to limit.
func fragmentEdges(limit int) (sizes []int) {
	for _, size := range []int{
		rig.FragmentSize + 1, rig.WholeSize - 1, rig.WholeSize, rig.WholeSize + 1,
		rig.FragmentSize*2 - 1, rig.FragmentSize * 2, rig.FragmentSize*2 + 1, rig.FragmentSize*2 + rig.RetainSize - 1, 1 << 20, limit - 1, limit,
	} {
		if size <= limit {
			sizes = append(sizes, size)
		}
	}
	return sizes
}

// echoStream sends back the payload, then its input.
func echoStream(ctx context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
	out <- payload
	for b := range in {
		out <- b
	}
	return grid.NewRemoteErr(context.Cause(ctx))
}

// echoesAll registers echoes as Handler and Handler+1, at every node, also under the subroute a/b.
func echoesAll(g *rig.Grid) {
	g.T.Helper()
	for _, n := range g.Nodes() {
		for _, route := range [][]string{nil, {"a", "b"}} {
			require.NoError(g.T, n.RegisterSingleHandler(rig.Handler, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }, route...))
			require.NoError(g.T, n.RegisterStreamingHandler(rig.Handler+1, grid.StreamHandler{
				Handle: echoStream, Subroute: strings.Join(route, "/"), OutCapacity: 1, InCapacity: 1,
			}))
		}
	}
}

// requireEchoed sends a payload all ways.
func requireEchoed(t testing.TB, conn rig.Caller, payload []byte) {
	t.Helper()
	size := len(payload)
	sent := bytes.Clone(payload)
	got, err := conn.SingleRequest(t.Context(), rig.Handler, sent)
	require.NoError(t, err, size)
	rig.RequireSame(t, payload, got, "answer of %d bytes", size)
	grid.PutByteBuffer(got)

	st, err := conn.NewStream(t.Context(), rig.Handler+1, sent)
	require.NoError(t, err, size)
	go func() {
		for range 2 {
			st.Requests <- append(grid.GetByteBufferCap(size), payload...)
		}
		close(st.Requests)
	}()
	requireStreamOf(t, st, 3, payload)

	st, err = conn.NewStream(t.Context(), rig.Handler+1, sent)
	require.NoError(t, err, size)
	go func() {
		for range 2 {
			if err := st.Send(sent); err != nil {
				t.Error(err)
			}
		}
		st.CloseSend()
	}()
	requireStreamOf(t, st, 3, payload)
	rig.RequireSame(t, payload, sent, "what was sent stays the caller's")
}

func requireStreamOf(t testing.TB, st *grid.Stream, n int, payload []byte) {
	t.Helper()
	require.NoError(t, st.Results(func(b []byte) error {
		rig.RequireSame(t, payload, b, "%d messages of %d bytes are left", n, len(payload))
		grid.PutByteBuffer(b)
		n--
		return nil
	}))
	require.Zero(t, n)
}

func TestFragments_PayloadsOfAllSizesArrive(t *testing.T) {
	limit := rig.Scaled(2<<20) + 77
	rig.InPair(t, func(_ int, o *grid.ManagerOptions) { o.MaxMessageSize = limit }, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		echoesAll(g)
		for i, size := range fragmentEdges(limit) {
			payload := rig.Mixed(size)
			for j, conn := range []rig.Caller{c, g.Conn(1, 0), c.Subroute("a").Subroute("b")} {
				if i%3 == j || !bytepool.Strict {
					requireEchoed(t, conn, payload)
				}
			}
		}
		_, err := c.SingleRequest(t.Context(), rig.Handler, make([]byte, limit+1))
		require.ErrorIs(t, err, grid.ErrMessageTooLarge)
		for i := range 2 {
			require.Zero(t, g.Conn(i, 1-i).Stats().Reconnects)
		}
	})
}

// Between two secure hosts fragments have no checksums.
func TestFragments_PayloadsOfAllSizesArriveOverTLS(t *testing.T) {
	rig.Long(t)
	cert, pool := rig.Certificate(t)
	server := &tls.Config{Certificates: []tls.Certificate{cert}}
	g := rig.NewTLS(t, 2, server, func(_ int, o *grid.ManagerOptions) { o.TLSConfig = &tls.Config{RootCAs: pool} })
	g.WaitConnected()
	echoesAll(g)
	for _, size := range fragmentEdges(rig.Scaled(1 << 20)) {
		requireEchoed(t, g.Conn(0, 1), rig.Mixed(size))
		requireEchoed(t, g.Conn(1, 0), rig.Mixed(size))
	}
}

func TestFragments_PayloadOfTheLargestSizeArrives(t *testing.T) {
	rig.Long(t)
	size := rig.Scaled(32 << 20)
	g := rig.NewTCP(t, 2, func(_ int, o *grid.ManagerOptions) { o.MaxMessageSize = size })
	echoesAll(g)
	requireEchoed(t, g.Conn(0, 1), rig.Mixed(size))
	require.Zero(t, g.Conn(0, 1).Stats().Reconnects)
}

func TestFragments_TypedPayloadsArrive(t *testing.T) {
	single := grid.NewSingleHandler(rig.Handler, grid.NewBytes, grid.NewBytes)
	stream := grid.NewStream(rig.Handler+1, grid.NewBytes, grid.NewBytes, grid.NewBytes)
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		require.NoError(t, single.Register(g.Manager(1), func(b *grid.Bytes) (*grid.Bytes, *grid.RemoteErr) { return b, nil }))
		require.NoError(t, stream.Register(g.Manager(1), func(_ context.Context, payload *grid.Bytes, in <-chan *grid.Bytes, out chan<- *grid.Bytes) *grid.RemoteErr {
			out <- payload
			for b := range in {
				out <- b
			}
			return nil
		}))
		for _, size := range fragmentEdges(rig.Scaled(3 << 20)) {
			payload := rig.Mixed(size)
			got, err := single.Call(t.Context(), c, grid.NewBytesWithCopyOf(payload))
			require.NoError(t, err)
			rig.RequireSame(t, payload, *got)
			single.PutResponse(got)
			st, err := stream.Call(t.Context(), c, grid.NewBytesWithCopyOf(payload))
			require.NoError(t, err)
			go func() {
				for range 3 {
					st.Requests <- grid.NewBytesWithCopyOf(payload)
				}
				close(st.Requests)
			}()
			n := 0
			for got, err := range st.All() {
				require.NoError(t, err)
				rig.RequireSame(t, payload, *got)
				stream.PutResponse(got)
				n++
			}
			require.Equal(t, 4, n)
		}
	})
}

// What is nil, and what is empty, is so beside what is large.
func TestFragments_PayloadsBesideNilAndEmptyOnes(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		large := rig.Mixed(3 * rig.WholeSize)
		payloads := [][]byte{large, nil, large, {}, large, {0}, nil, {}, large}
		var got [][]byte // by the handlers
		g.Single(func(b []byte) ([]byte, *grid.RemoteErr) { got = append(got, bytes.Clone(b)); return b, nil })
		for _, payload := range payloads {
			answer, err := c.SingleRequest(t.Context(), rig.Handler, payload)
			require.NoError(t, err)
			require.True(t, (payload == nil) == (answer == nil))
			rig.RequireSame(t, payload, answer)
		}
		for i, payload := range payloads {
			require.True(t, (payload == nil) == (got[i] == nil))
			rig.RequireSame(t, payload, got[i])
		}
		require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler+1, grid.StreamHandler{Handle: echoStream, InCapacity: 4, OutCapacity: 4}))
		st, err := c.NewStream(t.Context(), rig.Handler+1, nil)
		require.NoError(t, err)
		go func() {
			for _, payload := range payloads {
				st.Requests <- bytes.Clone(payload)
			}
			close(st.Requests)
		}()
		i := -1 // its payload comes first
		require.NoError(t, st.Results(func(b []byte) error {
			require.NotNil(t, b)
			if i++; i > 0 {
				rig.RequireSame(t, payloads[i-1], b)
			}
			return nil
		}))
		require.Equal(t, len(payloads), i)
	})
}

// Everything at once, in both directions.
func TestFragments_OfManyCallsAndStreamsDoNotMix(t *testing.T) {
	rig.Long(t)
	g := rig.NewTCP(t, 2, nil)
	echoesAll(g)
	var users sync.WaitGroup
	for user := range 16 {
		users.Go(func() {
			for round := range rig.Scaled(20) / 2 {
				requireEchoed(t, g.Conn(user%2, 1-user%2), rig.Mixed(1000+user*23456+round*5678))
			}
		})
	}
	users.Wait()
	for i := range 2 {
		st := g.Conn(i, 1-i).Stats()
		require.Zero(t, st.Reconnects+st.Calls+st.Streams+st.StreamsServed)
	}
}

// Many senders of one stream, of messages large and small: each arrives whole, and those of one
// sender in order.
func TestFragments_OfConcurrentSendsDoNotMix(t *testing.T) {
	const senders, each = 8, 12
	for _, capacity := range []int{1, 64} {
		g := rig.NewTCP(t, 2, nil)
		require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{
			Handle: func(_ context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
				for b := range in {
					out <- b
				}
				return nil
			},
			OutCapacity: capacity, InCapacity: capacity,
		}))
		st := rig.OpenStream(t, t.Context(), g.Conn(0, 1))
		var sending sync.WaitGroup
		want := make([][][]byte, senders)
		for i := range senders {
			for j := range each {
				size := []int{8, 100, rig.WholeSize + i, 5000, 4*rig.WholeSize + j, 8 + i, rig.FragmentSize * 2}[(i+j)%7]
				msg := rig.Mixed(size)
				binary.BigEndian.PutUint64(msg, uint64(i*each+j))
				want[i] = append(want[i], msg)
			}
			sending.Go(func() {
				for _, msg := range want[i] {
					if err := st.Send(msg); err != nil {
						t.Error(err)
					}
				}
			})
		}
		go func() { sending.Wait(); st.CloseSend() }()
		got := make([]int, senders)
		require.NoError(t, st.Results(func(b []byte) error {
			i := int(binary.BigEndian.Uint64(b)) / each
			rig.RequireSame(t, want[i][got[i]], b, "message %d of sender %d", got[i], i)
			got[i]++
			grid.PutByteBuffer(b)
			return nil
		}))
		require.Equal(t, slices.Repeat([]int{each}, senders), got)
		g.StopAll()
	}
}

func TestFragments_LetSmallCallsPass(t *testing.T) {
	size := rig.Scaled(16 << 20)
	large := time.Duration(size) * time.Second / rig.SlowRate
	for _, calls := range []int{1, 4} {
		for name, backwards := range map[string]bool{"requests": false, "responses": true} {
			t.Run(fmt.Sprint(calls, " large ", name), func(t *testing.T) {
				rig.InBubble(t, func(t *testing.T) {
					g, from, to := rig.NewSlow(t, rig.SlowRate, nil)
					if backwards {
						from, to = to, from
					}
					c := g.Conn(from, to)
					st, err := c.NewStream(t.Context(), rig.TwoWay, nil)
					require.NoError(t, err)
					echoes := make(chan string)
					ended := rig.InBackground(func() error {
						return st.Results(func(b []byte) error { echoes <- string(b); return nil })
					})
					begin := time.Now()
					answered := make(chan struct{}, calls)
					for i := range calls {
						payload := rig.Mixed(size/calls - i)
						go func() {
							b, err := c.SingleRequest(t.Context(), rig.Echo, payload)
							if err != nil || !bytes.Equal(payload, b) {
								t.Error("answer lost or garbled:", err)
							}
							grid.PutByteBuffer(b)
							answered <- struct{}{}
						}()
					}
					synctest.Wait()
					var worst time.Duration
					small := 0
					for ; len(answered) < calls; small++ {
						worst = max(worst, rig.Elapsed(func() {
							b, err := c.SingleRequest(t.Context(), rig.Echo, []byte("small"))
							require.NoError(t, err)
							require.Equal(t, "small", string(b))
						}), rig.Elapsed(func() {
							require.NoError(t, st.Send([]byte("small")))
							require.Equal(t, "small", <-echoes)
						}))
						time.Sleep(100 * time.Millisecond)
					}
					took := time.Since(begin)
					t.Logf("worst of %d small ones: %v; the large: %v", small, worst, took)
					require.Greater(t, took, large-time.Millisecond)
					require.Less(t, took, large*11/10)
					require.Greater(t, small, int(large/time.Second))
					require.LessOrEqual(t, worst, rig.Promptly*5/4)
					st.CloseSend()
					require.NoError(t, <-ended)
				})
			})
		}
	}
}

// The handler's small messages arrive while a large one of the client's is on its way.
func TestFragments_OfInputDoNotHoldUpOutput(t *testing.T) {
	t.Parallel()
	const large, small = 4 << 20, 20
	rig.InBubble(t, func(t *testing.T) {
		g, client, server := rig.NewSlow(t, rig.SlowRate, nil)
		sizes := make(chan int, 10)
		require.NoError(t, g.Manager(server).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{
			InCapacity: 4, OutCapacity: 4,
			Handle: func(_ context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
				for range small { // each says when it was sent
					out <- []byte(time.Now().Format(time.RFC3339Nano))
					time.Sleep(100 * time.Millisecond)
				}
				for b := range in {
					sizes <- len(b)
				}
				return nil
			},
		}))
		st := rig.OpenStream(t, t.Context(), g.Conn(client, server))
		sent := rig.InBackground(func() error {
			defer st.CloseSend()
			return st.Send(make([]byte, large))
		})
		seen := 0
		require.NoError(t, st.Results(func(b []byte) error {
			at, err := time.Parse(time.RFC3339Nano, string(b))
			require.NoError(t, err)
			require.LessOrEqual(t, time.Since(at), 2*rig.Promptly, "a small one came late")
			seen++
			return nil
		}))
		require.NoError(t, <-sent)
		require.Equal(t, small, seen)
		require.Equal(t, large, <-sizes)
		require.Empty(t, sizes)
	})
}

// The pool is in balance after what ends well, and after what is refused.
func TestFragments_ComeBackToThePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := bytepool.Out()
		limit := rig.Scaled(1 << 20)
		g := rig.New(t, 2, func(_ int, o *grid.ManagerOptions) { o.MaxMessageSize = limit })
		echoesAll(g)
		for _, size := range fragmentEdges(limit) {
			for i := range 2 {
				c, payload := g.Conn(i, 1-i), rig.Mixed(size)
				requireEchoed(t, c, payload)
				_, err := c.SingleRequest(t.Context(), rig.Unused, payload)
				require.True(t, grid.IsRemoteErr(err), err)
				_, err = c.NewStream(t.Context(), rig.Unused, payload)
				require.True(t, grid.IsRemoteErr(err), err)

				// What has arrived, and nobody wants any more.
				ctx, cancel := context.WithCancel(t.Context())
				st, err := c.NewStream(ctx, rig.Handler+1, nil)
				require.NoError(t, err)
				require.NoError(t, st.Send(payload))
				synctest.Wait()
				cancel()
				st.CloseSend()
			}
		}
		synctest.Wait()
		for i := range 2 {
			st := g.Conn(i, 1-i).Stats()
			require.Zero(t, st.Reconnects+st.Calls+st.Streams+st.StreamsServed+st.Handlers, "%+v", st)
		}
		g.StopAll()
		synctest.Wait()
		require.Zero(t, bytepool.Out()-before, "buffers are out")
	})
}
