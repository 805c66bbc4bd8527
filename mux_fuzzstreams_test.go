package grid

import (
	"errors"
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
		}
		f.Add([]byte("\x02\x01\x00\x01\x04\x04\x05\x01\x00\x00\x00\x00" + steps + "\x00\x01\x05\x01\x04\x0f"))
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
	caps    caps
	hosts   [2]*fuzzHost
	pending [2][]rawpeer.Msg // what a host has sent, and the other one has not been given
	rules   *wireRules
	streams []*fuzzStream
	began   time.Time
}

const fuzzMaxMessage = 200 << 10

func newStreamsRun(t *testing.T, p *program) *streamsRun {
	kind := p.byte()
	caps := []caps{0, capWideCredits, wireCaps, capFragments}[kind&3]
	if kind&8 != 0 {
		caps ^= capBothCapacities
	}
	r := &streamsRun{t: t, p: p, caps: caps, began: time.Now()}
	for i := range r.hosts {
		r.hosts[i] = newFuzzHost(t, i, caps, func(o *ManagerOptions) { o.MaxMessageSize = fuzzMaxMessage })
		if kind&4 != 0 {
			r.hosts[i].conn.crc, r.hosts[i].sess.sender.out.crc = 0, 0
		}
	}
	r.rules = newWireRules(t, r)
	for i := range 1 + p.n(3) {
		s := newFuzzStream(r, i)
		r.streams = append(r.streams, s)
		for _, h := range r.hosts { // a version 1 client has to know the capacities
			require.NoError(t, h.RegisterStreamingHandler(s.handler(), s.streamHandler()))
		}
	}
	for _, h := range r.hosts {
		h.run()
	}
	synctest.Wait()
	return r
}

// step is one instruction.
func (r *streamsRun) step() {
	op := r.p.n(16)
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
	}
	s := pick(r.p, r.streams...)
	switch op {
	case 0:
		s.open()
	case 1:
		s.clientSends(r.p)
	case 2:
		offer(s.permits, 1+r.p.n(20), true)
	case 3:
		s.closeInput()
	case 4:
		offer(s.taking, 1+r.p.n(20), true)
	case 5, 6:
		s.handlerDoes(handlerStep{size: size(r.p)})
	case 7:
		s.handlerDoes(handlerStep{returns: true, how: r.p.n(4)})
	case 10:
		s.cause(errFuzzCancel)
		s.cancelled = true
		s.cancel(errFuzzCancel)
	case 11:
		s.stopEarly()
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
	r.settle()
	r.check()
	for _, s := range r.streams {
		if s.opened {
			s.checkEnd()
		}
	}
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
	for _, h := range r.hosts {
		h.wire.stall(false)
		h.Close()
	}
}

var (
	errFuzzCancel = errors.New("cancelled by the program")
	errFuzzStop   = errors.New("consumed enough")
)
