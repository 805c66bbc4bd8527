package faultconn

import (
	"context"
	"io"
	"net"
	"net/http"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
)

func TestNetwork_DialIsRefusedWhereNobodyListens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		_, err := n.DialContext(t.Context(), "tcp", hostB)
		require.ErrorIs(t, err, syscall.ECONNREFUSED)

		l, err := n.Listen(hostB)
		require.NoError(t, err)
		_, err = n.Listen(hostB)
		require.ErrorIs(t, err, syscall.EADDRINUSE)
		require.NoError(t, l.Close())
		require.ErrorIs(t, l.Close(), net.ErrClosed)
		_, err = n.DialContext(t.Context(), "tcp", hostB)
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	})
}

func TestNetwork_ClosingTheListenerEndsAcceptAndResetsTheQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		l, err := n.Listen(hostB)
		require.NoError(t, err)
		queued, err := n.DialContext(t.Context(), "tcp", hostB)
		require.NoError(t, err)
		require.NoError(t, l.Close())
		_, err = queued.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.NoError(t, queued.Close())
		require.Zero(t, n.Conns())

		l, err = n.Listen(hostB)
		require.NoError(t, err)
		accepted := make(chan error, 1)
		go func() {
			_, err := l.Accept()
			accepted <- err
		}()
		synctest.Wait()
		require.NoError(t, l.Close())
		require.ErrorIs(t, <-accepted, net.ErrClosed)
	})
}

func TestNetwork_ConnsCountsEndsThatAreNotClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		near, far := dialPair(t, n, hostA, hostB)
		require.Equal(t, 2, n.Conns())
		n.Cut(hostA, hostB)
		require.Equal(t, 2, n.Conns(), "a cut connection is still to be closed")
		require.NoError(t, near.Close())
		require.Equal(t, 1, n.Conns())
		require.NoError(t, far.Close())
		require.Zero(t, n.Conns())
		require.Empty(t, n.pipes)
	})
}

func TestLink_CutResetsItsTwoEndsAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		near, far := dialPair(t, n, hostA, hostB)
		// The same link, dialled from the other side, and another one.
		reverse, _ := dialPair(t, n, hostB, hostA)
		otherNear, otherFar := dialPair(t, n, "c.example:9000", hostB)
		writeString(t, near, "lost")
		waiting := start(reverse.Read, make([]byte, 1))
		synctest.Wait()

		n.Cut(hostA, hostB)
		_, err := far.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
		_, err = near.Write([]byte("x"))
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.ErrorIs(t, (<-waiting).err, syscall.ECONNRESET)

		writeString(t, otherNear, "untouched")
		require.Equal(t, "untouched", readString(t, otherFar))
		near, far = dialPair(t, n, hostA, hostB)
		writeString(t, near, "again")
		require.Equal(t, "again", readString(t, far))
	})
}

func TestLink_PartitionSilencesConnectionsUntilHealed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		n.SetBuffer(4)
		near, far := dialPair(t, n, hostA, hostB)
		writeString(t, near, "on")
		n.Partition(hostB, hostA)
		n.Partition(hostA, hostB)
		read, write := start(far.Read, make([]byte, 8)), start(near.Write, []byte("e two"))
		time.Sleep(time.Hour)
		synctest.Wait()
		requireWaiting(t, read)
		requireWaiting(t, write)
		require.NoError(t, far.SetReadDeadline(time.Now().Add(time.Second)))
		requireTimeout(t, (<-read).err)
		require.NoError(t, far.SetReadDeadline(time.Time{}))

		n.Heal(hostA, hostB)
		n.Heal(hostA, hostB)
		got := make([]byte, 7)
		_, err := io.ReadFull(far, got)
		require.NoError(t, err)
		require.Equal(t, "one two", string(got))
		require.NoError(t, (<-write).err)
	})
}

func TestLink_PartitionHidesTheClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		near, far := dialPair(t, n, hostA, hostB)
		n.Partition(hostA, hostB)
		require.NoError(t, near.Close())
		read := start(far.Read, make([]byte, 1))
		writeString(t, far, "into the void")
		synctest.Wait()
		requireWaiting(t, read)

		n.Heal(hostA, hostB)
		require.ErrorIs(t, (<-read).err, io.EOF)
		_, err := far.Write([]byte("x"))
		require.ErrorIs(t, err, syscall.EPIPE)
	})
}

func TestLink_CutReachesAPartitionedConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		_, far := dialPair(t, n, hostA, hostB)
		n.Partition(hostA, hostB)
		read := start(far.Read, make([]byte, 1))
		synctest.Wait()
		n.Cut(hostA, hostB)
		require.ErrorIs(t, (<-read).err, syscall.ECONNRESET)
	})
}

func TestNetwork_DialWaitsWhilePartitioned(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		l, err := n.Listen(hostB)
		require.NoError(t, err)
		defer l.Close()
		n.Partition(hostB, hostA)

		ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		begin := time.Now()
		err = (<-dialResult(ctx, n, hostA, hostB)).err
		requireTimeout(t, err)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 7*time.Second, time.Since(begin))
		require.NoError(t, (<-dialResult(t.Context(), n, "c.example:9000", hostB)).err)

		dial := dialResult(t.Context(), n, hostA, hostB)
		time.Sleep(time.Hour)
		synctest.Wait()
		requireWaiting(t, dial)
		n.Partition(hostA, hostB) // as it is already
		n.Heal(hostA, hostB)
		require.NoError(t, (<-dial).err)
	})
}

func TestNetwork_DialWithAnEndedContextMakesNoConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		l, err := n.Listen(hostB)
		require.NoError(t, err)
		defer l.Close()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = n.DialContext(ctx, "tcp", hostB)
		require.ErrorIs(t, err, context.Canceled)
		require.Zero(t, n.Conns())
	})
}

func TestLink_StallHoldsOneDirection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		n.Stall(hostA, hostB, true) // holds for later connections, too
		near, far := dialPair(t, n, hostA, hostB)
		writeString(t, near, "held")
		writeString(t, far, "passes")
		require.Equal(t, "passes", readString(t, near))
		read := start(far.Read, make([]byte, 8))
		time.Sleep(time.Minute)
		synctest.Wait()
		requireWaiting(t, read)
		n.Stall(hostA, hostB, false)
		require.Equal(t, result{n: 4}, <-read)
	})
}

func TestLink_HealLeavesAStall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		near, far := dialPair(t, n, hostA, hostB)
		n.Stall(hostA, hostB, true)
		n.Partition(hostA, hostB)
		writeString(t, near, "held")
		n.Heal(hostA, hostB)
		read := start(far.Read, make([]byte, 8))
		synctest.Wait()
		requireWaiting(t, read)
		n.Stall(hostA, hostB, false)
		require.Equal(t, result{n: 4}, <-read)
	})
}

func TestNetwork_WebsocketOverHTTPServerInABubble(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		l, err := n.Listen(hostB)
		require.NoError(t, err)
		echo := make(chan error, 1)
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			echo <- serveEcho(w, r)
		})}
		served := make(chan error, 1)
		go func() { served <- server.Serve(l) }()

		dialer := websocket.Dialer{NetDialContext: n.Dialer(hostA)}
		c, resp, err := dialer.DialContext(t.Context(), "ws://"+hostB+"/echo", nil)
		require.NoError(t, err)
		resp.Body.Close()
		big := make([]byte, 2*DefaultBuffer)
		for _, msg := range [][]byte{[]byte("hello"), {}, big} {
			require.NoError(t, c.WriteMessage(websocket.BinaryMessage, msg))
			typ, got, err := c.ReadMessage()
			require.NoError(t, err)
			require.Equal(t, websocket.BinaryMessage, typ)
			require.Equal(t, len(msg), len(got))
		}
		require.Equal(t, 2, n.Conns())

		n.Cut(hostA, hostB)
		require.ErrorIs(t, <-echo, syscall.ECONNRESET)
		_, _, err = c.ReadMessage()
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.NoError(t, c.Close())
		require.NoError(t, server.Close())
		require.ErrorIs(t, <-served, http.ErrServerClosed)
		require.Zero(t, n.Conns())
	})
}

func serveEcho(w http.ResponseWriter, r *http.Request) error {
	var up websocket.Upgrader
	c, err := up.Upgrade(w, r, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		typ, msg, err := c.ReadMessage()
		if err != nil {
			return err
		}
		if err := c.WriteMessage(typ, msg); err != nil {
			return err
		}
	}
}
