package rig

import (
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

// Link is one connection of the attacker's, of those that may follow each other.
type Link struct {
	Opts       *grid.ManagerOptions // of the node
	conn       *grid.Connection
	reconnects int
}

// Ended reports whether the node has ended it.
func (l *Link) Ended() bool {
	st := l.conn.Stats()
	return st.State != grid.StateConnected || st.Reconnects != l.reconnects
}

// Err is why the node has ended it, if it has.
func (l *Link) Err() string {
	if !l.Ended() {
		return ""
	}
	return l.conn.Stats().LastError
}

// LinkOf is the present one of a connection.
func LinkOf(c *grid.Connection) *Link { return &Link{conn: c, reconnects: c.Stats().Reconnects} }

// WaitEnded waits until all have ended.
func WaitEnded(links ...*Link) {
	for _, l := range links {
		for !l.Ended() {
			time.Sleep(time.Millisecond)
		}
	}
}

// Session is the present link of the attacker.
func (a *Attacked) Session() *Link {
	a.Helper()
	require.NoError(a, a.Conn.WaitForConnect(a.Context()))
	l := LinkOf(a.Conn)
	l.Opts = &a.opts
	return l
}

// Same requires that a link is up still.
func (a *Attacked) Same(l *Link) {
	a.Helper()
	require.False(a, l.Ended(), "the link was ended: %s", l.Err())
}

// RequireEnded waits until the node has ended the link.
func (a *Attacked) RequireEnded(l *Link) {
	a.Helper()
	limit := time.Now().Add(time.Minute)
	for !l.Ended() {
		synctest.Wait()
		if time.Now().After(limit) {
			require.Fail(a, "the link is up still")
		}
		if !l.Ended() {
			time.Sleep(time.Millisecond)
		}
	}
	synctest.Wait() // the reason comes after the state
}

// Lost requires that the node ends the link, and logs why.
func (a *Attacked) Lost(l *Link, why ...string) {
	a.Helper()
	a.RequireEnded(l)
	for _, text := range why {
		require.Contains(a, l.Err(), text)
	}
	synctest.Wait()
	a.Logged(append(why, "connection lost")...)
}

// Idle requires that nothing of the attack is left.
func (a *Attacked) Idle() {
	a.Helper()
	synctest.Wait()
	st := a.Conn.Stats()
	require.Zero(a, st.KeptBytes, "bytes are kept")
	require.Zero(a, st.Handlers)
	require.Zero(a, st.Calls+st.Streams+st.StreamsServed)
}
