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
		serve:  drpcServe,
		dial:   drpcDial,
	}
}

// drpcManager has the one option that differs from the default.
var drpcManager = drpcmanager.Options{Reader: drpcwire.ReaderOptions{MaximumBufferSize: pbMaxMessage}}

type drpcServer struct {
	address string
	stop    context.CancelFunc
	served  chan error
}

func drpcServe(c config) (server, error) {
	l, err := net.Listen("tcp", loopback)
	if err != nil {
		return nil, err
	}
	s := &drpcServer{address: l.Addr().String(), served: make(chan error, 1)}
	if c.serverTLS != nil {
		l = tls.NewListener(l, c.serverTLS)
	}
	mux := drpcmux.New()
	if err := echopb.DRPCRegisterBench(mux, drpcMethods{}); err != nil {
		l.Close()
		return nil, err
	}
	serving := drpcserver.NewWithOptions(mux, drpcserver.Options{Manager: drpcManager})
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	go func() { s.served <- serving.Serve(ctx, l) }()
	return s, nil
}

func (s *drpcServer) addr() string { return s.address }

func (s *drpcServer) close() error {
	s.stop()
	return <-s.served
}

// drpcClient is a connection for each caller and idle stream.
type drpcClient struct {
	config  config
	addr    string
	callers []drpcCaller

	mu    sync.Mutex
	conns map[*drpcconn.Conn]struct{} // also those of callers
}

func drpcDial(c config, addr string) (client, error) {
	d := &drpcClient{config: c, addr: addr, conns: make(map[*drpcconn.Conn]struct{})}
	for range c.callers {
		conn, err := d.dial()
		if err != nil {
			d.close()
			return nil, err
		}
		d.callers = append(d.callers, drpcCaller{echopb.NewDRPCBenchClient(conn)})
	}
	return d, nil
}

func (d *drpcClient) dial() (*drpcconn.Conn, error) {
	c, err := plainDial(d.config, d.addr)
	if err != nil {
		return nil, err
	}
	conn := drpcconn.NewWithOptions(c, drpcconn.Options{Manager: drpcManager})
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conns[conn] = struct{}{}
	return conn, nil
}

// hangUp closes a connection from dial.
func (d *drpcClient) hangUp(conn *drpcconn.Conn) error {
	d.mu.Lock()
	delete(d.conns, conn)
	d.mu.Unlock()
	return conn.Close()
}

func (d *drpcClient) caller(i int) (caller, error) { return d.callers[i], nil }

func (d *drpcClient) close() error {
	d.mu.Lock()
	conns := d.conns
	d.conns = make(map[*drpcconn.Conn]struct{})
	d.mu.Unlock()
	var errs []error
	for conn := range conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}

// idle implements idler.
func (d *drpcClient) idle(ctx context.Context) (func(), error) {
	conn, err := d.dial()
	if err != nil {
		return nil, err
	}
	s, err := echopb.NewDRPCBenchClient(conn).TwoWay(ctx)
	if err != nil {
		d.hangUp(conn)
		return nil, fmt.Errorf("open: %w", err)
	}
	end, err := pbIdle(s.Send, s.CloseSend, s.Recv)
	if err != nil {
		d.hangUp(conn)
		return nil, err
	}
	return func() { end(); d.hangUp(conn) }, nil
}

type drpcMethods struct{ pbUnary }

func (drpcMethods) Responses(ask *echopb.Ask, s echopb.DRPCBench_ResponsesStream) error {
	return pbRespond(ask, s.Send)
}

func (drpcMethods) Requests(s echopb.DRPCBench_RequestsStream) error {
	if err := pbDrain(s.Recv); err != nil {
		return err
	}
	return s.SendAndClose(new(echopb.Empty))
}

func (drpcMethods) TwoWay(s echopb.DRPCBench_TwoWayStream) error {
	return pbReflect(s.Recv, s.Send)
}

// drpcCaller calls over a connection of its own.
type drpcCaller struct{ client echopb.DRPCBenchClient }

func (c drpcCaller) echo(payload []byte) error {
	return c.echoContext(context.Background(), payload)
}

func (c drpcCaller) echoContext(ctx context.Context, payload []byte) error {
	p, err := c.client.Echo(ctx, &echopb.Payload{Data: payload})
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
