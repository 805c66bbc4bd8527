package calls

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// failing is what a failure is staged in: a node, the peer that it talks to, and the context of its
// caller.
type failing struct {
	*rig.Grid
	conn    *grid.Connection
	peer    *rawpeer.Peer
	config  rawpeer.Config
	ctx     context.Context
	cancel  context.CancelCauseFunc
	payload []byte
}

// inFailing stages one failure, in a bubble.
func inFailing(t *testing.T, f func(t *testing.T, e *failing)) {
	t.Helper()
	rig.InBubble(t, func(t *testing.T) {
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), true, func(o *grid.ManagerOptions) { o.MaxMessageSize = 1000 })
		e := &failing{Grid: g, conn: g.Manager(0).Connection(raw), config: rawpeer.Config{ID: make([]byte, 16)}}
		e.peer = g.DialLone(raw, e.config)
		e.ctx, e.cancel = context.WithCancelCause(t.Context())
		defer e.cancel(nil)
		f(t, e)
	})
}

func (e *failing) cutLink() { e.Net.Cut(rig.HostAddr(e.conn.HostName()), e.Addr(0)) }

func (e *failing) replace() { e.DialLone(e.conn.HostName(), e.config) }

func (e *failing) closeNode() { e.Stop(0) }

func (e *failing) cancelOnly() { e.cancel(nil) }

func (e *failing) giveCause() { e.cancel(rig.ErrCause) }

// limit gives the context a deadline; cause may be nil.
func (e *failing) limit(d time.Duration, cause error) {
	var stop context.CancelFunc
	e.ctx, stop = context.WithTimeoutCause(e.ctx, d, cause)
	context.AfterFunc(e.ctx, stop)
}

// answer has the peer send a message for the call or stream m.
func (e *failing) answer(m rawpeer.Msg, op, flags uint8, payload string) {
	m.Op, m.Flags, m.Payload, m.Subroute = op, flags, []byte(payload), nil
	e.peer.Send(m)
}

// texts are what a remote may say that is a local condition's text.
var texts = []string{grid.ErrDisconnected.Error(), context.Canceled.Error(), context.DeadlineExceeded.Error(), "plain"}

type callFailure struct {
	want   string
	before func(e *failing)
	during func(e *failing, m rawpeer.Msg) // m is what the peer has got
}

var callFailures = map[string]callFailure{
	"lost before":            {rig.IsDisconnected, func(e *failing) { e.cutLink(); synctest.Wait() }, nil},
	"closed before":          {rig.IsDisconnected, (*failing).closeNode, nil},
	"nil connection":         {rig.IsDisconnected, func(e *failing) { e.conn = nil }, nil},
	"cancelled before":       {rig.IsCanceled, (*failing).cancelOnly, nil},
	"cause before":           {rig.IsCanceledCause, (*failing).giveCause, nil},
	"deadline before":        {rig.IsDeadline, func(e *failing) { e.limit(-1, nil) }, nil},
	"deadline before, cause": {rig.IsDeadlineCause, func(e *failing) { e.limit(-1, rig.ErrCause) }, nil},
	"too large":              {rig.IsTooLarge, func(e *failing) { e.payload = make([]byte, 1001) }, nil},

	"lost during":      {rig.IsDisconnected, nil, func(e *failing, _ rawpeer.Msg) { e.cutLink() }},
	"peer closes":      {rig.IsDisconnected, nil, func(e *failing, _ rawpeer.Msg) { e.peer.Close() }},
	"replaced":         {rig.IsDisconnected, nil, func(e *failing, _ rawpeer.Msg) { e.replace() }},
	"closed during":    {rig.IsDisconnected, nil, func(e *failing, _ rawpeer.Msg) { e.closeNode() }},
	"peer is garbage":  {rig.IsDisconnected, nil, func(e *failing, _ rawpeer.Msg) { _ = e.peer.TrySendBytes([]byte("?")) }},
	"dropped":          {rig.IsDisconnected, nil, func(e *failing, m rawpeer.Msg) { e.answer(m, rawpeer.OpDisconnectClientMux, 0, "") }},
	"cancelled during": {rig.IsCanceled, nil, func(e *failing, _ rawpeer.Msg) { e.cancelOnly() }},
	"cause during":     {rig.IsCanceledCause, nil, func(e *failing, _ rawpeer.Msg) { e.giveCause() }},
	"deadline":         {rig.IsDeadline, func(e *failing) { e.limit(time.Second, nil) }, func(*failing, rawpeer.Msg) {}},
	"deadline, cause":  {rig.IsDeadlineCause, func(e *failing) { e.limit(time.Second, rig.ErrCause) }, func(*failing, rawpeer.Msg) {}},
	"ack of neither":   {rig.IsProtocol, nil, func(e *failing, m rawpeer.Msg) { e.answer(m, rawpeer.OpMuxServerMsg, 0, "x") }},
}

func init() {
	for _, text := range texts {
		refusal := string(rawpeer.ConnectError(text))
		callFailures["refused: "+text] = callFailure{rig.IsRemote, nil, func(e *failing, m rawpeer.Msg) {
			e.answer(m, rawpeer.OpMuxConnectError, 0, refusal)
		}}
		callFailures["dropped: "+text] = callFailure{rig.IsRemote, nil, func(e *failing, m rawpeer.Msg) {
			e.answer(m, rawpeer.OpDisconnectClientMux, rawpeer.FlagPayloadIsErr, text)
		}}
		streamFailures["returned: "+text] = streamFailure{rig.IsRemote, func(e *failing, m rawpeer.Msg) {
			e.answer(m, rawpeer.OpMuxServerMsg, rawpeer.FlagEOF|rawpeer.FlagPayloadIsErr, text)
		}}
		streamFailures["dropped: "+text] = streamFailure{rig.IsRemote, func(e *failing, m rawpeer.Msg) {
			e.answer(m, rawpeer.OpDisconnectClientMux, rawpeer.FlagPayloadIsErr, text)
		}}
	}
}

func TestError_EveryWayACallCanFail(t *testing.T) {
	t.Parallel()
	single := grid.NewSingleHandler(rig.Handler, grid.NewBytes, grid.NewBytes)
	stream := grid.NewStream(rig.Handler, grid.NewBytes, grid.NewBytes, grid.NewBytes)
	calls := map[string]func(e *failing) error{
		"single": func(e *failing) error {
			_, err := e.conn.SingleRequest(e.ctx, rig.Handler, e.payload)
			return err
		},
		"open": func(e *failing) error {
			_, err := e.conn.NewStream(e.ctx, rig.Handler, e.payload)
			return err
		},
		"single, subroute": func(e *failing) error {
			_, err := e.conn.Subroute("a").SingleRequest(e.ctx, rig.Handler, e.payload)
			return err
		},
		"open, subroute": func(e *failing) error {
			_, err := e.conn.Subroute("a").NewStream(e.ctx, rig.Handler, e.payload)
			return err
		},
		"typed single": func(e *failing) error {
			resp, err := single.Call(e.ctx, e.conn, grid.NewBytesWith(e.payload))
			require.Nil(e.T, resp)
			return err
		},
		"typed open": func(e *failing) error {
			s, err := stream.Call(e.ctx, e.conn, grid.NewBytesWith(e.payload))
			require.Nil(e.T, s)
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
						failure.during(e, e.peer.Recv())
					}
					rig.RequireKind(t, <-errs, failure.want, what)
				})
			}
		})
	}
}

// What only one of the two can fail with.
func TestError_EveryWayACallCanFailByItsAnswer(t *testing.T) {
	t.Parallel()
	inFailing(t, func(t *testing.T, e *failing) {
		answered := func(op, flags uint8, payload string) error {
			errs := make(chan error, 1)
			go func() { _, err := e.conn.SingleRequest(e.ctx, rig.Handler, nil); errs <- err }()
			e.answer(e.peer.Recv(), op, flags, payload)
			return <-errs
		}
		for _, text := range texts {
			err := answered(rawpeer.OpResponse, rawpeer.FlagEOF|rawpeer.FlagPayloadIsErr, text)
			rig.RequireKind(t, err, rig.IsRemote, "handler error "+text)
			require.EqualError(t, err, text)
		}
		require.NoError(t, answered(rawpeer.OpResponse, rawpeer.FlagEOF, ""))
		rig.RequireKind(t, answered(rawpeer.OpAckMux, 0, ""), rig.IsProtocol, "ack to a request")

		_, err := e.conn.SingleRequest(e.ctx, 0, nil)
		rig.RequireKind(t, err, rig.IsUnknown, "ID 0")
		_, err = e.conn.NewStream(e.ctx, 0, nil)
		rig.RequireKind(t, err, rig.IsUnknown, "ID 0")
		_, err = e.conn.Subroute("").SingleRequest(e.ctx, rig.Handler, nil)
		rig.RequireKind(t, err, rig.IsNothingElse, "empty subroute")
	})
}

func TestError_NeverConnectedIsDisconnected(t *testing.T) {
	t.Parallel()
	rig.InBubble(t, func(t *testing.T) {
		g, raw := rig.NewLone(t, faultconn.NewNetwork(), false, nil)
		c := g.Manager(0).Connection(raw)
		require.Zero(t, rig.Elapsed(func() {
			_, err := c.SingleRequest(t.Context(), rig.Echo, nil)
			rig.RequireKind(t, err, rig.IsDisconnected, "single")
			_, err = c.NewStream(t.Context(), rig.Stream, nil)
			rig.RequireKind(t, err, rig.IsDisconnected, "open")
		}))
	})
}

type streamFailure struct {
	want   string
	strike func(e *failing, m rawpeer.Msg) // m is to be answered with
}

var streamFailures = map[string]streamFailure{
	"lost":           {rig.IsDisconnected, func(e *failing, _ rawpeer.Msg) { e.cutLink() }},
	"peer closes":    {rig.IsDisconnected, func(e *failing, _ rawpeer.Msg) { e.peer.Close() }},
	"replaced":       {rig.IsDisconnected, func(e *failing, _ rawpeer.Msg) { e.replace() }},
	"closed":         {rig.IsDisconnected, func(e *failing, _ rawpeer.Msg) { e.closeNode() }},
	"dropped":        {rig.IsDisconnected, func(e *failing, m rawpeer.Msg) { e.answer(m, rawpeer.OpDisconnectClientMux, 0, "") }},
	"peer is silent": {rig.IsDisconnected, func(*failing, rawpeer.Msg) {}},
	"cancelled":      {rig.IsCanceled, func(e *failing, _ rawpeer.Msg) { e.cancelOnly() }},
	"cause":          {rig.IsCanceledCause, func(e *failing, _ rawpeer.Msg) { e.giveCause() }},
	"handler error": {rig.IsRemote, func(e *failing, m rawpeer.Msg) {
		e.answer(m, rawpeer.OpMuxServerMsg, rawpeer.FlagEOF|rawpeer.FlagPayloadIsErr, "bad")
	}},
	"out of sequence": {rig.IsSequence, func(e *failing, m rawpeer.Msg) { m.Seq++; e.answer(m, rawpeer.OpMuxServerMsg, 0, "x") }},
	"overrun": {rig.IsFlowControl, func(e *failing, m rawpeer.Msg) {
		for range 4 {
			e.answer(m, rawpeer.OpMuxServerMsg, 0, "x")
			m.Seq++
		}
	}},
	"credits":        {rig.IsFlowControl, func(e *failing, m rawpeer.Msg) { e.answer(m, rawpeer.OpUnblockClMux, 0, "") }},
	"second ack":     {rig.IsProtocol, func(e *failing, m rawpeer.Msg) { e.answer(m, rawpeer.OpAckMux, 0, "") }},
	"response to it": {rig.IsProtocol, func(e *failing, m rawpeer.Msg) { e.answer(m, rawpeer.OpResponse, rawpeer.FlagEOF, "") }},
}

func TestError_EveryWayAStreamCanFail(t *testing.T) {
	t.Parallel()
	for name, failure := range streamFailures {
		t.Run(name, func(t *testing.T) {
			inFailing(t, func(t *testing.T, e *failing) {
				registerLocally(e.Grid, 3, 2)
				s, id := openToPeer(t, e.ctx, e.conn, e.peer, 2)
				failure.strike(e, rawpeer.Msg{MuxID: id, Seq: 1})
				<-s.Done()
				requireDead(t, s, failure.want)
			})
		})
	}
}

// requireDead requires all that a stream can be asked to give the same answer.
func requireDead(t *testing.T, s *grid.Stream, want string) {
	t.Helper()
	rig.RequireKind(t, s.Err(), want, "Err")
	rig.RequireKind(t, s.Send(nil), want, "Send")
	rig.RequireKind(t, s.Results(func([]byte) error { return nil }), want, "Results")
	var last error
	for _, err := range s.All() {
		require.NoError(t, last)
		last = err
	}
	rig.RequireKind(t, last, want, "All")
	rig.RequireKind(t, s.Results(nil), want, "Results again")
}

func TestError_EveryWayAStreamCanFailByItsDeadlineOrItsConsumer(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		cause  error
		before time.Duration // by which the server's notice comes first; 0 for none
		want   string
	}{
		"client first":            {nil, 0, rig.IsDeadline},
		"client first, cause":     {rig.ErrCause, 0, rig.IsDeadlineCause},
		"server first":            {nil, 10 * time.Second, rig.IsDeadline},
		"server just first":       {nil, time.Millisecond, rig.IsDeadline},
		"server just first cause": {rig.ErrCause, time.Millisecond, rig.IsDeadlineCause},
	} {
		t.Run(name, func(t *testing.T) {
			inFailing(t, func(t *testing.T, e *failing) {
				registerLocally(e.Grid, 3, 2)
				e.limit(10*time.Second, test.cause)
				s, id := openToPeer(t, e.ctx, e.conn, e.peer, 2)
				if test.before > 0 {
					time.Sleep(10*time.Second - test.before)
					e.answer(rawpeer.Msg{MuxID: id}, rawpeer.OpDisconnectClientMux, rawpeer.FlagPayloadIsErr, context.DeadlineExceeded.Error())
				}
				<-s.Done()
				requireDead(t, s, test.want)
			})
		})
	}
	t.Run("callback error", func(t *testing.T) {
		inFailing(t, func(t *testing.T, e *failing) {
			registerLocally(e.Grid, 3, 2)
			s, id := openToPeer(t, e.ctx, e.conn, e.peer, 2)
			e.peer.Send(serverMsgs(id, "x")[0])
			rig.RequireKind(t, s.Results(func([]byte) error { return rig.ErrCause }), rig.IsCause, "Results")
			requireDead(t, s, rig.IsCause)
		})
	})
	t.Run("too large", func(t *testing.T) {
		inFailing(t, func(t *testing.T, e *failing) {
			registerLocally(e.Grid, 3, 2)
			s, _ := openToPeer(t, e.ctx, e.conn, e.peer, 2)
			rig.RequireKind(t, s.Send(make([]byte, 1001)), rig.IsTooLarge, "Send")
			require.NoError(t, s.Err(), "the stream lives on")
			s.Requests <- make([]byte, 1001)
			<-s.Done()
			rig.RequireKind(t, s.Err(), rig.IsTooLarge, "Err")
			rig.RequireKind(t, s.Results(nil), rig.IsTooLarge, "Results")
		})
	})
}

// However long an error's text is, and however small the messages that are allowed, it arrives as
// an error and nothing else is lost. Of a panic's there is less.
func TestError_TextIsClippedAndNoOtherCallIsLost(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é", rig.MaxErrorText)
	rig.InPair(t, func(_ int, o *grid.ManagerOptions) { o.MaxMessageSize = 16 }, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Single(func([]byte) ([]byte, *grid.RemoteErr) { return nil, grid.NewRemoteErrString(long) })
		require.NoError(t, g.Manager(1).RegisterSingleHandler(rig.Handler+1, func([]byte) ([]byte, *grid.RemoteErr) { panic(long) }))
		require.NoError(t, g.Manager(1).RegisterStreamingHandler(rig.Handler+2, grid.StreamHandler{
			Handle: func(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr {
				return grid.NewRemoteErrString(long)
			},
		}))
		check := func(err error, most int) {
			t.Helper()
			require.True(t, grid.IsRemoteErr(err), "%.100s", err)
			require.LessOrEqual(t, len(err.Error()), most)
			require.Greater(t, len(err.Error()), most-10)
			require.True(t, utf8.ValidString(err.Error()))
			require.True(t, strings.HasSuffix(err.Error(), "é..."))
		}
		st, err := c.NewStream(t.Context(), rig.Block, nil) // what must not be lost
		require.NoError(t, err)
		_, err = c.SingleRequest(t.Context(), rig.Handler, nil)
		check(err, rig.MaxErrorText)
		_, err = c.SingleRequest(t.Context(), rig.Handler+1, nil)
		check(err, len("grid: handler 101 panicked: ")+1<<10)
		failing, err := c.NewStream(t.Context(), rig.Handler+2, nil)
		require.NoError(t, err)
		check(failing.Results(func([]byte) error { return nil }), rig.MaxErrorText)
		time.Sleep(time.Minute) // pings are larger than such messages, too
		require.Equal(t, grid.StateConnected, c.State())
		require.NoError(t, st.Err())
		close(st.Requests)
	})
}
