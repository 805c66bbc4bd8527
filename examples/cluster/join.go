package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/gridrpc/grid"
)

const (
	// maxHosts is how many hosts a node may take in, or hear of: who knows the secret is believed that
	// much.
	maxHosts = 1000
	// learnedTime is for how long a host is tried that only others know.
	learnedTime = time.Minute
	// joinTime is how long one attempt to ask a node may take.
	joinTime = 2 * time.Second
)

var errLeaving = errors.New("this node leaves")

// accept is asked about hosts that are not known here. They know the secret.
func (d *dynamic) accept(context.Context, string, *http.Request) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	if d.gone {
		return errLeaving // which the host would not be told any more
	}
	return nil
}

// serveHosts tells a peer of the hosts that there are. It was added before: of two that join at a
// time, one hears of the other.
func (d *dynamic) serveHosts(grid.NoPayload) (*grid.JSON[[]string], *grid.RemoteErr) {
	hosts := d.staying()
	return hostLists.NewJSONWith(&hosts), nil
}

// join makes nodes, and all others that it hears of from them, hosts of this one, which they take
// in. It goes on until ctx ends: some may not be up. It returns an error if one of the nodes to join
// through refuses.
func (d *dynamic) join(ctx context.Context, through []string) error {
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	type answer struct {
		from  string
		hosts []string
		err   error
	}
	answers := make(chan answer)
	asked := map[string]bool{d.HostName(): true}
	hosts := through
	for {
		for _, host := range hosts {
			if asked[host] || len(asked) > maxHosts {
				continue
			}
			asked[host] = true
			patience := learnedTime
			if slices.Contains(through, host) {
				patience = math.MaxInt64
			}
			asking.Go(func() {
				hosts, err := d.joinThrough(ctx, host, patience)
				select {
				case answers <- answer{host, hosts, err}:
				case <-ctx.Done():
				}
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case a := <-answers:
			hosts = a.hosts
			switch {
			case a.err == nil, ctx.Err() != nil:
			case slices.Contains(through, a.from):
				return fmt.Errorf("joining through %s: %w", a.from, a.err)
			default:
				d.log.Warn("a node that others know can't be joined", "host", a.from, "error", a.err)
			}
		}
	}
}

// joinThrough adds a node, and asks it until it answers, or for so long, which hosts it knows. One
// that refuses, or never answers, is removed; if it comes back it joins anew.
func (d *dynamic) joinThrough(ctx context.Context, host string, patience time.Duration) ([]string, error) {
	if err := d.add(host); err != nil {
		return nil, err
	}
	begin, warned := time.Now(), false
	for {
		conn := d.Connection(host)
		if conn == nil {
			return nil, nil // it has left
		}
		hosts, err := askForHosts(ctx, conn)
		switch {
		case err == nil || ctx.Err() != nil:
			return hosts, nil
		case errors.Is(err, grid.ErrNotAccepted) || grid.IsRemoteErr(err) || time.Since(begin) > patience:
			return nil, errors.Join(err, d.RemoveHost(host))
		case !warned:
			d.log.Warn("joining: a node is not there yet", "host", host, "error", err)
			warned = true
		}
	}
}

// askForHosts asks a node once, when there is a link to it.
func askForHosts(ctx context.Context, conn *grid.Connection) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	if err := conn.WaitForConnect(ctx); err != nil {
		return nil, err
	}
	list, err := hostsOf.Call(ctx, conn, grid.NoPayload{})
	if err != nil {
		return nil, err
	}
	var hosts []string
	if v := list.Value(); v != nil {
		hosts = *v
	}
	if len(hosts) > maxHosts {
		return nil, grid.NewRemoteErrf("the answer has %d hosts, the limit is %d", len(hosts), maxHosts)
	}
	return hosts, nil
}
