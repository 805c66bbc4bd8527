package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	broker "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

func natsPeer() peer {
	return peer{
		name:   "nats",
		module: "github.com/nats-io/nats.go",
		about:  "NATS request-reply: its server within the process that answers, a connection for the callers and one for the responder",
		serve:  natsServe,
		dial:   natsDial,
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

// natsServer is a broker, with the client of it that answers.
type natsServer struct {
	broker    *broker.Server
	responder natsClient
}

func natsServe(c config) (_ server, err error) {
	s := new(natsServer)
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	s.broker, err = broker.NewServer(&broker.Options{
		Host:       "127.0.0.1",
		Port:       broker.RANDOM_PORT,
		NoLog:      true,
		NoSigs:     true,
		MaxPayload: maxMessage,
		// The server cuts off a client which has more than this ahead of it. All callers' largest
		// messages may be on their way to the responder.
		MaxPending: max(broker.MAX_PENDING_SIZE, int64(c.callers+1)*maxMessage),
		TLS:        c.serverTLS != nil,
		TLSConfig:  c.serverTLS,
	})
	if err != nil {
		return nil, err
	}
	s.broker.Start()
	if !s.broker.ReadyForConnections(natsTimeout) {
		return nil, errors.New("the broker does not start")
	}
	if err := s.responder.connect(c, s.addr()); err != nil {
		return nil, fmt.Errorf("responder: %w", err)
	}
	if err := s.subscribe(); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	return s, nil
}

func (s *natsServer) addr() string { return s.broker.ClientURL() }

func (s *natsServer) close() error {
	err := s.responder.close()
	if s.broker != nil {
		s.broker.Shutdown()
		s.broker.WaitForShutdown() // but it closes TLS connections on the side, soon after
	}
	return err
}

// subscribe sets up the responder. An answer that cannot be sent is missed by the caller, no need
// to handle its error here.
func (s *natsServer) subscribe() error {
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
		sub, err := s.responder.conn.Subscribe(subject, handle)
		if err != nil {
			return err
		}
		// By default a third message of the largest size would be dropped.
		if err := sub.SetPendingLimits(-1, -1); err != nil {
			return err
		}
	}
	return s.responder.conn.FlushTimeout(natsTimeout) // until the server knows of all
}

// natsClient is a connection to the broker.
type natsClient struct {
	conn *nats.Conn

	mu   sync.Mutex
	errs []error // that it told of on the side
}

func natsDial(c config, addr string) (client, error) {
	n := new(natsClient)
	if err := n.connect(c, addr); err != nil {
		return nil, err
	}
	return n, nil
}

func (n *natsClient) connect(c config, url string) (err error) {
	options := []nats.Option{
		nats.ErrorHandler(n.note),
		nats.NoReconnect(), // a lost connection must not go unnoticed
	}
	if c.clientTLS != nil {
		options = append(options, nats.Secure(c.clientTLS))
	}
	n.conn, err = nats.Connect(url, options...)
	return err
}

// note keeps errors that belong to no call, such as that messages were dropped. They are returned
// by close.
func (n *natsClient) note(_ *nats.Conn, s *nats.Subscription, err error) {
	if s != nil {
		err = fmt.Errorf("subscription of %s: %w", s.Subject, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.errs = append(n.errs, err)
}

func (n *natsClient) caller(int) (caller, error) { return natsCaller{n.conn}, nil }

func (n *natsClient) close() error {
	if n.conn != nil {
		n.conn.Close()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return errors.Join(n.errs...)
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

// echoContext has the deadline of ctx in place of natsTimeout.
func (c natsCaller) echoContext(ctx context.Context, payload []byte) error {
	m, err := c.conn.RequestWithContext(ctx, natsEcho, payload)
	if err != nil {
		return fmt.Errorf("nats: %s: %w", natsEcho, err)
	}
	return checkEcho(len(m.Data), len(payload))
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
