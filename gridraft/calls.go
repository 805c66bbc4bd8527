package gridraft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"

	"github.com/gridrpc/grid"
)

// connectTime is how long a call waits for a link that is not there.
const connectTime = time.Second

// peer is another server of the group.
type peer struct {
	conn    *grid.Connection
	request grid.Requester // with the timeout
	streams interface {
		StartStream(ctx context.Context, id grid.HandlerID, payload []byte) (*grid.Stream, error)
	}
}

// peer returns the peer that is a server, unless it was disconnected.
func (t *Transport) peer(id raft.ServerID, target raft.ServerAddress) (*peer, error) {
	addr := t.address(id, target)
	conn := t.manager.Connection(string(addr))
	if conn == nil {
		t.peers.Delete(addr)
		_, err := t.manager.Lookup(string(addr))
		return nil, fmt.Errorf("gridraft: server %s: %w", id, err)
	}
	if t.cut.Load().has(conn.HostName()) {
		return nil, fmt.Errorf("%w: %s", ErrDisconnected, addr)
	}
	// A host that was removed and added again has another connection.
	if p, ok := t.peers.Load(addr); ok && p.(*peer).conn == conn {
		return p.(*peer), nil
	}
	p := &peer{conn: conn, request: conn.WithTimeout(t.opts.Timeout), streams: conn}
	if t.opts.Group != "" {
		sub := conn.Subroute(t.opts.Group)
		p.request, p.streams = sub.WithTimeout(t.opts.Timeout), sub
	}
	t.peers.Store(addr, p)
	return p, nil
}

// connected waits for the link, for a while.
func (t *Transport) connected(ctx context.Context, p *peer) error {
	if p.conn.State() == grid.StateConnected {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, min(connectTime, t.opts.Timeout))
	defer cancel()
	return p.conn.WaitForConnect(ctx)
}

// failed is the error of a call that ran in ctx: why that has ended, if it has.
func failed(ctx context.Context, id grid.HandlerID, target raft.ServerAddress, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if err == raft.ErrTransportShutdown {
		return err // which some compare
	}
	return fmt.Errorf("gridraft: %s to %s: %w", handlerNames[id], target, err)
}

// call makes a single request.
func (t *Transport) call(id grid.HandlerID, server raft.ServerID, target raft.ServerAddress, args, resp any) error {
	ctx := t.life.Load().ctx
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	p, err := t.peer(server, target)
	if err != nil {
		return err
	}
	e := getEncoder()
	defer e.put()
	b, err := e.encode(args)
	if err != nil {
		return err
	}
	if err := t.connected(ctx, p); err != nil {
		return failed(ctx, id, target, err)
	}
	if len(b) > t.opts.PartSize {
		return t.callInParts(ctx, p, target, b, resp)
	}
	answer, err := p.request.SingleRequest(ctx, t.opts.FirstID+id, b)
	if err != nil {
		return failed(ctx, id, target, err)
	}
	err = decodeAnswer(answer, resp)
	grid.PutByteBuffer(answer)
	return err
}

// callInParts is a pipeline of one request.
func (t *Transport) callInParts(ctx context.Context, p *peer, target raft.ServerAddress, b []byte, resp any) error {
	if len(b) > t.opts.MaxRequestSize {
		return fmt.Errorf("%w: %d bytes to %s", ErrRequestTooLarge, len(b), target)
	}
	ctx, cancel := context.WithTimeout(ctx, t.opts.Timeout)
	defer cancel()
	stream, err := p.streams.StartStream(ctx, t.opts.FirstID+pipelineID, nil)
	if err != nil {
		return failed(ctx, appendID, target, err)
	}
	_ = sendParts(stream.Send, b, t.opts.PartSize) // the stream's end says why
	return answered(ctx, stream, appendID, target, resp)
}

var errNoAnswer = errors.New("gridraft: stream ended without an answer")

// answered ends the input of a stream, and decodes its one answer.
func answered(ctx context.Context, stream *grid.Stream, id grid.HandlerID, target raft.ServerAddress, resp any) error {
	stream.CloseSend()
	var (
		answer error
		got    bool
	)
	err := stream.Results(func(b []byte) error {
		if !got {
			got, answer = true, decodeAnswer(b, resp)
		}
		grid.PutByteBuffer(b)
		return nil
	})
	if err == nil && !got {
		err = errNoAnswer
	}
	if err != nil {
		return failed(ctx, id, target, err)
	}
	return answer
}

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
	ctx := t.life.Load().ctx
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	p, err := t.peer(id, target)
	if err != nil {
		return err
	}
	e := getEncoder()
	defer e.put()
	b, err := e.encode(args)
	if err != nil {
		return err
	}
	if err := t.connected(ctx, p); err != nil {
		return failed(ctx, snapshotID, target, err)
	}
	timeout := t.opts.Timeout * time.Duration(max(1, args.Size/timeoutScale))
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	stream, err := p.streams.StartStream(ctx, t.opts.FirstID+snapshotID, b)
	if err != nil {
		return failed(ctx, snapshotID, target, err)
	}
	if err := t.sendSnapshot(stream, args.Size, data); err != nil {
		giveUp(fmt.Errorf("read the snapshot: %w", err)) // its end tells of the cause
	}
	return answered(ctx, stream, snapshotID, target, resp)
}

// sendSnapshot returns errors of data only: those of the stream are told by its end.
func (t *Transport) sendSnapshot(stream *grid.Stream, size int64, data io.Reader) error {
	buf := make([]byte, min(int64(t.opts.PartSize), size))
	for size > 0 {
		n := int(min(int64(len(buf)), size))
		if _, err := io.ReadFull(data, buf[:n]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if stream.Send(buf[:n]) != nil {
			return nil
		}
		size -= int64(n)
	}
	return nil
}
