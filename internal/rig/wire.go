package rig

import (
	"context"
	"crypto/tls"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
)

// DrainConfig is a peer that speaks all extensions.
var DrainConfig = rawpeer.Config{Caps: uint64(AllCaps)}

// FragmentConfig is a peer that speaks the first two extensions.
var FragmentConfig = rawpeer.Config{Caps: rawpeer.CapWideCredits | rawpeer.CapFragments}

// Wire is a node and the scripted peer that it is connected to.
type Wire struct {
	*testing.T
	Grid *Grid // of the node alone
	Node *Node
	Raw  string           // the peer's name
	Conn *grid.Connection // to the peer
	Peer *rawpeer.Peer
	Book *LogBook
	Next func() *rawpeer.Peer // connects once more
	// Secure tells that both hosts have https, so that what the node says has no checksum.
	Secure bool
	// Server is the peer's, where it is dialled, else one that nobody asks.
	Server *rawpeer.Server
}

// InWire runs f in a bubble twice: with the node as acceptor and as dialler. c is the peer, of
// which the zero value is one of version 1; edit may be nil.
func InWire(t *testing.T, c rawpeer.Config, edit func(o *grid.ManagerOptions), f func(r *Wire)) {
	t.Helper()
	for name, rawDials := range map[string]bool{"we accept": true, "we dial": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(NewWire(t, rawDials, c, edit)) })
		})
	}
}

// InWireOnce runs f in a bubble with the node in one role.
func InWireOnce(t *testing.T, rawDials bool, c rawpeer.Config, edit func(o *grid.ManagerOptions), f func(r *Wire)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(NewWire(t, rawDials, c, edit)) })
}

// InEveryWire is InWire with hosts of http and of https.
func InEveryWire(t *testing.T, c rawpeer.Config, edit func(o *grid.ManagerOptions), f func(r *Wire)) {
	t.Helper()
	a := NewAuthority(t)
	cert := a.Issue("node0 raw")
	secure := &tls.Config{RootCAs: a.Pool, Certificates: []tls.Certificate{cert}}
	InWire(t, c, edit, f)
	for name, rawDials := range map[string]bool{"we accept, https": true, "we dial, https": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(newSecureWire(t, rawDials, c, secure, edit)) })
		})
	}
}

// newSecureWire is NewWire for hosts with https, both of which have the one configuration.
func newSecureWire(t *testing.T, rawDials bool, c rawpeer.Config, conf *tls.Config, edit func(o *grid.ManagerOptions)) *Wire {
	t.Helper()
	const local = "https://node0:9000"
	n := faultconn.NewNetwork()
	raw := peerOf(t, local, rawDials)
	logger, log := NewLogBook()
	c.TLS, c.Host, c.Token, c.Dial = conf.Clone(), raw, Token, n.Dialer(HostAddr(raw))
	var s *rawpeer.Server
	if !rawDials {
		s = rawpeer.Serve(t, ListenMemory(t, n, raw), c)
	}
	g := Setup{Net: n, Hosts: []string{local}, Guests: !rawDials, Edit: func(_ int, o *grid.ManagerOptions) {
		o.Hosts, o.Logger, o.TLSConfig = []string{local, raw}, logger, conf
		if edit != nil {
			edit(o)
		}
	}, Prepare: func(n *Node) { n.Server.TLSConfig = conf.Clone() }}.Start(t)
	r := &Wire{T: t, Grid: g, Node: g.Node(0), Raw: raw, Conn: g.Manager(0).Connection(raw), Book: log, Secure: true, Server: s}
	r.Next = func() *rawpeer.Peer {
		if rawDials {
			return rawpeer.DialConfig(t, local, c)
		}
		return s.Accept()
	}
	r.connect(c)
	return r
}

// connect makes the first link, but for a peer whose handshake is the test's.
func (r *Wire) connect(c rawpeer.Config) {
	r.Helper()
	if !c.Bare {
		r.Peer = r.Next()
		require.NoError(r, r.Conn.WaitForConnect(r.Context()))
	}
}

// NewWire makes one, in a bubble. With Bare there is no peer yet: Next is the first, and the
// handshake is the test's.
func NewWire(t *testing.T, rawDials bool, c rawpeer.Config, edit func(o *grid.ManagerOptions)) *Wire {
	t.Helper()
	n := faultconn.NewNetwork()
	logger, log := NewLogBook()
	s := new(rawpeer.Server)
	if !rawDials {
		s = ListenLone(t, n, c)
	}
	g, raw := NewLone(t, n, rawDials, func(o *grid.ManagerOptions) {
		o.Logger = logger
		if edit != nil {
			edit(o)
		}
	})
	next := func() *rawpeer.Peer {
		if rawDials {
			return g.DialLone(raw, c)
		}
		return s.Accept()
	}
	r := &Wire{T: t, Grid: g, Node: g.Node(0), Raw: raw, Conn: g.Manager(0).Connection(raw), Book: log, Next: next, Server: s}
	r.connect(c)
	return r
}

// Expect requires that the node says this next.
func (r *Wire) Expect(want rawpeer.Msg) {
	r.Helper()
	require.Equal(r, r.Sent(want), r.Peer.Recv())
}

// Sent is what of m the node sends: without the flag of a checksum that it does not have.
func (r *Wire) Sent(m rawpeer.Msg) rawpeer.Msg {
	if r.Secure || r.Peer.HasChecksums() {
		m.Flags &^= rawpeer.FlagCRC
	}
	return m
}

// Quiet requires that the node says nothing more, for now.
func (r *Wire) Quiet() {
	r.Helper()
	synctest.Wait()
	require.Empty(r, r.Peer.Pending(), rawpeer.Dump(r.Peer.Pending()))
}

// Mux is the number of the node's nth call or stream.
func (r *Wire) Mux(n int) uint64 {
	if r.Peer.Config.Caps&uint64(AllCaps) == 0 {
		return Mux1Base + uint64(n)
	}
	return uint64(n)
}

// Alive requires that the session works, and has nothing else to say.
func (r *Wire) Alive() {
	r.Helper()
	r.Quiet()
	r.Peer.Send(rawpeer.Msg{MuxID: 1 << 60, Handler: uint8(Echo), Op: rawpeer.OpRequest, Flags: CRCEOF, Payload: []byte("alive")})
	r.Expect(rawpeer.Msg{MuxID: 1 << 60, Op: rawpeer.OpResponse, Flags: CRCEOF, Payload: []byte("alive")})
}

// Lost requires that the node ends the session without another message, and says why.
func (r *Wire) Lost(why ...string) {
	r.Helper()
	r.Peer.ExpectClosed()
	synctest.Wait()
	for _, text := range why {
		require.Contains(r, r.Conn.Stats().LastError, text)
	}
}

// Outcome is what comes of a single request.
type Outcome struct {
	Payload []byte
	Err     error
}

// Call makes a single request on a goroutine of its own.
func (r *Wire) Call(ctx context.Context, id grid.HandlerID, payload []byte) <-chan Outcome {
	c := make(chan Outcome, 1)
	go func() {
		b, err := r.Conn.SingleRequest(ctx, id, payload)
		c <- Outcome{Payload: b, Err: err}
	}()
	return c
}

const (
	CRCEOF  = rawpeer.FlagCRC | rawpeer.FlagEOF
	CRCErr  = rawpeer.FlagCRC | rawpeer.FlagPayloadIsErr
	CRCZero = rawpeer.FlagCRC | rawpeer.FlagPayloadIsZero
)
