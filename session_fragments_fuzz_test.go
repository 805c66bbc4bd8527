package grid

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/rawpeer"
)

// FuzzFragments sends fragments in any order, of any kind, to a host. A model of section 8 says
// what it must make of each: an answer, a refusal, nothing, or the end of the link.
func FuzzFragments(f *testing.F) {
	for _, steps := range []string{
		"", // each step: op, mux, handler, flags, size, number
		"\x00\x00\x01\x01\x03\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x00\x04\x00",
		"\x00\x00\x01\x01\x03\x00\x00\x00\x00\x00\x00\x00", "\x00\x00\x01\x01\x09\x00\x00\x00\x00\x01\x09\x00\x00\x00\x00\x01\x09\x00",
		"\x00\x00\x01\x01\x03\x00\x00\x00\x01\x01\x03\x00", "\x00\x00\x03\x01\x03\x00\x00\x00\x00\x00\x03\x00", "\x00\x00\x01\x01\x03\x00\x01\x00\x00\x01\x03\x00",
		"\x01\x00\x02\x01\x03\x00\x01\x00\x00\x01\x03\x00\x01\x00\x00\x00\x03\x00", "\x01\x00\x02\x01\x03\x00\x01\x00\x00\x01\x03\x03\x01\x00\x00\x00\x03\x00",
		"\x02\x00\x00\x01\x03\x00\x02\x00\x00\x00\x03\x00", "\x02\x00\x00\x01\x03\x00\x02\x00\x00\x04\x03\x00", "\x02\x00\x00\x01\x08\x00\x02\x00\x00\x01\x08\x00\x02\x00\x00\x01\x08\x00\x02\x00\x00\x01\x08\x00",
		"\x03\x00\x00\x01\x03\x00\x03\x00\x00\x00\x03\x00\x03\x00\x00\x02\x00\x00", "\x03\x00\x00\x01\x03\x00\x03\x00\x00\x02\x00\x00", "\x03\x00\x00\x01\x03\x00\x03\x00\x00\x02\x03\x00",
		"\x04\x00\x00\x01\x03\x00\x04\x00\x00\x00\x03\x00\x04\x00\x00\x02\x00\x00", "\x04\x00\x00\x01\x03\x00\x04\x00\x00\x02\x00\x00", "\x04\x00\x00\x01\x03\x00\x04\x00\x00\x04\x03\x00",
		"\x00\x00\x01\x01\x03\x00\x05\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00", "\x06\x00\x00\x01\x03\x00", "\x00\x00\x01\x03\x03\x00", "\x00\x00\x01\x01\x00\x00",
		"\x00\x00\x01\x01\x03\x00\x00\x01\x01\x01\x03\x00\x00\x02\x01\x01\x03\x00\x00\x03\x01\x01\x03\x00\x01\x00\x00\x00\x00\x00",
	} {
		f.Add([]byte(steps), true, true)
		f.Add([]byte(steps), true, false)
		f.Add([]byte(steps), false, true)
	}
	f.Fuzz(func(t *testing.T, data []byte, fragments, wide bool) {
		if len(data) > 600 {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			r := newFragmentsRun(t, &program{data}, fragments, wide)
			defer r.stop()
			for !r.p.done() && !r.over {
				r.step()
			}
			r.finish()
		})
	})
}

const (
	fuzzSlots    = 3
	fuzzWhole    = 5000 // the largest payload
	fuzzServed   = 50   // the stream that the host serves
	fuzzCapacity = 700  // messages; there are fewer in a program
)

// fragmentsRun is a host, and what it must have made of what it was sent.
type fragmentsRun struct {
	t         *testing.T
	p         *program
	h         *fuzzHost
	fragments bool
	sent      int
	over      bool // the link has ended

	openings map[uint64]*openingModel
	call     partsModel // the answer to our call
	callMux  uint64
	toServed partsModel // messages of the stream that the host serves
	toOpened partsModel // of the one that it has opened
	openMux  uint64

	cancel   context.CancelFunc
	answered chan string
	served   []string // read when all is quiet; so are the others
	opened   []string
	end      string // of the opened stream
}

// openingModel is a Request or ConnectMux that is not complete.
type openingModel struct {
	op      uint8
	handler uint8
	seq     uint32
	got     []byte
}

// partsModel is whatever arrives on a mux of its own.
type partsModel struct {
	over     bool
	amid     bool
	got      []byte
	seq      uint32
	messages []string
	end      string
}

func newFragmentsRun(t *testing.T, p *program, fragments, wide bool) *fragmentsRun {
	r := &fragmentsRun{t: t, p: p, fragments: fragments, openings: map[uint64]*openingModel{}, answered: make(chan string, 1)}
	caps := caps(0)
	if fragments {
		caps |= capFragments
	}
	if wide {
		caps |= capWideCredits | capBothCapacities
	}
	r.h = newFuzzHost(t, 0, caps, func(o *ManagerOptions) { o.MaxMessageSize, o.MaxHandlers = fuzzWhole, fuzzSlots })
	require.NoError(t, r.h.RegisterSingleHandler(1, func(b []byte) ([]byte, *RemoteErr) { return b, nil }))
	require.NoError(t, r.h.RegisterStreamingHandler(2, StreamHandler{
		OutCapacity: fuzzCapacity,
		Handle: func(_ context.Context, payload []byte, _ <-chan []byte, out chan<- []byte) *RemoteErr {
			out <- payload
			return nil
		},
	}))
	require.NoError(t, r.h.RegisterStreamingHandler(4, StreamHandler{
		InCapacity: fuzzCapacity, OutCapacity: fuzzCapacity,
		Handle: func(ctx context.Context, _ []byte, in <-chan []byte, _ chan<- []byte) *RemoteErr {
			for b := range in {
				r.served = append(r.served, string(b))
			}
			<-ctx.Done()
			return nil
		},
	}))
	r.h.run()
	ctx, cancel := context.WithCancel(t.Context())
	r.cancel = cancel
	go func() {
		b, err := r.h.conn.SingleRequest(ctx, 1, nil)
		r.answered <- endOf(string(b), err)
	}()
	synctest.Wait()
	r.callMux = r.h.take()[0].MuxID
	go func() {
		st, err := r.h.conn.NewStream(ctx, 4, nil)
		if err != nil {
			r.end = endOf("", err)
			return
		}
		if st.Requests != nil {
			defer close(st.Requests)
		}
		r.end = endOf("", st.Results(func(b []byte) error {
			r.opened = append(r.opened, string(b))
			return nil
		}))
	}()
	synctest.Wait()
	r.openMux = r.h.take()[0].MuxID
	ack := rawpeer.Msg{Op: rawpeer.OpAckMux, MuxID: r.openMux, Payload: rawpeer.AckPayload(uint64(caps), 0, fuzzCapacity)}
	r.h.put(rawpeer.EncodeMerged(rawpeer.Msg{Op: rawpeer.OpConnectMux, MuxID: fuzzServed, Handler: 4}, ack))
	synctest.Wait()
	require.Len(t, r.h.take(), 1)
	r.toServed.seq, r.toOpened.seq = 1, 1
	return r
}

// endOf is how a call or stream has ended, without the words.
func endOf(text string, err error) string {
	switch {
	case err == nil:
		return "ok " + text
	case IsRemoteErr(err):
		return "remote " + err.Error()
	}
	return "error"
}

// step is one message. Its payload is like no other's.
func (r *fragmentsRun) step() {
	p := r.p
	op := pick[uint8](p, rawpeer.OpRequest, rawpeer.OpConnectMux, rawpeer.OpResponse, rawpeer.OpMuxClientMsg, rawpeer.OpMuxServerMsg, rawpeer.OpDisconnectServerMux, rawpeer.OpUnblockSrvMux)
	m := rawpeer.Msg{
		Op: op, MuxID: 1 + uint64(p.n(5)), Handler: pick[uint8](p, 0, 1, 2, 3),
		Flags: pick[uint8](p, 0, rawpeer.FlagMore, rawpeer.FlagEOF, rawpeer.FlagMore|rawpeer.FlagEOF, rawpeer.FlagPayloadIsErr, rawpeer.FlagMore|rawpeer.FlagPayloadIsErr, rawpeer.FlagEOF|rawpeer.FlagMore|rawpeer.FlagPayloadIsErr),
	}
	size := pick(p, 0, 1, 5, 10, 100, 700, 1000, 1300, 1700, 2600, fuzzWhole, fuzzWhole+1)
	off := uint32(p.n(8))
	if off > 2 {
		off = 0 // mostly the right number
	}
	r.sent++
	if size > 0 {
		m.Payload = []byte(strings.Repeat(fmt.Sprintf("%d;", r.sent), size)[:size])
	}
	switch op {
	case rawpeer.OpResponse:
		m.MuxID = r.callMux
	case rawpeer.OpMuxServerMsg:
		m.MuxID = r.openMux
		m.Seq = r.toOpened.seq + off
	case rawpeer.OpMuxClientMsg:
		m.MuxID = fuzzServed
		m.Seq = r.toServed.seq + off
	case rawpeer.OpUnblockSrvMux:
		m.MuxID = 99 // of which nobody knows
	case rawpeer.OpConnectMux:
		m.Seq = off
		if o := r.openings[m.MuxID]; o != nil && m.Handler == 0 {
			m.Seq = o.seq + 1 + off
		}
	}
	want, ends := r.expect(m)
	r.h.put(m.Encode())
	synctest.Wait()
	require.Equal(r.t, ends, r.h.ended(), "%v: %v", m, r.h.sess.err)
	if r.over = ends; ends {
		return
	}
	require.Equal(r.t, want, r.heard(), "%v", m)
	r.compare()
}

// heard is what the host says, but for credits.
func (r *fragmentsRun) heard() (said []string) {
	for _, m := range r.h.take() {
		switch m.Op {
		case rawpeer.OpResponse:
			said = append(said, fmt.Sprint("response ", m.MuxID, ": ", string(m.Payload)))
		case rawpeer.OpMuxConnectError:
			said = append(said, fmt.Sprint("refused ", m.MuxID))
		case rawpeer.OpAckMux:
			said = append(said, fmt.Sprint("ack ", m.MuxID))
		case rawpeer.OpMuxServerMsg:
			said = append(said, messageLine(m.MuxID, m.Payload, m.Flags&rawpeer.FlagEOF != 0))
		case rawpeer.OpDisconnectServerMux, rawpeer.OpDisconnectClientMux:
			if len(m.Payload) > 0 {
				said = append(said, fmt.Sprint("failed ", m.MuxID))
			}
		}
	}
	return said
}

func messageLine(mux uint64, payload []byte, eof bool) string {
	return fmt.Sprintf("message %d, EOF %t: %s", mux, eof, payload)
}

// expect says what the host must answer to m, or that it ends the link.
func (r *fragmentsRun) expect(m rawpeer.Msg) (said []string, ends bool) {
	more := m.Flags&rawpeer.FlagMore != 0 && r.fragments
	isErr, eof := m.Flags&rawpeer.FlagPayloadIsErr != 0, m.Flags&rawpeer.FlagEOF != 0
	if len(m.Payload) > fuzzWhole && !isErr && m.Op != rawpeer.OpUnblockSrvMux { // whose payload is not the application's
		return nil, true
	}
	if more && (m.Op == rawpeer.OpDisconnectServerMux || m.Op == rawpeer.OpUnblockSrvMux || len(m.Payload) == 0 || isErr || eof) {
		return nil, true
	}
	switch m.Op {
	case rawpeer.OpRequest, rawpeer.OpConnectMux:
		return r.expectOpening(m, more)
	case rawpeer.OpDisconnectServerMux:
		delete(r.openings, m.MuxID)
	case rawpeer.OpResponse:
		return nil, r.expectAnswer(m, more)
	case rawpeer.OpMuxClientMsg:
		return r.expectMessage(m, &r.toServed, more, false)
	case rawpeer.OpMuxServerMsg:
		return r.expectMessage(m, &r.toOpened, more, true)
	}
	return nil, false
}

func (r *fragmentsRun) expectOpening(m rawpeer.Msg, more bool) (said []string, ends bool) {
	o := r.openings[m.MuxID]
	refused := []string{fmt.Sprint("refused ", m.MuxID)}
	switch {
	case m.Handler == 0 && r.fragments: // a further fragment
		switch {
		case o == nil:
			return nil, false
		case o.op != m.Op:
			return nil, true
		case m.Op == rawpeer.OpConnectMux && m.Seq != o.seq+1:
			delete(r.openings, m.MuxID)
			return refused, false
		}
		o.seq++
	case o != nil:
		return nil, true
	case m.Op == rawpeer.OpConnectMux && m.Seq != 0, m.Handler != map[uint8]uint8{rawpeer.OpRequest: 1, rawpeer.OpConnectMux: 2}[m.Op]:
		return refused, false
	case len(r.openings)+r.running() == fuzzSlots:
		return refused, false
	default:
		o = &openingModel{op: m.Op, handler: m.Handler, seq: m.Seq}
		r.openings[m.MuxID] = o
	}
	if o.got = append(o.got, m.Payload...); len(o.got) > fuzzWhole {
		return nil, true
	}
	if more {
		return nil, false
	}
	delete(r.openings, m.MuxID)
	if m.Op == rawpeer.OpRequest {
		return []string{fmt.Sprint("response ", m.MuxID, ": ", string(o.got))}, false
	}
	return []string{
		fmt.Sprint("ack ", m.MuxID), messageLine(m.MuxID, o.got, false), messageLine(m.MuxID, nil, true),
	}, false
}

// running is how many handlers run: that of the stream that is served.
func (r *fragmentsRun) running() int {
	if r.toServed.end == "failed" {
		return 0
	}
	return 1
}

func (r *fragmentsRun) expectAnswer(m rawpeer.Msg, more bool) (ends bool) {
	c := &r.call
	if c.over {
		return false
	}
	if m.Flags&rawpeer.FlagPayloadIsErr != 0 {
		c.over, c.end = true, "remote "+string(m.Payload)
		return false
	}
	c.got = append(c.got, m.Payload...)
	if len(c.got) > fuzzWhole {
		c.over, c.end = true, "error"
		return true
	}
	if !more {
		c.over, c.end = true, "ok "+string(c.got)
	}
	return false
}

func (r *fragmentsRun) expectMessage(m rawpeer.Msg, s *partsModel, more, toClient bool) (said []string, ends bool) {
	failed := []string{fmt.Sprint("failed ", m.MuxID)}
	if s.over {
		return nil, false
	}
	eof := m.Flags&rawpeer.FlagEOF != 0
	if m.Seq != s.seq || s.end == "ok " || eof && s.amid && len(m.Payload) == 0 && (!toClient || m.Flags&rawpeer.FlagPayloadIsErr == 0) {
		s.over, s.end = true, "failed"
		return failed, false
	}
	s.seq++
	if toClient && m.Flags&rawpeer.FlagPayloadIsErr != 0 {
		s.over, s.end = true, "remote "+string(m.Payload)
		return nil, false
	}
	if !eof || len(m.Payload) > 0 {
		if s.got = append(s.got, m.Payload...); len(s.got) > fuzzWhole {
			return nil, true
		}
		if s.amid = more; !more {
			s.messages = append(s.messages, string(s.got))
			s.got = nil
		}
	}
	if eof {
		s.end = "ok "
		s.over = toClient // a server looks at what follows
	}
	return nil, false
}

// compare holds what has arrived against the model.
func (r *fragmentsRun) compare() {
	require.Equal(r.t, len(r.openings), r.h.sess.opener.openings.size())
	require.Equal(r.t, len(r.openings)+r.running(), r.h.conn.Stats().Handlers)
	require.Equal(r.t, r.toServed.messages, r.served)
	require.Equal(r.t, r.toOpened.messages, r.opened)
	if r.toOpened.over {
		require.Equal(r.t, strings.Replace(r.toOpened.end, "failed", "error", 1), r.end)
	} else {
		require.Empty(r.t, r.end)
	}
	select {
	case got := <-r.answered:
		require.True(r.t, r.call.over)
		require.Equal(r.t, r.call.end, got)
	default:
		require.False(r.t, r.call.over && r.call.end != "heard", "no answer")
	}
	if r.call.over {
		r.call.end = "heard"
	}
}

func (r *fragmentsRun) finish() {
	r.h.Close()
	synctest.Wait()
	require.Zero(r.t, r.h.conn.Stats().Handlers, "slots of handlers are left")
	require.Zero(r.t, r.h.conn.taken.bytes.Used(), "bytes are counted that nobody keeps")
	require.Zero(r.t, r.h.sess.opener.openings.size())
	require.NotEmpty(r.t, r.end)
}

func (r *fragmentsRun) stop() {
	r.cancel()
	r.h.Close()
}
