package gridraft

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/gridrpc/grid"
)

// Handlers of a group, as offsets from Options.FirstID.
const (
	heartbeatID grid.HandlerID = iota
	appendID
	voteID
	preVoteID
	timeoutNowID
	pipelineID
	snapshotID
	joinID

	handlerIDs // how many there are
)

// HandlerIDs is how many handler IDs a [Transport] takes, from Options.FirstID on.
const HandlerIDs = int(handlerIDs)

var handlerNames = [handlerIDs]string{
	heartbeatID:  "raft heartbeat",
	appendID:     "raft append",
	voteID:       "raft vote",
	preVoteID:    "raft pre-vote",
	timeoutNowID: "raft timeout now",
	pipelineID:   "raft pipeline",
	snapshotID:   "raft snapshot",
	joinID:       "raft join",
}

// HandlerNames names the handlers of transports with that FirstID, for ManagerOptions.HandlerNames.
func HandlerNames(first grid.HandlerID) map[grid.HandlerID]string {
	names := make(map[grid.HandlerID]string, HandlerIDs)
	for i, name := range handlerNames {
		names[first+grid.HandlerID(i)] = name
	}
	return names
}

// Options are the options of [New]. FirstID is required, and the same on all hosts.
type Options struct {
	// FirstID is the first of the [HandlerIDs] consecutive handler IDs that are used. From 1 to 248.
	FirstID grid.HandlerID

	// Group is the subroute of the handlers: transports of several groups on one manager have
	// different ones and may have the same FirstID. By default they have no subroute.
	Group string

	// Timeout bounds each call, and how long a request of a pipeline waits for its answer. A
	// snapshot has as many times Timeout as it has 256 KiB, at least one, as with
	// [raft.NetworkTransport]. A host that is dead is noticed by the pings of its link, which takes
	// no longer than three times ManagerOptions.PingInterval, so this is for those that live and
	// do not answer. Where there is no link, a call has a second at most, with the wait for one. At
	// least 1 ms; the default is 10 s.
	Timeout time.Duration

	// MaxRPCsInFlight is how many requests of a pipeline may be unanswered. With 1 there are no
	// pipelines. At least 1; the default is that of raft, 2, which says why more seldom helps.
	MaxRPCsInFlight int

	// PartSize is how many bytes of a request that is larger than that go in one message. It must be
	// less than ManagerOptions.MaxMessageSize of all hosts, which [New] checks for its own. From
	// 1 KiB to 1 GiB; the default is 64 KiB less one byte, the largest message that grid sends
	// whole, or what MaxMessageSize has room for.
	PartSize int

	// MaxRequestSize is how many bytes a request to append entries may have, in either direction:
	// a larger one fails with [ErrRequestTooLarge], or ends its pipeline, so it must have room for
	// raft's MaxAppendEntries, 64 by default, of the largest commands. At least PartSize; the
	// default is 256 MiB.
	// Those in parts that one host has sent, and that raft has not answered, may have as many
	// together.
	MaxRequestSize int

	// ServerAddressProvider, if there is one, says at which host a server is, in place of the
	// address in raft's configuration, which is used where it returns an error.
	ServerAddressProvider raft.ServerAddressProvider
}

// fill checks the options and sets defaults. A message has one byte more than a part.
func (o *Options) fill(maxMessage int) error {
	o.Timeout = cmp.Or(o.Timeout, 10*time.Second)
	o.MaxRPCsInFlight = cmp.Or(o.MaxRPCsInFlight, raft.DefaultMaxRPCsInFlight)
	o.PartSize = cmp.Or(o.PartSize, min(64<<10, maxMessage)-1)
	o.MaxRequestSize = cmp.Or(o.MaxRequestSize, max(256<<20, o.PartSize))
	switch {
	case o.FirstID < 1 || int(o.FirstID) > math.MaxUint8+1-HandlerIDs:
		return fmt.Errorf("gridraft: FirstID is %d, must be 1 to %d", o.FirstID, math.MaxUint8+1-HandlerIDs)
	case o.Timeout < time.Millisecond:
		return fmt.Errorf("gridraft: Timeout is %v, must be at least 1ms", o.Timeout)
	case o.MaxRPCsInFlight < 1:
		return fmt.Errorf("gridraft: MaxRPCsInFlight is %d, must be at least 1", o.MaxRPCsInFlight)
	case o.PartSize < 1<<10 || o.PartSize > 1<<30:
		return fmt.Errorf("gridraft: PartSize is %d, must be 1024 to %d", o.PartSize, 1<<30)
	case o.PartSize >= maxMessage:
		return fmt.Errorf("gridraft: PartSize is %d, must be less than MaxMessageSize, %d", o.PartSize, maxMessage)
	case o.MaxRequestSize < o.PartSize:
		return fmt.Errorf("gridraft: MaxRequestSize is %d, must be at least PartSize, %d", o.MaxRequestSize, o.PartSize)
	}
	return nil
}

// Errors of calls, beside those of package grid and [raft.ErrTransportShutdown], which is that of a
// call, in either direction, whose transport is closed. All are to be tested with errors.Is. What
// the other server has answered is a [grid.RemoteErr]: errors.Is finds what its error wraps as well,
// and [grid.ErrorCode] its code.
var (
	// ErrRequestTooLarge is returned for a request above MaxRequestSize.
	ErrRequestTooLarge = errors.New("gridraft: request is larger than MaxRequestSize")
	// ErrDisconnected is returned for a peer that was disconnected by [Transport.Disconnect].
	ErrDisconnected = errors.New("gridraft: disconnected from this peer")
	// ErrStreamsClosed is returned by what [Transport.CloseStreams] ends.
	ErrStreamsClosed = errors.New("gridraft: streams closed")
	// ErrTimeout is returned by a pipeline whose peer did not answer within the Timeout.
	ErrTimeout = errors.New("gridraft: no answer within the timeout")
)

// Transport is a [raft.Transport] over the links of a grid. It is a [raft.WithPreVote], a
// [raft.WithClose] and a [raft.WithPeers] as well. All methods may be called concurrently.
type Transport struct {
	// Set once.
	manager  *grid.Manager
	opts     Options
	consumer chan raft.RPC

	heartbeat atomic.Pointer[func(raft.RPC)]
	cut       atomic.Pointer[cut]
	life      atomic.Pointer[life]

	mu         sync.Mutex // guards changes of cut and life as well
	closed     bool
	registered []grid.HandlerID // offsets
	parts      map[string]*hostParts
}

// life is what calls and handlers run in: until the streams are closed, or the transport is.
type life struct {
	ctx context.Context
	end context.CancelCauseFunc
}

func newLife() *life {
	l := new(life)
	l.ctx, l.end = context.WithCancelCause(context.Background())
	return l
}

// New makes the transport of a raft server, and registers its handlers with m. The address of the
// server is m's HostName, and the addresses of the others are hosts of m.
//
// It returns an error for options out of their bounds, and [grid.ErrHandlerAlreadyExists] if a
// handler ID is taken, as it is while another transport of the same Group is open.
func New(m *grid.Manager, o Options) (*Transport, error) {
	if err := o.fill(m.MaxMessageSize()); err != nil {
		return nil, err
	}
	t := &Transport{manager: m, opts: o, consumer: make(chan raft.RPC), parts: make(map[string]*hostParts)}
	t.life.Store(newLife())
	if err := t.register(); err != nil {
		t.Close()
		return nil, fmt.Errorf("gridraft: %w", err)
	}
	return t, nil
}

// Close ends all calls and streams, in both directions, with [raft.ErrTransportShutdown], and
// unregisters the handlers, so that another transport of the same Group can be made. Raft calls it
// when it is shut down. The manager goes on. It returns nil, also when called again.
func (t *Transport) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.closed = true
		t.unregister()
		t.life.Load().end(raft.ErrTransportShutdown)
	}
	return nil
}

// IsShutdown reports whether the transport was closed.
func (t *Transport) IsShutdown() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

// CloseStreams ends all calls and streams that are under way, in both directions, with
// [ErrStreamsClosed]. Later ones are not affected; the links stay.
func (t *Transport) CloseStreams() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.restart()
}

// Consumer implements [raft.Transport].
func (t *Transport) Consumer() <-chan raft.RPC { return t.consumer }

// LocalAddr implements [raft.Transport]. It is the HostName of the manager.
func (t *Transport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(t.manager.HostName()) }

// SetHeartbeatHandler implements [raft.Transport]. Heartbeats are calls of their own handler, so they
// wait neither for raft's main loop nor behind entries and snapshots.
func (t *Transport) SetHeartbeatHandler(cb func(rpc raft.RPC)) {
	if cb == nil {
		t.heartbeat.Store(nil)
		return
	}
	t.heartbeat.Store(&cb)
}

// EncodePeer implements [raft.Transport].
func (t *Transport) EncodePeer(id raft.ServerID, addr raft.ServerAddress) []byte {
	return []byte(t.address(id, addr))
}

// DecodePeer implements [raft.Transport].
func (t *Transport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// address is where a server is.
func (t *Transport) address(id raft.ServerID, addr raft.ServerAddress) raft.ServerAddress {
	if t.opts.ServerAddressProvider != nil {
		if a, err := t.opts.ServerAddressProvider.ServerAddr(id); err == nil {
			return a
		}
	}
	return addr
}

// cut says which peers are disconnected. It is never changed.
type cut struct {
	all    bool
	except map[string]bool // hosts to which all does not apply
}

func (c *cut) has(host string) bool { return c != nil && c.all != c.except[host] }

// Connect implements [raft.WithPeers]: it takes back a Disconnect. The second argument is not used.
func (t *Transport) Connect(peer raft.ServerAddress, _ raft.Transport) { t.setCut(peer, false) }

// Disconnect implements [raft.WithPeers]: calls to that peer, and of it, fail with [ErrDisconnected]
// until Connect. What is under way ends as with CloseStreams. Other groups, and the link, are not
// affected.
func (t *Transport) Disconnect(peer raft.ServerAddress) { t.setCut(peer, true) }

// DisconnectAll implements [raft.WithPeers]: it is Disconnect of every peer there is or will be.
func (t *Transport) DisconnectAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cut.Store(&cut{all: true})
	t.restart()
}

func (t *Transport) setCut(peer raft.ServerAddress, off bool) {
	host := string(peer)
	if c := t.manager.Connection(host); c != nil {
		host = c.HostName()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.cut.Load()
	if before.has(host) == off {
		return
	}
	next := &cut{except: map[string]bool{}}
	if before != nil {
		next.all = before.all
		for h := range before.except {
			next.except[h] = true
		}
	}
	if off == next.all {
		delete(next.except, host)
	} else {
		next.except[host] = true
	}
	t.cut.Store(next)
	if off {
		t.restart()
	}
}

// restart ends what is under way.
func (t *Transport) restart() {
	if !t.closed {
		t.life.Swap(newLife()).end(ErrStreamsClosed)
	}
}
