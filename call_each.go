package grid

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
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
// It is for a range loop, and asks anew in each. The request is encoded once, when the loop begins,
// or with AllowCallRequestPool when the first one does; the rest is as with [SingleHandler.Call],
// for each of conns alone: a deadline is that of ctx, or of what conns are, such as what
// [Manager.RequestersWith] returns. With IgnoreNilConn those that are nil are not asked, and do not
// answer. [Manager.Requesters] makes conns.
//
// A panic of one of conns, or of an interceptor, goes on in the loop, as an error with the value and
// the stack in its text. Where the loop was left before, it is logged.
//
//	for answer := range info.CallEach(ctx, m.Requesters(m.Targets()...), req) {
//		if answer.Err != nil {
//			log.Printf("%v: %v", answer.Conn, answer.Err)
//			continue
//		}
//		use(answer.Value)
//		info.PutResponse(answer.Value)
//	}
func (h *SingleHandler[Req, Resp]) CallEach(ctx context.Context, conns []Requester, req Req) iter.Seq[Answer[Resp]] {
	encoded := func() *sharedPayload { return newSharedPayload(req) }
	if h.poolRequests {
		// The request may be somebody else's by the next loop: what it was is kept.
		encoded = sync.OnceValue(func() *sharedPayload {
			p := newSharedPayload(req)
			p.users.Add(1) // for good
			if p.err == nil {
				h.reqs.put(req)
			}
			return p
		})
	}
	return func(yield func(Answer[Resp]) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		came, asked := h.ask(ctx, conns, encoded)
		defer came.leave()
		for range asked {
			if !yield(h.answer(<-came.answers)) {
				return
			}
		}
	}
}

// sharedPayload is an encoded request. Its buffer goes back when the last user has done with it.
type sharedPayload struct {
	b     []byte
	err   error
	users atomic.Int32
}

func newSharedPayload[T RoundTripper](v T) *sharedPayload {
	p := new(sharedPayload)
	p.b, p.err = encode(v)
	return p
}

func (p *sharedPayload) done() {
	if p.users.Add(-1) == 0 {
		PutByteBuffer(p.b)
	}
}

// rawAnswer is an answer that is not decoded.
type rawAnswer struct {
	index   int
	conn    Requester
	payload []byte
	err     error
	// panicked is with what the Requester did, or an interceptor; nil if it has not.
	panicked *requesterPanic
}

// rawAnswers is where answers come. There is room for all, so nobody needs to be there to take them.
type rawAnswers struct {
	answers chan rawAnswer
	left    atomic.Bool // by who has taken them
}

func (r *rawAnswers) add(a rawAnswer) {
	r.answers <- a
	if r.left.Load() {
		r.drop()
	}
}

// leave says that nobody takes any more answers.
func (r *rawAnswers) leave() {
	r.left.Store(true)
	r.drop()
}

// drop throws away what has come, but not a panic.
func (r *rawAnswers) drop() {
	for {
		select {
		case a := <-r.answers:
			PutByteBuffer(a.payload)
			if a.panicked != nil {
				a.panicked.log(a.conn)
			}
		default:
			return
		}
	}
}

// ask makes a request over each of conns, and returns where so many answers will come.
func (h *SingleHandler[Req, Resp]) ask(ctx context.Context, conns []Requester, encoded func() *sharedPayload) (came *rawAnswers, asked int) {
	came = &rawAnswers{answers: make(chan rawAnswer, len(conns))}
	payload := encoded()
	payload.users.Add(1)
	defer payload.done()
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
		case payload.err != nil:
			a.err = nameOf(conn, h.id).error(fmt.Errorf("grid: handler %s: request: %w", handlerLabel(conn, h.id), payload.err))
		default:
			payload.users.Add(1)
			go func() {
				defer func() {
					payload.done()
					came.add(a)
				}()
				defer func() {
					if p := recover(); p != nil {
						a.panicked = &requesterPanic{p, debug.Stack()}
					}
				}()
				a.err = errRequesterExited // stays if the Requester, or an interceptor, ends the goroutine
				a.payload, a.err = conn.SingleRequest(ctx, h.id, payload.b)
			}()
			continue
		}
		came.add(a)
	}
	return came, asked
}

var errRequesterExited = errors.New("grid: the goroutine of the call was ended")

// requesterPanic is a panic on a goroutine of a call to many, with the stack of that.
type requesterPanic struct {
	value any
	stack []byte
}

func (p *requesterPanic) Error() string {
	return fmt.Sprintf("grid: a Requester, or an interceptor, has panicked: %v\n\n%s", p.value, p.stack)
}

// Unwrap returns the value, if that is an error.
func (p *requesterPanic) Unwrap() error {
	err, _ := p.value.(error)
	return err
}

// log logs a panic of conn that goes on nowhere.
func (p *requesterPanic) log(conn Requester) {
	log := slog.Default()
	if o := optionsOf(conn); o != nil {
		log = o.Logger
	}
	log.Error("grid: panic in a call that nobody waits for any more",
		"panic", clip.Text(fmt.Sprint(p.value)), "stack", string(p.stack))
}

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
// As soon as there can't be n any more, or ctx has ended, the error is a [*QuorumError]; it is that
// of ctx as well if ctx has ended. The answers without an error are returned also then. With an n
// of 0 or less nobody is asked, and there is no error.
//
// A quorum is of different hosts, or of different subroutes of hosts: if conns names one twice,
// nobody is asked, and the error says which.
func (h *SingleHandler[Req, Resp]) CallQuorum(ctx context.Context, n int, conns []Requester, req Req) ([]Answer[Resp], error) {
	if n <= 0 {
		return nil, nil
	}
	if err := checkDistinct(conns); err != nil {
		return nil, err
	}
	return h.callSome(ctx, n, conns, req)
}

// callSome is CallQuorum for any conns, with an n above 0.
func (h *SingleHandler[Req, Resp]) callSome(ctx context.Context, n int, conns []Requester, req Req) ([]Answer[Resp], error) {
	of := h.countAsked(conns)
	failed := &QuorumError{Need: n, Of: of}
	if n > of {
		return nil, failed
	}
	agreed := make([]Answer[Resp], 0, n)
	answered := make([]bool, len(conns))
	failures := 0
	for a := range h.CallEach(ctx, conns, req) {
		switch {
		case a.Err == nil:
			answered[a.Index] = true
			if agreed = append(agreed, a); len(agreed) == n {
				return agreed, nil
			}
			continue
		case isOfEnded(ctx, a.Err):
			// It has not answered.
		default:
			answered[a.Index] = true
			failed.Errs = append(failed.Errs, answerError(a.Conn, a.Err))
		}
		if failures++; failures > of-n {
			break
		}
	}
	for i, conn := range conns {
		if !answered[i] && !(h.ignoreNilConn && isNil(conn)) {
			failed.Unanswered = append(failed.Unanswered, conn)
		}
	}
	failed.Cause = contextError(ctx)
	return agreed, failed
}

// isOfEnded reports whether err, of a call, is that ctx has ended.
func isOfEnded(ctx context.Context, err error) bool {
	return ctx.Err() != nil && !IsRemoteErr(err) && errors.Is(err, ctx.Err())
}

// checkDistinct returns an error if conns names a host twice, or a subroute of one, or has one that
// may ask any host.
func checkDistinct(conns []Requester) error {
	first := make(map[any]int, len(conns))
	for i, conn := range conns {
		if _, ok := conn.(*Retrier); ok {
			return fmt.Errorf("grid: CallQuorum: Requester %d of %d is a Retrier, which may ask any of its hosts", i+1, len(conns))
		}
		who, ok := identity(conn)
		if !ok {
			continue
		}
		if j, twice := first[who]; twice {
			return fmt.Errorf("grid: CallQuorum: Requesters %d and %d of %d are the same: %s", j+1, i+1, len(conns), nameOfRequester(conn))
		}
		first[who] = i
	}
	return nil
}

// identity is the same for Requesters that ask the same host, or subroute of a host. With ok false
// conn has none, or is nil.
func identity(conn Requester) (who any, ok bool) {
	type destination struct {
		conn  *Connection
		route string
	}
	if isNil(conn) {
		return nil, false
	}
	switch c := conn.(type) {
	case *Connection:
		return destination{c, ""}, true
	case *Subroute:
		return destination{c.conn, c.route}, true
	case *Caller:
		return destination{c.conn, c.sub.Name()}, true
	}
	return conn, reflect.ValueOf(conn).Comparable()
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

// CallFirst returns the first answer that is no error, and ends the calls that are left. Its error
// is that of CallQuorum for one.
func (h *SingleHandler[Req, Resp]) CallFirst(ctx context.Context, conns []Requester, req Req) (Answer[Resp], error) {
	answers, err := h.callSome(ctx, 1, conns, req)
	if err != nil {
		return Answer[Resp]{}, err
	}
	return answers[0], nil
}

// CallAll returns the answers of all of conns, in the order of conns; the first error ends the rest.
// Its error is that of CallQuorum for all of them. Without conns nobody is asked, and both are nil.
func (h *SingleHandler[Req, Resp]) CallAll(ctx context.Context, conns []Requester, req Req) ([]Answer[Resp], error) {
	n := h.countAsked(conns)
	if n == 0 {
		return nil, nil
	}
	answers, err := h.callSome(ctx, n, conns, req)
	slices.SortFunc(answers, func(a, b Answer[Resp]) int { return a.Index - b.Index })
	return answers, err
}

// QuorumError is why a call to many has failed: too few have answered without an error. [errors.Is]
// and [errors.As] look through Errs and Cause.
type QuorumError struct {
	// Need is how many had to, and Of how many were asked.
	Need, Of int
	// Errs are the errors that have come, in their order. Each is a [*AnswerError], or for a
	// Requester without a name the error itself.
	Errs []error
	// Unanswered are those of which neither an answer nor an error had come by then.
	Unanswered []Requester
	// Cause is the error of the context if that has ended, as a call has it; nil if it has not.
	Cause error
}

// Error says how many had to agree, and names those that did not, up to 5 each of those that have
// answered with an error and, where the context has ended, of those that have not answered.
func (e *QuorumError) Error() string {
	const most = 5
	var b strings.Builder
	fmt.Fprintf(&b, "grid: fewer than %d of %d have answered without an error", e.Need, e.Of)
	between := ": "
	part := func(text string) {
		b.WriteString(between + text)
		between = "; "
	}
	if e.Cause != nil {
		part(e.Cause.Error())
		for i, conn := range e.Unanswered {
			switch {
			case i == 0:
				part("no answer from " + nameOfRequester(conn))
			case i < most:
				b.WriteString(", " + nameOfRequester(conn))
			case i == most:
				fmt.Fprintf(&b, " and %d more", len(e.Unanswered)-most)
			}
		}
	}
	for i, err := range e.Errs {
		if i == most {
			part(fmt.Sprintf("and %d more", len(e.Errs)-most))
			break
		}
		part(clip.Error(err).Error())
	}
	return b.String()
}

// Unwrap returns Errs, and Cause if there is one.
func (e *QuorumError) Unwrap() []error {
	if e.Cause == nil {
		return e.Errs
	}
	return append(slices.Clip(e.Errs), e.Cause)
}

// AnswerError is an error of a call with the one of several who was called: in a [QuorumError], and
// what a [Retrier] returns. It is found by [errors.As].
type AnswerError struct {
	// Conn is who was called: that has answered with an error, or may have run the call.
	Conn Requester
	Err  error
}

// answerError is err with who was called, if that has a name.
func answerError(conn Requester, err error) error {
	_, has := conn.(fmt.Stringer)
	if _, named := err.(*AnswerError); named || !has || isNil(conn) {
		return err
	}
	return &AnswerError{conn, err}
}

// Error is the text of Err behind the name of Conn.
func (e *AnswerError) Error() string {
	return nameOfRequester(e.Conn) + ": " + withoutHost(e.Err).Error()
}

// Unwrap returns Err.
func (e *AnswerError) Unwrap() error { return e.Err }

// nameOfRequester is what conn is called, for people.
func nameOfRequester(conn Requester) string {
	if s, ok := conn.(fmt.Stringer); ok {
		return s.String()
	}
	return fmt.Sprintf("a %T", conn)
}
