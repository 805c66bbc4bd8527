package grid

import (
	"cmp"
	"context"
	"errors"
	"fmt"
)

// Streamer opens streams: a [*Connection], a [*Subroute] or a [*Caller], or one of the
// application's, which hands on to one of those, fails in its place, or counts. Typed streams call
// OpenStream alone, of which the two other methods are short forms: so a type that embeds a
// Streamer has to bring no more than its own OpenStream.
type Streamer interface {
	NewStream(ctx context.Context, id HandlerID, payload []byte) (*Stream, error)
	StartStream(ctx context.Context, id HandlerID, payload []byte) (*Stream, error)
	OpenStream(ctx context.Context, id HandlerID, payload []byte, o StreamOptions) (*Stream, error)
}

// StreamOptions are how [Connection.OpenStream] opens a stream. With their zero value it does as
// [Connection.NewStream]. A Streamer of the application's passes them on as they are, else a typed
// stream can't be opened through it.
type StreamOptions struct {
	// Early has it not wait for the remote, as [Connection.StartStream] does not.
	Early bool

	// OutCapacity and InCapacity are those of the [StreamHandler] at the remote, in messages, for
	// those who know them, as a [StreamTypeHandler] does: a host of version 1 does not tell them
	// (protocol section 5), and where InCapacity is 0 the handler is told from the start that there
	// is no input. OutCapacity is 1 to 65536, and InCapacity 0 to 65536. With an OutCapacity of 0,
	// the default, neither is known.
	OutCapacity, InCapacity int

	// NoRequests leaves Requests of the Stream nil, also where the handler takes input: it is then
	// sent to with Send, SendContext or Writer. That saves a goroutine.
	NoRequests bool
}

// capacities are what is told of the handler's, and how the stream is opened.
func (o StreamOptions) capacities() (capacities, error) {
	switch {
	case o.OutCapacity < 0 || o.OutCapacity > maxCapacity:
		return capacities{}, fmt.Errorf("grid: OutCapacity is %d, must be 1 to %d, or 0 for not known", o.OutCapacity, maxCapacity)
	case o.InCapacity < 0 || o.InCapacity > maxCapacity:
		return capacities{}, fmt.Errorf("grid: InCapacity is %d, must be 0 to %d", o.InCapacity, maxCapacity)
	case o.OutCapacity == 0:
		return capacities{early: o.Early}, nil
	}
	return capacities{out: o.OutCapacity, in: o.InCapacity, known: true, early: o.Early}, nil
}

// OpenStream is [Connection.NewStream], or [Connection.StartStream], with options.
func (c *Connection) OpenStream(ctx context.Context, id HandlerID, payload []byte, o StreamOptions) (*Stream, error) {
	return openRaw(ctx, c, id, payload, o)
}

// OpenStream is [Connection.OpenStream] to a handler under the subroute.
func (s *Subroute) OpenStream(ctx context.Context, id HandlerID, payload []byte, o StreamOptions) (*Stream, error) {
	return openRaw(ctx, s, id, payload, o)
}

// OpenStream is [Connection.OpenStream] with the options of the Caller.
func (c *Caller) OpenStream(ctx context.Context, id HandlerID, payload []byte, o StreamOptions) (*Stream, error) {
	return openRaw(ctx, c, id, payload, o)
}

// muxOpener is what the Streamers of this package have in common.
type muxOpener interface {
	openStream(ctx context.Context, id HandlerID, payload []byte, caps capacities) (*muxClient, error)
}

func openRaw(ctx context.Context, conn muxOpener, id HandlerID, payload []byte, o StreamOptions) (*Stream, error) {
	caps, err := o.capacities()
	if err != nil {
		return nil, nameOf(conn, id).error(err)
	}
	m, err := conn.openStream(ctx, id, payload, caps)
	switch {
	case err != nil:
		return nil, err
	case o.NoRequests:
		return &Stream{mux: m}, nil
	}
	return newStream(m), nil
}

// openThrough opens a stream through a Streamer, for a typed one on top of it. Only those of this
// package themselves are known to do nothing else: a type that embeds one may have an OpenStream of
// its own.
func openThrough(ctx context.Context, conn Streamer, id HandlerID, payload []byte, o StreamOptions) (*muxClient, error) {
	var own muxOpener
	switch c := conn.(type) {
	case *Connection:
		own = c
	case *Subroute:
		own = c
	case *Caller:
		own = c
	}
	if own != nil {
		caps, err := o.capacities()
		if err != nil {
			return nil, nameOf(conn, id).error(err)
		}
		return own.openStream(ctx, id, payload, caps)
	}
	o.NoRequests = true
	s, err := conn.OpenStream(ctx, id, payload, o)
	switch {
	case notNilRemote(err) != nil:
		return nil, err
	case s == nil || s.mux == nil:
		return nil, fmt.Errorf("grid: handler %d: %w", id, errNoStream)
	case s.Requests != nil:
		s.mux.cancel(errOptionsLost)
		return nil, fmt.Errorf("grid: handler %d: %w", id, errOptionsLost)
	}
	return s.mux, nil
}

var (
	errNoStream    = errors.New("the Streamer has returned neither a stream nor an error")
	errOptionsLost = errors.New("the Streamer has not passed on its StreamOptions")
)

// options are with what a typed stream is opened.
func (h *StreamTypeHandler[Payload, Req, Resp]) options(early bool) StreamOptions {
	return StreamOptions{Early: early, OutCapacity: cmp.Or(h.OutCapacity, 1), InCapacity: h.inCapacity()}
}
