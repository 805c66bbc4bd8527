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
		serve:  ttrpcServe,
		dial:   ttrpcDial,
	}
}

type ttrpcServer struct {
	*ttrpc.Server
	address  string
	accepted sockets
	served   chan error
}

func ttrpcServe(c config) (server, error) {
	serving, err := ttrpc.NewServer()
	if err != nil {
		return nil, err
	}
	echopb.RegisterTTRPCBenchService(serving, ttrpcMethods{})
	l, err := net.Listen("tcp", loopback)
	if err != nil {
		return nil, err
	}
	s := &ttrpcServer{Server: serving, address: l.Addr().String(), served: make(chan error, 1)}
	l = watchedListener{l, &s.accepted}
	if c.serverTLS != nil { // it has none of its own
		l = tls.NewListener(l, c.serverTLS)
	}
	go func() { s.served <- s.Serve(context.Background(), l) }()
	return s, nil
}

func (s *ttrpcServer) addr() string { return s.address }

func (s *ttrpcServer) close() error {
	err := s.Close()
	if serr := <-s.served; !errors.Is(serr, ttrpc.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	s.accepted.wait()
	return err
}

// ttrpcClient is a connection for all callers.
type ttrpcClient struct {
	conn *ttrpc.Client
	ttrpcCaller
}

func ttrpcDial(c config, addr string) (client, error) {
	conn, err := plainDial(c, addr)
	if err != nil {
		return nil, err
	}
	t := ttrpc.NewClient(conn)
	return &ttrpcClient{t, ttrpcCaller{echopb.NewTTRPCBenchClient(t)}}, nil
}

func (t *ttrpcClient) caller(int) (caller, error) { return t.ttrpcCaller, nil }

func (t *ttrpcClient) close() error {
	return errors.Join(t.conn.Close(), t.conn.UserOnCloseWait(context.Background()))
}

// idle implements idler.
func (t *ttrpcClient) idle(ctx context.Context) (func(), error) {
	s, err := t.client.TwoWay(ctx)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	return pbIdle(s.Send, s.CloseSend, s.Recv)
}

type ttrpcMethods struct{ pbUnary }

func (ttrpcMethods) Responses(_ context.Context, ask *echopb.Ask, s echopb.TTRPCBench_ResponsesServer) error {
	return pbRespond(ask, s.Send)
}

func (ttrpcMethods) Requests(_ context.Context, s echopb.TTRPCBench_RequestsServer) (*echopb.Empty, error) {
	return new(echopb.Empty), pbDrain(s.Recv)
}

func (ttrpcMethods) TwoWay(_ context.Context, s echopb.TTRPCBench_TwoWayServer) error {
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
	return c.echoContext(context.Background(), payload)
}

func (c ttrpcCaller) echoContext(ctx context.Context, payload []byte) error {
	p, err := c.client.Echo(ctx, &echopb.Payload{Data: payload})
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
