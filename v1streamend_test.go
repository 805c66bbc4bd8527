package grid

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// How streams that the node has opened come to their end.

var errStop = errors.New("stop")

func TestV1StreamEndsAsItsHandlerDid(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		r.locally(2, 0)
		for _, c := range []struct {
			end rawMsg
			err error
		}{
			{rawMsg{Op: rawOpMuxServerMsg, Flags: crcEOF}, nil},
			{rawMsg{Op: rawOpMuxServerMsg, Flags: crcErr | rawFlagEOF, Payload: []byte("boom")}, NewRemoteErrString("boom")},
			{rawMsg{Op: rawOpMuxServerMsg, Flags: crcErr | rawFlagEOF}, NewRemoteErrString("")},
			{rawMsg{Op: rawOpMuxServerMsg, Flags: crcErr | rawFlagEOF, Payload: []byte("EOF")}, NewRemoteErrString("EOF")},
		} {
			s := r.open(r.Context())
			s.say(serverMsg("a"))
			s.say(serverMsg("b"))
			s.say(c.end)
			synctest.Wait()
			require.Equal(r, c.err, s.s.Err())
			s.consume()
			got, err := s.rest()
			require.Equal(r, c.err, err)
			require.Equal(r, []string{"a", "b"}, got)
			s.unnumbered(rawMsg{Op: rawOpDisconnectClientMux})
			r.quiet()
		}
		r.alive()
	})
}

func TestV1StreamSendEndsWithTheStream(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		r.locally(1, 1)
		for _, c := range []struct {
			end rawMsg
			err error
		}{
			{rawMsg{Op: rawOpMuxServerMsg, Flags: crcEOF}, io.EOF},
			{rawMsg{Op: rawOpMuxServerMsg, Flags: crcErr | rawFlagEOF, Payload: []byte("boom")}, NewRemoteErrString("boom")},
		} {
			s := r.open(r.Context())
			require.NoError(r, s.s.Send(nil))
			r.peer.expect(rawOpMuxClientMsg)
			waiting := make(chan error, 1)
			go func() { waiting <- s.s.Send(nil) }()
			r.quiet()
			s.say(c.end)
			require.Equal(r, c.err, <-waiting)
			require.Equal(r, c.err, s.s.Send(nil))
			s.s.CloseSend()
		}
		r.alive()
	})
}

func TestV1StreamIsCancelled(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		r.locally(3, 1)
		for name, stop := range map[string]func(c *v1Stream, cancel context.CancelCauseFunc) error{
			"context": func(c *v1Stream, cancel context.CancelCauseFunc) error {
				cancel(errStop)
				return c.s.Results(nil)
			},
			"next": func(c *v1Stream, _ context.CancelCauseFunc) error {
				return c.s.Results(func([]byte) error { return errStop })
			},
			"break": func(c *v1Stream, _ context.CancelCauseFunc) error {
				for range c.s.All() {
					break
				}
				return errStop
			},
		} {
			ctx, cancel := context.WithCancelCause(r.Context())
			c := r.open(ctx)
			c.say(serverMsg("a"))
			c.say(serverMsg("b"))
			synctest.Wait()
			require.Equal(r, errStop, stop(c, cancel), name)
			synctest.Wait()
			var msgs []rawMsg
			for _, m := range r.peer.pending() {
				r.peer.recv()
				if m.Op != rawOpUnblockSrvMux {
					msgs = append(msgs, m)
				}
			}
			require.Equal(r, []rawMsg{{MuxID: c.id, Op: rawOpDisconnectServerMux, Flags: rawFlagCRC}}, msgs, name)
			require.Error(r, c.s.Send(nil))
			// The handler may not have noticed: it is told again, but for its end.
			c.say(serverMsg("c"))
			c.expect(0, rawOpDisconnectServerMux, rawFlagCRC)
			c.say(rawMsg{Op: rawOpMuxServerMsg, Flags: crcEOF})
			c.say(rawMsg{Op: rawOpMuxServerMsg, Flags: crcErr | rawFlagEOF, Payload: []byte("context canceled")})
			c.unnumbered(rawMsg{Op: rawOpDisconnectClientMux})
			c.say(rawMsg{Op: rawOpUnblockClMux})
			r.alive()
			cancel(nil)
		}
	})
}

func TestV1StreamIsDroppedByItsServer(t *testing.T) {
	inV1(t, rawConfig{}, nil, func(r *v1Rig) {
		r.locally(2, 1)
		for _, c := range []struct {
			m    rawMsg
			says string // of a remote error
		}{
			{rawMsg{Op: rawOpDisconnectClientMux, Flags: rawFlagCRC}, ""},
			{rawMsg{Op: rawOpDisconnectClientMux, Flags: crcErr, Payload: []byte("too busy")}, "too busy"},
			{rawMsg{Op: rawOpDisconnectClientMux, Seq: 77, Flags: crcErr, Payload: []byte("not numbered")}, "not numbered"},
			{rawMsg{Op: rawOpMuxConnectError, Flags: rawFlagCRC, Payload: connectError("gone")}, "gone"},
		} {
			s := r.open(r.Context())
			s.say(serverMsg("a"))
			s.say(serverMsg("b"))
			s.unnumbered(c.m)
			synctest.Wait()
			s.consume()
			got, err := s.rest()
			require.Equal(r, []string{"a", "b"}, got)
			if c.says != "" {
				require.Equal(r, NewRemoteErrString(c.says), err)
			} else {
				require.ErrorIs(r, err, ErrDisconnected)
				require.False(r, IsRemoteErr(err))
			}
			require.Equal(r, err, s.s.Send(nil))
			r.alive()
		}
		// What the server found out about the caller's deadline is the
		// caller's deadline.
		ctx, cancel := context.WithTimeout(r.Context(), time.Hour)
		defer cancel()
		s := r.open(ctx)
		s.unnumbered(rawMsg{Op: rawOpDisconnectClientMux, Flags: crcErr, Payload: []byte("context deadline exceeded")})
		require.Equal(r, context.DeadlineExceeded, s.s.Results(nil))
		r.alive()
	})
}
