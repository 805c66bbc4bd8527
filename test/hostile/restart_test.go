package hostile

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Peers that come and go, or say that they do, to keep the node busy.

// A peer that announces a shutdown on every link as soon as it is made is dialled with pauses.
func TestRedial_PeerThatShutsDownWithoutEndIsNoBusyLoop(t *testing.T) {
	for name, ends := range map[string]bool{"and stays": false, "and goes": true} {
		t.Run(name, func(t *testing.T) {
			rig.InWireOnce(t, false, rig.DrainConfig, nil, func(r *rig.Wire) {
				p, links := r.Peer, 0
				for begin := time.Now(); time.Since(begin) < time.Minute; links++ {
					require.Less(t, links, 60*5, "links in %v", time.Since(begin))
					p.Send(rawpeer.Msg{Op: rawpeer.OpDisconnect, Flags: rawpeer.FlagCRC})
					if ends {
						p.Close()
					}
					p = r.Next()
				}
				require.GreaterOrEqual(t, links, 10, "its successor may be there any time")
			})
		})
	}
}
