// Command bench measures grid side by side with what people would use instead.
//
// Every peer runs as its own documentation says, client and server in this process, over TCP on the
// loopback interface. Peers take turns, round by round, so that what else the machine does meets
// all of them; medians are reported.
//
//	go run .                                    everything, some minutes; writes ../docs/benchmarks
//	go run . -quick                             the same, less exact, in under a minute
//	go run . -peers grid,grpc -shapes unary     what one asks for
//	go run . -shapes idle -out ../docs/benchmarks -merge    one shape anew
package main

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"
)

// run is one run of the command.
type run struct {
	peers                []peer
	rounds               int
	round                time.Duration
	quick                bool
	long                 time.Duration // that the long overload lasts
	serverTLS, clientTLS *tls.Config
	report               report
	terminal             bool
}

func main() {
	if starMain() {
		return
	}
	if err := benchmark(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func benchmark() (err error) {
	var (
		quick     = flag.Bool("quick", false, "shorter and fewer rounds: under a minute, less exact")
		peerList  = flag.String("peers", "", "comma-separated names of peers; all if empty")
		shapeList = flag.String("shapes", "", "comma-separated names of shapes; all if empty")
		rounds    = flag.Int("rounds", 0, "rounds of each measurement (default 5, with -quick 3)")
		round     = flag.Duration("round", 0, "length of a round (default 200ms, with -quick 15ms)")
		long      = flag.Duration("overload", 0, "length of the long overload (default 1m, with -quick 1s)")
		out       = flag.String("out", "", "folder for the report and its charts (default ../docs/benchmarks for a full run, else none)")
		merge     = flag.Bool("merge", false, "keep what the report in -out has of other shapes")
		profile   = profileFlags()
	)
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	r := &run{rounds: 5, round: 200 * time.Millisecond, quick: *quick, long: time.Minute}
	if *quick {
		r.rounds, r.round, r.long = 3, 15*time.Millisecond, time.Second
	}
	if *long != 0 {
		r.long = *long
	}
	if *rounds != 0 {
		r.rounds = *rounds
	}
	if *round != 0 {
		r.round = *round
	}
	if r.rounds < 1 || r.round < time.Millisecond {
		return fmt.Errorf("%d rounds of %v: at least one of 1ms is needed", r.rounds, r.round)
	}
	floors := allFloors()
	r.peers, err = choose("peer", *peerList, append(allPeers(), floors...), func(p peer) string { return p.name })
	if err != nil {
		return err
	}
	chosen, err := choose("shape", *shapeList, shapes, func(s shape) string { return s.name })
	if err != nil {
		return err
	}
	if *out == "" && *peerList == "" && *shapeList == "" && !*quick {
		*out = "../docs/benchmarks"
	}
	if r.serverTLS, r.clientTLS, err = newTLS(); err != nil {
		return err
	}
	if fi, err := os.Stderr.Stat(); err == nil {
		r.terminal = fi.Mode()&os.ModeCharDevice != 0
	}
	r.report = newReport(r, floors)

	// Ctrl-C ends it at once; a profile would be lost.
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	go func() {
		<-interrupted
		fmt.Fprintln(os.Stderr)
		os.Exit(130)
	}()
	stop, err := profile.start()
	defer func() { err = errors.Join(err, stop()) }()
	if err != nil {
		return err
	}
	for _, s := range chosen {
		start, results, figures := time.Now(), len(r.report.Results), len(r.report.Figures)
		if err := s.run(r); err != nil {
			r.clear()
			return err
		}
		r.clear()
		part := report{Results: r.report.Results[results:], Figures: r.report.Figures[figures:]}
		if err := part.writeLines(os.Stdout); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%s: %.1f s\n", s.name, time.Since(start).Seconds())
	}
	r.report.Took = time.Since(r.report.Made)
	if *out == "" {
		return nil
	}
	if *merge {
		if err := r.report.merge(*out, chosen); err != nil {
			return err
		}
	}
	return r.report.writeFiles(*out)
}

// choose returns those of all whose names are in a list; all of them for an empty one.
func choose[T any](what, list string, all []T, name func(T) string) ([]T, error) {
	if list == "" {
		return all, nil
	}
	wanted := strings.Split(list, ",")
	var chosen []T
	for _, v := range all {
		if i := slices.Index(wanted, name(v)); i >= 0 {
			wanted = slices.Delete(wanted, i, i+1)
			chosen = append(chosen, v)
		}
	}
	if len(wanted) > 0 {
		var names []string
		for _, v := range all {
			names = append(names, name(v))
		}
		return nil, fmt.Errorf("unknown %s %q; there are %s", what, wanted[0], strings.Join(names, ", "))
	}
	return chosen, nil
}

// has reports whether a peer takes part.
func (r *run) has(name string) bool {
	return slices.ContainsFunc(r.peers, func(p peer) bool { return p.name == name })
}

// progress shows what is being measured, on one line of a terminal.
func (r *run) progress(format string, a ...any) {
	if r.terminal {
		fmt.Fprintf(os.Stderr, "\r\x1b[K"+format, a...)
	}
}

func (r *run) clear() {
	if r.terminal {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
}
