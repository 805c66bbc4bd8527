package attack

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Metadata that handlers hold counts, with payloads or without, whole or in fragments.
func TestLimits_MetadataOfCallsToHandlersThatBlock(t *testing.T) {
	metadata := msgp.AppendMapStrStr(nil, map[string]string{"key": strings.Repeat("x", 2000)})
	size, limit := len(metadata), 64<<10
	edit := func(o *grid.ManagerOptions) {
		rig.KeptLimits(o)
		o.MaxMessageSize, o.MaxHostBytes = limit, limit
	}
	for name, first := range map[string]rawpeer.Msg{
		"streams":              {Handler: uint8(rig.BlockStream), Op: rawpeer.OpConnectMux},
		"openings in fragment": {Handler: uint8(rig.BlockStream), Op: rawpeer.OpConnectMux, Flags: rawpeer.FlagMore, Payload: []byte("x")},
	} {
		t.Run(name, func(t *testing.T) {
			rig.InAttack(t, rawpeer.Config{Caps: rig.AllCaps, Unread: true}, edit, func(a *rig.Attacked) {
				b := a.Block(1)
				p := a.Next()
				w := a.Swallow(p)
				n, fit := 200, limit/(size+len(first.Payload))
				a.During(func() {
					for i := range uint64(n) {
						m := first
						m.MuxID, m.Metadata = i+1, metadata
						m.Flags |= rawpeer.FlagMetadata
						p.Send(m)
					}
					synctest.Wait()
				})
				require.EqualValues(a, fit*(size+len(first.Payload)), a.Conn.Stats().KeptBytes)
				require.EqualValues(a, n-fit, w.Overloaded.Load())
				require.Equal(a, fit, a.Conn.Stats().Handlers)
				a.Logged("limit reached", "MaxHostBytes is")
				b.Release()
				p.Close()
				synctest.Wait()
				require.Zero(a, a.Conn.Stats().KeptBytes, "it is given back")
				a.Idle()
			})
		})
	}
}
