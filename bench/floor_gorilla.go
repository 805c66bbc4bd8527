package main

import (
	"crypto/tls"
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
		start: func(c config) (pair, error) {
			p := new(gorillaPair)
			if err := p.start(c); err != nil {
				return nil, fmt.Errorf("gorilla: %w", errors.Join(err, p.close()))
			}
			return p, nil
		},
	}
}

const (
	gorillaReadBuffer  = 8 << 10
	gorillaWriteBuffer = 64 << 10
)

// gorillaPair is a server with a client connection for each caller.
type gorillaPair struct {
	server *http.Server
	// served is the accepting goroutine and the handlers, of whose connections the server knows
	// nothing any more.
	served  sync.WaitGroup
	clients []gorillaCaller
}

func (p *gorillaPair) start(c config) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // that only can be upgraded
	p.server = &http.Server{Handler: http.HandlerFunc(p.handle), Protocols: protocols, TLSConfig: c.serverTLS}
	p.served.Go(func() {
		// Its error is one of closing, or else the clients fail to connect.
		if c.serverTLS != nil {
			p.server.ServeTLS(l, "", "")
		} else {
			p.server.Serve(l)
		}
	})
	url := "ws://" + l.Addr().String()
	if c.clientTLS != nil {
		url = "wss://" + l.Addr().String()
	}
	for range c.callers {
		conn, err := gorillaDial(url, c.clientTLS)
		if err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		p.clients = append(p.clients, gorillaCaller{conn})
	}
	return nil
}

func gorillaDial(url string, c *tls.Config) (*websocket.Conn, error) {
	d := websocket.Dialer{ReadBufferSize: gorillaReadBuffer, WriteBufferSize: gorillaWriteBuffer, TLSClientConfig: c}
	conn, resp, err := d.Dial(url, nil)
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	return conn, nil
}

// handle sends every message back, until the client is gone.
func (p *gorillaPair) handle(w http.ResponseWriter, r *http.Request) {
	p.served.Add(1)
	defer p.served.Done()
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

func (p *gorillaPair) caller(i int) (caller, error) { return p.clients[i], nil }

func (p *gorillaPair) close() error {
	var errs []error
	for _, c := range p.clients {
		errs = append(errs, c.conn.Close())
	}
	if p.server != nil {
		errs = append(errs, p.server.Close())
	}
	p.served.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("gorilla: close: %w", err)
	}
	return nil
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
