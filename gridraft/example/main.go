// Command example is a replicated store of keys and values: a raft server, its transport over grid
// and an HTTP API, on one port. The README of gridraft shows it with three of them.
//
// What it has is in memory. A server that is killed comes back empty, and gets all from the others;
// one of your own keeps its log and votes on disk, for instance with
// github.com/hashicorp/raft-boltdb.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridraft"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "example:", err)
		os.Exit(1)
	}
}

// run is a server, until ctx ends.
func run(ctx context.Context, args []string, w io.Writer) error {
	fl := flag.NewFlagSet("example", flag.ContinueOnError)
	listen := fl.String("listen", "127.0.0.1:9001", "`address` to listen at")
	join := fl.String("join", "", "base `URL` of a server whose cluster to join; none for a cluster of its own")
	secret := fl.String("secret", "not a secret at all", "`key` that all servers share, of 16 characters or more")
	if err := fl.Parse(args); err != nil {
		return err
	}

	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	defer l.Close()

	// The grid: whoever has the key is taken in as a host.
	local := "http://" + *listen
	s := &server{store: newStore()}
	var trans *gridraft.Transport
	m, err := grid.NewManager(context.Background(), grid.ManagerOptions{
		Local:        local,
		Hosts:        []string{local},
		AcceptHost:   func(context.Context, string, *http.Request) error { return nil },
		MaxHosts:     maxHosts,
		SharedSecret: [][]byte{[]byte(*secret)},
		HandlerNames: gridraft.HandlerNames(firstID),
		Register: func(m *grid.Manager) (err error) {
			if trans, err = gridraft.New(m, gridraft.Options{FirstID: firstID}); err != nil {
				return err
			}
			s.raft, err = startRaft(trans, s.store, *join == "")
			return err
		},
	})
	if err != nil {
		return err
	}
	defer m.Close()
	go tellLeaders(s.raft, w)

	// One HTTP server for the grid and for clients.
	mux := http.NewServeMux()
	mux.Handle(grid.RoutePath, m.Handler())
	mux.HandleFunc("GET /keys/{key}", s.get)
	mux.HandleFunc("PUT /keys/{key}", s.put)
	web := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- web.Serve(l) }()
	fmt.Fprintf(w, "process %d listens at %s\n", os.Getpid(), m.HostName())

	if *join != "" {
		if err := trans.Join(ctx, raft.ServerID(m.HostName()), *join); err != nil && ctx.Err() == nil {
			return errors.Join(err, s.raft.Shutdown().Error())
		}
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	// A leader hands over, so that the others need not wait until they miss it.
	if s.raft.State() == raft.Leader {
		_ = s.raft.LeadershipTransfer().Error()
	}
	err = s.raft.Shutdown().Error()
	last, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(err, m.Shutdown(last), web.Shutdown(last))
}

const (
	// firstID is the first of the handler IDs of raft.
	firstID grid.HandlerID = 100
	// maxHosts bounds how many hosts the key lets in.
	maxHosts = 16
)

// startRaft starts the raft server of a host: alone is for one that is its own cluster at first,
// which others may join.
func startRaft(trans *gridraft.Transport, fsm raft.FSM, alone bool) (*raft.Raft, error) {
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(trans.LocalAddr())
	conf.Logger = hclog.NewNullLogger()
	logs, snaps := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
	if alone {
		me := raft.Server{ID: conf.LocalID, Address: trans.LocalAddr()}
		if err := raft.BootstrapCluster(conf, logs, logs, snaps, trans, raft.Configuration{Servers: []raft.Server{me}}); err != nil {
			return nil, err
		}
	}
	r, err := raft.NewRaft(conf, fsm, logs, logs, snaps, trans)
	if err != nil {
		return nil, err
	}
	return r, trans.ServeJoin(r)
}

// tellLeaders prints who leads, whenever that changes.
func tellLeaders(r *raft.Raft, w io.Writer) {
	changes := make(chan raft.Observation, 16)
	r.RegisterObserver(raft.NewObserver(changes, false, func(o *raft.Observation) bool {
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
