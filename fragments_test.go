package grid

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/bytepool"
)

// Large payloads between two nodes, which send them in fragments. What a scripted
// peer sees and does is in fragmentspeer_test.go.

// mixed is n bytes in which no part looks like another.
func mixed(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}).Read(b)
	return b
}

// requireSame is require.Equal for what is too large to be printed.
func requireSame(t testing.TB, want, got []byte, what ...any) {
	t.Helper()
	require.Equal(t, len(want), len(got), what...)
	require.True(t, bytes.Equal(want, got), what...)
}

// fragmentEdges are sizes at which something changes, up to limit.
func fragmentEdges(limit int) (sizes []int) {
	for _, size := range []int{
		fragmentSize + 1, wholeSize - 1, wholeSize, wholeSize + 1,
		fragmentSize*2 - 1, fragmentSize * 2, fragmentSize*2 + 1, fragmentSize*2 + retainSize - 1, 1 << 20, limit - 1, limit,
	} {
		if size <= limit {
			sizes = append(sizes, size)
		}
	}
	return sizes
}

// echoStream sends back the payload, then its input.
func echoStream(ctx context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *RemoteErr {
	out <- payload
	for b := range in {
		out <- b
	}
	return NewRemoteErr(context.Cause(ctx))
}

// echoesAll registers echoes as testHandler and testHandler+1, at every node, also
// under the subroute a/b.
func (g *testGrid) echoesAll() {
	g.t.Helper()
	for _, n := range g.nodes {
		for _, route := range [][]string{nil, {"a", "b"}} {
			require.NoError(g.t, n.RegisterSingleHandler(testHandler, func(b []byte) ([]byte, *RemoteErr) { return b, nil }, route...))
			require.NoError(g.t, n.RegisterStreamingHandler(testHandler+1, StreamHandler{
				Handle: echoStream, Subroute: joinSubroutes(route...), OutCapacity: 1, InCapacity: 1,
			}))
		}
	}
}

// requireEchoed sends a payload all ways.
func requireEchoed(t testing.TB, conn rawCaller, payload []byte) {
	t.Helper()
	size := len(payload)
	sent := bytes.Clone(payload)
	got, err := conn.SingleRequest(t.Context(), testHandler, sent)
	require.NoError(t, err, size)
	requireSame(t, payload, got, "answer of %d bytes", size)
	PutByteBuffer(got)

	st, err := conn.NewStream(t.Context(), testHandler+1, sent)
	require.NoError(t, err, size)
	go func() {
		for range 2 {
			st.Requests <- append(GetByteBufferCap(size), payload...)
		}
		close(st.Requests)
	}()
	requireStreamOf(t, st, 3, payload)

	st, err = conn.NewStream(t.Context(), testHandler+1, sent)
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
	requireSame(t, payload, sent, "what was sent stays the caller's")
}

func requireStreamOf(t testing.TB, st *Stream, n int, payload []byte) {
	t.Helper()
	require.NoError(t, st.Results(func(b []byte) error {
		requireSame(t, payload, b, "%d messages of %d bytes are left", n, len(payload))
		PutByteBuffer(b)
		n--
		return nil
	}))
	require.Zero(t, n)
}

func TestFragmentedPayloadsOfAllSizesArrive(t *testing.T) {
	limit := scaled(2<<20) + 77
	inPair(t, func(_ int, o *ManagerOptions) { o.MaxMessageSize = limit }, func(t *testing.T, g *testGrid, c *Connection) {
		g.echoesAll()
		for i, size := range fragmentEdges(limit) {
			payload := mixed(size)
			for j, conn := range []rawCaller{c, g.conn(1, 0), c.Subroute("a").Subroute("b")} {
				if i%3 == j || !bytepool.Strict {
					requireEchoed(t, conn, payload)
				}
			}
		}
		_, err := c.SingleRequest(t.Context(), testHandler, make([]byte, limit+1))
		require.ErrorIs(t, err, ErrMessageTooLarge)
		for i := range 2 {
			require.Zero(t, g.conn(i, 1-i).Stats().Reconnects)
		}
	})
}

// Between two secure hosts fragments have no checksums.
func TestFragmentedPayloadsOfAllSizesArriveOverTLS(t *testing.T) {
	cert, pool := testCertificate(t)
	server := &tls.Config{Certificates: []tls.Certificate{cert}}
	g := newTLSGrid(t, 2, server, func(_ int, o *ManagerOptions) { o.TLSConfig = &tls.Config{RootCAs: pool} })
	g.waitConnected()
	g.echoesAll()
	for _, size := range fragmentEdges(scaled(1 << 20)) {
		requireEchoed(t, g.conn(0, 1), mixed(size))
		requireEchoed(t, g.conn(1, 0), mixed(size))
	}
}

func TestFragmentedPayloadOfTheLargestSizeArrives(t *testing.T) {
	size := scaled(32 << 20)
	g := newTCPGrid(t, 2, func(_ int, o *ManagerOptions) { o.MaxMessageSize = size })
	g.echoesAll()
	requireEchoed(t, g.conn(0, 1), mixed(size))
	require.Zero(t, g.conn(0, 1).Stats().Reconnects)
}

func TestFragmentedTypedPayloadsArrive(t *testing.T) {
	single := NewSingleHandler(testHandler, NewBytes, NewBytes)
	stream := NewStream(testHandler+1, NewBytes, NewBytes, NewBytes)
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		require.NoError(t, single.Register(g.nodes[1].Manager, func(b *Bytes) (*Bytes, *RemoteErr) { return b, nil }))
		require.NoError(t, stream.Register(g.nodes[1].Manager, func(_ context.Context, payload *Bytes, in <-chan *Bytes, out chan<- *Bytes) *RemoteErr {
			out <- payload
			for b := range in {
				out <- b
			}
			return nil
		}))
		for _, size := range fragmentEdges(scaled(3 << 20)) {
			payload := mixed(size)
			got, err := single.Call(t.Context(), c, NewBytesWithCopyOf(payload))
			require.NoError(t, err)
			requireSame(t, payload, *got)
			single.PutResponse(got)
			st, err := stream.Call(t.Context(), c, NewBytesWithCopyOf(payload))
			require.NoError(t, err)
			go func() {
				for range 3 {
					st.Requests <- NewBytesWithCopyOf(payload)
				}
				close(st.Requests)
			}()
			n := 0
			for got, err := range st.All() {
				require.NoError(t, err)
				requireSame(t, payload, *got)
				stream.PutResponse(got)
				n++
			}
			require.Equal(t, 4, n)
		}
	})
}

// What is nil, and what is empty, is so beside what is large.
func TestFragmentedPayloadsBesideNilAndEmptyOnes(t *testing.T) {
	inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
		large := mixed(3 * wholeSize)
		payloads := [][]byte{large, nil, large, {}, large, {0}, nil, {}, large}
		var got [][]byte // by the handlers
		g.single(func(b []byte) ([]byte, *RemoteErr) { got = append(got, bytes.Clone(b)); return b, nil })
		for _, payload := range payloads {
			answer, err := c.SingleRequest(t.Context(), testHandler, payload)
			require.NoError(t, err)
			require.True(t, (payload == nil) == (answer == nil))
			requireSame(t, payload, answer)
		}
		for i, payload := range payloads {
			require.True(t, (payload == nil) == (got[i] == nil))
			requireSame(t, payload, got[i])
		}
		require.NoError(t, g.nodes[1].RegisterStreamingHandler(testHandler+1, StreamHandler{Handle: echoStream, InCapacity: 4, OutCapacity: 4}))
		st, err := c.NewStream(t.Context(), testHandler+1, nil)
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
				requireSame(t, payloads[i-1], b)
			}
			return nil
		}))
		require.Equal(t, len(payloads), i)
	})
}

// Everything at once, in both directions.
func TestFragmentsOfManyCallsAndStreamsDoNotMix(t *testing.T) {
	g := newTCPGrid(t, 2, nil)
	g.echoesAll()
	var users sync.WaitGroup
	for user := range 16 {
		users.Go(func() {
			for round := range scaled(20) / 2 {
				requireEchoed(t, g.conn(user%2, 1-user%2), mixed(1000+user*23456+round*5678))
			}
		})
	}
	users.Wait()
	for i := range 2 {
		st := g.conn(i, 1-i).Stats()
		require.Zero(t, st.Reconnects+st.Calls+st.Streams+st.StreamsServed)
	}
}

// Many senders of one stream, of messages large and small: each arrives whole, and
// those of one sender in order.
func TestFragmentsOfConcurrentSendsDoNotMix(t *testing.T) {
	const senders, each = 8, 12
	for _, capacity := range []int{1, 64} {
		g := newTCPGrid(t, 2, nil)
		require.NoError(t, g.nodes[1].RegisterStreamingHandler(testHandler, StreamHandler{
			Handle: func(_ context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *RemoteErr {
				for b := range in {
					out <- b
				}
				return nil
			},
			OutCapacity: capacity, InCapacity: capacity,
		}))
		st := openStream(t, t.Context(), g.conn(0, 1))
		var sending sync.WaitGroup
		want := make([][][]byte, senders)
		for i := range senders {
			for j := range each {
				size := []int{8, 100, wholeSize + i, 5000, 4*wholeSize + j, 8 + i, fragmentSize * 2}[(i+j)%7]
				msg := mixed(size)
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
			requireSame(t, want[i][got[i]], b, "message %d of sender %d", got[i], i)
			got[i]++
			PutByteBuffer(b)
			return nil
		}))
		require.Equal(t, slices.Repeat([]int{each}, senders), got)
		g.stopAll()
	}
}

const slowRate = 1 << 20 // bytes per second of a slow link

// promptly is how long something small may take beside something large, on a slow
// link: what is being written must be, and what waits before it.
const promptly = pendingLimit * time.Second / slowRate

func TestFragmentsLetSmallCallsPass(t *testing.T) {
	size := scaled(16 << 20)
	large := time.Duration(size) * time.Second / slowRate
	for _, calls := range []int{1, 4} {
		for name, backwards := range map[string]bool{"requests": false, "responses": true} {
			t.Run(fmt.Sprint(calls, " large ", name), func(t *testing.T) {
				inBubble(t, func(t *testing.T) {
					g, from, to := newSlowGrid(t, slowRate, nil)
					if backwards {
						from, to = to, from
					}
					c := g.conn(from, to)
					st, err := c.NewStream(t.Context(), testTwoWay, nil)
					require.NoError(t, err)
					echoes := make(chan string)
					ended := inBackground(func() error {
						return st.Results(func(b []byte) error { echoes <- string(b); return nil })
					})
					begin := time.Now()
					answered := make(chan struct{}, calls)
					for i := range calls {
						payload := mixed(size/calls - i)
						go func() {
							b, err := c.SingleRequest(t.Context(), testEcho, payload)
							if err != nil || !bytes.Equal(payload, b) {
								t.Error("answer lost or garbled:", err)
							}
							PutByteBuffer(b)
							answered <- struct{}{}
						}()
					}
					synctest.Wait()
					var worst time.Duration
					small := 0
					for ; len(answered) < calls; small++ {
						worst = max(worst, elapsed(func() {
							b, err := c.SingleRequest(t.Context(), testEcho, []byte("small"))
							require.NoError(t, err)
							require.Equal(t, "small", string(b))
						}), elapsed(func() {
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
					require.LessOrEqual(t, worst, promptly*5/4)
					st.CloseSend()
					require.NoError(t, <-ended)
				})
			})
		}
	}
}

// The handler's small messages arrive while a large one of the client's is on its way.
func TestFragmentsOfInputDoNotHoldUpOutput(t *testing.T) {
	const large, small = 4 << 20, 20
	inBubble(t, func(t *testing.T) {
		g, client, server := newSlowGrid(t, slowRate, nil)
		sizes := make(chan int, 10)
		require.NoError(t, g.nodes[server].RegisterStreamingHandler(testHandler, StreamHandler{
			InCapacity: 4, OutCapacity: 4,
			Handle: func(_ context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *RemoteErr {
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
		st := openStream(t, t.Context(), g.conn(client, server))
		sent := inBackground(func() error {
			defer st.CloseSend()
			return st.Send(make([]byte, large))
		})
		seen := 0
		require.NoError(t, st.Results(func(b []byte) error {
			at, err := time.Parse(time.RFC3339Nano, string(b))
			require.NoError(t, err)
			require.LessOrEqual(t, time.Since(at), 2*promptly, "a small one came late")
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
func TestFragmentsComeBackToThePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := bytepool.Out()
		limit := scaled(1 << 20)
		g := newTestGrid(t, 2, func(_ int, o *ManagerOptions) { o.MaxMessageSize = limit })
		g.echoesAll()
		for _, size := range fragmentEdges(limit) {
			for i := range 2 {
				c, payload := g.conn(i, 1-i), mixed(size)
				requireEchoed(t, c, payload)
				_, err := c.SingleRequest(t.Context(), testUnused, payload)
				require.True(t, IsRemoteErr(err), err)
				_, err = c.NewStream(t.Context(), testUnused, payload)
				require.True(t, IsRemoteErr(err), err)

				// What has arrived, and nobody wants any more.
				ctx, cancel := context.WithCancel(t.Context())
				st, err := c.NewStream(ctx, testHandler+1, nil)
				require.NoError(t, err)
				require.NoError(t, st.Send(payload))
				synctest.Wait()
				cancel()
				st.CloseSend()
			}
		}
		synctest.Wait()
		for i := range 2 {
			st := g.conn(i, 1-i).Stats()
			require.Zero(t, st.Reconnects+st.Calls+st.Streams+st.StreamsServed+st.Handlers, "%+v", st)
		}
		g.stopAll()
		synctest.Wait()
		require.Zero(t, bytepool.Out()-before, "buffers are out")
	})
}
