package grid

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"
)

// What an attacker is made of, and the handlers that it calls.

// swallower reads all that a peer is sent, answers pings of the link, and keeps none
// of it: only how many there were.
type swallower struct {
	ops        [256]atomic.Int64
	overloaded atomic.Int64 // refusals for that reason
}

// swallow is for a peer that was made with Unread.
func (a *attacked) swallow(p *rawPeer) *swallower {
	w := new(swallower)
	p.reading.Go(func() {
		for {
			_, b, err := p.ws.ReadMessage()
			if err != nil {
				return
			}
			msgs, err := decodeMerged(b)
			if err != nil {
				a.Errorf("undecodable: %v", err)
				return
			}
			for _, m := range msgs {
				w.ops[m.Op].Add(1)
				switch {
				case m.Op == rawOpPing && m.MuxID == 0:
					pong, err := rawPong(m)
					if err != nil {
						a.Error(err)
					}
					_ = p.trySend(pong)
				case strings.Contains(string(m.Payload), ErrOverloaded.Error()+": "):
					w.overloaded.Add(1)
				}
			}
		}
	})
	return w
}

func (w *swallower) count(op uint8) int { return int(w.ops[op].Load()) }

// rawWS is a websocket frame of a peer; one that was dialled does not mask.
func (p *rawPeer) rawWS(first byte, length uint64, payload []byte) []byte {
	b := []byte{first}
	var mask byte
	if p.request == nil {
		mask = 0x80
	}
	switch {
	case length < 126:
		b = append(b, mask|byte(length))
	case length < 1<<16:
		b = append(b, mask|126, byte(length>>8), byte(length))
	default:
		b = append(b, mask|127)
		for shift := 56; shift >= 0; shift -= 8 {
			b = append(b, byte(length>>shift))
		}
	}
	if mask != 0 {
		b = append(b, 0, 0, 0, 0) // of zeros, so that it changes nothing
	}
	return append(b, payload...)
}

const (
	wsContinued = 0x00
	wsBinary    = 0x02
	wsPing      = 0x09
	wsFinal     = 0x80
)

// tryWriteRaw writes bytes to the socket itself.
func (p *rawPeer) tryWriteRaw(b []byte) error {
	p.writing <- struct{}{}
	defer func() { <-p.writing }()
	if err := p.ws.SetWriteDeadline(time.Now().Add(p.timeout)); err != nil {
		return err
	}
	_, err := p.ws.NetConn().Write(b)
	return err
}

// blocker is handlers that ignore everything until they are released.
type blocker struct {
	release       func()
	released      chan struct{}
	running, most atomic.Int64
}

func (b *blocker) wait() {
	n := b.running.Add(1)
	for old := b.most.Load(); n > old && !b.most.CompareAndSwap(old, n); old = b.most.Load() {
	}
	<-b.released
	b.running.Add(-1)
}

func (b *blocker) single(p []byte) ([]byte, *RemoteErr) {
	b.wait()
	PutByteBuffer(p)
	return nil, nil
}

func (b *blocker) stream(context.Context, []byte, <-chan []byte, chan<- []byte) *RemoteErr {
	b.wait()
	return nil
}

const (
	attackSingle HandlerID = iota + 100
	attackStream
	attackAnswer
)

// block registers handlers that ignore their contexts, until the test ends.
func (a *attacked) block(inCapacity int) *blocker {
	a.Helper()
	b := &blocker{released: make(chan struct{})}
	b.release = sync.OnceFunc(func() { close(b.released) })
	a.Cleanup(b.release)
	require.NoError(a, a.node.RegisterSingleHandler(attackSingle, b.single))
	require.NoError(a, a.node.RegisterStreamingHandler(attackStream, StreamHandler{Handle: b.stream, InCapacity: inCapacity}))
	return b
}
