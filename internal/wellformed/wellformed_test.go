package wellformed_test

import (
	"bytes"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid/internal/wellformed"
)

// every is a value of each kind.
func every() map[string][]byte {
	all := map[string][]byte{
		"nil": msgp.AppendNil(nil), "true": msgp.AppendBool(nil, true), "false": msgp.AppendBool(nil, false),
		"float32": msgp.AppendFloat32(nil, 1.5), "float64": msgp.AppendFloat64(nil, math.Pi),
		"time": msgp.AppendTime(nil, time.Now()), "complex": msgp.AppendComplex128(nil, 1i),
		"duration": msgp.AppendDuration(nil, time.Hour),
	}
	for _, n := range []uint64{0, 127, 128, 255, 256, 65535, 65536, math.MaxUint32, math.MaxUint32 + 1, math.MaxUint64} {
		all[fmt.Sprint("uint ", n)] = msgp.AppendUint64(nil, n)
	}
	for _, n := range []int64{-1, -32, -33, -128, -129, math.MinInt16, math.MinInt16 - 1, math.MinInt32, math.MinInt32 - 1, math.MinInt64} {
		all[fmt.Sprint("int ", n)] = msgp.AppendInt64(nil, n)
	}
	for _, n := range []int{0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536} {
		all[fmt.Sprint("string ", n)] = msgp.AppendString(nil, strings.Repeat("s", n))
		all[fmt.Sprint("bin ", n)] = msgp.AppendBytes(nil, make([]byte, n))
		ext, err := msgp.AppendExtension(nil, &msgp.RawExtension{Type: 9, Data: make([]byte, n)})
		if err != nil {
			panic(err)
		}
		all[fmt.Sprint("extension ", n)] = ext
		array, dict := msgp.AppendArrayHeader(nil, uint32(n)), msgp.AppendMapHeader(nil, uint32(n))
		for i := range n {
			array = msgp.AppendInt(array, i)
			dict = msgp.AppendBool(msgp.AppendString(dict, fmt.Sprint(i)), true)
		}
		all[fmt.Sprint("array ", n)], all[fmt.Sprint("map ", n)] = array, dict
	}
	for _, n := range []int{2, 4, 8} {
		ext, err := msgp.AppendExtension(nil, &msgp.RawExtension{Type: 9, Data: make([]byte, n)})
		if err != nil {
			panic(err)
		}
		all[fmt.Sprint("extension ", n)] = ext
	}
	return all
}

func TestCheck_AcceptsEveryKindOfValueAndNothingShorter(t *testing.T) {
	for name, b := range every() {
		require.NoError(t, wellformed.Check(b, 1), name)
		require.NoError(t, wellformed.Check(append(bytes.Clone(b), b...), 1), "two of %s", name)
		in := append(msgp.AppendArrayHeader(nil, 2), b...)
		require.NoError(t, wellformed.Check(append(in, 0xc0), 2), "%s in an array", name)
		require.Error(t, wellformed.Check(in, 2), "%s in an array of two", name)
		for _, n := range []int{1, 2, 3, 4, 5, len(b) / 2, len(b) - 1} {
			if n > 0 && n < len(b) {
				require.Error(t, wellformed.Check(b[:n], 1), "%d bytes of %s", n, name)
			}
		}
	}
	require.NoError(t, wellformed.Check(nil, 1))
}

func TestCheck_SaysWhatIsWrongAndWhere(t *testing.T) {
	for b, want := range map[string]string{
		"\xc1":                              "at byte 0: no value begins with 0xc1",
		"\x93\x01\xc1\x02":                  "at byte 2: no value begins with 0xc1",
		"\x01\xdd\xff\xff\xff\xff\x01":      "at byte 1: array of 4294967295 values, with 0 around it, in 1 bytes",
		"\x81\xa1a\xdf\xff\xff\xff\xff\x01": "at byte 3: map of 8589934590 values, with 0 around it, in 1 bytes",
		"\x92\x91\xc0":                      "at byte 1: array of 1 values, with 1 around it, in 1 bytes",
		"\xa3ab":                            "at byte 0: string of 3 bytes, there are 2",
		"\x91\xdb\xff\xff\xff\xff":          "at byte 1: string of 4294967295 bytes, there are 0",
		"\xc6\xff\xff\xff\xfb\x00":          "at byte 0: bin of 4294967291 bytes, there are 1",
		"\xc9\xff\xff\xff\xff\x00":          "at byte 0: extension of 4294967296 bytes, there are 1",
		"\xcf\x00":                          "at byte 0: uint of 8 bytes, there are 1",
		"\xde\x00":                          "at byte 0: map is cut short",
		"\x82\xc0":                          "at byte 0: map of 4 values, with 0 around it, in 1 bytes",
		"\x92\xa1":                          "at byte 0: array of 2 values, with 0 around it, in 1 bytes",
		strings.Repeat("\x91", 4) + "\xc0":  "at byte 3: nested deeper than 3",
		"\x80" + strings.Repeat("\x81\xc0", 4) + "\xc0": "at byte 7: nested deeper than 3",
	} {
		require.EqualError(t, wellformed.Check([]byte(b), 3), want)
	}
}

func TestCheck_DepthIsThatOfArraysAndMaps(t *testing.T) {
	for _, depth := range []int{1, 31, 32, 33, 1000} {
		b := append(bytes.Repeat([]byte{0x91}, depth), 0x90)
		require.Error(t, wellformed.Check(b, depth))
		require.NoError(t, wellformed.Check(b, depth+1))
		// Beside one another they are not nested.
		wide := msgp.AppendArrayHeader(nil, uint32(10*depth))
		wide = append(wide, bytes.Repeat([]byte{0x91, 0xc0}, 10*depth)...)
		require.NoError(t, wellformed.Check(wide, 2))
	}
}

// Nothing is allocated on a claim, nor for nesting beyond its limit.
func TestCheck_AllocatesNothingOfNote(t *testing.T) {
	nested := bytes.Repeat([]byte{0x91}, 8<<20)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	require.Error(t, wellformed.Check(nested, 1000))
	require.Error(t, wellformed.Check([]byte("\xdd\xff\xff\xff\xff\x01"), 1000))
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<10))

	b := every()["map 256"]
	require.Zero(t, testing.AllocsPerRun(10, func() { _ = wellformed.Check(b, 10) }))
}

// What is accepted can be skipped by msgp, to the end; what msgp skips, of values that are not
// nested too deep, is accepted.
func FuzzCheck(f *testing.F) {
	for _, b := range every() {
		if len(b) < 300 {
			f.Add(b)
		}
	}
	f.Add([]byte("\xdd\xff\xff\xff\xff\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		err := wellformed.Check(b, 1000)
		rest := b
		var skipped error
		for len(rest) > 0 && skipped == nil {
			rest, skipped = msgp.Skip(rest)
		}
		if err == nil {
			require.NoError(t, skipped)
			require.Empty(t, rest)
		} else if skipped == nil {
			require.ErrorContains(t, err, "nested deeper")
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	for name, v := range every() {
		if len(v) < 1000 {
			continue
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(v)))
			for range b.N {
				if err := wellformed.Check(v, 1000); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
