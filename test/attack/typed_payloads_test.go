package attack

import (
	"bytes"
	"context"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

const (
	typedSingle = rig.Handler + iota
	typedStream
	rawSingle
	rawStream
)

// typedGrid has typed handlers of T, to which bad can be sent, and raw ones that send back what
// they are given, whatever a typed caller makes of that.
func inTypedGrid[T grid.RoundTripper](t *testing.T, newT func() T, edit func(int, *grid.ManagerOptions), f func(t *testing.T, c *grid.Connection, single *grid.SingleHandler[T, T], stream *grid.StreamTypeHandler[T, T, T])) {
	rig.InPair(t, edit, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		single := grid.NewSingleHandler(typedSingle, newT, newT)
		require.NoError(t, single.Register(g.Manager(1), func(req T) (T, *grid.RemoteErr) { return req, nil }))
		stream := grid.NewStream(typedStream, newT, newT, newT)
		stream.WithPayload, stream.InCapacity = true, 1
		require.NoError(t, stream.Register(g.Manager(1), func(_ context.Context, p T, in <-chan T, out chan<- T) *grid.RemoteErr {
			for range in {
			}
			return nil
		}))
		echo := func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }
		require.NoError(t, g.Manager(1).RegisterSingleHandler(rawSingle, echo))
		require.NoError(t, g.Manager(1).RegisterStreamingHandler(rawStream, grid.StreamHandler{Handle: func(_ context.Context, b []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			out <- b
			return nil
		}}))
		f(t, c, single, stream)
	})
}

// raw is a payload that is on the wire what it is given.
type raw struct{ b []byte }

func (r *raw) MarshalMsg(b []byte) ([]byte, error)   { return append(b, r.b...), nil }
func (r *raw) UnmarshalMsg(b []byte) ([]byte, error) { return nil, nil }
func (r *raw) Msgsize() int                          { return len(r.b) }

// requireRefused sends a payload to typed handlers, and has it sent to typed callers, in every
// place that a typed value may have. Each time it must be refused with the text want, and with next
// to no memory.
func requireRefused[T grid.RoundTripper](t *testing.T, newT func() T, bad []byte, edit func(int, *grid.ManagerOptions), want string) {
	t.Helper()
	good, err := newT().MarshalMsg(nil)
	require.NoError(t, err)
	inTypedGrid(t, newT, edit, func(t *testing.T, c *grid.Connection, single *grid.SingleHandler[T, T], stream *grid.StreamTypeHandler[T, T, T]) {
		ctx := t.Context()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for place, call := range map[string]func() error{
			"request": func() error {
				_, err := c.SingleRequest(ctx, typedSingle, bad)
				return err
			},
			"answer": func() error {
				answers := grid.NewSingleHandler[*raw, T](rawSingle, func() *raw { return new(raw) }, newT)
				_, err := answers.Call(ctx, c, &raw{bad})
				return err
			},
			"payload of a stream": func() error {
				s, err := c.NewStream(ctx, typedStream, bad)
				require.NoError(t, err)
				return s.Results(func([]byte) error { return nil })
			},
			"message to a handler": func() error {
				s, err := c.NewStream(ctx, typedStream, good)
				require.NoError(t, err)
				_ = s.Send(bad)
				s.CloseSend()
				return s.Results(func([]byte) error { return nil })
			},
			"message to a caller": func() error {
				answers := grid.NewStream[*raw, *raw, T](rawStream, func() *raw { return new(raw) }, nil, newT)
				answers.WithPayload = true
				s, err := answers.Call(ctx, c, &raw{bad})
				require.NoError(t, err)
				return s.Results(func(T) error { return nil })
			},
		} {
			err := call()
			require.ErrorContains(t, err, want, place)
			require.Less(t, len(err.Error()), 2<<10, place)
		}
		runtime.ReadMemStats(&after)
		// In each of the places as much as an array may take, and what is around it.
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(4*(40*len(bad)+256<<10)+32<<20))
		_, err := single.Call(ctx, c, newT())
		require.NoError(t, err, "all else goes on")
	})
}

func field(name string, value string) []byte {
	return append(msgp.AppendString(msgp.AppendMapHeader(nil, 1), name), value...)
}

// Generated code makes room for what a header claims, gigabytes for a request of 11 bytes, which
// ends the process. It never sees such a header.
func TestTyped_PayloadThatClaimsEverythingIsRefused(t *testing.T) {
	for _, c := range []struct{ name, header, want string }{
		{"Numbers", "\xdd\xff\xff\xff\xff", "array of 4294967295 values"},
		{"Texts", "\xdd\xff\xff\xff\xff\xa1", "array of 4294967295 values"},
		{"ByName", "\xdf\xff\xff\xff\xff", "map of 8589934590 values"},
		{"Inner", "\xdd\x0f\xff\xff\xff", "array of 268435455 values"},
		{"Inner", "\x91\x81\xa1A\xdd\xff\xff\xff\xff", "array of 4294967295 values"},
		{"Other", "\xdd\xff\xff\xff\xff\xc0", "array of 4294967295 values"},
		{"Texts", "\x91\xdb\xff\xff\xff\xff", "string of 4294967295 bytes"},
		{"Numbers", "\xdc\xff\xff\x01", "array of 65535 values"},
	} {
		bad := field(c.name, c.header)
		requireRefused(t, func() *payloads { return new(payloads) }, bad, nil, "decoding *attack.payloads: at byte ")
		requireRefused(t, func() *payloads { return new(payloads) }, bad, nil, c.want)
	}
}

// A type that is nested in itself is decoded by code that calls itself, whose stack has an end.
func TestTyped_PayloadThatIsNestedDeepIsRefused(t *testing.T) {
	nested := func(depth int) []byte {
		b := []byte(strings.Repeat("\x81\xa8Children\x91", depth/2))
		return append(b, 0x80)
	}
	newTree := func() *tree { return new(tree) }
	requireRefused(t, newTree, nested(rig.Scaled(2<<20)), nil, "nested deeper than 1000")
	requireRefused(t, newTree, nested(1000), nil, "nested deeper than 1000")
	ten := func(_ int, o *grid.ManagerOptions) { o.MaxNesting = 10 }
	requireRefused(t, newTree, nested(10), ten, "nested deeper than 10")
	inTypedGrid(t, newTree, ten, func(t *testing.T, c *grid.Connection, single *grid.SingleHandler[*tree, *tree], _ *grid.StreamTypeHandler[*tree, *tree, *tree]) {
		b, err := c.SingleRequest(t.Context(), typedSingle, nested(8))
		require.NoError(t, err)
		require.NotEmpty(t, b)
	})
}

// nest is decoded by a call for each level, as few as there can be.
type nest struct{ inner *nest }

func (n *nest) MarshalMsg(b []byte) ([]byte, error) { return append(b, 0x90), nil }
func (n *nest) Msgsize() int                        { return 1 }

func (n *nest) UnmarshalMsg(b []byte) ([]byte, error) {
	size, b, err := msgp.ReadArrayHeaderBytes(b)
	if err != nil || size == 0 {
		return b, err
	}
	n.inner = new(nest)
	return n.inner.UnmarshalMsg(b)
}

func (n *nest) depth() (levels int) {
	for ; n != nil; n = n.inner {
		levels++
	}
	return levels
}

// With the greatest MaxNesting a value that is as deep is decoded, and the stack is enough.
func TestTyped_PayloadAsDeepAsMayBeIsDecoded(t *testing.T) {
	const most = 100_000
	rig.InPair(t, func(_ int, o *grid.ManagerOptions) { o.MaxNesting = most }, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		nests := grid.NewSingleHandler(typedSingle, func() *nest { return new(nest) }, grid.NewNoPayload)
		depth := 0
		require.NoError(t, nests.Register(g.Manager(1), func(req *nest) (grid.NoPayload, *grid.RemoteErr) {
			depth = req.depth()
			return grid.NewNoPayload(), nil
		}))
		deep := func(n int) []byte { return append(bytes.Repeat([]byte{0x91}, n-1), 0x90) }
		_, err := c.SingleRequest(t.Context(), typedSingle, deep(most))
		require.NoError(t, err)
		require.Equal(t, most, depth)
		_, err = c.SingleRequest(t.Context(), typedSingle, deep(most+1))
		require.ErrorContains(t, err, "nested deeper than 100000")

		trees := grid.NewSingleHandler(typedStream, func() *tree { return new(tree) }, grid.NewNoPayload)
		require.NoError(t, trees.Register(g.Manager(1), func(*tree) (grid.NoPayload, *grid.RemoteErr) { return grid.NewNoPayload(), nil }))
		for _, level := range []string{"\x81\xa8Children\x91", "\x81\xa5Named\x81\xa1x"} {
			_, err = c.SingleRequest(t.Context(), typedStream, []byte(strings.Repeat(level, most/2-1)+"\x80"))
			require.NoError(t, err)
		}
	})
}

// encoding/json says in its error the whole of a number that does not fit, however long it is. What
// is kept of that, logged or sent is clipped.
func TestTyped_DecodingErrorRepeatsNoMoreThanItsBeginning(t *testing.T) {
	pool := grid.NewJSONPool[struct{ N int64 }]()
	bad := msgp.AppendBytes(nil, []byte(`{"N":`+strings.Repeat("1", rig.Scaled(2<<20))+`}`))
	requireRefused(t, pool.NewJSON, bad, nil, "cannot unmarshal number 1111")
}
