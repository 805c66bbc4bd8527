package faultconn

import "math/rand/v2"

// Corruption flips bits on their way. Which ones depends on nothing but its fields, which
// connection of the network it is, and what place a byte has in that.
type Corruption struct {
	// OneIn is in how many bytes, about, one bit is flipped. 0 leaves all as they are.
	OneIn int
	// Seed draws the bits.
	Seed uint64
	// Skip is how many bytes at the start of a connection, in each direction, are left alone: say a
	// handshake that is not meant to survive this.
	Skip int
}

// flipper is a Corruption of one direction of one connection.
type flipper struct {
	Corruption
	rng  *rand.Rand
	next int // bytes before the next flip
	seen int // bytes so far, also of those that a former corruption saw
}

// set takes c over. stream tells this direction of this connection from others.
func (f *flipper) set(c Corruption, stream uint64) {
	if c == f.Corruption {
		return
	}
	f.Corruption, f.rng = c, nil
	if c.OneIn > 0 {
		f.rng = rand.New(rand.NewPCG(c.Seed, stream))
		f.draw()
	}
}

// draw says when the next flip is due, on average after OneIn bytes.
func (f *flipper) draw() { f.next = f.rng.IntN(2*f.OneIn - 1) }

// flip corrupts b, which is what comes next.
func (f *flipper) flip(b []byte) {
	clean := min(max(f.Skip-f.seen, 0), len(b))
	f.seen += len(b)
	if f.rng == nil {
		return
	}
	for b = b[clean:]; f.next < len(b); f.draw() {
		b[f.next] ^= 1 << f.rng.IntN(8)
		b = b[f.next+1:]
	}
	f.next -= len(b)
}
