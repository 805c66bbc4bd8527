package rawpeer

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
)

// Server lets the grid dial scripted peers, at any path.
type Server struct {
	URL string // to be named as a host
	// Draining has whoever comes answered 503, as a server does that shuts down.
	Draining atomic.Bool

	T     testing.TB
	c     Config
	peers chan *Peer
	stop  chan struct{}

	handling sync.WaitGroup // grows under mu

	mu      sync.Mutex
	stopped bool
	all     []*Peer
}

// Serve serves on l, nil for a TCP port of its own, until the test ends. Every peer that comes is
// answered as c says, whether the test has asked for it or not; accept hands them out. The token is
// not checked.
func Serve(t testing.TB, l net.Listener, c Config) *Server {
	t.Helper()
	if l == nil {
		var err error
		l, err = net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
	}
	s := &Server{
		URL: "http://" + l.Addr().String(), T: t, c: c,
		peers: make(chan *Peer), stop: make(chan struct{}),
	}
	if c.TLS != nil {
		s.URL = "https://" + l.Addr().String()
		l = tls.NewListener(l, c.TLS)
	}
	server := &http.Server{Handler: s}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l) // ends with Close below
	}()
	t.Cleanup(func() {
		close(s.stop)
		server.Close()
		<-served
		s.closeAll()
	})
	return s
}

// Accept returns the next peer that has finished its handshake, refused ones included, or with Bare
// the next that was upgraded.
func (s *Server) Accept() *Peer {
	s.T.Helper()
	select {
	case p := <-s.peers:
		require.NoError(s.T, p.Handshake)
		return p
	case <-time.After(Timeout):
		require.Fail(s.T, "nobody dialled")
		return nil
	}
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := s.c.checkClock(r); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	if s.Draining.Load() {
		http.Error(w, "grid: the manager is shutting down", http.StatusServiceUnavailable)
		return
	}
	var up websocket.Upgrader
	var challenge []byte
	header := http.Header{}
	if s.c.Key != nil {
		challenge = Nonce()
	}
	if s.c.Challenge != nil {
		challenge = s.c.Challenge(r)
	}
	if challenge != nil {
		header.Set(ChallengeHeader, NonceText(challenge))
	}
	ws, err := up.Upgrade(w, r, header)
	if err != nil {
		return // the upgrader has answered
	}
	p := NewPeer(s.T, ws, s.c)
	p.Request, p.Challenge = r, challenge
	if !s.add(p) {
		p.Close()
		return
	}
	defer s.handling.Done()
	if !s.c.Bare {
		p.Handshake = p.acceptHandshake()
	}
	if !s.c.Unread && p.Handshake == nil && s.c.Refuse == "" {
		p.StartReading()
	}
	select {
	case s.peers <- p:
	case <-s.stop:
	}
}

// maxClockSkew is how far the clock of a host may be off that dials a version 1 peer.
const maxClockSkew = 15 * time.Minute

// checkClock checks the time that a version 1 peer asks for in the upgrade request.
func (c Config) checkClock(r *http.Request) error {
	if c.ClockHeader == "" {
		return nil
	}
	ns, err := strconv.ParseInt(r.Header.Get(c.ClockHeader), 10, 64)
	if err != nil {
		return err
	}
	if skew := time.Since(time.Unix(0, ns)).Abs(); skew > maxClockSkew {
		return fmt.Errorf("clocks differ by %v", skew)
	}
	return nil
}

// acceptHandshake answers the Connect of the other side.
func (p *Peer) acceptHandshake() error {
	m, err := p.ReadHandshake(OpConnect)
	if err != nil {
		return err
	}
	if p.Connect, err = DecodeConnect(m.Payload); err != nil {
		return err
	}
	answer := ConnectResponse{ID: p.Config.Instance(), Accepted: p.Config.Refuse == "", Reason: p.Config.Refuse, Caps: p.Config.Caps, Host: p.Config.Says, Told: p.Config.Told}
	if p.Config.Key != nil {
		answer.Proof = Meeting{
			Dialler: p.Connect.Host, Acceptor: p.Config.Says, Challenge: p.Challenge,
			DiallerID: p.Connect.ID, AcceptorID: answer.ID,
		}.Proof(p.Config.Key, p.Connect.Token)
	}
	err = p.TrySend(Msg{Op: OpConnectResponse, Payload: answer.Encode()})
	p.checksums.Store(answer.Caps&p.Connect.Caps&CapFrameChecksum != 0)
	if !answer.Accepted {
		err = errors.Join(err, p.WS.Close())
	}
	return err
}

func (s *Server) add(p *Peer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	s.all = append(s.all, p)
	s.handling.Add(1)
	return true
}

func (s *Server) closeAll() {
	s.mu.Lock()
	s.stopped = true
	all := s.all
	s.mu.Unlock()
	for _, p := range all {
		p.WS.Close() // ends its handshake
	}
	s.handling.Wait()
	for _, p := range all {
		p.Close()
	}
}

// ListenPair is HostPair for real sockets.
func ListenPair(t testing.TB, rawDials bool) (local, raw net.Listener) {
	t.Helper()
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		t.Cleanup(func() { l.Close() })
		return l
	}
	raw = listen()
	for range 100 {
		local = listen()
		if DialOrder("http://"+raw.Addr().String(), "http://"+local.Addr().String()) == rawDials {
			return local, raw
		}
	}
	require.Fail(t, "no such pair")
	return nil, nil
}
