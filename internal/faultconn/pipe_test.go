package faultconn

import (
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPipe_BytesPassBothWays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := dialPair(t, NewNetwork(), hostA, hostB)
		writeString(t, near, "there")
		writeString(t, far, "back")
		require.Equal(t, "there", readString(t, far))
		require.Equal(t, "back", readString(t, near))
	})
}

func TestPipe_AddressesNameTheHosts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := dialPair(t, NewNetwork(), hostA, hostB)
		require.Equal(t, hostB, near.RemoteAddr().String())
		require.Equal(t, hostB, far.LocalAddr().String())
		require.Equal(t, near.LocalAddr(), far.RemoteAddr())
		name, _, err := net.SplitHostPort(near.LocalAddr().String())
		require.NoError(t, err)
		require.Equal(t, "a.example", name)
	})
}

func TestPipe_CloseIsSeenAfterWhatWasSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := dialPair(t, NewNetwork(), hostA, hostB)
		writeString(t, near, "last words")
		require.NoError(t, near.Close())
		got, err := io.ReadAll(far)
		require.NoError(t, err)
		require.Equal(t, "last words", string(got))
		_, err = far.Write([]byte("x"))
		require.ErrorIs(t, err, syscall.EPIPE)
	})
}

// The end of what one side writes leaves the other direction open.
func TestPipe_CloseWriteEndsOneDirection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		n.Delay(hostA, hostB, time.Second)
		near, far := dialPair(t, n, hostA, hostB)
		_, err := near.Write([]byte("last"))
		require.NoError(t, err)
		require.NoError(t, near.(*end).CloseWrite())
		require.NoError(t, near.(*end).CloseWrite())
		_, err = near.Write([]byte("more"))
		require.ErrorIs(t, err, syscall.EPIPE)
		began := time.Now()
		all, err := io.ReadAll(far)
		require.NoError(t, err)
		require.Equal(t, "last", string(all))
		require.Equal(t, time.Second, time.Since(began))
		_, err = far.Write([]byte("answer"))
		require.NoError(t, err)
		require.NoError(t, far.Close())
		all, err = io.ReadAll(near)
		require.NoError(t, err)
		require.Equal(t, "answer", string(all))
		require.NoError(t, near.Close())
		require.ErrorIs(t, near.(*end).CloseWrite(), net.ErrClosed)
	})
}

func TestPipe_OwnCloseEndsWaitingCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		n.SetBuffer(4)
		near, _ := dialPair(t, n, hostA, hostB)
		read, write := start(near.Read, make([]byte, 1)), start(near.Write, make([]byte, 9))
		synctest.Wait()
		requireWaiting(t, read)
		requireWaiting(t, write)
		require.NoError(t, near.Close())
		require.ErrorIs(t, (<-read).err, net.ErrClosed)
		w := <-write
		require.Equal(t, 4, w.n)
		require.ErrorIs(t, w.err, net.ErrClosed)

		require.ErrorIs(t, near.Close(), net.ErrClosed)
		require.ErrorIs(t, near.SetDeadline(time.Time{}), net.ErrClosed)
	})
}

func TestPipe_PeersCloseEndsWaitingWrite(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		n.SetBuffer(4)
		near, far := dialPair(t, n, hostA, hostB)
		write := start(near.Write, make([]byte, 9))
		synctest.Wait()
		require.NoError(t, far.Close())
		require.ErrorIs(t, (<-write).err, syscall.EPIPE)
	})
}

func TestPipe_ZeroLingerResets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := dialPair(t, NewNetwork(), hostA, hostB)
		writeString(t, near, "lost")
		require.NoError(t, near.(*end).SetLinger(0))
		require.NoError(t, near.Close())
		_, err := far.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)

		// A reset is held back like everything else.
		n := NewNetwork()
		near, far = dialPair(t, n, hostA, hostB)
		n.Partition(hostA, hostB)
		require.NoError(t, near.(*end).SetLinger(0))
		require.NoError(t, near.Close())
		read := start(far.Read, make([]byte, 1))
		synctest.Wait()
		requireWaiting(t, read)
		n.Heal(hostA, hostB)
		require.ErrorIs(t, (<-read).err, syscall.ECONNRESET)
	})
}

func TestPipe_WriteWaitsForTheReaderPastTheBuffer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		n.SetBuffer(10)
		near, far := dialPair(t, n, hostA, hostB)
		write := start(near.Write, []byte("0123456789abcde"))
		synctest.Wait()
		requireWaiting(t, write)
		require.Equal(t, "0123456789", readString(t, far))
		require.Equal(t, result{n: 15}, <-write)
		require.Equal(t, "abcde", readString(t, far))
	})
}

// Both buffers full and both sides writing must leave the bubble idle: neither may wake the other
// over and over.
func TestPipe_TwoWritersThatNobodyReadsWaitQuietly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		n.SetBuffer(1)
		near, far := dialPair(t, n, hostA, hostB)
		one, two := start(near.Write, make([]byte, 2)), start(far.Write, make([]byte, 2))
		synctest.Wait()
		requireWaiting(t, one)
		requireWaiting(t, two)
	})
}

func TestPipe_ConcurrentWritesDoNotMix(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		n.SetBuffer(1) // every byte is a chance to take the other's turn
		near, far := dialPair(t, n, hostA, hostB)
		requireWritesWhole(t, near, far)
	})
}

func TestPipe_DeadlinesEndReadsAndWritesInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		n.SetBuffer(4)
		near, far := dialPair(t, n, hostA, hostB)
		begin := time.Now()
		require.NoError(t, near.SetReadDeadline(begin.Add(3*time.Second)))
		require.NoError(t, near.SetWriteDeadline(begin.Add(5*time.Second)))
		_, err := near.Read(make([]byte, 1))
		requireTimeout(t, err)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Equal(t, 3*time.Second, time.Since(begin))
		wrote, err := near.Write(make([]byte, 9))
		requireTimeout(t, err)
		require.Equal(t, 4, wrote)
		require.Equal(t, 5*time.Second, time.Since(begin))

		// It stays passed, also when there would be something to read, until it is taken back.
		writeString(t, far, "x")
		_, err = near.Read(make([]byte, 1))
		requireTimeout(t, err)
		require.NoError(t, near.SetDeadline(time.Time{}))
		require.Equal(t, "x", readString(t, near))
	})
}

func TestPipe_DeadlineCanBeMovedDuringARead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, _ := dialPair(t, NewNetwork(), hostA, hostB)
		require.NoError(t, near.SetReadDeadline(time.Now().Add(time.Second)))
		read := start(near.Read, make([]byte, 1))
		synctest.Wait()
		require.NoError(t, near.SetReadDeadline(time.Now().Add(time.Minute)))
		time.Sleep(59 * time.Second)
		synctest.Wait()
		requireWaiting(t, read)
		require.NoError(t, near.SetReadDeadline(time.Unix(1, 0)))
		requireTimeout(t, (<-read).err)
	})
}
