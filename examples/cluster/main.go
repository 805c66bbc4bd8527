// Command cluster shows what grid is for: servers that ask each other small things and stream each
// other long ones.
//
//	go run ./examples/cluster
//
// starts three of them in one process, uses them, cuts a connection between two, and checks all
// that comes of it. With -listen, -hosts and -secret it is one server of a cluster of processes,
// and with -dynamic of one that servers join and leave; see -help.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const usage = `A cluster of servers that ask each other about their disks and files.

Three nodes in this process, which show what grid does and check it; with -http
they go on to serve the status page:

  cluster [-dir directory] [-http 127.0.0.1:8001]

One node of a cluster of processes; the same on each, but for -listen:

  cluster -listen 127.0.0.1:9001 -secret our-cluster-secret \
      -hosts http://127.0.0.1:9001,http://127.0.0.1:9002,http://127.0.0.1:9003

One node of a cluster that nodes join and leave. The first names itself alone,
each other one itself and any nodes to join through:

  cluster -dynamic -listen 127.0.0.1:9001 -secret our-cluster-secret \
      -hosts http://127.0.0.1:9001
  cluster -dynamic -listen 127.0.0.1:9002 -secret our-cluster-secret \
      -hosts http://127.0.0.1:9002,http://127.0.0.1:9001

A node that is interrupted tells the others that it leaves. One that is killed stays
one of their hosts, shown as not connected, until it comes back under its URL, through
any of them: also the first one has to name another then. To notice that a node has
failed, and drop it, there is package gridmember, which does that by gossip.

With -http 127.0.0.1:8001 as well, a node answers there, in JSON but for the page:

  /                                  a page on the whole cluster, as all its nodes see it
  /status                            the links to the others, and what is wrong with them
  /disk/127.0.0.1:9002?dir=/tmp      another node's disk, asked now
  /tree/127.0.0.1:9002               another node's tree, streamed now
  /tree/127.0.0.1:9002?forever=true  over and over

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks, a second one ends the process.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program, until ctx ends. It returns the exit code: 0 only if everything that was
// checked held, 2 for a wrong command line.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	m, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "cluster: %v (see -help)\n", err)
		return 2
	}
	r := newReport(stdout)
	if m.listen != "" {
		err = m.run(ctx, r)
	} else {
		err = demo(ctx, r, m.dir, m.http)
	}
	if err != nil {
		fmt.Fprintf(stderr, "cluster: %v\n", err)
		return 1
	}
	return 0
}

// parse reads the command line. Without -listen only dir and http are set.
func parse(args []string, stderr io.Writer) (*member, error) {
	m := &member{}
	fl := flag.NewFlagSet("cluster", flag.ContinueOnError)
	fl.SetOutput(stderr)
	fl.Usage = func() {
		fmt.Fprint(stderr, usage)
		fl.PrintDefaults()
	}
	fl.StringVar(&m.listen, "listen", "", "run as one node, and listen at this `address`")
	hosts := fl.String("hosts", "", "base `URLs` of all nodes, separated by commas; with -dynamic of this one and of those to join through")
	fl.StringVar(&m.local, "local", "", "the `URL` in -hosts that is this node (default: that of -listen)")
	fl.StringVar(&m.secret, "secret", "", "`key` that all nodes share, 16 characters or more")
	fl.StringVar(&m.dir, "dir", "", "`directory` whose tree is streamed (default: the sources of the Go installation)")
	fl.BoolVar(&m.once, "once", false, "as one node: end when all nodes are done, instead of serving on")
	fl.BoolVar(&m.dynamic, "dynamic", false, "as one node: join through the others of -hosts, if there are any, and let others join")
	fl.StringVar(&m.http, "http", "", "answer HTTP at this `address`, to all who reach it")
	fl.DurationVar(&m.ping, "ping", 0, "as one node: ping the others at this `interval`; one that is dead is noticed within two (default: 10s)")
	if err := fl.Parse(args); err != nil {
		return nil, err
	}
	for h := range strings.SplitSeq(*hosts, ",") {
		if h = strings.TrimSpace(h); h != "" {
			m.hosts = append(m.hosts, h)
		}
	}
	switch {
	case fl.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q", fl.Arg(0))
	case m.listen == "" && (len(m.hosts) > 0 || m.local != "" || m.secret != "" || m.dynamic || m.once || m.ping != 0):
		return nil, errors.New("-hosts, -local, -secret, -dynamic, -once and -ping need -listen")
	case m.dynamic && m.once:
		return nil, errors.New("-once and -dynamic exclude each other: who is to be done is not known")
	case m.dynamic && len(m.hosts) == 0:
		return nil, errors.New("-dynamic needs -hosts with the URL of this node")
	case m.listen != "" && !m.dynamic && len(m.hosts) < 2:
		return nil, errors.New("-listen needs -hosts with two URLs or more")
	case m.listen != "" && len(m.secret) < 16:
		return nil, errors.New("-listen needs a -secret of 16 characters or more")
	case m.local != "" && !slices.Contains(m.hosts, m.local):
		return nil, fmt.Errorf("-local %s is not in -hosts", m.local)
	}
	for _, h := range m.hosts {
		if !strings.HasPrefix(h, "http://") {
			return nil, fmt.Errorf("-hosts: %q does not begin with http://", h)
		}
	}
	var err error
	m.dir, err = openDir(m.dir)
	return m, err
}

// openDir checks the directory to stream.
func openDir(dir string) (string, error) {
	if dir == "" {
		if dir = goSource(); dir == "" {
			return "", errors.New("no Go installation was found, name a directory with -dir")
		}
	}
	// A walk would take a link for a single entry.
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", fmt.Errorf("-dir: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("-dir: %w", err)
	}
	if len(entries) == 0 {
		return "", fmt.Errorf("-dir: %s is empty", dir)
	}
	return dir, nil
}
