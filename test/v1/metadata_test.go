package v1

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Metadata (protocol section 8).

// tagged adds metadata to all calls.
type tagged map[string]string

func (m tagged) InterceptCall(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	for k, v := range m {
		info.AddMetadata(k, v)
	}
	return ctx, nil, nil
}

// servedCalls keeps what is told of the calls that are served.
type servedCalls struct {
	mu    sync.Mutex
	calls []grid.CallInfo
}

func (s *servedCalls) InterceptServe(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, *info)
	return ctx, nil, nil
}

func TestMetadata_OnTheWire(t *testing.T) {
	for _, caps := range []uint64{0, rawpeer.CapWideCredits | rawpeer.CapFragments | rawpeer.CapDrain, rig.AllCaps} {
		inWire(t, rawpeer.Config{Caps: caps}, func(o *grid.ManagerOptions) { o.CallInterceptors = []grid.CallInterceptor{tagged{"k": "v"}} }, func(r *wire) {
			var want []byte
			if caps&rawpeer.CapMetadata != 0 {
				want = []byte{0x81, 0xa1, 'k', 0xa1, 'v'}
			}
			check := func(op uint8, sub bool) rawpeer.Msg {
				r.Helper()
				m := r.Peer.Expect(op)
				require.Equal(r, want, m.Metadata)
				require.Equal(r, want != nil, m.Flags&rawpeer.FlagMetadata != 0)
				require.Equal(r, sub, len(m.Subroute) == 32)
				return m
			}
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			go func() { _, _ = r.Conn.SingleRequest(ctx, rig.Handler, []byte("x")) }()
			check(rawpeer.OpRequest, false)
			go func() { _, _ = r.Conn.Subroute("s").SingleRequest(ctx, rig.Handler, []byte("x")) }()
			check(rawpeer.OpRequest, true)
			go func() { _, _ = r.Conn.Subroute("s").NewStream(ctx, rig.Handler, []byte("x")) }()
			check(rawpeer.OpConnectMux, true)
			if caps&rawpeer.CapFragments == 0 {
				return
			}
			go func() { _, _ = r.Conn.Subroute("s").SingleRequest(ctx, rig.Handler, make([]byte, 200_000)) }()
			require.NotZero(r, check(rawpeer.OpRequest, true).Flags&rawpeer.FlagMore)
			for {
				m := r.Peer.Expect(rawpeer.OpRequest)
				require.Zero(r, m.Flags&(rawpeer.FlagMetadata|rawpeer.FlagSubroute))
				if m.Flags&rawpeer.FlagMore == 0 {
					break
				}
			}
		})
	}
}

// What the caller gives goes with all that it opens, and with its first message alone; interceptors
// have the last word. To a peer without the extension nothing goes.
func TestMetadata_OfTheCallerOnTheWire(t *testing.T) {
	t.Parallel()
	for _, caps := range []uint64{0, rig.AllCaps &^ rawpeer.CapMetadata, rawpeer.CapMetadata, rig.AllCaps} {
		for _, intercepted := range []bool{false, true} {
			inWire(t, rawpeer.Config{Caps: caps}, func(o *grid.ManagerOptions) {
				if intercepted {
					o.CallInterceptors = []grid.CallInterceptor{tagged{"k": "theirs"}}
				}
			}, func(r *wire) {
				want := map[string]string{"k": "v", "": "empty"}
				options := grid.CallOptions{Metadata: want}
				if intercepted {
					want = map[string]string{"k": "theirs", "": "empty"}
				}
				ctx, cancel := context.WithCancel(r.Context())
				defer cancel()
				expect := func(op uint8) {
					r.Helper()
					m := r.Peer.Expect(op)
					require.Equal(r, caps&rawpeer.CapMetadata != 0, m.Flags&rawpeer.FlagMetadata != 0)
					if caps&rawpeer.CapMetadata == 0 {
						require.Nil(r, m.Metadata)
						return
					}
					b := rawpeer.Reader{Bytes: m.Metadata}
					got := map[string]string{}
					for range rawpeer.Read(&b, msgp.ReadMapHeaderBytes) {
						key := rawpeer.Read(&b, msgp.ReadStringBytes)
						got[key] = rawpeer.Read(&b, msgp.ReadStringBytes)
					}
					require.NoError(r, b.End())
					require.Equal(r, want, got)
				}
				for _, caller := range []*grid.Caller{r.Conn.With(options), r.Conn.Subroute("s").With(options)} {
					go func() { _, _ = caller.SingleRequest(ctx, rig.Unused, []byte("x")) }()
					expect(rawpeer.OpRequest)
					go func() { _, _ = caller.NewStream(ctx, rig.Unused, []byte("x")) }()
					expect(rawpeer.OpConnectMux)
					go func() { _, _ = caller.StartStream(ctx, rig.Unused, []byte("x")) }()
					expect(rawpeer.OpConnectMux)
				}
			})
		}
	}
}

// What the peer says is taken as it is, or is an error that names it.
func TestMetadata_FromThePeer(t *testing.T) {
	good := msgp.AppendMapStrStr(nil, map[string]string{"a": "b", "c": ""})
	for _, c := range []struct {
		name     string
		metadata []byte
		want     map[string]string
		text     string // of the answer
		broken   bool   // the link
	}{
		{name: "well", metadata: good, want: map[string]string{"a": "b", "c": ""}},
		{name: "an empty map", metadata: []byte{0x80}, want: map[string]string{}},
		{name: "empty", metadata: []byte{}, text: "protocol violated: metadata"},
		{name: "no map", metadata: []byte{0x93}, text: "protocol violated: metadata"},
		{name: "cut off", metadata: good[:4], text: "protocol violated: metadata"},
		{name: "too much", metadata: append(good[:len(good):len(good)], 1), text: "protocol violated: metadata"},
		{name: "a claim", metadata: []byte{0xdf, 0xff, 0xff, 0xff, 0xff}, text: "protocol violated: metadata"},
		{name: "too long", metadata: msgp.AppendMapStrStr(nil, map[string]string{"a": strings.Repeat("b", rig.MaxMetadata)}), broken: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			seen := new(servedCalls)
			inWire(t, rawpeer.Config{Caps: rig.AllCaps}, func(o *grid.ManagerOptions) { o.ServeInterceptors = []grid.ServeInterceptor{seen} }, func(r *wire) {
				seen.calls = nil
				require.NoError(r, r.Node.RegisterStreamingHandler(rig.Handler, grid.StreamHandler{Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr { return nil }}))
				for _, m := range []rawpeer.Msg{
					{MuxID: 1, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF | rawpeer.FlagMetadata, DeadlineMS: 1000, Payload: []byte("x")},
					{MuxID: 2, Handler: uint8(rig.Handler), Op: rawpeer.OpConnectMux, Flags: rawpeer.FlagEOF | rawpeer.FlagMetadata},
				} {
					m.Metadata = c.metadata
					r.Peer.Send(m)
					if c.broken {
						r.Peer.ExpectClosed()
						return
					}
					if m.Op == rawpeer.OpConnectMux {
						r.Peer.Expect(rawpeer.OpAckMux)
					}
					answer := r.Peer.Recv()
					if c.text == "" {
						require.Zero(r, answer.Flags&rawpeer.FlagPayloadIsErr, string(answer.Payload))
					} else {
						require.NotZero(r, answer.Flags&rawpeer.FlagPayloadIsErr)
						require.Contains(r, string(answer.Payload), c.text)
					}
				}
				synctest.Wait()
				if c.text != "" {
					require.Empty(r, seen.calls)
					return
				}
				require.Len(r, seen.calls, 2)
				for _, call := range seen.calls {
					require.Equal(r, c.want, call.Metadata)
				}
			})
		})
	}
}

// The flag of a peer without the extension means nothing, and neither does metadata where nobody
// wants it, or on other messages.
func TestMetadata_ThatMeansNothing(t *testing.T) {
	request := rawpeer.Msg{MuxID: 1, Handler: uint8(rig.Echo), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF | rawpeer.FlagMetadata, DeadlineMS: 1000, Payload: []byte("x")}
	seen := new(servedCalls)
	inWire(t, rawpeer.Config{}, func(o *grid.ManagerOptions) { o.ServeInterceptors = []grid.ServeInterceptor{seen} }, func(r *wire) {
		seen.calls = nil
		r.Peer.Send(request)
		require.Equal(r, "x", string(r.Peer.Expect(rawpeer.OpResponse).Payload))
		require.Nil(r, seen.calls[0].Metadata)
	})
	inWire(t, rawpeer.Config{Caps: rig.AllCaps}, nil, func(r *wire) {
		request.Metadata = []byte{0x93} // no map
		r.Peer.Send(request)
		require.Equal(r, "x", string(r.Peer.Expect(rawpeer.OpResponse).Payload))
		r.Peer.Send(rawpeer.Msg{MuxID: 7, Op: rawpeer.OpMuxClientMsg, Flags: rawpeer.FlagMetadata, Metadata: []byte{1}})
		r.Peer.Expect(rawpeer.OpDisconnectClientMux)
		r.Alive()
	})
}

// Under a subroute the handler is found by the subroute's ID, which has the handler's in it. That
// is the one that interceptors hear of, whatever the message says beside it.
func TestInterceptor_HearsOfTheHandlerThatRuns(t *testing.T) {
	const runs, said = rig.Handler, 77
	seen := new(servedCalls)
	inWire(t, rawpeer.Config{Caps: rig.AllCaps}, func(o *grid.ManagerOptions) { o.ServeInterceptors = []grid.ServeInterceptor{seen} }, func(r *wire) {
		seen.calls = nil
		require.NoError(r, r.Node.RegisterSingleHandler(runs, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }, "disk"))
		require.NoError(r, r.Node.RegisterStreamingHandler(runs+1, grid.StreamHandler{Subroute: "disk", Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr { return nil }}))
		r.Peer.Send(rawpeer.Msg{
			MuxID: 1, Handler: said, Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF | rawpeer.FlagSubroute,
			DeadlineMS: 1000, Payload: []byte("x"), Subroute: rawpeer.SubrouteID(uint8(runs), "disk"),
		})
		require.Equal(r, "x", string(r.Peer.Expect(rawpeer.OpResponse).Payload))
		r.Peer.Send(rawpeer.Msg{
			MuxID: 2, Handler: said, Op: rawpeer.OpConnectMux, Flags: rawpeer.FlagEOF | rawpeer.FlagSubroute,
			Subroute: rawpeer.SubrouteID(uint8(runs+1), "disk"),
		})
		r.Peer.Expect(rawpeer.OpAckMux)
		synctest.Wait()
		require.Len(r, seen.calls, 2)
		require.Equal(r, runs, seen.calls[0].Handler)
		require.Equal(r, runs+1, seen.calls[1].Handler)
	})
}

// What comes for a handler with a context must be metadata, also where no interceptor looks at it:
// the handler may. Of a peer without the extension nothing comes.
func TestMetadata_ForTheHandler(t *testing.T) {
	t.Parallel()
	good := msgp.AppendMapStrStr(nil, map[string]string{"a": "b"})
	for _, c := range []struct {
		name     string
		caps     uint64
		metadata []byte
		want     map[string]string
		bad      bool
	}{
		{name: "none", caps: rig.AllCaps},
		{name: "one", caps: rig.AllCaps, metadata: good, want: map[string]string{"a": "b"}},
		{name: "an empty map", caps: rig.AllCaps, metadata: []byte{0x80}, want: map[string]string{}},
		{name: "without the extension", caps: rig.AllCaps &^ rawpeer.CapMetadata},
		{name: "no map", caps: rig.AllCaps, metadata: []byte{0x93}, bad: true},
		{name: "empty", caps: rig.AllCaps, metadata: []byte{}, bad: true},
		{name: "a claim", caps: rig.AllCaps, metadata: []byte{0xdf, 0xff, 0xff, 0xff, 0xff}, bad: true},
		{name: "numbers", caps: rig.AllCaps, metadata: []byte{0x81, 1, 1}, bad: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWire(t, rawpeer.Config{Caps: c.caps}, nil, func(r *wire) {
				got := make(chan map[string]string, 10)
				require.NoError(r, r.Node.RegisterSingleHandlerContext(rig.Unused, func(ctx context.Context, b []byte) ([]byte, *grid.RemoteErr) {
					got <- grid.Metadata(ctx)
					return b, nil
				}))
				require.NoError(r, r.Node.RegisterStreamingHandler(rig.Handler, grid.StreamHandler{Serve: func(ctx context.Context, _ []byte, _ *grid.ServerStream) *grid.RemoteErr {
					got <- grid.Metadata(ctx)
					return nil
				}}))
				flags := uint8(rawpeer.FlagEOF)
				if c.metadata != nil || c.caps&rawpeer.CapMetadata == 0 {
					flags |= rawpeer.FlagMetadata
				}
				for _, m := range []rawpeer.Msg{
					{MuxID: 1, Handler: uint8(rig.Unused), Op: rawpeer.OpRequest, Flags: flags, Payload: []byte("x")},
					{MuxID: 2, Handler: uint8(rig.Handler), Op: rawpeer.OpConnectMux, Flags: flags},
				} {
					m.Metadata = c.metadata
					r.Peer.Send(m)
					if m.Op == rawpeer.OpConnectMux {
						r.Peer.Expect(rawpeer.OpAckMux)
					}
					answer := r.Peer.Recv()
					if c.bad {
						require.NotZero(r, answer.Flags&rawpeer.FlagPayloadIsErr)
						require.Contains(r, string(answer.Payload), "protocol violated: metadata")
						require.Empty(r, got, "the handler has run")
						continue
					}
					require.Zero(r, answer.Flags&rawpeer.FlagPayloadIsErr, string(answer.Payload))
					require.Equal(r, c.want, <-got)
				}
				r.Alive()
			})
		})
	}
}
