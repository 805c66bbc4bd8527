package grid

import (
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// A peer that calls our handlers, and says anything at any time.

// liarServed is a call or a stream that the liar has asked the node for.
type liarServed struct {
	id      uint64
	seq     uint32
	opening uint8 // the op of which the payload has come in part; 0 if none
	served  bool  // there is a stream
	ended   bool  // its input has
	amid    bool  // a message of it has come in part
	waiting int   // messages that wait for a credit, of those that the handler has left
	holds   bool  // the handler tells the cause of its context
}

type liarServerState struct {
	name      string
	fragments bool
	make      func(r *liarRig, s *liarServed)
}

// liarServerStates are those that a mux of the liar's may be in when something comes.
func liarServerStates() []liarServerState {
	say := func(r *liarRig, s *liarServed, m rawMsg) {
		m.MuxID = s.id
		if numberedOps[m.Op] {
			m.Seq = s.seq
			s.seq++
		}
		r.peer.send(m)
		synctest.Wait()
	}
	open := func(r *liarRig, s *liarServed, h HandlerID, flags uint8) {
		s.served, s.holds, s.ended = true, h == liarHold, flags&rawFlagEOF != 0
		say(r, s, rawMsg{Op: rawOpConnectMux, Handler: uint8(h), Flags: flags})
	}
	request := func(h HandlerID) func(r *liarRig, s *liarServed) {
		return func(r *liarRig, s *liarServed) {
			say(r, s, rawMsg{Op: rawOpRequest, Handler: uint8(h), Flags: rawFlagEOF})
		}
	}
	part := func(op uint8, h HandlerID) func(r *liarRig, s *liarServed) {
		return func(r *liarRig, s *liarServed) {
			s.opening = op
			say(r, s, fragment(op, s.id, 0, h))
		}
	}
	over := func(r *liarRig, s *liarServed) { s.served, s.holds = false, false }
	return []liarServerState{
		{"unknown", false, func(*liarRig, *liarServed) {}},
		{"request runs", false, request(liarSlow)},
		{"request answered", false, request(testEcho)},
		{"request refused", false, request(testUnused)},
		{"request opens", true, part(rawOpRequest, testEcho)},
		{"request refused amid its payload", true, func(r *liarRig, s *liarServed) {
			part(rawOpRequest, testUnused)(r, s)
			s.opening = 0
		}},
		{"stream opens", true, part(rawOpConnectMux, liarHold)},
		{"stream runs", false, func(r *liarRig, s *liarServed) { open(r, s, liarHold, 0) }},
		{"stream has had a message", false, func(r *liarRig, s *liarServed) {
			open(r, s, liarHold, 0)
			say(r, s, rawMsg{Op: rawOpMuxClientMsg, Payload: []byte("x")})
		}},
		{"stream has a message in part", true, func(r *liarRig, s *liarServed) {
			open(r, s, liarHold, 0)
			say(r, s, rawMsg{Op: rawOpMuxClientMsg, Flags: rawFlagMore, Payload: []byte("abc")})
			s.amid = true
		}},
		{"stream has no input", false, func(r *liarRig, s *liarServed) { open(r, s, liarHold, rawFlagEOF) }},
		{"stream input ended", false, func(r *liarRig, s *liarServed) {
			open(r, s, liarHold, 0)
			say(r, s, rawMsg{Op: rawOpMuxClientMsg, Flags: rawFlagEOF})
			s.ended = true
		}},
		{"stream handler has returned", false, func(r *liarRig, s *liarServed) {
			open(r, s, liarFull, 0)
			s.waiting = liarCapacity
		}},
		{"stream over", false, func(r *liarRig, s *liarServed) {
			open(r, s, testStream, 0)
			over(r, s)
		}},
		{"stream cancelled", false, func(r *liarRig, s *liarServed) {
			open(r, s, liarHold, 0)
			say(r, s, rawMsg{Op: rawOpDisconnectServerMux})
			over(r, s)
		}},
		{"stream cancelled, handler runs", false, func(r *liarRig, s *liarServed) {
			open(r, s, liarDeaf, 0)
			say(r, s, rawMsg{Op: rawOpDisconnectServerMux})
			over(r, s)
		}},
		{"stream broke a rule", false, func(r *liarRig, s *liarServed) {
			open(r, s, liarHold, 0)
			s.seq += 7
			say(r, s, rawMsg{Op: rawOpMuxClientMsg, Payload: []byte("x")})
			over(r, s)
		}},
	}
}

// want is what must come of the stream, or of what opens, when the liar says m.
func (s *liarServed) want(m rawMsg, extended bool) liarOutcome {
	if breaksTheLink(m, extended) {
		return linkIsLost
	}
	if m.Op == rawOpRequest || m.Op == rawOpConnectMux {
		goesOn := extended && m.Handler == 0
		switch {
		case s.opening != 0 && (!goesOn || s.opening != m.Op):
			return linkIsLost // opened twice, or as both
		case s.opening == rawOpConnectMux && m.Seq != s.seq:
			return isOutOfTurn
		case s.served && m.Op == rawOpConnectMux && !goesOn:
			return isAgainst // opened twice
		}
		return stillThere
	}
	if !s.served {
		return stillThere
	}
	isCounted := m.Op == rawOpMuxClientMsg || m.Op == rawOpUnblockSrvMux || m.Op == rawOpPing
	if isCounted && m.Seq != s.seq {
		return isOutOfTurn
	}
	switch m.Op {
	case rawOpMuxClientMsg:
		eof := m.Flags&rawFlagEOF != 0
		if s.ended || s.amid && eof && len(m.Payload) == 0 {
			return isAgainst
		}
	case rawOpUnblockSrvMux:
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
	case rawOpDisconnectServerMux:
		if m.Flags&rawFlagPayloadIsErr != 0 {
			return isTheirs
		}
		return isCancelled
	}
	return stillThere
}

// check compares what has come of it, as the node shows it, with what must.
func (s *liarServed) check(r *liarRig, want liarOutcome, said []rawMsg, what string) {
	r.Helper()
	got := stillThere
	for _, m := range said {
		switch {
		case m.MuxID != s.id:
		case m.Op == rawOpDisconnectClientMux && m.Flags&rawFlagPayloadIsErr != 0:
			got = outcomeOfText(string(m.Payload))
		case m.Op == rawOpMuxConnectError && want == isOutOfTurn: // of a stream that opens
			var e muxConnectError
			require.NoError(r, unmarshal(e.UnmarshalMsg, m.Payload))
			got = outcomeOfText(e.Error)
		case m.Op == rawOpMuxServerMsg && m.Flags&rawFlagEOF != 0:
			got = endedWell
		}
	}
	if s.served && (want == isTheirs || want == isCancelled || want == linkIsLost) {
		require.Equal(r, stillThere, got, "the liar was told: %s", what)
		got = want
	}
	if want != linkIsLost && s.opening == 0 {
		require.Equal(r, want, got, "%s, answered by%s", what, rawDump(said))
	}
	if s.served {
		isThere := r.conn.Stats().StreamsServed > 0
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

func TestLiarCallsOurHandlers(t *testing.T) {
	for _, state := range liarServerStates() {
		t.Run(state.name, func(t *testing.T) {
			inLiar(t, nil, func(r *liarRig) {
				if state.fragments && !r.extended() {
					return
				}
				id := uint64(0)
				for i, m := range liarMessages() {
					if !sampled(i, liarShare) {
						continue
					}
					id++
					s := &liarServed{id: id}
					state.make(r, s)
					m.MuxID, m.Seq = s.id, m.Seq+s.seq
					r.clear()
					require.NoError(r, r.peer.trySend(m))
					want := s.want(m, r.extended())
					what := fmt.Sprintf("%v, next is %d", m, s.seq)
					require.Equal(r, want != linkIsLost, r.isUp(), "%s: want %s, log %q", what, want, r.log.lines)
					if want == linkIsLost {
						require.NotEmpty(r, r.conn.Stats().LastError, what)
					}
					said := r.clear()
					require.LessOrEqual(r, len(said), 4+liarCapacity, "%s, answered by%s", what, rawDump(said))
					s.check(r, want, said, what)
					r.works()
					r.quit(s.id)
					r.idle()
				}
			})
		})
	}
}
