package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// dialTimes notes when a host is dialled.
type dialTimes struct {
	mu    sync.Mutex
	times []time.Time
}

// watch puts itself before the dialer of o; err, if not nil, is what every dial fails with.
func (d *dialTimes) watch(o *grid.ManagerOptions, err error) {
	plain := o.Dialer
	o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		d.mu.Lock()
		d.times = append(d.times, time.Now())
		d.mu.Unlock()
		if err != nil {
			return nil, err
		}
		return plain(ctx, network, addr)
	}
}

// gaps are the pauses between the attempts since the last call.
func (d *dialTimes) gaps() (gaps []time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := 1; i < len(d.times); i++ {
		gaps = append(gaps, d.times[i].Sub(d.times[i-1]))
	}
	d.times = d.times[max(len(d.times)-1, 0):]
	return gaps
}

// requireBackoff checks pauses against 50 ms, doubled each time up to 5 s, plus up to half of it as
// jitter.
func requireBackoff(t *testing.T, gaps []time.Duration) {
	t.Helper()
	want := rig.MinBackoff
	for i, gap := range gaps {
		require.GreaterOrEqual(t, gap, min(want, rig.MaxBackoff*3/4), "pause %d of %v", i, gaps)
		require.LessOrEqual(t, gap, min(want*3/2, rig.MaxBackoff), "pause %d of %v", i, gaps)
		want = min(2*want, rig.MaxBackoff)
	}
}

func TestBackoff_GrowsFrom50MillisecondsTo5Seconds(t *testing.T) {
	t.Parallel()
	jittered := map[time.Duration]bool{}
	for range 10 {
		synctest.Test(t, func(t *testing.T) {
			var d dialTimes
			rig.NewLone(t, faultconn.NewNetwork(), false, func(o *grid.ManagerOptions) { d.watch(o, errors.New("no way")) })
			time.Sleep(time.Minute)
			synctest.Wait()
			gaps := d.gaps()
			require.Greater(t, len(gaps), 15)
			requireBackoff(t, gaps)
			jittered[gaps[0]] = true
			jittered[gaps[len(gaps)-1]] = true
		})
	}
	require.Greater(t, len(jittered), 15, "no jitter: all of a cluster would come at once")
}

// A peer that takes the connection and drops it at once is no better than one that refuses it; nor
// are two that throw each other out.
func TestBackoff_IsNotResetByASessionThatDidNotLive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		s := rig.ListenLone(t, n, rawpeer.Config{})
		var d dialTimes
		rig.NewLone(t, n, false, func(o *grid.ManagerOptions) { d.watch(o, nil) })
		for range 15 {
			s.Accept().Close()
		}
		requireBackoff(t, d.gaps())
	})
}

func TestBackoff_IsResetByASessionThatLived(t *testing.T) {
	t.Parallel()
	for name, live := range map[string]func(p *rawpeer.Peer){
		"said something": func(p *rawpeer.Peer) { p.Send(rawpeer.Ping(time.Now())); synctest.Wait() },
		"stayed":         func(*rawpeer.Peer) { time.Sleep(2 * time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := faultconn.NewNetwork()
				var d dialTimes
				s := rig.ListenLone(t, n, rawpeer.Config{})
				rig.NewLone(t, n, false, func(o *grid.ManagerOptions) { d.watch(o, nil) })
				for range 10 {
					s.Accept().Close()
				}
				for range 5 {
					p := s.Accept()
					synctest.Wait()
					live(p)
					d.gaps()
					begin := time.Now()
					p.Close()
					p = s.Accept()
					require.LessOrEqual(t, time.Since(begin), rig.MinBackoff*3/2)
					p.Close()
				}
			})
		})
	}
}

func TestLog_OneErrorAnHourPerPeer(t *testing.T) {
	t.Parallel()
	rig.Long(t)
	synctest.Test(t, func(t *testing.T) {
		log, book := rig.NewLogBook()
		hosts := []string{rig.LoneHost}
		dialled := 0
		for port := 9000; dialled < 3; port++ {
			host := fmt.Sprintf("http://raw:%d", port)
			if rawpeer.DialOrder(rig.LoneHost, host) {
				hosts = append(hosts, host)
				dialled++
			}
		}
		o := rig.Options(rig.LoneHost, hosts)
		o.Logger = log
		o.Dialer = faultconn.NewNetwork().Dialer(rig.HostAddr(rig.LoneHost))
		m, err := grid.NewManager(t.Context(), o)
		require.NoError(t, err)
		defer m.Close()
		synctest.Wait()
		for hour := range 4 {
			for _, host := range m.Targets() {
				lines := book.About("level=WARN", "remote="+host)
				require.Len(t, lines, hour+1, "after %d hours", hour)
				require.Contains(t, lines[0], "connection refused")
				require.Contains(t, lines[0], "local="+rig.LoneHost)
			}
			time.Sleep(time.Hour + 2*rig.MaxBackoff)
			synctest.Wait()
		}
		for _, line := range book.About("level=WARN")[dialled:] {
			require.Regexp(t, `suppressed=[78][0-9][0-9]$`, line, "one every 4 to 5 s") // and not lost
		}
		require.Len(t, book.About(""), len(book.About("level=WARN")), "nothing else is worth a line")
	})
}

func TestLog_LinkThatFlapsIsToldOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, book := rig.NewLogBook()
		g := rig.New(t, 2, func(i int, o *grid.ManagerOptions) { o.Logger = log })
		time.Sleep(2 * time.Hour) // what was logged at the start is forgotten
		before := len(book.About(""))
		for range 50 {
			g.Cut(0, 1)
			synctest.Wait()
			g.WaitConnected()
		}
		lost := book.About("connection lost")
		require.Len(t, lost, 2, "one on each side")
		require.LessOrEqual(t, len(book.About(""))-before, 4, "and that it is back")

		// Once it has been well for a while, the next loss is news again.
		time.Sleep(2 * rig.StableLife)
		g.Cut(0, 1)
		synctest.Wait()
		g.WaitConnected()
		require.Len(t, book.About("connection lost"), 4)
	})
}

// Lesson 19: the dialler's log says once what the other does not like, and no socket is left,
// however often it tries.
func TestLog_RefusedDiallerTellsTheReasonOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		acceptor, dialler func(o *grid.ManagerOptions)
		why               string
	}{
		"bad token": {
			dialler: func(o *grid.ManagerOptions) { o.AuthFn = func() string { return "bad" } },
			why:     "403",
		},
		"unknown host": {
			acceptor: func(o *grid.ManagerOptions) { o.Hosts = []string{o.Local, "http://other:9000"} },
			why:      "unknown incoming host",
		},
		"another route": {
			dialler: func(o *grid.ManagerOptions) { o.RoutePath = "/elsewhere" },
			why:     "404",
		},
		"token refused in the handshake": {
			acceptor: func(o *grid.ManagerOptions) {
				calls := 0
				o.AuthToken = func(string) error {
					if calls++; calls%2 == 0 {
						return errors.New("not you")
					}
					return nil
				}
			},
			why: "not you",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, d := "http://node0:9000", "http://node1:9000"
				if rawpeer.DialOrder(a, d) {
					a, d = d, a
				}
				log, book := rig.NewLogBook()
				acceptorLog, acceptorBook := rig.NewLogBook()
				g := rig.Setup{Hosts: []string{a, d}, Stopped: true, Edit: func(i int, o *grid.ManagerOptions) {
					edit := c.acceptor
					o.Logger = acceptorLog
					if i == 1 {
						edit, o.Logger = c.dialler, log
					}
					if edit != nil {
						edit(o)
					}
				}}.Start(t)
				g.Start(0)
				g.Start(1)
				time.Sleep(20 * time.Minute)
				synctest.Wait()
				require.Len(t, book.About("level=WARN"), 1)
				require.Len(t, book.About("cannot connect", c.why), 1)
				require.Contains(t, g.Conn(1, 0).Stats().LastError, c.why)
				require.LessOrEqual(t, len(acceptorBook.About("handshake failed")), 1)
				require.LessOrEqual(t, g.Net.Conns(), 2, "sockets of refused handshakes are left")
			})
		})
	}
}

// A name that does not resolve was told; then it does, and who answers says no. That does not wait
// for the end of the hour.
func TestLog_NewReasonIsToldAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, d := "http://node0:9000", "http://node1:9000"
		if rawpeer.DialOrder(a, d) {
			a, d = d, a
		}
		var resolves, mayCome atomic.Bool
		log, book := rig.NewLogBook()
		acceptorLog, acceptorBook := rig.NewLogBook()
		g := rig.Setup{Hosts: []string{a, d}, Stopped: true, Edit: func(i int, o *grid.ManagerOptions) {
			if o.Logger = acceptorLog; i == 0 {
				return
			}
			o.Logger = log
			dial := o.Dialer
			o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if !resolves.Load() {
					return nil, &net.DNSError{Err: "no such host", Name: addr, IsNotFound: true}
				}
				return dial(ctx, network, addr)
			}
			o.AuthFn = func() string {
				if mayCome.Load() {
					return rig.Token
				}
				return "bad"
			}
		}}.Start(t)
		g.Start(0)
		g.Start(1)
		time.Sleep(5 * time.Minute)
		require.Len(t, book.About("level=WARN"), 1)
		require.Len(t, book.About("cannot connect", "no such host"), 1)

		resolves.Store(true)
		time.Sleep(10 * time.Second)
		require.Len(t, book.About("cannot connect", "403 Forbidden", "suppressed="), 1)
		require.Len(t, acceptorBook.About("upgrade refused", "wrong token"), 1)
		time.Sleep(5 * time.Minute)
		require.Len(t, book.About("level=WARN"), 2, "and once")
		require.Len(t, acceptorBook.About("level=WARN"), 1)

		mayCome.Store(true)
		g.WaitConnected()
		synctest.Wait()
		require.Len(t, book.About("grid: connected"), 1)
	})
}
