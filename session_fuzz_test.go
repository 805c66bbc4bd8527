package grid

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid/internal/credit"
	"github.com/gridrpc/grid/internal/rawpeer"
)

// FuzzHostilePeer says anything to a session that has calls and streams under way, in either
// direction. Whatever the peer says: nothing panics, nothing is stuck, nothing grows without bound,
// and what a caller is told has been said.
func FuzzHostilePeer(f *testing.F) {
	// say is a step that says a message, with its right number; see program.message.
	say := func(op, mux, handler, flags byte, payload string) string {
		return string([]byte{1, op, mux, 0, handler, 0, flags, 5}) + payload + "\x00"
	}
	const (
		none, text, two      = "\x00", "\x01", "\x02\x02"
		call, open           = "\x05", "\x04\x00"
		consume, serve, wait = "\x06\x00\x04", "\x07\x04", "\x08\x02"
		eof, isErr, more     = rawpeer.FlagEOF, rawpeer.FlagEOF | rawpeer.FlagPayloadIsErr, rawpeer.FlagMore
	)
	ack, message := say(rawpeer.OpAckMux, 0, 0, 0, two), say(rawpeer.OpMuxServerMsg, 0, 0, 0, text)
	part, end := say(rawpeer.OpMuxServerMsg, 0, 0, more, text), say(rawpeer.OpMuxServerMsg, 0, 0, eof, none)
	connect, input := say(rawpeer.OpConnectMux, 0, 4, 0, text), say(rawpeer.OpMuxClientMsg, 0, 0, 0, text)
	wrong := string([]byte{1, rawpeer.OpMuxServerMsg, 0, 4, 0, 0, 0, 5}) + text + "\x03" // a number that is not its turn
	for _, steps := range []string{
		"", open, open + ack, open + ack + consume + message + message + end, open + ack + message + end + consume, open + ack + wrong + end, open + message, open + ack + ack + end,
		open + ack + message + message + message + message + consume, open + ack + part + part + message + end + consume, open + ack + part + end + consume, open + ack + part + wait + wait,
		open + ack + consume + say(rawpeer.OpMuxServerMsg, 0, 0, isErr, text), open + ack + say(rawpeer.OpDisconnectClientMux, 0, 0, 0, none), open + ack + say(rawpeer.OpUnblockClMux, 0, 0, 0, two),
		open + say(rawpeer.OpMuxConnectError, 0, 0, 0, "\x04"), open + ack + say(rawpeer.OpPong, 0, 0, 0, "\x06\x00"), open + say(rawpeer.OpResponse, 0, 0, eof, text), open + ack + "\x09\x00" + message,
		call + say(rawpeer.OpResponse, 0, 0, eof, text), call + say(rawpeer.OpResponse, 0, 0, more, text) + say(rawpeer.OpResponse, 0, 0, eof, text), call + say(rawpeer.OpResponse, 0, 0, isErr, text), call + ack + message,
		connect + input + serve + input + say(rawpeer.OpMuxClientMsg, 0, 0, eof, none) + serve, connect + input + input + input + input + input + input + input, connect + connect, input + input + input + input + input,
		connect + say(rawpeer.OpMuxClientMsg, 0, 0, more, text) + say(rawpeer.OpMuxClientMsg, 0, 0, eof, none), connect + say(rawpeer.OpMuxClientMsg, 0, 0, eof, none) + input, connect + say(rawpeer.OpPing, 0, 0, 0, none),
		connect + say(rawpeer.OpDisconnectServerMux, 0, 0, 0, none) + serve, connect + say(rawpeer.OpUnblockSrvMux, 0, 0, 0, two), say(rawpeer.OpConnectMux, 0, 6, 0, text) + say(rawpeer.OpUnblockSrvMux, 0, 0, 0, none),
		say(rawpeer.OpRequest, 0, 3, more, text) + say(rawpeer.OpRequest, 0, 0, 0, text), say(rawpeer.OpRequest, 0, 3, more, text) + say(rawpeer.OpRequest, 0, 3, 0, text), say(rawpeer.OpRequest, 0, 5, 0x20, text) + serve,
		say(rawpeer.OpConnectMux, 0, 4, more, text) + say(rawpeer.OpConnectMux, 0, 0, 0, text), say(rawpeer.OpRequest, 0, 3, more, text) + wait + wait, say(rawpeer.OpDisconnect, 8, 0, 0, none) + call, say(rawpeer.OpDisconnect, 0, 0, 0, none),
		"\x00\x20\x97\x00\x02\x00\x00\x11\x00\xc4\x00\xc4\x08\x97\x00\x00\x00\x00\x03\x00\xc4\x00", say(rawpeer.OpPing, 8, 0, 0, "\x05"), say(rawpeer.OpPing, 8, 0, 0, text), say(rawpeer.OpPong, 8, 0, 0, "\x05"),
	} {
		for kind := range byte(4) {
			f.Add([]byte(string([]byte{kind}) + steps))
		}
	}
	acked := func(payload string) string {
		return open + say(rawpeer.OpAckMux, 0, 0, 0, "\x08"+string(byte(len(payload)))+payload)
	}
	for _, steps := range []string{
		acked("\x02\x01") + message + end + consume, acked("\x00\x02") + consume + message + message + message + message + end, acked("\x00\x02") + message + message + message + consume,
		acked("\x00\xcd\x02\x00") + message + part + part + message + consume + end, acked("\x00"), acked("\x00\x00"), acked("\x00\x01\x01"), acked("\x00\xce\x00\x01\x00\x01"), acked(""),
		acked("\x01\x01") + part + message + part + consume, acked("\x00\x01") + say(rawpeer.OpMuxServerMsg, 0, 0, 0, text) + say(rawpeer.OpMuxServerMsg, 0, 0, eof, text) + consume,
	} {
		for kind := byte(3); kind < 8; kind++ {
			f.Add([]byte(string([]byte{kind}) + steps))
		}
	}
	const ( // handler 5 has a context
		giveUp     = "\x09\x00"
		hasDetails = rawpeer.FlagEOF | rawpeer.FlagPayloadIsErr | rawpeer.FlagDetails
	)
	waits, drop := say(rawpeer.OpRequest, 0, 1, 0, text), say(rawpeer.OpDisconnectServerMux, 0, 0, 0, none)
	details := "\x09\x00\x01\x02\x01\x03\x00" // a text, a code and two that are wrapped
	lying := "\x09\x02\x02\x1f" + string(bytes.Repeat([]byte{2}, 31)) + "\x00"
	opens := func(form byte) string { return string([]byte{4, form}) }
	for form := range byte(32) {
		open := opens(form)
		for _, steps := range []string{
			open + ack + consume + message + message + message + end + consume, open + ack + message + consume + say(rawpeer.OpMuxServerMsg, 0, 0, isErr, text), open + ack + part + end + consume + consume,
			open + ack + consume + message + "\x09\x00" + message, open + ack + consume + message + message + consume + say(rawpeer.OpDisconnectClientMux, 0, 0, 0, none), open + ack + consume + message + wait + say(rawpeer.OpUnblockClMux, 0, 0, 0, two) + end,
		} {
			f.Add([]byte("\x04" + steps))
			f.Add([]byte("\x00" + steps))
		}
	}
	for _, steps := range []string{
		waits, waits + drop, drop + waits, waits + drop + drop + serve, waits + serve + drop, waits + waits + drop + wait + serve, waits + say(rawpeer.OpDisconnectServerMux, 3, 0, 0, none),
		waits + waits + waits + waits + waits + drop, say(rawpeer.OpRequest, 0, 1, more, text) + drop + say(rawpeer.OpRequest, 0, 0, 0, text), call + giveUp, call + giveUp + say(rawpeer.OpResponse, 0, 0, eof, text), call + say(rawpeer.OpResponse, 0, 0, more, text) + giveUp,
		call + say(rawpeer.OpResponse, 0, 0, hasDetails, details), call + say(rawpeer.OpResponse, 0, 0, hasDetails, lying), call + say(rawpeer.OpResponse, 0, 0, hasDetails, text), open + ack + consume + say(rawpeer.OpMuxServerMsg, 0, 0, hasDetails, details),
		open + ack + say(rawpeer.OpMuxServerMsg, 0, 0, hasDetails, lying) + consume, open + ack + say(rawpeer.OpMuxServerMsg, 0, 0, hasDetails, text), call + say(rawpeer.OpResponse, 0, 0, eof|rawpeer.FlagDetails, details),
	} {
		for _, kind := range []byte{0, 3, 4, 7} {
			f.Add([]byte(string([]byte{kind}) + steps))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1000 {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			r := newHostileRun(t, &program{data})
			defer r.stop()
			for !r.p.done() && !r.h.ended() {
				r.step()
				r.check()
			}
			r.finish()
		})
	})
}

const (
	hostileMaxMessage     = 5000
	hostileMaxStreamBytes = 7000
	hostileMaxHostBytes   = 12_000
	hostileMaxHandlers    = 4
	hostileMaxRunning     = 2
)

// hostileRun is one host whose peer is the program.
type hostileRun struct {
	quiet   fence
	t       *testing.T
	p       *program
	h       *fuzzHost
	ctx     context.Context
	cancel  context.CancelFunc
	streams []*hostileCall
	calls   []*hostileCall
	muxes   map[uint64]*hostileCall
	next    [2]map[uint64]uint32 // numbers of what we say as client and as server
	permits chan bool            // for handlers
	dropped bool                 // a mux, as its client
	ended   bool                 // the program's part
}

// hostileCall is a call or a stream that was made of us, and what we have said to it.
type hostileCall struct {
	cancel   context.CancelFunc
	permits  chan bool
	got      []byte
	said     []byte // payloads
	saidEnd  bool   // and nothing that would be delivered behind it
	acked    bool
	out      int  // what the first ack has named, where it does
	granted  int  // credits that we were returned
	took     int  // messages
	reads    bool // it is consumed by a reader, which takes messages apart
	finishes bool // the rest is thrown away
	broken   bool // a second time, which ends it with an error
	gaveUp   bool // by the program
	told     bool // the peer, that it was given up
	asStream bool // a stream's message was said to it
	over     bool
	err      error
}

// hostileCaps are those in use; what they were before both capacities are told among them.
var hostileCaps = [8]caps{
	0, capWideCredits, capFragments, wireCaps &^ capBothCapacities,
	wireCaps, capWideCredits | capBothCapacities, capFragments | capBothCapacities, wireCaps &^ (capCancel | capErrors),
}

func newHostileRun(t *testing.T, p *program) *hostileRun {
	kind := p.byte()
	r := &hostileRun{t: t, p: p, muxes: map[uint64]*hostileCall{}, permits: make(chan bool, 1000)}
	r.next = [2]map[uint64]uint32{{}, {}}
	r.ctx, r.cancel = context.WithCancel(t.Context())
	r.h = newFuzzHost(t, 0, hostileCaps[kind&7], func(o *ManagerOptions) {
		o.MaxMessageSize, o.MaxHandlers = hostileMaxMessage, hostileMaxHandlers
		o.MaxStreamBytes, o.MaxHostBytes, o.MaxPings = hostileMaxStreamBytes, hostileMaxHostBytes, 20
		o.HandlerOptions = map[HandlerKey]HandlerOptions{{ID: 5}: {MaxRunning: hostileMaxRunning, Timeout: 10 * time.Second}}
	})
	require.NoError(t, r.h.RegisterSingleHandler(1, func(b []byte) ([]byte, *RemoteErr) { return b, nil }))
	require.NoError(t, r.h.RegisterSingleHandler(3, func([]byte) ([]byte, *RemoteErr) {
		<-r.permits
		return nil, NewRemoteErrString("failed")
	}, "sub"))
	require.NoError(t, r.h.RegisterSingleHandlerContext(5, r.wait))
	require.NoError(t, r.h.RegisterStreamingHandler(2, StreamHandler{Handle: r.echo, OutCapacity: 2, InCapacity: 3}))
	require.NoError(t, r.h.RegisterStreamingHandler(4, StreamHandler{Handle: r.pour, OutCapacity: 1}))
	r.h.run()
	synctest.Wait()
	return r
}

// echo is a handler that sends what it gets, when it may.
func (r *hostileRun) echo(_ context.Context, payload []byte, in <-chan []byte, out chan<- []byte) *RemoteErr {
	out <- payload
	for {
		<-r.permits
		b, ok := <-in
		if !ok {
			return nil
		}
		out <- b
	}
}

// wait is a handler that waits for the end of its context, which must have been said, or a permit.
func (r *hostileRun) wait(ctx context.Context, b []byte) ([]byte, *RemoteErr) {
	select {
	case <-ctx.Done():
	case <-r.permits:
	}
	r.quiet.pass()
	_ = Metadata(ctx)
	if cause := context.Cause(ctx); errors.Is(cause, context.Canceled) && (!r.dropped || r.h.sess.caps&capCancel == 0) {
		r.t.Error("the context of a handler was cancelled by nobody")
	}
	return b, NewRemoteErr(ctx.Err())
}

// pour is a handler that sends without end.
func (r *hostileRun) pour(ctx context.Context, payload []byte, _ <-chan []byte, out chan<- []byte) *RemoteErr {
	for ctx.Err() == nil {
		out <- append([]byte(nil), payload...)
	}
	return NewRemoteErr(context.Cause(ctx))
}

func (r *hostileRun) step() {
	switch r.p.n(10) {
	case 0: // any bytes
		r.h.put(r.p.bytes(r.p.n(64)))
	case 1:
		m := r.say()
		r.h.put(m.Encode())
	case 2, 3:
		var msgs []rawpeer.Msg
		for range r.p.n(6) {
			msgs = append(msgs, r.say())
		}
		r.h.put(rawpeer.EncodeMerged(msgs...))
	case 4:
		r.open(r.p.byte())
	case 5:
		r.call()
	case 6:
		if len(r.streams) > 0 {
			offer(pick(r.p, r.streams...).permits, r.p.n(5), true)
		}
	case 7:
		offer(r.permits, r.p.n(5), true)
	case 8:
		r.quiet.pass()
		time.Sleep(pick(r.p, time.Millisecond, time.Second, 3*time.Second, 9*time.Second, 70*time.Second))
	case 9:
		if all := append(append([]*hostileCall(nil), r.streams...), r.calls...); len(all) > 0 {
			c := pick(r.p, all...)
			c.gaveUp = true
			c.cancel()
		}
	}
	r.listen()
}

// say makes up a message, with its right number mostly, and notes what was said.
func (r *hostileRun) say() rawpeer.Msg {
	m := r.p.message()
	right := r.p.byte()&3 != 3
	side := -1
	switch m.Op {
	case rawpeer.OpConnectMux, rawpeer.OpMuxClientMsg, rawpeer.OpUnblockSrvMux, rawpeer.OpPing:
		side = 0
	case rawpeer.OpAckMux, rawpeer.OpMuxServerMsg, rawpeer.OpUnblockClMux:
		side = 1
	}
	c := r.muxes[m.MuxID]
	r.dropped = r.dropped || m.Op == rawpeer.OpDisconnectServerMux
	if c != nil && (m.Op == rawpeer.OpAckMux || m.Op == rawpeer.OpMuxServerMsg) {
		c.asStream = true // for which it may be told to stop
	}
	again := m.Op == rawpeer.OpAckMux && c != nil && c.acked
	if side >= 0 && right {
		if m.Op == rawpeer.OpAckMux && !again || m.Op == rawpeer.OpConnectMux && m.Handler != 0 {
			r.next[side][m.MuxID] = 0
		}
		m.Seq = r.next[side][m.MuxID]
		r.next[side][m.MuxID]++
	}
	if c != nil && m.Op == rawpeer.OpAckMux {
		c.broken = c.broken || c.acked && !c.saidEnd
		if !c.acked {
			ack := rawpeer.Reader{Bytes: m.Payload}
			rawpeer.Read(&ack, msgp.ReadUint64Bytes)
			c.out = int(min(rawpeer.Read(&ack, msgp.ReadUint64Bytes), 1<<20))
		}
		c.acked = true
	}
	if c != nil && (m.Op == rawpeer.OpMuxServerMsg || m.Op == rawpeer.OpResponse) && m.Flags&rawpeer.FlagPayloadIsErr == 0 && !c.saidEnd {
		c.said = append(c.said, m.Payload...)
		c.saidEnd = m.Op == rawpeer.OpMuxServerMsg && m.Flags&rawpeer.FlagEOF != 0 ||
			m.Op == rawpeer.OpResponse && (m.Flags&rawpeer.FlagMore == 0 || r.h.sess.caps&capFragments == 0)
	}
	return m
}

// listen takes what the host says, to know its muxes.
func (r *hostileRun) listen() {
	synctest.Wait()
	for _, m := range r.h.take() {
		switch {
		case m.Op == rawpeer.OpConnectMux && len(m.Payload) == 1:
			r.muxes[m.MuxID] = r.streams[m.Payload[0]]
		case m.Op == rawpeer.OpRequest && len(m.Payload) == 1:
			r.muxes[m.MuxID] = r.calls[m.Payload[0]]
		case m.Op == rawpeer.OpUnblockSrvMux:
			r.muxes[m.MuxID].granted += creditsIn(m)
		case m.Op == rawpeer.OpDisconnectServerMux && slices.Contains(r.calls, r.muxes[m.MuxID]) && !r.muxes[m.MuxID].asStream:
			c := r.muxes[m.MuxID]
			require.True(r.t, c.gaveUp && !c.told && r.h.sess.caps&capCancel != 0, "a request was cancelled by nobody")
			c.told = true
		}
	}
}

func (r *hostileRun) newCall(list *[]*hostileCall) (context.Context, *hostileCall, []byte) {
	ctx, cancel := context.WithCancel(r.ctx)
	c := &hostileCall{cancel: cancel, permits: make(chan bool, 1000)}
	*list = append(*list, c)
	return ctx, c, []byte{byte(len(*list) - 1)}
}

// open opens a stream, whose ends are of one of the forms that there are.
func (r *hostileRun) open(form byte) {
	if len(r.streams) == 5 {
		return
	}
	ctx, c, payload := r.newCall(&r.streams)
	go func() {
		st, err := r.h.conn.With(CallOptions{Metadata: map[string]string{"k": "v"}}).NewStream(ctx, 2, payload)
		if err != nil {
			r.quiet.pass()
			c.over, c.err = true, err
			return
		}
		if st.Requests != nil {
			go r.send(ctx, st, form&1 == 0, form>>3&3)
		}
		err = r.consume(ctx, c, st, form>>1&3)
		r.quiet.pass()
		c.over, c.err = true, err
	}()
}

// send sends some messages, or none, and ends the input.
func (r *hostileRun) send(ctx context.Context, st *Stream, sends bool, form byte) {
	const most = 100
	switch {
	case !sends:
		close(st.Requests)
	case form == 1:
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		for n := 0; n < most && st.SendContext(short, []byte("sent")) == nil; n++ {
		}
		st.CloseSend()
	case form == 2:
		w := st.Writer(ctx)
		_, err := w.Write(make([]byte, 3*hostileMaxMessage))
		_ = w.CloseWithError(err)
	default:
		for n := 0; n < most && st.Send([]byte("sent")) == nil; n++ {
		}
		close(st.Requests)
	}
}

// consume returns how a stream has ended, nil if well.
func (r *hostileRun) consume(ctx context.Context, c *hostileCall, st *Stream, form byte) error {
	take := func(b []byte) {
		r.quiet.pass()
		c.got = append(c.got, b...)
		c.took++
	}
	switch form {
	case 1, 2: // to the end, or to the second message
		for n := byte(0); form == 1 || n < 2; n++ {
			<-c.permits
			b, err := st.Recv()
			switch err {
			case nil:
			case io.EOF:
				return nil
			default:
				return err
			}
			take(b)
			PutByteBuffer(b)
		}
		c.finishes = true
		return st.Finish(ctx)
	case 3:
		rd, buf := st.Reader(), make([]byte, 3)
		c.reads = true
		for {
			<-c.permits
			n, err := rd.Read(buf)
			take(buf[:n])
			switch {
			case err == io.EOF:
				return nil
			case err != nil:
				short, ok := err.(*cutShort)
				if !ok || !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
					r.t.Errorf("a reader has ended with %v", err)
					return err
				}
				return short.cause // which is what Recv would return
			}
		}
	}
	return st.Results(func(b []byte) error {
		<-c.permits
		take(b)
		PutByteBuffer(b)
		return nil
	})
}

func (r *hostileRun) call() {
	if len(r.calls) == 5 {
		return
	}
	ctx, c, payload := r.newCall(&r.calls)
	go func() {
		b, err := r.h.conn.SingleRequest(ctx, 1, payload)
		r.quiet.pass()
		c.got, c.over, c.err = b, true, err
	}()
}

func (r *hostileRun) check() {
	t, s := r.t, r.h.sess
	stats := r.h.conn.Stats()
	require.LessOrEqual(t, stats.Handlers, hostileMaxHandlers)
	require.LessOrEqual(t, r.h.conn.taken.bytes.Used(), int64(hostileMaxHostBytes), "more is kept than MaxHostBytes")
	require.GreaterOrEqual(t, r.h.conn.taken.bytes.Used(), int64(0))
	require.LessOrEqual(t, s.opener.openings.size(), hostileMaxHandlers)
	require.LessOrEqual(t, s.cancellable.size(), min(stats.Handlers, hostileMaxRunning))
	for _, st := range r.h.HandlerStats() {
		require.GreaterOrEqual(t, st.Running, 0, "%+v", st)
		require.LessOrEqual(t, st.Running, cmp.Or(st.MaxRunning, hostileMaxHandlers), "%+v", st)
	}
	require.LessOrEqual(t, s.streams.size(), len(r.streams))
	require.LessOrEqual(t, len(s.reader.lostStreams), maxAnsweredIDs)
	require.LessOrEqual(t, len(s.reader.lostServed), maxAnsweredIDs)
	requireBounded := func(b *inbox, capacity int) {
		b.mu.Lock()
		defer b.mu.Unlock()
		waiting := len(b.queue) - b.head
		if capacity > 0 {
			require.LessOrEqual(t, waiting, max(capacity, credit.MaxWindow), "more waits than the window holds")
		}
		require.LessOrEqual(t, cap(b.queue), max(2*firstQueue, 4*waiting+4*capacity))
		require.LessOrEqual(t, b.bytes, hostileMaxStreamBytes+messageCost, "more waits than MaxStreamBytes")
		if b.parts != nil {
			require.LessOrEqual(t, b.parts.size, hostileMaxMessage)
		}
	}
	for _, m := range s.streams.all(nil) {
		capacity := 2
		if c := r.muxes[m.id]; m.tellsBoth && c != nil && c.acked {
			capacity = c.out
			if !c.reads {
				require.LessOrEqual(t, c.took+m.in.waiting(), c.out+c.granted, "more came than the peer had credits for")
			}
		} else if m.wide {
			capacity = 0 // which its server knows
		}
		requireBounded(&m.in, capacity)
	}
	for _, m := range s.served.all(nil) {
		if m.hasInput {
			requireBounded(&m.in, m.inCredits())
		}
	}
	for _, c := range append(r.streams, r.calls...) {
		if remote := new(RemoteErr); c.over && errors.As(c.err, &remote) {
			requireBoundedErr(t, remote)
			for _, local := range localConditions {
				require.NotErrorIs(t, c.err, local)
			}
			require.False(t, errors.Is(c.err, ErrDisconnected))
		}
	}
	for _, c := range r.streams {
		require.True(t, bytes.HasPrefix(c.said, c.got), "what nobody has said, or in another order: %x of %x", c.got, c.said)
		if c.over && c.err == nil {
			require.True(t, c.saidEnd, "an end that nobody has said")
			require.True(t, c.finishes || len(c.said) == len(c.got), "a good end, but not all that was said")
		}
	}
	for _, c := range r.calls {
		if c.over && c.err == nil {
			require.True(t, c.saidEnd)
			require.True(t, bytes.Equal(c.said, c.got), "%x in place of %x", c.got, c.said)
		}
	}
}

// waiting is how many messages wait.
func (b *inbox) waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.queue) - b.head
}

func (r *hostileRun) finish() {
	if r.h.ended() {
		require.Error(r.t, r.h.sess.err)
		require.ErrorIs(r.t, r.h.sess.err, ErrDisconnected)
	}
	r.h.Close()
	r.release()
	synctest.Wait()
	r.check()
	for _, c := range append(r.streams, r.calls...) {
		require.True(r.t, c.over, "a call is stuck")
		require.False(r.t, c.broken && c.err == nil, "a stream that was acked twice ended well")
	}
	require.Zero(r.t, r.h.conn.Stats().Handlers, "slots of handlers are left")
	for _, st := range r.h.HandlerStats() {
		require.Zero(r.t, st.Running, "%+v", st)
	}
	require.Zero(r.t, r.h.conn.taken.bytes.Used(), "bytes are counted that nobody keeps")
	require.Zero(r.t, r.h.sess.streams.size())
	require.Zero(r.t, r.h.sess.served.size())
	require.Zero(r.t, r.h.sess.opener.openings.size())
	require.Zero(r.t, r.h.sess.cancellable.size())
	require.Zero(r.t, r.h.sess.calls.size())
}

// release lets all go that waits for the program.
func (r *hostileRun) release() {
	if r.ended {
		return
	}
	r.ended = true
	close(r.permits)
	for _, c := range r.streams {
		close(c.permits)
	}
}

// stop ends everything, also after a failure.
func (r *hostileRun) stop() {
	r.cancel()
	r.h.Close()
	r.release()
}
