package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"

	"storj.io/drpc/drpcconn"
	"storj.io/drpc/drpcmanager"
	"storj.io/drpc/drpcmux"
	"storj.io/drpc/drpcserver"
	"storj.io/drpc/drpcwire"

	"github.com/gridrpc/grid/bench/internal/echopb"
)

func drpcPeer() peer {
	return peer{
		name:   "drpc",
		about:  "DRPC with generated stubs: a connection for each caller, as one carries one call or stream at a time; an idle stream has its own too",
		module: "storj.io/drpc",
		start:  func(c config) (pair, error) { return newDRPCPair(c) },
	}
}

// drpcManager has the one option that differs from the default.
var drpcManager = drpcmanager.Options{Reader: drpcwire.ReaderOptions{MaximumBufferSize: pbMaxMessage}}

// drpcPair is a server, and a connection to it for each caller and idle stream.
type drpcPair struct {
	addr      string
	clientTLS *tls.Config
	stop      context.CancelFunc // of the server
	served    chan error
	callers   []drpcCaller

	mu    sync.Mutex
	conns map[*drpcconn.Conn]struct{} // also those of callers
}

func newDRPCPair(c config) (_ *drpcPair, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &drpcPair{
		addr:      l.Addr().String(),
		clientTLS: c.clientTLS,
		served:    make(chan error, 1),
		conns:     make(map[*drpcconn.Conn]struct{}),
	}
	if c.serverTLS != nil {
		l = tls.NewListener(l, c.serverTLS)
	}
	mux := drpcmux.New()
	if err := echopb.DRPCRegisterBench(mux, drpcServer{}); err != nil {
		l.Close()
		return nil, fmt.Errorf("drpc server: %w", err)
	}
	server := drpcserver.NewWithOptions(mux, drpcserver.Options{Manager: drpcManager})
	var ctx context.Context
	ctx, p.stop = context.WithCancel(context.Background())
	go func() { p.served <- server.Serve(ctx, l) }()
	for range c.callers {
		conn, err := p.dial()
		if err != nil {
			p.close()
			return nil, err
		}
		p.callers = append(p.callers, drpcCaller{echopb.NewDRPCBenchClient(conn)})
	}
	return p, nil
}

func (p *drpcPair) dial() (*drpcconn.Conn, error) {
	var c net.Conn
	var err error
	if p.clientTLS != nil {
		c, err = tls.Dial("tcp", p.addr, p.clientTLS)
	} else {
		c, err = net.Dial("tcp", p.addr)
	}
	if err != nil {
		return nil, err
	}
	conn := drpcconn.NewWithOptions(c, drpcconn.Options{Manager: drpcManager})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[conn] = struct{}{}
	return conn, nil
}

// hangUp closes a connection from dial.
func (p *drpcPair) hangUp(conn *drpcconn.Conn) error {
	p.mu.Lock()
	delete(p.conns, conn)
	p.mu.Unlock()
	return conn.Close()
}

func (p *drpcPair) caller(i int) (caller, error) { return p.callers[i], nil }

func (p *drpcPair) close() error {
	p.mu.Lock()
	conns := p.conns
	p.conns = make(map[*drpcconn.Conn]struct{})
	p.mu.Unlock()
	var errs []error
	for conn := range conns {
		errs = append(errs, conn.Close())
	}
	p.stop()
	return errors.Join(append(errs, <-p.served)...)
}

// idle implements idler.
func (p *drpcPair) idle(ctx context.Context) (func(), error) {
	conn, err := p.dial()
	if err != nil {
		return nil, err
	}
	s, err := echopb.NewDRPCBenchClient(conn).TwoWay(ctx)
	if err != nil {
		p.hangUp(conn)
		return nil, fmt.Errorf("open: %w", err)
	}
	end, err := pbIdle(s.Send, s.CloseSend, s.Recv)
	if err != nil {
		p.hangUp(conn)
		return nil, err
	}
	return func() { end(); p.hangUp(conn) }, nil
}

type drpcServer struct{ pbUnary }

func (drpcServer) Responses(ask *echopb.Ask, s echopb.DRPCBench_ResponsesStream) error {
	return pbRespond(ask, s.Send)
}

func (drpcServer) Requests(s echopb.DRPCBench_RequestsStream) error {
	if err := pbDrain(s.Recv); err != nil {
		return err
	}
	return s.SendAndClose(new(echopb.Empty))
}

func (drpcServer) TwoWay(s echopb.DRPCBench_TwoWayStream) error {
	return pbReflect(s.Recv, s.Send)
}

// drpcCaller calls over a connection of its own.
type drpcCaller struct{ client echopb.DRPCBenchClient }

func (c drpcCaller) echo(payload []byte) error {
	p, err := c.client.Echo(context.Background(), &echopb.Payload{Data: payload})
	if err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	return checkEcho(len(p.GetData()), len(payload))
}

func (c drpcCaller) upload(payload []byte) error {
	if _, err := c.client.Upload(context.Background(), &echopb.Payload{Data: payload}); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	return nil
}

func (c drpcCaller) typed(v sample) error {
	resp, err := c.client.Typed(context.Background(), pbSample(v))
	if err != nil {
		return fmt.Errorf("typed: %w", err)
	}
	return checkTyped(resp.GetId(), resp.GetSize(), v)
}

func (c drpcCaller) responses(n int, payload []byte) error {
	s, err := c.client.Responses(context.Background(), &echopb.Ask{Count: uint32(n), Data: payload})
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer s.Close()
	return pbRead(s.Recv, n, len(payload))
}

func (c drpcCaller) requests(n int, payload []byte) error {
	s, err := c.client.Requests(context.Background())
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer s.Close()
	if err := pbSend(s.Send, n, payload); err != nil {
		return err
	}
	if _, err := s.CloseAndRecv(); err != nil {
		return fmt.Errorf("end: %w", err)
	}
	return nil
}

func (c drpcCaller) twoway(n int, payload []byte) error {
	s, err := c.client.TwoWay(context.Background())
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer s.Close()
	sent := make(chan error, 1)
	go func() { sent <- errors.Join(pbSend(s.Send, n, payload), s.CloseSend()) }()
	if err := pbRead(s.Recv, n, len(payload)); err != nil {
		return err
	}
	return <-sent
}
