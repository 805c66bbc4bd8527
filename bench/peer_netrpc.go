package main

import (
	"crypto/tls"
	"errors"
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
	tls      *tls.Config // the clients'
	handle   func(net.Conn)
	wg       sync.WaitGroup

	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]struct{}
}

// newPlainServer serves each connection by handle, after which it is closed.
func newPlainServer(c config, handle func(net.Conn)) (*plainServer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	if c.serverTLS != nil {
		l = tls.NewListener(l, c.serverTLS)
	}
	s := &plainServer{listener: l, tls: c.clientTLS, handle: handle, conns: make(map[net.Conn]struct{})}
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

// dial makes a connection to the server.
func (s *plainServer) dial() (net.Conn, error) {
	addr := s.listener.Addr().String()
	if s.tls != nil {
		conn, err := tls.Dial("tcp", addr, s.tls)
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
		start: func(c config) (pair, error) {
			p, err := newNetRPCPair(c)
			if err != nil {
				return nil, fmt.Errorf("net/rpc: %w", err)
			}
			return p, nil
		},
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

// netrpcPair is a server with one client.
type netrpcPair struct {
	server *plainServer
	netrpcCaller
}

func newNetRPCPair(c config) (*netrpcPair, error) {
	methods := rpc.NewServer()
	if err := methods.RegisterName(netrpcService, netrpcServer{}); err != nil {
		return nil, err
	}
	s, err := newPlainServer(c, func(conn net.Conn) { methods.ServeConn(conn) })
	if err != nil {
		return nil, err
	}
	conn, err := s.dial()
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return &netrpcPair{s, netrpcCaller{rpc.NewClient(conn)}}, nil
}

func (p *netrpcPair) caller(int) (caller, error) { return p.netrpcCaller, nil }

func (p *netrpcPair) close() error {
	if err := errors.Join(p.client.Close(), p.server.close()); err != nil {
		return fmt.Errorf("net/rpc: close: %w", err)
	}
	return nil
}

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
