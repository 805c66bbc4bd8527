package grid

import (
	"bytes"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"
)

func FuzzPayloadTypes(f *testing.F) {
	for _, kind := range payloadKinds {
		b, err := kind.full().MarshalMsg(nil)
		require.NoError(f, err)
		f.Add(b)
		f.Add(append(b, 0xc0))
	}
	for _, s := range []string{
		"", "\xc0", "\x80", "\x90", "\xc4\x00", "\x81\xc4\x01a\xa1b", "\xde\x00\x01\xd9\x01a\xda\x00\x01b",
		"\xdf\xff\xff\xff\xff", "\xdd\xff\xff\xff\xff", "\xc6\xff\xff\xff\xff", "\x81\xdb\xff\xff\xff\xff",
		"\x82\xa1a\xa1b\xa1a\xa1c", "\x82\xa1a\x91\xa1b\xa1a\x90", "\xc4\x04null", "\xc4\x0a[1e5,\"\\u\"]", "\x92\x80\x91\x80",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		rest, err := NewNoPayload().UnmarshalMsg(data)
		require.NoError(t, err)
		require.Equal(t, data, rest)
		for _, kind := range payloadKinds {
			p, input := kind.full(), bytes.Clone(data)
			var rest []byte
			var err error
			requireNoClaims(t, 4*len(data), func() { // what is nested takes more than its bytes
				p.(Recycler).Recycle()
				p = kind.full()
				rest, err = p.UnmarshalMsg(input)
			})
			require.Equal(t, data, input, "%s: the input was written to", kind.name)
			if err != nil {
				require.Equal(t, data, rest)
				requireEmpty(t, kind.content(p))
				continue
			}
			require.True(t, bytes.HasSuffix(data, rest))

			clear(input)
			b := mustMarshal(t, p)
			if !strings.HasPrefix(kind.name, "JSON") {
				require.LessOrEqual(t, len(b), p.Msgsize())
			}
			again := kind.fresh()
			mustUnmarshal(t, again, b)
			if string(b) == "\x80" {
				requireEmpty(t, kind.content(p)) // or nil, of URLValues
			} else {
				require.Equal(t, kind.content(p), kind.content(again), kind.name)
			}

			direct := kind.fresh()
			_, err = direct.UnmarshalMsg(data)
			require.NoError(t, err)
			require.Equal(t, kind.content(direct), kind.content(p), "%s: old contents or input shine through", kind.name)
			for _, p := range []anyPayload{p, again, direct} {
				p.(Recycler).Recycle()
			}
		}
	})
}

func TestPayload_TruncatedAnywhereIsAnError(t *testing.T) {
	for _, kind := range payloadKinds {
		whole := mustMarshal(t, kind.full())
		for n := range whole {
			p := kind.full()
			rest, err := p.UnmarshalMsg(whole[:n:n])
			require.ErrorIs(t, err, msgp.ErrShortBytes, "%s, %d bytes", kind.name, n)
			require.ErrorContains(t, err, "grid: decoding ", "says what it was about")
			require.Equal(t, whole[:n:n], rest)
			requireEmpty(t, kind.content(p))
		}
	}
}

func TestPayload_OfAnotherTypeIsAnError(t *testing.T) {
	for _, kind := range payloadKinds {
		for _, wrong := range []string{"\x01", "\xa1a", "\xc3", "\xcb12345678", "\xc1", "\xd4\x01a"} {
			p := kind.full()
			_, err := p.UnmarshalMsg([]byte(wrong))
			require.Error(t, err, "%s, %x", kind.name, wrong)
			requireEmpty(t, kind.content(p))
		}
	}
	var typeErr msgp.TypeError
	_, err := NewMSS().UnmarshalMsg([]byte("\x81\xa1k\x01"))
	require.ErrorAs(t, err, &typeErr)
	require.ErrorContains(t, err, `value of "k"`)
	_, err = NewMSS().UnmarshalMsg([]byte("\x81\xa1k\xc4\x01a"))
	require.ErrorAs(t, err, &typeErr, "msgp takes a bin as a key, not as a string")
	_, err = NewURLValues().UnmarshalMsg([]byte("\x81\xa1k\xc0"))
	require.Error(t, err, "a nil list")

	long := strings.Repeat("k", 65535)
	_, err = NewMSS().UnmarshalMsg([]byte("\x81\xda\xff\xff" + long + "\x01"))
	require.Less(t, len(err.Error()), 300, "no message of the peer's making")
}

// What a header claims must not be allocated before it has arrived.
func TestPayload_ClaimsAreNotAllocated(t *testing.T) {
	filler := strings.Repeat("\xa0", 2000)
	for name, claim := range map[string]string{
		"map32":              "\xdf\xff\xff\xff\xff",
		"map32 2^31":         "\xdf\x80\x00\x00\x00",
		"map16":              "\xde\xff\xff",
		"array32":            "\xdd\xff\xff\xff\xff",
		"array32 2^31":       "\xdd\x80\x00\x00\x00",
		"array16":            "\xdc\xff\xff",
		"bin32":              "\xc6\xff\xff\xff\xff",
		"bin32 2^31":         "\xc6\x80\x00\x00\x00",
		"str32":              "\xdb\xff\xff\xff\xff",
		"key str32":          "\x81\xdb\xff\xff\xff\xff",
		"key bin32":          "\x81\xc6\xff\xff\xff\xff",
		"value str32":        "\x81\xa1a\xdb\xff\xff\xff\xff",
		"list array32":       "\x81\xa1a\xdd\xff\xff\xff\xff",
		"list str32":         "\x81\xa1a\x91\xdb\xff\xff\xff\xff",
		"element map32":      "\x91\xdf\xff\xff\xff\xff",
		"element array32":    "\x91\xdd\xff\xff\xff\xff",
		"element bin32":      "\x91\x91\xc6\xff\xff\xff\xff",
		"element key str32":  "\x91\x81\xdb\xff\xff\xff\xff",
		"element list array": "\x91\x91\xdd\x80\x00\x00\x00",
	} {
		for _, kind := range payloadKinds {
			for _, input := range []string{claim, claim + filler} {
				p := kind.fresh()
				require.Less(t, allocatedBy(func() {
					_, err := p.UnmarshalMsg([]byte(input))
					require.Error(t, err, "%s into %s", name, kind.name)
				}), uint64(256<<10), "%s into %s", name, kind.name)
				requireEmpty(t, kind.content(p))
			}
		}
	}
	// As many bytes as entries are claimed, but the first entry is wrong.
	for input, p := range map[string]anyPayload{
		"\xdf\x00\x10\x00\x00\xc1":          NewMSSWith(nil),
		"\x81\xa1a\xdd\x00\x10\x00\x00\xc1": NewURLValues(),
		"\xdd\x00\x10\x00\x00\xc1":          mssArrays.New(),
	} {
		b := append([]byte(input), make([]byte, 2<<20)...)
		require.Less(t, allocatedBy(func() {
			_, err := p.UnmarshalMsg(b)
			require.Error(t, err)
		}), uint64(256<<10), "%T", p)
	}
	// More than is reserved ahead, and all of it there.
	a := nestedArrays.New()
	mustUnmarshal(t, a, append([]byte("\xdc\x20\x00"), strings.Repeat("\x90", 0x2000)...))
	require.Len(t, a.Value(), 0x2000)
}

// allocatedBy is the number of bytes that f allocates.
func allocatedBy(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
