package hostile

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// Who asks a node to dial, and has no business to, or asks too often.

// knockRig is a node that dials a host which is not there, or waits for it.
type knockRig struct {
	*testing.T
	g    *rig.Grid
	raw  string // the host
	book *rig.LogBook
}

func newKnockRig(t *testing.T, rawDials bool, edit func(o *grid.ManagerOptions), prepare ...func(n *rig.Node)) *knockRig {
	t.Helper()
	log, book := rig.NewLogBook()
	g, raw := rig.NewLone(t, faultconn.NewNetwork(), rawDials, func(o *grid.ManagerOptions) {
		o.Logger = log
		o.MinBackoff, o.MaxBackoff = 24*time.Hour, 24*time.Hour
		if edit != nil {
			edit(o)
		}
	}, prepare...)
	synctest.Wait()
	return &knockRig{T: t, g: g, raw: raw, book: book}
}

func withKey(o *grid.ManagerOptions) { rig.WithSecret(o, rig.Key) }

// header is that of a knock of the host's.
func (r *knockRig) header(token string) http.Header {
	h := rig.Bearer(token)
	h.Set("Grid-Knock", r.raw)
	h.Set("Grid-Knock-To", rig.LoneHost)
	id := uuid.New()
	h.Set("Grid-Knock-Id", hex.EncodeToString(id[:]))
	return h
}

// knock sends one, and returns what it is answered, and how many attempts to dial have come of it.
func (r *knockRig) knock(h http.Header) (status int, text string, attempts int64) {
	r.Helper()
	c := r.g.Manager(0).Connection(r.raw)
	before := c.Stats().Attempts
	tr := &http.Transport{DialContext: r.g.Net.Dialer("stranger:1"), DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, rig.LoneHost+grid.RoutePath, nil)
	require.NoError(r, err)
	req.Header = h
	resp, err := tr.RoundTrip(req)
	require.NoError(r, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(r, err)
	require.NoError(r, resp.Body.Close())
	synctest.Wait()
	return resp.StatusCode, strings.TrimSpace(string(body)), c.Stats().Attempts - before
}

func (r *knockRig) refused(h http.Header, status int, text string) {
	r.Helper()
	got, said, attempts := r.knock(h)
	require.Equal(r, status, got, said)
	require.Equal(r, text, said)
	require.Zero(r, attempts)
}

func (r *knockRig) taken(h http.Header) {
	r.Helper()
	time.Sleep(2 * time.Second)
	status, text, attempts := r.knock(h)
	require.Equal(r, http.StatusAccepted, status, text)
	require.Equal(r, "grid: dialling", text)
	require.EqualValues(r, 1, attempts)
}

func TestKnock_WithoutTheKeyIsRefused(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		r := newKnockRig(t, false, withKey)
		pass := func(key []byte, from, to string, at time.Time) string { return rawpeer.KnockPass(key, from, to, at) }
		now := time.Now()
		used := pass(rig.Key, r.raw, rig.LoneHost, now)
		r.taken(r.header(used))
		for name, token := range map[string]string{
			"none":                        "",
			"another key":                 pass(rig.OtherKey, r.raw, rig.LoneHost, now),
			"used":                        used,
			"for another host":            pass(rig.Key, r.raw, "http://other:1", now),
			"the node's own, reflected":   pass(rig.Key, rig.LoneHost, r.raw, now),
			"of an upgrade":               rawpeer.Pass(rig.Key, r.raw, rig.LoneHost, now),
			"in another name":             pass(rig.Key, rig.LoneHost, rig.LoneHost, now),
			"of a host that nobody knows": pass(rig.Key, "http://nobody:1", rig.LoneHost, now),
			"no pass":                     "bearer",
			"long":                        strings.Repeat("x", 33<<10),
			"cut off":                     pass(rig.Key, r.raw, rig.LoneHost, now)[1:],
		} {
			t.Log(name)
			r.refused(r.header(token), http.StatusForbidden, "grid: forbidden")
		}
		for _, at := range []time.Time{now.Add(-6 * time.Minute), now.Add(6 * time.Minute)} {
			status, text, attempts := r.knock(r.header(pass(rig.Key, r.raw, rig.LoneHost, at)))
			require.Equal(t, http.StatusForbidden, status)
			require.Contains(t, text, "token older than 5m0s, or from a clock too far ahead")
			require.Zero(t, attempts)
		}
		// And the pass of a knock opens no websocket.
		r.g.RequireRefused(rig.Bearer(pass(rig.Key, r.raw, rig.LoneHost, now)), http.StatusForbidden)
		require.LessOrEqual(t, len(r.book.About("knock refused")), 8, "a stranger fills no log")
		r.taken(r.header(pass(rig.Key, r.raw, rig.LoneHost, time.Now())))
	})
}

func TestKnock_OfWhoMayNotOrNeedNotIsRefused(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		r := newKnockRig(t, false, nil)
		edited := func(name, value string) http.Header {
			h := r.header(rig.Token)
			h.Set(name, value)
			return h
		}
		r.refused(r.header("another token"), http.StatusForbidden, "grid: forbidden")
		r.refused(edited("Grid-Knock-To", "http://other:1"), http.StatusMisdirectedRequest, `grid: this is http://node0:9000, not "http://other:1"`)
		r.refused(edited("Grid-Knock-To", ""), http.StatusMisdirectedRequest, `grid: this is http://node0:9000, not ""`)
		r.refused(edited("Grid-Knock", "http://nobody:1"), http.StatusNotFound, `grid: unknown incoming host: "http://nobody:1"`)
		r.refused(edited("Grid-Knock", rig.LoneHost), http.StatusNotFound, `grid: unknown incoming host: "http://node0:9000"`)
		status, text, attempts := r.knock(edited("Grid-Knock", strings.Repeat("x", 100<<10)))
		require.Equal(t, http.StatusNotFound, status)
		require.Less(t, len(text), 2<<10)
		require.Zero(t, attempts)
		// Another spelling is the same host.
		r.taken(edited("Grid-Knock", strings.ToUpper(r.raw)))
		r.taken(edited("Grid-Knock-To", "HTTP://NODE0.:09000"))
	})
	rig.InBubble(t, func(t *testing.T) {
		r := newKnockRig(t, true, nil)
		r.refused(r.header(rig.Token), http.StatusConflict, fmt.Sprintf("grid: %s is to dial http://node0:9000, not the reverse", r.raw))
	})
	rig.InBubble(t, func(t *testing.T) {
		r := newKnockRig(t, false, func(o *grid.ManagerOptions) {
			o.VerifyPeer = func(host string, _ *http.Request) error {
				return errors.New("not " + host + ", with " + rig.Token + "-and-more")
			}
		})
		r.refused(r.header(rig.Token), http.StatusForbidden, fmt.Sprintf("grid: %s is not accepted: not %s, with %s-and-more", r.raw, r.raw, rig.Token))
	})
	// An error that panics when it is asked for its text is a no all the same.
	rig.InBubble(t, func(t *testing.T) {
		r := newKnockRig(t, false, func(o *grid.ManagerOptions) {
			o.VerifyPeer = func(string, *http.Request) error { return grid.NewRemoteErr(nil) }
		})
		r.refused(r.header(rig.Token), http.StatusForbidden, fmt.Sprintf("grid: %s is not accepted: an error that has no text", r.raw))
	})
	// A function for the door comes on top of the key.
	rig.InBubble(t, func(t *testing.T) {
		r := newKnockRig(t, false, withKey, func(n *rig.Node) {
			n.Server.Handler = n.Handler(func(r *http.Request) error {
				if r.Header.Get("Door") == "" {
					return errors.New("no way")
				}
				return nil
			})
		})
		h := r.header(rawpeer.KnockPass(rig.Key, r.raw, rig.LoneHost, time.Now()))
		r.refused(h, http.StatusForbidden, "grid: forbidden")
		h.Set("Door", "open")
		r.taken(h)
		h = r.header("bearer")
		h.Set("Door", "open")
		r.refused(h, http.StatusForbidden, "grid: forbidden")
	})
}

// A request without the header of a knock is what it was before there were any.
func TestKnock_OfOtherKindsIsNone(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		r := newKnockRig(t, false, nil)
		h := r.header(rig.Token)
		h.Del("Grid-Knock")
		r.refused(h, http.StatusUpgradeRequired, "grid: a websocket upgrade is required here")
	})
}

// Who has the key and knocks without end has the node dial once a second, and nobody is kept out.
func TestKnock_FloodIsDialledOnceASecond(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		r := newKnockRig(t, false, func(o *grid.ManagerOptions) { withKey(o); o.MaxHandshakes = 4 })
		c := r.g.Manager(0).Connection(r.raw)
		before, goroutines := c.Stats().Attempts, rig.BubbleGoroutines()
		begin := time.Now()
		for range 2000 {
			status, _, _ := r.knock(r.header(rawpeer.KnockPass(rig.Key, r.raw, rig.LoneHost, time.Now())))
			require.Equal(t, http.StatusAccepted, status)
			time.Sleep(5 * time.Millisecond)
		}
		require.InDelta(t, time.Since(begin).Seconds(), c.Stats().Attempts-before, 2)
		synctest.Wait()
		require.LessOrEqual(t, rig.BubbleGoroutines()-goroutines, 2)
	})
}

// Checks that hang are counted like those of upgrades, and hold up nobody who closes.
func TestKnock_CountsTowardsMaxHandshakes(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		release := make(chan struct{})
		r := newKnockRig(t, false, func(o *grid.ManagerOptions) {
			o.MaxHandshakes = 4
			o.AuthToken = func(string) error { <-release; return nil }
		})
		for range 4 {
			go func() {
				tr := &http.Transport{DialContext: r.g.Net.Dialer("stranger:1"), DisableKeepAlives: true}
				req, _ := http.NewRequest(http.MethodPost, rig.LoneHost+grid.RoutePath, nil)
				req.Header = r.header("x")
				if resp, err := tr.RoundTrip(req); err == nil {
					resp.Body.Close()
				}
			}()
		}
		synctest.Wait()
		r.refused(r.header("x"), http.StatusServiceUnavailable, "grid: too many handshakes are in progress: MaxHandshakes is 4")
		begin := time.Now()
		require.NoError(t, r.g.Manager(0).Close())
		require.LessOrEqual(t, time.Since(begin), time.Second)
		close(release)
		synctest.Wait()
	})
}

// What is dialled may answer a knock with anything, at any length, or never.
func TestKnock_AnswersOfAnyKindDoNoHarm(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"nothing": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"endless": func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := io.WriteString(w, "grid: x"); err != nil {
					return
				}
			}
		},
		"its token": func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "grid: "+r.Header.Get("Authorization"), http.StatusForbidden)
		},
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://node0:9000/", http.StatusFound)
		},
		"no route": func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) },
		"it is old": func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "grid: a websocket upgrade is required here", http.StatusUpgradeRequired)
		},
	} {
		t.Run(name, func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) {
				n := faultconn.NewNetwork()
				raw := rig.PeerHost(t, true)
				l, err := n.Listen(rig.HostAddr(raw))
				require.NoError(t, err)
				var asked atomic.Int64
				server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					asked.Add(1)
					answer(w, r)
				})}
				go server.Serve(l)
				defer server.Close()
				log, book := rig.NewLogBook()
				const token = "s3cr3t-of-the-cluster"
				g, _ := rig.NewLone(t, n, true, func(o *grid.ManagerOptions) {
					o.Logger, o.AuthFn = log, func() string { return token }
				})
				g.Guests = true
				time.Sleep(time.Hour)
				switch name {
				case "nothing", "endless", "its token": // it may answer otherwise, and not dial by itself
					require.InDelta(t, 500, asked.Load(), 400, "asked again, but for pauses up to MaxBackoff")
				default:
					require.EqualValues(t, 1, asked.Load(), "it is not repeated")
				}
				c := g.Manager(0).Connection(raw)
				require.Equal(t, grid.StateUnconnected, c.State())
				require.NotContains(t, c.Stats().LastError, token)
				require.LessOrEqual(t, len(c.Stats().LastError), 1<<10)
				if name != "its token" {
					require.Empty(t, c.Stats().LastError)
				}
				require.Empty(t, book.About(""), "it is no news")
				_, err = c.SingleRequest(t.Context(), rig.Echo, nil)
				require.ErrorContains(t, err, "waiting for it to dial")
				begin := time.Now()
				require.NoError(t, g.Manager(0).Close())
				require.Zero(t, time.Since(begin))
			})
		})
	}
}

// Who knows no token learns no more of a node that shuts down, or is closed, than of any other.
func TestKnock_StrangerLearnsNothingOfAShutdown(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		r := newKnockRig(t, false, func(o *grid.ManagerOptions) { withKey(o); o.LocalCalls = true })
		m := r.g.Manager(0)
		st, err := m.Connection(rig.LoneHost).NewStream(t.Context(), rig.Block, nil)
		require.NoError(t, err)
		look := func(state string) {
			t.Log(state)
			h := r.header("")
			r.refused(h, http.StatusForbidden, "grid: forbidden")
			h = r.header(rawpeer.KnockPass(rig.Key, r.raw, rig.LoneHost, time.Now()))
			r.refused(h, http.StatusServiceUnavailable, "grid: the manager is shutting down")
		}
		ended := rig.InBackground(func() error { return m.Shutdown(context.Background()) })
		synctest.Wait()
		look("shutting down")
		require.NoError(t, m.Close())
		require.NoError(t, <-ended)
		look("closed")
		require.Error(t, rig.Consume(st))
	})
}

// A link that is lost in its handshake has taken the knock back that asked for it, so there is
// another one.
func TestKnock_AgainWhereTheHandshakeIsNotAnswered(t *testing.T) {
	rig.InBubble(t, func(t *testing.T) {
		n := faultconn.NewNetwork()
		raw := rig.PeerHost(t, true)
		l, err := n.Listen(rig.HostAddr(raw))
		require.NoError(t, err)
		var asked atomic.Int64
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			w.WriteHeader(http.StatusAccepted)
		})}
		go server.Serve(l)
		defer server.Close()
		g, _ := rig.NewLone(t, n, true, nil)
		g.Guests = true
		synctest.Wait()
		require.EqualValues(t, 1, asked.Load())
		from, to := rig.HostAddr(rig.LoneHost), rig.HostAddr(raw)
		n.SetLinkBuffer(from, to, 16)
		p := rawpeer.DialConfig(t, rig.LoneHost, rawpeer.Config{Host: raw, Token: rig.Token, Bare: true, Dial: n.Dialer(to)})
		n.Stall(from, to, true)
		hello := rawpeer.Connect{ID: p.Config.Instance(), Host: raw, Time: time.Now(), Token: rig.Token}
		p.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: hello.Encode()})
		synctest.Wait()
		require.Equal(t, grid.StateConnected, g.Manager(0).Connection(raw).State())
		time.Sleep(time.Minute)
		require.NotEqual(t, grid.StateConnected, g.Manager(0).Connection(raw).State())
		n.Stall(from, to, false)
		time.Sleep(time.Minute)
		require.Greater(t, asked.Load(), int64(1))
	})
}

// Who has said that it dials may end before it has. Its successor, which may know nobody, hears of
// who waits within about a minute; once there is a link, or no such host, it hears nothing more.
func TestKnock_AgainWhereTheHostThatHasAnsweredEnds(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, m *grid.Manager, raw string) error{
		"removed":  func(_ *testing.T, m *grid.Manager, raw string) error { return m.RemoveHost(raw) },
		"closed":   func(_ *testing.T, m *grid.Manager, _ string) error { return m.Close() },
		"shutdown": func(t *testing.T, m *grid.Manager, _ string) error { return m.Shutdown(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			rig.InBubble(t, func(t *testing.T) {
				n := faultconn.NewNetwork()
				raw := rig.PeerHost(t, true)
				var asked atomic.Int64
				serve := func() *http.Server {
					l, err := n.Listen(rig.HostAddr(raw))
					require.NoError(t, err)
					s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
						asked.Add(1)
						w.WriteHeader(http.StatusAccepted)
					})}
					go s.Serve(l)
					return s
				}
				knocks := func(d time.Duration) int64 {
					before := asked.Load()
					time.Sleep(d)
					return asked.Load() - before
				}
				first := serve()
				g, _ := rig.NewLone(t, n, true, nil)
				g.Guests = true
				synctest.Wait()
				require.EqualValues(t, 1, asked.Load())
				first.Close()
				time.Sleep(10 * time.Minute)

				second := serve()
				defer second.Close()
				require.NotZero(t, knocks(10*time.Second), "one that is not reached is asked soon")
				require.InDelta(t, 70, knocks(time.Hour), 20, "and one that has answered about once a minute")
				second.Close()
				third := serve()
				defer third.Close()
				require.NotZero(t, knocks(65*time.Second), "a successor whose predecessor was not missed")

				p := rawpeer.DialConfig(t, rig.LoneHost, rawpeer.Config{Host: raw, Token: rig.Token, Dial: n.Dialer(rig.HostAddr(rig.LoneHost))})
				rig.WaitState(t, g.Manager(0).Connection(raw), grid.StateConnected)
				require.Zero(t, knocks(time.Hour), "there is a link")
				p.Close()
				require.NotZero(t, knocks(10*time.Second), "it was lost")
				require.NoError(t, end(t, g.Manager(0), raw))
				require.Zero(t, knocks(time.Hour))
			})
		})
	}
}
