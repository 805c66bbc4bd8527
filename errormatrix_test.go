package grid

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/faultconn"
)

// The kinds of error that a caller can tell apart.
const (
	isDisconnected = "disconnected"
	isCanceled     = "canceled"
	isDeadline     = "deadline"
	isCause        = "cause"
	isTooLarge     = "too large"
	isFlowControl  = "flow control"
	isSequence     = "sequence"
	isProtocol     = "protocol"
	isUnknown      = "unknown handler"
	isRemote       = "remote"
	isNothingElse  = "nothing else" // an error of its own
)

// kindOf returns the kinds that err is, as [errors.Is] and [errors.As] say.
func kindOf(err error) (kinds []string) {
	for kind, target := range map[string]error{
		isDisconnected: ErrDisconnected, isCanceled: context.Canceled, isDeadline: context.DeadlineExceeded,
		isCause: errTestCause, isTooLarge: ErrMessageTooLarge, isFlowControl: ErrFlowControl,
		isSequence: ErrIncorrectSequence, isProtocol: ErrProtocol, isUnknown: ErrUnknownHandler,
	} {
		if errors.Is(err, target) {
			kinds = append(kinds, kind)
		}
	}
	var p *RemoteErr
	var v RemoteErr
	if errors.As(err, &p) != errors.As(err, &v) || errors.As(err, &p) != IsRemoteErr(err) {
		return []string{"remote by one measure only"}
	}
	if IsRemoteErr(err) {
		kinds = append(kinds, isRemote)
	}
	if len(kinds) == 0 && err != nil {
		kinds = append(kinds, isNothingElse)
	}
	slices.Sort(kinds)
	return kinds
}

func requireKind(t *testing.T, err error, want string, what string) {
	t.Helper()
	require.Error(t, err, what)
	require.Equal(t, []string{want}, kindOf(err), "%s: %v", what, err)
}

// failing is what a failure is staged in: a node, the peer that it talks to, and
// the context of its caller.
type failing struct {
	*testGrid
	conn    *Connection
	peer    *rawPeer
	config  rawConfig
	ctx     context.Context
	cancel  context.CancelCauseFunc
	payload []byte
}

// inFailing stages one failure, in a bubble.
func inFailing(t *testing.T, f func(t *testing.T, e *failing)) {
	t.Helper()
	inBubble(t, func(t *testing.T) {
		g, raw := newLoneGrid(t, faultconn.NewNetwork(), true, func(o *ManagerOptions) { o.MaxMessageSize = 1000 })
		e := &failing{testGrid: g, conn: g.nodes[0].Connection(raw), config: rawConfig{ID: make([]byte, 16)}}
		e.peer = g.dialLone(raw, e.config)
		e.ctx, e.cancel = context.WithCancelCause(t.Context())
		defer e.cancel(nil)
		f(t, e)
	})
}

func (e *failing) cutLink()    { e.net.Cut(hostAddr(e.conn.remote), e.addr(0)) }
func (e *failing) replace()    { e.dialLone(e.conn.remote, e.config) }
func (e *failing) closeNode()  { e.stop(0) }
func (e *failing) cancelOnly() { e.cancel(nil) }
func (e *failing) giveCause()  { e.cancel(errTestCause) }

// limit gives the context a deadline; cause may be nil.
func (e *failing) limit(d time.Duration, cause error) {
	var stop context.CancelFunc
	e.ctx, stop = context.WithTimeoutCause(e.ctx, d, cause)
	context.AfterFunc(e.ctx, stop)
}

// answer has the peer send a message for the call or stream m.
func (e *failing) answer(m rawMsg, op, flags uint8, payload string) {
	m.Op, m.Flags, m.Payload, m.Subroute = op, flags, []byte(payload), nil
	e.peer.send(m)
}

// texts are what a remote may say that is a local condition's text.
var texts = []string{ErrDisconnected.Error(), context.Canceled.Error(), context.DeadlineExceeded.Error(), "plain"}

type callFailure struct {
	want   string
	before func(e *failing)
	during func(e *failing, m rawMsg) // m is what the peer has got
}

var callFailures = map[string]callFailure{
	"lost before":            {isDisconnected, func(e *failing) { e.cutLink(); synctest.Wait() }, nil},
	"closed before":          {isDisconnected, (*failing).closeNode, nil},
	"nil connection":         {isDisconnected, func(e *failing) { e.conn = nil }, nil},
	"cancelled before":       {isCanceled, (*failing).cancelOnly, nil},
	"cause before":           {isCause, (*failing).giveCause, nil},
	"deadline before":        {isDeadline, func(e *failing) { e.limit(-1, nil) }, nil},
	"deadline before, cause": {isCause, func(e *failing) { e.limit(-1, errTestCause) }, nil},
	"too large":              {isTooLarge, func(e *failing) { e.payload = make([]byte, 1001) }, nil},

	"lost during":      {isDisconnected, nil, func(e *failing, _ rawMsg) { e.cutLink() }},
	"peer closes":      {isDisconnected, nil, func(e *failing, _ rawMsg) { e.peer.close() }},
	"replaced":         {isDisconnected, nil, func(e *failing, _ rawMsg) { e.replace() }},
	"closed during":    {isDisconnected, nil, func(e *failing, _ rawMsg) { e.closeNode() }},
	"peer is garbage":  {isDisconnected, nil, func(e *failing, _ rawMsg) { _ = e.peer.trySendBytes([]byte("?")) }},
	"dropped":          {isDisconnected, nil, func(e *failing, m rawMsg) { e.answer(m, rawOpDisconnectClientMux, 0, "") }},
	"cancelled during": {isCanceled, nil, func(e *failing, _ rawMsg) { e.cancelOnly() }},
	"cause during":     {isCause, nil, func(e *failing, _ rawMsg) { e.giveCause() }},
	"deadline":         {isDeadline, func(e *failing) { e.limit(time.Second, nil) }, func(*failing, rawMsg) {}},
	"deadline, cause":  {isCause, func(e *failing) { e.limit(time.Second, errTestCause) }, func(*failing, rawMsg) {}},
	"ack of neither":   {isProtocol, nil, func(e *failing, m rawMsg) { e.answer(m, rawOpMuxServerMsg, 0, "x") }},
}

func init() {
	for _, text := range texts {
		refusal := string(muxConnectErrorPayload(text))
		callFailures["refused: "+text] = callFailure{isRemote, nil, func(e *failing, m rawMsg) {
			e.answer(m, rawOpMuxConnectError, 0, refusal)
		}}
		callFailures["dropped: "+text] = callFailure{isRemote, nil, func(e *failing, m rawMsg) {
			e.answer(m, rawOpDisconnectClientMux, rawFlagPayloadIsErr, text)
		}}
		streamFailures["returned: "+text] = streamFailure{isRemote, func(e *failing, m rawMsg) {
			e.answer(m, rawOpMuxServerMsg, rawFlagEOF|rawFlagPayloadIsErr, text)
		}}
		streamFailures["dropped: "+text] = streamFailure{isRemote, func(e *failing, m rawMsg) {
			e.answer(m, rawOpDisconnectClientMux, rawFlagPayloadIsErr, text)
		}}
	}
}

func muxConnectErrorPayload(text string) []byte {
	b, err := (&muxConnectError{Error: text}).MarshalMsg(nil)
	if err != nil {
		panic(err)
	}
	return b
}

func TestEveryWayACallCanFail(t *testing.T) {
	single := NewSingleHandler(testHandler, NewBytes, NewBytes)
	stream := NewStream(testHandler, NewBytes, NewBytes, NewBytes)
	calls := map[string]func(e *failing) error{
		"single": func(e *failing) error {
			_, err := e.conn.SingleRequest(e.ctx, testHandler, e.payload)
			return err
		},
		"open": func(e *failing) error {
			_, err := e.conn.NewStream(e.ctx, testHandler, e.payload)
			return err
		},
		"single, subroute": func(e *failing) error {
			_, err := e.conn.Subroute("a").SingleRequest(e.ctx, testHandler, e.payload)
			return err
		},
		"open, subroute": func(e *failing) error {
			_, err := e.conn.Subroute("a").NewStream(e.ctx, testHandler, e.payload)
			return err
		},
		"typed single": func(e *failing) error {
			resp, err := single.Call(e.ctx, e.conn, NewBytesWith(e.payload))
			require.Nil(e.t, resp)
			return err
		},
		"typed open": func(e *failing) error {
			s, err := stream.Call(e.ctx, e.conn, NewBytesWith(e.payload))
			require.Nil(e.t, s)
			return err
		},
	}
	for name, failure := range callFailures {
		t.Run(name, func(t *testing.T) {
			for what, call := range calls {
				inFailing(t, func(t *testing.T, e *failing) {
					if failure.before != nil {
						failure.before(e)
					}
					errs := make(chan error, 1)
					go func() { errs <- call(e) }()
					if failure.during != nil {
						failure.during(e, e.peer.recv())
					}
					requireKind(t, <-errs, failure.want, what)
				})
			}
		})
	}
}

// What only one of the two can fail with.
func TestEveryWayACallCanFailByItsAnswer(t *testing.T) {
	inFailing(t, func(t *testing.T, e *failing) {
		answered := func(op, flags uint8, payload string) error {
			errs := make(chan error, 1)
			go func() { _, err := e.conn.SingleRequest(e.ctx, testHandler, nil); errs <- err }()
			e.answer(e.peer.recv(), op, flags, payload)
			return <-errs
		}
		for _, text := range texts {
			err := answered(rawOpResponse, rawFlagEOF|rawFlagPayloadIsErr, text)
			requireKind(t, err, isRemote, "handler error "+text)
			require.EqualError(t, err, text)
		}
		require.NoError(t, answered(rawOpResponse, rawFlagEOF, ""))
		requireKind(t, answered(rawOpAckMux, 0, ""), isProtocol, "ack to a request")

		_, err := e.conn.SingleRequest(e.ctx, 0, nil)
		requireKind(t, err, isUnknown, "ID 0")
		_, err = e.conn.NewStream(e.ctx, 0, nil)
		requireKind(t, err, isUnknown, "ID 0")
		_, err = e.conn.Subroute("").SingleRequest(e.ctx, testHandler, nil)
		requireKind(t, err, isNothingElse, "empty subroute")
	})
}

func TestNeverConnectedIsDisconnected(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g, raw := newLoneGrid(t, faultconn.NewNetwork(), false, nil)
		c := g.nodes[0].Connection(raw)
		require.Zero(t, elapsed(func() {
			_, err := c.SingleRequest(t.Context(), testEcho, nil)
			requireKind(t, err, isDisconnected, "single")
			_, err = c.NewStream(t.Context(), testStream, nil)
			requireKind(t, err, isDisconnected, "open")
		}))
	})
}

type streamFailure struct {
	want   string
	strike func(e *failing, m rawMsg) // m is to be answered with
}

var streamFailures = map[string]streamFailure{
	"lost":            {isDisconnected, func(e *failing, _ rawMsg) { e.cutLink() }},
	"peer closes":     {isDisconnected, func(e *failing, _ rawMsg) { e.peer.close() }},
	"replaced":        {isDisconnected, func(e *failing, _ rawMsg) { e.replace() }},
	"closed":          {isDisconnected, func(e *failing, _ rawMsg) { e.closeNode() }},
	"dropped":         {isDisconnected, func(e *failing, m rawMsg) { e.answer(m, rawOpDisconnectClientMux, 0, "") }},
	"peer is silent":  {isDisconnected, func(*failing, rawMsg) {}},
	"cancelled":       {isCanceled, func(e *failing, _ rawMsg) { e.cancelOnly() }},
	"cause":           {isCause, func(e *failing, _ rawMsg) { e.giveCause() }},
	"handler error":   {isRemote, func(e *failing, m rawMsg) { e.answer(m, rawOpMuxServerMsg, rawFlagEOF|rawFlagPayloadIsErr, "bad") }},
	"out of sequence": {isSequence, func(e *failing, m rawMsg) { m.Seq++; e.answer(m, rawOpMuxServerMsg, 0, "x") }},
	"overrun": {isFlowControl, func(e *failing, m rawMsg) {
		for range 4 {
			e.answer(m, rawOpMuxServerMsg, 0, "x")
			m.Seq++
		}
	}},
	"credits":        {isFlowControl, func(e *failing, m rawMsg) { e.answer(m, rawOpUnblockClMux, 0, "") }},
	"second ack":     {isProtocol, func(e *failing, m rawMsg) { e.answer(m, rawOpAckMux, 0, "") }},
	"response to it": {isProtocol, func(e *failing, m rawMsg) { e.answer(m, rawOpResponse, rawFlagEOF, "") }},
}

func TestEveryWayAStreamCanFail(t *testing.T) {
	for name, failure := range streamFailures {
		t.Run(name, func(t *testing.T) {
			inFailing(t, func(t *testing.T, e *failing) {
				e.registerLocally(3, 2)
				s, id := openToPeer(t, e.ctx, e.conn, e.peer, 2)
				failure.strike(e, rawMsg{MuxID: id, Seq: 1})
				<-s.Done()
				requireDead(t, s, failure.want)
			})
		})
	}
}

// requireDead requires all that a stream can be asked to give the same answer.
func requireDead(t *testing.T, s *Stream, want string) {
	t.Helper()
	requireKind(t, s.Err(), want, "Err")
	requireKind(t, s.Send(nil), want, "Send")
	requireKind(t, s.Results(func([]byte) error { return nil }), want, "Results")
	var last error
	for _, err := range s.All() {
		require.NoError(t, last)
		last = err
	}
	requireKind(t, last, want, "All")
	requireKind(t, s.Results(nil), want, "Results again")
}

func TestEveryWayAStreamCanFailByItsDeadlineOrItsConsumer(t *testing.T) {
	for name, test := range map[string]struct {
		cause        error
		serverBefore bool // the server's notice comes first
		want         string
	}{
		"client first":        {nil, false, isDeadline},
		"client first, cause": {errTestCause, false, isCause},
		"server first":        {nil, true, isDeadline},
	} {
		t.Run(name, func(t *testing.T) {
			inFailing(t, func(t *testing.T, e *failing) {
				e.registerLocally(3, 2)
				e.limit(10*time.Second, test.cause)
				s, id := openToPeer(t, e.ctx, e.conn, e.peer, 2)
				if test.serverBefore {
					e.answer(rawMsg{MuxID: id}, rawOpDisconnectClientMux, rawFlagPayloadIsErr, context.DeadlineExceeded.Error())
				}
				<-s.Done()
				requireDead(t, s, test.want)
			})
		})
	}
	t.Run("callback error", func(t *testing.T) {
		inFailing(t, func(t *testing.T, e *failing) {
			e.registerLocally(3, 2)
			s, id := openToPeer(t, e.ctx, e.conn, e.peer, 2)
			e.peer.send(serverMsgs(id, "x")[0])
			requireKind(t, s.Results(func([]byte) error { return errTestCause }), isCause, "Results")
			requireDead(t, s, isCause)
		})
	})
	t.Run("too large", func(t *testing.T) {
		inFailing(t, func(t *testing.T, e *failing) {
			e.registerLocally(3, 2)
			s, _ := openToPeer(t, e.ctx, e.conn, e.peer, 2)
			requireKind(t, s.Send(make([]byte, 1001)), isTooLarge, "Send")
			require.NoError(t, s.Err(), "the stream lives on")
			s.Requests <- make([]byte, 1001)
			<-s.Done()
			requireKind(t, s.Err(), isTooLarge, "Err")
			requireKind(t, s.Results(nil), isTooLarge, "Results")
		})
	})
}
