package grid

import (
	"errors"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
)

// rawServer lets the grid dial scripted peers, at any path.
type rawServer struct {
	URL string // to be named as a host

	t     testing.TB
	c     rawConfig
	peers chan *rawPeer
	stop  chan struct{}

	handling sync.WaitGroup // grows under mu

	mu      sync.Mutex
	stopped bool
	all     []*rawPeer
}

// acceptRaw serves on l, nil for a TCP port of its own, until the test ends.
// Every peer that comes is answered as c says, whether the test has asked for
// it or not; accept hands them out. The token is not checked.
func acceptRaw(t testing.TB, l net.Listener, c rawConfig) *rawServer {
	t.Helper()
	if l == nil {
		var err error
		l, err = net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
	}
	s := &rawServer{
		URL: "http://" + l.Addr().String(), t: t, c: c,
		peers: make(chan *rawPeer), stop: make(chan struct{}),
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

// accept returns the next peer that has finished its handshake, refused ones
// included, or with Bare the next that was upgraded.
func (s *rawServer) accept() *rawPeer {
	s.t.Helper()
	select {
	case p := <-s.peers:
		require.NoError(s.t, p.handshake)
		return p
	case <-time.After(rawTimeout):
		require.Fail(s.t, "nobody dialled")
		return nil
	}
}

func (s *rawServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var up websocket.Upgrader
	ws, err := up.Upgrade(w, r, nil)
	if err != nil {
		return // the upgrader has answered
	}
	p := newRawPeer(s.t, ws, s.c)
	p.request = r
	if !s.add(p) {
		p.close()
		return
	}
	defer s.handling.Done()
	if !s.c.Bare {
		p.handshake = p.acceptHandshake()
	}
	if !s.c.Unread && p.handshake == nil && s.c.Refuse == "" {
		p.startReading()
	}
	select {
	case s.peers <- p:
	case <-s.stop:
	}
}

// acceptHandshake answers the Connect of the other side.
func (p *rawPeer) acceptHandshake() error {
	m, err := p.readHandshake(rawOpConnect)
	if err != nil {
		return err
	}
	if p.connect, err = decodeRawConnect(m.Payload); err != nil {
		return err
	}
	answer := rawConnectResponse{ID: p.c.instance(), Accepted: p.c.Refuse == "", Reason: p.c.Refuse, Caps: p.c.Caps}
	err = p.trySend(rawMsg{Op: rawOpConnectResponse, Payload: answer.encode()})
	if !answer.Accepted {
		err = errors.Join(err, p.ws.Close())
	}
	return err
}

func (s *rawServer) add(p *rawPeer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	s.all = append(s.all, p)
	s.handling.Add(1)
	return true
}

func (s *rawServer) closeAll() {
	s.mu.Lock()
	s.stopped = true
	all := s.all
	s.mu.Unlock()
	for _, p := range all {
		p.ws.Close() // ends its handshake
	}
	s.handling.Wait()
	for _, p := range all {
		p.close()
	}
}

// listenPair is hostPair for real sockets.
func listenPair(t testing.TB, rawDials bool) (local, raw net.Listener) {
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
		if dialOrder("http://"+raw.Addr().String(), "http://"+local.Addr().String()) == rawDials {
			return local, raw
		}
	}
	require.Fail(t, "no such pair")
	return nil, nil
}
