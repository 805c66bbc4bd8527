package grid

import (
	"bytes"
	"math"
	"math/rand/v2"
	"net/url"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/seed"
)

var (
	urlValuesArrays = NewArrayOf(NewURLValues)
	anyArrays       = NewArrayOf(anyPool.NewJSON)
	nestedMSSArrays = NewArrayOf(mssArrays.New)
	deepArrays      = NewArrayOf(nestedArrays.New)
)

// memoryKinds are the types whose memory is bounded.
var memoryKinds = []struct {
	name  string
	fresh func() anyPayload
	// build makes a payload of what is drawn.
	build func(g *genes) []byte
	// extra is what it may take beyond 32 times the payload: what is rounded up to classes of sizes
	// and pages, but for arrays of what can take more.
	extra int
}{
	{"MSS", func() anyPayload { return NewMSS() }, (*genes).mss, 1 << 10},
	{"URLValues", func() anyPayload { return NewURLValues() }, (*genes).urlValues, 1 << 10},
	{"Bytes", func() anyPayload { return NewBytes() }, (*genes).bytes, 1 << 10},
	{"Array of Bytes", func() anyPayload { return bytesArrays.New() }, arrayOfGenes((*genes).bytes), 8 << 10},
	{"Array of JSON", func() anyPayload { return anyArrays.New() }, arrayOfGenes((*genes).json), 8 << 10},
	{"Array of MSS", func() anyPayload { return mssArrays.New() }, arrayOfGenes((*genes).mss), memoryExtra},
	{"Array of URLValues", func() anyPayload { return urlValuesArrays.New() }, arrayOfGenes((*genes).urlValues), memoryExtra},
	{"Array of Array of Bytes", func() anyPayload { return nestedArrays.New() }, arrayOfGenes(arrayOfGenes((*genes).bytes)), memoryExtra},
	{"Array of Array of MSS", func() anyPayload { return nestedMSSArrays.New() }, arrayOfGenes(arrayOfGenes((*genes).mss)), memoryExtra},
	{"Array of Array of Array of Bytes", func() anyPayload { return deepArrays.New() }, arrayOfGenes(arrayOfGenes(arrayOfGenes((*genes).bytes))), memoryExtra},
}

// genes say what a payload is made of, number by number. A search changes some of them.
type genes struct {
	numbers [12]uint32
	next    int
	// left is how many bytes the payload may still have.
	left int
}

// build makes a payload of at most about so many bytes.
func (g *genes) build(build func(*genes) []byte, most int) []byte {
	g.next, g.left = 0, most
	return build(g)
}

func (g *genes) pick(from ...int) int {
	n := g.numbers[g.next%len(g.numbers)]
	g.next++
	return from[n%uint32(len(from))]
}

// counts are those at which maps and slices grow, and some others.
func (g *genes) count() int {
	return g.pick(0, 0, 1, 1, 1, 2, 3, 4, 5, 7, 8, 9, 14, 15, 28, 29, 56, 57, 112, 113, 224, 225, 448, 449, 896, 897, 1024, 1025, 1100, 1793, 2049, 3000, 5000, 20000)
}

// length is one at which the class of sizes changes, more often a short one.
func (g *genes) length() int {
	return g.pick(0, 0, 0, 0, 1, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 49, 127, 128, 129, 255, 257, 1025, 4097, 32769, 70000)
}

func (g *genes) text() []byte { return msgp.AppendString(nil, strings.Repeat("x", g.length())) }

// keyOf are the shortest keys that differ.
func keyOf(i int) []byte {
	switch {
	case i == 0:
		return []byte("\xa0")
	case i <= 1<<8:
		return []byte{0xa1, byte(i - 1)}
	}
	i -= 1<<8 + 1
	return []byte{0xa3, byte(i), byte(i >> 8), byte(i >> 16)}
}

func (g *genes) table(value func() []byte) []byte {
	if g.pick(0, 1, 1, 1, 1, 1) == 0 {
		return []byte{0xc0}
	}
	n, every, v := g.count(), g.pick(1, 1, 1, 2, 3, 1<<20), value()
	n = min(n, g.left/(len(v)+2))
	b := msgp.AppendMapHeader(nil, uint32(n))
	for i := range n {
		b = append(append(b, keyOf(i/every)...), v...)
	}
	return b
}

func (g *genes) mss() []byte { return g.table(g.text) }

func (g *genes) urlValues() []byte {
	return g.table(func() []byte {
		n, s := g.count(), g.text()
		n = min(n, g.left/len(s))
		return append(msgp.AppendArrayHeader(nil, uint32(n)), bytes.Repeat(s, n)...)
	})
}

func (g *genes) bytes() []byte {
	if g.pick(0, 1, 1) == 0 {
		return []byte{0xc0}
	}
	return msgp.AppendBytes(nil, make([]byte, g.length()))
}

func (g *genes) json() []byte {
	if g.pick(0, 1, 1) == 0 {
		return []byte{0xc0}
	}
	return msgp.AppendBytes(nil, []byte([]string{"null", "0", "{}", "[]"}[g.pick(0, 1, 2, 3)]))
}

// arrayOfGenes makes arrays of one to three elements over and over.
func arrayOfGenes(element func(*genes) []byte) func(*genes) []byte {
	return func(g *genes) []byte {
		if g.pick(0, 1, 1, 1, 1, 1) == 0 {
			return []byte{0xc0}
		}
		n, kinds := g.count(), g.pick(1, 1, 1, 2, 3)
		all := g.left
		g.left = all / max(1, min(n, 100))
		var elements [][]byte
		size := 0
		for range kinds {
			elements = append(elements, element(g))
			size += len(elements[len(elements)-1])
		}
		g.left = all
		n = min(n, max(1, all*kinds/size))
		b := msgp.AppendArrayHeader(nil, uint32(n))
		for i := range n {
			b = append(b, elements[i%kinds]...)
		}
		return b
	}
}

// heldBy is what one value takes that fresh makes and b is decoded into, after pump has used the
// pools. What ends in the process meanwhile can only add to that, so it is measured again where it
// seems to be too much, and the least counts. An error is that of decoding.
func heldBy(fresh func() anyPayload, b []byte, pump func()) (least int, err error) {
	least = math.MaxInt
	for range 3 {
		held, err := heldOnce(fresh, b, pump)
		if err != nil {
			return 0, err
		}
		if least = min(least, held); least <= memoryFactor*len(b) {
			break
		}
	}
	return least, nil
}

// heldOnce measures, of so many values that less does not count.
func heldOnce(fresh func() anyPayload, b []byte, pump func()) (int, error) {
	const noise = 4 << 10 // what the rest of the process may take meanwhile
	all := make([]anyPayload, min(1000, 1+(32<<10)/len(b)))
	before := liveHeap()
	pump()
	for i := range all {
		all[i] = fresh()
		if _, err := all[i].UnmarshalMsg(b); err != nil {
			return 0, err
		}
	}
	held := liveHeap() - before - noise
	runtime.KeepAlive(all)
	runtime.KeepAlive(b)
	return int(held) / len(all), nil
}

// liveHeap is what is in use when the garbage is collected, and what pools hold with it.
func liveHeap() int64 {
	var m runtime.MemStats
	for range 2 { // what pools hold goes with the second
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func skipStrict(t *testing.T) {
	t.Helper()
	if bytepool.Strict {
		t.Skip("under the race detector the pool of bytes takes memory of its own")
	}
}

func TestTypes_HoldAtMost32TimesTheirPayload(t *testing.T) {
	skipStrict(t)
	rounds, starts := 20, 6
	if testing.Short() {
		rounds, starts = 10, 2
	}
	for _, kind := range memoryKinds {
		t.Run(kind.name, func(t *testing.T) {
			random := seed.Rand(t)
			// times is how many times its bytes a payload takes, those counted that it may take anyway.
			times := func(g *genes) float64 {
				for most := 128 << 10; ; most = most * 3 / 4 {
					b := g.build(kind.build, most)
					held, err := heldBy(kind.fresh, b, func() {})
					if err != nil {
						require.ErrorContains(t, err, "takes more than 32 times")
						continue
					}
					require.LessOrEqual(t, held, memoryFactor*len(b)+kind.extra, "%d bytes, %.100x", len(b), b)
					return float64(held) / (float64(len(b)) + float64(kind.extra)/memoryFactor)
				}
			}
			for range starts {
				var best genes
				mutate(random, &best, len(best.numbers))
				most := times(&best)
				for range rounds {
					g := best
					mutate(random, &g, 1+random.IntN(3))
					if got := times(&g); got >= most {
						best, most = g, got
					}
				}
				b := best.build(kind.build, 128<<10)
				t.Logf("at most %.1f times, of up to %d bytes: %.40x", most, len(b), b)
			}
		})
	}
}

func mutate(random *rand.Rand, g *genes, n int) {
	for range n {
		g.numbers[random.IntN(len(g.numbers))] = random.Uint32()
	}
}

// arrayOf is an array of n times element.
func arrayOf(n int, element string) []byte {
	return append(msgp.AppendArrayHeader(nil, uint32(n)), strings.Repeat(element, n)...)
}

// Of what takes the most for its bytes no array takes more than it may, however many there are of
// it: they are refused from a number on.
func TestTypes_HostileElementsHoldAtMost32TimesTheirPayload(t *testing.T) {
	skipStrict(t)
	fits := 256 << 10
	if testing.Short() {
		fits = 64 << 10
	}
	manyKeys, manyLists := "\xde\x00\x71", "\xde\x00\x71" // 113, for which a map has just grown
	for i := range 113 {
		manyKeys += string(keyOf(i)) + "\xa0"
		manyLists += string(keyOf(i)) + "\x90"
	}
	for _, c := range []struct {
		name     string
		fresh    func() anyPayload
		elements []string
	}{
		{"MSS", func() anyPayload { return mssArrays.New() }, []string{
			"\xc0", "\x80", "\x81\xa0\xa0", "\x81\xa1a\xa11", "\x82\xa0\xa0\xa0\xa0", "\x89" + strings.Repeat("\xa0\xa0", 9),
			"\xde\x03\x81" + strings.Repeat("\xa0\xa0", 897), manyKeys,
		}},
		{"URLValues", func() anyPayload { return urlValuesArrays.New() }, []string{
			"\xc0", "\x80", "\x81\xa0\x90", "\x81\xa0\x91\xa0", "\x81\xa0\x92\xa0\xa0", "\x81\xa1a\x91\xa1b", "\x82\xa0\x90\xa0\x90",
			"\xde\x03\x81" + strings.Repeat("\xa0\x90", 897), "\x81\xa0\xdc\x04\x01" + strings.Repeat("\xa0", 1025), manyLists,
		}},
		{"Bytes", func() anyPayload { return bytesArrays.New() }, []string{
			"\xc0", "\xc4\x00", "\xc4\x01a", "\xc4\x10aaaaaaaaaaaaaaaa", "\xc4\x11aaaaaaaaaaaaaaaaa",
		}},
		{"JSON", func() anyPayload { return anyArrays.New() }, []string{"\xc0", "\xc4\x010", "\xc4\x02{}"}},
		{"Array of Bytes", func() anyPayload { return nestedArrays.New() }, []string{
			"\xc0", "\x90", "\x91\xc0", "\x91\xc4\x00", "\x95\xc0\xc0\xc0\xc0\xc0", "\x91\xc4\x01a",
		}},
		{"Array of MSS", func() anyPayload { return nestedMSSArrays.New() }, []string{
			"\xc0", "\x90", "\x91\xc0", "\x91\x80", "\x91\x81\xa0\xa0",
		}},
		{"Array of Array of Bytes", func() anyPayload { return deepArrays.New() }, []string{"\x90", "\x91\x90", "\x91\x91\xc0"}},
	} {
		for _, e := range c.elements {
			// What fits, or what is not refused of that.
			most := sort.Search(fits/len(e), func(n int) bool {
				p := c.fresh()
				_, err := p.UnmarshalMsg(arrayOf(n+1, e))
				if err != nil {
					require.ErrorContains(t, err, "takes more than 32 times")
				}
				return err != nil
			})
			b := arrayOf(most, e)
			held, err := heldBy(c.fresh, b, func() {})
			require.NoError(t, err)
			require.LessOrEqual(t, held, memoryFactor*len(b)+memoryExtra, "%d of %.40x in an array of %s", most, e, c.name)
			if len(e) < 16 {
				require.GreaterOrEqual(t, most, min(750, fits/len(e)), "%x in an array of %s", e, c.name)
			}
			t.Logf("array of %s: %d of %d bytes, %.20x, take %.1f times as many", c.name, most, len(e), e, float64(held)/float64(len(b)))
		}
	}
}

// What somebody may well send is not refused, however dense it is.
func TestTypes_OrdinaryArraysAreNotRefused(t *testing.T) {
	mss, lists := mssArrays.New(), urlValuesArrays.New()
	dense, pairs, empty := mssArrays.New(), mssArrays.New(), mssArrays.New()
	denseLists := urlValuesArrays.New()
	ones, inner := bytesArrays.New(), nestedArrays.New()
	many := 100_000
	if testing.Short() {
		many = 10_000
	}
	for i := range many {
		mss.Append(NewMSSWith(map[string]string{"id": strconv.Itoa(i), "state": "ok"}))
		lists.Append(NewURLValuesWith(url.Values{"name": {"object " + strconv.Itoa(i)}}))
		ones.Append(NewBytesWith([]byte{byte(i)}))
		inner.Append(bytesArrays.New().Append(NewBytesWith([]byte{1}), NewBytesWith([]byte{2})))
	}
	for i := range 1000 {
		dense.Append(NewMSSWith(map[string]string{"a": strconv.Itoa(i % 10)}))
		pairs.Append(NewMSSWith(map[string]string{"a": "1", "b": "2"}))
		empty.Append(NewMSS())
		denseLists.Append(NewURLValuesWith(url.Values{"a": {"1"}}))
	}
	for name, c := range map[string]struct{ value, fresh anyPayload }{
		"maps":                          {mss, mssArrays.New()},
		"lists":                         {lists, urlValuesArrays.New()},
		"bytes":                         {ones, bytesArrays.New()},
		"arrays":                        {inner, nestedArrays.New()},
		"1000 maps of a letter each":    {dense, mssArrays.New()},
		"1000 maps of two letters each": {pairs, mssArrays.New()},
		"1000 empty maps":               {empty, mssArrays.New()},
		"1000 lists of a letter each":   {denseLists, urlValuesArrays.New()},
	} {
		b := mustMarshal(t, c.value)
		_, err := c.fresh.UnmarshalMsg(b)
		require.NoError(t, err, name)
		require.True(t, len(b) == len(mustMarshal(t, c.fresh)), name)
	}
}

func TestTypes_RefusalNamesTheElementAndTheBudget(t *testing.T) {
	_, err := mssArrays.New().UnmarshalMsg(arrayOf(100_000, "\x81\xa1a\xa11"))
	require.ErrorContains(t, err, "grid: decoding Array: element ")
	require.ErrorContains(t, err, " of 100000: grid: decoding MSS: takes more than 32 times the 500005 bytes of the payload, and 256 KiB")
	a := nestedMSSArrays.New()
	_, err = a.UnmarshalMsg(arrayOf(100_000, "\x91\x81\xa0\xa0"))
	require.ErrorContains(t, err, " of 100000: grid: decoding Array: element 0 of 1: grid: decoding MSS: takes more than 32 times the 400005 bytes of the payload")
	require.Nil(t, a.Value())
}

// A peer that has large values decoded and recycled must not make small ones large.
func TestTypes_PoolsGiveSmallValuesNoLargeMemory(t *testing.T) {
	skipStrict(t)
	keys := func(n int, value string) string {
		b := string(msgp.AppendMapHeader(nil, uint32(n)))
		for i := range n {
			b += string(keyOf(i)) + value
		}
		return b
	}
	same := func(n int, value string) string {
		return string(msgp.AppendMapHeader(nil, uint32(n))) + strings.Repeat("\xa0"+value, n)
	}
	bins := string(msgp.AppendBytes(nil, make([]byte, 10_000)))
	for _, c := range []struct {
		name         string
		fresh        func() anyPayload
		large, small []string
	}{
		{"MSS", func() anyPayload { return NewMSS() },
			[]string{keys(1000, "\xa0"), same(1000, "\xa0"), keys(1000, "\x01"), keys(9, "\xa0")}, []string{"\xc0", "\x80", "\x81\xa0\xa0", keys(9, "\xa0")}},
		{"URLValues", func() anyPayload { return NewURLValues() },
			[]string{keys(1000, "\x90"), same(1000, "\x90"), keys(1000, "\x01")}, []string{"\xc0", "\x80", "\x81\xa0\x90", keys(9, "\x90")}},
		{"Bytes", func() anyPayload { return NewBytes() },
			[]string{bins}, []string{"\xc0", "\xc4\x00", "\xc4\x01a"}},
		{"Array of MSS", func() anyPayload { return mssArrays.New() },
			[]string{string(arrayOf(1000, "\x81\xa0\xa0")), string(arrayOf(2, keys(1000, "\xa0"))), string(arrayOf(2, same(1000, "\xa0"))), string(arrayOf(1000, "\x80")) + "\x01"},
			[]string{"\xc0", "\x90", "\x91\x80", "\x91\x81\xa0\xa0", string(arrayOf(100, "\x80"))}},
		{"Array of URLValues", func() anyPayload { return urlValuesArrays.New() },
			[]string{string(arrayOf(1000, "\x80")), string(arrayOf(2, keys(1000, "\x90")))}, []string{"\x91\x80", string(arrayOf(100, "\x80"))}},
		{"Array of Bytes", func() anyPayload { return bytesArrays.New() },
			[]string{string(arrayOf(1000, "\xc0")), string(arrayOf(10, bins))}, []string{"\xc0", "\x90", "\x91\xc4\x00", string(arrayOf(100, "\xc4\x01a"))}},
		{"Array of Array", func() anyPayload { return nestedArrays.New() },
			[]string{string(arrayOf(2, string(arrayOf(1000, "\xc0")))), string(arrayOf(2, string(arrayOf(10, bins))))},
			[]string{"\x90", "\x92\xc0\x90", string(arrayOf(100, "\x91\xc4\x00"))}},
	} {
		for _, small := range c.small {
			plain, err := heldBy(c.fresh, []byte(small), func() {})
			require.NoError(t, err)
			for _, large := range c.large {
				held, err := heldBy(c.fresh, []byte(small), func() {
					var all []anyPayload
					for range 100 {
						all = append(all, c.fresh())
						_, _ = all[len(all)-1].UnmarshalMsg([]byte(large)) // some are refused at their end
					}
					for _, p := range all {
						p.(Recycler).Recycle()
					}
				})
				require.NoError(t, err)
				require.LessOrEqual(t, held, plain+plain/4+64, "%.20x of %s after %.20x", small, c.name, large)
			}
		}
	}
}

func TestTypes_BytesTakeNoMoreThanTheirsAsElements(t *testing.T) {
	a := NewArrayOf(func() *Bytes { return NewBytesCap(4096) }).New()
	mustUnmarshal(t, a, []byte("\x94\xc0\xc4\x00\xc4\x01a\xc4\x11aaaaaaaaaaaaaaaaa"))
	for i, most := range []int{0, 0, 1, bytepool.MinCap} {
		require.LessOrEqual(t, cap(*a.Value()[i]), most)
	}
	b := new(Bytes)
	mustUnmarshal(t, b, []byte("\xc4\x00"))
	require.NotNil(t, *b)
	require.Zero(t, cap(*b))
}

func TestTypes_LargeMapsAreReusedForAsManyEntries(t *testing.T) {
	for n := slotsOfGroup + 1; n <= maxKept; n++ {
		for _, m := range []int{n, n + 1} {
			// Room for so many is there anyway, with at most 7 of 8 slots used.
			slots := slotsOfGroup << (1 + classOf(m))
			require.LessOrEqual(t, m, slots*7/8)
			require.Greater(t, m, slots/2*7/8)
		}
	}
	var pool mapPool
	for _, n := range []int{0, 1, slotsOfGroup, slotsOfGroup + 1, 14, 15, 28, 29, 896, 897, maxKept, maxKept + 1} {
		m := make(MSS)
		for i := range n {
			m[strconv.Itoa(i)] = ""
		}
		recycleMap(&pool, &m)
		require.Equal(t, n > slotsOfGroup, m == nil)
		require.Empty(t, makeMap[MSS](&pool, n))
	}
}
