package grid

import (
	"bytes"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/bytepool"
)

func TestPayload_MapAccess(t *testing.T) {
	m := NewMSS()
	m.Set("a", "1")
	m.Set("a", "2")
	require.Equal(t, "2", m.Get("a"))
	require.Empty(t, m.Get("b"))
	require.Empty(t, (*MSS)(nil).Get("a"))
	m = NewMSSWith(nil)
	require.Empty(t, m.Get("a"))
	m.Set("a", "1")
	require.Equal(t, MSS{"a": "1"}, *m)

	u := NewURLValuesWith(url.Values{"a": {"1", "2"}})
	require.Equal(t, "a=1&a=2", u.Values().Encode())
	require.Nil(t, (*URLValues)(nil).Values())
	require.Nil(t, NewURLValuesWith(nil).Values())
}

func TestPayload_BytesOwnership(t *testing.T) {
	require.Zero(t, cap(*NewBytes()))
	require.Equal(t, Bytes("abc"), append(*NewBytes(), "abc"...))
	require.GreaterOrEqual(t, cap(*NewBytesCap(300 << 10)), 300<<10)

	src := []byte("abc")
	require.Same(t, &src[0], &(*NewBytesWith(src))[0], "taken over")
	require.NotSame(t, &src[0], &(*NewBytesWithCopyOf(src))[0], "copied")

	b := NewBytesCap(16)
	array := &(*b)[:1][0]
	mustUnmarshal(t, b, []byte("\xc4\x03abc"))
	require.Same(t, array, &(*b)[0], "decoded into its own array")
	large := bytes.Repeat([]byte{7}, 100<<10)
	mustUnmarshal(t, b, mustMarshal(t, NewBytesWith(large)))
	require.Equal(t, large, []byte(*b))
}

func TestPayload_RecycledStartsEmpty(t *testing.T) {
	for _, kind := range payloadKinds {
		want := mustMarshal(t, kind.fresh())
		for range 100 {
			p := kind.fresh()
			require.Equal(t, want, mustMarshal(t, p), kind.name)
			mustUnmarshal(t, p, mustMarshal(t, kind.full()))
			p.(Recycler).Recycle()
		}
	}
}

func TestPayload_RecycleOfNilIsSafe(t *testing.T) {
	for _, r := range []Recycler{
		(*MSS)(nil), (*URLValues)(nil), (*Bytes)(nil), (*JSON[any])(nil), (*Array[*MSS])(nil),
		NewMSSWith(nil), NewURLValuesWith(nil), NewBytesWith(nil), mssArrays.New().Append(nil),
		&JSON[any]{}, &Array[*MSS]{}, new(MSS), new(URLValues), new(Bytes),
	} {
		require.NotPanics(t, r.Recycle, "%T", r)
	}
	require.NotNil(t, *NewMSS(), "made anew where the recycled one had no map")
	require.NotNil(t, *NewURLValues())
}

func TestPayload_RecycleKeepsNothingHuge(t *testing.T) {
	values := make(map[string]string)
	lists := make(map[string][]string)
	array := mssArrays.New()
	for i := range maxKept + 1 {
		values[fmt.Sprint(i)] = ""
		lists[fmt.Sprint(i)] = nil
		array.Append(nil)
	}
	// White box: these are the pool's by now, and this test runs alone.
	m, u := NewMSSWith(maps.Clone(values)), NewURLValuesWith(lists)
	m.Recycle()
	require.Nil(t, *m)
	u.Recycle()
	require.Nil(t, *u)
	array.Recycle()
	require.Nil(t, array.list)

	m = NewMSSWith(values)
	mustUnmarshal(t, m, []byte("\x81\xa1a\xa1b"))
	require.Len(t, values, maxKept+1, "decoding gives a huge map up as well")
	require.Equal(t, MSS{"a": "b"}, *m)
}

func TestPayload_RecycleOfBytesGivesTheArrayBack(t *testing.T) {
	b := NewBytesWithCopyOf([]byte("secret"))
	array := []byte((*b)[:cap(*b)])
	b.Recycle()
	require.Nil(t, *b)
	if bytepool.Strict {
		require.Equal(t, bytes.Repeat(array[:1], 6), array[:6], "poisoned by the pool")
	}
}

func TestPayload_PoolsAreSafeForConcurrentUse(t *testing.T) {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				for _, kind := range payloadKinds {
					p, full := kind.fresh(), kind.full()
					b, _ := full.MarshalMsg(nil)
					if _, err := p.UnmarshalMsg(b); err != nil || !reflect.DeepEqual(kind.content(p), kind.content(full)) {
						t.Errorf("%s: %v, %v", kind.name, kind.content(p), err)
					}
					p.(Recycler).Recycle()
					full.(Recycler).Recycle()
				}
			}
		})
	}
	wg.Wait()
}
