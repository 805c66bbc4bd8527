package grid

import (
	"context"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid/internal/hostname"
	"github.com/gridrpc/grid/internal/rawpeer"
)

// bubbleStart is the time at which every bubble begins.
var bubbleStart = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// readKeys reads the map of a handshake with what the protocol says of it alone: keys in any order,
// the last of two counts, unknown ones are skipped, and so are values behind it. Where int has 32
// bits, msgp panics for some lengths.
func readKeys(b []byte, read map[string]func(b []byte) ([]byte, error)) (ok bool) {
	defer func() { ok = recover() == nil && ok }()
	n, b, err := msgp.ReadMapHeaderBytes(b)
	for i := uint32(0); i < n && err == nil; i++ {
		var key []byte
		if key, b, err = msgp.ReadMapKeyZC(b); err != nil {
			break
		}
		if f := read[string(key)]; f != nil {
			b, err = f(b)
		} else {
			b, err = msgp.Skip(b)
		}
	}
	for len(b) > 0 && err == nil {
		b, err = msgp.Skip(b)
	}
	return err == nil
}

// readInto reads one value.
func readInto[T any](v *T, read func([]byte) (T, []byte, error)) func([]byte) ([]byte, error) {
	return func(b []byte) (rest []byte, err error) {
		*v, rest, err = read(b)
		return rest, err
	}
}

// readID reads the ID, which has 16 bytes.
func readID(id *[16]byte) func([]byte) ([]byte, error) {
	return func(b []byte) ([]byte, error) { return msgp.ReadExactBytes(b, id[:]) }
}

func understandConnect(b []byte) (c rawpeer.Connect, ok bool) {
	m, err := rawpeer.Decode(b)
	if err != nil || m.Op != rawpeer.OpConnect || len(b) > handshakeLimit {
		return c, false
	}
	var id [16]byte
	ok = readKeys(m.Payload, map[string]func([]byte) ([]byte, error){
		"ID": readID(&id), "Host": readInto(&c.Host, msgp.ReadStringBytes), "Time": readInto(&c.Time, msgp.ReadTimeBytes),
		"Token": readInto(&c.Token, msgp.ReadStringBytes), "Caps": readInto(&c.Caps, msgp.ReadUint64Bytes),
		"To": readInto(&c.To, msgp.ReadStringBytes),
	})
	return c, ok
}

func understandConnectResponse(b []byte) (c rawpeer.ConnectResponse, ok bool) {
	m, err := rawpeer.Decode(b)
	if err != nil || m.Op != rawpeer.OpConnectResponse || len(b) > handshakeLimit {
		return c, false
	}
	var id [16]byte
	ok = readKeys(m.Payload, map[string]func([]byte) ([]byte, error){
		"ID": readID(&id), "Accepted": readInto(&c.Accepted, msgp.ReadBoolBytes),
		"RejectedReason": readInto(&c.Reason, msgp.ReadStringBytes), "Caps": readInto(&c.Caps, msgp.ReadUint64Bytes),
		"Host": readInto(&c.Host, msgp.ReadStringBytes), "Proof": func(b []byte) (rest []byte, err error) {
			c.Proof, rest, err = msgp.ReadBytesBytes(b, nil)
			return rest, err
		},
	})
	return c, ok
}

// spells reports whether a name that a peer has said is that host.
func spells(said, host string) bool {
	normal, err := hostname.Normalize(said)
	return err == nil && normal == host
}

// handshakeHosts are the acceptor, one that dials it, and one that it dials.
func handshakeHosts(t testing.TB) (local, dials, dialled string) {
	local, dials = rawpeer.HostPair(t, true)
	_, dialled = rawpeer.HostPair(t, false)
	return local, dials, dialled
}

// FuzzConnect gives any bytes to an acceptor as the first message. It must accept what keeps all
// six rules of section 3 and nothing else, and answer what it refuses with the rule that was the
// first to be broken.
func FuzzConnect(f *testing.F) {
	local, dials, dialled := handshakeHosts(f)
	good := rawpeer.Connect{ID: make([]byte, 16), Host: dials, Time: bubbleStart, Token: testToken, Caps: rawpeer.CapWideCredits | rawpeer.CapFragments}
	for _, change := range []func(c *rawpeer.Connect){
		func(c *rawpeer.Connect) {}, func(c *rawpeer.Connect) { c.Caps = 0 }, func(c *rawpeer.Connect) { c.Caps = 1<<64 - 1 },
		func(c *rawpeer.Connect) { c.Host = local }, func(c *rawpeer.Connect) { c.Host = dialled }, func(c *rawpeer.Connect) { c.Host = "" },
		func(c *rawpeer.Connect) { c.Host = string(make([]byte, 300)) }, func(c *rawpeer.Connect) { c.Token = "other" }, func(c *rawpeer.Connect) { c.Token = "" },
		func(c *rawpeer.Connect) { c.Time = bubbleStart.Add(5 * time.Minute) }, func(c *rawpeer.Connect) { c.Time = bubbleStart.Add(-6 * time.Minute) },
		func(c *rawpeer.Connect) { c.Time = time.Time{} }, func(c *rawpeer.Connect) { c.Time = time.Unix(1<<62, 0) }, func(c *rawpeer.Connect) { c.ID = nil },
		func(c *rawpeer.Connect) { c.ID = make([]byte, 17) }, func(c *rawpeer.Connect) { c.Host, c.Token = dialled, "other" },
		func(c *rawpeer.Connect) { c.To = local }, func(c *rawpeer.Connect) { c.To = strings.ToUpper(local) }, func(c *rawpeer.Connect) { c.To = dialled },
		func(c *rawpeer.Connect) { c.To = "local" }, func(c *rawpeer.Connect) { c.Host = strings.ToUpper(dials) },
		func(c *rawpeer.Connect) { c.To, c.Host, c.Caps = dialled, "", 0 },
	} {
		c := good
		change(&c)
		f.Add(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: c.Encode()}.Encode())
	}
	m := rawpeer.Msg{Op: rawpeer.OpConnect, Payload: good.Encode()}
	m.Flags = rawpeer.FlagCRC
	f.Add(m.Encode())
	m.Op = rawpeer.OpConnectResponse
	f.Add(m.Encode())
	m.Op = rawpeer.OpConnect
	f.Add(rawpeer.EncodeMerged(m))
	f.Add(append(m.Encode(), 0))
	m.Flags, m.Payload = 0, append(good.Encode(), 0xc0)
	f.Add(m.Encode())
	m.Payload = append([]byte("\x86\xa1x\x91\xc0"), good.Encode()[1:]...)
	f.Add(m.Encode())
	m.Payload = append(good.Encode(), make([]byte, handshakeLimit)...)
	f.Add(m.Encode())
	for _, payload := range []string{"", "\xc0", "\x80", "\xdf\xff\xff\xff\xff", "\x81\xa4Host\xdb\xff\xff\xff\xff"} {
		f.Add(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: []byte(payload)}.Encode())
	}
	for _, v := range loadVectors(f) {
		f.Add(rawpeer.Unhex(f, v.Hex))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		synctest.Test(t, func(t *testing.T) {
			o := testOptions(local, []string{local, dials, dialled})
			o.Dialer = func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }
			m, err := NewManager(t.Context(), o)
			require.NoError(t, err)
			defer m.Close()

			wire := newWire()
			w, r := upgradeTo(wire)
			wire.put(data, true)
			m.Handler()(w, r)
			synctest.Wait()
			wire.forgetUpgrade(t)
			answers := wire.take(t)
			connected := m.Connection(dials).State() == StateConnected
			require.Equal(t, connected, !wire.isClosed(), "refused and left open, or the reverse")

			c, ok := understandConnect(data)
			skew := bubbleStart.Sub(c.Time).Abs()
			broken, says := 0, ""
			switch {
			case !ok:
				broken, says = 1, ErrProtocol.Error()
			case c.To != "" && !spells(c.To, local):
				broken, says = 2, "this is "+local
			case !spells(c.Host, dials) && !spells(c.Host, dialled):
				broken, says = 3, "unknown incoming host"
			case skew >= maxClockSkew+time.Second: // whole seconds count
				broken, says = 4, "clocks"
			case skew > maxClockSkew && !connected:
				return
			case c.Token != testToken:
				broken, says = 5, "invalid token"
			case !spells(c.Host, dials):
				broken, says = 6, "to be dialled by"
			}
			require.Equal(t, broken == 0, connected, "rule %d of %+v", broken, c)
			if len(data) > handshakeLimit {
				require.Empty(t, answers)
				return
			}
			require.Len(t, answers, 1)
			answer, ok := understandConnectResponse(answers[0])
			require.True(t, ok)
			require.Equal(t, local, answer.Host)
			require.Nil(t, answer.Proof)
			require.Equal(t, broken == 0, answer.Accepted)
			if broken == 0 {
				require.Empty(t, answer.Reason)
				require.Equal(t, uint64(ourCaps), answer.Caps)
				require.Equal(t, caps(c.Caps)&ourCaps, m.Connection(dials).session.Load().caps)
			} else {
				require.Contains(t, answer.Reason, says)
				require.Zero(t, answer.Caps)
				require.Less(t, len(answers[0]), 8<<10, "a stranger is answered with much of his own")
			}
		})
	})
}

// FuzzConnectResponse gives any bytes to a dialler as the answer to its Connect.
func FuzzConnectResponse(f *testing.F) {
	local, _, dialled := handshakeHosts(f)
	for _, c := range []rawpeer.ConnectResponse{
		{ID: make([]byte, 16), Accepted: true}, {ID: make([]byte, 16), Accepted: true, Caps: 1<<64 - 1}, {ID: make([]byte, 16), Reason: "no"},
		{ID: make([]byte, 16), Accepted: true, Reason: "yes"}, {Accepted: true}, {ID: make([]byte, 16)}, {ID: make([]byte, 16), Reason: string(make([]byte, 70000))},
		{ID: make([]byte, 16), Accepted: true, Host: dialled}, {ID: make([]byte, 16), Accepted: true, Host: strings.ToUpper(dialled)},
		{ID: make([]byte, 16), Accepted: true, Host: local}, {ID: make([]byte, 16), Accepted: true, Host: "x", Proof: make([]byte, 32)},
		{ID: make([]byte, 16), Accepted: true, Proof: []byte{}}, {ID: make([]byte, 16), Reason: "no", Host: local},
	} {
		m := rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: c.Encode()}
		f.Add(m.Encode())
		m.Flags = rawpeer.FlagCRC
		f.Add(m.Encode())
		f.Add(rawpeer.EncodeMerged(m))
		m.Op = rawpeer.OpConnect
		f.Add(m.Encode())
	}
	for _, v := range loadVectors(f) {
		f.Add(rawpeer.Unhex(f, v.Hex))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		synctest.Test(t, func(t *testing.T) {
			wire := newWire()
			wire.dialled = true
			o := testOptions(local, []string{local, dialled})
			o.BlockConnect = make(chan struct{})
			o.Dialer = func(context.Context, string, string) (net.Conn, error) { return wire, nil }
			m, err := NewManager(t.Context(), o)
			require.NoError(t, err)
			defer m.Close()
			conn := m.Connection(dialled)

			wire.put(data, false)
			s, err := conn.dial(t.Context())
			c, ok := understandConnectResponse(data)
			another := c.Host != "" && !spells(c.Host, dialled)
			require.Equal(t, ok && c.Accepted && !another, err == nil, "%+v, %v", c, err)
			require.Equal(t, err == nil, conn.State() == StateConnected)
			require.Equal(t, err != nil, wire.isClosed())
			switch {
			case err == nil:
				require.Equal(t, caps(c.Caps)&ourCaps, s.caps)
			case ok && c.Accepted:
				require.ErrorContains(t, err, "that answered")
			case ok:
				if reason := c.Reason[:min(len(c.Reason), 100)]; !strings.Contains(c.Reason, testToken) { // which is not repeated
					require.ErrorContains(t, err, reason)
				}
			}
			said := wire.take(t)
			require.Len(t, said, 1)
			hello, ok := understandConnect(said[0])
			require.True(t, ok)
			require.Equal(t, rawpeer.Connect{Host: local, Token: testToken, Caps: uint64(ourCaps), To: dialled, Time: hello.Time}, hello)
			require.True(t, hello.Time.Equal(bubbleStart))
		})
	})
}
