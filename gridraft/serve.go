package gridraft

import (
	"cmp"
	"context"
	"fmt"
	"io"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/raft"

	"github.com/gridrpc/grid"
)

const (
	// inputCapacity is how many messages of a pipeline, or of a snapshot, may be on their way to
	// the server at first. Many of them are parts of one request.
	inputCapacity = 64
	// pipelineOutput is the same for answers.
	pipelineOutput = 64
)

// register registers the handlers, up to the first that can't be.
func (t *Transport) register() error {
	appending := func() any { return new(raft.AppendEntriesRequest) }
	for id, command := range map[grid.HandlerID]func() any{
		heartbeatID:  appending,
		appendID:     appending,
		voteID:       func() any { return new(raft.RequestVoteRequest) },
		preVoteID:    func() any { return new(raft.RequestPreVoteRequest) },
		timeoutNowID: func() any { return new(raft.TimeoutNowRequest) },
	} {
		if err := t.registerSingle(id, t.server(command)); err != nil {
			return err
		}
	}
	for id, h := range map[grid.HandlerID]grid.StreamHandler{
		pipelineID: {Serve: t.servePipeline, InCapacity: inputCapacity, OutCapacity: pipelineOutput},
		snapshotID: {Serve: t.serveSnapshot, InCapacity: inputCapacity},
	} {
		h.Subroute = t.opts.Group
		if err := t.manager.RegisterStreamingHandler(t.opts.FirstID+id, h); err != nil {
			return err
		}
		t.registered = append(t.registered, id)
	}
	return nil
}

func (t *Transport) registerSingle(id grid.HandlerID, h grid.SingleHandlerContextFn) error {
	err := t.manager.RegisterSingleHandlerContext(t.opts.FirstID+id, h, t.route()...)
	if err == nil {
		t.registered = append(t.registered, id)
	}
	return err
}

func (t *Transport) unregister() {
	for _, id := range t.registered {
		t.manager.Unregister(t.opts.FirstID+id, t.route()...)
	}
}

// route is where the handlers are registered.
func (t *Transport) route() []string {
	if t.opts.Group == "" {
		return nil
	}
	return []string{t.opts.Group}
}

// server makes the handler of single requests that are decoded into what command returns.
func (t *Transport) server(command func() any) grid.SingleHandlerContextFn {
	return func(ctx context.Context, payload []byte) ([]byte, *grid.RemoteErr) {
		c := command()
		answer, err := t.answer(ctx, payload, c, nil)
		if err != nil {
			return nil, grid.NewRemoteErr(err)
		}
		b, err := encodeMessage(answer)
		return b, grid.NewRemoteErr(err)
	}
}

// answer has raft answer the request that a handler was called with. It owns payload.
func (t *Transport) answer(ctx context.Context, payload []byte, command any, data io.Reader) (any, error) {
	life, err := t.admit(ctx)
	if err != nil {
		return nil, err
	}
	if err := decodeMessage(payload, command); err != nil {
		return nil, err
	}
	if c, ok := command.(*raft.InstallSnapshotRequest); ok {
		data = io.LimitReader(data, c.Size) // whatever else is sent
	}
	return t.process(ctx, life, command, data)
}

// admit returns the life that a handler runs in, unless its caller is disconnected.
func (t *Transport) admit(ctx context.Context) (context.Context, error) {
	if c := t.cut.Load(); c != nil {
		if caller := grid.GetCaller(ctx); caller == nil || c.has(caller.Name) {
			return nil, ErrDisconnected // as it is: the caller knows it by its text
		}
	}
	life := t.life.Load().ctx
	return life, context.Cause(life)
}

// callerOf is the host that has called a handler; empty if it is not known.
func callerOf(ctx context.Context) string {
	if c := grid.GetCaller(ctx); c != nil {
		return c.Name
	}
	return ""
}

// process has raft answer a command, until ctx ends, which is the handler's, or life.
func (t *Transport) process(ctx, life context.Context, command any, reader io.Reader) (any, error) {
	if err := check(command); err != nil {
		return nil, err
	}
	answer := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{Command: command, Reader: reader, RespChan: answer}
	if r, ok := command.(*raft.AppendEntriesRequest); ok && isHeartbeat(r) {
		if f := t.heartbeat.Load(); f != nil {
			(*f)(rpc)
			rpc.RespChan = nil
		}
	}
	if rpc.RespChan != nil {
		select {
		case t.consumer <- rpc:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-life.Done():
			return nil, context.Cause(life)
		}
	}
	select {
	case r := <-answer:
		return r.Response, r.Error
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-life.Done():
		return nil, context.Cause(life)
	}
}

// servePipeline answers requests to append entries, one after the other.
func (t *Transport) servePipeline(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
	life, err := t.admit(ctx)
	if err != nil {
		return grid.NewRemoteErr(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(life, cancel)()
	err = t.appendAll(ctx, life, s)
	return grid.NewRemoteErr(cmp.Or(context.Cause(life), err))
}

// appendAll serves a pipeline until its input ends.
func (t *Transport) appendAll(ctx, life context.Context, s *grid.ServerStream) error {
	host := callerOf(ctx)
	requests := partReader{
		recv: func() ([]byte, error) { return s.RecvContext(ctx) },
		max:  t.opts.MaxRequestSize,
		host: t.beginPipeline(host),
	}
	defer t.endPipeline(host, requests.host)
	defer requests.release()
	for {
		command := new(raft.AppendEntriesRequest)
		if err := requests.next(command); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		answer, err := t.process(ctx, life, command, nil)
		if err != nil {
			return err
		}
		if err := send(ctx, s, answer); err != nil {
			return err
		}
	}
}

// send sends an answer by a stream.
func send(ctx context.Context, s *grid.ServerStream, answer any) error {
	e := getEncoder()
	defer e.put()
	b, err := e.encode(answer)
	if err != nil {
		return err
	}
	return s.Send(ctx, b)
}

// serveSnapshot has raft install a snapshot. Once it has returned, what reads that gets an error.
func (t *Transport) serveSnapshot(ctx context.Context, payload []byte, s *grid.ServerStream) *grid.RemoteErr {
	command := new(raft.InstallSnapshotRequest)
	answer, err := t.answer(ctx, payload, command, s.Reader())
	if err == nil {
		err = send(ctx, s, answer)
	}
	return grid.NewRemoteErr(err)
}

// check refuses what raft would panic at: entries that are missing, do not follow each other or are
// of no type that it knows, and configurations that can't be decoded.
func check(command any) error {
	switch c := command.(type) {
	case *raft.AppendEntriesRequest:
		for i, e := range c.Entries {
			switch {
			case e == nil:
				return fmt.Errorf("gridraft: entry %d of %d is nil", i, len(c.Entries))
			case e.Index == 0 || e.Index != c.PrevLogEntry+1+uint64(i):
				return fmt.Errorf("gridraft: entry %d of %d has index %d, behind %d", i, len(c.Entries), e.Index, c.PrevLogEntry)
			case e.Type > raft.LogConfiguration:
				return fmt.Errorf("gridraft: entry %d of %d is of type %d", i, len(c.Entries), e.Type)
			case e.Type == raft.LogConfiguration:
				if err := checkConfiguration(e.Data); err != nil {
					return err
				}
			}
		}
	case *raft.InstallSnapshotRequest:
		if c.Size < 0 {
			return fmt.Errorf("gridraft: snapshot of %d bytes", c.Size)
		}
		if c.SnapshotVersion > 0 {
			return checkConfiguration(c.Configuration)
		}
	}
	return nil
}

// maxConfiguration is the largest configuration, in bytes: some ten thousand servers.
const maxConfiguration = 1 << 20

// checkConfiguration decodes a configuration as raft does, which panics where it can't.
func checkConfiguration(b []byte) error {
	if len(b) > maxConfiguration {
		return fmt.Errorf("gridraft: configuration of %d bytes, more than %d", len(b), maxConfiguration)
	}
	if err := codec.NewDecoderBytes(b, handle).Decode(new(raft.Configuration)); err != nil {
		return fmt.Errorf("gridraft: configuration: %w", err)
	}
	return nil
}
