package gridraft

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"slices"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

// Buffers are used again as soon as they are decoded.
func TestDecode_KeepsNothingOfTheMessage(t *testing.T) {
	e := getEncoder()
	defer e.put()
	want := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ID: []byte("leader")}, Entries: []*raft.Log{{Data: []byte("some data"), Extensions: []byte("more")}}}
	b, err := e.encode(want)
	require.NoError(t, err)
	got := new(raft.AppendEntriesRequest)
	require.NoError(t, decode(b, got))
	clear(b)
	require.Equal(t, want, got)
}

func TestDecode_RefusesWhatIsLeftOver(t *testing.T) {
	b, err := encodeMessage(&raft.AppendEntriesResponse{Term: 3})
	require.NoError(t, err)
	var resp raft.AppendEntriesResponse
	require.NoError(t, decode(b, &resp))
	require.EqualValues(t, 3, resp.Term)
	require.ErrorContains(t, decode(append(b, 0), &resp), "1 bytes too many")
	for n := range b {
		require.ErrorContains(t, decode(b[:n], &resp), "gridraft: decode: ")
	}
	require.Error(t, decode(nil, &resp))
}

// parted returns the messages of a request, and how they are received.
func parted(t testing.TB, b []byte, size int) (messages [][]byte, recv func() ([]byte, error)) {
	room := append(slices.Clone(b), 0xff)
	require.NoError(t, sendParts(func(m []byte) error {
		require.LessOrEqual(t, len(m), size+1)
		messages = append(messages, slices.Clone(m))
		return nil
	}, room[:len(b)], size))
	require.Equal(t, b, room[:len(b)], "what was sent is as it was")
	return messages, receiver(messages)
}

func receiver(messages [][]byte) func() ([]byte, error) {
	return func() ([]byte, error) {
		if len(messages) == 0 {
			return nil, io.EOF
		}
		next := messages[0]
		messages = messages[1:]
		return append(grid.GetByteBuffer(), next...), nil
	}
}

func TestParts_OfAllSizes(t *testing.T) {
	e := getEncoder()
	defer e.put()
	for size := 1; size < 70; size++ {
		for n := range 30 {
			want := &raft.AppendEntriesRequest{Term: 1, RPCHeader: raft.RPCHeader{ID: bytes.Repeat([]byte("x"), n)}}
			b, err := e.encode(want)
			require.NoError(t, err)
			messages, recv := parted(t, b, size)
			require.Len(t, messages, (len(b)+size-1)/size)
			p := partReader{host: new(hostParts), recv: recv, max: len(b)}
			got := new(raft.AppendEntriesRequest)
			require.NoError(t, p.next(got))
			require.Equal(t, want, got)
			require.Equal(t, io.EOF, p.next(got))

			_, recv = parted(t, b, size)
			require.ErrorIs(t, (&partReader{host: new(hostParts), recv: recv, max: len(b) - 1}).next(got), ErrRequestTooLarge)

			if len(messages) > 1 {
				recv = receiver(messages[:len(messages)-1])
				require.ErrorIs(t, (&partReader{host: new(hostParts), recv: recv, max: len(b)}).next(got), io.ErrUnexpectedEOF)
			}
		}
	}
}

func TestParts_ThatAreNone(t *testing.T) {
	for _, m := range []string{"", "\x02", "x\x02", "\x01", "\x00", "\xc0\xc0\x00", "\xc1\x00"} {
		p := partReader{host: new(hostParts), recv: receiver([][]byte{[]byte(m)}), max: 100}
		require.Error(t, p.next(new(raft.AppendEntriesRequest)), "%q", m)
	}
}

// What raft would panic at does not get there.
func TestCheck_RefusesWhatRaftPanicsAt(t *testing.T) {
	good := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "a", Address: "b"}}})
	for i, c := range []any{
		&raft.AppendEntriesRequest{Entries: []*raft.Log{{Index: 1, Type: raft.LogConfiguration, Data: good}}},
		&raft.AppendEntriesRequest{Entries: []*raft.Log{{Index: 1, Data: []byte("\xff")}}},
		&raft.InstallSnapshotRequest{SnapshotVersion: 1, Configuration: good},
		&raft.InstallSnapshotRequest{},
		&raft.RequestVoteRequest{},
	} {
		require.NoError(t, check(c), i)
	}
	for i, c := range []any{
		&raft.AppendEntriesRequest{Entries: []*raft.Log{{Index: 1}, nil}},
		&raft.AppendEntriesRequest{Entries: []*raft.Log{{Index: 1, Type: raft.LogConfiguration}}},
		&raft.AppendEntriesRequest{Entries: []*raft.Log{{Index: 1, Type: raft.LogConfiguration, Data: good[1:]}}},
		&raft.InstallSnapshotRequest{SnapshotVersion: 1},
		&raft.InstallSnapshotRequest{SnapshotVersion: 1, Configuration: []byte("\xc1")},
		&raft.InstallSnapshotRequest{Size: -1},
	} {
		require.Error(t, check(c), i)
	}
	require.Panics(t, func() { raft.DecodeConfiguration(good[1:]) }, "or there is no need for it")
}

// FuzzRequest has a peer send anything. What is taken can be sent on, and is the same then.
func FuzzRequest(f *testing.F) {
	e := getEncoder()
	b, err := e.encode(&raft.AppendEntriesRequest{Term: 1, RPCHeader: raft.RPCHeader{ID: []byte("l")}, Entries: []*raft.Log{{Index: 1, Data: []byte("d")}, nil}})
	require.NoError(f, err)
	f.Add(slices.Clone(b), uint8(3))
	f.Add([]byte("\xde\xff\xff"), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, size uint8) {
		for _, c := range []any{new(raft.RequestVoteRequest), new(raft.InstallSnapshotRequest), new(raft.AppendEntriesResponse)} {
			if decode(b, c) == nil {
				_ = check(c)
			}
		}
		whole := new(raft.AppendEntriesRequest)
		err := decode(b, whole)
		if len(b) == 0 {
			return
		}
		_, recv := parted(t, b, int(size)+1)
		got := new(raft.AppendEntriesRequest)
		partErr := (&partReader{host: new(hostParts), recv: recv, max: len(b)}).next(got)
		if (err == nil) != (partErr == nil) {
			t.Fatalf("whole: %v; in parts: %v", err, partErr)
		}
		if err != nil || check(whole) != nil {
			return
		}
		if fmt.Sprint(whole.Term, len(whole.Entries)) != fmt.Sprint(got.Term, len(got.Entries)) {
			t.Fatal("in parts it is another request")
		}
	})
}

// A request with more entries than raft sends is refused before it is decoded, however it says so.
func TestDecode_RefusesMoreEntriesThanRaftSends(t *testing.T) {
	request := func(key []byte, entries ...byte) []byte {
		return slices.Concat([]byte{0x82, 0xa4}, []byte("Term"), []byte{7}, key, entries)
	}
	str, bin := []byte("\xa7Entries"), []byte("\xc4\x07Entries")
	many := append([]byte{0xdc, 0x04, 0x01}, bytes.Repeat([]byte{0x80}, maxEntries+1)...)
	for name, c := range map[string]struct {
		b   []byte
		err string
	}{
		"as many as there may be": {request(str, append([]byte{0xdc, 0x04, 0x00}, bytes.Repeat([]byte{0x80}, maxEntries)...)...), ""},
		"one more":                {request(str, many...), "1025 entries"},
		"a name of bytes":         {request(bin, many...), "1025 entries"},
		"a lie":                   {request(str, 0xdd, 0xff, 0xff, 0xff, 0xff), "4294967295 entries"},
		"a map":                   {request(str, 0xde, 0x04, 0x00), "entries: "},
		"none":                    {request(str, 0xc0), ""},
		"twice":                   {slices.Concat([]byte{0x82}, str, []byte{0x90}, str, many), "1025 entries"},
		"an array of fields":      {[]byte{0x91, 0x90}, "decode"},
		"cut off":                 {request(str, 0xdc, 0x04), "decode"},
		"a key that is a number":  {[]byte{0x81, 0x07, 0x90}, "decode"},
	} {
		t.Run(name, func(t *testing.T) {
			err := decode(c.b, new(raft.AppendEntriesRequest))
			if c.err == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.err)
			}
		})
	}
}

// What raft would panic at is refused.
func TestCheck_RefusesEntriesThatRaftPanicsAt(t *testing.T) {
	entry := func(index uint64, kind raft.LogType) *raft.Log { return &raft.Log{Index: index, Type: kind} }
	for name, c := range map[string]struct {
		previous uint64
		entries  []*raft.Log
		err      string
	}{
		"in order":        {4, []*raft.Log{entry(5, raft.LogCommand), entry(6, raft.LogNoop), entry(7, raft.LogBarrier)}, ""},
		"from the first":  {0, []*raft.Log{entry(1, raft.LogCommand)}, ""},
		"nil":             {4, []*raft.Log{entry(5, raft.LogCommand), nil}, "entry 1 of 2 is nil"},
		"a gap":           {4, []*raft.Log{entry(5000, raft.LogCommand)}, "entry 0 of 1 has index 5000, behind 4"},
		"a gap in them":   {4, []*raft.Log{entry(5, raft.LogCommand), entry(7, raft.LogCommand)}, "entry 1 of 2 has index 7"},
		"one twice":       {4, []*raft.Log{entry(5, raft.LogCommand), entry(5, raft.LogCommand)}, "entry 1 of 2 has index 5"},
		"index 0":         {math.MaxUint64, []*raft.Log{entry(0, raft.LogCommand)}, "has index 0"},
		"an unknown type": {4, []*raft.Log{entry(5, 77)}, "entry 0 of 1 is of type 77"},
		"a configuration": {4, []*raft.Log{{Index: 5, Type: raft.LogConfiguration, Data: []byte{1}}}, "configuration"},
		"a huge one":      {4, []*raft.Log{{Index: 5, Type: raft.LogConfiguration, Data: make([]byte, maxConfiguration+1)}}, "configuration of 1048577 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			err := check(&raft.AppendEntriesRequest{PrevLogEntry: c.previous, Entries: c.entries})
			if c.err == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.err)
			}
		})
	}
}

// Requests in parts count towards one limit for each host, until they are answered.
func TestParts_OfOneHostAreBoundedTogether(t *testing.T) {
	host := new(hostParts)
	part := func(b ...byte) func() ([]byte, error) {
		return func() ([]byte, error) { return append(make([]byte, 60), b...), nil }
	}
	one := partReader{host: host, max: 100, recv: part(morePart)}
	other := partReader{host: host, max: 100, recv: part(morePart)}
	_, more, err := one.part(nil)
	require.True(t, more)
	require.NoError(t, err)
	_, _, err = other.part(nil)
	require.ErrorIs(t, err, ErrRequestTooLarge)
	require.ErrorContains(t, err, "would take 120 bytes, MaxRequestSize is 100")
	other.release()
	require.EqualValues(t, 60, host.add(0))
	one.release()
	require.Zero(t, host.add(0))
	whole := partReader{host: host, max: 100, recv: part(lastPart)}
	_, more, err = whole.part(nil)
	require.False(t, more)
	require.NoError(t, err)
	require.Zero(t, host.add(0), "a request in one message is bounded by its size")
}
