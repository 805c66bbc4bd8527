package main

import (
	"context"
	"errors"
	"runtime"
	"syscall"
	"time"
)

const (
	idleMesh  = 32
	idlePairs = 64
	// idleStreams is how many streams are opened, idleOthers with peers but the two that are
	// compared most: some take half a MiB for each.
	idleStreams = 10_000
	idleOthers  = 1_000
)

// idle measures what connections and streams cost on which nothing happens.
func (r *run) idle() error {
	for _, p := range r.peers {
		r.progress("idle: %s", p.name)
		for _, measure := range []func(peer) error{r.idleConns, r.idleStreams} {
			if err := measure(p); err != nil && !errors.Is(err, errCannot) {
				if err := r.failed("idle", p.name, err); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// idleConns measures each end of a connection: grid's in a mesh, whose managers count as well,
// others in pairs.
func (r *run) idleConns(p peer) error {
	before := takeUse()
	var closers []func() error
	defer func() {
		for _, c := range closers {
			c()
		}
	}()
	ends := 0
	if p.name == "grid" {
		m, err := newGridMesh(idleMesh, config{})
		if err != nil {
			return err
		}
		closers = append(closers, m.close)
		ends = idleMesh * (idleMesh - 1)
	} else {
		for range idlePairs {
			pr, err := p.start(config{callers: 1})
			if err != nil {
				return err
			}
			closers = append(closers, pr.close)
			c, err := pr.caller(0)
			if err != nil {
				return err
			}
			if err := c.echo(pattern(smallPayload)); err != nil { // it may connect only now
				return err
			}
			ends += 2
		}
	}
	r.use(takeUse().since(before), ends, "conn", p.name)
	return nil
}

// idleStreams measures both ends of a stream together.
func (r *run) idleStreams(p peer) error {
	err := r.idleStreamsOf(p, "stream", func(pr pair) (idler, bool) {
		s, ok := pr.client.(idler)
		return s, ok
	})
	if err != nil || p.name != "grid" {
		return err
	}
	return r.idleStreamsOf(p, "stream-noinput", func(pr pair) (idler, bool) {
		return gridNoInput{pr.client.(*gridClient)}, true
	})
}

func (r *run) idleStreamsOf(p peer, kind string, streams func(pair) (idler, bool)) error {
	pr, err := p.start(config{callers: 1})
	if err != nil {
		return err
	}
	defer pr.close()
	s, ok := streams(pr)
	if !ok {
		return errCannot
	}
	n := idleStreams
	if r.quick || p.name != "grid" && p.name != "grpc" {
		n = idleOthers
	}
	// Some first, so that what the connection itself keeps is not counted, and the runtime has
	// learned how large the stacks of such goroutines are.
	for range n / 10 {
		end, err := s.idle(context.Background())
		if err != nil {
			return err
		}
		defer end()
	}
	before, opened := takeUse(), 0
	for ; opened < n; opened++ {
		end, err := s.idle(context.Background())
		if errors.Is(err, syscall.EMFILE) && opened > 0 {
			break // a peer with a socket for each stream
		}
		if err != nil {
			return err
		}
		defer end()
	}
	r.use(takeUse().since(before), opened, kind, p.name)
	return nil
}

// use is the live heap with the stacks, and the goroutines.
type use struct {
	bytes      float64
	goroutines int
}

func takeUse() use {
	time.Sleep(100 * time.Millisecond) // what is about to end has ended
	for range 3 {
		runtime.GC() // the pools too are emptied by the second
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return use{float64(m.HeapAlloc + m.StackInuse), runtime.NumGoroutine()}
}

func (u use) since(before use) use {
	return use{u.bytes - before.bytes, u.goroutines - before.goroutines}
}

func (r *run) use(u use, n int, kind, peer string) {
	r.figure(u.bytes/float64(n), "bytes", "idle/%s-heap/%s", kind, peer)
	r.figure(float64(u.goroutines)/float64(n), "goroutines", "idle/%s-goroutines/%s", kind, peer)
}
