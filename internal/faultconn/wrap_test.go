package faultconn

import (
	"io"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// tcpPair returns the two ends of a real connection.
func tcpPair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	near, err = net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	far, err = l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() {
		near.Close()
		far.Close()
	})
	return near, far
}

func TestWrap_IsTransparentWithoutFaults(t *testing.T) {
	t.Parallel()
	near, far := tcpPair(t)
	w := Wrap(near)
	require.Equal(t, near.LocalAddr(), w.LocalAddr())
	writeString(t, w, "there")
	require.Equal(t, "there", readString(t, far))
	writeString(t, far, "back")
	require.Equal(t, "back", readString(t, w))
	require.NoError(t, far.Close())
	_, err := w.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, w.Close())
	require.ErrorIs(t, w.Close(), net.ErrClosed)
}

func TestWrap_CutResetsASocket(t *testing.T) {
	t.Parallel()
	near, far := tcpPair(t)
	w := Wrap(near)
	waiting := start(w.Read, make([]byte, 1))
	w.Cut()
	require.ErrorIs(t, (<-waiting).err, syscall.ECONNRESET)
	_, err := w.Write([]byte("x"))
	require.ErrorIs(t, err, syscall.ECONNRESET)
	_, err = far.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
	require.NoError(t, w.Close())
	require.Error(t, w.Close())
}

func TestWrap_CutEndsWaitingCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		n.SetBuffer(4)
		near, far := dialPair(t, n, hostA, hostB)
		w := Wrap(near)
		read, write := start(w.Read, make([]byte, 1)), start(w.Write, make([]byte, 9))
		synctest.Wait()
		w.Cut()
		require.ErrorIs(t, (<-read).err, syscall.ECONNRESET)
		require.ErrorIs(t, (<-write).err, syscall.ECONNRESET)
		_, err := far.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
	})
}

func TestWrap_ReadsOnAfterADeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := dialPair(t, NewNetwork(), hostA, hostB)
		w := Wrap(near)
		require.NoError(t, w.SetReadDeadline(time.Now().Add(time.Second)))
		_, err := w.Read(make([]byte, 1))
		requireTimeout(t, err)
		require.NoError(t, w.SetReadDeadline(time.Time{}))
		writeString(t, far, "later")
		require.Equal(t, "later", readString(t, w))
	})
}

func TestWrap_DeadlinesReachASocket(t *testing.T) {
	t.Parallel()
	near, _ := tcpPair(t)
	w := Wrap(near)
	require.NoError(t, w.SetReadDeadline(time.Now().Add(time.Millisecond)))
	_, err := w.Read(make([]byte, 1))
	requireTimeout(t, err)
	require.NoError(t, w.SetDeadline(time.Unix(1, 0)))
	_, err = w.Write([]byte("x"))
	requireTimeout(t, err)
}

func TestWrap_StallHoldsBothDirections(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := dialPair(t, NewNetwork(), hostA, hostB)
		w := Wrap(near)
		read := start(w.Read, make([]byte, 8))
		synctest.Wait() // it waits in the wrapped connection
		w.Stall(true)
		writeString(t, far, "held")
		write := start(w.Write, []byte("too"))
		time.Sleep(time.Hour)
		synctest.Wait()
		requireWaiting(t, read)
		requireWaiting(t, write)
		w.Stall(false)
		require.Equal(t, result{n: 4}, <-read)
		require.Equal(t, result{n: 3}, <-write)
		require.Equal(t, "too", readString(t, far))
	})
}

func TestWrap_StallHidesTheClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := dialPair(t, NewNetwork(), hostA, hostB)
		w := Wrap(near)
		read := start(w.Read, make([]byte, 8))
		synctest.Wait()
		w.Stall(true)
		require.NoError(t, far.Close())
		synctest.Wait()
		requireWaiting(t, read)
		w.Stall(false)
		require.ErrorIs(t, (<-read).err, io.EOF)
	})
}

func TestWrap_StallLosesNothingToADeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := dialPair(t, NewNetwork(), hostA, hostB)
		w := Wrap(near)
		require.NoError(t, w.SetDeadline(time.Now().Add(time.Second)))
		read := start(w.Read, make([]byte, 8))
		synctest.Wait()
		w.Stall(true)
		writeString(t, far, "early")
		_, err := w.Write([]byte("never"))
		requireTimeout(t, err)
		requireTimeout(t, (<-read).err)

		w.Stall(false)
		require.NoError(t, w.SetDeadline(time.Time{}))
		require.NoError(t, far.Close())
		got, err := io.ReadAll(w)
		require.NoError(t, err)
		require.Equal(t, "early", string(got))
	})
}

func TestWrap_CloseEndsStalledCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, _ := dialPair(t, NewNetwork(), hostA, hostB)
		w := Wrap(near)
		w.Stall(true)
		read, write := start(w.Read, make([]byte, 1)), start(w.Write, make([]byte, 1))
		synctest.Wait()
		require.NoError(t, w.Close())
		require.ErrorIs(t, (<-read).err, net.ErrClosed)
		require.ErrorIs(t, (<-write).err, net.ErrClosed)
	})
}

func TestWrap_WriteLimitPacesWrites(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := dialPair(t, NewNetwork(), hostA, hostB)
		w := Wrap(near)
		w.WriteLimit(1000)
		begin := time.Now()
		write := start(w.Write, make([]byte, 2000))
		_, err := io.ReadFull(far, make([]byte, 1000))
		require.NoError(t, err)
		require.Equal(t, 990*time.Millisecond, time.Since(begin)) // the first 10 go at once
		require.Equal(t, result{n: 2000}, <-write)
		require.Equal(t, 1990*time.Millisecond, time.Since(begin))

		// A deadline ends a slow write part of the way.
		require.NoError(t, w.SetWriteDeadline(time.Now().Add(105*time.Millisecond)))
		n, err := w.Write(make([]byte, 2000))
		requireTimeout(t, err)
		require.Equal(t, 100, n)

		w.WriteLimit(0)
		require.NoError(t, w.SetWriteDeadline(time.Time{}))
		begin = time.Now()
		n, err = w.Write(make([]byte, 2000))
		require.NoError(t, err)
		require.Equal(t, 2000, n)
		require.Zero(t, time.Since(begin))
	})
}

func TestWrap_SlowWritesDoNotMix(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := dialPair(t, NewNetwork(), hostA, hostB)
		w := Wrap(near)
		w.WriteLimit(100) // in pieces of one byte
		requireWritesWhole(t, w, far)
	})
}
