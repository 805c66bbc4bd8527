package attack

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/rig"
)

var (
	mssArrays       = grid.NewArrayOf(grid.NewMSS)
	urlValuesArrays = grid.NewArrayOf(grid.NewURLValues)
	bytesArrays     = grid.NewArrayOf(grid.NewBytes)
	nestedArrays    = grid.NewArrayOf(mssArrays.New)
)

// arrayOf is an array of n times element.
func arrayOf(n int, element string) []byte {
	return append(msgp.AppendArrayHeader(nil, uint32(n)), strings.Repeat(element, n)...)
}

// An empty map is a byte on the wire and 64 in memory, one of one entry 3 and 352.
func TestTyped_ArrayThatTakesMuchMoreThanItsBytesIsRefused(t *testing.T) {
	const want = "takes more than 32 times the "
	requireRefused(t, mssArrays.New, arrayOf(100_000, "\x80"), nil, want)
	requireRefused(t, mssArrays.New, arrayOf(30_000, "\x81\xa0\xa0"), nil, want)
	requireRefused(t, urlValuesArrays.New, arrayOf(30_000, "\x81\xa0\x90"), nil, want)
	requireRefused(t, nestedArrays.New, arrayOf(100_000, "\x90"), nil, want)
	requireRefused(t, nestedArrays.New, arrayOf(100, string(arrayOf(1000, "\x80"))), nil, want)
}

// requireMemory has b decoded by a handler and by a caller, and requires that the value which they
// hold takes no more memory than it may.
func requireMemory[T grid.RoundTripper](t *testing.T, newT func() T, b []byte) {
	t.Helper()
	most := int64(32*len(b) + 256<<10 + 1<<20) // and what the calls themselves take
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		release := make(chan struct{})
		single := grid.NewSingleHandler(typedSingle, newT, newT)
		require.NoError(t, single.Register(g.Manager(1), func(T) (none T, _ *grid.RemoteErr) {
			<-release
			return none, nil
		}))
		require.NoError(t, g.Manager(1).RegisterSingleHandler(rawSingle, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }))
		before := rig.Heap()
		done := make(chan error)
		go func() {
			_, err := c.SingleRequest(t.Context(), typedSingle, b)
			done <- err
		}()
		synctest.Wait()
		require.Less(t, rig.Heap()-before, most, "a request of %d bytes", len(b))
		close(release)
		require.NoError(t, <-done)

		before = rig.Heap()
		answers := grid.NewSingleHandler[*raw, T](rawSingle, func() *raw { return new(raw) }, newT)
		answer, err := answers.Call(t.Context(), c, &raw{b})
		require.NoError(t, err)
		require.Less(t, rig.Heap()-before, most, "an answer of %d bytes", len(b))
		runtime.KeepAlive(answer)
	})
	runtime.KeepAlive(b)
}

// A Bytes of a few bytes took a page in memory, and what came twice in a map the room for two.
func TestTyped_HeldValuesTakeAtMost32TimesTheirBytes(t *testing.T) {
	if bytepool.Strict {
		t.Skip("under the race detector the pool of bytes takes more memory of its own: make test-long runs it")
	}
	for _, e := range []string{"\xc0", "\xc4\x00", "\xc4\x01a"} {
		requireMemory(t, bytesArrays.New, arrayOf(300_000/len(e), e))
	}
	for _, e := range []string{"\xc0", "\x89" + strings.Repeat("\xa0\xa0", 9)} {
		requireMemory(t, mssArrays.New, arrayOf(300_000/len(e), e))
	}
	requireMemory(t, mssArrays.New, arrayOf(900, "\x81\xa0\xa0"))
	requireMemory(t, nestedArrays.New, arrayOf(100, string(arrayOf(3000, "\xc0"))))
	requireMemory(t, urlValuesArrays.New, arrayOf(750, "\x81\xa0\x91\xa0"))

	duplicates := append(msgp.AppendMapHeader(nil, 1000), strings.Repeat("\xa0\xa0", 1000)...)
	requireMemory(t, grid.NewMSS, duplicates)
	lists := msgp.AppendMapHeader(nil, 1)
	lists = msgp.AppendString(lists, "")
	requireMemory(t, grid.NewURLValues, append(lists, arrayOf(300_000, "\xa0")...))
}

// Small arrays of what takes much may be more than 32 times their bytes, each, but what many of them
// take is counted.
func TestTyped_SmallArraysCountWhatTheyTake(t *testing.T) {
	b := arrayOf(740, "\x81\xa0\xa0")
	const limit = 40 << 20
	edit := func(_ int, o *grid.ManagerOptions) { o.MaxMessageSize, o.MaxHostBytes = 1<<20, limit }
	for _, kind := range []string{"request", "stream", "message of a stream"} {
		t.Run(kind, func(t *testing.T) {
			rig.InPair(t, edit, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				release, let := rig.Gate(t)
				single := grid.NewSingleHandler(typedSingle, mssArrays.New, grid.NewNoPayload)
				require.NoError(t, single.Register(g.Manager(1), func(*grid.Array[*grid.MSS]) (grid.NoPayload, *grid.RemoteErr) {
					<-release
					return grid.NoPayload{}, nil
				}))
				stream := grid.NewStream(typedStream, mssArrays.New, mssArrays.New, grid.NewNoPayload)
				stream.WithPayload = kind == "stream"
				stream.WithInCapacity(32)
				require.NoError(t, stream.Register(g.Manager(1), func(ctx context.Context, _ *grid.Array[*grid.MSS], _ <-chan *grid.Array[*grid.MSS], _ chan<- grid.NoPayload) *grid.RemoteErr {
					<-release
					return nil
				}))
				before := rig.Heap()
				var errs []<-chan error
				for range 300 {
					errs = append(errs, rig.InBackground(func() error {
						if kind == "request" {
							_, err := c.SingleRequest(t.Context(), typedSingle, b)
							return err
						}
						st, err := c.NewStream(t.Context(), typedStream, b)
						if err != nil {
							return err
						}
						if kind != "stream" {
							for range 16 {
								_ = st.Send(b)
							}
						}
						return rig.Consume(st)
					}))
				}
				synctest.Wait()
				kept, grown := g.Conn(1, 0).Stats().KeptBytes, rig.Heap()-before
				t.Logf("%d KiB are kept, the heap has grown by %d", kept>>10, grown>>10)
				require.LessOrEqual(t, kept, int64(limit))
				most := int64(limit + limit/4 + 8<<20)
				if bytepool.Strict {
					most = 2*most + 16<<20
				}
				require.Less(t, grown, most)
				let()
				refused := 0
				for _, err := range errs {
					if err := <-err; err != nil {
						require.ErrorIs(t, err, grid.ErrOverloaded)
						require.ErrorContains(t, err, "MaxHostBytes is")
						refused++
					}
				}
				require.Greater(t, refused, 100)
				synctest.Wait()
				require.Zero(t, g.Conn(1, 0).Stats().KeptBytes)
				require.Zero(t, g.Conn(1, 0).Stats().Handlers)
			})
		})
	}
}

// msgp bounds what is in a slice or a map where it is told to.
func TestTyped_GeneratedCodeRefusesWhatIsBeyondItsLimit(t *testing.T) {
	newListing := func() *listing { return new(listing) }
	requireRefused(t, newListing, field("Names", string(arrayOf(1001, "\xa0"))), nil, "limit")
	requireRefused(t, newListing, append(append(msgp.AppendString(msgp.AppendMapHeader(nil, 1), "Sizes"), 0xde, 0, 101), strings.Repeat("\xa0\x01", 101)...), nil, "limit")
	b := field("Names", string(arrayOf(1000, "\xa0")))
	rest, err := newListing().UnmarshalMsg(b)
	require.NoError(t, err)
	require.Empty(t, rest)
}
