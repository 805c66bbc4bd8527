package grid

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"
)

// anyPayload is a [RoundTripper] of any type.
type anyPayload interface {
	msgp.Unmarshaler
	msgp.Marshaler
	msgp.Sizer
}

type numberedJSON struct{ A int }

var (
	numberedPool = NewJSONPool[numberedJSON]()
	anyPool      = NewJSONPool[any]()
	mssArrays    = NewArrayOf(NewMSS)
	bytesArrays  = NewArrayOf(NewBytes)
	nestedArrays = NewArrayOf(bytesArrays.New)
)

// payloadKinds are all types that hold something.
var payloadKinds = []struct {
	name string
	// fresh makes one to decode into, full one that holds something already.
	fresh, full func() anyPayload
	// content is what one holds, free of grid's types.
	content func(anyPayload) any
}{
	{
		"MSS",
		func() anyPayload { return NewMSS() },
		func() anyPayload { return NewMSSWith(map[string]string{"old": "1", "older": ""}) },
		func(p anyPayload) any { return map[string]string(*p.(*MSS)) },
	}, {
		"URLValues",
		func() anyPayload { return NewURLValues() },
		func() anyPayload { return NewURLValuesWith(url.Values{"old": {"1", "2"}, "older": {}}) },
		func(p anyPayload) any { return map[string][]string(p.(*URLValues).Values()) },
	}, {
		"Bytes",
		func() anyPayload { return NewBytes() },
		func() anyPayload { return NewBytesWithCopyOf([]byte("old")) },
		func(p anyPayload) any { return []byte(*p.(*Bytes)) },
	}, {
		"JSON of a struct",
		func() anyPayload { return numberedPool.NewJSON() },
		func() anyPayload { return numberedPool.NewJSONWith(&numberedJSON{7}) },
		func(p anyPayload) any { return p.(*JSON[numberedJSON]).Value() },
	}, {
		"JSON of any",
		func() anyPayload { return anyPool.NewJSON() },
		func() anyPayload { return anyPool.NewJSONWith(anyOf(map[string]any{"old": []any{"1", 2.5}})) },
		func(p anyPayload) any { return p.(*JSON[any]).Value() },
	}, {
		"Array of MSS",
		func() anyPayload { return mssArrays.New() },
		func() anyPayload {
			return mssArrays.NewWith([]*MSS{NewMSSWith(map[string]string{"old": "1"}), NewMSS(), NewMSSWith(nil)})
		},
		func(p anyPayload) any {
			return contentsOf(p.(*Array[*MSS]).Value(), func(m *MSS) any { return map[string]string(*m) })
		},
	}, {
		"Array of Array",
		func() anyPayload { return nestedArrays.New() },
		func() anyPayload {
			return nestedArrays.New().Append(
				bytesArrays.New(),
				bytesArrays.New().Append(NewBytesWithCopyOf([]byte("old")), NewBytesWith(nil)),
			)
		},
		func(p anyPayload) any {
			return contentsOf(p.(*Array[*Array[*Bytes]]).Value(), func(a *Array[*Bytes]) any {
				return contentsOf(a.Value(), func(b *Bytes) any { return []byte(*b) })
			})
		},
	},
}

func anyOf(v any) *any { return &v }

func contentsOf[T any](list []T, content func(T) any) []any {
	if list == nil {
		return nil
	}
	all := make([]any, 0, len(list))
	for _, v := range list {
		all = append(all, content(v))
	}
	return all
}

// requireEmpty fails unless content holds nothing; nil and empty will both do.
func requireEmpty(t *testing.T, content any) {
	t.Helper()
	v := reflect.ValueOf(content)
	require.True(t, v.Kind() == reflect.Pointer && v.IsNil() || v.Kind() != reflect.Pointer && v.Len() == 0,
		"not empty: %v", content)
}

func mustMarshal(t *testing.T, p anyPayload) []byte {
	t.Helper()
	b, err := p.MarshalMsg(nil)
	require.NoError(t, err)
	return b
}

func mustUnmarshal(t *testing.T, p anyPayload, b []byte) {
	t.Helper()
	rest, err := p.UnmarshalMsg(b)
	require.NoError(t, err)
	require.Empty(t, rest)
}

func isRoundTripper[T RoundTripper](T) bool { return true }

func TestPayload_TypesAreRoundTrippers(t *testing.T) {
	require.True(t, isRoundTripper(NewMSS()))
	require.True(t, isRoundTripper(NewURLValues()))
	require.True(t, isRoundTripper(NewBytes()))
	require.True(t, isRoundTripper(NewNoPayload()))
	require.True(t, isRoundTripper(&NoPayload{}))
	require.True(t, isRoundTripper(anyPool.NewJSON()))
	require.True(t, isRoundTripper(mssArrays.New()))
	for _, kind := range payloadKinds {
		require.Implements(t, (*Recycler)(nil), kind.fresh())
	}
}

func TestPayload_Vectors(t *testing.T) {
	want := map[string]struct {
		value, fresh anyPayload
	}{
		"type_mss":       {NewMSSWith(map[string]string{"myfield": "myvalue"}), NewMSS()},
		"type_mss_nil":   {NewMSSWith(nil), NewMSS()},
		"type_urlvalues": {NewURLValuesWith(url.Values{"a": {"1", "2"}}), NewURLValues()},
		"type_bytes":     {NewBytesWith([]byte("abc")), NewBytes()},
		"type_bytes_nil": {NewBytesWith(nil), NewBytes()},
		"type_json":      {numberedPool.NewJSONWith(&numberedJSON{7}), numberedPool.NewJSON()},
		"type_json_nil":  {numberedPool.NewJSON(), numberedPool.NewJSON()},
		"type_array": {mssArrays.New().Append(
			NewMSSWith(map[string]string{"a": "1"}), NewMSSWith(map[string]string{"b": "2"})), mssArrays.New()},
		"type_array_nil": {mssArrays.New(), mssArrays.New()},
	}
	file, err := os.ReadFile("testdata/vectors.json")
	require.NoError(t, err)
	var vectors []struct{ Name, Hex string }
	require.NoError(t, json.Unmarshal(file, &vectors))
	seen := 0
	for _, v := range vectors {
		if !strings.HasPrefix(v.Name, "type_") {
			continue
		}
		seen++
		t.Run(v.Name, func(t *testing.T) {
			require.Contains(t, want, v.Name, "a vector without a test")
			w := want[v.Name]
			b, err := w.value.MarshalMsg([]byte("before"))
			require.NoError(t, err)
			require.Equal(t, "before", string(b[:6]))
			require.Equal(t, v.Hex, hex.EncodeToString(b[6:]))

			rest, err := w.fresh.UnmarshalMsg(append(b[6:], "after"...))
			require.NoError(t, err)
			require.Equal(t, "after", string(rest))
			if _, ok := w.value.(*JSON[numberedJSON]); ok {
				require.Equal(t, w.value.(*JSON[numberedJSON]).Value(), w.fresh.(*JSON[numberedJSON]).Value())
			}
			require.Equal(t, v.Hex, hex.EncodeToString(mustMarshal(t, w.fresh)))
		})
	}
	require.Len(t, want, seen)
}

func TestPayload_RoundTripAtEveryHeaderWidth(t *testing.T) {
	for _, n := range []int{0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536} {
		text := strings.Repeat("x", n)
		list := make([]string, n)
		values := make(map[string]string, n)
		array := mssArrays.NewWith(make([]*MSS, 0, n))
		for i := range n {
			list[i] = fmt.Sprint(i)
			values[fmt.Sprint("key", i)] = fmt.Sprint("value", i)
			array.Append(NewMSSWith(nil))
		}
		for _, p := range []struct{ value, fresh anyPayload }{
			{NewMSSWith(map[string]string{text: text}), NewMSS()},
			{NewMSSWith(values), NewMSS()},
			{NewURLValuesWith(url.Values{text: {text, ""}}), NewURLValues()},
			{NewURLValuesWith(url.Values{"": list}), NewURLValues()},
			{NewBytesWith([]byte(text)), NewBytes()},
			{array, mssArrays.New()},
		} {
			b := mustMarshal(t, p.value)
			require.LessOrEqual(t, len(b), p.value.Msgsize())
			mustUnmarshal(t, p.fresh, b)
			if m, ok := p.fresh.(*MSS); ok {
				require.True(t, maps.Equal(*p.value.(*MSS), *m))
				continue
			}
			require.True(t, bytes.Equal(b, mustMarshal(t, p.fresh)), "%T of %d", p.value, n)
		}
	}
}

// Another encoder need not pick the shortest header.
func TestPayload_AcceptsEveryLegalWidth(t *testing.T) {
	stringsOf := map[string]string{
		"fixstr": "\xa1a", "str8": "\xd9\x01a", "str16": "\xda\x00\x01a", "str32": "\xdb\x00\x00\x00\x01a",
	}
	bins := map[string]string{
		"bin8": "\xc4\x01a", "bin16": "\xc5\x00\x01a", "bin32": "\xc6\x00\x00\x00\x01a",
	}
	for _, header := range []string{"\x81", "\xde\x00\x01", "\xdf\x00\x00\x00\x01"} {
		for name, s := range stringsOf {
			m := NewMSS()
			mustUnmarshal(t, m, []byte(header+s+s))
			require.Equal(t, MSS{"a": "a"}, *m, name)
			for _, array := range []string{"\x91", "\xdc\x00\x01", "\xdd\x00\x00\x00\x01"} {
				u := NewURLValues()
				mustUnmarshal(t, u, []byte(header+s+array+s))
				require.Equal(t, URLValues{"a": {"a"}}, *u, name)
				a := mssArrays.New()
				mustUnmarshal(t, a, []byte(array+header+s+s))
				require.Len(t, a.Value(), 1)
				require.Equal(t, "a", a.Value()[0].Get("a"))
			}
		}
		for name, s := range bins {
			m := NewMSS()
			mustUnmarshal(t, m, []byte(header+s+"\xa1a"))
			require.Equal(t, MSS{"a": "a"}, *m, name)
		}
	}
	for name, s := range bins {
		b := NewBytes()
		mustUnmarshal(t, b, []byte(s))
		require.Equal(t, Bytes("a"), *b, name)
		j := anyPool.NewJSON()
		mustUnmarshal(t, j, []byte(strings.Replace(s, "a", "1", 1)))
		require.Equal(t, 1.0, j.ValueOrZero(), name)
	}
}

func TestPayload_DoesNotAliasItsInput(t *testing.T) {
	for _, kind := range payloadKinds {
		want := kind.full()
		b := mustMarshal(t, want)
		p := kind.fresh()
		mustUnmarshal(t, p, b)
		for i := range b {
			b[i] ^= 0xff
		}
		require.Equal(t, kind.content(want), kind.content(p), kind.name)
	}
	raw := NewJSONPool[json.RawMessage]().NewJSON()
	b := []byte("\xc4\x05[1,2]")
	mustUnmarshal(t, raw, b)
	clear(b)
	require.Equal(t, "[1,2]", string(raw.ValueOrZero()))
}

func TestPayload_DoesNotAliasItsOutput(t *testing.T) {
	b := NewBytesWith([]byte("abc"))
	out := mustMarshal(t, b)
	clear(*b)
	require.Equal(t, "\xc4\x03abc", string(out))
}

func TestPayload_DecodedTwiceHoldsTheSecond(t *testing.T) {
	empty := map[string]string{
		"MSS": "\x80", "URLValues": "\x80", "Bytes": "\xc4\x00", "Array of MSS": "\x90", "Array of Array": "\x90",
	}
	for _, kind := range payloadKinds {
		p := kind.full()
		mustUnmarshal(t, p, []byte{0xc0})
		if kind.name != "URLValues" {
			require.Equal(t, "c0", hex.EncodeToString(mustMarshal(t, p)), "%s: nil", kind.name)
		}
		mustUnmarshal(t, p, mustMarshal(t, kind.full()))
		require.Equal(t, kind.content(kind.full()), kind.content(p), "%s: after nil", kind.name)
		mustUnmarshal(t, p, mustMarshal(t, kind.full()))
		require.Equal(t, kind.content(kind.full()), kind.content(p), "%s: after the same", kind.name)
		if b, ok := empty[kind.name]; ok {
			mustUnmarshal(t, p, []byte(b))
			require.Equal(t, b, string(mustMarshal(t, p)), "%s: empty", kind.name)
			requireEmpty(t, kind.content(p))
			mustUnmarshal(t, p, []byte{0xc0})
			mustUnmarshal(t, p, []byte(b))
			require.Equal(t, b, string(mustMarshal(t, p)), "%s: empty after nil", kind.name)
		}
	}
	m := NewMSSWith(map[string]string{"a": "1", "b": "2"})
	mustUnmarshal(t, m, mustMarshal(t, NewMSSWith(map[string]string{"b": "3"})))
	require.Equal(t, MSS{"b": "3"}, *m)

	// JSON of a part of the fields must not be filled up with old ones.
	pairs := NewJSONPool[struct{ A, B int }]()
	j := pairs.NewJSONWith(&struct{ A, B int }{1, 2})
	mustUnmarshal(t, j, []byte("\xc4\x07{\"A\":3}"))
	require.Equal(t, struct{ A, B int }{3, 0}, j.ValueOrZero())
}

func TestPayload_NilIsNotEmpty(t *testing.T) {
	for want, p := range map[string][]anyPayload{
		"c0": {
			NewMSSWith(nil), (*MSS)(nil),
			NewBytesWith(nil), NewBytesWithCopyOf(nil), (*Bytes)(nil),
			anyPool.NewJSON(), anyPool.NewJSONWith(nil), (*JSON[any])(nil), &JSON[any]{},
			mssArrays.New(), mssArrays.NewWith(nil), mssArrays.New().Append(), (*Array[*MSS])(nil), &Array[*MSS]{},
		},
		"80":             {NewMSS(), NewMSSWith(map[string]string{}), NewURLValues(), NewURLValuesWith(url.Values{}), NewURLValuesWith(nil), (*URLValues)(nil), new(URLValues)},
		"c400":           {NewBytes(), NewBytesCap(0), NewBytesWith([]byte{}), NewBytesWithCopyOf([]byte{})},
		"c4056e756c6c0a": {anyPool.NewJSONWith(new(any))},
		"90":             {mssArrays.NewWith([]*MSS{}), mssArrays.NewWith([]*MSS{}).Append()},
		"81a0" + "90":    {NewURLValuesWith(url.Values{"": nil}), NewURLValuesWith(url.Values{"": {}})},
		"91c0":           {mssArrays.New().Append(nil)},
	} {
		for _, p := range p {
			require.Equal(t, want, hex.EncodeToString(mustMarshal(t, p)), "%T", p)
			require.GreaterOrEqual(t, p.Msgsize(), len(want)/2, "%T", p)
		}
	}
	for _, kind := range payloadKinds {
		p := kind.full()
		mustUnmarshal(t, p, []byte{0xc0})
		require.True(t, reflect.ValueOf(kind.content(p)).IsNil(), kind.name)
	}
}

// What stands for nil is what peers of version 1 send for it, and so can decode, or else what is
// empty.
func TestPayload_NilIsWhatVersion1Decodes(t *testing.T) {
	file, err := os.ReadFile("testdata/vectors.json")
	require.NoError(t, err)
	var vectors []struct{ Name, Hex string }
	require.NoError(t, json.Unmarshal(file, &vectors))
	known := make(map[string]string)
	for _, v := range vectors {
		known[v.Name] = v.Hex
	}
	urlValuesArrays := NewArrayOf(NewURLValues)
	for name, c := range map[string]struct {
		none  []anyPayload
		empty string
	}{
		"mss":       {[]anyPayload{NewMSSWith(nil), (*MSS)(nil), new(MSS)}, "80"},
		"urlvalues": {[]anyPayload{NewURLValuesWith(nil), (*URLValues)(nil), new(URLValues)}, "80"},
		"bytes":     {[]anyPayload{NewBytesWith(nil), (*Bytes)(nil), new(Bytes)}, "c400"},
		"json":      {[]anyPayload{anyPool.NewJSON(), (*JSON[any])(nil), new(JSON[any])}, ""},
		"array":     {[]anyPayload{mssArrays.New(), (*Array[*MSS])(nil), urlValuesArrays.New()}, "90"},
		"elements":  {[]anyPayload{urlValuesArrays.New().Append(nil), urlValuesArrays.New().Append(NewURLValuesWith(nil))}, "9180"},
	} {
		want := c.empty
		if hex, ok := known["type_"+name+"_nil"]; ok {
			want = hex
		}
		for _, p := range c.none {
			require.Equal(t, want, hex.EncodeToString(mustMarshal(t, p)), "%T", p)
		}
	}
}

func TestPayload_NoPayloadIsNothing(t *testing.T) {
	np := NewNoPayload()
	require.Zero(t, np.Msgsize())
	b, err := np.MarshalMsg([]byte("before"))
	require.NoError(t, err)
	require.Equal(t, "before", string(b))
	for _, in := range [][]byte{nil, {}, {0xc0}, []byte("anything")} {
		rest, err := np.UnmarshalMsg(in)
		require.NoError(t, err)
		require.Equal(t, in, rest)
	}
}
