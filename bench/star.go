package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/zeebo/xxh3"
)

// starSizes are how many links the hub has.
var starSizes = []int{1000, 4000}

// starRole is the environment variable that makes this command a process of a star.
const starRole = "GRID_BENCH_STAR"

// star measures one server with links to many others, which are in another process: so the CPU
// time and the memory of the server are its own.
func (r *run) star() error {
	if !r.has("grid") {
		return nil
	}
	sizes, idle := starSizes, 20*time.Second
	if r.quick {
		sizes, idle = []int{100}, time.Second
	}
	for _, n := range sizes {
		if err := r.starOf(n, idle); err != nil {
			return fmt.Errorf("star of %d: %w", n, err)
		}
	}
	return nil
}

func (r *run) starOf(n int, idle time.Duration) error {
	figure := func(v float64, unit, name string) { r.figure(v, unit, "star/%d-%s/grid", n, name) }
	ms := func(d time.Duration, name string) { figure(float64(d.Microseconds())/1e3, "ms", name) }

	r.progress("star: %d links: start", n)
	s, err := newStar(n, false)
	if err != nil {
		return err
	}
	defer s.close()
	began, err := s.connect()
	if err != nil {
		return err
	}
	ms(began.Took, "start")
	ms(began.CPU, "start-cpu")

	r.progress("star: %d links: idle", n)
	rest, err := s.hub.ask(starAsk{Do: "idle", For: idle})
	if err != nil {
		return err
	}
	figure(rest.Heap/float64(n), "bytes", "link-heap")
	figure(rest.Goroutines/float64(n), "goroutines", "link-goroutines")
	figure(rest.RSS, "bytes", "rss")
	figure(100*rest.CPU.Seconds()/rest.Took.Seconds(), "%", "idle-cpu")

	r.progress("star: %d links: calls", n)
	calls, err := s.hub.ask(starAsk{Do: "calls", Rounds: r.rounds})
	if err != nil {
		return err
	}
	ms(quantile(calls.Times, 0.5), "call-p50")
	ms(quantile(calls.Times, 0.99), "call-p99")
	all, err := s.hub.ask(starAsk{Do: "broadcast", Rounds: 10 * r.rounds})
	if err != nil {
		return err
	}
	ms(quantile(all.Times, 0.5), "broadcast-p50")
	ms(quantile(all.Times, 0.99), "broadcast-p99")
	ms(all.CPU/time.Duration(len(all.Times)), "broadcast-cpu")

	r.progress("star: %d links: restart", n)
	killed := time.Now()
	if err := s.restartHub(); err != nil {
		return err
	}
	again, err := s.hub.ask(starAsk{Do: "connect", Hosts: s.hosts})
	if err != nil {
		return err
	}
	ms(time.Since(killed), "restart")
	ms(again.CPU, "restart-cpu")
	s.close()

	r.progress("star: %d links: all dial at once", n)
	rush, err := newStar(n, true)
	if err != nil {
		return err
	}
	defer rush.close()
	came, err := rush.connect()
	if err != nil {
		return err
	}
	figure(float64(n)/came.Took.Seconds(), "links/s", "rush")
	ms(came.CPU, "rush-cpu")
	return nil
}

// quantile is that of times which are sorted.
func quantile(times []time.Duration, q float64) time.Duration {
	if len(times) == 0 {
		return 0
	}
	return times[min(len(times)-1, int(q*float64(len(times))))]
}

// starProcesses are the hub and its peers.
type starProcesses struct {
	hubHost    string
	hosts      []string // of the peers
	hub, peers *starChild
	rush       bool
}

// newStar starts both processes. Nothing is connected yet. In a rush all peers have names of hosts
// that dial the hub; else about half of them are dialled.
func newStar(n int, rush bool) (s *starProcesses, err error) {
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	s = &starProcesses{hubHost: fmt.Sprintf("http://127.0.0.1:%d", ports[0]), rush: rush}
	rng := rand.New(rand.NewPCG(1, 2))
	for taken := make(map[uint32]bool); len(s.hosts) < n; {
		// One listener has them all, by the address that was dialled.
		at := rng.Uint32N(1<<24-1<<17) + 1<<16
		host := fmt.Sprintf("http://127.%d.%d.%d:%d", at>>16, at>>8&255, at&255, ports[1])
		if taken[at] || rush && !dialsFirst(host, s.hubHost) {
			continue
		}
		taken[at] = true
		s.hosts = append(s.hosts, host)
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.peers, err = startChild("peers", fmt.Sprintf("0.0.0.0:%d", ports[1])); err != nil {
		return nil, err
	}
	return s, s.startHub()
}

// dialsFirst reports whether host a dials host b, as docs/protocol.md has it.
func dialsFirst(a, b string) bool { return xxh3.HashString(a+b) < xxh3.HashString(b+a) }

func freePorts(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", "0.0.0.0:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func (s *starProcesses) startHub() (err error) {
	s.hub, err = startChild("hub", strings.TrimPrefix(s.hubHost, "http://"))
	return err
}

// restartHub ends the hub as a crash would, and starts another.
func (s *starProcesses) restartHub() error {
	s.hub.close()
	return s.startHub()
}

// connect connects all: both sides begin at once, but that in a rush the hub is there before the
// peers, which are there before they dial.
func (s *starProcesses) connect() (starAnswer, error) {
	peers := starAsk{Do: "connect", Hosts: s.hosts, Hub: s.hubHost, Wait: s.rush}
	hub := starAsk{Do: "connect", Hosts: s.hosts}
	if !s.rush {
		if err := errors.Join(s.peers.tell(peers), s.hub.tell(hub)); err != nil {
			return starAnswer{}, err
		}
		if _, err := s.peers.hear(); err != nil {
			return starAnswer{}, err
		}
		return s.hub.hear()
	}
	if _, err := s.peers.ask(peers); err != nil {
		return starAnswer{}, err
	}
	hub.Wait = true
	if _, err := s.hub.ask(hub); err != nil {
		return starAnswer{}, err
	}
	if err := errors.Join(s.hub.tell(starAsk{Do: "go"}), s.peers.tell(starAsk{Do: "go"})); err != nil {
		return starAnswer{}, err
	}
	if _, err := s.peers.hear(); err != nil {
		return starAnswer{}, err
	}
	return s.hub.hear()
}

func (s *starProcesses) close() {
	s.hub.close()
	s.peers.close()
}

// starAsk is what a process is asked to do.
type starAsk struct {
	Do     string
	Hub    string   `json:",omitempty"`
	Hosts  []string `json:",omitempty"` // of the peers
	Wait   bool     `json:",omitempty"` // until "go" comes, with all that connects
	Rounds int      `json:",omitempty"`
	For    time.Duration
}

// starAnswer is what has come of it.
type starAnswer struct {
	Err        string          `json:",omitempty"`
	Took, CPU  time.Duration   // the latter of the process
	Times      []time.Duration `json:",omitempty"` // sorted
	Heap, RSS  float64
	Goroutines float64
}

// starChild is a process of a star.
type starChild struct {
	cmd *exec.Cmd
	in  io.Closer
	enc *json.Encoder
	dec *json.Decoder
}

// startChild starts this command as a process of a star that listens at addr, and waits until it
// does.
func startChild(role, addr string) (*starChild, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &starChild{cmd: exec.Command(self)}
	c.cmd.Env = append(os.Environ(), starRole+"="+role+" "+addr)
	c.cmd.Stderr = os.Stderr
	in, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	c.in, c.enc, c.dec = in, json.NewEncoder(in), json.NewDecoder(out)
	if _, err := c.hear(); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *starChild) tell(a starAsk) error { return c.enc.Encode(a) }

func (c *starChild) hear() (a starAnswer, err error) {
	if err := c.dec.Decode(&a); err != nil {
		return a, fmt.Errorf("a process of the star has ended: %w", err)
	}
	if a.Err != "" {
		err = errors.New(a.Err)
	}
	return a, err
}

func (c *starChild) ask(a starAsk) (starAnswer, error) {
	if err := c.tell(a); err != nil {
		return starAnswer{}, err
	}
	return c.hear()
}

// close kills the process.
func (c *starChild) close() {
	if c == nil || c.cmd.ProcessState != nil {
		return
	}
	c.cmd.Process.Kill()
	c.in.Close()
	c.cmd.Wait()
}

// starMain is main for a process of a star. It reports false if this is none.
func starMain() bool {
	role, addr, ok := strings.Cut(os.Getenv(starRole), " ")
	if !ok {
		return false
	}
	enc, dec := json.NewEncoder(os.Stdout), json.NewDecoder(os.Stdin)
	do, err := starServe(role, addr)
	if err == nil {
		err = enc.Encode(starAnswer{}) // it listens
	}
	for err == nil {
		var ask starAsk
		if err = dec.Decode(&ask); err != nil {
			break // who has started it is gone
		}
		var answer starAnswer
		if answer, err = do(ask); err == nil {
			err = enc.Encode(answer)
		}
	}
	if err != io.EOF {
		enc.Encode(starAnswer{Err: err.Error()})
	}
	return true
}

// sortedTimes measures rounds of f.
func sortedTimes(rounds int, f func(i int) error) ([]time.Duration, error) {
	times := make([]time.Duration, 0, rounds)
	for i := range rounds {
		start := time.Now()
		if err := f(i); err != nil {
			return nil, err
		}
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	return times, nil
}
