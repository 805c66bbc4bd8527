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

const hostC = "c.example:9000"

func TestLink_HalfOpenIsSeenByOneEndAlone(t *testing.T) {
	t.Parallel()
	for _, dialler := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			n := NewNetwork()
			n.SetBuffer(8)
			var dead, alive net.Conn
			if dialler {
				dead, alive = dialPair(t, n, hostA, hostB)
			} else {
				alive, dead = dialPair(t, n, hostB, hostA)
			}
			_, other := dialPair(t, n, hostC, hostB)
			writeString(t, dead, "lost")
			waiting := start(dead.Read, make([]byte, 1))
			synctest.Wait()
			n.HalfOpen(hostA, hostB)
			require.ErrorIs(t, (<-waiting).err, syscall.ECONNRESET)
			_, err := dead.Write([]byte("x"))
			require.ErrorIs(t, err, syscall.ECONNRESET)
			require.NoError(t, dead.Close())

			writeString(t, alive, "into the")
			read, write := start(alive.Read, make([]byte, 8)), start(alive.Write, []byte("void"))
			time.Sleep(time.Hour)
			synctest.Wait()
			requireWaiting(t, read)
			requireWaiting(t, write)
			n.HalfOpen(hostB, hostA) // too late to change sides
			n.HealAll()
			synctest.Wait()
			requireWaiting(t, read)
			require.NoError(t, alive.SetDeadline(time.Now().Add(time.Second)))
			requireTimeout(t, (<-read).err)
			requireTimeout(t, (<-write).err)
			require.Equal(t, 3, n.Conns())

			writeString(t, other, "spared")
			near, far := dialPair(t, n, hostA, hostB)
			writeString(t, near, "anew")
			require.Equal(t, "anew", readString(t, far))
		})
	}
}

func TestLink_CutEndsAHalfOpenConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		_, alive := dialPair(t, n, hostA, hostB)
		n.HalfOpen(hostA, hostB)
		read := start(alive.Read, make([]byte, 1))
		synctest.Wait()
		n.Cut(hostA, hostB)
		require.ErrorIs(t, (<-read).err, syscall.ECONNRESET)
	})
}

func TestNetwork_SplitPartitionsBetweenGroupsUntilAllIsHealed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		ends := make(map[[2]string][2]net.Conn)
		hosts := []string{hostA, hostB, hostC, "d.example:9000"}
		for i, a := range hosts {
			for _, b := range hosts[i+1:] {
				near, far := dialPair(t, n, a, b)
				ends[[2]string{a, b}] = [2]net.Conn{near, far}
			}
		}
		n.Split(hosts[:2], hosts[2:3])
		held := map[[2]string]bool{{hosts[0], hosts[2]}: true, {hosts[1], hosts[2]}: true}
		for link, c := range ends {
			writeString(t, c[0], "x")
			read := start(c[1].Read, make([]byte, 1))
			synctest.Wait()
			if held[link] {
				requireWaiting(t, read)
				n.HealAll()
			}
			require.Equal(t, result{n: 1}, <-read, "%v", link)
			if held[link] {
				n.Split(hosts[:2], hosts[2:3])
			}
		}
		n.HealAll()
		for _, c := range ends {
			writeString(t, c[1], "y")
			require.Equal(t, "y", readString(t, c[0]))
		}
	})
}

func TestNetwork_HealAllEndsEveryFaultOfLinks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		near, far := dialPair(t, n, hostA, hostB)
		n.Partition(hostA, hostB)
		n.Stall(hostA, hostB, true)
		n.Rate(hostA, hostB, 1)
		n.Delay(hostA, hostB, time.Hour)
		n.Corrupt(hostA, hostB, Corruption{OneIn: 1})
		n.HealAll()
		begin := time.Now()
		writeString(t, near, "well again")
		require.Equal(t, "well again", readString(t, far))
		require.Zero(t, time.Since(begin))
		require.Empty(t, n.partitioned)
	})
}

func TestLink_RateLimitsWhatArrives(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		near, far := dialPair(t, n, hostA, hostB)
		n.Rate(hostA, hostB, 1000)
		begin := time.Now()
		writeString(t, near, string(make([]byte, 2000))) // there is room for it
		require.Zero(t, time.Since(begin))
		writeString(t, far, "the other way")
		require.Equal(t, "the other way", readString(t, near))
		require.NoError(t, near.Close())
		_, err := io.ReadFull(far, make([]byte, 1000))
		require.NoError(t, err)
		require.Equal(t, 990*time.Millisecond, time.Since(begin)) // the first 10 arrive at once

		n.Rate(hostA, hostB, 0)
		got, err := io.ReadAll(far)
		require.NoError(t, err)
		require.Len(t, got, 1000)
		require.Equal(t, 990*time.Millisecond, time.Since(begin))
	})
}

func TestLink_DelayKeepsTheOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		n.SetBuffer(12)
		near, far := dialPair(t, n, hostA, hostB)
		begin := time.Now()
		n.Delay(hostA, hostB, 3*time.Second)
		writeString(t, near, "one ")
		time.Sleep(time.Second)
		writeString(t, near, "two ")
		n.Delay(hostA, hostB, 0)
		writeString(t, near, "last")
		waiting := start(near.Write, []byte("!")) // the buffer is full
		writeString(t, far, "at once")
		require.Equal(t, "at once", readString(t, near))
		require.Equal(t, time.Second, time.Since(begin))

		require.Equal(t, "one ", readString(t, far))
		require.Equal(t, 3*time.Second, time.Since(begin))
		require.Equal(t, result{n: 1}, <-waiting)
		require.NoError(t, near.Close())
		rest, err := io.ReadAll(far)
		require.NoError(t, err)
		require.Equal(t, "two last!", string(rest))
		require.Equal(t, 4*time.Second, time.Since(begin))
	})
}

func TestLink_DelayHoldsUpTheClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, linger := range []int{-1, 0} {
			n := NewNetwork()
			n.SetBuffer(4)
			near, far := dialPair(t, n, hostA, hostB)
			n.Delay(hostA, hostB, time.Second)
			begin := time.Now()
			write := start(far.Write, []byte("far too much for it"))
			synctest.Wait()
			require.NoError(t, near.(*end).SetLinger(linger))
			require.NoError(t, near.Close())
			_, err := far.Read(make([]byte, 1))
			require.Equal(t, time.Second, time.Since(begin))
			if linger == 0 {
				require.ErrorIs(t, err, syscall.ECONNRESET)
				require.ErrorIs(t, (<-write).err, syscall.ECONNRESET)
			} else {
				require.ErrorIs(t, err, io.EOF)
				require.ErrorIs(t, (<-write).err, syscall.EPIPE)
			}
		}
	})
}

// corrupted is what arrives of zeros, sent in writes of the sizes given.
func corrupted(t *testing.T, c Corruption, sizes ...int) (got []byte) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		near, far := dialPair(t, n, hostA, hostB)
		n.Corrupt(hostA, hostB, c)
		for _, size := range sizes {
			sent := make([]byte, size)
			writeString(t, near, string(sent))
		}
		n.Corrupt(hostA, hostB, Corruption{})
		writeString(t, near, "clean")
		require.NoError(t, near.Close())
		var err error
		got, err = io.ReadAll(far)
		require.NoError(t, err)
		require.True(t, bytes.HasSuffix(got, []byte("clean")))
		got = bytes.TrimSuffix(got, []byte("clean"))
	})
	return got
}

func TestLink_CorruptionIsDrawnFromTheSeed(t *testing.T) {
	t.Parallel()
	c := Corruption{OneIn: 100, Seed: 1}
	got := corrupted(t, c, 100_000)
	flips := 0
	for _, b := range got {
		if b != 0 {
			require.Zero(t, b&(b-1), "one bit of a byte")
			flips++
		}
	}
	require.InDelta(t, 1000, flips, 100)
	require.Equal(t, got, corrupted(t, c, 50_000, 1, 0, 49_999), "however it is written")
	c.Seed = 2
	require.NotEqual(t, got, corrupted(t, c, 100_000))
}

func TestLink_CorruptionSparesTheBeginning(t *testing.T) {
	t.Parallel()
	got := corrupted(t, Corruption{OneIn: 1, Skip: 10}, 4, 4, 4, 4)
	require.Equal(t, make([]byte, 10), got[:10])
	require.NotContains(t, got[10:], byte(0))
}

func TestLink_BufferIsItsOwn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		n.SetLinkBuffer(hostB, hostA, 4)
		near, _ := dialPair(t, n, hostA, hostB)
		write := start(near.Write, []byte("12345"))
		near, _ = dialPair(t, n, hostC, hostB)
		writeString(t, near, "12345")
		synctest.Wait()
		requireWaiting(t, write)
		require.Panics(t, func() { n.SetLinkBuffer(hostA, hostB, 0) })
	})
}
