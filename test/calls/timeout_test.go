package calls

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// A timeout of the connection's bounds a call that its context leaves longer, and no other one.
func TestTimeout_IsTheSoonerOfItAndTheContext(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.New(t, 2, nil)
		left := make(chan time.Duration, 1)
		for _, route := range []string{"", "route"} {
			h := grid.SingleHandlerContextFn(func(ctx context.Context, _ []byte) ([]byte, *grid.RemoteErr) {
				deadline, _ := ctx.Deadline()
				left <- time.Until(deadline)
				<-ctx.Done()
				return nil, nil
			})
			var sub []string
			if route != "" {
				sub = []string{route}
			}
			require.NoError(t, g.Nodes()[1].RegisterSingleHandlerContext(9, h, sub...))
		}
		conn := g.Conn(0, 1)
		for name, c := range map[string]grid.Requester{
			"connection": conn.WithTimeout(10 * time.Second),
			"subroute":   conn.Subroute("route").WithTimeout(10 * time.Second),
		} {
			for _, own := range []time.Duration{0, 5 * time.Second, 20 * time.Second} {
				ctx, cancel, want := context.Background(), context.CancelFunc(func() {}), 10*time.Second
				if own != 0 {
					ctx, cancel = context.WithTimeout(ctx, own)
					want = min(want, own)
				}
				begin := time.Now()
				_, err := c.SingleRequest(ctx, 9, nil)
				cancel()
				require.ErrorIs(t, err, context.DeadlineExceeded, name)
				require.Equal(t, want, <-left, name)
				require.GreaterOrEqual(t, time.Since(begin), want)
				require.LessOrEqual(t, time.Since(begin), want+want/32)
			}
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			begin := time.Now()
			_, err := c.SingleRequest(ctx, 9, nil)
			require.ErrorIs(t, err, context.Canceled)
			require.Equal(t, time.Second, time.Since(begin))
			<-left
		}
	})
}

func TestTimeout_OfNothing(t *testing.T) {
	var none *grid.Connection
	var noSub *grid.Subroute
	for _, d := range []time.Duration{0, -1} {
		_, err := none.WithTimeout(d).SingleRequest(t.Context(), 1, nil)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}
	_, err := none.WithTimeout(1).SingleRequest(t.Context(), 1, nil)
	require.ErrorIs(t, err, grid.ErrDisconnected)
	_, err = noSub.WithTimeout(1).SingleRequest(t.Context(), 1, nil)
	require.ErrorIs(t, err, grid.ErrDisconnected)
}
