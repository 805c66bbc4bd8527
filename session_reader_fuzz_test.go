package grid

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid/internal/credit"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/wsconn"
)

// message makes up a message, mostly one of those that mean something, and with fields that fit
// each other more often than they would by chance.
func (p *program) message() rawpeer.Msg {
	m := rawpeer.Msg{
		Op:         byte(p.n(19)),
		MuxID:      pick[uint64](p, 1, 1, 1, 2, 2, 3, 4, 5, 0, 1<<63),
		Seq:        uint32(p.n(5)),
		Handler:    pick[uint8](p, 0, 5, 0, 1, 2, 3, 4, 255),
		DeadlineMS: pick[uint32](p, 0, 0, 0, 1, 1000, 60_000, 1<<32-1),
	}
	m.Flags = p.byte() & pick[uint8](p, 0, rawpeer.FlagMore, rawpeer.FlagEOF, rawpeer.FlagEOF|rawpeer.FlagPayloadIsErr, rawpeer.FlagMore|rawpeer.FlagEOF, 0xff, rawpeer.FlagEOF|rawpeer.FlagPayloadIsErr|rawpeer.FlagDetails)
	switch p.n(10) {
	case 0:
	case 1:
		m.Payload = []byte("payload")
	case 2:
		m.Payload = msgp.AppendInt(nil, p.n(4))
	case 3:
		m.Payload = msgp.AppendInt(nil, pick(p, maxCapacity, maxCapacity+1, credit.MaxWindow, 1000))
	case 4:
		m.Payload = msgp.AppendString(msgp.AppendString(msgp.AppendMapHeader(nil, 1), "Error"), "text")
	case 5:
		m.Payload = rawpeer.Ping(time.Unix(1, 0)).Payload
	case 6:
		m.Payload = msgp.AppendBool(msgp.AppendString(msgp.AppendMapHeader(nil, 1), "nf"), p.n(2) == 0)
	case 7:
		m.Payload = make([]byte, 40*p.n(256))
	case 9:
		m.Payload = p.errorDetails()
	default:
		m.Payload = p.bytes(p.n(30))
	}
	if len(m.Payload) == 0 {
		m.Payload = nil
		if m.Flags&rawpeer.FlagPayloadIsZero != 0 {
			m.Payload = []byte{}
		}
	}
	if m.Flags&rawpeer.FlagSubroute != 0 {
		m.Subroute = rawpeer.SubrouteID(m.Handler, "sub")
	}
	if m.Flags&rawpeer.FlagMetadata != 0 {
		m.Metadata = pick(p, nil, []byte{}, msgp.AppendMapStrStr(nil, map[string]string{"k": "v"}), make([]byte, maxMetadata+1))
	}
	return m
}

// errorDetails makes up an error with details, which may lack its end.
func (p *program) errorDetails() []byte {
	d := rawpeer.ErrorDetails{
		Text: pick(p, "text", "", context.Canceled.Error(), "EOF"),
		Code: pick(p, "", "code", string(make([]byte, 2*maxErrorCode))),
	}
	for i := range p.n(2 * maxWrapped) {
		d.Wraps = append(d.Wraps, pick(p, ErrDisconnected.Error(), "wrapped", string(make([]byte, i*100)), fmt.Sprint(i)))
	}
	b := d.Encode()
	return b[:len(b)-p.n(3)]
}

// messages makes up what fits in what is left of the input, 50 at most.
func (p *program) messages() (msgs []rawpeer.Msg) {
	for !p.done() && len(msgs) < 50 {
		msgs = append(msgs, p.message())
	}
	return msgs
}

// messagesOf decodes a frame for itself, as one with caps: all messages before the first bad one.
func messagesOf(caps uint32, frame []byte) (msgs []rawpeer.Msg, whole bool) {
	r := &rawpeer.Reader{Bytes: frame}
	head := r.Array()
	if r.Err != nil || head.Op != rawpeer.OpMerged {
		m, err := rawpeer.DecodeWith(caps, frame)
		if err != nil {
			return nil, false
		}
		return []rawpeer.Msg{m}, true
	}
	for range head.Seq {
		b := r.Bin()
		if r.Err != nil {
			return msgs, false
		}
		m, err := rawpeer.DecodeWith(caps, b)
		if err != nil || m.Op == rawpeer.OpMerged {
			return msgs, false
		}
		msgs = append(msgs, m)
	}
	return msgs, r.End() == nil
}

// isFlagged reports whether a frame begins as a merged one with flags, of which the scripted peer's
// decoder knows nothing.
func isFlagged(frame []byte) bool {
	r := &rawpeer.Reader{Bytes: frame}
	head := r.Array()
	return r.Err == nil && head.Op == rawpeer.OpMerged && head.Flags != 0
}

// busyHost has a stream and a call of its own, 1 and 2, and handlers 1 and 2. None of its
// goroutines runs.
func busyHost(t *testing.T, c caps) *fuzzHost {
	h := newFuzzHost(t, 0, c, func(o *ManagerOptions) { o.MaxMessageSize = 5000; o.MaxHandlers = 3 })
	for _, sub := range [][]string{nil, {"sub"}} {
		require.NoError(t, h.RegisterSingleHandler(1, func(b []byte) ([]byte, *RemoteErr) { return b, nil }, sub...))
	}
	require.NoError(t, h.RegisterSingleHandlerContext(5, func(_ context.Context, b []byte) ([]byte, *RemoteErr) { return b, nil }))
	require.NoError(t, h.RegisterStreamingHandler(2, StreamHandler{
		Handle:      func(context.Context, []byte, <-chan []byte, chan<- []byte) *RemoteErr { return nil },
		OutCapacity: 2, InCapacity: 2,
	}))
	s := h.sess
	s.reader.setNow(time.Now())
	stream := newMuxClient(context.Background(), s, 1, 2, capacities{out: 2, in: 2, known: true}, s.caps, time.Now())
	s.streams.add(1, stream)
	_, err := s.calls.add(func() uint64 { return 2 }, time.Hour)
	require.NoError(t, err)
	return h
}

// dispatched is what has become of a host that was given messages.
type dispatched struct {
	queued                           string
	tasks                            int
	streams, served, openings, calls int
	cancellable, gone                int // requests
	handlers                         int64
	waiting                          int
	err                              string
}

func (h *fuzzHost) dispatched(stream *muxClient, err error) (d dispatched) {
	s := h.sess
	d.tasks, d.handlers = len(s.reader.tasks), int64(h.conn.Stats().Handlers)
	d.streams, d.served, d.openings, d.calls = s.streams.size(), s.served.size(), s.opener.openings.size(), s.calls.size()
	for _, ctx := range s.cancellable.all(nil) {
		d.cancellable++
		if ctx.life.isGone() {
			d.gone++
		}
	}
	d.waiting = len(stream.in.queue)
	if err != nil {
		d.err = err.Error()
	}
	urgent, normal := s.sender.out.swap()
	for _, b := range []batch{urgent, normal} {
		if b.count > 0 {
			msgs, whole := messagesOf(uint32(s.caps), b.frame(false)[wsconn.HeaderRoom:])
			require.True(h.t, whole)
			d.queued += fmt.Sprint(msgs)
		}
		b.release()
	}
	return d
}

// FuzzMerged gives messages to two sessions, to the one merged and to the other one by one up to
// the first that is bad: the same must come of both.
func FuzzMerged(f *testing.F) {
	for _, v := range loadVectors(f) {
		f.Add(uint8(3), rawpeer.Unhex(f, v.Hex), []byte{}, int8(0), uint8(0))
	}
	ping, lost := rawpeer.Msg{Op: rawpeer.OpPing}, rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, MuxID: 9}
	request := rawpeer.Msg{Op: rawpeer.OpRequest, MuxID: 1, Handler: 1, Flags: rawpeer.FlagEOF | rawpeer.FlagCRC, Payload: []byte("q")}
	open := rawpeer.Msg{Op: rawpeer.OpConnectMux, MuxID: 1, Handler: 2}
	ack := rawpeer.Msg{Op: rawpeer.OpAckMux, MuxID: 1, Payload: []byte{2}}
	more := rawpeer.Msg{Op: rawpeer.OpRequest, MuxID: 3, Handler: 1, Flags: rawpeer.FlagMore, Payload: []byte("a")}
	rest := rawpeer.Msg{Op: rawpeer.OpRequest, MuxID: 3, Flags: rawpeer.FlagEOF, Payload: []byte("b")}
	nested := rawpeer.Msg{Op: rawpeer.OpMerged, Seq: 1}
	for _, msgs := range [][]rawpeer.Msg{
		{}, {ping}, {ping, lost, request}, {request, nested, ping}, {ping, {Op: rawpeer.OpConnect}, lost}, {open, ack, {Op: rawpeer.OpMuxServerMsg, MuxID: 1, Seq: 1, Flags: rawpeer.FlagEOF}},
		{more, lost, rest}, {more, more}, {open, open}, {{Op: rawpeer.OpDisconnect}, ping}, {{Op: rawpeer.OpPing, Flags: rawpeer.FlagMore, Payload: []byte("x")}},
		{{Op: rawpeer.OpResponse, MuxID: 2, Flags: rawpeer.FlagMore, Payload: []byte("x")}, {Op: rawpeer.OpResponse, MuxID: 2, Payload: []byte("y")}}, {lost, lost, lost, lost, lost, lost},
		{{Op: 200}, ping, {Op: 200}}, {{Op: rawpeer.OpRequest, MuxID: 1, Handler: 1, Payload: make([]byte, 5001)}, ping},
	} {
		for _, c := range []uint8{0, 3} {
			f.Add(c, rawpeer.EncodeMerged(msgs...), []byte{}, int8(0), uint8(0))
		}
	}
	for _, payload := range [][]byte{{2, 3}, {2}, {2, 0}, {2, 3, 1}} {
		ack.Payload = payload
		f.Add(uint8(capWideCredits|capBothCapacities), rawpeer.EncodeMerged(ack, rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, MuxID: 1, Seq: 1}), []byte{}, int8(0), uint8(0))
	}
	asked, given := rawpeer.Msg{Op: rawpeer.OpRequest, MuxID: 3, Handler: 5, Flags: rawpeer.FlagEOF}, rawpeer.Msg{Op: rawpeer.OpDisconnectServerMux, MuxID: 3}
	failed := rawpeer.Msg{Op: rawpeer.OpResponse, MuxID: 2, Flags: rawpeer.FlagEOF | rawpeer.FlagPayloadIsErr | rawpeer.FlagDetails, Payload: rawpeer.ErrorDetails{Text: "x", Code: "y"}.Encode()}
	for _, msgs := range [][]rawpeer.Msg{{asked, given, ping}, {given, asked}, {asked, asked, given, given}, {failed, ping}, {asked, failed, given}} {
		for _, kind := range []uint8{0, 1, uint8(capCancel), uint8(capCancel | capFragments)} {
			f.Add(kind, rawpeer.EncodeMerged(msgs...), []byte{}, int8(0), uint8(0))
		}
	}
	f.Add(uint8(3), rawpeer.EncodeMerged(), []byte("\x0e\x00\x00\x03\x00\x00\x00\x01"), int8(1), uint8(0))
	f.Add(uint8(3), rawpeer.EncodeMerged(), []byte("\x05\x00\x00\x04\x00\x00\x00\x01\x0d\x00\x00\x04\x00\x00\x00\x02\x02"), int8(-1), uint8(0))
	f.Add(uint8(1), rawpeer.EncodeMerged(), []byte("\x0e\x00\x00\x03\x00\x00\x00\x01\x0e\x00\x00\x03\x00\x00\x00\x01"), int8(0), uint8(3))
	f.Add(uint8(3), rawpeer.Msg{Op: rawpeer.OpMerged, Flags: rawpeer.FlagSubroute, Subroute: []byte{}}.Encode(), []byte{}, int8(0), uint8(0))
	f.Fuzz(func(t *testing.T, kind uint8, frame, made []byte, lie int8, cut uint8) {
		if len(made) > 0 {
			msgs := (&program{made}).messages()
			frame = rawpeer.Msg{Op: rawpeer.OpMerged, Seq: uint32(len(msgs) + int(lie))}.Encode()
			for _, m := range msgs {
				frame = msgp.AppendBytes(frame, m.Encode())
			}
			frame = frame[:max(0, len(frame)-int(cut))]
		}
		synctest.Test(t, func(t *testing.T) {
			inUse := caps(kind)
			if inUse&capFragments != 0 {
				inUse |= capErrors // for which there is no bit left
			}
			merged, single := busyHost(t, inUse), busyHost(t, inUse)
			defer merged.Close()
			defer single.Close()
			stream1, _ := merged.sess.streams.get(1)
			stream2, _ := single.sess.streams.get(1)

			input := bytes.Clone(frame)
			err := merged.sess.reader.dispatchFrame(input)
			require.Equal(t, frame, input, "the input was written to")
			got := merged.dispatched(stream1, err)

			if isFlagged(frame) {
				return
			}
			msgs, whole := messagesOf(uint32(kind), frame)
			var want error
			for _, m := range msgs {
				if want = single.sess.reader.dispatchFrame(m.Encode()); want != nil {
					break
				}
			}
			if want == nil && !whole {
				require.ErrorIs(t, err, ErrProtocol, "what is bad was accepted")
				got.err = ""
			}
			require.Equal(t, single.dispatched(stream2, want), got)
		})
	})
}
