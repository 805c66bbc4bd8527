package gridraft

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/gridrpc/grid"
)

// AppendEntriesPipeline implements [raft.Transport]: a pipeline is a stream.
func (t *Transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	if t.opts.MaxRPCsInFlight == 1 {
		return nil, raft.ErrPipelineReplicationNotSupported
	}
	ctx := t.life.Load().ctx
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	to, err := t.peer(id, target)
	if err != nil {
		return nil, err
	}
	if err := t.connected(ctx, to); err != nil {
		return nil, failed(ctx, pipelineID, target, err)
	}
	p := &pipeline{
		opts:   &t.opts,
		target: target,
		done:   make(chan raft.AppendFuture, t.opts.MaxRPCsInFlight),
		room:   make(chan struct{}, 1),
		ended:  make(chan struct{}),
		closed: make(chan struct{}),
	}
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	opening := time.AfterFunc(t.opts.Timeout, p.giveUp)
	p.stream, err = to.streams.StartStream(p.ctx, t.opts.FirstID+pipelineID, nil)
	opening.Stop()
	if err != nil {
		err = failed(p.ctx, pipelineID, target, err)
		p.cancel(nil)
		return nil, err
	}
	p.timer = time.AfterFunc(t.opts.Timeout, p.giveUp)
	p.timer.Stop()
	go p.receive()
	return p, nil
}

// pipeline is a stream of requests to one peer, and of their answers.
type pipeline struct {
	// Set once.
	opts   *Options
	target raft.ServerAddress
	stream *grid.Stream
	ctx    context.Context // of the stream
	cancel context.CancelCauseFunc
	timer  *time.Timer            // gives up
	done   chan raft.AppendFuture // to the consumer
	room   chan struct{}          // holds a token when there may be room for another
	ended  chan struct{}          // closed with the stream
	closed chan struct{}          // by Close

	// sending is held while a request is sent, so that its parts stay together. It is not mu, because
	// it may last.
	sending sync.Mutex

	mu         sync.Mutex
	flight     []*future // sent, and not answered
	delivering bool      // receive waits for the consumer, not for the peer
	isClosed   bool
	err        error // why the stream has ended
}

func (p *pipeline) giveUp() { p.cancel(ErrTimeout) }

// AppendEntries implements [raft.AppendPipeline].
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	f := &future{start: time.Now(), args: args, resp: resp, done: make(chan struct{})}
	if err := p.send(f); err != nil {
		return nil, err
	}
	// What raft appends while this waits goes with the next request, as one.
	for waited := false; ; waited = true {
		p.mu.Lock()
		full, closed, err := len(p.flight) >= p.opts.MaxRPCsInFlight, p.isClosed, p.err
		p.mu.Unlock()
		switch {
		case closed:
			return nil, raft.ErrPipelineShutdown
		case err != nil:
			return nil, err
		case !full:
			if waited {
				p.makeRoom() // for another that waits, as the token may have stood for two
			}
			return f, nil
		}
		select {
		case <-p.room:
		case <-p.ended:
		case <-p.closed:
		}
	}
}

func (p *pipeline) send(f *future) error {
	e := getEncoder()
	defer e.put()
	b, err := e.encode(f.args)
	if err != nil {
		return err
	}
	if len(b) > p.opts.MaxRequestSize {
		return fmt.Errorf("%w: %d bytes to %s", ErrRequestTooLarge, len(b), p.target)
	}
	p.sending.Lock()
	defer p.sending.Unlock()
	if err := p.begin(f); err != nil {
		return err
	}
	if err := sendParts(p.stream.Send, b, p.opts.PartSize); err != nil {
		p.cancel(err) // if it has not ended: the rest would be taken for another request
		<-p.ended
		return p.endError()
	}
	return nil
}

// begin adds a request to those under way, before it can be answered.
func (p *pipeline) begin(f *future) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.isClosed:
		return raft.ErrPipelineShutdown
	case p.err != nil:
		return p.err
	}
	p.flight = append(p.flight, f)
	if len(p.flight) == 1 && !p.delivering {
		p.timer.Reset(p.opts.Timeout)
	}
	return nil
}

func (p *pipeline) endError() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isClosed {
		return raft.ErrPipelineShutdown
	}
	return p.err
}

var (
	errUnasked = errors.New("gridraft: answer to no request")
	errNoMore  = errors.New("gridraft: the peer has ended the pipeline")
)

// receive takes answers until the stream ends.
func (p *pipeline) receive() {
	err := p.stream.Results(p.answer)
	if cause := context.Cause(p.ctx); cause != nil {
		err = cause
	} else if err == nil {
		err = errNoMore
	}
	if err != raft.ErrTransportShutdown {
		err = fmt.Errorf("gridraft: %s to %s: %w", handlerNames[pipelineID], p.target, err)
	}
	p.cancel(nil)
	p.mu.Lock()
	p.err = err
	p.timer.Stop()
	left := p.flight
	p.flight = nil
	p.mu.Unlock()
	for _, f := range left {
		f.respond(err)
	}
	close(p.ended)
	for _, f := range left {
		p.deliver(f)
	}
}

// answer takes one.
func (p *pipeline) answer(b []byte) error {
	defer grid.PutByteBuffer(b)
	p.mu.Lock()
	if p.isClosed {
		p.mu.Unlock()
		return nil // of a request that Close has ended
	}
	if len(p.flight) == 0 {
		p.mu.Unlock()
		return errUnasked
	}
	f := p.flight[0]
	p.mu.Unlock()

	err := decodeAnswer(b, f.resp)

	p.mu.Lock()
	if p.isClosed {
		p.mu.Unlock()
		return nil
	}
	p.flight = p.flight[1:]
	p.delivering = true
	p.timer.Stop()
	p.mu.Unlock()
	f.respond(err)
	p.makeRoom()
	p.deliver(f)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delivering = false
	if len(p.flight) > 0 && !p.isClosed {
		p.timer.Reset(p.opts.Timeout)
	}
	return nil
}

// makeRoom has one that waits for room look.
func (p *pipeline) makeRoom() {
	select {
	case p.room <- struct{}{}:
	default:
	}
}

// deliver hands a request that is over to the consumer.
func (p *pipeline) deliver(f *future) {
	select {
	case p.done <- f:
	case <-p.closed:
	}
}

// Consumer implements [raft.AppendPipeline].
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.done }

// Close implements [raft.AppendPipeline]. Requests under way end with [raft.ErrPipelineShutdown], but
// what was sent still arrives: raft closes a pipeline right after the last entries for a server that
// leaves.
func (p *pipeline) Close() error {
	p.mu.Lock()
	if p.isClosed {
		p.mu.Unlock()
		return nil
	}
	p.isClosed = true
	close(p.closed)
	left := p.flight
	p.flight = nil
	p.mu.Unlock()
	for _, f := range left {
		f.respond(raft.ErrPipelineShutdown)
	}
	if !p.sending.TryLock() {
		p.cancel(raft.ErrPipelineShutdown) // a request half sent
		return nil
	}
	defer p.sending.Unlock()
	p.stream.CloseSend()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.timer.Reset(p.opts.Timeout)
	}
	return nil
}

// future is a request of a pipeline.
type future struct {
	start time.Time
	args  *raft.AppendEntriesRequest
	resp  *raft.AppendEntriesResponse
	done  chan struct{}
	err   error // set before done is closed
}

func (f *future) respond(err error) {
	f.err = err
	close(f.done)
}

// Error implements [raft.Future].
func (f *future) Error() error {
	<-f.done
	return f.err
}

// Start implements [raft.AppendFuture].
func (f *future) Start() time.Time { return f.start }

// Request implements [raft.AppendFuture].
func (f *future) Request() *raft.AppendEntriesRequest { return f.args }

// Response implements [raft.AppendFuture].
func (f *future) Response() *raft.AppendEntriesResponse { return f.resp }
