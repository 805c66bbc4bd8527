package main

import (
	"slices"
	"time"
)

// report is everything that one run has measured.
type report struct {
	Made   time.Time
	Took   time.Duration // of the whole run
	Go     string        // version
	OS     string        // GOOS/GOARCH
	CPU    string
	Cores  int // GOMAXPROCS
	Rounds int
	Round  time.Duration // of one measurement
	Commit string        `json:",omitempty"` // of this repository
	Dirty  bool          `json:",omitempty"` // files differed from those of Commit

	Peers   []peerInfo
	Results []result
	Figures []figure

	// Failed is what could not be measured, and why.
	Failed []string `json:",omitempty"`

	// Later are the shapes that were measured after the others, and when.
	Later map[string]time.Time `json:",omitempty"`
}

// peerInfo is a peer that took part.
type peerInfo struct {
	Name    string
	About   string
	Version string // of its module; empty for the standard library's
	Floor   bool   // a bare transport, no way to call
}

// result is the time that one operation takes with one peer: total time divided by the operations
// of all callers together. An operation is a call, a stream of ten messages, or in stream-long a
// message each way.
type result struct {
	Shape  string // "unary", "payload", "stream-twoway", ...; "unary-2p" with an end in each process
	Size   string // callers at once, or the payload's size: "8", "64KiB"
	Peer   string
	Rounds []float64 // ns per operation, a value for each round
	Median float64   // of Rounds
	// Ratio is how long grid takes, by the time that this peer takes: the median of the ratios of
	// the rounds. 1 for grid itself, 0 if grid was not run.
	Ratio float64
	// Allocs and Bytes are allocated for an operation, on both ends together.
	Allocs, Bytes float64
}

// spread is the least and the most of the rounds; twice the median where there are none.
func (v *result) spread() (least, most float64) {
	if len(v.Rounds) == 0 {
		return v.Median, v.Median
	}
	return slices.Min(v.Rounds), slices.Max(v.Rounds)
}

// figure is anything else that was measured. The name is a path: what, with what parameter, at
// which peer, such as "mixed/p99/grid" or "idle/stream-heap/grpc".
type figure struct {
	Name  string
	Value float64
	Unit  string
	// Least and Most are those of the rounds whose median Value is; 0 where there are none.
	Least, Most float64 `json:",omitzero"`
}

// inTwo is what the names of shapes end in that were measured with an end in each process.
const inTwo = "-2p"

// nameIn is the name of a shape that is measured in a number of processes.
func nameIn(shape string, processes int) string {
	if processes == 1 {
		return shape
	}
	return shape + inTwo
}
