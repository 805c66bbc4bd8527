package wsconn

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http/httptrace"
	"sync"
)

// stages tells how far a dial has come. What is told completes a sentence that says that it failed.
type stages struct {
	tell func(stage string)

	mu      sync.Mutex
	dialled bool // what is under way of other addresses is no news
}

func (s *stages) enter(stage string) {
	if s.tell != nil {
		s.tell(stage)
	}
}

// dial dials, and tells of what package net tells about it, if it is that which dials.
func (s *stages) dial(ctx context.Context, dial func(ctx context.Context, network, addr string) (net.Conn, error), network, addr string) (net.Conn, error) {
	s.enter("while dialling " + addr)
	dialling := func(stage string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.dialled {
			s.enter(stage)
		}
	}
	c, err := dial(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		DNSStart:     func(i httptrace.DNSStartInfo) { dialling("while resolving " + i.Host) },
		DNSDone:      func(httptrace.DNSDoneInfo) { dialling("while dialling " + addr) },
		ConnectStart: func(_, addr string) { dialling("while dialling " + addr) },
	}), network, addr)
	s.mu.Lock()
	s.dialled = true
	s.mu.Unlock()
	switch {
	case err != nil:
		return nil, err
	case c == nil:
		return nil, errors.New("the Dialer has returned neither a connection nor an error")
	case ctx.Err() != nil:
		c.Close()
		return nil, context.Cause(ctx)
	}
	return c, nil
}

// secure shakes hands over c, which it closes if that fails.
func (s *stages) secure(ctx context.Context, c net.Conn, conf *tls.Config, addr string) (net.Conn, error) {
	s.enter("in the TLS handshake with " + addr)
	t := tls.Client(c, conf)
	done := false
	defer func() {
		if !done { // also where a function of conf has panicked
			c.Close()
		}
	}()
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	done = true
	return t, nil
}

func (s *stages) upgrade() { s.enter("waiting for the answer to the upgrade request") }
