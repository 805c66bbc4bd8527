package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

func natsPeer() peer {
	return peer{
		name:   "nats",
		module: "github.com/nats-io/nats.go",
		about:  "NATS request-reply: its server within this process, a connection for the callers and one for the responder",
		start: func(c config) (pair, error) {
			p := new(natsPair)
			if err := p.start(c); err != nil {
				p.close()
				return nil, fmt.Errorf("nats: %w", err)
			}
			return p, nil
		},
	}
}

const (
	natsEcho   = "bench.echo"
	natsUpload = "bench.upload"
	natsTyped  = "bench.typed"

	// natsTimeout is for requests and for the start. Without it a request that the server drops
	// would never be answered.
	natsTimeout = time.Minute
)

// plainAnswer is a typed handler in JSON, for the peers that bring no encoding.
func plainAnswer(b []byte) ([]byte, error) {
	var v PlainSample
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, err
	}
	v.Size++
	return json.Marshal(&v)
}

// plainTyped is a typed call in JSON.
func plainTyped(v sample, call func([]byte) ([]byte, error)) error {
	b, err := json.Marshal(plainSampleOf(v))
	if err != nil {
		return err
	}
	if b, err = call(b); err != nil {
		return err
	}
	var answer PlainSample
	if err := json.Unmarshal(b, &answer); err != nil {
		return err
	}
	return checkTyped(answer.ID, answer.Size, v)
}

// natsPair is a server with two clients: one calls the other.
type natsPair struct {
	server    *server.Server
	responder *nats.Conn
	client    *nats.Conn

	mu   sync.Mutex
	errs []error // that the clients told of on the side
}

func (p *natsPair) start(c config) (err error) {
	p.server, err = server.NewServer(&server.Options{
		Host:       "127.0.0.1",
		Port:       server.RANDOM_PORT,
		NoLog:      true,
		NoSigs:     true,
		MaxPayload: maxMessage,
		// The server cuts off a client which has more than this ahead of it. All callers' largest
		// messages may be on their way to the responder.
		MaxPending: max(server.MAX_PENDING_SIZE, int64(c.callers+1)*maxMessage),
		TLS:        c.serverTLS != nil,
		TLSConfig:  c.serverTLS,
	})
	if err != nil {
		return err
	}
	p.server.Start()
	if !p.server.ReadyForConnections(natsTimeout) {
		return errors.New("the server does not start")
	}
	options := []nats.Option{
		nats.ErrorHandler(p.note),
		nats.NoReconnect(), // a lost connection must not go unnoticed
	}
	if c.clientTLS != nil {
		options = append(options, nats.Secure(c.clientTLS))
	}
	if p.responder, err = nats.Connect(p.server.ClientURL(), options...); err != nil {
		return fmt.Errorf("connect the responder: %w", err)
	}
	if err := p.subscribe(); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	if p.client, err = nats.Connect(p.server.ClientURL(), options...); err != nil {
		return fmt.Errorf("connect the client: %w", err)
	}
	return nil
}

// subscribe sets up the responder. An answer that cannot be sent is missed by the caller, no need
// to handle its error here.
func (p *natsPair) subscribe() error {
	for subject, handle := range map[string]nats.MsgHandler{
		natsEcho:   func(m *nats.Msg) { m.Respond(m.Data) },
		natsUpload: func(m *nats.Msg) { m.Respond(nil) },
		natsTyped: func(m *nats.Msg) {
			b, err := plainAnswer(m.Data)
			if err != nil {
				b = nil // which is no JSON, so that the caller fails
			}
			m.Respond(b)
		},
	} {
		s, err := p.responder.Subscribe(subject, handle)
		if err != nil {
			return err
		}
		// By default a third message of the largest size would be dropped.
		if err := s.SetPendingLimits(-1, -1); err != nil {
			return err
		}
	}
	return p.responder.FlushTimeout(natsTimeout) // until the server knows of all
}

// note keeps errors that belong to no call, such as that messages were dropped. They are returned
// by close.
func (p *natsPair) note(_ *nats.Conn, s *nats.Subscription, err error) {
	if s != nil {
		err = fmt.Errorf("subscription of %s: %w", s.Subject, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.errs = append(p.errs, err)
}

func (p *natsPair) caller(int) (caller, error) { return natsCaller{p.client}, nil }

func (p *natsPair) close() error {
	for _, c := range []*nats.Conn{p.client, p.responder} {
		if c != nil {
			c.Close()
		}
	}
	if p.server != nil {
		p.server.Shutdown()
		p.server.WaitForShutdown() // but it closes TLS connections on the side, soon after
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := errors.Join(p.errs...); err != nil {
		return fmt.Errorf("nats: %w", err)
	}
	return nil
}

// natsCaller calls through the one client connection.
type natsCaller struct{ conn *nats.Conn }

// call names the subject in an error.
func (c natsCaller) call(subject string, payload []byte) ([]byte, error) {
	m, err := c.conn.Request(subject, payload, natsTimeout)
	if err != nil {
		return nil, fmt.Errorf("nats: %s: %w", subject, err)
	}
	return m.Data, nil
}

func (c natsCaller) echo(payload []byte) error {
	b, err := c.call(natsEcho, payload)
	if err != nil {
		return err
	}
	return checkEcho(len(b), len(payload))
}

func (c natsCaller) upload(payload []byte) error {
	_, err := c.call(natsUpload, payload)
	return err
}

func (c natsCaller) typed(v sample) error {
	return plainTyped(v, func(b []byte) ([]byte, error) { return c.call(natsTyped, b) })
}
