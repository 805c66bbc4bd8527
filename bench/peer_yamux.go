package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

func yamuxPeer() peer {
	return peer{
		name:   "yamux",
		module: "github.com/hashicorp/yamux",
		about:  "hashicorp/yamux: length-prefixed messages, a stream kept by each caller, further ones for streams",
		serve:  func(c config) (server, error) { return newPlainServer(c, yamuxServe) },
		dial:   yamuxDial,
	}
}

// A stream begins with a byte that says what it is for, and all but an idle one with a number of
// messages. Messages follow, each after its length. A side that closes the stream has sent its
// last.
const (
	yamuxCalls     byte = iota + 1 // each request begins with its method
	yamuxResponses                 // as many as the number
	yamuxRequests                  // the one answer comes after their end
	yamuxTwoWay
	yamuxIdle // the answer is one byte
)

// The methods of calls.
const (
	yamuxEcho byte = iota + 1
	yamuxUpload
	yamuxTyped
)

func yamuxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.LogOutput = io.Discard
	return c
}

// yamuxEnd is one end of a stream, on which messages go.
type yamuxEnd struct {
	*yamux.Stream
	r   *bufio.Reader
	w   *bufio.Writer
	buf []byte // the last message
}

func newYamuxEnd(s *yamux.Stream) *yamuxEnd {
	return &yamuxEnd{Stream: s, r: bufio.NewReader(s), w: bufio.NewWriter(s)}
}

// send sends a message, and what was written before it.
func (e *yamuxEnd) send(b []byte) error {
	e.number(len(b))
	e.w.Write(b) // Flush returns the errors of both
	return e.w.Flush()
}

func (e *yamuxEnd) number(n int) {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	e.w.Write(b[:])
}

// next receives a message, which is good until the next one. It returns io.EOF after the last.
func (e *yamuxEnd) next() ([]byte, error) {
	n, err := e.nextNumber()
	if err != nil {
		return nil, err
	}
	if n > maxMessage {
		return nil, fmt.Errorf("message of %d bytes", n)
	}
	if n > cap(e.buf) {
		e.buf = make([]byte, n)
	}
	e.buf = e.buf[:n]
	if _, err := io.ReadFull(e.r, e.buf); err != nil {
		return nil, fmt.Errorf("message cut short: %w", io.ErrUnexpectedEOF)
	}
	return e.buf, nil
}

func (e *yamuxEnd) nextNumber() (int, error) {
	var b [4]byte
	_, err := io.ReadFull(e.r, b[:])
	return int(binary.BigEndian.Uint32(b[:])), err
}

// yamuxServe serves the streams of a connection. An error ends the stream, and its client finds
// that something is missing.
func yamuxServe(conn net.Conn) {
	session, err := yamux.Server(conn, yamuxConfig())
	if err != nil {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer session.Close()
	for {
		s, err := session.AcceptStream()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer s.Close()
			yamuxHandle(s)
		})
	}
}

func yamuxHandle(s *yamux.Stream) error {
	var kind [1]byte
	if _, err := s.Read(kind[:]); err != nil {
		return err
	}
	if kind[0] == yamuxIdle {
		if _, err := s.Write(kind[:]); err != nil {
			return err
		}
		_, err := s.Read(kind[:]) // no buffers before the first message
		return err
	}
	e := newYamuxEnd(s)
	n, err := e.nextNumber()
	for err == nil {
		method := yamuxEcho
		if kind[0] == yamuxCalls {
			if method, err = e.r.ReadByte(); err != nil {
				return err
			}
		}
		var b []byte
		if b, err = e.next(); err != nil {
			break
		}
		switch {
		case kind[0] == yamuxRequests:
			continue
		case kind[0] == yamuxResponses:
			for range n {
				if err := e.send(b); err != nil {
					return err
				}
			}
			return nil
		case method == yamuxUpload:
			b = nil
		case method == yamuxTyped:
			if b, err = plainAnswer(b); err != nil {
				return err
			}
		}
		err = e.send(b)
	}
	if kind[0] == yamuxRequests && err == io.EOF {
		return e.send(nil)
	}
	return err
}

// yamuxClient is one session for all callers.
type yamuxClient struct {
	session *yamux.Session
	callers []yamuxCaller
}

func yamuxDial(c config, addr string) (client, error) {
	conn, err := plainDial(c, addr)
	if err != nil {
		return nil, err
	}
	y := new(yamuxClient)
	if y.session, err = yamux.Client(conn, yamuxConfig()); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	for range c.callers {
		e, err := yamuxOpen(y.session, yamuxCalls, 0)
		if err != nil {
			return nil, errors.Join(err, y.close())
		}
		y.callers = append(y.callers, yamuxCaller{y.session, e})
	}
	return y, nil
}

// yamuxOpen opens a stream, whose beginning goes with its first message.
func yamuxOpen(session *yamux.Session, kind byte, n int) (*yamuxEnd, error) {
	s, err := session.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("open a stream: %w", err)
	}
	e := newYamuxEnd(s)
	e.w.WriteByte(kind)
	e.number(n)
	return e, nil
}

func (c *yamuxClient) caller(i int) (caller, error) { return c.callers[i], nil }
func (c *yamuxClient) close() error                 { return c.session.Close() }

// idle implements idler.
func (c *yamuxClient) idle(ctx context.Context) (func(), error) {
	s, err := c.session.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("yamux: open a stream: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { s.SetDeadline(time.Now()) })
	defer stop()
	b := []byte{yamuxIdle}
	if _, err = s.Write(b); err == nil {
		_, err = s.Read(b) // the handler is running
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("yamux: idle: %w", err)
	}
	return func() {
		s.Close()
		s.Read(b) // until the handler has ended
	}, nil
}

// yamuxCaller calls on a stream of its own.
type yamuxCaller struct {
	session *yamux.Session
	calls   *yamuxEnd
}

func (c yamuxCaller) call(method byte, payload []byte) ([]byte, error) {
	c.calls.w.WriteByte(method)
	if err := c.calls.send(payload); err != nil {
		return nil, fmt.Errorf("yamux: request: %w", err)
	}
	b, err := c.calls.next()
	if err != nil {
		return nil, fmt.Errorf("yamux: answer: %w", err)
	}
	return b, nil
}

func (c yamuxCaller) echo(payload []byte) error {
	b, err := c.call(yamuxEcho, payload)
	if err != nil {
		return err
	}
	return checkEcho(len(b), len(payload))
}

// echoWithin is with a deadline of the stream, which has no contexts.
func (c yamuxCaller) echoWithin(d time.Duration, payload []byte) error {
	if err := c.calls.SetDeadline(time.Now().Add(d)); err != nil {
		return fmt.Errorf("yamux: deadline: %w", err)
	}
	return c.echo(payload)
}

func (c yamuxCaller) upload(payload []byte) error {
	_, err := c.call(yamuxUpload, payload)
	return err
}

func (c yamuxCaller) typed(v sample) error {
	return plainTyped(v, func(b []byte) ([]byte, error) { return c.call(yamuxTyped, b) })
}

func (c yamuxCaller) responses(n int, payload []byte) error {
	return c.stream(yamuxResponses, 1, n, payload, len(payload))
}

func (c yamuxCaller) requests(n int, payload []byte) error {
	return c.stream(yamuxRequests, n, 1, payload, 0)
}

func (c yamuxCaller) twoway(n int, payload []byte) error {
	return c.stream(yamuxTwoWay, n, n, payload, len(payload))
}

// stream sends some messages, while it receives others of the given size.
func (c yamuxCaller) stream(kind byte, send, receive int, payload []byte, size int) error {
	e, err := yamuxOpen(c.session, kind, receive)
	if err != nil {
		return fmt.Errorf("yamux: %w", err)
	}
	defer e.Close() // should it fail
	if kind == yamuxTwoWay {
		go e.sendAll(send, payload) // receiveAll tells of an error
	} else if err := e.sendAll(send, payload); err != nil {
		return fmt.Errorf("yamux: send to a stream: %w", err)
	}
	if err := e.receiveAll(receive, size); err != nil {
		return fmt.Errorf("yamux: stream: %w", err)
	}
	return nil
}

func (e *yamuxEnd) sendAll(n int, payload []byte) error {
	defer e.Close()
	for range n {
		if err := e.send(payload); err != nil {
			return err
		}
	}
	return e.w.Flush() // the beginning, if nothing was sent
}

func (e *yamuxEnd) receiveAll(n, size int) error {
	for got := 0; ; got++ {
		b, err := e.next()
		if err == io.EOF {
			return checkCount(got, n)
		} else if err != nil {
			return err
		}
		if err := checkEcho(len(b), size); err != nil {
			return err
		}
	}
}
