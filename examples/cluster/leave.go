package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gridrpc/grid"
)

// leaveTime is how long a node that leaves waits for the others to hear of it.
const leaveTime = 2 * time.Second

// leave tells all connected peers that this node leaves, and returns how many have answered. The
// others go on to take it for one that has failed.
func (d *dynamic) leave(ctx context.Context) int {
	d.changing.Lock()
	d.gone = true
	d.changing.Unlock()
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	var told atomic.Int32
	var telling sync.WaitGroup
	for _, host := range d.Targets() {
		conn := d.Connection(host)
		if conn == nil || conn.State() != grid.StateConnected {
			continue
		}
		telling.Go(func() {
			if _, err := conn.SingleRequest(ctx, leaveID, []byte(d.HostName())); err != nil {
				d.log.Info("not told that this node leaves", "host", host, "error", err)
				return
			}
			told.Add(1)
		})
	}
	telling.Wait()
	return int(told.Load())
}

// serveLeave is told by a peer, whose name is the payload, that it leaves. It is removed when its
// link has ended: before, it would not get the answer.
func (d *dynamic) serveLeave(ctx context.Context, payload []byte) ([]byte, *grid.RemoteErr) {
	host := string(payload)
	grid.PutByteBuffer(payload)
	if caller := grid.GetCaller(ctx).Name; caller != host {
		return nil, grid.NewRemoteErrf("%s may not leave in place of another host", caller)
	}
	d.changing.Lock()
	defer d.changing.Unlock()
	conn := d.Connection(host)
	if conn == nil {
		return nil, nil
	}
	if conn.State() != grid.StateConnected { // the end was there before
		return nil, grid.NewRemoteErr(d.RemoveHost(host))
	}
	d.leaving[host] = time.Now()
	return nil, nil
}

// removeLeft removes a host that has said that it leaves, if its link has ended with the change. It
// reports whether that was so. A link that was made since then is one of a host that is back.
func (d *dynamic) removeLeft(c grid.StateChange) bool {
	d.changing.Lock()
	defer d.changing.Unlock()
	since, leaves := d.leaving[c.Host]
	isBack := c.To == grid.StateConnected
	if !leaves || isBack && !c.Time.After(since) {
		return false
	}
	delete(d.leaving, c.Host)
	if isBack {
		return false
	}
	d.RemoveHost(c.Host) // fails only where this node itself is shutting down
	return true
}
