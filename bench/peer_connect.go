package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"

	"connectrpc.com/connect"

	"github.com/gridrpc/grid/bench/internal/echopb"
	"github.com/gridrpc/grid/bench/internal/echopb/echopbconnect"
)

func connectPeer() peer {
	return peer{
		name:   "connect",
		about:  "Connect with generated stubs and its own protocol, over HTTP/2 of net/http, which shares connections; its gzip, the default, is off",
		module: "connectrpc.com/connect",
		serve:  connectServe,
		dial:   connectDial,
	}
}

type connectServer struct {
	*http.Server
	listener net.Listener
}

// connectProtocols are those of both ends.
func connectProtocols(tls bool) *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP2(tls)
	p.SetUnencryptedHTTP2(!tls)
	return p
}

func connectServe(c config) (server, error) {
	l, err := net.Listen("tcp", loopback)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle(echopbconnect.NewBenchHandler(connectMethods{}))
	s := &connectServer{&http.Server{Handler: mux, Protocols: connectProtocols(c.serverTLS != nil), TLSConfig: c.serverTLS}, l}
	if c.serverTLS != nil {
		go s.ServeTLS(l, "", "")
	} else {
		go s.Serve(l)
	}
	return s, nil
}

func (s *connectServer) addr() string { return s.listener.Addr().String() }
func (s *connectServer) close() error { return s.Close() }

// connectClient is an HTTP client for all callers.
type connectClient struct {
	transport *http.Transport
	dialed    sockets
	connectCaller
}

func connectDial(c config, addr string) (client, error) {
	url := "http://" + addr
	if c.clientTLS != nil {
		url = "https://" + addr
	}
	d := new(connectClient)
	d.transport = &http.Transport{Protocols: connectProtocols(c.clientTLS != nil), TLSClientConfig: c.clientTLS, DialContext: d.dial}
	d.client = echopbconnect.NewBenchClient(&http.Client{Transport: d.transport}, url,
		connect.WithAcceptCompression("gzip", nil, nil)) // or it would measure gzip
	if err := d.echo(nil); err != nil { // it connects by the first call
		d.close()
		return nil, fmt.Errorf("first call: %w", err)
	}
	return d, nil
}

// dial dials as a transport does by default.
func (c *connectClient) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return c.dialed.watch(conn), nil
}

func (c *connectClient) caller(int) (caller, error) { return c.connectCaller, nil }

// close leaves the connections that are not idle: they end because the server's do.
func (c *connectClient) close() error {
	c.transport.CloseIdleConnections()
	return nil
}

// wait implements waiter.
func (c *connectClient) wait() {
	c.transport.CloseIdleConnections()
	c.dialed.wait()
}

// idle implements idler.
func (c *connectClient) idle(ctx context.Context) (func(), error) {
	s, err := c.client.TwoWay(ctx)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	end, err := pbIdle(s.Send, s.CloseRequest, s.Receive)
	if err != nil {
		s.CloseResponse()
		return nil, err
	}
	return func() { end(); s.CloseResponse() }, nil
}

type connectMethods struct{ pbUnary }

func (connectMethods) Responses(_ context.Context, ask *echopb.Ask, s *connect.ServerStream[echopb.Payload]) error {
	return pbRespond(ask, s.Send)
}

func (connectMethods) Requests(_ context.Context, s *connect.ClientStream[echopb.Payload]) (*echopb.Empty, error) {
	for s.Receive() {
	}
	return new(echopb.Empty), s.Err()
}

func (connectMethods) TwoWay(_ context.Context, s *connect.BidiStream[echopb.Payload, echopb.Payload]) error {
	return pbReflect(s.Receive, s.Send)
}

type connectCaller struct{ client echopbconnect.BenchClient }

func (c connectCaller) echo(payload []byte) error {
	return c.echoContext(context.Background(), payload)
}

func (c connectCaller) echoContext(ctx context.Context, payload []byte) error {
	p, err := c.client.Echo(ctx, &echopb.Payload{Data: payload})
	if err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	return checkEcho(len(p.GetData()), len(payload))
}

func (c connectCaller) upload(payload []byte) error {
	if _, err := c.client.Upload(context.Background(), &echopb.Payload{Data: payload}); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	return nil
}

func (c connectCaller) typed(v sample) error {
	resp, err := c.client.Typed(context.Background(), pbSample(v))
	if err != nil {
		return fmt.Errorf("typed: %w", err)
	}
	return checkTyped(resp.GetId(), resp.GetSize(), v)
}

func (c connectCaller) responses(n int, payload []byte) error {
	s, err := c.client.Responses(context.Background(), &echopb.Ask{Count: uint32(n), Data: payload})
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer s.Close()
	got := 0
	for ; s.Receive(); got++ {
		if err := checkEcho(len(s.Msg().GetData()), len(payload)); err != nil {
			return err
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	return checkCount(got, n)
}

func (c connectCaller) requests(n int, payload []byte) error {
	s, err := c.client.Requests(context.Background())
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	// The error of the stream is the one from its end.
	serr := pbSend(s.Send, n, payload)
	if _, err := s.CloseAndReceive(); err != nil {
		return fmt.Errorf("end: %w", err)
	}
	return serr
}

func (c connectCaller) twoway(n int, payload []byte) error {
	s, err := c.client.TwoWay(context.Background())
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer s.CloseResponse()
	sent := make(chan error, 1)
	go func() { sent <- errors.Join(pbSend(s.Send, n, payload), s.CloseRequest()) }()
	if err := pbRead(s.Receive, n, len(payload)); err != nil {
		return err
	}
	return <-sent
}

// sockets are connections whose ends a library does not wait for.
type sockets struct{ open sync.WaitGroup }

// watch returns c, that wait will wait for.
func (s *sockets) watch(c net.Conn) net.Conn {
	s.open.Add(1)
	return &socket{c, sync.OnceFunc(s.open.Done)}
}

// wait waits until all are closed.
func (s *sockets) wait() { s.open.Wait() }

type socket struct {
	net.Conn
	closed func()
}

func (c *socket) Close() error {
	defer c.closed()
	return c.Conn.Close()
}
