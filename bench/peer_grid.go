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
		name:  "grid",
		about: "this library: raw byte handlers, one websocket between the two managers; streams with capacities of 16",
		start: func(c config) (pair, error) { return newGridPair(c) },
	}
}

// gridMesh is a number of managers that are connected to each other.
type gridMesh struct {
	hosts    []string
	managers []*grid.Manager
	servers  []*http.Server
}

// newGridMesh starts n managers on loopback sockets.
func newGridMesh(n int, c config) (_ *gridMesh, err error) {
	m := new(gridMesh)
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	scheme := "http://"
	if c.serverTLS != nil {
		scheme = "https://"
	}
	var listeners []net.Listener
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, l)
		m.hosts = append(m.hosts, scheme+l.Addr().String())
	}
	for i, host := range m.hosts {
		g, err := grid.NewManager(context.Background(), grid.ManagerOptions{
			Local:       host,
			Hosts:       m.hosts,
			AuthFn:      func() string { return gridToken },
			AuthToken:   gridAuth,
			TLSConfig:   c.clientTLS,
			Logger:      slog.New(slog.DiscardHandler),
			MaxHandlers: c.limit,
		})
		if err != nil {
			return nil, err
		}
		m.managers = append(m.managers, g)
		if err := registerGridHandlers(g, c); err != nil {
			return nil, err
		}
		mux := http.NewServeMux()
		mux.Handle(grid.RoutePath, g.Handler())
		s := &http.Server{Handler: mux, TLSConfig: c.serverTLS}
		m.servers = append(m.servers, s)
		if c.serverTLS != nil {
			go s.ServeTLS(listeners[i], "", "")
		} else {
			go s.Serve(listeners[i])
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, g := range m.managers {
		for _, host := range g.Targets() {
			if err := g.Connection(host).WaitForConnect(ctx); err != nil {
				return nil, err
			}
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

// conn is the connection from server i to server j.
func (m *gridMesh) conn(i, j int) *grid.Connection { return m.managers[i].Connection(m.hosts[j]) }

func (m *gridMesh) close() error {
	var errs []error
	for _, s := range m.servers {
		errs = append(errs, s.Close())
	}
	for _, g := range m.managers {
		errs = append(errs, g.Close())
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

// gridPair is two managers, the first of which calls the second.
type gridPair struct {
	mesh *gridMesh
	gridCaller
}

func newGridPair(c config) (*gridPair, error) {
	m, err := newGridMesh(2, c)
	if err != nil {
		return nil, err
	}
	return &gridPair{m, gridCaller{m.conn(0, 1)}}, nil
}

func (p *gridPair) caller(int) (caller, error) { return p.gridCaller, nil }
func (p *gridPair) close() error               { return p.mesh.close() }

// gridCaller calls over one connection.
type gridCaller struct{ conn *grid.Connection }

func (c gridCaller) echo(payload []byte) error {
	b, err := c.conn.SingleRequest(context.Background(), gridEcho, payload)
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
func (p *gridPair) idle(ctx context.Context) (func(), error) {
	ctx, cancel := context.WithCancel(ctx)
	s, err := p.conn.NewStream(ctx, gridTwoWay, bytes.Repeat([]byte{1}, 16))
	if err != nil {
		cancel()
		return nil, err
	}
	return func() { s.CloseSend(); cancel(); <-s.Done() }, nil
}

// gridNoInput opens streams whose handler takes no input.
type gridNoInput struct{ *gridPair }

func (p gridNoInput) idle(ctx context.Context) (func(), error) {
	ctx, cancel := context.WithCancel(ctx)
	s, err := p.conn.NewStream(ctx, gridWait, nil)
	if err != nil {
		cancel()
		return nil, err
	}
	return func() { cancel(); <-s.Done() }, nil
}
