package attack

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Requests to typed handlers that do not return, each of which counts four times as much as it has
// bytes.
func TestLimits_TypedRequestsToHandlersThatBlock(t *testing.T) {
	rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, rig.KeptLimits, func(a *rig.Attacked) {
		var running atomic.Int64
		release, let := rig.Gate(a.T)
		h := grid.NewSingleHandler(rig.Unused, grid.NewMSS, grid.NewNoPayload)
		require.NoError(a, h.Register(a.Node.Manager, func(*grid.MSS) (grid.NoPayload, *grid.RemoteErr) {
			running.Add(1)
			<-release
			return grid.NoPayload{}, nil
		}))
		p := a.Next()
		link := a.Session()
		w := a.Swallow(p)
		payload, err := grid.NewMSSWith(map[string]string{"key": strings.Repeat("x", 100_000)}).MarshalMsg(nil)
		require.NoError(a, err)
		const requests = 50
		fit := link.Opts.MaxHostBytes / (4 * len(payload))
		a.During(func() {
			for i := range uint64(requests) {
				p.Send(rawpeer.Msg{
					MuxID: i + 1, Handler: uint8(rig.Unused), Op: rawpeer.OpRequest, Flags: rawpeer.FlagEOF, Payload: payload,
				})
			}
			synctest.Wait()
		})
		require.EqualValues(a, fit, running.Load())
		require.EqualValues(a, 4*len(payload)*fit, a.Conn.Stats().KeptBytes)
		require.EqualValues(a, requests-fit, w.Overloaded.Load())
		a.RequireGrown(int64(link.Opts.MaxHostBytes) + 2<<20)
		a.Same(link)
		let()
		a.Idle()
	})
}

// A host that takes all that it can of what all hosts share leaves the others what is their own.
func TestTotals_HostThatTakesAllLeavesOthersTheirShare(t *testing.T) {
	const size = 10_000
	for name, c := range map[string]struct {
		set     func(o *grid.ManagerOptions)
		op      uint8
		handler grid.HandlerID
	}{
		"bytes":    {func(o *grid.ManagerOptions) { o.MaxTotalBytes = 100 * size }, rawpeer.OpRequest, rig.BlockSingle},
		"handlers": {func(o *grid.ManagerOptions) { o.MaxTotalHandlers = 100 }, rawpeer.OpRequest, rig.BlockSingle},
		"streams":  {func(o *grid.ManagerOptions) { o.MaxTotalStreams = 100 }, rawpeer.OpConnectMux, rig.BlockStream},
	} {
		t.Run(name, func(t *testing.T) {
			rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, func(o *grid.ManagerOptions) {
				o.MaxMessageSize = size
				c.set(o)
			}, func(a *rig.Attacked) {
				b := a.Block(1)
				p := a.Next()
				link := a.Session()
				w := a.Swallow(p)
				a.During(func() {
					for i := range uint64(1000) {
						p.Send(rawpeer.Msg{
							MuxID: i + 1, Handler: uint8(c.handler), Op: c.op, Flags: rawpeer.FlagEOF, Payload: make([]byte, size),
						})
					}
					synctest.Wait()
				})
				a.Logf("%d run", b.Most.Load())
				require.Less(a, b.Most.Load(), int64(100))
				require.EqualValues(a, 1000-b.Most.Load(), w.Overloaded.Load())
				a.Served()
				a.Same(link)
				b.Release()
				a.Idle()
			})
		})
	}
}

// Openings that are begun and never completed take nothing of what a handler may have running.
func TestMaxRunning_IsNotTakenByFirstFragments(t *testing.T) {
	rig.InAttackByDialler(t, rawpeer.Config{Caps: rig.AllCaps}, func(o *grid.ManagerOptions) {
		o.HandlerOptions = map[grid.HandlerKey]grid.HandlerOptions{{ID: rig.Echo}: {MaxRunning: 8, Timeout: time.Second}}
	}, func(a *rig.Attacked) {
		p := a.Next()
		for id := range uint64(100) {
			p.Send(rawpeer.Fragment(rawpeer.OpRequest, 1+id, 0, rig.Echo))
		}
		synctest.Wait()
		require.Equal(a, 100, a.Conn.Stats().Handlers, "they have slots of their host's")
		for range 100 {
			_, err := a.Grid.Conn(1, 0).SingleRequest(a.Context(), rig.Echo, []byte("x"))
			require.NoError(a, err)
		}
		for _, st := range a.Node.HandlerStats() {
			if st.ID == rig.Echo {
				require.Zero(a, st.Running)
				require.Zero(a, st.Refused)
			}
		}
	})
}
