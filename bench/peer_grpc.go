package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/gridrpc/grid/bench/internal/echopb"
)

// pbMaxMessage is the limit for messages with a payload of maxMessage in them.
const pbMaxMessage = maxMessage + 1<<10

func grpcPeer() peer {
	return peer{
		name:   "grpc",
		about:  "gRPC with generated stubs: one ClientConn for all callers, everything by default but the limit of a message",
		module: "google.golang.org/grpc",
		serve:  func(c config) (server, error) { return grpcServe(c) },
		dial:   grpcDial,
	}
}

type grpcServer struct {
	*grpc.Server
	listener net.Listener
}

// grpcServe has no use for a limit; options may set one.
func grpcServe(c config, options ...grpc.ServerOption) (server, error) {
	l, err := net.Listen("tcp", loopback)
	if err != nil {
		return nil, err
	}
	creds := insecure.NewCredentials()
	if c.serverTLS != nil {
		creds = credentials.NewTLS(c.serverTLS)
	}
	s := &grpcServer{grpc.NewServer(append(options,
		grpc.Creds(creds),
		grpc.MaxRecvMsgSize(pbMaxMessage),
		grpc.WaitForHandlers(true), // when it stops
	)...), l}
	echopb.RegisterBenchServer(s, grpcMethods{})
	go s.Serve(l)
	return s, nil
}

func (s *grpcServer) addr() string { return s.listener.Addr().String() }

func (s *grpcServer) close() error {
	s.Stop()
	return nil
}

// grpcClient is a connection for all callers.
type grpcClient struct {
	conn *grpc.ClientConn
	grpcCaller
}

func grpcDial(c config, addr string) (client, error) {
	creds := insecure.NewCredentials()
	if c.clientTLS != nil {
		creds = credentials.NewTLS(c.clientTLS)
	}
	conn, err := grpc.NewClient(addr,
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(pbMaxMessage)),
	)
	if err != nil {
		return nil, err
	}
	g := &grpcClient{conn, grpcCaller{echopb.NewBenchClient(conn)}}
	if err := g.echo(nil); err != nil { // it connects by the first call
		return nil, errors.Join(fmt.Errorf("first call: %w", err), conn.Close())
	}
	return g, nil
}

func (g *grpcClient) caller(int) (caller, error) { return g.grpcCaller, nil }
func (g *grpcClient) close() error               { return g.conn.Close() }

// idle implements idler.
func (g *grpcClient) idle(ctx context.Context) (func(), error) {
	s, err := g.client.TwoWay(ctx)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	return pbIdle(s.Send, s.CloseSend, s.Recv)
}

type grpcMethods struct {
	pbUnary
	echopb.UnsafeBenchServer // every method is here
}

func (grpcMethods) Responses(ask *echopb.Ask, s grpc.ServerStreamingServer[echopb.Payload]) error {
	return pbRespond(ask, s.Send)
}

func (grpcMethods) Requests(s grpc.ClientStreamingServer[echopb.Payload, echopb.Empty]) error {
	if err := pbDrain(s.Recv); err != nil {
		return err
	}
	return s.SendAndClose(new(echopb.Empty))
}

func (grpcMethods) TwoWay(s grpc.BidiStreamingServer[echopb.Payload, echopb.Payload]) error {
	return pbReflect(s.Recv, s.Send)
}

type grpcCaller struct{ client echopb.BenchClient }

func (c grpcCaller) echo(payload []byte) error {
	return c.echoContext(context.Background(), payload)
}

func (c grpcCaller) echoContext(ctx context.Context, payload []byte) error {
	p, err := c.client.Echo(ctx, &echopb.Payload{Data: payload})
	if err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	return checkEcho(len(p.GetData()), len(payload))
}

func (c grpcCaller) upload(payload []byte) error {
	if _, err := c.client.Upload(context.Background(), &echopb.Payload{Data: payload}); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	return nil
}

func (c grpcCaller) typed(v sample) error {
	resp, err := c.client.Typed(context.Background(), pbSample(v))
	if err != nil {
		return fmt.Errorf("typed: %w", err)
	}
	return checkTyped(resp.GetId(), resp.GetSize(), v)
}

func (c grpcCaller) responses(n int, payload []byte) error {
	s, err := c.client.Responses(context.Background(), &echopb.Ask{Count: uint32(n), Data: payload})
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	return pbRead(s.Recv, n, len(payload))
}

func (c grpcCaller) requests(n int, payload []byte) error {
	s, err := c.client.Requests(context.Background())
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	if err := pbSend(s.Send, n, payload); err != nil {
		return err
	}
	if _, err := s.CloseAndRecv(); err != nil {
		return fmt.Errorf("end: %w", err)
	}
	return nil
}

func (c grpcCaller) twoway(n int, payload []byte) error {
	s, err := c.client.TwoWay(context.Background())
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	sent := make(chan error, 1)
	go func() { sent <- errors.Join(pbSend(s.Send, n, payload), s.CloseSend()) }()
	if err := pbRead(s.Recv, n, len(payload)); err != nil {
		return err
	}
	return <-sent
}

// What follows is what the generated code of all four libraries has in common.

// pbUnary has the handlers of calls that are not streams.
type pbUnary struct{}

func (pbUnary) Echo(_ context.Context, p *echopb.Payload) (*echopb.Payload, error) { return p, nil }

func (pbUnary) Upload(context.Context, *echopb.Payload) (*echopb.Empty, error) {
	return new(echopb.Empty), nil
}

func (pbUnary) Typed(_ context.Context, v *echopb.Sample) (*echopb.Sample, error) {
	v.Size++
	return v, nil
}

// pbRespond is the handler of a stream of responses.
func pbRespond(ask *echopb.Ask, send func(*echopb.Payload) error) error {
	return pbSend(send, int(ask.GetCount()), ask.GetData())
}

// pbDrain is the handler of a stream of requests, but for its end.
func pbDrain(recv func() (*echopb.Payload, error)) error {
	for {
		if _, err := recv(); err != nil {
			return pbEnd(err)
		}
	}
}

// pbReflect is the handler of a two-way stream.
func pbReflect(recv func() (*echopb.Payload, error), send func(*echopb.Payload) error) error {
	for {
		p, err := recv()
		if err != nil {
			return pbEnd(err)
		}
		if err := send(p); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
}

// pbEnd is what a stream ends with after err from reading it.
func pbEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("receive: %w", err)
}

// pbSend sends n messages.
func pbSend(send func(*echopb.Payload) error, n int, payload []byte) error {
	for range n {
		if err := send(&echopb.Payload{Data: payload}); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
}

// pbRead reads a stream of n messages to its end.
func pbRead(recv func() (*echopb.Payload, error), n, size int) error {
	for got := 0; ; got++ {
		p, err := recv()
		if err != nil {
			return cmp.Or(pbEnd(err), checkCount(got, n))
		}
		if err := checkEcho(len(p.GetData()), size); err != nil {
			return err
		}
	}
}

// pbIdle waits for the handler of a two-way stream, with one message there and back. It returns
// what ends the stream, and waits for that.
func pbIdle(send func(*echopb.Payload) error, closeSend func() error, recv func() (*echopb.Payload, error)) (func(), error) {
	if err := send(&echopb.Payload{Data: make([]byte, 16)}); err != nil {
		return nil, fmt.Errorf("send: %w", err)
	}
	if _, err := recv(); err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	return func() {
		if closeSend() == nil {
			recv()
		}
	}, nil
}

func pbSample(v sample) *echopb.Sample {
	return &echopb.Sample{Id: v.ID, Name: v.Name, Size: v.Size, Unix: v.Unix, Flags: v.Flags}
}
