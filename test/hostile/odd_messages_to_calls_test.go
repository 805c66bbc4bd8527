package hostile

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// A peer that serves our calls, and says anything at any time.

// askedMux is a call or a stream of the node's that the peer has been asked for.
type askedMux struct {
	id     uint64
	seq    uint32 // of what the peer sends next
	stream bool
	acked  bool
	amid   bool // a payload has come in part
	over   bool // nothing that comes changes its end
	cancel context.CancelFunc
	done   <-chan error // how it has ended
}

type clientState struct {
	name      string
	fragments bool // only where there are
	make      func(r *hostileRig) *askedMux
}

// clientStates are those that a mux of ours may be in when something comes.
func clientStates() []clientState {
	request := func(r *hostileRig) *askedMux {
		ctx, cancel := context.WithCancel(r.Context())
		a := &askedMux{cancel: cancel}
		a.done = rig.InBackground(func() error {
			b, err := r.Conn.SingleRequest(ctx, rig.Echo, []byte("please"))
			grid.PutByteBuffer(b)
			return err
		})
		a.id = r.peer.Expect(rawpeer.OpRequest).MuxID
		return a
	}
	opening := func(r *hostileRig) *askedMux {
		ctx, cancel := context.WithCancel(r.Context())
		a := &askedMux{cancel: cancel, stream: true}
		a.done = rig.InBackground(func() error {
			s, err := r.Conn.NewStream(ctx, holdStream, nil)
			if err != nil {
				return err
			}
			<-s.Done()
			if s.Requests != nil {
				close(s.Requests)
			}
			return rig.Consume(s)
		})
		a.id = r.peer.Expect(rawpeer.OpConnectMux).MuxID
		return a
	}
	ack := func(r *hostileRig, a *askedMux) *askedMux {
		r.peer.Send(rawpeer.Msg{MuxID: a.id, Op: rawpeer.OpAckMux, Payload: rawpeer.AckPayload(r.peer.Config.Caps, streamCapacity, streamCapacity)})
		a.seq, a.acked = 1, true
		synctest.Wait()
		return a
	}
	open := func(r *hostileRig) *askedMux { return ack(r, opening(r)) }
	// say sends something of the mux, which takes a number if it is a stream's.
	say := func(r *hostileRig, a *askedMux, op, flags uint8, payload string) {
		m := rawpeer.Msg{MuxID: a.id, Op: op, Flags: flags, Payload: []byte(payload)}
		if a.stream {
			m.Seq = a.seq
			a.seq++
		}
		r.peer.Send(m)
		synctest.Wait()
	}
	ended := func(r *hostileRig, a *askedMux) *askedMux {
		a.over = true
		synctest.Wait()
		return a
	}
	return []clientState{
		{"unknown", false, func(r *hostileRig) *askedMux {
			done := make(chan error, 1)
			done <- nil
			return &askedMux{id: 1 << 40, over: true, cancel: func() {}, done: done}
		}},
		{"request waits", false, request},
		{"request answered", false, func(r *hostileRig) *askedMux {
			a := request(r)
			say(r, a, rawpeer.OpResponse, rawpeer.FlagEOF, "answer")
			return ended(r, a)
		}},
		{"request refused", false, func(r *hostileRig) *askedMux {
			a := request(r)
			say(r, a, rawpeer.OpMuxConnectError, 0, string(rawpeer.ConnectError("no")))
			return ended(r, a)
		}},
		{"request given up", false, func(r *hostileRig) *askedMux { a := request(r); a.cancel(); return ended(r, a) }},
		{"request answered in part", true, func(r *hostileRig) *askedMux {
			a := request(r)
			say(r, a, rawpeer.OpResponse, rawpeer.FlagMore, "abc")
			say(r, a, rawpeer.OpResponse, rawpeer.FlagMore, "def")
			a.amid = true
			return a
		}},
		{"stream opening", false, opening},
		{"stream open", false, open},
		{"stream has a message", false, func(r *hostileRig) *askedMux {
			a := open(r)
			say(r, a, rawpeer.OpMuxServerMsg, 0, "x")
			return a
		}},
		{"stream has a message in part", true, func(r *hostileRig) *askedMux {
			a := open(r)
			say(r, a, rawpeer.OpMuxServerMsg, rawpeer.FlagMore, "abc")
			a.amid = true
			return a
		}},
		{"stream input ended", false, func(r *hostileRig) *askedMux {
			ctx, cancel := context.WithCancel(r.Context())
			a := &askedMux{cancel: cancel, stream: true}
			a.done = rig.InBackground(func() error {
				s, err := r.Conn.NewStream(ctx, holdStream, nil)
				if err != nil {
					return err
				}
				s.CloseSend()
				<-s.Done()
				return rig.Consume(s)
			})
			a.id = r.peer.Expect(rawpeer.OpConnectMux).MuxID
			return ack(r, a)
		}},
		{"stream ended well", false, func(r *hostileRig) *askedMux {
			a := open(r)
			say(r, a, rawpeer.OpMuxServerMsg, rawpeer.FlagEOF, "")
			return ended(r, a)
		}},
		{"stream failed", false, func(r *hostileRig) *askedMux {
			a := open(r)
			say(r, a, rawpeer.OpMuxServerMsg, rawpeer.FlagEOF|rawpeer.FlagPayloadIsErr, "bad")
			return ended(r, a)
		}},
		{"stream failed on this side", false, func(r *hostileRig) *askedMux {
			a := open(r)
			a.seq += 5
			say(r, a, rawpeer.OpMuxServerMsg, 0, "x")
			return ended(r, a)
		}},
		{"stream dropped", false, func(r *hostileRig) *askedMux {
			a := open(r)
			say(r, a, rawpeer.OpDisconnectClientMux, 0, "")
			return ended(r, a)
		}},
		{"stream cancelled", false, func(r *hostileRig) *askedMux { a := open(r); a.cancel(); return ended(r, a) }},
		{"stream cancelled amid a message", true, func(r *hostileRig) *askedMux {
			a := open(r)
			say(r, a, rawpeer.OpMuxServerMsg, rawpeer.FlagMore, "abc")
			a.cancel()
			return ended(r, a)
		}},
	}
}

// want is what must come of it when the peer says m: by the protocol, section by section.
func (a *askedMux) want(m rawpeer.Msg, extended, toldBoth bool) outcome {
	if breaksTheLink(m, extended) {
		return linkIsLost
	}
	if a.over {
		return endedWell
	}
	var (
		isErr = m.Flags&rawpeer.FlagPayloadIsErr != 0
		eof   = m.Flags&rawpeer.FlagEOF != 0
		more  = extended && m.Flags&rawpeer.FlagMore != 0
	)
	switch m.Op {
	case rawpeer.OpMuxConnectError:
		return isTheirs
	case rawpeer.OpDisconnectClientMux:
		if isErr {
			return isTheirs
		}
		return isGone
	case rawpeer.OpResponse:
		switch {
		case more:
			return stillThere
		case a.stream:
			return isAgainst
		case isErr:
			return isTheirs
		}
		return endedWell
	case rawpeer.OpPong:
		if a.stream && m.Payload[3] == msgp.AppendBool(nil, true)[0] { // behind the key "nf"
			return isGone
		}
		return stillThere
	case rawpeer.OpAckMux, rawpeer.OpMuxServerMsg, rawpeer.OpUnblockClMux:
	default:
		return stillThere
	}
	if !a.stream { // in answer to a request
		if m.Op == rawpeer.OpUnblockClMux {
			return stillThere
		}
		return isAgainst
	}
	switch {
	case m.Seq != a.seq:
		return isOutOfTurn
	case a.acked == (m.Op == rawpeer.OpAckMux):
		return isAgainst
	}
	switch m.Op {
	case rawpeer.OpMuxServerMsg:
		switch {
		case isErr:
			return isTheirs
		case eof && len(m.Payload) == 0 && a.amid:
			return isAgainst
		case eof:
			return endedWell
		}
		return stillThere
	case rawpeer.OpUnblockClMux:
		if !extended {
			return isFlow // the input has spent none
		}
		if n, err := readCredits(m.Payload); err != nil {
			return isAgainst
		} else if n > rig.MaxCapacity-streamCapacity {
			return isFlow
		}
		return stillThere
	}
	switch {
	case toldBoth:
		in, rest, err := msgp.ReadUint64Bytes(m.Payload)
		if err != nil || in > rig.MaxCapacity {
			return isAgainst
		}
		if out, err := readCredits(rest); len(rest) == 0 || err != nil || out == 0 {
			return isAgainst
		}
	case extended:
		if _, err := readCredits(m.Payload); err != nil || len(m.Payload) == 0 {
			return isAgainst
		}
	}
	return stillThere
}

// readCredits is how the protocol has credits, none of them being one.
func readCredits(b []byte) (uint64, error) {
	if len(b) == 0 {
		return 1, nil
	}
	n, rest, err := msgp.ReadUint64Bytes(b)
	if err == nil && (len(rest) > 0 || n > rig.MaxCapacity) {
		err = errors.New("not a number of credits")
	}
	return n, err
}

// breaksTheLink reports whether m does so whatever it is for.
func breaksTheLink(m rawpeer.Msg, extended bool) bool {
	if m.Flags&rawpeer.FlagSubroute != 0 && len(m.Subroute) < 32 {
		return true
	}
	if extended && m.Flags&rawpeer.FlagMore != 0 {
		switch m.Op {
		case rawpeer.OpRequest, rawpeer.OpResponse, rawpeer.OpConnectMux, rawpeer.OpMuxClientMsg, rawpeer.OpMuxServerMsg:
			if len(m.Payload) == 0 || m.Flags&(rawpeer.FlagEOF|rawpeer.FlagPayloadIsErr) != 0 {
				return true
			}
		default:
			return true
		}
	}
	switch m.Op {
	case rawpeer.OpConnect, rawpeer.OpConnectResponse, rawpeer.OpDisconnect:
		return true
	case rawpeer.OpMerged: // nothing follows it, so it may not announce anything
		return m.Seq != 0 || m.Flags&rawpeer.FlagCRC != 0
	case rawpeer.OpPong, rawpeer.OpMuxConnectError:
		_, err := msgp.Skip(m.Payload)
		return err != nil
	}
	return false
}

// end ends what the peer has left, and returns how it did.
func (a *askedMux) end(r *hostileRig) error {
	a.cancel()
	return <-a.done
}

func TestSession_OddMessagesToOurCallsHarmNoOthers(t *testing.T) {
	for _, state := range clientStates() {
		t.Run(state.name, func(t *testing.T) {
			inHostile(t, nil, func(r *hostileRig) {
				if state.fragments && !r.extended() {
					return
				}
				n := 0
				ours := sampled(r)
				for i, m := range oddMessages() {
					if !ours(i, messageShare) {
						continue
					}
					n++
					r.clear()
					a := state.make(r)
					m.MuxID, m.Seq = a.id, m.Seq+a.seq
					r.clear()
					require.NoError(r, r.peer.TrySend(m))
					want := a.want(m, r.extended(), r.toldBoth())
					what := fmt.Sprintf("%v, next is %d", m, a.seq)
					require.Equal(r, want != linkIsLost, r.isUp(), "%s: want %s, log %q", what, want, r.Book.Lines)
					if want == linkIsLost {
						require.NotEmpty(r, r.Conn.Stats().LastError, what)
					}
					r.works()
					got := stillThere
					select {
					case err := <-a.done:
						got = outcomeOf(err)
						require.True(r, want != stillThere, "%s: %v", what, err)
						a.cancel()
					default:
						_ = a.end(r)
					}
					switch {
					case a.over:
					case want == linkIsLost:
						require.Equal(r, isGone, got, what)
					default:
						require.Equal(r, want, got, what)
					}
					r.quit(a.id)
					r.idle()
				}
				r.Logf("%d messages", n)
			})
		})
	}
}
