package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

// peer is one way for two Go servers to call each other, set up as its own documentation says.
type peer struct {
	name  string
	about string // one line for the report: what it is, and how it is run here
	// module is the path of the Go module; empty for the standard library's.
	module string
	// single says that one goroutine makes the calls of all callers: the first caller's call is any
	// of those that it keeps under way.
	single bool
	// mutual says that the two ends are alike, so that either may connect to the other:
	// config.client is set.
	mutual bool
	// serve and dial start the two ends. They may return errCannot for a configuration.
	serve func(config) (server, error)
	dial  func(c config, addr string) (client, error)
}

// config says what a pair will be used for. Both ends get the same.
type config struct {
	// callers is how many goroutines will call at the same time. A peer that has no use for one
	// connection between several callers makes one for each.
	callers int
	// serverTLS and clientTLS, if set, are for calls over TLS; both are made of the identity.
	serverTLS, clientTLS *tls.Config
	identity             *identity
	// limit is how many handlers the server may run at a time; 0 is the peer's default.
	limit int
	// work, if set, is what the handler does for a worker. In another process it is spin(spins).
	work  func()
	spins int
	// client is where the client of a mutual peer listens. The listener is for the client alone.
	client   string
	listener net.Listener
}

// maxMessage is the largest payload that a pair must carry, in bytes.
const maxMessage = 32 << 20

// server is the end that is called, over TCP on the loopback interface.
type server interface {
	addr() string
	// close waits until its sockets are closed.
	close() error
}

// client is the end that calls.
type client interface {
	// caller makes what the i'th goroutine calls through, i < config.callers. Callers are used
	// concurrently, each by one goroutine at a time. They do not need to be closed.
	caller(i int) (caller, error)
	// close waits until its sockets are closed, unless it is a waiter.
	close() error
}

// waiter is a client whose sockets are all closed only once the server is.
type waiter interface{ wait() }

// pair is a client and a server that are connected.
type pair struct {
	client
	server server
}

// start starts both ends in this process.
func (p peer) start(c config) (pair, error) { return p.connect(c, p.serve) }

// startIn starts both ends in this process, or with two the server in one of its own.
func (p peer) startIn(processes int, c config) (pair, error) {
	if processes == 1 {
		return p.start(c)
	}
	return p.connect(c, func(c config) (server, error) { return newRemote(p.name, c) })
}

// connect starts a server, which may be elsewhere, and a client of it.
func (p peer) connect(c config, serve func(config) (server, error)) (_ pair, err error) {
	if p.mutual {
		if c.listener, err = net.Listen("tcp", loopback); err != nil {
			return pair{}, err
		}
		c.client = c.listener.Addr().String()
	}
	s, err := serve(c)
	if err != nil {
		if c.listener != nil {
			c.listener.Close()
		}
		return pair{}, fmt.Errorf("serve: %w", err)
	}
	d, err := p.dial(c, s.addr())
	if err != nil {
		return pair{}, errors.Join(fmt.Errorf("connect: %w", err), s.close())
	}
	return pair{d, s}, nil
}

const loopback = "127.0.0.1:0"

// close ends both sides.
func (p pair) close() error {
	err := errors.Join(p.client.close(), p.server.close())
	if w, ok := p.client.(waiter); ok {
		w.wait()
	}
	return err
}

// caller makes calls. Every method returns when the call is done, and fails unless the answer is
// what it must be: echoes are checked for their length.
type caller interface {
	// echo sends payload, and gets as many bytes back.
	echo(payload []byte) error
}

// Further interfaces that a caller may have; without one the peer is left out of that shape.
type (
	// uploader sends a payload whose answer is empty.
	uploader interface {
		upload(payload []byte) error
	}

	// typedCaller sends the small struct {ID uint64; Name string; Size int64; Time time.Time; Flags
	// uint32} in the peer's own encoding, and gets the same back with Size+1. Both sides decode
	// into the peer's own type for it. It checks ID and Size of the answer.
	typedCaller interface {
		typed(v sample) error
	}

	// streamer makes one stream for each call.
	streamer interface {
		// responses opens a stream with one request, payload, and reads n messages of the same
		// length until its end.
		responses(n int, payload []byte) error
		// requests sends n messages, ends its input, and waits for the end of the stream, with at
		// most one answer.
		requests(n int, payload []byte) error
		// twoway sends n messages while it reads as many echoes, each sent by the handler as it
		// gets the message, and waits for the end.
		twoway(n int, payload []byte) error
	}

	// contextCaller is a caller whose library takes contexts.
	contextCaller interface {
		echoContext(ctx context.Context, payload []byte) error
	}

	// timeoutCaller is a caller with a way of its own to have echo fail after some time.
	timeoutCaller interface {
		echoWithin(d time.Duration, payload []byte) error
	}

	// bulkSender sends n messages to a server that reads them all, and then says so, with no stream
	// of a library's.
	bulkSender interface {
		bulk(n int, payload []byte) error
	}

	// worker makes a call whose handler does config.work, and then echoes. It fails with errRefused
	// where the server has none to spare, and else with context.DeadlineExceeded when ctx is over.
	worker interface {
		work(ctx context.Context, payload []byte) error
	}

	// idler opens a two-way stream on which nothing happens, whose handler is running when it
	// returns. It makes no goroutine of its own for reading. The stream stays until the function
	// that it returns is called, or the pair is closed.
	idler interface {
		idle(ctx context.Context) (end func(), err error)
	}
)

// sample is the value of a typed call.
type sample struct {
	ID    uint64
	Name  string
	Size  int64
	Unix  int64 // nanoseconds: Time
	Flags uint32
}

var theSample = sample{ID: 42, Name: "bucket/prefix/object", Size: 1 << 20, Unix: 1700000000123456789, Flags: 7}

// checkEcho checks the length of an answer.
func checkEcho(got, want int) error {
	if got != want {
		return fmt.Errorf("answer of %d bytes, expected %d", got, want)
	}
	return nil
}

// checkCount checks the number of messages of a stream.
func checkCount(got, want int) error {
	if got != want {
		return fmt.Errorf("stream of %d messages, expected %d", got, want)
	}
	return nil
}

// checkTyped checks the answer to a typed call.
func checkTyped(id uint64, size int64, v sample) error {
	if id != v.ID || size != v.Size+1 {
		return fmt.Errorf("answer with ID %d and Size %d, expected %d and %d", id, size, v.ID, v.Size+1)
	}
	return nil
}

// allPeers are in the order of the report. grid is the first.
func allPeers() []peer {
	return []peer{
		gridPeer(),
		grpcPeer(),
		connectPeer(),
		drpcPeer(),
		ttrpcPeer(),
		netrpcPeer(),
		natsPeer(),
		http1Peer(),
		yamuxPeer(),
	}
}

// everyPeer has those of single shapes too.
func everyPeer() []peer {
	return slices.Concat(allPeers(), allFloors(), gridTimeoutPeers(), overloadPeers())
}

// allFloors move bytes, and no more.
func allFloors() []peer {
	return []peer{gorillaFloor(), tcpFloor(), muxFloor(), windowFloor()}
}
