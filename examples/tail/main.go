// Command tail follows the log files of other servers: one long stream for each, which goes on
// where it was when its link comes back.
//
//	go run ./examples/tail
//
// starts three nodes in one process, of which one follows the files of the others, and checks all
// that comes of it. With -listen, -hosts and -secret it is one node among processes, which serves a
// -file or, without one, follows those of all the others.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	demoTime = time.Minute
	poll     = 50 * time.Millisecond
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "tail: %v\n", err)
		os.Exit(1)
	}
}

// run is the program. Of the demonstration it returns an error unless all that was checked held.
func run(ctx context.Context, args []string, w io.Writer) error {
	fl := flag.NewFlagSet("tail", flag.ContinueOnError)
	listen := fl.String("listen", "", "run as one node, and listen at this `address`: http:// and it must be in -hosts")
	hosts := fl.String("hosts", "", "base `URLs` of all nodes, separated by commas")
	secret := fl.String("secret", "", "`key` that all nodes share, 16 characters or more")
	file := fl.String("file", "", "the `log` of this node; without one it follows those of the others")
	if err := fl.Parse(args); err != nil {
		return err
	}
	if *listen == "" {
		if fl.NFlag()+fl.NArg() > 0 {
			return errors.New("-hosts, -secret and -file need -listen (see -help)")
		}
		ctx, cancel := context.WithTimeout(ctx, demoTime)
		defer cancel()
		return demo(ctx, w)
	}
	all := strings.Split(*hosts, ",")
	local := "http://" + *listen
	if !slices.Contains(all, local) || len(*secret) < 16 || fl.NArg() > 0 {
		return errors.New("-listen needs -hosts with its URL, and a -secret of 16 characters or more (see -help)")
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	n, err := startNode(*listen, local, l, all, *secret, &source{path: *file, poll: poll}, nil)
	if err != nil {
		return err
	}
	defer n.stop()
	if *file == "" {
		n.followAll(ctx, w)
	} else if _, err := os.Stat(*file); err != nil {
		fmt.Fprintf(w, "%v: it is served once it is there\n", err)
	}
	<-ctx.Done()
	return nil
}

// followAll prints the lines of all others, until ctx ends.
func (n *node) followAll(ctx context.Context, w io.Writer) {
	var mu sync.Mutex // of w
	var wg sync.WaitGroup
	for _, host := range n.m.Targets() {
		name := strings.TrimPrefix(host, "http://")
		show := func(line []byte) error {
			mu.Lock()
			defer mu.Unlock()
			_, err := fmt.Fprintf(w, "%s: %s\n", name, line)
			return err
		}
		wg.Go(func() {
			err := (&follower{conn: n.m.Connection(host)}).run(ctx, show)
			if ctx.Err() == nil {
				show(fmt.Append(nil, "not followed any more: ", err))
			}
		})
	}
	wg.Wait()
}
