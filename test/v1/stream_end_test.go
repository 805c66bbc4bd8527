package v1

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// How streams that the node has opened come to their end.

var errStop = errors.New("stop")

func TestV1Stream_EndsAsItsHandlerDid(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		r.locally(2, 0)
		for _, c := range []struct {
			end rawpeer.Msg
			err error
		}{
			{rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF}, nil},
			{rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCErr | rawpeer.FlagEOF, Payload: []byte("boom")}, grid.NewRemoteErrString("boom")},
			{rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCErr | rawpeer.FlagEOF}, grid.NewRemoteErrString("")},
			{rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCErr | rawpeer.FlagEOF, Payload: []byte("EOF")}, grid.NewRemoteErrString("EOF")},
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
			s.unnumbered(rawpeer.Msg{Op: rawpeer.OpDisconnectClientMux})
			r.Quiet()
		}
		r.Alive()
	})
}

func TestV1Stream_SendEndsWithIt(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		r.locally(1, 1)
		for _, c := range []struct {
			end rawpeer.Msg
			err error
		}{
			{rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF}, io.EOF},
			{rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCErr | rawpeer.FlagEOF, Payload: []byte("boom")}, grid.NewRemoteErrString("boom")},
		} {
			s := r.open(r.Context())
			require.NoError(r, s.s.Send(nil))
			r.Peer.Expect(rawpeer.OpMuxClientMsg)
			waiting := make(chan error, 1)
			go func() { waiting <- s.s.Send(nil) }()
			r.Quiet()
			s.say(c.end)
			require.Equal(r, c.err, <-waiting)
			require.Equal(r, c.err, s.s.Send(nil))
			s.s.CloseSend()
		}
		r.Alive()
	})
}

func TestV1Stream_IsCancelled(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
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
			require.ErrorIs(r, stop(c, cancel), errStop, name)
			synctest.Wait()
			var msgs []rawpeer.Msg
			for _, m := range r.Peer.Pending() {
				r.Peer.Recv()
				if m.Op != rawpeer.OpUnblockSrvMux {
					msgs = append(msgs, m)
				}
			}
			require.Equal(r, []rawpeer.Msg{{MuxID: c.id, Op: rawpeer.OpDisconnectServerMux, Flags: rawpeer.FlagCRC}}, msgs, name)
			require.Error(r, c.s.Send(nil))
			// The handler may not have noticed: it is told again, but for its end.
			c.say(serverMsg("c"))
			c.expect(0, rawpeer.OpDisconnectServerMux, rawpeer.FlagCRC)
			c.say(rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCEOF})
			c.say(rawpeer.Msg{Op: rawpeer.OpMuxServerMsg, Flags: rig.CRCErr | rawpeer.FlagEOF, Payload: []byte("context canceled")})
			c.unnumbered(rawpeer.Msg{Op: rawpeer.OpDisconnectClientMux})
			c.say(rawpeer.Msg{Op: rawpeer.OpUnblockClMux})
			r.Alive()
			cancel(nil)
		}
	})
}

func TestV1Stream_IsDroppedByItsServer(t *testing.T) {
	t.Parallel()
	inWire(t, rawpeer.Config{}, nil, func(r *wire) {
		r.locally(2, 1)
		for _, c := range []struct {
			m    rawpeer.Msg
			says string // of a remote error
		}{
			{rawpeer.Msg{Op: rawpeer.OpDisconnectClientMux, Flags: rawpeer.FlagCRC}, ""},
			{rawpeer.Msg{Op: rawpeer.OpDisconnectClientMux, Flags: rig.CRCErr, Payload: []byte("too busy")}, "too busy"},
			{rawpeer.Msg{Op: rawpeer.OpDisconnectClientMux, Seq: 77, Flags: rig.CRCErr, Payload: []byte("not numbered")}, "not numbered"},
			{rawpeer.Msg{Op: rawpeer.OpMuxConnectError, Flags: rawpeer.FlagCRC, Payload: rawpeer.ConnectError("gone")}, "gone"},
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
				require.Equal(r, grid.NewRemoteErrString(c.says), err)
			} else {
				require.ErrorIs(r, err, grid.ErrDisconnected)
				require.False(r, grid.IsRemoteErr(err))
			}
			require.Equal(r, err, s.s.Send(nil))
			r.Alive()
		}
		// What the server found out about the caller's deadline is the caller's deadline.
		ctx, cancel := context.WithTimeout(r.Context(), time.Hour)
		defer cancel()
		s := r.open(ctx)
		s.unnumbered(rawpeer.Msg{Op: rawpeer.OpDisconnectClientMux, Flags: rig.CRCErr, Payload: []byte("context deadline exceeded")})
		require.ErrorIs(r, s.s.Results(nil), context.DeadlineExceeded)
		r.Alive()
	})
}
