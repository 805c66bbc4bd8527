package grid_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Hosts that are not known, and are taken in by AcceptHost.

// joiners are two hosts that know themselves alone; the first dials the second. Neither runs yet.
func joiners(t *testing.T, edit func(i int, o *grid.ManagerOptions)) *rig.Grid {
	hosts := rig.Names("http", 2)
	if !rawpeer.DialOrder(hosts[0], hosts[1]) {
		hosts[0], hosts[1] = hosts[1], hosts[0]
	}
	return rig.Setup{Hosts: hosts, Stopped: true, Edit: func(i int, o *grid.ManagerOptions) {
		o.Hosts = []string{o.Local}
		if edit != nil {
			edit(i, o)
		}
	}}.Start(t)
}

// roles runs f in a bubble with two hosts, of which one, door, may take the other in: it is dialled,
// or asked to dial.
func roles(t *testing.T, accept func(ctx context.Context, host string, r *http.Request) error,
	edit func(i int, o *grid.ManagerOptions), f func(t *testing.T, g *rig.Grid, door, guest int)) {
	t.Helper()
	for door, name := range []string{"that knocks", "that dials"} {
		t.Run(name, func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) {
				g := joiners(t, func(i int, o *grid.ManagerOptions) {
					if i == door {
						o.AcceptHost = accept
					}
					if edit != nil {
						edit(i, o)
					}
				})
				g.Start(0)
				g.Start(1)
				f(t, g, door, 1-door)
			})
		})
	}
}

func connected(t *testing.T, g *rig.Grid, i, j int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, g.Conn(i, j).WaitForConnect(ctx))
	_, err := g.Conn(i, j).SingleRequest(ctx, rig.Echo, []byte("x"))
	require.NoError(t, err)
}

// One host knows the other, which takes it in: then each can call the other.
func TestAcceptHost_TakesInAHost(t *testing.T) {
	for _, secret := range []bool{false, true} {
		t.Run(fmt.Sprintf("secret %v", secret), func(t *testing.T) {
			var asked sync.Map
			roles(t, func(ctx context.Context, host string, r *http.Request) error {
				deadline, ok := ctx.Deadline()
				if !ok || time.Until(deadline) > 10*time.Second || r.Header.Get("Authorization") == "" {
					return errors.New("asked in another way")
				}
				n, _ := asked.LoadOrStore(host, new(atomic.Int32))
				n.(*atomic.Int32).Add(1)
				return nil
			}, func(_ int, o *grid.ManagerOptions) {
				if secret {
					rig.WithSecret(o, rig.Key)
				}
			}, func(t *testing.T, g *rig.Grid, door, guest int) {
				asked.Clear()
				require.NoError(t, g.Manager(guest).AddHost(g.Host(door)))
				connected(t, g, guest, door)
				connected(t, g, door, guest)
				require.Equal(t, []string{g.Host(guest)}, g.Manager(door).Targets())
				n, _ := asked.Load(g.Host(guest))
				require.EqualValues(t, 1, n.(*atomic.Int32).Load())

				// It is a host like any other now.
				g.Cut(door, guest)
				synctest.Wait()
				connected(t, g, door, guest)
				require.EqualValues(t, 1, n.(*atomic.Int32).Load())
			})
		})
	}
}

func TestAcceptHost_OverTCP(t *testing.T) {
	net := rig.NewLoopback(t, "http", 3)
	g := rig.Setup{TCP: net, Stopped: true, Edit: func(_ int, o *grid.ManagerOptions) {
		o.Hosts = []string{o.Local}
		o.AcceptHost = func(_ context.Context, host string, _ *http.Request) error {
			if !slices.Contains(net.Hosts, host) {
				return errors.New("who is that?")
			}
			return nil
		}
	}}.Start(t)
	for i := range g.Len() {
		g.Start(i)
	}
	for i := range g.Len() {
		for j := range i {
			require.NoError(t, g.Manager(i).AddHost(g.Host(j)))
		}
	}
	for i := range g.Len() {
		for j := range i {
			connected(t, g, i, j)
			connected(t, g, j, i)
		}
	}
}

// Who is refused hears why, and is let in once AcceptHost has changed its mind, although nobody
// calls or waits.
func TestAcceptHost_RefusalIsTold(t *testing.T) {
	var open atomic.Bool
	var changes atomic.Pointer[grid.StateChange]
	log, book := rig.NewLogBook()
	roles(t, func(context.Context, string, *http.Request) error {
		if !open.Load() {
			return errors.New("not on the list")
		}
		return nil
	}, func(i int, o *grid.ManagerOptions) {
		o.Logger = log
		o.OnStateChange = func(c grid.StateChange) {
			if c.Err != nil {
				changes.Store(&c)
			}
		}
	}, func(t *testing.T, g *rig.Grid, door, guest int) {
		open.Store(false)
		changes.Store(nil)
		require.NoError(t, g.Manager(guest).AddHost(g.Host(door)))
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		conn := g.Conn(guest, door)
		waited := conn.WaitForConnect(ctx)
		require.ErrorIs(t, waited, context.DeadlineExceeded)
		require.NotErrorIs(t, waited, grid.ErrDisconnected)
		_, called := conn.SingleRequest(t.Context(), rig.Echo, nil)
		require.ErrorIs(t, called, grid.ErrDisconnected)
		_, opened := conn.NewStream(t.Context(), rig.TwoWay, nil)
		for _, err := range []error{waited, called, opened} {
			require.ErrorIs(t, err, grid.ErrNotAccepted)
			require.ErrorContains(t, err, g.Host(guest)+" is not accepted: not on the list")
		}
		require.Contains(t, conn.Stats().LastError, "is not accepted: not on the list")
		if guest == 0 { // which dials
			require.ErrorIs(t, changes.Load().Err, grid.ErrNotAccepted)
		}
		require.Empty(t, g.Manager(door).Targets())
		require.NotEmpty(t, book.About("is not accepted: not on the list"))
		open.Store(true)
		rig.WaitState(t, conn, grid.StateConnected)
		connected(t, g, door, guest)
		require.NotEmpty(t, book.About("grid: host accepted", g.Host(guest)))
		g.Cut(door, guest)
		synctest.Wait()
		_, err := conn.SingleRequest(t.Context(), rig.Echo, nil)
		require.NotErrorIs(t, err, grid.ErrNotAccepted, "that is over")
	})
}

// A host that knows nobody says what there is to do.
func TestAcceptHost_WithoutOneTheRefusalSaysSo(t *testing.T) {
	roles(t, nil, nil, func(t *testing.T, g *rig.Grid, door, guest int) {
		require.NoError(t, g.Manager(guest).AddHost(g.Host(door)))
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		conn := g.Conn(guest, door)
		err := conn.WaitForConnect(ctx)
		require.ErrorIs(t, err, grid.ErrNotAccepted)
		require.ErrorContains(t, err, fmt.Sprintf("unknown incoming host: %q: it has to be one of the Hosts of %s, or to be taken in by its AcceptHost", g.Host(guest), g.Host(door)))
		require.NoError(t, g.Manager(door).AddHost(g.Host(guest)))
		rig.WaitState(t, conn, grid.StateConnected)
		connected(t, g, door, guest)
	})
}

// What was wrong before is no reason to ask.
func TestAcceptHost_IsAskedAboutWhoMayComeInOnly(t *testing.T) {
	var asked atomic.Bool
	for name, edit := range map[string]func(o *grid.ManagerOptions, isDoor bool){
		"another token": func(o *grid.ManagerOptions, isDoor bool) {
			if !isDoor {
				o.AuthFn = func() string { return "another token" }
			}
		},
		"another secret": func(o *grid.ManagerOptions, isDoor bool) {
			rig.WithSecret(o, rig.Key)
			if !isDoor {
				rig.WithSecret(o, rig.OtherKey)
			}
		},
		"VerifyPeer": func(o *grid.ManagerOptions, isDoor bool) {
			if isDoor {
				o.VerifyPeer = func(host string, _ *http.Request) error { return errors.New(host + " has no certificate") }
			}
		},
		"MaxHosts": func(o *grid.ManagerOptions, _ bool) { o.MaxHosts = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			for door := range 2 {
				rig.InBubble(t, func(t *testing.T) {
					g := joiners(t, func(i int, o *grid.ManagerOptions) {
						if i == door {
							o.AcceptHost = func(context.Context, string, *http.Request) error { asked.Store(true); return nil }
						}
						edit(o, i == door)
					})
					g.Start(0)
					g.Start(1)
					require.NoError(t, g.Manager(1-door).AddHost(g.Host(door)))
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					require.ErrorIs(t, g.Conn(1-door, door).WaitForConnect(ctx), grid.ErrNotAccepted)
					require.Empty(t, g.Manager(door).Targets())
				})
			}
			require.False(t, asked.Load())
		})
	}
}

// VerifyPeer has proved the name that AcceptHost is asked about.
func TestAcceptHost_ComesBehindVerifyPeer(t *testing.T) {
	var order []string
	var mu sync.Mutex
	note := func(what, host string) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, what+" "+host)
	}
	roles(t, func(_ context.Context, host string, _ *http.Request) error { note("AcceptHost", host); return nil },
		func(i int, o *grid.ManagerOptions) {
			o.VerifyPeer = func(host string, _ *http.Request) error { note("VerifyPeer", host); return nil }
		}, func(t *testing.T, g *rig.Grid, door, guest int) {
			mu.Lock()
			order = nil
			mu.Unlock()
			require.NoError(t, g.Manager(guest).AddHost(g.Host(door)))
			connected(t, g, guest, door)
			mu.Lock()
			defer mu.Unlock()
			require.Equal(t, []string{"VerifyPeer " + g.Host(guest), "AcceptHost " + g.Host(guest)}, order[:2])
		})
}

// A host that was removed and comes back is asked about again.
func TestAcceptHost_IsAskedAgainAboutOneThatWasRemoved(t *testing.T) {
	var banned atomic.Bool
	var asked atomic.Int32
	roles(t, func(context.Context, string, *http.Request) error {
		asked.Add(1)
		if banned.Load() {
			return errors.New("banned")
		}
		return nil
	}, nil, func(t *testing.T, g *rig.Grid, door, guest int) {
		banned.Store(false)
		asked.Store(0)
		require.NoError(t, g.Manager(guest).AddHost(g.Host(door)))
		connected(t, g, guest, door)
		banned.Store(true)
		require.NoError(t, g.Manager(door).RemoveHost(g.Host(guest)))
		time.Sleep(time.Minute)
		require.Empty(t, g.Manager(door).Targets())
		_, err := g.Conn(guest, door).SingleRequest(t.Context(), rig.Echo, nil)
		require.ErrorIs(t, err, grid.ErrNotAccepted)
		require.Greater(t, asked.Load(), int32(3))
		banned.Store(false)
		rig.WaitState(t, g.Conn(guest, door), grid.StateConnected)
		connected(t, g, door, guest)
	})
}

// The side that waits to be dialled by one that does not know it goes on asking, also where it was
// there first.
func TestAcceptHost_HostThatWaitsAsksUntilItIsKnown(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := joiners(t, func(i int, o *grid.ManagerOptions) {
			if i == 0 {
				o.AcceptHost = func(context.Context, string, *http.Request) error { return nil }
			}
		})
		g.Start(1)
		require.NoError(t, g.Manager(1).AddHost(g.Host(0)))
		time.Sleep(time.Hour)
		g.Start(0)
		require.LessOrEqual(t, rig.Elapsed(func() { rig.WaitState(t, g.Conn(1, 0), grid.StateConnected) }), 5*time.Second)
		// One that has come back as another process knows nobody.
		g.Stop(0)
		time.Sleep(time.Hour)
		g.Start(0)
		require.LessOrEqual(t, rig.Elapsed(func() { rig.WaitState(t, g.Conn(1, 0), grid.StateConnected) }), 5*time.Second)
	})
}

// AcceptHost that says yes while the manager is closing adds nobody, and holds nothing up.
func TestAcceptHost_ThatSaysYesWhileTheManagerEnds(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, m *grid.Manager){
		"Close":    func(t *testing.T, m *grid.Manager) { require.NoError(t, m.Close()) },
		"Shutdown": func(t *testing.T, m *grid.Manager) { require.NoError(t, m.Shutdown(t.Context())) },
	} {
		t.Run(name, func(t *testing.T) {
			var asked chan struct{}
			roles(t, func(ctx context.Context, _ string, _ *http.Request) error {
				asked <- struct{}{}
				<-ctx.Done()
				return nil
			}, func(int, *grid.ManagerOptions) { asked = make(chan struct{}, 100) }, func(t *testing.T, g *rig.Grid, door, guest int) {
				require.NoError(t, g.Manager(guest).AddHost(g.Host(door)))
				<-asked
				m := g.Manager(door)
				require.LessOrEqual(t, rig.Elapsed(func() { end(t, m) }), time.Second)
				synctest.Wait()
				require.Empty(t, m.Targets())
				require.ErrorIs(t, m.AddHost(g.Host(guest)), grid.ErrDisconnected)
				g.Stop(guest)
			})
		})
	}
}

// It may use the manager, also to add and remove hosts.
func TestAcceptHost_MayUseTheManager(t *testing.T) {
	var door atomic.Pointer[grid.Manager]
	roles(t, func(ctx context.Context, host string, _ *http.Request) error {
		m := door.Load()
		if err := m.AddHost("http://third:1"); err != nil {
			return err
		}
		return m.RemoveHost("http://third:1")
	}, nil, func(t *testing.T, g *rig.Grid, i, guest int) {
		door.Store(g.Manager(i))
		require.NoError(t, g.Manager(guest).AddHost(g.Host(i)))
		connected(t, g, guest, i)
		require.Equal(t, []string{g.Host(guest)}, g.Manager(i).Targets())
	})
}

// A panic is logged, and refuses the host; so does the end of its goroutine.
func TestAcceptHost_ThatPanicsOrHangsRefuses(t *testing.T) {
	stuck := make(chan struct{})
	for name, c := range map[string]struct {
		f   func()
		why string
	}{
		"panic":  {func() { panic("from inside") }, "panic in "},
		"Goexit": {runtime.Goexit, "goroutine ended in "},
		"hangs":  {func() { <-stuck }, "it is on its way in already, in "},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			var open atomic.Bool
			log, book := rig.NewLogBook()
			roles(t, func(context.Context, string, *http.Request) error {
				if asked.Add(1); !open.Load() {
					c.f()
				}
				return nil
			}, func(_ int, o *grid.ManagerOptions) { o.Logger = log }, func(t *testing.T, g *rig.Grid, door, guest int) {
				stuck = make(chan struct{})
				open.Store(false)
				asked.Store(0)
				require.NoError(t, g.Manager(guest).AddHost(g.Host(door)))
				time.Sleep(time.Minute)
				conn := g.Conn(guest, door)
				require.Contains(t, conn.Stats().LastError, c.why)
				require.Contains(t, conn.Stats().LastError, "in AcceptHost")
				if name == "hangs" {
					require.EqualValues(t, 1, asked.Load(), "it is called again")
				}
				if name == "panic" {
					require.NotEmpty(t, book.About("grid: panic while somebody connects", "from inside"))
				}
				open.Store(true)
				close(stuck)
				rig.WaitState(t, conn, grid.StateConnected)
			})
		})
	}
}

// The hosts that it takes in are no more than MaxHosts; those that the application adds are.
func TestAcceptHost_MaxHosts(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		hosts := rig.Names("http", 6)
		log := slog.New(slog.DiscardHandler)
		g := rig.Setup{Hosts: hosts, Stopped: true, Edit: func(i int, o *grid.ManagerOptions) {
			o.Hosts, o.Logger = []string{o.Local}, log
			o.MaxHosts = 3
			o.AcceptHost = func(context.Context, string, *http.Request) error { time.Sleep(time.Second); return nil }
		}}.Start(t)
		for i := range hosts {
			g.Start(i)
		}
		for i := range hosts[1:] {
			require.NoError(t, g.Manager(i+1).AddHost(hosts[0]))
		}
		time.Sleep(time.Minute)
		in := g.Manager(0).Targets()
		require.Len(t, in, 2)
		for i := range hosts[1:] {
			c := g.Conn(i+1, 0)
			if slices.Contains(in, hosts[i+1]) {
				require.Equal(t, grid.StateConnected, c.State())
			} else {
				require.True(t, strings.Contains(c.Stats().LastError, "is not accepted: there are 3 hosts, MaxHosts is 3"), c.Stats().LastError)
			}
		}
		require.NoError(t, g.Manager(0).SetHosts(hosts), "which are its own")
		g.WaitConnected()
	})
}

// It goes with other options, also where both sides have it, and know each other at once.
func TestAcceptHost_BesideOtherOptions(t *testing.T) {
	for bits := range 1 << 5 {
		has := func(i int) bool { return bits>>i&1 == 1 }
		t.Run(fmt.Sprintf("%05b", bits), func(t *testing.T) {
			yes := func(context.Context, string, *http.Request) error { return nil }
			var block chan struct{}
			roles(t, yes, func(i int, o *grid.ManagerOptions) {
				if has(0) {
					rig.WithSecret(o, rig.Key)
				}
				if has(1) {
					o.VerifyPeer = func(string, *http.Request) error { return nil }
				}
				o.LocalCalls = has(2)
				if has(3) {
					o.AcceptHost = yes
				}
				if has(4) && i == 0 {
					block = make(chan struct{}) // in the bubble
					o.BlockConnect = block
				}
			}, func(t *testing.T, g *rig.Grid, door, guest int) {
				require.NoError(t, g.Manager(guest).AddHost(g.Host(door)))
				if has(3) {
					require.NoError(t, g.Manager(door).AddHost(g.Host(guest)))
				}
				if has(4) {
					time.Sleep(time.Minute)
					require.NotEqual(t, grid.StateConnected, g.Conn(guest, door).State())
					close(block)
				}
				connected(t, g, guest, door)
				connected(t, g, door, guest)
			})
		})
	}
}

// Many that join at a time are all let in, and those that they tell of each other connect.
func TestAcceptHost_ManyAtATime(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.Setup{Hosts: rig.Names("http", 8), Stopped: true, Edit: func(i int, o *grid.ManagerOptions) {
			o.Hosts = []string{o.Local}
			o.AcceptHost = func(context.Context, string, *http.Request) error { return nil }
		}}.Start(t)
		for i := range g.Len() {
			g.Start(i)
		}
		var joining sync.WaitGroup
		for i := range g.Len() {
			joining.Go(func() {
				for j := range g.Len() {
					if i != j && (i+j)%3 != 0 {
						_ = g.Manager(i).AddHost(g.Host(j))
					}
				}
			})
		}
		joining.Wait()
		time.Sleep(time.Minute)
		for i := range g.Len() {
			for j := range g.Len() {
				if i != j && (i+j)%3 != 0 {
					require.Equal(t, grid.StateConnected, g.Conn(i, j).State())
				}
			}
		}
	})
}

// A seed that shuts down and comes back knows nobody; those that waited for it ask it.
func TestAcceptHost_SeedThatWasRestartedInOrder(t *testing.T) {
	roles(t, func(context.Context, string, *http.Request) error { return nil }, nil, func(t *testing.T, g *rig.Grid, door, guest int) {
		require.NoError(t, g.Manager(guest).AddHost(g.Host(door)))
		connected(t, g, guest, door)
		// At once, when the knock that the link has withdrawn may not have returned yet.
		for range 10 {
			require.NoError(t, g.Manager(door).Shutdown(t.Context()))
			g.Stop(door)
			time.Sleep(time.Minute)
			g.Start(door)
			rig.WaitState(t, g.Conn(guest, door), grid.StateConnected)
			connected(t, g, door, guest)
		}
	})
}

// A host that is removed while AcceptHost is being asked about it is refused, whatever that says.
func TestAcceptHost_HostThatIsRemovedMeanwhileIsRefused(t *testing.T) {
	var hold, asking atomic.Pointer[chan struct{}]
	roles(t, func(context.Context, string, *http.Request) error {
		*asking.Load() <- struct{}{}
		<-*hold.Load()
		return nil
	}, func(i int, o *grid.ManagerOptions) {
		if i == 0 {
			holds, asks := make(chan struct{}), make(chan struct{}, 100)
			hold.Store(&holds)
			asking.Store(&asks)
		}
	}, func(t *testing.T, g *rig.Grid, door, guest int) {
		require.NoError(t, g.Manager(guest).AddHost(g.Host(door)))
		<-*asking.Load()
		require.NoError(t, g.Manager(door).RemoveHost(strings.ToUpper(g.Host(guest))))
		*hold.Load() <- struct{}{}
		synctest.Wait()
		require.Empty(t, g.Manager(door).Targets())
		require.Contains(t, g.Conn(guest, door).Stats().LastError, "is not accepted: the host was removed")
		// It is asked about again when it comes again.
		<-*asking.Load()
		close(*hold.Load())
		connected(t, g, guest, door)
	})
}

// What AcceptHost has said before SetHosts does not count.
func TestAcceptHost_IsAskedAgainAfterSetHosts(t *testing.T) {
	var hold, asking atomic.Pointer[chan struct{}]
	var no atomic.Bool
	roles(t, func(context.Context, string, *http.Request) error {
		refused := no.Load()
		*asking.Load() <- struct{}{}
		<-*hold.Load()
		if refused {
			return errors.New("not any more")
		}
		return nil
	}, func(i int, o *grid.ManagerOptions) {
		if i == 0 {
			holds, asks := make(chan struct{}), make(chan struct{}, 100)
			hold.Store(&holds)
			asking.Store(&asks)
		}
	}, func(t *testing.T, g *rig.Grid, door, guest int) {
		no.Store(false)
		require.NoError(t, g.Manager(guest).AddHost(g.Host(door)))
		<-*asking.Load()
		require.NoError(t, g.Manager(door).SetHosts([]string{g.Host(door)}))
		no.Store(true)
		*hold.Load() <- struct{}{}
		<-*asking.Load() // at once
		require.Empty(t, g.Manager(door).Targets())
		close(*hold.Load())
		synctest.Wait()
		require.Empty(t, g.Manager(door).Targets())
		require.Contains(t, g.Conn(guest, door).Stats().LastError, "not any more")
		no.Store(false)
		require.NoError(t, g.Conn(guest, door).WaitForConnect(t.Context()))
	})
}

// A host that was taken in and has gone is let go after ForgetAfter; one that comes back before, and
// one that the application has named, stay.
func TestForgetAfter_LetsHostsGo(t *testing.T) {
	const after = 20 * time.Minute
	log, book := rig.NewLogBook()
	roles(t, func(context.Context, string, *http.Request) error { return nil }, func(_ int, o *grid.ManagerOptions) {
		o.ForgetAfter, o.Logger = after, log
	}, func(t *testing.T, g *rig.Grid, door, guest int) {
		hosts := func() []string { return g.Manager(door).Targets() }
		join := func() {
			require.NoError(t, g.Manager(guest).AddHost(g.Host(door)))
			connected(t, g, guest, door)
		}
		leave := func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			require.NoError(t, g.Manager(guest).Shutdown(ctx))
			g.Stop(guest)
		}
		join()
		time.Sleep(10 * after)
		require.Len(t, hosts(), 1, "it is connected")
		leave()
		time.Sleep(after - time.Second)
		require.Len(t, hosts(), 1)
		g.Start(guest)
		join()
		leave()
		time.Sleep(after - time.Second)
		require.Len(t, hosts(), 1, "it was connected meanwhile")
		time.Sleep(2*time.Minute + time.Second)
		require.Empty(t, hosts())
		require.NotEmpty(t, book.About("level=INFO", "grid: host forgotten", g.Host(guest)))

		// It is taken in again; and once it was named it stays.
		g.Start(guest)
		join()
		require.NoError(t, g.Manager(door).AddHost(g.Host(guest)))
		leave()
		time.Sleep(2 * after)
		require.Len(t, hosts(), 1)
	})
}

// Without it they stay, and those of Hosts do with it.
func TestForgetAfter_IsForHostsThatWereTakenInOnly(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.Setup{Hosts: rig.Names("http", 3), Stopped: true, Edit: func(_ int, o *grid.ManagerOptions) {
			o.AcceptHost = func(context.Context, string, *http.Request) error { return nil }
			o.ForgetAfter = time.Millisecond
		}}.Start(t)
		g.Start(0)
		require.NoError(t, g.Manager(0).AddHost("http://another:1"))
		time.Sleep(10 * time.Second)
		require.Len(t, g.Manager(0).Targets(), 3)
		require.NoError(t, g.Manager(0).SetHosts([]string{g.Host(0), g.Host(1)}))
		time.Sleep(10 * time.Second)
		require.Len(t, g.Manager(0).Targets(), 1)
	})
	roles(t, func(context.Context, string, *http.Request) error { return nil }, nil, func(t *testing.T, g *rig.Grid, door, guest int) {
		require.NoError(t, g.Manager(guest).AddHost(g.Host(door)))
		connected(t, g, guest, door)
		g.Stop(guest)
		time.Sleep(10 * time.Hour)
		require.Len(t, g.Manager(door).Targets(), 1)
	})
}

// Hosts that were taken in, and have gone, make no host unready; and one that knows nobody is not
// ready before somebody has come.
func TestReady_CountsHostsThatWereTakenInApart(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		g := rig.Setup{Hosts: rig.Names("http", 6), Stopped: true, Edit: func(i int, o *grid.ManagerOptions) {
			o.AcceptHost = func(context.Context, string, *http.Request) error { return nil }
			if o.Hosts = o.Hosts[:2]; i > 1 {
				o.Hosts = []string{o.Local}
			}
		}}.Start(t)
		ready := func(i int, enough func([]grid.HostLink) bool) (bool, string) {
			w := httptest.NewRecorder()
			g.Manager(i).Ready(enough)(w, httptest.NewRequest("GET", "/ready", nil))
			return w.Code == http.StatusOK, w.Body.String()
		}
		check := func(i int, want bool, text string) {
			t.Helper()
			ok, body := ready(i, nil)
			require.Equal(t, want, ok)
			require.Contains(t, body, ": "+text+"\n")
		}
		g.Start(0)
		g.Start(1)
		connected(t, g, 0, 1)
		for i := 2; i < 6; i++ {
			g.Start(i)
			check(i, false, "0 of 0 other hosts connected")
			require.NoError(t, g.Manager(i).AddHost(g.Host(0)))
			connected(t, g, i, 0)
			check(i, true, "1 of 1 other hosts connected")
		}
		check(0, true, "1 of 1 other hosts connected, and 4 of 4 that AcceptHost has taken in")
		for i := 2; i < 6; i++ {
			g.Stop(i)
		}
		synctest.Wait()
		check(0, true, "1 of 1 other hosts connected, and 0 of 4 that AcceptHost has taken in")
		require.NoError(t, g.Manager(0).AddHost(g.Host(2)))
		require.NoError(t, g.Manager(0).AddHost(g.Host(3)))
		check(0, false, "1 of 3 other hosts connected, and 0 of 2 that AcceptHost has taken in")
		_, _ = ready(0, func(others []grid.HostLink) bool {
			want := []grid.HostLink{{g.Host(1), true, false}, {g.Host(2), false, false}, {g.Host(3), false, false}, {g.Host(4), false, true}, {g.Host(5), false, true}}
			slices.SortFunc(want, func(a, b grid.HostLink) int { return strings.Compare(a.Host, b.Host) })
			require.Equal(t, want, others)
			return true
		})

		// The first host of a cluster that all others join.
		g.Start(4)
		g.Start(5)
		require.NoError(t, g.Manager(5).AddHost(g.Host(4)))
		connected(t, g, 5, 4)
		check(4, true, "0 of 0 other hosts connected, and 1 of 1 that AcceptHost has taken in")
		g.Stop(5)
		synctest.Wait()
		check(4, false, "0 of 0 other hosts connected, and 0 of 1 that AcceptHost has taken in")
		ok, _ := ready(4, func([]grid.HostLink) bool { return true })
		require.True(t, ok)
	})
}
