package main

import (
	"context"
	"crypto/tls"
	"fmt"
)

// peer is one way for two Go servers to call each other, set up as its own documentation says.
type peer struct {
	name  string
	about string // one line for the report: what it is, and how it is run here
	// module is the path of the Go module; empty for the standard library's.
	module string
	// start may return errCannot for a configuration.
	start func(config) (pair, error)
}

// config says what a pair will be used for.
type config struct {
	// callers is how many goroutines will call at the same time. A peer that has no use for one
	// connection between several callers makes one for each.
	callers int
	// serverTLS and clientTLS, if set, are for calls over TLS.
	serverTLS, clientTLS *tls.Config
	// limit is how many handlers the server may run at a time; 0 is the peer's default.
	limit int
	// work, if set, is what the handler does for a worker.
	work func()
}

// maxMessage is the largest payload that a pair must carry, in bytes.
const maxMessage = 32 << 20

// pair is a client and a server that are connected over TCP on the loopback interface, both in this
// process.
type pair interface {
	// caller makes what the i'th goroutine calls through, i < config.callers. Callers are used
	// concurrently, each by one goroutine at a time. They do not need to be closed.
	caller(i int) (caller, error)
	// close ends both sides, and waits until their sockets are closed.
	close() error
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

// allFloors move bytes, and no more.
func allFloors() []peer {
	return []peer{gorillaFloor(), tcpFloor()}
}
