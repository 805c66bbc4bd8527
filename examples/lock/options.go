package main

import "time"

// Options are the same on all nodes.
type Options struct {
	// Expiry is how long a node keeps a holder that does not refresh. The default is 10 s.
	Expiry time.Duration
}

func (o Options) expiry() time.Duration {
	if o.Expiry <= 0 {
		return 10 * time.Second
	}
	return o.Expiry
}

// lease is how long a holder relies on what the nodes have said, from before it asked them: less
// than the expiry, so that it stops before anyone else starts, though its clock may be slower than
// theirs, and stopping takes a moment.
func (o Options) lease() time.Duration { return o.expiry() * 7 / 8 }

// refresh is how often a holder says that it is there.
func (o Options) refresh() time.Duration { return o.expiry() / 4 }

// call is how long a node may take to answer.
func (o Options) call() time.Duration { return o.expiry() / 4 }

// retry is how long to wait before asking again, on average and at first.
func (o Options) retry() time.Duration { return o.expiry() / 200 }

// writeQuorum is how many of n nodes must agree to a writer: more than half, so that there is one
// at a time.
func writeQuorum(n int) int { return n/2 + 1 }

// readQuorum is how many must agree to a reader: half of them, rounded up. With the writer's that
// is more than n, so a reader and a writer would have to share a node, which takes only one of
// them. Rounded down it would not do: of five nodes two could agree to a reader, and the other
// three to a writer.
func readQuorum(n int) int { return n - n/2 }
