package grid

import (
	"context"
	"time"

	"github.com/gridrpc/grid/internal/backoff"
	"github.com/gridrpc/grid/internal/wsconn"
)

// keepDialling connects, again and again, until ctx ends.
func (c *Connection) keepDialling(ctx context.Context) {
	if !c.opts.waitUnblocked(ctx) {
		return
	}
	var b backoff.Backoff
	for ctx.Err() == nil && !c.draining.Load() {
		c.state.set(StateConnecting, nil)
		s, err := c.dial(ctx)
		if err != nil {
			c.state.set(StateConnectionError, err)
			c.cannotConnect(err)
		} else if c.serve(s) {
			b.Reset()
		}
		b.Wait(ctx)
	}
}

func (c *Connection) dial(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, c.opts.HandshakeTimeout)
	defer cancel()
	bearer, err := c.bearer()
	if err != nil {
		return nil, err
	}
	ws, header, err := wsconn.Dial(ctx, c.opts.dialURL(c.remote), wsconn.DialOptions{
		Token:    bearer,
		Dial:     c.opts.Dialer,
		TLS:      c.opts.TLSConfig,
		Limit:    handshakeLimit,
		Counters: c.opts.counters(),
	})
	if err != nil {
		return nil, cleanError(err, bearer)
	}
	s, err := handshake(ctx, ws, func() (*session, error) {
		s, err := c.greet(ws, header, bearer)
		if err == nil {
			err = c.adopt(s)
		}
		return s, err
	})
	if err != nil {
		ws.Close()
		return nil, err
	}
	return s, nil
}

// handshake runs f, bounded by ctx, which has a deadline. It fails if ctx has ended meanwhile, also
// where f has not noticed.
func handshake(ctx context.Context, ws *wsconn.Conn, f func() (*session, error)) (*session, error) {
	deadline, _ := ctx.Deadline()
	if err := ws.SetDeadline(deadline); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { ws.Close() })
	s, err := f()
	if err != nil {
		stop()
		return nil, err
	}
	if stop() {
		err = ws.SetDeadline(time.Time{})
	} else {
		err = context.Cause(ctx)
	}
	if err != nil {
		s.close(err)
		return nil, err
	}
	ws.SetLimit(s.opts.frameLimit())
	return s, nil
}
