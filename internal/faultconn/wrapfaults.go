package faultconn

import "time"

// Cut breaks the connection. Both ends fail with ECONNRESET from then on, where c wraps a TCP
// connection or one of a [Network]; of another kind of connection the peer sees an ordinary close.
// The user still has to call Close.
func (c *Conn) Cut() {
	c.markCut()
	c.reset()
}

func (c *Conn) markCut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = true
	c.changed.Broadcast()
}

// Stall holds the connection in both directions, or lets it go again. While it is held, writes wait
// and reads return nothing, not even the peer's close; deadlines and Close still end them. A write
// that is under way may go through.
func (c *Conn) Stall(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stalled = on
	c.changed.Broadcast()
}

// WriteLimit makes writes no faster than that many bytes per second, let through in pieces of 10
// ms' worth. 0 takes the limit away. A write under way keeps the limit it began with.
func (c *Conn) WriteLimit(bytesPerSecond int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rate = bytesPerSecond
}

// Delay holds up what has been read by d before the user of c gets it. What comes behind it waits
// in the wrapped connection, so throughput falls to one read for each d. A read under way keeps the
// delay it began with.
func (c *Conn) Delay(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.delay = d
}

// Corrupt flips bits of what is read from now on, until the zero [Corruption] ends it.
func (c *Conn) Corrupt(to Corruption) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flips.set(to, 0)
}

// HalfOpen ends the connection for the peer alone, as when that has crashed: it sees a reset, where
// c wraps a TCP connection or one of a [Network], else a close. The user of c is told nothing, for
// good: reads wait, and writes are taken and lost, up to [DefaultBuffer] bytes, then wait too.
// Deadlines, Close and Cut still end them.
func (c *Conn) HalfOpen() {
	c.markOrphaned()
	c.reset()
}

func (c *Conn) markOrphaned() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.orphaned = !c.cut && !c.closed
	c.changed.Broadcast()
}

func (c *Conn) reset() {
	if l, ok := c.Conn.(interface{ SetLinger(seconds int) error }); ok {
		_ = l.SetLinger(0) // fails only if c is closed already
	}
	_ = c.Conn.Close()
}
