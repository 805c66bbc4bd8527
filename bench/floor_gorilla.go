package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"

	"github.com/gorilla/websocket"
)

func gorillaFloor() peer {
	return peer{
		name:   "gorilla",
		module: "github.com/gorilla/websocket",
		about:  "floor: gorilla/websocket ping-pong, a connection for each caller",
		serve:  gorillaServe,
		dial:   gorillaDial,
	}
}

const (
	gorillaReadBuffer  = 8 << 10
	gorillaWriteBuffer = 64 << 10
)

// gorillaServer is an HTTP server whose handlers keep their connections.
type gorillaServer struct {
	*http.Server
	listener net.Listener
	// served is the accepting goroutine and the handlers, of whose connections the server knows
	// nothing any more.
	served sync.WaitGroup
}

func gorillaServe(c config) (server, error) {
	l, err := net.Listen("tcp", loopback)
	if err != nil {
		return nil, err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // that only can be upgraded
	s := &gorillaServer{listener: l}
	s.Server = &http.Server{Handler: http.HandlerFunc(s.handle), Protocols: protocols, TLSConfig: c.serverTLS}
	s.served.Go(func() {
		// Its error is one of closing, or else the clients fail to connect.
		if c.serverTLS != nil {
			s.ServeTLS(l, "", "")
		} else {
			s.Serve(l)
		}
	})
	return s, nil
}

func (s *gorillaServer) addr() string { return s.listener.Addr().String() }

func (s *gorillaServer) close() error {
	err := s.Close()
	s.served.Wait()
	return err
}

// handle sends every message back, until the client is gone.
func (s *gorillaServer) handle(w http.ResponseWriter, r *http.Request) {
	s.served.Add(1)
	defer s.served.Done()
	u := websocket.Upgrader{ReadBufferSize: gorillaReadBuffer, WriteBufferSize: gorillaWriteBuffer}
	conn, err := u.Upgrade(w, r, nil)
	if err != nil {
		return // the client was told
	}
	defer conn.Close()
	for {
		kind, b, err := conn.ReadMessage()
		if err != nil {
			return
		}
		if err := conn.WriteMessage(kind, b); err != nil {
			return
		}
	}
}

// gorillaClient is a connection for each caller.
type gorillaClient []gorillaCaller

func gorillaDial(c config, addr string) (client, error) {
	url := "ws://" + addr
	if c.clientTLS != nil {
		url = "wss://" + addr
	}
	d := websocket.Dialer{ReadBufferSize: gorillaReadBuffer, WriteBufferSize: gorillaWriteBuffer, TLSClientConfig: c.clientTLS}
	var g gorillaClient
	for range c.callers {
		conn, resp, err := d.Dial(url, nil)
		if err != nil {
			g.close()
			return nil, err
		}
		resp.Body.Close()
		g = append(g, gorillaCaller{conn})
	}
	return g, nil
}

func (g gorillaClient) caller(i int) (caller, error) { return g[i], nil }

func (g gorillaClient) close() error {
	var errs []error
	for _, c := range g {
		errs = append(errs, c.conn.Close())
	}
	return errors.Join(errs...)
}

// gorillaCaller has a connection of its own.
type gorillaCaller struct{ conn *websocket.Conn }

func (c gorillaCaller) echo(payload []byte) error {
	if err := c.conn.WriteMessage(websocket.BinaryMessage, payload); err != nil {
		return fmt.Errorf("gorilla: write: %w", err)
	}
	_, b, err := c.conn.ReadMessage()
	if err != nil {
		return fmt.Errorf("gorilla: read: %w", err)
	}
	return checkEcho(len(b), len(payload))
}
