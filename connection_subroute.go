package grid

import (
	"context"
	"errors"
)

// Subroute is a [Connection] to the handlers that are registered under a subroute: a name of the
// application's, such as that of a disk, under which the same handler IDs mean something of their
// own. It is cheap to keep and safe for concurrent use. Its methods may be called on nil.
type Subroute struct {
	conn  *Connection
	route string
	hash  subHandlerID // for any handler
	err   error
}

var errEmptySubroute = errors.New("grid: empty subroute")

func newSubroute(c *Connection, route string) *Subroute {
	s := &Subroute{conn: c, route: route, hash: newSubHandlerID(0, route)}
	if route == "" {
		s.err = errEmptySubroute
	}
	return s
}

// SingleRequest is [Connection.SingleRequest] to a handler under the subroute.
func (s *Subroute) SingleRequest(ctx context.Context, id HandlerID, payload []byte) ([]byte, error) {
	return s.request(ctx, id, payload, callOptions{})
}

func (s *Subroute) request(ctx context.Context, id HandlerID, payload []byte, o callOptions) ([]byte, error) {
	if s == nil {
		return nil, errNoConnection
	}
	if s.err != nil {
		return nil, nameOf(s, id).error(s.err)
	}
	sub := s.hash.withHandler(id)
	return s.conn.request(ctx, id, s.route, &sub, payload, o)
}

// NewStream is [Connection.NewStream] to a handler under the subroute.
func (s *Subroute) NewStream(ctx context.Context, id HandlerID, payload []byte) (*Stream, error) {
	return rawStream(s.openStream(ctx, id, payload, capacities{}))
}

// StartStream is [Connection.StartStream] to a handler under the subroute.
func (s *Subroute) StartStream(ctx context.Context, id HandlerID, payload []byte) (*Stream, error) {
	return rawStream(s.openStream(ctx, id, payload, capacities{early: true}))
}

func (s *Subroute) openStream(ctx context.Context, id HandlerID, payload []byte, caps capacities) (*muxClient, error) {
	if s == nil {
		return nil, errNoConnection
	}
	if s.err != nil {
		return nil, nameOf(s, id).error(s.err)
	}
	sub := s.hash.withHandler(id)
	return s.conn.open(ctx, id, s.route, &sub, payload, caps)
}

// Subroute returns the subroute below this one: the names are joined with "/". An empty name gives
// calls that fail.
func (s *Subroute) Subroute(name string) *Subroute {
	if s == nil {
		return nil
	}
	sub := newSubroute(s.conn, joinSubroutes(s.route, name))
	if name == "" || s.err != nil {
		sub.err = errEmptySubroute
	}
	return sub
}

// Name returns the subroute's name, its parts joined by "/"; empty for nil.
func (s *Subroute) Name() string {
	if s == nil {
		return ""
	}
	return s.route
}

// String returns the base URL of the remote host and the subroute's name; "<nil>" for nil.
func (s *Subroute) String() string {
	if s == nil {
		return (*Connection)(nil).String()
	}
	return s.conn.String() + " " + s.route
}

// State is [Connection.State].
func (s *Subroute) State() State {
	if s == nil {
		return StateUnconnected
	}
	return s.conn.State()
}

// WaitForConnect is [Connection.WaitForConnect].
func (s *Subroute) WaitForConnect(ctx context.Context) error {
	if s == nil {
		return errNoConnection
	}
	return s.conn.WaitForConnect(ctx)
}

// Stats is [Connection.Stats].
func (s *Subroute) Stats() ConnectionStats {
	if s == nil {
		return ConnectionStats{}
	}
	return s.conn.Stats()
}
