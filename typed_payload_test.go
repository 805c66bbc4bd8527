package grid_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// payloadCase is a ready-made payload type with values of it.
type payloadCase[T grid.RoundTripper] struct {
	name   string
	fresh  func() T
	values map[string]func() T
	// plain is what a value holds, to be compared.
	plain func(T) any
}

// run sends all values through a single request and through all three ways of a stream.
func (p payloadCase[T]) run(t *testing.T) {
	t.Run(p.name, func(t *testing.T) {
		single := grid.NewSingleHandler(rig.Handler, p.fresh, p.fresh)
		stream := grid.NewStream(rig.Handler+1, p.fresh, p.fresh, p.fresh)
		rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
			var seen any
			require.NoError(t, single.Register(g.Manager(1), func(req T) (T, *grid.RemoteErr) {
				seen = p.plain(req)
				return req, nil
			}))
			require.NoError(t, stream.Register(g.Manager(1), func(_ context.Context, payload T, in <-chan T, out chan<- T) *grid.RemoteErr {
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

func TestTyped_PayloadsEndToEnd(t *testing.T) {
	payloadCase[*grid.MSS]{
		"MSS", grid.NewMSS, map[string]func() *grid.MSS{
			"nil":   func() *grid.MSS { return grid.NewMSSWith(nil) },
			"empty": grid.NewMSS,
			"full":  func() *grid.MSS { return grid.NewMSSWith(map[string]string{"a": "1", "": "2", "c": ""}) },
		}, func(m *grid.MSS) any { return maps.Clone(*m) },
	}.run(t)
	payloadCase[*grid.URLValues]{
		"URLValues", grid.NewURLValues, map[string]func() *grid.URLValues{
			"nil":   func() *grid.URLValues { return grid.NewURLValuesWith(nil) },
			"empty": grid.NewURLValues,
			"full": func() *grid.URLValues {
				return grid.NewURLValuesWith(map[string][]string{"a": {"1", "2"}, "b": {}, "": {""}})
			},
		}, func(u *grid.URLValues) any {
			held := grid.URLValues{} // also for nil, which arrives so
			maps.Copy(held, *u)
			return held
		},
	}.run(t)
	payloadCase[*grid.Bytes]{
		"Bytes", grid.NewBytes, map[string]func() *grid.Bytes{
			"nil":   func() *grid.Bytes { return grid.NewBytesWith(nil) },
			"empty": grid.NewBytes,
			"full":  func() *grid.Bytes { return grid.NewBytesWithCopyOf([]byte("some bytes")) },
			"large": func() *grid.Bytes { return grid.NewBytesWithCopyOf(make([]byte, 20_000)) },
		}, func(b *grid.Bytes) any { return append((*b)[:0:0], *b...) },
	}.run(t)

	type record struct {
		Name string
		List []int
		Map  map[string]float64
	}
	records := grid.NewJSONPool[record]()
	payloadCase[*grid.JSON[record]]{
		"JSON", records.NewJSON, map[string]func() *grid.JSON[record]{
			"nil":  records.NewJSON,
			"zero": func() *grid.JSON[record] { return records.NewJSONWith(&record{}) },
			"full": func() *grid.JSON[record] {
				return records.NewJSONWith(&record{"<name>", []int{1, 2}, map[string]float64{"pi": 3.14}})
			},
		}, func(j *grid.JSON[record]) any { return j.Value() },
	}.run(t)

	type strings = grid.Array[*grid.MSS]
	arrays := grid.NewArrayOf(grid.NewMSS)
	payloadCase[*strings]{
		"Array", arrays.New, map[string]func() *strings{
			"nil":   arrays.New,
			"empty": func() *strings { return arrays.NewWith([]*grid.MSS{}) },
			"full": func() *strings {
				return arrays.New().Append(grid.NewMSSWith(map[string]string{"a": "1"}), grid.NewMSSWith(nil), grid.NewMSS())
			},
		}, func(a *strings) any {
			if a.Value() == nil {
				return nil
			}
			all := []grid.MSS{}
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
	payloadCase[grid.NoPayload]{
		"NoPayload", grid.NewNoPayload, map[string]func() grid.NoPayload{"only": grid.NewNoPayload},
		func(n grid.NoPayload) any { return n },
	}.run(t)
}

// failing is a payload that fails where its text says so, and that knows how often it was recycled.
// Its decoder is careless: it leaves fields alone that the input does not name.
type failing struct {
	Text  string
	Extra string
	times *atomic.Int64 // Recycle was called; nil if nobody counts
}

// What a failing may have for a text.
const (
	marshalError   = "marshal error"
	marshalPanic   = "marshal panic"
	unmarshalError = "unmarshal error"
	unmarshalPanic = "unmarshal panic"
)

var errFailing = errors.New("failing")

func newFailing() *failing { return new(failing) }

func (f *failing) MarshalMsg(b []byte) ([]byte, error) {
	switch f.Text {
	case marshalError:
		return nil, errFailing
	case marshalPanic:
		panic(errFailing)
	}
	text := f.Text
	if f.Extra != "" {
		text += "\n" + f.Extra
	}
	return msgp.AppendString(b, text), nil
}

func (f *failing) UnmarshalMsg(b []byte) ([]byte, error) {
	text, o, err := msgp.ReadStringBytes(b)
	if err != nil {
		return b, err
	}
	extra, ok := "", false
	f.Text, extra, ok = strings.Cut(text, "\n")
	if ok {
		f.Extra = extra
	}
	switch f.Text {
	case unmarshalError:
		return b, errFailing
	case unmarshalPanic:
		panic(errFailing)
	}
	return o, nil
}

func (f *failing) Msgsize() int {
	return msgp.StringPrefixSize + len(f.Text) + 1 + len(f.Extra)
}

// counted is a failing that recycles itself.
type counted struct{ failing }

// newCounted returns a counted, and how often it was recycled.
func newCounted(text string) (*counted, *atomic.Int64) {
	times := new(atomic.Int64)
	return &counted{failing{Text: text, times: times}}, times
}

func (c *counted) Recycle() {
	if c.times != nil {
		c.times.Add(1)
	}
}
