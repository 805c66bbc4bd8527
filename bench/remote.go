package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
)

// serveCommand is the only argument with which this command is the server of a peer: it reads an
// order, and then questions, as JSON from its input, answers to its output, and ends with its
// input.
const serveCommand = "serve"

// order says what to serve. It is a config, as far as one can be sent.
type order struct {
	Peer     string
	Callers  int
	Limit    int
	Spins    int
	Client   string
	Identity *identity
}

// question is what a client's process asks the server's.
type question string

const (
	askAllocs question = "allocs"
	askUse    question = "use"
)

// answer is that to an order or to a question.
type answer struct {
	Error  string `json:",omitempty"`
	Cannot bool   `json:",omitempty"` // with an error: it is errCannot
	Addr   string `json:",omitempty"`
	Allocs allocs
	Use    footprint
}

// allocs is what a process has allocated so far.
type allocs struct{ Objects, Bytes uint64 }

func takeAllocs() allocs {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return allocs{m.Mallocs, m.TotalAlloc}
}

// serveOrder serves what it is ordered to, until in ends.
func serveOrder(in io.Reader, out io.Writer) (err error) {
	questions, answers := json.NewDecoder(in), json.NewEncoder(out)
	var o order
	if err := questions.Decode(&o); err != nil {
		return err
	}
	s, err := o.serve()
	if err != nil {
		return answers.Encode(answer{Error: err.Error(), Cannot: errors.Is(err, errCannot)})
	}
	defer func() { err = errors.Join(err, s.close()) }()
	for reply := (answer{Addr: s.addr()}); ; {
		if err := answers.Encode(reply); err != nil {
			return err
		}
		var q question
		if err := questions.Decode(&q); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		switch q {
		case askAllocs:
			reply = answer{Allocs: takeAllocs()}
		case askUse:
			reply = answer{Use: takeFootprint()}
		default:
			reply = answer{Error: fmt.Sprintf("unknown question %q", q)}
		}
	}
}

func (o order) serve() (server, error) {
	peers := everyPeer()
	i := slices.IndexFunc(peers, func(p peer) bool { return p.name == o.Peer })
	if i < 0 {
		return nil, fmt.Errorf("unknown peer %q", o.Peer)
	}
	c := config{callers: o.Callers, limit: o.Limit, spins: o.Spins, client: o.Client}
	c.work = func() { spin(c.spins) }
	if o.Identity != nil {
		if err := o.Identity.addTo(&c); err != nil {
			return nil, err
		}
	}
	return peers[i].serve(c)
}

// remote is a server in a process of its own.
type remote struct {
	address string
	cmd     *exec.Cmd

	mu  sync.Mutex // one question at a time
	in  io.WriteCloser
	out *json.Decoder
}

func newRemote(peer string, c config) (server, error) {
	path, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r := &remote{cmd: exec.Command(path, serveCommand)}
	r.cmd.Stderr = os.Stderr
	if r.in, err = r.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	r.out = json.NewDecoder(out)
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	reply, err := r.ask(order{peer, c.callers, c.limit, c.spins, c.client, c.identity})
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	r.address = reply.Addr
	return r, nil
}

// ask sends an order or a question.
func (r *remote) ask(v any) (reply answer, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := json.NewEncoder(r.in).Encode(v); err != nil {
		return answer{}, fmt.Errorf("server's process: %w", err)
	}
	if err := r.out.Decode(&reply); err != nil {
		return answer{}, fmt.Errorf("server's process: %w", err)
	}
	switch {
	case reply.Cannot:
		return answer{}, errCannot
	case reply.Error != "":
		return answer{}, fmt.Errorf("server's process: %s", reply.Error)
	}
	return reply, nil
}

func (r *remote) addr() string { return r.address }

// close lets the process end, and waits for that.
func (r *remote) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(r.in.Close(), r.cmd.Wait())
}

// allocs is what both ends have allocated, and whatever else is in their processes.
func (p pair) allocs() (allocs, error) {
	a := takeAllocs()
	if r, ok := p.server.(*remote); ok {
		reply, err := r.ask(askAllocs)
		if err != nil {
			return allocs{}, err
		}
		a.Objects, a.Bytes = a.Objects+reply.Allocs.Objects, a.Bytes+reply.Allocs.Bytes
	}
	return a, nil
}

// footprint is what the processes of both ends take.
func (p pair) footprint() (footprint, error) {
	f := takeFootprint()
	if r, ok := p.server.(*remote); ok {
		reply, err := r.ask(askUse)
		if err != nil {
			return footprint{}, err
		}
		f = f.plus(reply.Use)
	}
	return f, nil
}
