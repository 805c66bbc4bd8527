// Command bench measures grid side by side with what people would use instead.
//
// Every peer runs as its own documentation says, over TCP on the loopback interface: with client and
// server in this process, and again with an end in each of two, for which the command starts itself
// as the server. Peers take turns, round by round, so that what else the machine does meets all of
// them; medians are reported.
//
//	go run .                                    everything, some 20 minutes; writes ../docs/benchmarks
//	go run . -quick                             the same, less exact, in two minutes
//	go run . -peers grid,grpc -shapes unary     what one asks for
//	go run . -processes 2                       only with an end in each process
//	go run . -from ../docs/benchmarks/results.json          the tables and charts of a run anew
//	go run . -shapes idle -out ../docs/benchmarks -merge    one shape anew
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// defaultOut is the folder of the report, seen from that of this module.
const defaultOut = "../docs/benchmarks"

// run is one run of the command.
type run struct {
	peers     []peer
	rounds    int
	round     time.Duration
	quick     bool
	long      time.Duration // that the long overload lasts
	processes []int         // how many, of which each shape is measured with all
	identity  *identity     // for calls over TLS
	report    report
	terminal  bool
	watchdog  *time.Timer // ends the process when a measurement hangs
}

func main() {
	if starMain() {
		return
	}
	if slices.Equal(os.Args[1:], []string{serveCommand}) {
		signal.Ignore(os.Interrupt) // the one that started it ends it
		if err := serveOrder(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "bench: server:", err)
			os.Exit(1)
		}
		return
	}
	if err := benchmark(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func benchmark() (err error) {
	var (
		quick     = flag.Bool("quick", false, "shorter and fewer rounds: two minutes, less exact")
		peerList  = flag.String("peers", "", "comma-separated names of peers; all if empty")
		shapeList = flag.String("shapes", "", "comma-separated names of shapes; all if empty")
		rounds    = flag.Int("rounds", 0, "rounds of each measurement (default 5, with -quick 3)")
		round     = flag.Duration("round", 0, "length of a round (default 200ms, with -quick 15ms)")
		long      = flag.Duration("overload", 0, "length of the long overload (default 1m, with -quick 1s)")
		out       = flag.String("out", "", "folder for the report and its charts (default ../docs/benchmarks for a full run, else none)")
		processes = flag.String("processes", "1,2", "with both ends in one process, with an end in each of two, or both")
		merge     = flag.Bool("merge", false, "keep what the report in -out has of other shapes")
		from      = flag.String("from", "", "measure nothing, but write the report in -out anew from this results.json")
		profile   = profileFlags()
	)
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if *from != "" {
		return rewrite(*from, cmp.Or(*out, defaultOut))
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
	switch *processes {
	case "1":
		r.processes = []int{1}
	case "2":
		r.processes = []int{2}
	case "1,2":
		r.processes = []int{1, 2}
	default:
		return fmt.Errorf("-processes is 1, 2 or 1,2, not %q", *processes)
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
		*out = defaultOut
	}
	if r.identity, err = newIdentity(); err != nil {
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
			r.fail(err)
		}
		r.clear()
		part := report{Results: r.report.Results[results:], Figures: r.report.Figures[figures:]}
		if err := part.writeLines(os.Stdout); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%s: %.1f s\n", s.name, time.Since(start).Seconds())
	}
	r.report.Took = time.Since(r.report.Made)
	if n := len(r.report.Failed); n > 0 {
		defer func() { err = errors.Join(err, fmt.Errorf("%d measurements failed", n)) }()
	}
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

// fail notes that something could not be measured. The rest still is: a run takes long.
func (r *run) fail(err error) {
	r.clear()
	fmt.Fprintln(os.Stderr, "bench:", err)
	r.report.Failed = append(r.report.Failed, err.Error())
}

// longest is more than any one measurement takes.
const longest = 5 * time.Minute

// progress shows what is being measured, on one line of a terminal.
func (r *run) progress(format string, a ...any) {
	if r.watchdog != nil {
		r.watchdog.Stop()
	}
	r.watchdog = time.AfterFunc(max(longest, 2*r.long), func() {
		debug.SetTraceback("all")
		panic(fmt.Sprintf("no end of "+format, a...))
	})
	if r.terminal {
		fmt.Fprintf(os.Stderr, "\r\x1b[K"+format, a...)
	}
}

func (r *run) clear() {
	if r.terminal {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
}
