package grid

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
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
			require.Equal(t, kind.content(p), kind.content(again), kind.name)

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
