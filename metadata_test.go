package grid

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"
)

// Metadata on the wire (protocol section 8), against a scripted peer.

// tagged adds metadata to all calls.
type tagged map[string]string

func (m tagged) InterceptCall(ctx context.Context, info *CallInfo) (context.Context, func(CallResult), error) {
	for k, v := range m {
		info.AddMetadata(k, v)
	}
	return ctx, nil, nil
}

func TestMetadataOnTheWire(t *testing.T) {
	for _, caps := range []uint64{0, rawCapWideCredits | rawCapFragments | rawCapDrain, allCaps} {
		inV1(t, rawConfig{Caps: caps}, func(o *ManagerOptions) { o.CallInterceptors = []CallInterceptor{tagged{"k": "v"}} }, func(r *v1Rig) {
			var want []byte
			if caps&rawCapMetadata != 0 {
				want = []byte{0x81, 0xa1, 'k', 0xa1, 'v'}
			}
			check := func(op uint8, sub bool) rawMsg {
				r.Helper()
				m := r.peer.expect(op)
				require.Equal(r, want, m.Metadata)
				require.Equal(r, want != nil, m.Flags&rawFlagMetadata != 0)
				require.Equal(r, sub, len(m.Subroute) == 32)
				return m
			}
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			go func() { _, _ = r.conn.SingleRequest(ctx, testHandler, []byte("x")) }()
			check(rawOpRequest, false)
			go func() { _, _ = r.conn.Subroute("s").SingleRequest(ctx, testHandler, []byte("x")) }()
			check(rawOpRequest, true)
			go func() { _, _ = r.conn.Subroute("s").NewStream(ctx, testHandler, []byte("x")) }()
			check(rawOpConnectMux, true)
			if caps&rawCapFragments == 0 {
				return
			}
			go func() { _, _ = r.conn.Subroute("s").SingleRequest(ctx, testHandler, make([]byte, 200_000)) }()
			require.NotZero(r, check(rawOpRequest, true).Flags&rawFlagMore)
			for {
				m := r.peer.expect(rawOpRequest)
				require.Zero(r, m.Flags&(rawFlagMetadata|rawFlagSubroute))
				if m.Flags&rawFlagMore == 0 {
					break
				}
			}
		})
	}
}

// What the peer says is taken as it is, or is an error that names it.
func TestMetadataFromThePeer(t *testing.T) {
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
		{name: "too long", metadata: msgp.AppendMapStrStr(nil, map[string]string{"a": strings.Repeat("b", maxMetadata)}), broken: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			seen := new(recorder)
			inV1(t, rawConfig{Caps: allCaps}, func(o *ManagerOptions) { o.ServeInterceptors = []ServeInterceptor{seen} }, func(r *v1Rig) {
				seen.calls, seen.ends = nil, nil
				require.NoError(r, r.node.RegisterStreamingHandler(testHandler, StreamHandler{Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *RemoteErr { return nil }}))
				for _, m := range []rawMsg{
					{MuxID: 1, Handler: uint8(testEcho), Op: rawOpRequest, Flags: rawFlagEOF | rawFlagMetadata, DeadlineMS: 1000, Payload: []byte("x")},
					{MuxID: 2, Handler: uint8(testHandler), Op: rawOpConnectMux, Flags: rawFlagEOF | rawFlagMetadata},
				} {
					m.Metadata = c.metadata
					r.peer.send(m)
					if c.broken {
						r.peer.expectClosed()
						return
					}
					if m.Op == rawOpConnectMux {
						r.peer.expect(rawOpAckMux)
					}
					answer := r.peer.recv()
					if c.text == "" {
						require.Zero(r, answer.Flags&rawFlagPayloadIsErr, string(answer.Payload))
					} else {
						require.NotZero(r, answer.Flags&rawFlagPayloadIsErr)
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

// The flag of a peer without the extension means nothing, and neither does metadata
// where nobody wants it, or on other messages.
func TestMetadataThatMeansNothing(t *testing.T) {
	request := rawMsg{MuxID: 1, Handler: uint8(testEcho), Op: rawOpRequest, Flags: rawFlagEOF | rawFlagMetadata, DeadlineMS: 1000, Payload: []byte("x")}
	seen := new(recorder)
	inV1(t, rawConfig{}, func(o *ManagerOptions) { o.ServeInterceptors = []ServeInterceptor{seen} }, func(r *v1Rig) {
		seen.calls = nil
		r.peer.send(request)
		require.Equal(r, "x", string(r.peer.expect(rawOpResponse).Payload))
		require.Nil(r, seen.calls[0].Metadata)
	})
	inV1(t, rawConfig{Caps: allCaps}, nil, func(r *v1Rig) {
		request.Metadata = []byte{0x93} // no map
		r.peer.send(request)
		require.Equal(r, "x", string(r.peer.expect(rawOpResponse).Payload))
		r.peer.send(rawMsg{MuxID: 7, Op: rawOpMuxClientMsg, Flags: rawFlagMetadata, Metadata: []byte{1}})
		r.peer.expect(rawOpDisconnectClientMux)
		r.alive()
	})
}
