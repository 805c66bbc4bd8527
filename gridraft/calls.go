package gridraft

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"

	"github.com/gridrpc/grid"
)

// connectTime is what a call has that finds no link, with the wait for one. Raft waits for its calls
// when it is shut down, and closes the transport only then.
const connectTime = time.Second

// to returns the way to a server, unless it was disconnected, and what calls to it run in.
func (t *Transport) to(id raft.ServerID, target raft.ServerAddress) (context.Context, *grid.Caller, error) {
	ctx := t.life.Load().ctx
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	conn, err := t.manager.Lookup(string(t.address(id, target)))
	if err != nil {
		return nil, nil, fmt.Errorf("gridraft: server %s: %w", id, err)
	}
	if t.cut.Load().has(conn.HostName()) {
		return nil, nil, fmt.Errorf("%w: %s", ErrDisconnected, conn.HostName())
	}
	o := grid.CallOptions{Timeout: t.opts.Timeout, WaitForLink: true}
	if conn.State() != grid.StateConnected {
		o.Timeout = min(connectTime, o.Timeout)
	}
	if t.opts.Group != "" {
		return ctx, conn.Subroute(t.opts.Group).With(o), nil
	}
	return ctx, conn.With(o), nil
}

// begin is to, and encodes a request.
func (t *Transport) begin(e *encoder, id raft.ServerID, target raft.ServerAddress, args any) (ctx context.Context, to *grid.Caller, b []byte, err error) {
	if ctx, to, err = t.to(id, target); err == nil {
		b, err = e.encode(args)
	}
	return ctx, to, b, err
}

// failed is the error of a call, nil if it has none.
func failed(id grid.HandlerID, target raft.ServerAddress, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("gridraft: %s to %s: %w", handlerNames[id], target, err)
}

// call makes a single request.
func (t *Transport) call(id grid.HandlerID, server raft.ServerID, target raft.ServerAddress, args, resp any) error {
	e := getEncoder()
	defer e.put()
	ctx, to, b, err := t.begin(e, server, target, args)
	if err != nil {
		return err
	}
	if len(b) > t.opts.PartSize {
		return failed(id, target, t.callInParts(ctx, to, b, resp))
	}
	answer, err := to.SingleRequest(ctx, t.opts.FirstID+id, b)
	if err == nil {
		err = decodeMessage(answer, resp)
	}
	return failed(id, target, err)
}

// callInParts is a pipeline of one request.
func (t *Transport) callInParts(ctx context.Context, to *grid.Caller, b []byte, resp any) error {
	if len(b) > t.opts.MaxRequestSize {
		return fmt.Errorf("%w: %d bytes", ErrRequestTooLarge, len(b))
	}
	ctx, cancel := context.WithTimeout(ctx, t.opts.Timeout)
	defer cancel()
	stream, err := to.StartStream(ctx, t.opts.FirstID+pipelineID, nil)
	if err != nil {
		return err
	}
	if err := sendParts(stream.Send, b, t.opts.PartSize); errors.Is(err, grid.ErrMessageTooLarge) {
		return err // any other is the stream's end, of which the answer tells
	}
	return answered(ctx, stream, resp)
}

// answered takes the one answer of a stream, and ends it.
func answered(ctx context.Context, stream *grid.Stream, resp any) error {
	b, err := stream.Recv()
	if err == io.EOF {
		return errNoAnswer
	} else if err != nil {
		return err
	}
	err = decodeMessage(b, resp)
	return cmp.Or(stream.Finish(ctx), err)
}

var errNoAnswer = errors.New("the stream has ended without an answer")

// AppendEntries implements [raft.Transport].
func (t *Transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if isHeartbeat(args) {
		return t.call(heartbeatID, id, target, args, resp)
	}
	return t.call(appendID, id, target, args, resp)
}

// isHeartbeat reports whether a request is one that raft sends as a heartbeat, which it may answer
// without a look at its log.
func isHeartbeat(r *raft.AppendEntriesRequest) bool {
	return r.Term != 0 && len(r.Addr) > 0 &&
		r.PrevLogEntry == 0 && r.PrevLogTerm == 0 && len(r.Entries) == 0 && r.LeaderCommitIndex == 0
}

// RequestVote implements [raft.Transport].
func (t *Transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return t.call(voteID, id, target, args, resp)
}

// RequestPreVote implements [raft.WithPreVote].
func (t *Transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return t.call(preVoteID, id, target, args, resp)
}

// TimeoutNow implements [raft.Transport].
func (t *Transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return t.call(timeoutNowID, id, target, args, resp)
}

// timeoutScale is for how many bytes of a snapshot there is one Timeout.
const timeoutScale = raft.DefaultTimeoutScale

// InstallSnapshot implements [raft.Transport]. It sends args.Size bytes of data, and fails if there
// are less.
func (t *Transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	e := getEncoder()
	defer e.put()
	ctx, to, b, err := t.begin(e, id, target, args)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, t.opts.Timeout*time.Duration(max(1, args.Size/timeoutScale)))
	defer cancel()
	stream, err := to.StartStream(ctx, t.opts.FirstID+snapshotID, b)
	if err != nil {
		return failed(snapshotID, target, err)
	}
	w := stream.Writer(ctx)
	if _, err = io.CopyN(w, data, args.Size); err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	_ = w.CloseWithError(err) // the stream's end tells of it
	return failed(snapshotID, target, answered(ctx, stream, resp))
}
