package v1

import (
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// What a peer says in its handshake that does not know To, Host and Proof: of version 1, and of
// this implementation before it had them, which was before an ack named both capacities. They were
// recorded at the beginning of a bubble's time. ack is the payload of what accepts a stream of such
// a peer without input.
var handshakesOfBefore = map[string]struct{ connect, response, ack string }{
	"version 1": {
		"84a24944c41030313233343536373839616263646566a4486f7374af687474703a2f2f7261773a39303030a454696d65c70c0500000000386d438000000000a5546f6b656ea5746f6b656e",
		"83a24944c41030313233343536373839616263646566a84163636570746564c3ae52656a6563746564526561736f6ea0",
		"",
	},
	"the first four extensions": {
		"85a24944c41030313233343536373839616263646566a4486f7374af687474703a2f2f7261773a39303030a454696d65c70c0500000000386d438000000000a5546f6b656ea5746f6b656ea4436170730f",
		"84a24944c41030313233343536373839616263646566a84163636570746564c3ae52656a6563746564526561736f6ea0a4436170730f",
		"00",
	},
}

// A peer that says neither whom it wants nor who it is connects, calls and streams as ever, in both
// roles.
func TestV1Handshake_WithoutNamesIsAsBefore(t *testing.T) {
	t.Parallel()
	for name, hex := range handshakesOfBefore {
		for role, rawDials := range map[string]bool{"we accept": true, "we dial": false} {
			t.Run(name+", "+role, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := rig.NewWire(t, rawDials, rawpeer.Config{Bare: true}, nil)
					p := r.Next()
					r.Peer = p
					connect := rawpeer.Unhex(t, hex.connect)
					recorded, err := rawpeer.DecodeConnect(connect)
					require.NoError(t, err)
					require.Empty(t, recorded.To)
					if rawDials {
						// The name of the peer depends on who is to dial.
						require.Equal(t, connect, recorded.Encode())
						recorded.Host = r.Raw
						p.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: recorded.Encode()})
						answer, err := rawpeer.DecodeConnectResponse(p.Expect(rawpeer.OpConnectResponse).Payload)
						require.NoError(t, err)
						require.True(t, answer.Accepted)
						require.Nil(t, answer.Proof)
					} else {
						hello, err := rawpeer.DecodeConnect(p.Expect(rawpeer.OpConnect).Payload)
						require.NoError(t, err)
						require.Equal(t, rig.Token, hello.Token)
						require.Equal(t, r.Raw, hello.To)
						p.Send(rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: rawpeer.Unhex(t, hex.response)})
					}
					require.NoError(t, r.Conn.WaitForConnect(t.Context()))
					r.Alive()

					done := r.Call(t.Context(), rig.Echo, []byte("q"))
					m := p.Expect(rawpeer.OpRequest)
					p.Send(rawpeer.Msg{MuxID: m.MuxID, Op: rawpeer.OpResponse, Flags: rig.CRCEOF, Payload: []byte("a")})
					require.Equal(t, rig.Outcome{Payload: []byte("a")}, <-done)

					p.Send(rawpeer.Msg{MuxID: 7, Handler: uint8(rig.Stream), Op: rawpeer.OpConnectMux, Flags: rawpeer.FlagCRC, Payload: []byte("s")})
					ack := p.Expect(rawpeer.OpAckMux)
					require.EqualValues(t, 7, ack.MuxID)
					require.Equal(t, hex.ack, fmt.Sprintf("%x", ack.Payload))
					require.Equal(t, []byte{0}, p.Expect(rawpeer.OpMuxServerMsg).Payload)
				})
			})
		}
	}
}
