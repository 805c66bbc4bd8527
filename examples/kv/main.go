// Command kv is a replicated store of keys and values: three nodes or more, which agree by raft over
// grid, with an HTTP API that any of them answers. See its README.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hashicorp/raft"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridraft"
	"github.com/gridrpc/grid/gridstatus"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "kv:", err)
		os.Exit(1)
	}
}

// run is a node, until ctx ends.
func run(ctx context.Context, args []string, w io.Writer) (err error) {
	fl := flag.NewFlagSet("kv", flag.ContinueOnError)
	listen := fl.String("listen", "127.0.0.1:9001", "`address` to listen at")
	join := fl.String("join", "", "base `URL` of a node whose cluster to join, if this one is in none; without it that is a new cluster")
	secret := fl.String("secret", "not a secret at all", "`key` that all nodes share, of 16 characters or more")
	dir := fl.String("dir", "", "`folder` of the node's log (required)")
	if err := fl.Parse(args); err != nil {
		return err
	}
	if *dir == "" {
		return errors.New("-dir is required (see -help)")
	}

	if err := os.MkdirAll(*dir, 0o700); err != nil {
		return err
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	defer l.Close()

	names := gridraft.HandlerNames(raftID)
	maps.Copy(names, map[grid.HandlerID]string{forwardID: "forward", statusID: "status"})
	local := "http://" + *listen
	var n *node
	var status *gridstatus.Status
	m, err := grid.NewManager(context.Background(), grid.ManagerOptions{
		Local: local,
		Hosts: []string{local},
		// Whoever has the key is taken in.
		AcceptHost:   func(context.Context, string, *http.Request) error { return nil },
		MaxHosts:     maxHosts,
		SharedSecret: [][]byte{[]byte(*secret)},
		HandlerNames: names,
		Register: func(m *grid.Manager) (err error) {
			if status, err = gridstatus.New(m, statusID, gridstatus.Options{Title: "kv"}); err != nil {
				return err
			}
			n, err = startNode(m, *dir, *join == "")
			return err
		},
	})
	if err != nil {
		return err
	}
	defer m.Close()
	stop := n.stop
	defer func() { err = errors.Join(err, stop()) }()
	go n.tellLeaders(w)

	mux := http.NewServeMux()
	mux.Handle(grid.RoutePath, m.Handler())
	mux.Handle("/status", status)
	n.routes(mux)
	web := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- web.Serve(l) }()
	fmt.Fprintf(w, "process %d listens at %s\n", os.Getpid(), m.HostName())

	if err := n.join(ctx, *join); err != nil && ctx.Err() == nil {
		return err
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	// Another node leads, then what clients have asked for is answered, with its help, then raft and
	// the links may end. No request fails.
	n.handOver()
	last, cancel := context.WithTimeout(context.Background(), requestTime)
	defer cancel()
	err = web.Shutdown(last)
	stop = func() error { return nil }
	return errors.Join(err, n.stop(), m.Shutdown(last))
}

// maxHosts bounds how many hosts the key lets in.
const maxHosts = 16

// tellLeaders prints who leads, whenever that changes.
func (n *node) tellLeaders(w io.Writer) {
	changes := make(chan raft.Observation, 16)
	n.raft.RegisterObserver(raft.NewObserver(changes, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	}))
	for c := range changes {
		if leader := c.Data.(raft.LeaderObservation).LeaderAddr; leader != "" {
			fmt.Fprintln(w, "leader is", leader)
		} else {
			fmt.Fprintln(w, "no leader")
		}
	}
}
