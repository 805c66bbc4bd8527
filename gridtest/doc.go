// Package gridtest makes a connected grid in one process, for tests of what is built on package
// grid. Its nodes are whole: each has a [grid.Manager] and an HTTP server. Links between them can
// be cut and partitioned, nodes stopped and started anew. This is a test of a service, that a
// newStore makes for a manager; example_test.go has the service as well:
//
//	func TestStore_OutlivesFaults(t *testing.T) {
//		synctest.Test(t, func(t *testing.T) {
//			stores := make([]*store, 3)
//			g := gridtest.New(t, 3, gridtest.WithHandlers(func(node int, m *grid.Manager) (err error) {
//				stores[node], err = newStore(m)
//				return err
//			}))
//			require := func(node int, key, want string) {
//				t.Helper()
//				if got, err := stores[node].get(t.Context(), key); got != want || err != nil {
//					t.Fatalf("node %d says that %s is %q, %v", node, key, got, err)
//				}
//			}
//			stores[0].set("sky", "blue")
//			require(1, "sky", "blue")
//
//			// A link is lost, and comes back.
//			stores[0].set("grass", "green")
//			g.Cut(0, 2)
//			g.WaitConnected()
//			require(2, "grass", "green")
//
//			// Node 0 forgets everything. Node 1 has asked before.
//			g.Restart(0)
//			g.WaitConnected()
//			require(0, "sky", "blue")
//
//			// Node 2 is on its own.
//			g.Partition([]int{2})
//			if _, err := stores[2].get(t.Context(), "sky"); err == nil {
//				t.Fatal("node 2 knows about the sky")
//			}
//			g.Heal()
//			g.WaitConnected()
//			require(2, "sky", "blue")
//		})
//	}
//
// Nodes go by their index, from 0. [Grid.Host] is the base URL of one, by which the managers know
// it.
//
// # Memory and sockets
//
// The network is in memory, unless [TCP] asks for sockets of the loopback interface, or
// [WithNetwork] gives one of the test's own, which may have hosts that the test plays itself.
// Faults are the same in all cases. Two grids know nothing of each other, and may live side by
// side.
//
// # Time
//
// In memory a grid works within a bubble of testing/synctest, with the bubble's T: then nothing
// takes real time, not even the pings that find out about a dead link. By the bubble's clock [New]
// takes none either, and what waits for a loss to be noticed a few milliseconds. Sockets have no
// place in a bubble, so [TCP] does not work there.
//
// Timeouts and intervals are those of [grid.ManagerOptions]; [WithOptions] changes them. Outside of
// a bubble a test of a dead link wants a short PingInterval.
//
// # What is left behind
//
// Nothing: [Grid.Close], which [New] hands to t.Cleanup, stops all nodes and waits for what
// gridtest and the managers have started. It does not wait for handlers, whose contexts have ended
// by then, nor does it close what a test keeps open itself, such as the body of an answer to
// [Grid.Client].
//
// # Concurrency and failure
//
// All methods may be called concurrently. Where one fails, as for a node that does not exist, or a
// handler that can't be registered, it ends the test with t.Fatal, which ends no other goroutine
// than the one that it is called on: so a test that calls them from several should wait for them
// all.
package gridtest
