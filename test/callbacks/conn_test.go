package callbacks

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// acting is a connection whose every method acts.
type acting struct {
	net.Conn
	act func(method string)
}

func (c *acting) Read(p []byte) (int, error)    { c.act("Read"); return c.Conn.Read(p) }
func (c *acting) Write(p []byte) (int, error)   { c.act("Write"); return c.Conn.Write(p) }
func (c *acting) Close() error                  { defer c.act("Close"); return c.Conn.Close() }
func (c *acting) SetDeadline(t time.Time) error { c.act("SetDeadline"); return c.Conn.SetDeadline(t) }
func (c *acting) RemoteAddr() net.Addr          { c.act("RemoteAddr"); return c.Conn.RemoteAddr() }

// A connection that panics loses its link, and nothing else.
func TestConnection_ThatPanicsLosesItsLink(t *testing.T) {
	for _, method := range []string{"Read", "Write", "Close", "SetDeadline", "RemoteAddr"} {
		t.Run(method, func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) {
				var panics atomic.Bool
				r := newRoom(t, callback{install: func(o *grid.ManagerOptions, _ func()) {
					dial := o.Dialer
					o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
						c, err := dial(ctx, network, addr)
						if err != nil {
							return nil, err
						}
						return &acting{c, func(m string) {
							if m == method && panics.Load() {
								panic("from inside")
							}
						}}, nil
					}
				}}, nil)
				panics.Store(true)
				_, _ = r.Conn(r.it, r.peer).SingleRequest(t.Context(), rig.Echo, nil)
				r.Cut(r.it, r.peer)
				time.Sleep(time.Minute)
				if method == "Read" || method == "Write" { // without the others it goes on
					require.NotEmpty(t, r.log.About("panic in "+method+" of a *callbacks.acting: from inside"))
				}
				panics.Store(false)
				time.Sleep(time.Minute)
				r.WaitConnected()
				r.requireWorks(r.it, r.peer)
				r.requireWorks(r.it, r.other)
			})
		})
	}
}
