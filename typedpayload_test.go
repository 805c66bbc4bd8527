package grid

import (
	"context"
	"maps"
	"testing"

	"github.com/stretchr/testify/require"
)

// payloadCase is a ready-made payload type with values of it.
type payloadCase[T RoundTripper] struct {
	name   string
	fresh  func() T
	values map[string]func() T
	// plain is what a value holds, to be compared.
	plain func(T) any
}

// run sends all values through a single request and through all three ways of a
// stream.
func (p payloadCase[T]) run(t *testing.T) {
	t.Run(p.name, func(t *testing.T) {
		single := NewSingleHandler(testHandler, p.fresh, p.fresh)
		stream := NewStream(testHandler+1, p.fresh, p.fresh, p.fresh)
		inPair(t, nil, func(t *testing.T, g *testGrid, c *Connection) {
			var seen any
			require.NoError(t, single.Register(g.nodes[1].Manager, func(req T) (T, *RemoteErr) {
				seen = p.plain(req)
				return req, nil
			}))
			require.NoError(t, stream.Register(g.nodes[1].Manager, func(_ context.Context, payload T, in <-chan T, out chan<- T) *RemoteErr {
				out <- payload
				for v := range in {
					out <- v
				}
				return nil
			}))
			for name, value := range p.values {
				want := p.plain(value())
				for range 3 {
					resp, err := single.Call(t.Context(), c, value())
					require.NoError(t, err, name)
					require.Equal(t, want, seen, name)
					require.Equal(t, want, p.plain(resp), name)
					single.PutResponse(resp)

					s, err := stream.Call(t.Context(), c, value())
					require.NoError(t, err, name)
					go func() {
						for range 3 {
							s.Requests <- value()
						}
						close(s.Requests)
					}()
					n := 0
					for v, err := range s.All() {
						require.NoError(t, err, name)
						require.Equal(t, want, p.plain(v), name)
						stream.PutResponse(v)
						n++
					}
					require.Equal(t, 4, n, name)
				}
			}
		})
	})
}

func TestTypedPayloadsEndToEnd(t *testing.T) {
	payloadCase[*MSS]{
		"MSS", NewMSS, map[string]func() *MSS{
			"nil":   func() *MSS { return NewMSSWith(nil) },
			"empty": NewMSS,
			"full":  func() *MSS { return NewMSSWith(map[string]string{"a": "1", "": "2", "c": ""}) },
		}, func(m *MSS) any { return maps.Clone(*m) },
	}.run(t)
	payloadCase[*URLValues]{
		"URLValues", NewURLValues, map[string]func() *URLValues{
			"nil":   func() *URLValues { return NewURLValuesWith(nil) },
			"empty": NewURLValues,
			"full":  func() *URLValues { return NewURLValuesWith(map[string][]string{"a": {"1", "2"}, "b": {}, "": {""}}) },
		}, func(u *URLValues) any { return maps.Clone(*u) },
	}.run(t)
	payloadCase[*Bytes]{
		"Bytes", NewBytes, map[string]func() *Bytes{
			"nil":   func() *Bytes { return NewBytesWith(nil) },
			"empty": NewBytes,
			"full":  func() *Bytes { return NewBytesWithCopyOf([]byte("some bytes")) },
			"large": func() *Bytes { return NewBytesWithCopyOf(make([]byte, 20_000)) },
		}, func(b *Bytes) any { return append((*b)[:0:0], *b...) },
	}.run(t)

	type record struct {
		Name string
		List []int
		Map  map[string]float64
	}
	records := NewJSONPool[record]()
	payloadCase[*JSON[record]]{
		"JSON", records.NewJSON, map[string]func() *JSON[record]{
			"nil":  records.NewJSON,
			"zero": func() *JSON[record] { return records.NewJSONWith(&record{}) },
			"full": func() *JSON[record] {
				return records.NewJSONWith(&record{"<name>", []int{1, 2}, map[string]float64{"pi": 3.14}})
			},
		}, func(j *JSON[record]) any { return j.Value() },
	}.run(t)

	type strings = Array[*MSS]
	arrays := NewArrayOf(NewMSS)
	payloadCase[*strings]{
		"Array", arrays.New, map[string]func() *strings{
			"nil":   arrays.New,
			"empty": func() *strings { return arrays.NewWith([]*MSS{}) },
			"full": func() *strings {
				return arrays.New().Append(NewMSSWith(map[string]string{"a": "1"}), NewMSSWith(nil), NewMSS())
			},
		}, func(a *strings) any {
			if a.Value() == nil {
				return nil
			}
			all := []MSS{}
			for _, m := range a.Value() {
				all = append(all, maps.Clone(*m))
			}
			return all
		},
	}.run(t)
	payloadCase[*rpcRequest]{
		"generated", func() *rpcRequest { return new(rpcRequest) }, map[string]func() *rpcRequest{
			"zero": func() *rpcRequest { return new(rpcRequest) },
			"full": func() *rpcRequest { return &rpcRequest{-1, "text"} },
		}, func(r *rpcRequest) any { return *r },
	}.run(t)
	payloadCase[NoPayload]{
		"NoPayload", NewNoPayload, map[string]func() NoPayload{"only": NewNoPayload},
		func(n NoPayload) any { return n },
	}.run(t)
}
