package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/gridrpc/grid"
)

// The handlers of grid's servers.
const (
	gridEcho grid.HandlerID = iota + 1
	gridUpload
	gridTyped
	gridResponses
	gridRequests
	gridTwoWay
	gridWait
	gridWork
)

const (
	// gridCapacity is that of the streams in messages: enough for a short one to go through without
	// waiting for credits, as it does with the others, whose default windows are of 64 KiB and
	// more.
	gridCapacity = 16
	gridToken    = "benchmark"
)

func gridPeer() peer {
	return peer{
		name:   "grid",
		about:  "this library: raw byte handlers, one websocket between the two managers; streams with capacities of 16",
		mutual: true,
		serve:  func(c config) (server, error) { return gridServe(c) },
		dial:   func(c config, addr string) (client, error) { return gridDial(c, addr) },
	}
}

// gridHost is one manager, with the server that its routes are on.
type gridHost struct {
	address string
	manager *grid.Manager
	server  *http.Server
}

// newGridHost starts a manager for the host of a listener, among those at addrs.
func newGridHost(l net.Listener, addrs []string, c config) (*gridHost, error) {
	var hosts []string
	for _, addr := range addrs {
		hosts = append(hosts, gridURL(addr, c))
	}
	h := &gridHost{address: l.Addr().String()}
	m, err := grid.NewManager(context.Background(), grid.ManagerOptions{
		Local:       gridURL(h.address, c),
		Hosts:       hosts,
		AuthFn:      func() string { return gridToken },
		AuthToken:   gridAuth,
		TLSConfig:   c.clientTLS,
		Logger:      slog.New(slog.DiscardHandler),
		MaxHandlers: c.limit,
		Register:    func(m *grid.Manager) error { return registerGridHandlers(m, c) },
	})
	if err != nil {
		l.Close()
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle(grid.RoutePath, m.Handler())
	h.manager, h.server = m, &http.Server{Handler: mux, TLSConfig: c.serverTLS}
	if c.serverTLS != nil {
		go h.server.ServeTLS(l, "", "")
	} else {
		go h.server.Serve(l)
	}
	return h, nil
}

func gridURL(addr string, c config) string {
	if c.serverTLS != nil {
		return "https://" + addr
	}
	return "http://" + addr
}

// wait waits until all connections of the host are up.
func (h *gridHost) wait() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, host := range h.manager.Targets() {
		if err := h.manager.Connection(host).WaitForConnect(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (h *gridHost) addr() string { return h.address }
func (h *gridHost) close() error { return errors.Join(h.server.Close(), h.manager.Close()) }

// gridTimeoutPeers are further ways to call with grid, which the shape deadline compares.
func gridTimeoutPeers() []peer {
	variant := func(name, about string, within func(*grid.Connection, time.Duration) grid.Requester) peer {
		p := gridPeer()
		p.name, p.about = name, about
		p.dial = func(c config, addr string) (client, error) {
			g, err := gridDial(c, addr)
			if err != nil {
				return nil, err
			}
			return gridTimeoutClient{g, within, within(g.conn, callDeadline)}, nil
		}
		return p
	}
	return []peer{
		variant("grid-option", "grid with a deadline that is an option of the connection, in place of one from each call's context",
			func(c *grid.Connection, d time.Duration) grid.Requester { return c.WithTimeout(d) }),
		variant("grid-none", "grid without a deadline of the caller's", func(c *grid.Connection, _ time.Duration) grid.Requester { return c }),
	}
}

// gridTimeoutClient is one of gridTimeoutPeers.
type gridTimeoutClient struct {
	*gridClient
	within func(*grid.Connection, time.Duration) grid.Requester
	calls  grid.Requester // within callDeadline, made once
}

func (c gridTimeoutClient) caller(int) (caller, error) { return gridTimeoutCaller(c), nil }

type gridTimeoutCaller gridTimeoutClient

func (c gridTimeoutCaller) echoWithin(d time.Duration, payload []byte) error {
	calls := c.calls
	if d != callDeadline {
		calls = c.within(c.conn, d)
	}
	b, err := calls.SingleRequest(context.Background(), gridEcho, payload)
	if err != nil {
		return err
	}
	defer grid.PutByteBuffer(b)
	return checkEcho(len(b), len(payload))
}

// gridMesh is a number of hosts that are connected to each other.
type gridMesh struct{ hosts []*gridHost }

// newGridMesh starts n hosts on loopback sockets.
func newGridMesh(n int, c config) (_ *gridMesh, err error) {
	m := new(gridMesh)
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	var listeners []net.Listener
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", loopback)
		if err != nil {
			return nil, err
		}
		listeners, addrs = append(listeners, l), append(addrs, l.Addr().String())
	}
	for _, l := range listeners {
		h, err := newGridHost(l, addrs, c)
		if err != nil {
			return nil, err
		}
		m.hosts = append(m.hosts, h)
	}
	for _, h := range m.hosts {
		if err := h.wait(); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func gridAuth(token string) error {
	if token != gridToken {
		return errors.New("wrong token")
	}
	return nil
}

// conn is the connection from host i to host j.
func (m *gridMesh) conn(i, j int) *grid.Connection {
	return m.hosts[i].manager.Connection(m.hosts[j].manager.HostName())
}

func (m *gridMesh) close() error {
	var errs []error
	for _, h := range m.hosts {
		errs = append(errs, h.server.Close())
	}
	for _, h := range m.hosts {
		errs = append(errs, h.manager.Close())
	}
	return errors.Join(errs...)
}

var gridTypedHandler = grid.NewSingleHandler(gridTyped,
	func() *gridSample { return new(gridSample) },
	func() *gridSample { return new(gridSample) },
).AllowCallRequestPool(true)

func registerGridHandlers(m *grid.Manager, c config) error {
	errs := []error{
		m.RegisterSingleHandler(gridEcho, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }),
		m.RegisterSingleHandler(gridUpload, func(b []byte) ([]byte, *grid.RemoteErr) {
			grid.PutByteBuffer(b)
			return nil, nil
		}),
		m.RegisterSingleHandler(gridWork, func(b []byte) ([]byte, *grid.RemoteErr) {
			c.work()
			return b, nil
		}),
		gridTypedHandler.Register(m, func(v *gridSample) (*gridSample, *grid.RemoteErr) {
			v.Size++
			return v, nil
		}),
	}
	for id, h := range map[grid.HandlerID]grid.StreamHandler{
		// Answers with as many messages like its payload as that begins with.
		gridResponses: {Serve: func(ctx context.Context, payload []byte, s *grid.ServerStream) *grid.RemoteErr {
			defer grid.PutByteBuffer(payload)
			for range gridCountOf(payload) {
				if err := s.Send(ctx, payload); err != nil {
					return grid.NewRemoteErr(err)
				}
			}
			return nil
		}},
		gridRequests: {InCapacity: gridCapacity, Serve: func(_ context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			for b, err := range s.All() {
				if err != nil {
					return grid.NewRemoteErr(err)
				}
				grid.PutByteBuffer(b)
			}
			return nil
		}},
		gridTwoWay: {InCapacity: gridCapacity, Serve: func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			for b, err := range s.All() {
				if err == nil {
					err = s.Send(ctx, b)
				}
				if err != nil {
					return grid.NewRemoteErr(err)
				}
				grid.PutByteBuffer(b)
			}
			return nil
		}},
		gridWait: {Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
			<-ctx.Done()
			return nil
		}},
	} {
		h.OutCapacity = gridCapacity
		errs = append(errs, m.RegisterStreamingHandler(id, h))
	}
	return errors.Join(errs...)
}

// gridAsk is a payload of the length of payload that asks for n messages.
func gridAsk(n int, payload []byte) []byte {
	b := append(grid.GetByteBufferCap(len(payload)), payload...)
	b[0], b[1], b[2] = byte(n), byte(n>>8), byte(n>>16)
	return b
}

func gridCountOf(b []byte) int { return int(b[0]) | int(b[1])<<8 | int(b[2])<<16 }

// gridServe starts the host that is called by the one at c.client.
func gridServe(c config) (*gridHost, error) {
	l, err := net.Listen("tcp", loopback)
	if err != nil {
		return nil, err
	}
	return newGridHost(l, []string{l.Addr().String(), c.client}, c)
}

// gridClient is the host that calls.
type gridClient struct {
	host *gridHost
	gridCaller
}

func gridDial(c config, addr string) (*gridClient, error) {
	h, err := newGridHost(c.listener, []string{addr, c.client}, c)
	if err != nil {
		return nil, err
	}
	if err := h.wait(); err != nil {
		return nil, errors.Join(err, h.close())
	}
	return &gridClient{h, gridCaller{h.manager.Connection(gridURL(addr, c))}}, nil
}

func (c *gridClient) caller(int) (caller, error) { return c.gridCaller, nil }
func (c *gridClient) close() error               { return c.host.close() }

// gridCaller calls over one connection.
type gridCaller struct{ conn *grid.Connection }

func (c gridCaller) echo(payload []byte) error {
	return c.echoContext(context.Background(), payload)
}

func (c gridCaller) echoContext(ctx context.Context, payload []byte) error {
	b, err := c.conn.SingleRequest(ctx, gridEcho, payload)
	if err != nil {
		return err
	}
	defer grid.PutByteBuffer(b)
	return checkEcho(len(b), len(payload))
}

func (c gridCaller) upload(payload []byte) error {
	_, err := c.conn.SingleRequest(context.Background(), gridUpload, payload)
	return err
}

func (c gridCaller) work(ctx context.Context, payload []byte) error {
	b, err := c.conn.SingleRequest(ctx, gridWork, payload)
	if errors.Is(err, grid.ErrOverloaded) {
		return errRefused
	}
	if err != nil {
		return err
	}
	defer grid.PutByteBuffer(b)
	return checkEcho(len(b), len(payload))
}

func (c gridCaller) typed(v sample) error {
	req := gridTypedHandler.NewRequest()
	*req = gridSample{ID: v.ID, Name: v.Name, Size: v.Size, Time: time.Unix(0, v.Unix), Flags: v.Flags}
	resp, err := gridTypedHandler.Call(context.Background(), c.conn, req)
	if err != nil {
		return err
	}
	err = checkTyped(resp.ID, resp.Size, v)
	gridTypedHandler.PutResponse(resp)
	return err
}

func (c gridCaller) responses(n int, payload []byte) error {
	ask := gridAsk(n, payload)
	s, err := c.conn.NewStream(context.Background(), gridResponses, ask)
	if err != nil {
		return err
	}
	grid.PutByteBuffer(ask)
	return gridRead(s, n, len(payload))
}

// gridRead reads a stream of n messages to its end.
func gridRead(s *grid.Stream, n, size int) error {
	got := 0
	err := s.Results(func(b []byte) error {
		got++
		defer grid.PutByteBuffer(b)
		return checkEcho(len(b), size)
	})
	if err != nil {
		return err
	}
	return checkCount(got, n)
}

func (c gridCaller) requests(n int, payload []byte) error {
	s, err := c.conn.StartStream(context.Background(), gridRequests, nil)
	if err != nil {
		return err
	}
	if err := gridSend(s, n, payload); err != nil {
		return err
	}
	return gridRead(s, 0, 0)
}

// gridSend sends n messages and ends the input.
func gridSend(s *grid.Stream, n int, payload []byte) error {
	defer s.CloseSend()
	for range n {
		if err := s.Send(payload); err != nil {
			return err
		}
	}
	return nil
}

func (c gridCaller) twoway(n int, payload []byte) error {
	s, err := c.conn.StartStream(context.Background(), gridTwoWay, nil)
	if err != nil {
		return err
	}
	go gridSend(s, n, payload) // Results tells of an error
	return gridRead(s, n, len(payload))
}

// idle implements idler.
func (c *gridClient) idle(ctx context.Context) (func(), error) {
	ctx, cancel := context.WithCancel(ctx)
	s, err := c.conn.NewStream(ctx, gridTwoWay, bytes.Repeat([]byte{1}, 16))
	if err != nil {
		cancel()
		return nil, err
	}
	return func() { s.CloseSend(); cancel(); <-s.Done() }, nil
}

// gridNoInput opens streams whose handler takes no input.
type gridNoInput struct{ *gridClient }

func (c gridNoInput) idle(ctx context.Context) (func(), error) {
	ctx, cancel := context.WithCancel(ctx)
	s, err := c.conn.NewStream(ctx, gridWait, nil)
	if err != nil {
		cancel()
		return nil, err
	}
	return func() { cancel(); <-s.Done() }, nil
}
