package main

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testOpts = Options{Expiry: 8 * time.Second}

// cluster is a grid whose nodes lock. It is used within a bubble.
type cluster struct {
	*gridtest.Grid
	t       *testing.T
	servers []*Server
	clients []*Client // those of nodes that were stopped included
	now     []*Client // of each node
}

func newCluster(t *testing.T, n int) *cluster {
	c := &cluster{t: t, servers: make([]*Server, n), now: make([]*Client, n)}
	var mu sync.Mutex
	t.Cleanup(func() { // when all nodes have stopped, so that what a failed test holds is lost
		for _, cl := range c.clients {
			cl.Close()
		}
	})
	c.Grid = gridtest.New(t, n,
		gridtest.WithOptions(func(_ int, o *grid.ManagerOptions) { o.LocalCalls = true }),
		gridtest.WithHandlers(func(node int, m *grid.Manager) (err error) {
			mu.Lock()
			defer mu.Unlock()
			if c.servers[node], err = NewServer(m, testOpts); err != nil {
				return err
			}
			c.now[node], err = NewClient(m, testOpts)
			c.clients = append(c.clients, c.now[node])
			return err
		}))
	return c
}

// mutex is the lock of these tests, as node i sees it.
func (c *cluster) mutex(i int) *Mutex { return c.now[i].Mutex("it") }

// must requires that lock, of some node, succeeds before long.
func (c *cluster) must(lock func(context.Context) (*Held, error)) *Held {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*testOpts.expiry())
	defer cancel()
	h, err := lock(ctx)
	require.NoError(c.t, err)
	return h
}

func (c *cluster) lock(i int) *Held {
	c.t.Helper()
	return c.must(c.mutex(i).Lock)
}

func (c *cluster) rlock(i int) *Held {
	c.t.Helper()
	return c.must(c.mutex(i).RLock)
}

// refused requires that lock, of some node, fails for d.
func (c *cluster) refused(lock func(context.Context) (*Held, error), d time.Duration) error {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), d)
	defer cancel()
	_, err := lock(ctx)
	require.ErrorIs(c.t, err, context.DeadlineExceeded)
	return err
}

// after requires that lock, of some node, waits until h has ended, and no longer than until it has
// expired everywhere.
func (c *cluster) after(h *Held, lock func(context.Context) (*Held, error)) *Held {
	c.t.Helper()
	start := time.Now()
	next := c.must(lock)
	require.ErrorIs(c.t, context.Cause(h.Context()), ErrLost)
	require.Less(c.t, time.Since(start), testOpts.expiry()*5/4)
	return next
}

// end requires that nothing is left once all locks are unlocked.
func (c *cluster) end() {
	c.t.Helper()
	for _, cl := range c.clients {
		cl.Close()
	}
	for i, s := range c.servers {
		assert.Empty(c.t, s.Holders(), "node %d", i)
	}
}

func TestQuorum_AnyTwoOverlap(t *testing.T) {
	for n := 1; n < 100; n++ {
		require.Greater(t, 2*writeQuorum(n), n)
		require.Greater(t, readQuorum(n)+writeQuorum(n), n)
		require.Positive(t, readQuorum(n))
		require.GreaterOrEqual(t, n-writeQuorum(n), (n-1)/2, "a minority may be gone")
	}
}

// Writers and readers of all nodes want the lock over and over.
func TestLock_UnderContention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 5)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var writers, readers, together atomic.Int32
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				for range 10 {
					h, err := c.mutex(i % 5).Lock(ctx)
					if !assert.NoError(t, err) {
						return
					}
					assert.EqualValues(t, 1, writers.Add(1))
					assert.Zero(t, readers.Load())
					time.Sleep(10 * time.Millisecond)
					assert.Zero(t, readers.Load())
					writers.Add(-1)
					h.Unlock()
				}
			})
			wg.Go(func() {
				for range 10 {
					h, err := c.mutex(i % 5).RLock(ctx)
					if !assert.NoError(t, err) {
						return
					}
					together.Store(max(together.Load(), readers.Add(1)))
					assert.Zero(t, writers.Load())
					time.Sleep(10 * time.Millisecond)
					assert.Zero(t, writers.Load())
					readers.Add(-1)
					h.Unlock()
				}
			})
		}
		wg.Wait()
		assert.Greater(t, together.Load(), int32(1))
		c.end()
	})
}

func TestLock_ReadersShareWritersDoNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4)
		a, b := c.rlock(0), c.rlock(1)
		c.refused(c.mutex(2).Lock, time.Minute)
		a.Unlock()
		a.Unlock() // does nothing
		require.ErrorIs(t, context.Cause(a.Context()), context.Canceled)
		c.refused(c.mutex(2).Lock, time.Minute)
		require.NoError(t, b.Context().Err())
		b.Unlock()

		w := c.lock(2)
		err := c.refused(c.mutex(0).RLock, time.Minute)
		require.ErrorIs(t, err, errHeld)
		c.refused(c.mutex(2).Lock, time.Minute)
		require.NoError(t, w.Context().Err())
		other, err := c.now[0].Mutex("another").Lock(t.Context())
		require.NoError(t, err)
		other.Unlock()
		w.Unlock()
		c.end()
	})
}

func TestLock_OfOneNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		r := c.rlock(0)
		c.refused(c.mutex(0).Lock, time.Second)
		r.Unlock()
		c.lock(0).Unlock()
		c.end()
	})
}

// The context of Lock is for the wait: afterwards only its values stay.
func TestLock_ContextIsForTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		type key struct{}
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
		h, err := c.mutex(0).Lock(ctx)
		require.NoError(t, err)
		cancel()
		time.Sleep(10 * testOpts.expiry()) // refreshed all the while
		require.NoError(t, h.Context().Err())
		require.Equal(t, "value", h.Context().Value(key{}))
		c.refused(c.mutex(1).Lock, testOpts.expiry())
		h.Unlock()
		c.end()
	})
}

func TestHolder_ThatCrashesLosesTheLock(t *testing.T) {
	for _, kind := range []string{"writer", "reader"} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 5)
				take := c.lock
				if kind == "reader" {
					take = c.rlock
				}
				h := take(4)
				time.Sleep(testOpts.expiry() / 2)
				c.Stop(4)
				c.after(h, c.mutex(0).Lock).Unlock()
				h.Unlock()
				c.Start(4)
				time.Sleep(testOpts.expiry()) // its last refresh may have come to a few
				c.end()
			})
		})
	}
}

// Without a word from the others a holder must stop before they let anyone else in.
func TestHolder_ThatIsIsolatedStopsInTime(t *testing.T) {
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprintf("silent=%v", silent), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 5)
				h := c.lock(1)
				time.Sleep(testOpts.expiry() / 2)
				if silent {
					c.PartitionSilently([]int{0, 1})
				} else {
					c.Partition([]int{0, 1})
				}
				next := c.after(h, c.mutex(2).Lock)
				h.Unlock()
				c.refused(c.mutex(0).RLock, testOpts.expiry())
				c.Heal()
				c.WaitConnected()
				c.refused(c.mutex(0).RLock, testOpts.expiry())
				require.NoError(t, next.Context().Err())
				next.Unlock()
				c.rlock(0).Unlock()
				c.end()
			})
		})
	}
}

func TestQuorum_LossOfAMinority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 5)
		h := c.lock(0)
		c.Stop(3)
		time.Sleep(testOpts.expiry())
		c.PartitionSilently([]int{4}) // hangs at first
		time.Sleep(10 * testOpts.expiry())
		require.NoError(t, h.Context().Err())
		c.refused(c.mutex(1).Lock, testOpts.expiry())
		h.Unlock()
		start := time.Now()
		h = c.lock(2)
		require.Less(t, time.Since(start), testOpts.retry(), "the others answer at once")
		h.Unlock()
		c.rlock(1).Unlock()
		c.Heal()
		c.Start(3)
		c.end()
	})
}

func TestQuorum_LossOfTheMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 5)
		h := c.lock(0)
		for i := 2; i < 5; i++ {
			c.Stop(i)
		}
		start := time.Now()
		<-h.Context().Done()
		require.ErrorIs(t, context.Cause(h.Context()), ErrLost)
		require.LessOrEqual(t, time.Since(start), testOpts.lease())
		h.Unlock()
		err := c.refused(c.mutex(0).Lock, 5*testOpts.expiry())
		require.ErrorIs(t, err, grid.ErrDisconnected)
		c.refused(c.mutex(1).RLock, 5*testOpts.expiry())
		c.Start(2)
		c.lock(1).Unlock()
		c.Start(3)
		c.Start(4)
		c.end()
	})
}

// A link that is lost for less than a lease does no harm.
func TestHolder_KeepsTheLockThoughLinksAreCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		h := c.lock(0)
		for range 20 {
			c.Partition([]int{0})
			time.Sleep(testOpts.expiry() / 2)
			c.Heal()
			c.WaitConnected()
			time.Sleep(testOpts.refresh())
		}
		require.NoError(t, h.Context().Err())
		c.refused(c.mutex(1).Lock, testOpts.expiry())
		h.Unlock()
		c.end()
	})
}

// Nodes that have forgotten whom they agreed to must not agree to another too early.
func TestQuorum_NodesThatForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 5)
		h := c.lock(0)
		for i := 2; i < 5; i++ {
			c.Restart(i)
		}
		c.WaitConnected()
		start := time.Now()
		var took atomic.Int64
		context.AfterFunc(h.Context(), func() { took.Store(int64(time.Since(start))) })
		c.after(h, c.mutex(1).Lock).Unlock() // tries before h knows
		require.ErrorIs(t, context.Cause(h.Context()), errUnknown)
		require.LessOrEqual(t, time.Duration(took.Load()), testOpts.refresh(), "they have said so")
		h.Unlock()
		c.end()
	})
}

func TestLock_ForceUnlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		h := c.lock(0)
		synctest.Wait() // for the answer of the third node
		holders := c.servers[2].Holders()
		require.Len(t, holders, 1)
		require.Equal(t, Holder{
			Name: "it", UID: h.args.UID, Owner: c.Host(0), Write: true, Expires: time.Now().Add(testOpts.expiry()),
		}, holders[0])
		require.NoError(t, c.mutex(2).ForceUnlock(t.Context()))
		next := c.lock(1)
		time.Sleep(testOpts.refresh())
		synctest.Wait()
		require.ErrorIs(t, context.Cause(h.Context()), ErrLost)
		h.Unlock()
		time.Sleep(2 * testOpts.expiry())
		require.NoError(t, next.Context().Err(), "h's end is not next's")
		c.Partition([]int{0})
		require.ErrorIs(t, c.mutex(0).ForceUnlock(t.Context()), grid.ErrDisconnected)
		next.Unlock()
		c.Heal()
		time.Sleep(testOpts.expiry())
		c.end()
	})
}

func TestLockServer_RefusesNonsense(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		time.Sleep(testOpts.expiry())
		_, err := lockReq.Call(t.Context(), c.Conn(0, 1), args.NewJSON())
		require.ErrorIs(t, err, errBadArgs)
		_, err = rlockReq.Call(t.Context(), c.Conn(0, 1), args.NewJSONWith(&lockArgs{Name: "it"}))
		require.ErrorIs(t, err, errBadArgs)
		_, err = refreshReq.Call(t.Context(), c.Conn(0, 1), args.NewJSON())
		require.ErrorIs(t, err, errUnknown)
		c.end()
	})
}

func TestLockClient_NeedsLocalCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, err := NewClient(gridtest.New(t, 2).Manager(0), testOpts)
		require.Error(t, err)
	})
}

// The program, on sockets and in real time.
func TestLockProgram_Holds(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: make test-long runs it")
	}
	var out bytes.Buffer
	err := run(t.Context(), &out, Options{Expiry: time.Second})
	require.NoError(t, err, "%s", &out)
	require.Contains(t, out.String(), "\n8 of 8 checks held\n")
	require.NotContains(t, out.String(), "FAIL")
}
