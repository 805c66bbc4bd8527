package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gridrpc/grid"
)

// starConnect is how long all links may take.
const starConnect = time.Minute

// starProcess is one of the processes: the hub, which is one manager, or the peers, which are as
// many as there are and know nobody but the hub.
type starProcess struct {
	addr     string
	handlers atomic.Pointer[map[string]http.Handler] // of the managers, by the host that was asked for
	managers []*grid.Manager
	begin    chan struct{} // closed when they may connect
	before   use           // before there was any
	hub      string        // its own name, of the hub itself
}

// starServe listens, and returns what does what such a process is asked for.
func starServe(role, addr string) (do func(starAsk) (starAnswer, error), err error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	p := &starProcess{addr: addr, begin: make(chan struct{})}
	p.handlers.Store(new(map[string]http.Handler))
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h := (*p.handlers.Load())[r.Host]; h != nil {
			h.ServeHTTP(w, r)
			return
		}
		http.Error(w, "no such host yet", http.StatusServiceUnavailable)
	}))
	if role == "hub" {
		p.hub = "http://" + addr
		p.before = takeUse()
		return p.doHub, nil
	}
	return p.doPeers, nil
}

// add makes a manager. It may connect when begin is closed.
func (p *starProcess) add(local string, others ...string) error {
	m, err := grid.NewManager(context.Background(), grid.ManagerOptions{
		Local:        local,
		Hosts:        append(others, local),
		AuthFn:       func() string { return gridToken },
		AuthToken:    gridAuth,
		Logger:       slog.New(slog.DiscardHandler),
		BlockConnect: p.begin,
	})
	if err != nil {
		return err
	}
	p.managers = append(p.managers, m)
	return registerGridHandlers(m, config{})
}

// serve lets the managers be dialled.
func (p *starProcess) serve() {
	all := make(map[string]http.Handler, len(p.managers))
	for _, m := range p.managers {
		all[strings.TrimPrefix(m.HostName(), "http://")] = m.Handler()
	}
	p.handlers.Store(&all)
}

func (p *starProcess) doPeers(a starAsk) (starAnswer, error) {
	switch a.Do {
	case "connect":
		for _, host := range a.Hosts {
			if err := p.add(host, a.Hub); err != nil {
				return starAnswer{}, err
			}
		}
		p.serve()
		if !a.Wait {
			close(p.begin)
		}
		return starAnswer{}, nil
	case "go":
		close(p.begin)
		return starAnswer{}, nil
	}
	return starAnswer{}, fmt.Errorf("the peers can't %q", a.Do)
}

func (p *starProcess) doHub(a starAsk) (starAnswer, error) {
	switch a.Do {
	case "connect":
		start, cpu := time.Now(), cpuTime()
		if err := p.add(p.hub, a.Hosts...); err != nil {
			return starAnswer{}, err
		}
		p.serve()
		if a.Wait {
			return starAnswer{}, nil
		}
		return p.connect(start, cpu)
	case "go":
		return p.connect(time.Now(), cpuTime())
	case "idle":
		u := takeUse().since(p.before)
		time.Sleep(max(2*time.Second, a.For)) // the collections are over, and one side of each link pings
		start, cpu := time.Now(), cpuTime()
		time.Sleep(a.For)
		answer := starAnswer{CPU: cpuTime() - cpu, Took: time.Since(start), Heap: u.bytes, Goroutines: float64(u.goroutines)}
		var err error
		answer.RSS, err = residentSize()
		return answer, err
	case "calls":
		conns, payload := p.conns(), pattern(smallPayload)
		return p.times(a.Rounds*len(conns), func(i int) error { return conns[i%len(conns)].echo(payload) })
	case "broadcast":
		conns, payload := p.conns(), pattern(smallPayload)
		errs := make(chan error, len(conns))
		return p.times(a.Rounds, func(int) error {
			for _, c := range conns {
				go func() { errs <- c.echo(payload) }()
			}
			var all error
			for range conns {
				all = errors.Join(all, <-errs)
			}
			return all
		})
	}
	return starAnswer{}, fmt.Errorf("the hub can't %q", a.Do)
}

// connect lets the hub connect, and waits until all are there.
func (p *starProcess) connect(start time.Time, cpu time.Duration) (starAnswer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), starConnect)
	defer cancel()
	close(p.begin)
	for _, c := range p.conns() {
		if err := c.conn.WaitForConnect(ctx); err != nil {
			return starAnswer{}, err
		}
	}
	return starAnswer{Took: time.Since(start), CPU: cpuTime() - cpu}, nil
}

func (p *starProcess) conns() (all []gridCaller) {
	for _, host := range p.managers[0].Targets() {
		all = append(all, gridCaller{p.managers[0].Connection(host)})
	}
	return all
}

// times measures rounds of f, after some that count for nothing.
func (p *starProcess) times(rounds int, f func(i int) error) (a starAnswer, err error) {
	if _, err := sortedTimes(rounds/5, f); err != nil {
		return a, err
	}
	cpu := cpuTime()
	a.Times, err = sortedTimes(rounds, f)
	a.CPU = cpuTime() - cpu
	return a, err
}

// residentSize is what the process has of the machine's memory, in bytes; 0 where the system does
// not tell.
func residentSize() (float64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, nil
	}
	_, text, _ := strings.Cut(string(b), "VmRSS:")
	var kb float64
	_, err = fmt.Sscan(text, &kb)
	return kb * 1024, err
}
