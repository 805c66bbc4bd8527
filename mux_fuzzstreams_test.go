package grid

import (
	"errors"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/rawpeer"
)

// FuzzStreams runs a program on two sessions, with streams between them, whose messages the program
// hands on as well. See streamsRun.check for what must hold.
func FuzzStreams(f *testing.F) {
	const ( // see step; stream 0 only
		open, up, down   = "\x00\x00", "\x08\x00", "\x08\x01"
		send, input      = "\x01\x00\x04", "\x04\x00\x09"
		large, close     = "\x01\x00\x07", "\x03\x00"
		serve, consume   = "\x05\x00\x04", "\x02\x00\x09"
		serveLarge       = "\x05\x00\x07"
		well, fail, boom = "\x07\x00\x00", "\x07\x00\x02", "\x07\x00\x03"
		cancel, enough   = "\x0a\x00", "\x0b\x00"
		wait, stall, cut = "\x0c\x04", "\x0d\x01", "\x0e\x00"
		settle           = "\x0f"
		opened           = open + up + down
	)
	for _, steps := range []string{
		"", open, opened, opened + well, opened + serve + serve + serve + well + settle + consume, opened + serve + serve + fail + down, opened + serve + boom + settle,
		opened + send + send + send + input + settle + close + settle + well, opened + send + send + close + settle + well + settle + consume, opened + input + large + send + up + up + close,
		opened + serveLarge + serve + well + settle + consume, opened + serveLarge + serveLarge + send + down + cancel + settle, opened + consume + serve + well + down + send + settle,
		opened + send + cancel + up + settle + serve, opened + serve + serve + enough + settle + serve, opened + send + serve + wait + settle, opened + serve + serve + cut + settle, open + cut + up,
		stall + opened + serve + stall + settle, open + cancel + up + down, opened + serve + consume + down + up + serve + down + well + "\x09\x01\x00\x01\x09\x01\x00\x01" + consume,
	} {
		for kind := range byte(16) {
			// The stream's client, the forms of its ends, its capacities, its deadline.
			f.Add([]byte(string([]byte{kind, 0, 0, kind & 7, 1 + kind&7>>1, 3 - kind>>1&2, 0}) + steps))
			f.Add([]byte(string([]byte{secondKind | kind, kind & 3 * 7, 0, 0, kind & 7, 1 + kind&7>>1, 3 - kind>>1&2, 0, kind % 5, kind, 1, 0, 0}) + steps))
		}
		f.Add([]byte("\x02\x01\x00\x01\x04\x04\x05\x01\x00\x00\x00\x00" + steps + "\x00\x01\x05\x01\x04\x0f"))
	}
	const (
		gated, gatedLarge  = "\x10\x00\x04", "\x10\x00\x08"
		handlerGated, gate = "\x11\x00\x04", "\x12\x00"
		giveUp             = "\x13\x00" // Finish
		breakOff           = "\x07\x00\x04"
		single, singleSub  = "\x14\x02\x04\x00\x01", "\x14\x00\x09\x00\x00"
		large2             = "\x14\x03\x08\x03\x00"
		answer, wrap       = "\x15\x00\x00", "\x15\x00\x01"
		cancelled          = "\x16\x00"
	)
	for _, steps := range []string{
		opened + send + serve + consume + enough + settle + serve + settle + well, opened + serve + serve + serve + settle + enough + consume + settle + fail, opened + enough + down + giveUp + settle + serve,
		opened + send + send + gated + gated + gate + input + settle + send + close + well, opened + gatedLarge + gatedLarge + up + gate + settle + input + well, opened + serve + handlerGated + handlerGated + gate + settle + consume + serve + well,
		opened + serve + breakOff + settle + consume, opened + send + enough + serve + send + settle + well, opened + large + large + enough + up + input + settle + well, opened + serveLarge + enough + consume + settle + boom,
		opened + stall + large + gated + gated + gate + send + settle + input + serve + consume + well, opened + "\x0d\x00" + serve + handlerGated + handlerGated + handlerGated + gate + settle + consume + serve + well,
		single + down + settle + answer + settle, single + settle + cancelled + settle + wrap + settle, single + cancelled + settle + answer, singleSub + settle + cancelled + settle + answer, large2 + settle + wrap + settle,
		single + single + single + single + settle + answer + settle, single + settle + wait + wait + cancelled, large2 + down + cancelled + settle, single + settle + answer + cancelled + settle, stall + single + cancelled + settle,
		opened + single + settle + cancelled + cut + settle, "\x00\x01" + opened + settle + "\x07\x01\x00" + settle + "\x00\x02" + settle, opened + wait + wait + serve + settle,
	} {
		for _, kind := range []byte{0, 1, 2, 3, 6, 10} {
			for consumer := range byte(5) {
				// Also what goes with requests and not with streams.
				f.Add([]byte(string([]byte{secondKind | kind | consumer&1<<4, consumer, 0, 0, kind, 2, 2, 0, consumer, 3*kind + consumer, kind & 1, consumer, 0}) + steps))
			}
		}
		f.Add([]byte("\x82\x00\x02\x00\x02\x02\x02\x00\x00\x00\x01\x00\x00\x00\x03\x02\x02\x00\x01\x00\x00\x00\x01\x00\x03\x02\x02\x00\x04\x01\x00\x00\x01" + steps))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 600 {
			return // the interest is in what, not in how much
		}
		synctest.Test(t, func(t *testing.T) {
			r := newStreamsRun(t, &program{data})
			defer r.stop()
			for !r.p.done() {
				r.step()
				synctest.Wait()
				r.check()
			}
			r.finish()
		})
	})
}

// streamsRun is two hosts with streams between them, in either direction.
type streamsRun struct {
	quiet   fence
	t       *testing.T
	p       *program
	second  bool // see secondKind
	caps    caps
	hosts   [2]*fuzzHost
	pending [2][]rawpeer.Msg // what a host has sent, and the other one has not been given
	rules   *wireRules
	streams []*fuzzStream
	calls   []*fuzzCall
	running [2][2]atomic.Int32 // of the calls' handlers, by host
	began   time.Time
}

// secondKind is the bit of runs that have single requests as well, more forms of streams, metadata,
// and limits of handlers. What others mean must not change: they are the corpus.
const secondKind = 0x80

const fuzzMaxMessage = 200 << 10

func newStreamsRun(t *testing.T, p *program) *streamsRun {
	kind := p.byte()
	caps := []caps{0, capWideCredits, wireCaps, capFragments}[kind&3]
	if kind&8 != 0 {
		caps ^= capBothCapacities
	}
	r := &streamsRun{t: t, p: p, second: kind&secondKind != 0, caps: caps, began: time.Now()}
	if r.second {
		r.caps ^= pick(p, 0, capCancel, capErrors, capMetadata, capCancel|capErrors|capMetadata)
	}
	for i := range 1 + p.n(3) {
		r.streams = append(r.streams, newFuzzStream(r, i))
	}
	options := map[HandlerKey]HandlerOptions{
		{ID: plainCalls}:   {MaxRunning: maxRunningCalls},
		{ID: contextCalls}: {MaxRunning: maxRunningCalls, Timeout: callsTimeout},
	}
	for _, s := range r.streams {
		options[HandlerKey{ID: s.handler()}] = s.home.options
	}
	for i := range r.hosts {
		r.hosts[i] = newFuzzHost(t, i, r.caps, func(o *ManagerOptions) {
			o.MaxMessageSize, o.HandlerOptions = fuzzMaxMessage, options
			if r.second && kind&16 != 0 {
				o.MaxQueuedBytes = minQueued // so that a stalled link has no room
			}
		})
		r.registerCalls(i)
		if kind&4 != 0 {
			r.hosts[i].conn.crc, r.hosts[i].sess.sender.out.crc = 0, 0
		}
	}
	r.rules = newWireRules(t, r)
	for _, s := range r.streams {
		for _, h := range r.hosts { // a version 1 client has to know the capacities
			if s.home == s {
				require.NoError(t, h.RegisterStreamingHandler(s.handler(), s.streamHandler()))
			}
		}
	}
	for _, h := range r.hosts {
		h.run()
	}
	synctest.Wait()
	return r
}

// stream is the one that is opened with the payload.
func (r *streamsRun) stream(payload []byte) *fuzzStream {
	i, err := strconv.Atoi(string(payload))
	require.NoError(r.t, err)
	return r.streams[i]
}

// step is one instruction.
func (r *streamsRun) step() {
	ops := 16
	if r.second {
		ops = 23
	}
	op := r.p.n(ops)
	switch op {
	case 8:
		r.move(r.p.n(2), 1<<10, true)
		return
	case 9: // a few, or one
		r.move(r.p.n(2), 1+r.p.n(3), r.p.n(2) == 0)
		return
	case 12:
		r.sleep(pick(r.p, time.Millisecond, 100*time.Millisecond, time.Second, 4*time.Second, 16*time.Second, 40*time.Second))
		return
	case 13:
		h := r.hosts[r.p.n(2)]
		h.wire.stall(!h.wire.stalled)
		return
	case 14:
		r.cut(r.p.n(2))
		return
	case 15:
		r.settle()
		return
	case 20:
		r.call()
		return
	case 21, 22:
		if len(r.calls) == 0 {
			return
		}
		if c := pick(r.p, r.calls...); op == 21 {
			c.answer(r.p.n(4))
		} else {
			c.giveUp()
		}
		return
	}
	s := pick(r.p, r.streams...)
	switch op {
	case 0:
		s.open()
	case 1:
		s.clientSends(r.p, nil)
	case 2:
		offer(s.permits, 1+r.p.n(20), true)
	case 3:
		s.closeInput()
	case 4:
		offer(s.taking, 1+r.p.n(20), true)
	case 5, 6:
		s.handlerDoes(fuzzStep{size: size(r.p)})
	case 7:
		hows := 4
		if r.second {
			hows = 5
		}
		s.handlerDoes(fuzzStep{returns: true, how: r.p.n(hows)})
	case 10:
		s.cause(errFuzzCancel)
		s.cancelled = true
		s.cancel(errFuzzCancel)
	case 11:
		s.stopEarly()
	case 16:
		s.clientSends(r.p, s.gate.ctx)
	case 17:
		s.handlerDoes(fuzzStep{size: size(r.p), ctx: s.gate.ctx})
	case 18:
		s.closeGate()
	case 19:
		s.cause(errFuzzFinish)
		s.finish.cancel(errFuzzFinish)
	}
}

// size is that of a message; some are sent in fragments.
func size(p *program) int {
	return pick(p, 0, 1, 2, 10, 100, 1000, wholeSize+1, 2*fragmentSize, fuzzMaxMessage, 3)
}

// offer gives n of v to whoever reads c, who is not waited for.
func offer[T any](c chan T, n int, v T) {
	for range n {
		select {
		case c <- v:
		default:
			return
		}
	}
}

// collect takes what the hosts have written, and holds it against the rules.
func (r *streamsRun) collect() {
	synctest.Wait()
	for i, h := range r.hosts {
		for _, m := range h.take() {
			r.rules.sent(i, m)
			r.pending[i] = append(r.pending[i], m)
		}
	}
}

// move hands on the next n messages of host from, merged or one by one.
func (r *streamsRun) move(from, n int, merged bool) (moved bool) {
	r.collect()
	n = min(n, len(r.pending[from]))
	msgs := r.pending[from][:n]
	r.pending[from] = r.pending[from][n:]
	to := r.hosts[1-from]
	for _, m := range msgs {
		r.rules.delivered(from, m)
		if !merged {
			to.put(m.Encode())
			synctest.Wait()
		}
	}
	if merged && n > 0 {
		to.put(rawpeer.EncodeMerged(msgs...))
	}
	synctest.Wait()
	return n > 0
}

// settle hands on everything, until nothing comes any more.
func (r *streamsRun) settle() {
	for _, h := range r.hosts {
		h.wire.stall(false)
	}
	for r.move(0, 1<<20, true) || r.move(1, 1<<20, true) {
		r.check()
	}
	r.checkCredits()
	for _, c := range r.calls {
		c.check(true)
	}
}

// isLost reports whether the link is.
func (r *streamsRun) isLost() bool {
	for _, h := range r.hosts {
		if h.ended() || h.wire.ended {
			return true
		}
	}
	return false
}

// checkCredits requires that the client of a stream knows what its server has: nothing is on its
// way.
func (r *streamsRun) checkCredits() {
	if r.caps.wide() && !r.caps.bothCapacities() {
		return // it does not tell
	}
	for i, h := range r.hosts {
		for _, c := range h.sess.streams.all(nil) {
			s, ok := r.hosts[1-i].sess.served.get(c.id)
			if !ok || c.hasEnded() || s.isAborted() {
				continue
			}
			c.in.mu.Lock()
			spent := c.in.window.Spent()
			c.in.mu.Unlock()
			require.Equal(r.t, s.credits.Ready() != nil, spent, "what client and server of stream %d know of credits", c.id)
		}
	}
}

// sleep lets time pass on a link that works.
func (r *streamsRun) sleep(d time.Duration) {
	r.settle()
	for d > 0 {
		step := min(d, time.Second)
		r.quiet.pass()
		time.Sleep(step)
		d -= step
		r.settle()
	}
}

// cut ends what host i reads.
func (r *streamsRun) cut(i int) {
	for _, s := range r.streams {
		s.cause(ErrDisconnected)
	}
	r.hosts[i].wire.end()
}

// check is what holds at any time when all is quiet.
func (r *streamsRun) check() {
	r.rules.check()
	for _, s := range r.streams {
		s.check()
	}
	for _, c := range r.calls {
		c.check(false)
	}
}

// finish lets the program's streams come to their end, and looks at it.
func (r *streamsRun) finish() {
	lost := false
	for i, h := range r.hosts {
		if lost = h.ended() || h.wire.ended; lost { // the other end notices as well
			r.cut(1 - i)
			r.cut(i)
			break
		}
	}
	for _, s := range r.streams {
		close(s.permits)
		close(s.taking)
		s.closeInput()
	}
	r.settle()
	for _, s := range r.streams {
		if s.opened && !lost {
			s.checkAllCame()
		}
		close(s.steps)
	}
	for _, c := range r.calls {
		close(c.answers)
	}
	r.settle()
	r.check()
	for _, s := range r.streams {
		if s.opened {
			s.checkEnd()
		}
	}
	for _, c := range r.calls {
		c.checkEnd()
	}
	r.checkHandlers()
	for i, h := range r.hosts {
		c := h.sess
		require.Zero(r.t, c.streams.size(), "streams are left")
		require.Zero(r.t, c.served.size(), "served streams are left")
		require.Zero(r.t, c.opener.openings.size(), "openings are left")
		require.Zero(r.t, h.conn.Stats().Handlers, "slots of handlers are left")
		require.Zero(r.t, h.conn.taken.bytes.Used(), "bytes are counted that nobody keeps")
		require.Equal(r.t, lost, h.ended(), "host %d: %v", i, c.err)
	}
}

// checkHandlers compares what is counted for each handler with what has run.
func (r *streamsRun) checkHandlers() {
	type counts struct{ runs, failed, refused int64 }
	var want [2]map[HandlerID]counts
	add := func(client int, id HandlerID, runs int, failed *RemoteErr, err error) {
		if want[1-client] == nil {
			want[1-client] = map[HandlerID]counts{}
		}
		c := want[1-client][id]
		c.runs += int64(runs)
		if failed != nil {
			c.failed++
		}
		if errors.Is(err, ErrOverloaded) {
			c.refused++
		}
		want[1-client][id] = c
	}
	for _, s := range r.streams {
		add(s.client, s.handler(), s.runs, s.result, s.err)
	}
	for _, c := range r.calls {
		add(c.client, c.handler(), c.runs, c.failure(), c.err)
	}
	for i, h := range r.hosts {
		for _, st := range h.HandlerStats() {
			c := want[i][st.ID]
			require.Zero(r.t, st.Running, "%+v", st)
			require.Equal(r.t, c.failed, st.Failed, "%+v", st)
			// Some did not run because nobody waited for them any more, and of some refusals nobody
			// has heard.
			require.GreaterOrEqual(r.t, st.Calls-st.Refused, c.runs, "%+v", st)
			require.GreaterOrEqual(r.t, st.Refused, c.refused, "%+v", st)
		}
	}
}

// stop ends everything, also after a failure.
func (r *streamsRun) stop() {
	for _, s := range r.streams {
		s.cancel(nil)
		for _, f := range []func(){func() { close(s.permits) }, func() { close(s.taking) }, func() { close(s.steps) }, s.closeInput} {
			func() {
				defer func() { _ = recover() }() // closed already
				f()
			}()
		}
	}
	for _, c := range r.calls {
		c.cancel(nil)
		func() {
			defer func() { _ = recover() }() // closed already
			close(c.answers)
		}()
	}
	for _, h := range r.hosts {
		h.wire.stall(false)
		h.Close()
	}
}

var (
	errFuzzCancel = errors.New("cancelled by the program")
	errFuzzStop   = errors.New("consumed enough")
	errFuzzGate   = errors.New("the context of the send has ended")
	errFuzzFinish = errors.New("the context of Finish has ended")
)
