package rig

import (
	"context"
	"net"
	"testing"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
)

// NewSlow starts two nodes; what the first returned sends to the other goes at rate bytes per
// second.
func NewSlow(t testing.TB, rate int, edit func(o *grid.ManagerOptions)) (g *Grid, from, to int) {
	t.Helper()
	g = New(t, 2, func(_ int, o *grid.ManagerOptions) {
		dial := o.Dialer
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			w := faultconn.Wrap(c)
			w.WriteLimit(rate)
			return w, nil
		}
		if edit != nil {
			edit(o)
		}
	})
	if g.Conn(0, 1).Stats().Dials {
		return g, 0, 1
	}
	return g, 1, 0
}
