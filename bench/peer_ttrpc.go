package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"github.com/containerd/ttrpc"

	"github.com/gridrpc/grid/bench/internal/echopb"
)

func ttrpcPeer() peer {
	return peer{
		name:   "ttrpc",
		about:  "ttrpc with generated stubs: one connection for all callers, everything by default; messages of at most 4 MiB",
		module: "github.com/containerd/ttrpc",
		start:  func(c config) (pair, error) { return newTTRPCPair(c) },
	}
}

// ttrpcPair is a server, and a connection to it for all callers.
type ttrpcPair struct {
	server   *ttrpc.Server
	accepted sockets
	served   chan error
	conn     *ttrpc.Client
	ttrpcCaller
}

func newTTRPCPair(c config) (_ *ttrpcPair, err error) {
	server, err := ttrpc.NewServer()
	if err != nil {
		return nil, fmt.Errorf("ttrpc server: %w", err)
	}
	echopb.RegisterTTRPCBenchService(server, ttrpcServer{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	p := &ttrpcPair{server: server, served: make(chan error, 1)}
	l = watchedListener{l, &p.accepted}
	if c.serverTLS != nil { // it has none of its own
		l = tls.NewListener(l, c.serverTLS)
	}
	go func() { p.served <- server.Serve(context.Background(), l) }()
	var conn net.Conn
	if c.clientTLS != nil {
		conn, err = tls.Dial("tcp", addr, c.clientTLS)
	} else {
		conn, err = net.Dial("tcp", addr)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	p.conn = ttrpc.NewClient(conn)
	p.client = echopb.NewTTRPCBenchClient(p.conn)
	return p, nil
}

func (p *ttrpcPair) caller(int) (caller, error) { return p.ttrpcCaller, nil }

func (p *ttrpcPair) close() error {
	var errs []error
	if p.conn != nil {
		errs = append(errs, p.conn.Close(), p.conn.UserOnCloseWait(context.Background()))
	}
	errs = append(errs, p.server.Close())
	if err := <-p.served; !errors.Is(err, ttrpc.ErrServerClosed) {
		errs = append(errs, err)
	}
	p.accepted.wait()
	return errors.Join(errs...)
}

// idle implements idler.
func (p *ttrpcPair) idle(ctx context.Context) (func(), error) {
	s, err := p.client.TwoWay(ctx)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	return pbIdle(s.Send, s.CloseSend, s.Recv)
}

type ttrpcServer struct{ pbUnary }

func (ttrpcServer) Responses(_ context.Context, ask *echopb.Ask, s echopb.TTRPCBench_ResponsesServer) error {
	return pbRespond(ask, s.Send)
}

func (ttrpcServer) Requests(_ context.Context, s echopb.TTRPCBench_RequestsServer) (*echopb.Empty, error) {
	return new(echopb.Empty), pbDrain(s.Recv)
}

func (ttrpcServer) TwoWay(_ context.Context, s echopb.TTRPCBench_TwoWayServer) error {
	return pbReflect(s.Recv, s.Send)
}

type ttrpcCaller struct{ client echopb.TTRPCBenchClient }

// ttrpcErr adds what was done to the error of a call.
func ttrpcErr(what string, err error) error {
	if big := (*ttrpc.OversizedMessageErr)(nil); errors.As(err, &big) {
		return fmt.Errorf("%s: %w: %w", what, errCannot, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (c ttrpcCaller) echo(payload []byte) error {
	p, err := c.client.Echo(context.Background(), &echopb.Payload{Data: payload})
	if err != nil {
		return ttrpcErr("echo", err)
	}
	return checkEcho(len(p.GetData()), len(payload))
}

func (c ttrpcCaller) upload(payload []byte) error {
	if _, err := c.client.Upload(context.Background(), &echopb.Payload{Data: payload}); err != nil {
		return ttrpcErr("upload", err)
	}
	return nil
}

func (c ttrpcCaller) typed(v sample) error {
	resp, err := c.client.Typed(context.Background(), pbSample(v))
	if err != nil {
		return ttrpcErr("typed", err)
	}
	return checkTyped(resp.GetId(), resp.GetSize(), v)
}

func (c ttrpcCaller) responses(n int, payload []byte) error {
	s, err := c.client.Responses(context.Background(), &echopb.Ask{Count: uint32(n), Data: payload})
	if err != nil {
		return ttrpcErr("open", err)
	}
	return pbRead(s.Recv, n, len(payload))
}

func (c ttrpcCaller) requests(n int, payload []byte) error {
	s, err := c.client.Requests(context.Background())
	if err != nil {
		return ttrpcErr("open", err)
	}
	if err := pbSend(s.Send, n, payload); err != nil {
		return ttrpcErr("requests", err)
	}
	if _, err := s.CloseAndRecv(); err != nil {
		return ttrpcErr("end", err)
	}
	return nil
}

func (c ttrpcCaller) twoway(n int, payload []byte) error {
	s, err := c.client.TwoWay(context.Background())
	if err != nil {
		return ttrpcErr("open", err)
	}
	sent := make(chan error, 1)
	go func() { sent <- errors.Join(pbSend(s.Send, n, payload), s.CloseSend()) }()
	// If there is nothing to read, the other error may say why.
	if err := errors.Join(pbRead(s.Recv, n, len(payload)), <-sent); err != nil {
		return ttrpcErr("twoway", err)
	}
	return nil
}

// watchedListener watches what it accepts.
type watchedListener struct {
	net.Listener
	accepted *sockets
}

func (l watchedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.accepted.watch(c), nil
}
