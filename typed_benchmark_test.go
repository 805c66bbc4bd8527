package grid_test

import (
	"context"
	"fmt"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
	"github.com/gridrpc/grid/internal/wellformed"
)

// What it costs that a payload is looked through before it is decoded, beside decoding it and
// beside a call that carries it: 5 % of that at most.

const (
	typedAnswer grid.HandlerID = iota + 30
	handAnswer
)

const benchNesting = 1000

// typedBench is a payload type with one value of it.
type typedBench[T grid.RoundTripper] struct {
	fresh func() T
	value T
}

func benchMSS() typedBench[*grid.MSS] {
	m := make(map[string]string)
	for i := range 10 {
		m[fmt.Sprint("some key ", i)] = fmt.Sprint("the value of that key, number ", i)
	}
	return typedBench[*grid.MSS]{grid.NewMSS, grid.NewMSSWith(m)}
}

func benchStruct() typedBench[*rpcResponse] {
	v := &rpcResponse{OrgNum: 1000, OrgString: "some request", Embedded: rpcRequest{Num: 1 << 20, String: "some other string"}}
	return typedBench[*rpcResponse]{func() *rpcResponse { return new(rpcResponse) }, v}
}

func benchArray() typedBench[*grid.Array[*rpcResponse]] {
	one := benchStruct()
	pool := grid.NewArrayOf(one.fresh)
	a := pool.New()
	for range 10 {
		a.Append(one.value)
	}
	return typedBench[*grid.Array[*rpcResponse]]{pool.New, a}
}

func (c typedBench[T]) encoded(b *testing.B) []byte {
	payload, err := c.value.MarshalMsg(nil)
	require.NoError(b, err)
	return payload
}

// decode runs what is done with a payload by itself: all of it, the decoding alone, and the look
// through it alone.
func (c typedBench[T]) decode(b *testing.B) {
	payload, into := c.encoded(b), c.fresh()
	for _, way := range []struct {
		name string
		f    func() error
	}{
		{"both", func() error { return grid.Decode(into, payload, benchNesting) }},
		{"decode", func() error { _, err := into.UnmarshalMsg(payload); return err }},
		{"look", func() error { return wellformed.Check(payload, benchNesting) }},
	} {
		b.Run(way.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(payload)))
			for b.Loop() {
				if err := way.f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkTypedDecode(b *testing.B) {
	b.Run("MSS of 10", benchMSS().decode)
	b.Run("struct", benchStruct().decode)
	b.Run("array of 10", benchArray().decode)
}

// byHand is what the typed handler and call do, but for the look.
type byHand[T grid.RoundTripper] struct {
	fresh func() T
	value T // the answer
	pool  sync.Pool
}

func (h *byHand[T]) get() T {
	if v, ok := h.pool.Get().(T); ok {
		return v
	}
	return h.fresh()
}

func (h *byHand[T]) put(v T) {
	if r, ok := any(v).(grid.Recycler); ok {
		r.Recycle()
		return
	}
	reflect.ValueOf(v).Elem().SetZero()
	h.pool.Put(v)
}

func (h *byHand[T]) decode(payload []byte) (T, error) {
	v := h.get()
	_, err := v.UnmarshalMsg(payload)
	grid.PutByteBuffer(payload)
	return v, err
}

func (h *byHand[T]) encode(v T) ([]byte, error) {
	return v.MarshalMsg(grid.GetByteBufferCap(v.Msgsize()))
}

func (h *byHand[T]) serve(payload []byte) ([]byte, *grid.RemoteErr) {
	v, err := h.decode(payload)
	if err != nil {
		return nil, grid.NewRemoteErr(err)
	}
	h.put(v)
	answer, err := h.encode(h.value)
	if err != nil {
		return nil, grid.NewRemoteErr(err)
	}
	return answer, nil
}

func (h *byHand[T]) call(ctx context.Context, c *grid.Connection, v T) error {
	payload, err := h.encode(v)
	if err != nil {
		return err
	}
	answer, err := c.SingleRequest(ctx, handAnswer, payload)
	grid.PutByteBuffer(payload)
	if err != nil {
		return err
	}
	back, err := h.decode(answer)
	h.put(back)
	return err
}

// call runs calls with the value, there and back, over a loopback socket, typed and by hand: one at
// a time, and many. Of the typed ones look-% is the share of the two looks, one on each side, in
// the time that the processors have had for a call: it is measured in the same run, so that it says
// more than the difference between two.
func (c typedBench[T]) call(b *testing.B) {
	ctx := context.Background()
	g := rig.NewTCP(b, 2, nil)
	typed := grid.NewSingleHandler(typedAnswer, c.fresh, c.fresh).WithSharedResponse()
	require.NoError(b, typed.Register(g.Manager(1), func(T) (T, *grid.RemoteErr) { return c.value, nil }))
	hand := &byHand[T]{fresh: c.fresh, value: c.value}
	require.NoError(b, g.Manager(1).RegisterSingleHandler(handAnswer, hand.serve))
	conn, payload := g.Conn(0, 1), c.encoded(b)

	for _, way := range []struct {
		name string
		call func() error
	}{
		{"typed", func() error {
			back, err := typed.Call(ctx, conn, c.value)
			if err == nil {
				typed.PutResponse(back)
			}
			return err
		}},
		{"by hand", func() error { return hand.call(ctx, conn, c.value) }},
	} {
		for _, callers := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/callers=%d", way.name, callers), func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(2 * int64(len(payload)))
				elapsed := inParallel(b, callers, way.call)
				if way.name == "typed" {
					start := time.Now()
					for range 2 * b.N {
						if err := wellformed.Check(payload, benchNesting); err != nil {
							b.Fatal(err)
						}
					}
					look := time.Since(start)
					busy := elapsed * time.Duration(min(callers, runtime.GOMAXPROCS(0)))
					b.ReportMetric(100*float64(look)/float64(busy), "look-%")
				}
			})
		}
	}
}

// inParallel calls f b.N times, by so many goroutines.
func inParallel(b *testing.B, callers int, f func() error) time.Duration {
	var left atomic.Int64
	left.Store(int64(b.N))
	var all sync.WaitGroup
	b.ResetTimer()
	start := time.Now()
	for range callers {
		all.Go(func() {
			for left.Add(-1) >= 0 {
				if err := f(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	elapsed := time.Since(start)
	b.StopTimer()
	return elapsed
}

func BenchmarkTypedCall(b *testing.B) {
	b.Run("MSS of 10", benchMSS().call)
	b.Run("struct", benchStruct().call)
	b.Run("array of 10", benchArray().call)
}
