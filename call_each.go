package grid

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/gridrpc/grid/internal/clip"
)

// Answer is what one of those has answered that were asked together.
type Answer[Resp any] struct {
	// Index is the place of the one who has answered among those that were asked, and Conn that
	// one.
	Index int
	Conn  Requester
	// Value is the response, the caller's, and Err the error, as [SingleHandler.Call] returns them.
	Value Resp
	Err   error
}

// CallEach makes the same request over each of conns at once, and yields the answers in the order in
// which they come, one for each of conns. An error is an answer like any other. Breaking off ends
// the calls that have not been answered, as their context would, and so does the end of ctx.
//
// It is for a range loop, and asks anew in each. The request is encoded once, when the loop begins;
// the rest is as with [SingleHandler.Call], for each of conns alone: a deadline is that of ctx, or
// of what conns are, such as what [Connection.WithTimeout] returns. With IgnoreNilConn those that
// are nil are not asked, and do not answer. [Manager.Requesters] makes conns.
//
//	for answer := range info.CallEach(ctx, m.Requesters(), req) {
//		if answer.Err != nil {
//			log.Printf("%v: %v", answer.Conn, answer.Err)
//			continue
//		}
//		use(answer.Value)
//		info.PutResponse(answer.Value)
//	}
func (h *SingleHandler[Req, Resp]) CallEach(ctx context.Context, conns []Requester, req Req) iter.Seq[Answer[Resp]] {
	return func(yield func(Answer[Resp]) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		came, asked := h.ask(ctx, conns, req)
		for range asked {
			if !yield(h.answer(<-came)) {
				return
			}
		}
	}
}

// rawAnswer is an answer that is not decoded.
type rawAnswer struct {
	index   int
	conn    Requester
	payload []byte
	err     error
	// panicked is with what the Requester did, or an interceptor.
	panicked any
}

// ask makes a request over each of conns, and returns where so many answers will come. Nobody needs
// to be there to take them.
func (h *SingleHandler[Req, Resp]) ask(ctx context.Context, conns []Requester, req Req) (came <-chan rawAnswer, asked int) {
	answers := make(chan rawAnswer, len(conns))
	payload, failed := encode(req)
	if failed == nil && h.poolRequests {
		h.reqs.put(req)
	}
	users := new(atomic.Int32) // of payload
	users.Store(1)
	done := func() {
		if users.Add(-1) == 0 {
			PutByteBuffer(payload)
		}
	}
	defer done()
	for i, conn := range conns {
		missing := isNil(conn)
		if missing && h.ignoreNilConn {
			continue
		}
		asked++
		a := rawAnswer{index: i, conn: conn}
		switch {
		case missing:
			a.err = errNoConnection
		case failed != nil:
			a.err = nameOf(conn, h.id).error(fmt.Errorf("grid: handler %s: request: %w", handlerLabel(conn, h.id), failed))
		default:
			users.Add(1)
			go func() {
				defer func() {
					done()
					answers <- a
				}()
				defer func() { a.panicked = recover() }()
				a.err = errRequesterExited // stays if the Requester, or an interceptor, ends the goroutine
				a.payload, a.err = conn.SingleRequest(ctx, h.id, payload)
			}()
			continue
		}
		answers <- a
	}
	return answers, asked
}

var errRequesterExited = errors.New("grid: the goroutine of the call was ended")

// answer decodes an answer. A panic goes on where the calls are made from.
func (h *SingleHandler[Req, Resp]) answer(raw rawAnswer) Answer[Resp] {
	if raw.panicked != nil {
		panic(raw.panicked)
	}
	a := Answer[Resp]{Index: raw.index, Conn: raw.conn, Err: raw.err}
	if a.Err == nil {
		a.Value, a.Err = h.response(raw.conn, raw.payload)
	}
	return a
}

// CallQuorum makes the same request over each of conns at once, as CallEach does, and returns when n
// have answered without an error: their answers, in the order in which they came. The calls that
// are left end then, but what they ask for may have been done all the same. Where it must be, loop
// over CallEach to the end.
//
// As soon as there can't be n any more the error is a [*QuorumError], and where ctx has ended it is
// that of ctx, as a call has it. The answers without an error are returned also then. With an n of 0
// or less nobody is asked, and there is no error.
func (h *SingleHandler[Req, Resp]) CallQuorum(ctx context.Context, n int, conns []Requester, req Req) ([]Answer[Resp], error) {
	if n <= 0 {
		return nil, nil
	}
	of := h.countAsked(conns)
	failed := &QuorumError{Need: n, Of: of}
	if n > of {
		return nil, failed
	}
	agreed := make([]Answer[Resp], 0, n)
	for a := range h.CallEach(ctx, conns, req) {
		if a.Err == nil {
			if agreed = append(agreed, a); len(agreed) == n {
				return agreed, nil
			}
			continue
		}
		if failed.add(a.Conn, a.Err); len(failed.Errs) > of-n {
			break
		}
	}
	if err := contextError(ctx); err != nil {
		return agreed, err
	}
	return agreed, failed
}

// countAsked is how many of conns are asked.
func (h *SingleHandler[Req, Resp]) countAsked(conns []Requester) (n int) {
	for _, conn := range conns {
		if !h.ignoreNilConn || !isNil(conn) {
			n++
		}
	}
	return n
}

// CallFirst is CallQuorum for one: it returns the first answer that is no error.
func (h *SingleHandler[Req, Resp]) CallFirst(ctx context.Context, conns []Requester, req Req) (Answer[Resp], error) {
	answers, err := h.CallQuorum(ctx, 1, conns, req)
	if err != nil {
		return Answer[Resp]{}, err
	}
	return answers[0], nil
}

// CallAll is CallQuorum for all of conns: the first error ends the rest. The answers are in the order
// of conns.
func (h *SingleHandler[Req, Resp]) CallAll(ctx context.Context, conns []Requester, req Req) ([]Answer[Resp], error) {
	answers, err := h.CallQuorum(ctx, h.countAsked(conns), conns, req)
	slices.SortFunc(answers, func(a, b Answer[Resp]) int { return a.Index - b.Index })
	return answers, err
}

// QuorumError is why a call to many has failed: too few have answered without an error.
type QuorumError struct {
	// Need is how many had to, and Of how many were asked.
	Need, Of int
	// Errs are the errors, in the order in which they came, each with who has answered in its text.
	// Those that were not waited for are not among them. [errors.Is] and [errors.As] look through
	// them.
	Errs []error
}

// add adds the answer of one who was asked.
func (e *QuorumError) add(conn Requester, err error) {
	if who, ok := conn.(fmt.Stringer); ok {
		err = &answerError{who.String(), err}
	}
	e.Errs = append(e.Errs, err)
}

// Error says how many had to agree, and names those that did not, up to 5.
func (e *QuorumError) Error() string {
	const most = 5
	var b strings.Builder
	fmt.Fprintf(&b, "grid: fewer than %d of %d have answered without an error", e.Need, e.Of)
	for i, err := range e.Errs {
		switch {
		case i == most:
			fmt.Fprintf(&b, "; and %d more", len(e.Errs)-most)
			return b.String()
		case i == 0:
			b.WriteString(": ")
		default:
			b.WriteString("; ")
		}
		b.WriteString(clip.Error(err).Error())
	}
	return b.String()
}

// Unwrap returns Errs.
func (e *QuorumError) Unwrap() []error { return e.Errs }

// answerError is err with who has answered it in the text.
type answerError struct {
	who string
	err error
}

func (e *answerError) Error() string { return e.who + ": " + withoutHost(e.err).Error() }
func (e *answerError) Unwrap() error { return e.err }
