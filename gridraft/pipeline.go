package gridraft

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/gridrpc/grid"
)

// AppendEntriesPipeline implements [raft.Transport]: a pipeline is a stream. It must be closed.
func (t *Transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	if t.opts.MaxRPCsInFlight == 1 {
		return nil, raft.ErrPipelineReplicationNotSupported
	}
	ctx, to, err := t.to(id, target)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stream, err := to.StartStream(ctx, t.opts.FirstID+pipelineID, nil)
	if err != nil {
		cancel(nil)
		return nil, failed(pipelineID, target, err)
	}
	p := &pipeline{
		opts:   &t.opts,
		target: target,
		stream: stream,
		cancel: cancel,
		late:   time.AfterFunc(t.opts.Timeout, func() { cancel(ErrTimeout) }),
		sent:   make(chan *future, t.opts.MaxRPCsInFlight-1),
		done:   make(chan raft.AppendFuture, t.opts.MaxRPCsInFlight),
	}
	p.late.Stop()
	p.open, p.close = context.WithCancel(context.Background())
	go p.receive()
	return p, nil
}

// pipeline is a stream of requests to one peer, and of their answers.
type pipeline struct {
	// Set once.
	opts   *Options
	target raft.ServerAddress
	stream *grid.Stream
	cancel context.CancelCauseFunc // of the stream
	late   *time.Timer             // ends the stream when an answer takes too long
	sent   chan *future            // to receive, in the order of their answers
	done   chan raft.AppendFuture  // to the consumer
	open   context.Context         // until Close
	close  context.CancelFunc

	// sending is held while a request is sent, so that its parts stay together, and until it is in
	// sent. It is not mu, because it may last.
	sending sync.Mutex

	mu      sync.Mutex // guards awaited, and changes of late
	awaited int        // answers
}

// errDraining has raft leave the pipeline and close it, so that the host's shutdown need not wait.
var errDraining = fmt.Errorf("%w: one of the hosts is shutting down", grid.ErrDisconnected)

// AppendEntries implements [raft.AppendPipeline].
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	select {
	case <-p.stream.Draining():
		return nil, p.failed(errDraining)
	default:
	}
	f := &future{start: time.Now(), args: args, resp: resp, done: make(chan struct{}), closed: p.open.Done()}
	p.sending.Lock()
	defer p.sending.Unlock()
	if err := p.send(args); err != nil {
		return nil, err
	}
	// While as many as may be are unanswered this waits. What raft appends meanwhile goes with the
	// next request, as one.
	select {
	case p.sent <- f:
		return f, nil
	case <-p.open.Done():
		return nil, raft.ErrPipelineShutdown
	}
}

func (p *pipeline) send(args *raft.AppendEntriesRequest) error {
	e := getEncoder()
	defer e.put()
	b, err := e.encode(args)
	switch {
	case err != nil:
		return err
	case len(b) > p.opts.MaxRequestSize:
		return fmt.Errorf("%w: %d bytes to %s", ErrRequestTooLarge, len(b), p.target)
	}
	p.await(1)
	// Of a request that is not sent whole, the end of the stream is all that follows.
	err = sendParts(func(b []byte) error { return p.stream.SendContext(p.open, b) }, b, p.opts.PartSize)
	if err != nil && p.open.Err() != nil {
		return raft.ErrPipelineShutdown
	}
	return p.failed(err)
}

// failed is the error of a request, nil if it has none.
func (p *pipeline) failed(err error) error {
	if err == io.EOF {
		err = errNoAnswer
	}
	return failed(pipelineID, p.target, err)
}

// await counts answers that are to come. While there are any, one has to come in time.
func (p *pipeline) await(answers int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.awaited += answers; p.awaited > 0 {
		p.late.Reset(p.opts.Timeout)
	} else {
		p.late.Stop()
	}
}

// receive takes the answers, until Close.
func (p *pipeline) receive() {
	defer p.cancel(nil)
	for {
		b, err := p.stream.Recv()
		if err == nil {
			p.await(-1)
		}
		select {
		case f := <-p.sent:
			p.answer(f, b, err)
		case <-p.open.Done():
			p.finish()
			return
		}
	}
}

// answer ends a request, and hands it to the consumer.
func (p *pipeline) answer(f *future, b []byte, err error) {
	if f.claim() {
		if err == nil {
			err = decodeMessage(b, f.resp)
		}
		f.respond(p.failed(err))
	}
	select {
	case p.done <- f:
		return
	default:
	}
	// It is the consumer that takes its time: what has been answered meanwhile waits in the stream.
	p.await(-unlimited)
	select {
	case p.done <- f:
	case <-p.open.Done():
	}
	p.await(unlimited)
}

// unlimited is more answers than are ever awaited.
const unlimited = 1 << 30

// finish ends the stream behind what was sent.
func (p *pipeline) finish() {
	ctx, cancel := context.WithTimeout(context.Background(), p.opts.Timeout)
	defer cancel()
	_ = p.stream.Finish(ctx)
	p.late.Stop()
}

// Consumer implements [raft.AppendPipeline].
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.done }

// Close implements [raft.AppendPipeline]. Requests under way end with [raft.ErrPipelineShutdown], but
// what was sent still arrives: raft closes a pipeline right after the last entries for a server that
// leaves.
func (p *pipeline) Close() error {
	if p.open.Err() != nil {
		return nil
	}
	p.close()
	p.await(1)              // the end of the stream, with which receive ends
	go p.stream.CloseSend() // may have to wait for the link
	return nil
}

// future is a request of a pipeline.
type future struct {
	start  time.Time
	args   *raft.AppendEntriesRequest
	resp   *raft.AppendEntriesResponse
	closed <-chan struct{} // with the pipeline
	over   atomic.Bool     // somebody is to respond
	done   chan struct{}   // closed by respond
	err    error           // set before that
}

// claim reports whether the caller is the one to respond.
func (f *future) claim() bool { return !f.over.Swap(true) }

func (f *future) respond(err error) {
	f.err = err
	close(f.done)
}

// Error implements [raft.Future].
func (f *future) Error() error {
	select {
	case <-f.done:
	case <-f.closed:
		if f.claim() {
			f.respond(raft.ErrPipelineShutdown)
		}
		<-f.done
	}
	return f.err
}

// Start implements [raft.AppendFuture].
func (f *future) Start() time.Time { return f.start }

// Request implements [raft.AppendFuture].
func (f *future) Request() *raft.AppendEntriesRequest { return f.args }

// Response implements [raft.AppendFuture].
func (f *future) Response() *raft.AppendEntriesResponse { return f.resp }
