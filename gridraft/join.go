package gridraft

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/gridrpc/grid"
)

// joinRequest asks for a place in the group; its address is that of the host that asks.
type joinRequest struct{ ID raft.ServerID }

// joinAnswer has the addresses of the group's servers, or that of the leader, from the others.
type joinAnswer struct {
	Servers []raft.ServerAddress
	Leader  raft.ServerAddress
}

// ServeJoin lets other hosts into the group of r, which is the raft server of this transport: one
// that calls [Transport.Join] becomes a voter. Without it nobody can. Whoever is a host of the
// manager may join then, and whoever may become one where there is a ManagerOptions.AcceptHost.
//
// It returns [raft.ErrTransportShutdown] after Close, and [grid.ErrHandlerAlreadyExists] if it was
// called before.
func (t *Transport) ServeJoin(r *raft.Raft) error {
	handle := func(ctx context.Context, payload []byte) ([]byte, *grid.RemoteErr) {
		var req joinRequest
		answer := new(joinAnswer)
		_, err := t.admit(ctx)
		if err == nil {
			err = decodeMessage(payload, &req)
		}
		if err == nil {
			*answer, err = join(r, req.ID, raft.ServerAddress(callerOf(ctx)), t.opts.Timeout)
		}
		if err != nil {
			return nil, grid.NewRemoteErr(err)
		}
		b, err := encodeMessage(answer)
		return b, grid.NewRemoteErr(err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return raft.ErrTransportShutdown
	}
	return t.registerSingle(joinID, handle)
}

// join adds a voter where r leads.
func join(r *raft.Raft, id raft.ServerID, addr raft.ServerAddress, timeout time.Duration) (a joinAnswer, err error) {
	if r.State() != raft.Leader {
		a.Leader, _ = r.LeaderWithID()
		return a, nil
	}
	f := r.GetConfiguration()
	if err := f.Error(); err != nil {
		return a, err
	}
	servers := f.Configuration().Servers
	at := slices.IndexFunc(servers, func(s raft.Server) bool { return s.ID == id })
	if at >= 0 && servers[at].Address != addr {
		return a, fmt.Errorf("%w: %s is at %s", ErrServerExists, id, servers[at].Address)
	}
	if at < 0 || servers[at].Suffrage != raft.Voter {
		if err := r.AddVoter(id, addr, f.Index(), timeout).Error(); err != nil {
			return a, err
		}
		servers = append(servers, raft.Server{Address: addr})
	}
	for _, s := range servers {
		a.Servers = append(a.Servers, s.Address)
	}
	return a, nil
}

// joinPause is between two attempts to join.
const joinPause = 100 * time.Millisecond

// ErrServerExists is returned by Join where the group has a server of that ID at another address,
// which a join would unseat. A server that has moved is removed first, by [raft.Raft.RemoveServer].
var ErrServerExists = errors.New("gridraft: the group has a server of that ID already")

var errNoLeader = errors.New("there is no leader")

// Join makes the raft server of this transport, whose ID is id, a voter of the group that the host
// is in, which need not lead it. That host and all servers of the group are added to the hosts of
// the manager, and have to take this one in: by an AcceptHost, if they do not know it. Raft must
// have been started, without a configuration, and this host must be able to serve already.
//
// It tries until it is through, the transport is closed, or ctx ends: then it returns the error of
// that with the last one there was. Of one that is a voter already it does nothing but add hosts.
func (t *Transport) Join(ctx context.Context, id raft.ServerID, host string) error {
	var last error
	for at := host; ; {
		next, err := t.askToJoin(ctx, id, at)
		switch {
		case err == nil && next == "":
			return nil
		case err == nil && at == host && next != host:
			at = next
			continue
		case errors.Is(err, raft.ErrTransportShutdown) && t.IsShutdown(), errors.Is(err, ErrServerExists):
			return err
		case last == nil || !errors.Is(err, context.DeadlineExceeded): // that may be of ctx
			last = cmp.Or(err, errNoLeader)
		}
		at = host // which may know a leader by then
		select {
		case <-time.After(joinPause):
		case <-t.life.Load().ctx.Done():
		case <-ctx.Done():
			return fmt.Errorf("gridraft: join by %s: %w, last: %w", host, context.Cause(ctx), last)
		}
	}
}

// askToJoin asks a host, and returns whom to ask instead; empty once it is through.
func (t *Transport) askToJoin(ctx context.Context, id raft.ServerID, host string) (next string, err error) {
	if err := t.manager.AddHost(host); err != nil {
		return "", err
	}
	e := getEncoder()
	defer e.put()
	life, to, b, err := t.begin(e, id, raft.ServerAddress(host), &joinRequest{ID: id})
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(life, func() { cancel(context.Cause(life)) })()
	answer, err := to.SingleRequest(ctx, t.opts.FirstID+joinID, b)
	if err != nil {
		return "", err
	}
	if len(answer) > maxConfiguration {
		return "", fmt.Errorf("gridraft: answer of %d bytes, more than %d", len(answer), maxConfiguration)
	}
	var a joinAnswer
	if err := decodeMessage(answer, &a); err != nil {
		return "", err
	}
	switch {
	case len(a.Servers) > 0:
	case a.Leader == "":
		return "", errNoLeader
	case a.Leader == t.LocalAddr():
		return "", nil // it is in, and leads by now
	default:
		return string(a.Leader), nil
	}
	for _, s := range a.Servers {
		if s != t.LocalAddr() {
			err = errors.Join(err, t.manager.AddHost(string(s)))
		}
	}
	return "", err
}
