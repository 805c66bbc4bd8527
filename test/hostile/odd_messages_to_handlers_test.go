package hostile

import (
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// A peer that calls our handlers, and says anything at any time.

// servedMux is a call or a stream that the peer has asked the node for.
type servedMux struct {
	id      uint64
	seq     uint32
	opening uint8 // the op of which the payload has come in part; 0 if none
	served  bool  // there is a stream
	ended   bool  // its input has
	amid    bool  // a message of it has come in part
	waiting int   // messages that wait for a credit, of those that the handler has left
	holds   bool  // the handler tells the cause of its context
}

type serverState struct {
	name      string
	fragments bool
	make      func(r *hostileRig, s *servedMux)
}

// serverStates are those that a mux of the peer's may be in when something comes.
func serverStates() []serverState {
	say := func(r *hostileRig, s *servedMux, m rawpeer.Msg) {
		m.MuxID = s.id
		if numberedOps[m.Op] {
			m.Seq = s.seq
			s.seq++
		}
		r.peer.Send(m)
		synctest.Wait()
	}
	open := func(r *hostileRig, s *servedMux, h grid.HandlerID, flags uint8) {
		s.served, s.holds, s.ended = true, h == holdStream, flags&rawpeer.FlagEOF != 0
		say(r, s, rawpeer.Msg{Op: rawpeer.OpConnectMux, Handler: uint8(h), Flags: flags})
	}
	request := func(h grid.HandlerID) func(r *hostileRig, s *servedMux) {
		return func(r *hostileRig, s *servedMux) {
			say(r, s, rawpeer.Msg{Op: rawpeer.OpRequest, Handler: uint8(h), Flags: rawpeer.FlagEOF})
		}
	}
	part := func(op uint8, h grid.HandlerID) func(r *hostileRig, s *servedMux) {
		return func(r *hostileRig, s *servedMux) {
			s.opening = op
			say(r, s, rawpeer.Fragment(op, s.id, 0, h))
		}
	}
	over := func(r *hostileRig, s *servedMux) { s.served, s.holds = false, false }
	return []serverState{
		{"unknown", false, func(*hostileRig, *servedMux) {}},
		{"request runs", false, request(slowRequest)},
		{"request answered", false, request(rig.Echo)},
		{"request refused", false, request(rig.Unused)},
		{"request opens", true, part(rawpeer.OpRequest, rig.Echo)},
		{"request refused amid its payload", true, func(r *hostileRig, s *servedMux) {
			part(rawpeer.OpRequest, rig.Unused)(r, s)
			s.opening = 0
		}},
		{"stream opens", true, part(rawpeer.OpConnectMux, holdStream)},
		{"stream runs", false, func(r *hostileRig, s *servedMux) { open(r, s, holdStream, 0) }},
		{"stream has had a message", false, func(r *hostileRig, s *servedMux) {
			open(r, s, holdStream, 0)
			say(r, s, rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, Payload: []byte("x")})
		}},
		{"stream has a message in part", true, func(r *hostileRig, s *servedMux) {
			open(r, s, holdStream, 0)
			say(r, s, rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, Flags: rawpeer.FlagMore, Payload: []byte("abc")})
			s.amid = true
		}},
		{"stream has no input", false, func(r *hostileRig, s *servedMux) { open(r, s, holdStream, rawpeer.FlagEOF) }},
		{"stream input ended", false, func(r *hostileRig, s *servedMux) {
			open(r, s, holdStream, 0)
			say(r, s, rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, Flags: rawpeer.FlagEOF})
			s.ended = true
		}},
		{"stream handler has returned", false, func(r *hostileRig, s *servedMux) {
			open(r, s, fullStream, 0)
			s.waiting = streamCapacity
		}},
		{"stream over", false, func(r *hostileRig, s *servedMux) {
			open(r, s, rig.Stream, 0)
			over(r, s)
		}},
		{"stream cancelled", false, func(r *hostileRig, s *servedMux) {
			open(r, s, holdStream, 0)
			say(r, s, rawpeer.Msg{Op: rawpeer.OpDisconnectServerMux})
			over(r, s)
		}},
		{"stream cancelled, handler runs", false, func(r *hostileRig, s *servedMux) {
			open(r, s, deafStream, 0)
			say(r, s, rawpeer.Msg{Op: rawpeer.OpDisconnectServerMux})
			over(r, s)
		}},
		{"stream broke a rule", false, func(r *hostileRig, s *servedMux) {
			open(r, s, holdStream, 0)
			s.seq += 7
			say(r, s, rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, Payload: []byte("x")})
			over(r, s)
		}},
	}
}

// want is what must come of the stream, or of what opens, when the peer says m.
func (s *servedMux) want(m rawpeer.Msg, extended, toldBoth bool) outcome {
	if breaksTheLink(m, extended) {
		return linkIsLost
	}
	if m.Op == rawpeer.OpRequest || m.Op == rawpeer.OpConnectMux {
		goesOn := extended && m.Handler == 0
		switch {
		case s.opening != 0 && (!goesOn || s.opening != m.Op):
			return linkIsLost // opened twice, or as both
		case s.opening == rawpeer.OpConnectMux && m.Seq != s.seq:
			return isOutOfTurn
		case s.served && m.Op == rawpeer.OpConnectMux && !goesOn:
			return isAgainst // opened twice
		}
		return stillThere
	}
	if !s.served {
		return stillThere
	}
	isCounted := m.Op == rawpeer.OpMuxClientMsg || m.Op == rawpeer.OpUnblockSrvMux || m.Op == rawpeer.OpPing
	if isCounted && m.Seq != s.seq {
		return isOutOfTurn
	}
	switch m.Op {
	case rawpeer.OpMuxClientMsg:
		eof := m.Flags&rawpeer.FlagEOF != 0
		if s.ended || s.amid && eof && len(m.Payload) == 0 {
			return isAgainst
		}
	case rawpeer.OpUnblockSrvMux:
		n := uint64(1)
		if extended {
			var err error
			if n, err = readCredits(m.Payload); err != nil {
				return isAgainst
			}
		} else if s.waiting == 0 {
			return isFlow
		}
		if s.waiting > 0 && n >= uint64(s.waiting) {
			return endedWell // for there is nothing more to come
		}
		if toldBoth && s.waiting == 0 && n > rig.MaxCapacity-streamCapacity {
			return isFlow // which others may not know
		}
	case rawpeer.OpDisconnectServerMux:
		if m.Flags&rawpeer.FlagPayloadIsErr != 0 {
			return isTheirs
		}
		return isCancelled
	}
	return stillThere
}

// check compares what has come of it, as the node shows it, with what must.
func (s *servedMux) check(r *hostileRig, want outcome, said []rawpeer.Msg, what string) {
	r.Helper()
	got := stillThere
	for _, m := range said {
		switch {
		case m.MuxID != s.id:
		case m.Op == rawpeer.OpDisconnectClientMux && m.Flags&rawpeer.FlagPayloadIsErr != 0:
			got = outcomeOfText(string(m.Payload))
		case m.Op == rawpeer.OpMuxConnectError && want == isOutOfTurn: // of a stream that opens
			text := rawpeer.ConnectErrorText(r, m.Payload)
			got = outcomeOfText(text)
		case m.Op == rawpeer.OpMuxServerMsg && m.Flags&rawpeer.FlagEOF != 0:
			got = endedWell
		}
	}
	if s.served && (want == isTheirs || want == isCancelled || want == linkIsLost) {
		require.Equal(r, stillThere, got, "the peer was told: %s", what)
		got = want
	}
	if want != linkIsLost && s.opening == 0 {
		require.Equal(r, want, got, "%s, answered by%s", what, rawpeer.Dump(said))
	}
	if s.served {
		isThere := r.Conn.Stats().StreamsServed > 0
		require.Equal(r, want == stillThere, isThere, what)
	}
	if s.holds && want != stillThere {
		require.Len(r, r.causes, 1, what)
		cause := outcomeOf(<-r.causes)
		if want == linkIsLost {
			want = isGone
		}
		require.Equal(r, want, cause, what)
	}
}

func TestSession_OddMessagesToOurHandlersHarmNoOthers(t *testing.T) {
	for _, state := range serverStates() {
		t.Run(state.name, func(t *testing.T) {
			inHostile(t, nil, func(r *hostileRig) {
				if state.fragments && !r.extended() {
					return
				}
				id := uint64(0)
				ours := sampled(r)
				for i, m := range oddMessages() {
					if !ours(i, messageShare) {
						continue
					}
					id++
					s := &servedMux{id: id}
					state.make(r, s)
					m.MuxID, m.Seq = s.id, m.Seq+s.seq
					r.clear()
					require.NoError(r, r.peer.TrySend(m))
					want := s.want(m, r.extended(), r.toldBoth())
					what := fmt.Sprintf("%v, next is %d", m, s.seq)
					require.Equal(r, want != linkIsLost, r.isUp(), "%s: want %s, log %q", what, want, r.Book.Lines)
					if want == linkIsLost {
						require.NotEmpty(r, r.Conn.Stats().LastError, what)
					}
					said := r.clear()
					require.LessOrEqual(r, len(said), 4+streamCapacity, "%s, answered by%s", what, rawpeer.Dump(said))
					s.check(r, want, said, what)
					r.works()
					r.quit(s.id)
					r.idle()
				}
			})
		})
	}
}
