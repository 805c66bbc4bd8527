package grid

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/gridrpc/grid/internal/credit"
	"github.com/gridrpc/grid/internal/limit"
	"github.com/stretchr/testify/require"
)

// inboxModel is what an inbox must do, without buffers, windows and credits in numbers.
type inboxModel struct {
	t        *testing.T
	b        *inbox
	wide     bool
	known    bool // to the receiver: the capacity
	capacity int
	sent     int // messages that went in
	taken    int
	held     []int // of taken, those not passed on yet: what each counts
	times    int   // what each counts besides its size when it is held
	handed   int   // of held, those that the handler has taken
	granted  int
	widest   int // window so far
	waiting  []string
	bytes    int
	ended    bool
	err      error
	budget   limit.Budget
	idle     bool // the consumer found nothing, and waits
}

// FuzzInbox drives the receiving end of a stream: nothing lost, repeated or out of order, no sender
// stuck, and no more credits than the window may have.
func FuzzInbox(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 1, 1, 1})
	f.Add([]byte{1, 8, 0, 0, 0, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1, 4})
	f.Add([]byte{3, 3, 0, 20, 2, 3, 0, 20, 2, 3, 0, 255, 2, 2, 2, 3, 4, 0, 1})
	f.Add([]byte{1, 1, 7, 0, 7, 0, 7, 0, 7, 0, 7, 255, 7, 255, 7, 255, 5})
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0, 0, 6, 1, 5, 0})
	f.Add([]byte{1, 16, 0, 1, 0, 2, 0, 3, 1, 0, 4, 1, 1, 0, 5, 0, 6, 0, 7, 0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 1, 1, 0, 1, 0, 1, 1, 1, 1})
	f.Add([]byte{0, 8, 0, 2, 0, 3, 0, 4, 2, 2, 8, 1, 5, 2, 8, 1, 3, 0}) // dropped while some are held
	f.Add([]byte{1, 8, 0, 2, 4, 0, 5})                                  // dropped after a good end
	f.Add(append([]byte{1, 8}, bytes.Repeat([]byte{7, 1}, 40)...))      // a window that grows as far as it may
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 200 {
			return // the interest is in what, not in how much
		}
		p := &program{data}
		kind := p.byte()
		m := &inboxModel{t: t, b: new(inbox), wide: kind&3 != 0, known: kind&3 != 3, capacity: p.n(20)}
		m.budget.Init("MaxHostBytes", math.MaxInt, nil)
		switch kind & 3 {
		default:
			m.b.init(m.capacity, m.wide)
		case 2: // by an ack
			m.b.init(0, true)
			m.b.begin(m.capacity)
		case 3:
			m.b.initUntold()
		}
		m.times = int(kind>>2) & 3
		m.b.setHolder(m, m.times)
		for !p.done() {
			switch p.n(9) {
			case 0:
				m.push(pick(p, inboxSizes...))
			case 1:
				m.take()
			case 2:
				m.hold()
			case 3:
				m.pass(p)
			case 4:
				m.end(nil, p)
			case 5:
				m.drop()
			case 6:
				m.end(errors.New("ended"), p)
			case 8:
				m.recount(p)
			case 7: // all that may be sent, and all of it consumed
				size, most := pick(p, inboxSizes...), 600
				if size > 100 {
					most = 10
				}
				for range min(m.free(), most) {
					m.push(size)
				}
				for len(m.waiting) > 0 {
					m.take()
				}
			}
			m.check()
		}
		for len(m.waiting) > 0 {
			m.take()
		}
		m.take() // the end, if it has come
		m.pass(p)
		m.check()
		if !m.ended && m.capacity > 0 && m.known && len(m.held) == 0 {
			require.Positive(t, m.free(), "the sender is stuck")
		}
	})
}

// free is what the sender may send.
func (m *inboxModel) free() int {
	n := m.capacity
	if !m.known {
		n = maxCapacity
	}
	return n + m.granted - m.sent
}

// inboxSizes are those of messages.
var inboxSizes = []int{0, 1, 10, 100, 1000, 3000, 10_000, 300_000}

func (m *inboxModel) push(size int) {
	text := fmt.Sprint(m.sent, ":")
	b := append([]byte(text), make([]byte, size)...)
	free := m.free()
	err := pushFrom(m.b, b, &m.budget)
	switch {
	case m.ended:
		require.NoError(m.t, err, "what comes late is dropped")
	case free == 0:
		require.ErrorIs(m.t, err, ErrFlowControl)
	default:
		require.NoError(m.t, err)
		m.sent++
		m.waiting = append(m.waiting, string(b))
		m.bytes += len(b) + messageCost
	}
}

// got checks what came out against what went in.
func (m *inboxModel) got(msg arrived, ok, ended bool, err error) bool {
	if len(m.waiting) == 0 {
		require.False(m.t, ok, "a message from nowhere")
		require.Equal(m.t, m.ended, ended)
		require.Equal(m.t, m.err, err)
		if m.idle = !ended; m.idle {
			select {
			case <-m.b.signal:
			default:
			}
		}
		return false
	}
	m.idle = false
	require.True(m.t, ok && !ended, "a message was lost")
	require.Equal(m.t, m.waiting[0], string(msg.join()))
	m.bytes -= len(m.waiting[0]) + messageCost
	m.waiting = m.waiting[1:]
	m.taken++
	return true
}

func (m *inboxModel) take() {
	msg, grant, ok, ended, err := m.b.take()
	if !m.got(msg, ok, ended, err) {
		require.Zero(m.t, grant)
	}
	m.granted += grant
}

func (m *inboxModel) hold() {
	before := m.bytes
	if m.got(m.b.hold()) {
		cost := before - m.bytes
		cost += m.times * (cost - messageCost)
		m.held = append(m.held, cost)
		m.bytes += cost // until it is passed
	}
}

func (m *inboxModel) pass(p *program) {
	m.granted += m.b.handedOn(len(m.held), p.byte()&1 == 0)
	for _, n := range m.held {
		m.bytes -= n
	}
	m.held, m.handed = nil, 0
}

// recount has the handler take some of what is held, which counts no more from then on.
func (m *inboxModel) recount(p *program) {
	m.handed += p.n(len(m.held) - m.handed + 1)
	m.b.recount()
	for i := range m.handed {
		m.bytes -= m.held[i]
		m.held[i] = 0
	}
}

// holds implements holder.
func (m *inboxModel) holds() int { return len(m.held) - m.handed }

func (m *inboxModel) end(err error, p *program) {
	if p.byte()&3 != 0 { // not too soon
		return
	}
	m.b.end(err)
	if !m.ended {
		m.ended, m.err = true, err
	}
}

func (m *inboxModel) drop() {
	dropped := errors.New("dropped")
	m.b.drop(dropped)
	// A clean end stays one only if nothing was lost.
	if !m.ended || m.err == nil && len(m.waiting) > 0 {
		m.ended, m.err = true, dropped
	}
	m.waiting, m.bytes = nil, 0
	for _, n := range m.held { // they are in the hands of the handler
		m.bytes += n
	}
}

func (m *inboxModel) check() {
	if m.idle && (len(m.waiting) > 0 || m.ended) {
		require.Len(m.t, m.b.signal, 1, "the consumer is not woken")
	}
	if !m.wide {
		require.LessOrEqual(m.t, m.granted, m.taken-len(m.held), "a credit for nothing")
	}
	require.EqualValues(m.t, m.bytes, m.budget.Used())
	require.Equal(m.t, m.free() == 0 && m.bytes > 0 && !m.ended, m.b.isFull())
	if m.known {
		// What the sender holds, and what waits.
		window := m.capacity + m.granted - m.taken
		require.LessOrEqual(m.t, window, max(m.capacity, credit.MaxWindow), "the window is too wide")
		require.GreaterOrEqual(m.t, m.free(), 0)
	}
	m.widest = max(m.widest, m.b.window.Size(), len(m.waiting))
	require.LessOrEqual(m.t, cap(m.b.queue), max(2*firstQueue, 4*m.widest), "the queue grows without end")
}
