package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/rpc"
	"sync"
	"time"
)

// PlainSample is a sample as gob and JSON encode it. net/rpc wants its type to be exported.
type PlainSample struct {
	ID    uint64
	Name  string
	Size  int64
	Time  time.Time
	Flags uint32
}

func plainSampleOf(v sample) *PlainSample {
	return &PlainSample{ID: v.ID, Name: v.Name, Size: v.Size, Time: time.Unix(0, v.Unix), Flags: v.Flags}
}

// plainServer serves the connections of a loopback listener, each in a goroutine of its own, for
// the peers that sit on a bare TCP or TLS connection.
type plainServer struct {
	listener net.Listener
	handle   func(net.Conn)
	wg       sync.WaitGroup

	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]struct{}
}

// newPlainServer serves each connection by handle, after which it is closed.
func newPlainServer(c config, handle func(net.Conn)) (server, error) {
	l, err := net.Listen("tcp", loopback)
	if err != nil {
		return nil, err
	}
	if c.serverTLS != nil {
		l = tls.NewListener(l, c.serverTLS)
	}
	s := &plainServer{listener: l, handle: handle, conns: make(map[net.Conn]struct{})}
	s.wg.Go(s.accept)
	return s, nil
}

func (s *plainServer) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil || !s.add(conn) {
			return // closed
		}
		s.wg.Go(func() {
			defer s.remove(conn)
			s.handle(conn)
		})
	}
}

// add reports whether conn is to be served.
func (s *plainServer) add(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		conn.Close()
		return false
	}
	s.conns[conn] = struct{}{}
	return true
}

func (s *plainServer) remove(conn net.Conn) {
	conn.Close() // again, where the handler did
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
}

func (s *plainServer) addr() string { return s.listener.Addr().String() }

// plainDial makes a connection to a server, over TLS if that is asked for.
func plainDial(c config, addr string) (net.Conn, error) {
	if c.clientTLS != nil {
		conn, err := tls.Dial("tcp", addr, c.clientTLS)
		if err != nil {
			return nil, err // not a nil *tls.Conn in an interface
		}
		return conn, nil
	}
	return net.Dial("tcp", addr)
}

// close ends all connections, and waits for their handlers. A connection's own error says no more
// than that its other end was faster to close.
func (s *plainServer) close() error {
	err := s.listener.Close()
	s.mu.Lock()
	s.closed = true
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return err
}

func netrpcPeer() peer {
	return peer{
		name:  "netrpc",
		about: "the standard library's net/rpc: gob, one TCP connection for all callers",
		serve: netrpcServe,
		dial:  netrpcDial,
	}
}

// The methods of the service.
const (
	netrpcService = "Bench"
	netrpcEcho    = netrpcService + ".Echo"
	netrpcUpload  = netrpcService + ".Upload"
	netrpcTyped   = netrpcService + ".Typed"
)

// netrpcServer has methods as net/rpc wants them.
type netrpcServer struct{}

func (netrpcServer) Echo(payload []byte, answer *[]byte) error {
	*answer = payload
	return nil
}

func (netrpcServer) Upload(_ []byte, _ *struct{}) error { return nil }

func (netrpcServer) Typed(v *PlainSample, answer *PlainSample) error {
	*answer = *v
	answer.Size++
	return nil
}

func netrpcServe(c config) (server, error) {
	methods := rpc.NewServer()
	if err := methods.RegisterName(netrpcService, netrpcServer{}); err != nil {
		return nil, err
	}
	return newPlainServer(c, func(conn net.Conn) { methods.ServeConn(conn) })
}

func netrpcDial(c config, addr string) (client, error) {
	conn, err := plainDial(c, addr)
	if err != nil {
		return nil, err
	}
	return netrpcClient{netrpcCaller{rpc.NewClient(conn)}}, nil
}

// netrpcClient is one client for all callers.
type netrpcClient struct{ netrpcCaller }

func (c netrpcClient) caller(int) (caller, error) { return c.netrpcCaller, nil }
func (c netrpcClient) close() error               { return c.client.Close() }

// netrpcCaller calls through the one client.
type netrpcCaller struct{ client *rpc.Client }

// call names the method in an error.
func (c netrpcCaller) call(method string, v, answer any) error {
	if err := c.client.Call(method, v, answer); err != nil {
		return fmt.Errorf("net/rpc: %s: %w", method, err)
	}
	return nil
}

func (c netrpcCaller) echo(payload []byte) error {
	var answer []byte
	if err := c.call(netrpcEcho, payload, &answer); err != nil {
		return err
	}
	return checkEcho(len(answer), len(payload))
}

func (c netrpcCaller) upload(payload []byte) error {
	return c.call(netrpcUpload, payload, new(struct{}))
}

func (c netrpcCaller) typed(v sample) error {
	var answer PlainSample
	if err := c.call(netrpcTyped, plainSampleOf(v), &answer); err != nil {
		return err
	}
	return checkTyped(answer.ID, answer.Size, v)
}
