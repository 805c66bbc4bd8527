package grid

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What typed handlers do with a payload: make one, decode into it, recycle it.
func BenchmarkPayload_Decode(b *testing.B) {
	mss := func(n int) *MSS {
		m := NewMSS()
		for i := range n {
			m.Set(fmt.Sprint("some-key-", i), fmt.Sprint("and its value ", i))
		}
		return m
	}
	lists := func(n int) *URLValues {
		u := url.Values{}
		for i := range n {
			u.Set(fmt.Sprint("some-key-", i), fmt.Sprint("and its value ", i))
		}
		return NewURLValuesWith(u)
	}
	maps, arrays := mssArrays.New(), bytesArrays.New()
	for range 100 {
		maps.Append(mss(3))
		arrays.Append(NewBytesWithCopyOf([]byte(strings.Repeat("x", 64))))
	}
	newMSS := func() anyPayload { return NewMSS() }
	newURLValues := func() anyPayload { return NewURLValues() }
	newBytes := func() anyPayload { return NewBytes() }
	for _, c := range []struct {
		name  string
		fresh func() anyPayload
		value anyPayload
	}{
		{"Bytes/1", newBytes, NewBytesWith(make([]byte, 1))},
		{"Bytes/512", newBytes, NewBytesWith(make([]byte, 512))},
		{"Bytes/64Ki", newBytes, NewBytesWith(make([]byte, 64<<10))},
		{"MSS/3", newMSS, mss(3)},
		{"MSS/20", newMSS, mss(20)},
		{"MSS/1000", newMSS, mss(1000)},
		{"URLValues/3", newURLValues, lists(3)},
		{"URLValues/20", newURLValues, lists(20)},
		{"ArrayOfMSS/100x3", func() anyPayload { return mssArrays.New() }, maps},
		{"ArrayOfBytes/100x64", func() anyPayload { return bytesArrays.New() }, arrays},
	} {
		b.Run(c.name, func(b *testing.B) {
			in, err := c.value.MarshalMsg(nil)
			require.NoError(b, err)
			b.SetBytes(int64(len(in)))
			b.ReportAllocs()
			for b.Loop() {
				p := c.fresh()
				if _, err := p.UnmarshalMsg(in); err != nil {
					b.Fatal(err)
				}
				p.(Recycler).Recycle()
			}
		})
	}
}
