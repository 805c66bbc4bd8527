package faultconn

import (
	"bytes"
	"io"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestWrap_DelayHoldsUpWhatIsRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := dialPair(t, NewNetwork(), hostA, hostB)
		w := Wrap(near)
		w.Delay(time.Second)
		begin := time.Now()
		writeString(t, far, "late")
		require.NoError(t, w.SetReadDeadline(begin.Add(500*time.Millisecond)))
		_, err := w.Read(make([]byte, 8))
		requireTimeout(t, err)
		require.NoError(t, w.SetReadDeadline(time.Time{}))
		require.Equal(t, "late", readString(t, w), "lost to the deadline")

		begin = time.Now()
		writeString(t, far, "later")
		require.NoError(t, far.Close())
		require.Equal(t, "later", readString(t, w))
		require.Equal(t, time.Second, time.Since(begin))
		w.Delay(0)
		_, err = w.Read(make([]byte, 8))
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, time.Second, time.Since(begin))
	})
}

func TestWrap_CorruptFlipsBitsOfWhatIsRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := dialPair(t, NewNetwork(), hostA, hostB)
		w := Wrap(near)
		w.Corrupt(Corruption{OneIn: 1, Skip: 6})
		writeString(t, far, "clean\x00\x00\x00")
		got := readString(t, w)
		require.Equal(t, "clean\x00", got[:6])
		require.NotContains(t, got[6:], "\x00")
		w.Corrupt(Corruption{})
		writeString(t, far, "again")
		require.Equal(t, "again", readString(t, w))
		writeString(t, w, "unharmed")
		require.Equal(t, "unharmed", readString(t, far))
	})
}

// requireHalfOpen checks that the peer sees a reset, and the user of w nothing.
func requireHalfOpen(t *testing.T, w *Conn, far net.Conn) {
	read := start(w.Read, make([]byte, 8))
	time.Sleep(time.Millisecond)
	w.HalfOpen()
	_, err := far.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
	write := start(w.Write, make([]byte, 10))
	require.Equal(t, result{n: 10}, <-write)
	require.NoError(t, w.SetWriteDeadline(time.Now().Add(time.Second)))
	n, err := w.Write(make([]byte, DefaultBuffer))
	requireTimeout(t, err)
	require.Equal(t, DefaultBuffer-10, n)
	requireWaiting(t, read)
	require.NoError(t, w.Close())
	require.ErrorIs(t, (<-read).err, net.ErrClosed)
	require.Error(t, w.Close())
}

func TestWrap_HalfOpenIsSeenByThePeerAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		near, far := dialPair(t, n, hostA, hostB)
		requireHalfOpen(t, Wrap(near), far)
		require.NoError(t, far.Close())
		require.Zero(t, n.Conns())
	})
	near, far := tcpPair(t)
	requireHalfOpen(t, Wrap(near), far)
}

func TestWrap_HalfOpenSwallowsAWriteUnderWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		n.SetBuffer(4)
		near, _ := dialPair(t, n, hostA, hostB)
		w := Wrap(near)
		write := start(w.Write, bytes.Repeat([]byte("x"), 100))
		synctest.Wait()
		requireWaiting(t, write)
		w.HalfOpen()
		require.Equal(t, result{n: 100}, <-write)
		read := start(w.Read, make([]byte, 1))
		synctest.Wait()
		requireWaiting(t, read)
		w.Cut()
		require.ErrorIs(t, (<-read).err, syscall.ECONNRESET)
	})
}
