package grid

import (
	"io"
	"strconv"
	"strings"
)

// callName is what an error of a call says of it: which handler was called, and where.
type callName struct {
	conn  *Connection // nil for a host that can't be reached
	route string      // the subroute; empty for none
	id    HandlerID
}

// nameOf is the name of a call over conn; its zero value if that is not known.
func nameOf(conn any, id HandlerID) callName {
	switch c := conn.(type) {
	case *Connection:
		return callName{conn: c, id: id}
	case *Subroute:
		if c != nil {
			return callName{c.conn, c.route, id}
		}
	case *Caller:
		if c != nil {
			return callName{c.conn, c.sub.Name(), id}
		}
	}
	return callName{}
}

// error is err, of the call, with host and handler in its text, each once. It leaves alone what a
// handler has said, a RemoteErr, and io.EOF, which is no error. The caller makes sure that it
// is asked only where there is an error, so that a good end costs nothing.
func (n callName) error(err error) error {
	switch err.(type) {
	case nil, *RemoteErr, *callError:
		return err
	}
	if n.conn == nil || err == io.EOF {
		return err
	}
	return &callError{name: n, err: err}
}

// handler is what the handler is called, for people.
func (n callName) handler() string {
	text := "handler " + n.label()
	if n.route != "" {
		text += ", subroute " + strconv.Quote(n.route)
	}
	return text
}

// label is the handler where its ID is wanted as well.
func (n callName) label() string {
	if n.conn == nil {
		return strconv.Itoa(int(n.id))
	}
	return n.conn.opts.handlerText(n.id, n.route)
}

// nesting bounds what comes for the call.
func (n callName) nesting() int {
	if n.conn == nil {
		return defaultNesting
	}
	return n.conn.opts.MaxNesting
}

// callError is the error of a call. It makes its text when somebody wants it: many errors are
// looked at by errors.Is alone.
type callError struct {
	name   callName
	err    error
	placed bool // host and subroute are named anyway
}

// Error is the text of err, and in brackets behind it what that does not have of the name.
func (e *callError) Error() string {
	text := e.err.Error()
	if e.placed {
		if hasHandler(text, e.name.id) {
			return text
		}
		return text + " (handler " + e.name.label() + ")"
	}
	host := !hasHost(e.err) && !strings.Contains(text, e.name.conn.remote)
	switch named := hasHandler(text, e.name.id); {
	case host && named:
		return text + " (" + e.name.conn.remote + ")"
	case host:
		return text + " (" + e.name.handler() + " of " + e.name.conn.remote + ")"
	case !named:
		return text + " (" + e.name.handler() + ")"
	}
	return text
}

func (e *callError) Unwrap() error { return e.err }

// hasHost reports whether err has the host of its call in its text.
func hasHost(err error) bool {
	switch e := err.(type) {
	case *disconnectError:
		return e.host != ""
	case *waitError:
		return e.host != ""
	}
	return false
}

// hasHandler reports whether text names a handler, as that of a limit does, on either side, or that
// of a host without it.
func hasHandler(text string, id HandlerID) bool {
	for _, before := range []string{"handler ", "handler with ID "} {
		for _, rest, ok := strings.Cut(text, before+strconv.Itoa(int(id))); ok; _, rest, ok = strings.Cut(rest, before+strconv.Itoa(int(id))) {
			if rest == "" || rest[0] < '0' || rest[0] > '9' {
				return true
			}
		}
	}
	return false
}

// waitError is why a wait for a link has ended: the error of a context, with the host and why there
// is no link.
type waitError struct {
	err    error
	host   string // empty where it is named anyway
	reason error
}

func (e *waitError) Error() string {
	text := e.err.Error() + ": "
	if e.host != "" {
		text += e.host + ": "
	}
	return text + e.reason.Error()
}

func (e *waitError) Unwrap() []error { return []error{e.err, e.reason} }
