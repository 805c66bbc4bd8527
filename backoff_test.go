package grid

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/backoff"
	"github.com/gridrpc/grid/internal/faultconn"
)

// dialTimes notes when a host is dialled.
type dialTimes struct {
	mu    sync.Mutex
	times []time.Time
}

// watch puts itself before the dialer of o; err, if not nil, is what every dial
// fails with.
func (d *dialTimes) watch(o *ManagerOptions, err error) {
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

// requireBackoff checks pauses against 50 ms, doubled each time up to 5 s, plus
// up to half of it as jitter.
func requireBackoff(t *testing.T, gaps []time.Duration) {
	t.Helper()
	want := backoff.Min
	for i, gap := range gaps {
		require.GreaterOrEqual(t, gap, min(want, backoff.Max*3/4), "pause %d of %v", i, gaps)
		require.LessOrEqual(t, gap, min(want*3/2, backoff.Max), "pause %d of %v", i, gaps)
		want = min(2*want, backoff.Max)
	}
}

func TestBackoffGrowsFrom50MillisecondsTo5Seconds(t *testing.T) {
	jittered := map[time.Duration]bool{}
	for range 10 {
		synctest.Test(t, func(t *testing.T) {
			var d dialTimes
			newLoneGrid(t, faultconn.NewNetwork(), false, func(o *ManagerOptions) { d.watch(o, errors.New("no way")) })
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

// A peer that takes the connection and drops it at once is no better than one
// that refuses it; nor are two that throw each other out.
func TestBackoffIsNotResetByASessionThatDidNotLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		s := listenLone(t, n, rawConfig{})
		var d dialTimes
		newLoneGrid(t, n, false, func(o *ManagerOptions) { d.watch(o, nil) })
		for range 15 {
			s.accept().close()
		}
		requireBackoff(t, d.gaps())
	})
}

func TestBackoffIsResetByASessionThatLived(t *testing.T) {
	for name, live := range map[string]func(p *rawPeer){
		"said something": func(p *rawPeer) { p.send(rawPing(time.Now())); synctest.Wait() },
		"stayed":         func(*rawPeer) { time.Sleep(2 * time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := faultconn.NewNetwork()
				var d dialTimes
				s := listenLone(t, n, rawConfig{})
				newLoneGrid(t, n, false, func(o *ManagerOptions) { d.watch(o, nil) })
				for range 10 {
					s.accept().close()
				}
				for range 5 {
					p := s.accept()
					synctest.Wait()
					live(p)
					d.gaps()
					begin := time.Now()
					p.close()
					p = s.accept()
					require.LessOrEqual(t, time.Since(begin), backoff.Min*3/2)
					p.close()
				}
			})
		})
	}
}

func TestOneErrorAnHourIsLoggedPerPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, book := newLogBook()
		hosts := []string{loneHost}
		dialled := 0
		for port := 9000; dialled < 3; port++ {
			host := fmt.Sprintf("http://raw:%d", port)
			if shouldDial(loneHost, host) {
				hosts = append(hosts, host)
				dialled++
			}
		}
		o := testOptions(loneHost, hosts)
		o.Logger = log
		o.Dialer = faultconn.NewNetwork().Dialer(hostAddr(loneHost))
		m, err := NewManager(t.Context(), o)
		require.NoError(t, err)
		defer m.Close()
		synctest.Wait()
		for hour := range 4 {
			for _, host := range m.Targets() {
				lines := book.about("level=WARN", "remote="+host)
				require.Len(t, lines, hour+1, "after %d hours", hour)
				require.Contains(t, lines[0], "connection refused")
				require.Contains(t, lines[0], "local="+loneHost)
			}
			time.Sleep(time.Hour + 2*backoff.Max)
			synctest.Wait()
		}
		for _, line := range book.about("level=WARN")[dialled:] {
			require.Regexp(t, `suppressed=[78][0-9][0-9]$`, line, "one every 4 to 5 s") // and not lost
		}
		require.Len(t, book.about(""), len(book.about("level=WARN")), "nothing else is worth a line")
	})
}

func TestLinkThatFlapsIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, book := newLogBook()
		g := newTestGrid(t, 2, func(i int, o *ManagerOptions) { o.Logger = log })
		time.Sleep(2 * time.Hour) // what was logged at the start is forgotten
		before := len(book.about(""))
		for range 50 {
			g.cut(0, 1)
			synctest.Wait()
			g.waitConnected()
		}
		lost := book.about("connection lost")
		require.Len(t, lost, 2, "one on each side")
		require.LessOrEqual(t, len(book.about(""))-before, 4, "and that it is back")

		// Once it has been well for a while, the next loss is news again.
		time.Sleep(2 * stableLife)
		g.cut(0, 1)
		synctest.Wait()
		g.waitConnected()
		require.Len(t, book.about("connection lost"), 4)
	})
}

// Lesson 19: the dialler's log says once what the other does
// not like, and no socket is left, however often it tries.
func TestRefusedDiallerLogsTheReasonOnce(t *testing.T) {
	for name, c := range map[string]struct {
		acceptor, dialler func(o *ManagerOptions)
		why               string
	}{
		"bad token": {
			dialler: func(o *ManagerOptions) { o.AuthFn = func() string { return "bad" } },
			why:     "403",
		},
		"unknown host": {
			acceptor: func(o *ManagerOptions) { o.Hosts = []string{o.Local, "http://other:9000"} },
			why:      "unknown incoming host",
		},
		"another route": {
			dialler: func(o *ManagerOptions) { o.RoutePath = "/elsewhere" },
			why:     "404",
		},
		"token refused in the handshake": {
			acceptor: func(o *ManagerOptions) {
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
				if shouldDial(a, d) {
					a, d = d, a
				}
				log, book := newLogBook()
				acceptorLog, acceptorBook := newLogBook()
				g := &testGrid{t: t, net: faultconn.NewNetwork(), hosts: []string{a, d}}
				g.nodes = make([]*node, 2)
				g.edit = func(i int, o *ManagerOptions) {
					edit := c.acceptor
					o.Logger = acceptorLog
					if i == 1 {
						edit, o.Logger = c.dialler, log
					}
					if edit != nil {
						edit(o)
					}
				}
				t.Cleanup(g.stopAll)
				g.start(0)
				g.start(1)
				time.Sleep(20 * time.Minute)
				synctest.Wait()
				require.Len(t, book.about("level=WARN"), 1)
				require.Len(t, book.about("cannot connect", c.why), 1)
				require.Contains(t, g.conn(1, 0).Stats().LastError, c.why)
				require.LessOrEqual(t, len(acceptorBook.about("handshake failed")), 1)
				require.LessOrEqual(t, g.net.Conns(), 2, "sockets of refused handshakes are left")
			})
		})
	}
}
