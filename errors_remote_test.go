package grid

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid/internal/rawpeer"
)

var (
	errNotLeader = errors.New("not the leader")
	errBusy      = errors.New("busy")
)

// atCaller is a RemoteErr as it arrives.
func atCaller(t testing.TB, r *RemoteErr) *RemoteErr {
	t.Helper()
	var m message
	m.setRemoteErr(r, ourCaps)
	require.LessOrEqual(t, len(m.Payload), maxErrorText)
	var got *RemoteErr
	require.True(t, errors.As(m.payloadErr(), &got))
	return got
}

func TestRemoteErr_IsWhatItWraps(t *testing.T) {
	remote := NewRemoteErrCode("moved", fmt.Errorf("disk 3: %w", errBusy))
	for name, c := range map[string]struct {
		err   error
		wraps []error
	}{
		"alone":          {errNotLeader, []error{errNotLeader}},
		"wrapped":        {fmt.Errorf("group 7: %w", errNotLeader), []error{errNotLeader}},
		"twice":          {fmt.Errorf("a: %w", fmt.Errorf("b: %w", errNotLeader)), []error{errNotLeader, errors.New("b: not the leader")}},
		"two":            {fmt.Errorf("%w, %w", errNotLeader, errBusy), []error{errNotLeader, errBusy}},
		"joined":         {errors.Join(errNotLeader, nil, fmt.Errorf("b: %w", errBusy)), []error{errNotLeader, errBusy}},
		"of a file":      {&fs.PathError{Op: "open", Path: "x", Err: fs.ErrNotExist}, []error{fs.ErrNotExist}},
		"another host's": {fmt.Errorf("via b: %w", remote), []error{errBusy, errors.New("disk 3: busy"), remote}},
		"its value":      {fmt.Errorf("via b: %w", *remote), []error{errBusy, errors.New("disk 3: busy"), *remote}},
		"of a local end": {fmt.Errorf("%w: %w", errBusy, io.EOF), []error{errBusy}},
		"the same text":  {fmt.Errorf("%w", errBusy), []error{errBusy}},
		"nil inside":     {fmt.Errorf("a: %w", noRemote), nil},
	} {
		here := NewRemoteErr(c.err)
		for where, r := range map[string]*RemoteErr{"at the handler": here, "at the caller": atCaller(t, here)} {
			require.EqualError(t, r, c.err.Error(), "%s, %s", name, where)
			for _, e := range c.wraps {
				require.ErrorIs(t, r, e, "%s, %s", name, where)
				require.ErrorIs(t, fmt.Errorf("call: %w", r), e, "%s, %s", name, where)
			}
			require.NotErrorIs(t, r, errors.New("something else"))
			require.NotErrorIs(t, r, io.EOF)
		}
	}
	require.ErrorIs(t, NewRemoteErrf("group %d: %w", 7, errNotLeader), errNotLeader)
	require.NotErrorIs(t, NewRemoteErrf("group %d: %v", 7, errNotLeader), errNotLeader)
	require.NotErrorIs(t, errNotLeader, NewRemoteErr(errNotLeader), "what is here is not the remote's")
}

// noRemote is a nil pointer that is not nil.
var noRemote error = (*RemoteErr)(nil)

// Nothing that is said to be wrapped is a local condition, wrapped in whatever.
func TestRemoteErr_WrapsNoLocalCondition(t *testing.T) {
	local := append(append([]error{}, packageErrors...), localConditions...)
	require.Subset(t, local, []error{context.Canceled, context.DeadlineExceeded, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, os.ErrDeadlineExceeded})
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(errBusy)
	targets := append(local, disconnected("http://b", errBusy), overloadedf("MaxHandlers", "full"), protocolErrorf("odd"),
		tooLargeError(2, 1), contextError(ended), errNoConnection)
	for _, e := range targets {
		text := e.Error()
		for _, r := range []*RemoteErr{
			NewRemoteErr(fmt.Errorf("x: %w", e)), NewRemoteErr(errors.Join(errBusy, e)), NewRemoteErrString(text),
			{"x", &errorDetails{code: text, wrapped: []string{text}}},
		} {
			for _, err := range []error{r, atCaller(t, r), *r, fmt.Errorf("call: %w", r), refusal(text)} {
				for _, target := range targets {
					if target == error(ErrOverloaded) && strings.HasPrefix(text, "grid: overloaded: ") {
						continue // a refusal by a limit is one
					}
					require.False(t, errors.Is(err, target), "%v is %v", err, target)
				}
				var disconnect *disconnectError
				require.False(t, errors.As(err, &disconnect))
			}
		}
	}
}

func TestRemoteErr_Code(t *testing.T) {
	r := NewRemoteErrCode("not_leader", fmt.Errorf("group 7: %w", errNotLeader))
	for _, r := range []*RemoteErr{r, atCaller(t, r)} {
		require.Equal(t, "not_leader", r.Code())
		require.EqualError(t, r, "group 7: not the leader")
		require.ErrorIs(t, r, errNotLeader)
		require.Equal(t, "not_leader", ErrorCode(fmt.Errorf("call: %w", r)))
	}
	outer := NewRemoteErr(fmt.Errorf("via b: %w", r))
	require.Equal(t, "not_leader", outer.Code(), "the code of what it wraps")
	other := NewRemoteErrCode("other", outer)
	require.Equal(t, "other", other.Code())
	require.Equal(t, "not_leader", outer.Code(), "the one before has not changed")
	require.ErrorIs(t, other, errNotLeader)
	require.Equal(t, "other", NewRemoteErr(errors.Join(other, r)).Code(), "the first of several")
	require.Empty(t, NewRemoteErrCode("", r).Code())
	require.Equal(t, "plain", atCaller(t, NewRemoteErrCode("plain", errBusy)).Code())

	require.Nil(t, NewRemoteErrCode("x", nil))
	require.Nil(t, NewRemoteErrCode("x", noRemote))
	long := NewRemoteErrCode(strings.Repeat("é", 100), errBusy).Code()
	require.Equal(t, strings.Repeat("é", maxErrorCode/2), long)
	long = NewRemoteErrCode(strings.Repeat("é", 31)+"x"+"€€", errBusy).Code()
	require.Equal(t, strings.Repeat("é", 31)+"x", long, "between two characters, and without a mark")
	for _, none := range []error{nil, errBusy, NewRemoteErr(errBusy), noRemote, RemoteErr{}} {
		require.Empty(t, ErrorCode(none))
	}
}

// What an application's errors wrap has no bound, may be wrong and may go in circles; what is taken
// of it is the innermost.
func TestRemoteErr_TakesABoundedPartOfWhatAnErrorWraps(t *testing.T) {
	chain := errNotLeader
	for i := range 100 {
		chain = fmt.Errorf("%d: %w", i, chain)
	}
	many := make([]error, 3*maxErrorTree)
	for i := range many {
		many[i] = fmt.Errorf("error %d", i)
	}
	large := fmt.Errorf("%s: %w", strings.Repeat("x", maxWrappedText), errNotLeader)
	for name, c := range map[string]struct {
		err   error
		wraps error
	}{
		"a chain":       {chain, errNotLeader},
		"many":          {errors.Join(many...), many[0]},
		"a large one":   {fmt.Errorf("x: %w", large), errNotLeader},
		"larger ones":   {fmt.Errorf("x: %w", errors.Join(errNotLeader, textError(strings.Repeat("y", 1000)), textError(strings.Repeat("z", 1<<20)))), errNotLeader},
		"8 KiB":         {errors.Join(append([]error{errNotLeader}, largeErrors(20)...)...), errNotLeader},
		"in circles":    {&circle{}, errors.New("in circles 1")},
		"a cycle":       {errors.Join(newCycle(), errNotLeader), errNotLeader},
		"behind one":    {newCycle(errNotLeader), errNotLeader},
		"panics":        {fmt.Errorf("%w, %w", unwrapPanics{}, errNotLeader), errNotLeader},
		"no text":       {joined{(*fs.PathError)(nil), errNotLeader}, errNotLeader},
		"the same ones": {errors.Join(errBusy, errBusy, errBusy), errBusy},
	} {
		r := NewRemoteErr(c.err)
		require.ErrorIs(t, r, c.wraps, name)
		require.LessOrEqual(t, len(r.more.wrapped), maxWrapped, name)
		require.LessOrEqual(t, r.more.bytes, maxWrappedBytes, name)
		got := atCaller(t, r)
		require.ErrorIs(t, got, c.wraps, name)
		require.Equal(t, r.more, got.more, name)
	}
	require.Nil(t, NewRemoteErr(errBusy).more, "nothing is kept for one that wraps none")
}

func largeErrors(n int) (all []error) {
	for i := range n {
		all = append(all, textError(fmt.Sprint(i, strings.Repeat("x", 1000))))
	}
	return all
}

type textError string

func (e textError) Error() string { return string(e) }

type circle struct{ n int }

func (c *circle) Error() string { return fmt.Sprintf("in circles %d", c.n%2) }
func (c *circle) Unwrap() error { return &circle{c.n + 1} }

// cycle wraps itself, several times, and others.
type cycle struct{ wraps []error }

func newCycle(others ...error) *cycle {
	c := new(cycle)
	c.wraps = append([]error{c, fmt.Errorf("round: %w", c), c}, others...)
	return c
}

func (*cycle) Error() string     { return "cycle" }
func (c *cycle) Unwrap() []error { return c.wraps }

type unwrapPanics struct{}

func (unwrapPanics) Error() string { return "panics" }
func (unwrapPanics) Unwrap() error { panic("no") }

type joined []error

func (joined) Error() string     { return "joined" }
func (j joined) Unwrap() []error { return j }

// The text gives way to what goes with it, so that both travel as one message.
func TestRemoteErr_LargeOneTravelsAsOneMessage(t *testing.T) {
	r := NewRemoteErrCode("code", fmt.Errorf("%s: %w", strings.Repeat("x", 1<<20), errors.Join(append(largeErrors(7), errNotLeader)...)))
	got := atCaller(t, r)
	require.ErrorIs(t, got, errNotLeader)
	require.Equal(t, "code", got.Code())
	require.Greater(t, len(got.Error()), maxErrorText-10<<10)
	require.True(t, strings.HasSuffix(got.Error(), "..."))
}

// Without the extension the text alone travels, as it always has.
func TestRemoteErr_TravelsAsItsTextWithoutTheExtension(t *testing.T) {
	r := NewRemoteErrCode("code", fmt.Errorf("x: %w", errBusy))
	var m message
	m.setRemoteErr(r, ourCaps&^capErrors)
	require.Equal(t, message{Flags: flagPayloadIsErr, Payload: []byte("x: busy")}, m)
	m = message{}
	m.setRemoteErr(NewRemoteErr(errBusy), ourCaps)
	require.Equal(t, message{Flags: flagPayloadIsErr, Payload: []byte("busy")}, m, "nor where there is no more to say")
}

// The example of docs/protocol.md, section 9.
func TestRemoteErr_OnTheWire(t *testing.T) {
	noDisk := errors.New("no such disk")
	r := NewRemoteErrCode("nodisk", fmt.Errorf("disk 3: %w", noDisk))
	m := message{MuxID: 1, Op: opResponse, Flags: flagEOF}
	m.setRemoteErr(r, ourCaps)
	wire := rawpeer.Unhex(t, strings.ReplaceAll("97 01 00 00 00 0f 0e c4 3c 83 a5 4572726f72 b4 6469736b20333a206e6f2073756368206469736b"+
		"a4 436f6465 a6 6e6f6469736b a5 5772617073 91 ac 6e6f2073756368206469736b", " ", ""))
	require.Equal(t, wire, m.appendTo(nil))
	var got message
	_, err := got.parse(wire)
	require.NoError(t, err)
	err = got.payloadErr()
	require.EqualError(t, err, "disk 3: no such disk")
	require.ErrorIs(t, err, noDisk)
	require.Equal(t, "nodisk", ErrorCode(err))
}

// What a peer sends in place of details is taken as far as it may go, or is an error.
func TestRemoteErr_FromALyingPeer(t *testing.T) {
	str := func(b []byte, s ...string) []byte {
		for _, s := range s {
			b = msgp.AppendString(b, s)
		}
		return b
	}
	of := func(n uint32, keys ...string) []byte { return str(msgp.AppendMapHeader(nil, n), keys...) }
	wraps := func(n int, text string) []byte {
		b := msgp.AppendArrayHeader(of(2, "Error", "x", "Wraps"), uint32(n))
		for i := range n {
			b = str(b, fmt.Sprint(i, text))
		}
		return b
	}
	for name, b := range map[string][]byte{
		"nothing":            nil,
		"a text":             []byte("no such disk"),
		"nil":                {0xc0},
		"no map":             {0x93, 1, 2, 3},
		"an empty map":       {0x80},
		"no text":            of(1, "Code", "x"),
		"a claimed map":      {0xdf, 0xff, 0xff, 0xff, 0xff},
		"a claimed text":     append(of(1, "Error"), 0xdb, 0xff, 0xff, 0xff, 0xff),
		"claimed texts":      append(of(2, "Error", "x", "Wraps"), 0xdd, 0xff, 0xff, 0xff, 0xff),
		"a number as text":   append(of(1, "Error"), 1),
		"a number as code":   append(of(2, "Error", "x", "Code"), 1),
		"a text as texts":    of(2, "Error", "x", "Wraps", "y"),
		"a number as a text": append(of(2, "Error", "x", "Wraps"), 0x91, 1),
		"a number as a key":  {0x81, 1, 1},
		"cut off":            of(2, "Error", "x", "Code")[:12],
		"stray bytes":        append(of(1, "Error", "x"), 1),
		"deep":               append(of(2, "Error", "x", "y"), append([]byte(strings.Repeat("\x91", 100)), 1)...),
	} {
		err := decodeRemoteErr(b)
		require.ErrorIs(t, err, ErrProtocol, name)
		require.False(t, IsRemoteErr(err), name)
	}
	for name, b := range map[string][]byte{
		"many":        wraps(10_000, ""),
		"large":       wraps(20, strings.Repeat("x", maxWrappedText)),
		"8 KiB":       wraps(16, strings.Repeat("x", maxWrappedText-2)),
		"a code":      of(2, "Error", "x", "Code", strings.Repeat("x", 1<<16)),
		"a text":      of(1, "Error", strings.Repeat("x", 1<<17)),
		"twice":       append(msgp.AppendArrayHeader(append(wraps(16, "a"), msgp.AppendString(nil, "Wraps")...), 1), msgp.AppendString(nil, "b")...),
		"unknown key": append(of(2, "Error", "x", "More"), 0x92, 1, 2),
	} {
		if name == "twice" {
			b[0]++
		}
		var r *RemoteErr
		require.True(t, errors.As(decodeRemoteErr(b), &r), name)
		requireBoundedErr(t, r)
	}
}

// requireBoundedErr fails if more is kept of a peer's error than may be.
func requireBoundedErr(t testing.TB, r *RemoteErr) {
	t.Helper()
	require.LessOrEqual(t, len(r.text), maxErrorText)
	if r.more == nil {
		return
	}
	require.LessOrEqual(t, len(r.Code()), maxErrorCode)
	require.LessOrEqual(t, len(r.more.wrapped), maxWrapped)
	n := 0
	for _, text := range r.more.wrapped {
		require.LessOrEqual(t, len(text), maxWrappedText)
		n += len(text)
	}
	require.Equal(t, n, r.more.bytes)
	require.LessOrEqual(t, n, maxWrappedBytes)
}
