package gridstatus

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridtest"
	"github.com/stretchr/testify/require"
)

const (
	statusID grid.HandlerID = 200
	echoID   grid.HandlerID = 1
)

// mesh is a grid in memory whose nodes have a Status, but for those that answer for themselves.
type mesh struct {
	*gridtest.Grid
	pages []*Status
}

func newMesh(t *testing.T, n int, o Options, answers map[int]grid.SingleHandlerFn, opts ...gridtest.Option) *mesh {
	g := &mesh{pages: make([]*Status, n)}
	opts = append(opts, gridtest.WithHandlers(func(node int, m *grid.Manager) (err error) {
		if answer, ok := answers[node]; !ok {
			g.pages[node], err = New(m, statusID, o)
		} else if answer != nil {
			err = m.RegisterSingleHandler(statusID, answer)
		}
		return errors.Join(err, m.RegisterSingleHandler(echoID, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }))
	}))
	g.Grid = gridtest.New(t, n, opts...)
	return g
}

// see is the mesh as a node sees it.
func (g *mesh) see(t *testing.T, node int) *Mesh {
	m, err := g.pages[node].Mesh(t.Context())
	require.NoError(t, err)
	return m
}

func (m *Mesh) node(t *testing.T, host string) Node {
	for _, n := range m.Nodes {
		if n.Host == host {
			return n
		}
	}
	require.Failf(t, "missing node", "%s is not in the mesh", host)
	return Node{}
}

func (n Node) link(t *testing.T, host string) Link {
	require.NotNil(t, n.View, n.Err)
	for _, l := range n.View.Links {
		if l.Host == host {
			return l
		}
	}
	require.Failf(t, "missing link", "%s has none to %s", n.Host, host)
	return Link{}
}

func TestMesh_IsWhatAllHostsSee(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newMesh(t, 3, Options{}, nil, gridtest.WithOptions(func(_ int, o *grid.ManagerOptions) { o.PingInterval = time.Second }))
		time.Sleep(5 * time.Second)
		before := g.see(t, 0)
		for range 100 {
			_, err := g.Conn(1, 2).SingleRequest(t.Context(), echoID, make([]byte, 1000))
			require.NoError(t, err)
		}
		time.Sleep(10 * time.Second)
		m := g.see(t, 0)
		require.Equal(t, g.Host(0), m.Host)
		require.Equal(t, 2*time.Second, m.Every)
		require.Equal(t, 10*time.Second, m.Time.Sub(before.Time))
		require.Len(t, m.Nodes, 3)
		require.Empty(t, m.Others)
		for i := range 3 {
			n := m.node(t, g.Host(i))
			require.Empty(t, n.Err)
			require.Equal(t, n.Host, n.View.Host)
			require.Equal(t, g.Manager(i).ID.String(), n.View.ID)
			require.Len(t, n.View.Links, 2)
			for j := range 3 {
				if i == j {
					continue
				}
				l := n.link(t, g.Host(j))
				require.Equal(t, connected, l.State)
				require.Equal(t, g.Conn(i, j).Stats().LastConnect.UnixNano(), l.Since.UnixNano())
				require.Equal(t, g.Conn(i, j).Stats().Dials, l.Dials)
				require.NotNil(t, l.Rate)
				require.Equal(t, "", l.LastError)
			}
		}
		// 100 requests of 1,000 bytes in 10 s, and pings of one side.
		out, in := m.node(t, g.Host(1)).link(t, g.Host(2)), m.node(t, g.Host(2)).link(t, g.Host(1))
		require.InDelta(t, 10_300, out.Rate.BytesOut, 300)
		require.InDelta(t, 11.2, out.Rate.MessagesOut, 0.5)
		require.InDelta(t, out.Rate.BytesOut, in.Rate.BytesIn, 100)
		require.Less(t, m.node(t, g.Host(0)).link(t, g.Host(1)).Rate.BytesOut, 500.)
	})
}

func TestMesh_WhileALinkIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newMesh(t, 4, Options{}, nil)
		g.Partition([]int{0, 1, 3}, []int{0, 2, 3}) // 1 and 2 only
		time.Sleep(3 * time.Second)
		m := g.see(t, 0)
		for _, p := range [][2]int{{1, 2}, {2, 1}} {
			l := m.node(t, g.Host(p[0])).link(t, g.Host(p[1]))
			require.NotEqual(t, connected, l.State)
			require.Contains(t, l.LastError, "disconnected")
			require.Equal(t, l.LastDisconnect, l.Since)
			require.InDelta(t, 3, m.Time.Sub(l.Since).Seconds(), 0.1)
		}
		text, good := summaryOf(m)
		require.Equal(t, "5 of 6 links up, 4 of 4 hosts answering", text)
		require.False(t, good)

		g.Heal()
		g.WaitConnected()
		time.Sleep(3 * time.Second)
		text, good = summaryOf(g.see(t, 0))
		require.Equal(t, "All is well: 6 links of 4 hosts up", text)
		require.True(t, good)
		l := g.see(t, 0).node(t, g.Host(1)).link(t, g.Host(2))
		require.Equal(t, 1, l.Reconnects)
		require.Contains(t, l.LastError, "disconnected", "it stays")
	})
}

func TestMesh_HostsThatDoNotAnswerSayWhy(t *testing.T) {
	say := func(text string) grid.SingleHandlerFn {
		return func([]byte) ([]byte, *grid.RemoteErr) { return []byte(text), nil }
	}
	many, err := json.Marshal(View{Host: "http://node5:9000", Links: make([]Link, maxLinks+1)})
	require.NoError(t, err)
	synctest.Test(t, func(t *testing.T) {
		g := newMesh(t, 10, Options{}, map[int]grid.SingleHandlerFn{
			1: nil, // has no handler
			2: say("what?"),
			3: say(`{"Host":"http://elsewhere"}`),
			4: say(strings.Repeat(" ", maxView+1)),
			5: say(string(many)),
			6: func([]byte) ([]byte, *grid.RemoteErr) { return nil, grid.NewRemoteErrString("") },
			9: func([]byte) ([]byte, *grid.RemoteErr) {
				return nil, grid.NewRemoteErrString(strings.Repeat("<b>\n\x1b[2J\u202e", 1<<16))
			},
		})
		g.Partition([]int{7})
		g.PartitionSilently([]int{7}, []int{8})
		begin := time.Now()
		m := g.see(t, 0)
		require.Equal(t, time.Second, time.Since(begin), "Timeout")
		for i, want := range []string{
			1: "no request handler with ID 200", 2: "its view can't be read: invalid character", 3: `it calls itself "http://elsewhere"`,
			4: "its view has 4194305 bytes, the limit is 4194304", 5: "its view has more than 5000 links", 6: "an error that has no text",
			7: "grid: disconnected: " + g.Host(7) + ": no connection for ", 8: "deadline exceeded",
			9: strings.Repeat("<b>\uFFFD\uFFFD[2J\uFFFD", 20),
		} {
			n := m.node(t, g.Host(i))
			if i == 0 {
				require.NotNil(t, n.View)
				continue
			}
			require.Contains(t, n.Err, want)
			require.Less(t, len(n.Err), 2*maxText)
			require.Nil(t, n.View)
		}
		page := g.get(t, 0, "/").Body.String()
		require.Equal(t, 9, strings.Count(page, "no answer</td><td>"), "as errors")
		require.Equal(t, 9, strings.Count(page, `colspan="10">no answer`), "in the matrix")
		require.NotContains(t, page, "\x1b")
		require.NotContains(t, page, "<b>")
	})
}

func TestMesh_HostsAreAskedOnceHoweverManyLook(t *testing.T) {
	var asked atomic.Int64
	synctest.Test(t, func(t *testing.T) {
		g := newMesh(t, 3, Options{Every: time.Second}, map[int]grid.SingleHandlerFn{
			1: func([]byte) ([]byte, *grid.RemoteErr) {
				asked.Add(1)
				return []byte(`{"Host":"http://node1:9000"}`), nil
			},
		})
		for round := range int64(5) {
			var done atomic.Int64
			for range 20 {
				go func() {
					_, _ = g.pages[0].Mesh(t.Context())
					done.Add(1)
				}()
			}
			synctest.Wait()
			require.EqualValues(t, 20, done.Load())
			require.Equal(t, round+1, asked.Load())
			time.Sleep(time.Second)
		}
		time.Sleep(time.Hour)
		require.EqualValues(t, 5, asked.Load(), "nobody looked")
	})
}

func TestView_IsMadeAnewOnlyNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newMesh(t, 3, Options{Every: time.Second}, nil)
		ask := func() View {
			b, err := g.Conn(0, 1).SingleRequest(t.Context(), statusID, nil)
			require.NoError(t, err)
			var v View
			require.NoError(t, json.Unmarshal(b, &v))
			return v
		}
		first := ask()
		time.Sleep(499 * time.Millisecond)
		require.Equal(t, first, ask())
		time.Sleep(time.Millisecond)
		require.NotEqual(t, first.Time, ask().Time)
	})
}

// get asks the page of a node itself.
func (g *mesh) get(t *testing.T, node int, target string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	g.pages[node].ServeHTTP(w, r)
	require.Equal(t, http.StatusOK, w.Code)
	require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
	require.Equal(t, "Accept, Accept-Encoding", w.Header().Get("Vary"))
	return w
}

func TestStatusHandler_PageAndJSONOverHTTP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newMesh(t, 3, Options{Title: "the mesh"}, nil)
		for _, c := range []struct {
			target, accept string
			json           bool
		}{
			{"/", "", false},
			{"/", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", false},
			{"/", "application/json", true},
			{"/", "application/json, text/html", false},
			{"/?format=json", "text/html", true},
			{"/?format=html", "application/json", false},
		} {
			w := g.get(t, 0, c.target, "Accept", c.accept)
			if !c.json {
				require.Equal(t, "text/html; charset=utf-8", w.Header().Get("Content-Type"))
				require.Equal(t, policy, w.Header().Get("Content-Security-Policy"))
				require.Equal(t, "no-referrer", w.Header().Get("Referrer-Policy"))
				requireIn(t, w.Body.String(), "All is well: 3 links of 3 hosts up")
				continue
			}
			require.Equal(t, "application/json", w.Header().Get("Content-Type"))
			var m Mesh
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &m))
			require.Len(t, m.Nodes, 3)
			require.Equal(t, connected, m.node(t, g.Host(1)).link(t, g.Host(2)).State)
		}

		plain := g.get(t, 0, "/").Body.Bytes()
		w := g.get(t, 0, "/", "Accept-Encoding", "gzip, br")
		require.Equal(t, "gzip", w.Header().Get("Content-Encoding"))
		z, err := gzip.NewReader(w.Body)
		require.NoError(t, err)
		unpacked, err := io.ReadAll(z)
		require.NoError(t, err)
		require.True(t, bytes.Equal(plain, unpacked))

		requireIn(t, g.get(t, 0, "/?node=http://node2:9000").Body.String(), "Links of node2")
		requireIn(t, g.get(t, 0, "/").Body.String(), "Links of node0")
		requireIn(t, g.get(t, 0, "/?node=nobody").Body.String(), "The host that was chosen is not one of the mesh")

		// What is not wanted is not sent, whatever else is said of it.
		require.Empty(t, g.get(t, 0, "/", "Accept-Encoding", "gzip;q=0").Header().Get("Content-Encoding"))
		require.Empty(t, g.get(t, 0, "/", "Accept-Encoding", "br, gzip; q=0.00").Header().Get("Content-Encoding"))
		require.Equal(t, "gzip", g.get(t, 0, "/", "Accept-Encoding", "br;q=1.0, GZIP;q=0.8").Header().Get("Content-Encoding"))
		requireIn(t, g.get(t, 0, "/", "Accept", "application/json;q=0, */*").Body.String(), "</html>")

		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions} {
			w := httptest.NewRecorder()
			g.pages[0].ServeHTTP(w, httptest.NewRequest(method, "/", nil))
			require.Equal(t, http.StatusMethodNotAllowed, w.Code)
			require.Equal(t, "GET, HEAD", w.Header().Get("Allow"))
		}
	})
}

func TestStatusHandler_WrongOptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newMesh(t, 2, Options{}, nil)
		for want, o := range map[string]Options{
			"gridstatus: Every is 1ms, must be from 100ms to 1h0m0s":    {Every: time.Millisecond},
			"gridstatus: Every is 2h0m0s, must be from 100ms to 1h0m0s": {Every: 2 * time.Hour},
			"gridstatus: Timeout is 1m0s, must be up to 10s":            {Timeout: time.Minute},
			"gridstatus: Timeout is -1ns, must be up to 10s":            {Timeout: -1},
			"gridstatus: grid: handler already exists: ID 200":          {},
		} {
			_, err := New(g.Manager(0), statusID, o)
			require.ErrorContains(t, err, want)
		}
		_, err := New(nil, statusID, Options{})
		require.EqualError(t, err, "gridstatus: the Manager is nil")
	})
}

// A host that is closed still says what it last saw.
func TestStatusHandler_PageOfAClosedManager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newMesh(t, 2, Options{}, nil)
		require.NoError(t, g.Shutdown(context.Background(), 0))
		requireIn(t, g.get(t, 0, "/").Body.String(), "0 of 1 link up, 1 of 2 hosts answering")
	})
}

func TestStatusHandler_HeadIsAnsweredLikeGet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newMesh(t, 2, Options{}, nil)
		w := httptest.NewRecorder()
		g.pages[0].ServeHTTP(w, httptest.NewRequest(http.MethodHead, "/", nil))
		require.Equal(t, http.StatusOK, w.Code)
		require.Equal(t, g.get(t, 0, "/").Header(), w.Header())
	})
}

// Who gives up does not wait, and what was begun is there for the next one.
func TestStatusHandler_RequestThatIsCancelledReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newMesh(t, 3, Options{Timeout: 10 * time.Second}, nil)
		g.PartitionSilently([]int{2})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		_, err := g.pages[0].Mesh(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(begin))
		// The cause may be the error of another call, which this is not.
		grouped, fail := context.WithCancelCause(t.Context())
		fail(grid.NewRemoteErrString("disk is full"))
		_, err = g.pages[0].Mesh(grouped)
		require.EqualError(t, err, "context canceled: disk is full")
		require.ErrorIs(t, err, context.Canceled)
		require.False(t, grid.IsRemoteErr(err))

		w := httptest.NewRecorder()
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		g.pages[0].ServeHTTP(w, httptest.NewRequestWithContext(cancelled, http.MethodGet, "/", nil))
		require.Equal(t, http.StatusServiceUnavailable, w.Code)
		require.Contains(t, g.see(t, 0).node(t, g.Host(2)).Err, "deadline exceeded")
		require.Equal(t, 10*time.Second, time.Since(begin))
	})
}

// However many read, and whatever they choose, a page is made once, and few are kept.
func TestStatusHandler_PagesAreMadeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newMesh(t, 20, Options{}, nil)
		b := &g.pages[0].bodies
		first := g.get(t, 0, "/").Body.String()
		for i := range 20 {
			for range 3 {
				g.get(t, 0, "/?node="+g.Host(i))
				g.get(t, 0, fmt.Sprint("/?node=", rand.Text()))
			}
		}
		require.Len(t, b.made, maxBodies)
		made := b.made[bodyKind{node: g.Host(0)}]
		again, err := b.get(g.see(t, 0), bodyKind{node: g.Host(0)}, "")
		require.NoError(t, err)
		require.Same(t, &made[0], &again[0])
		time.Sleep(2 * time.Second)
		require.NotEqual(t, first, g.get(t, 0, "/").Body.String())
		require.Len(t, b.made, 1)
	})
}

func TestMesh_HostsComeAndGoUnderThePage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newMesh(t, 3, Options{}, nil)
		require.Len(t, g.see(t, 0).Nodes, 3)
		require.NoError(t, g.Manager(0).RemoveHost(g.Host(2)))
		time.Sleep(3 * time.Second)
		m := g.see(t, 0)
		require.Len(t, m.Nodes, 2)
		require.Equal(t, []string{g.Host(2)}, m.Others, "node 1 knows it still")
		requireIn(t, g.get(t, 0, "/").Body.String(), "has not: <bdi>http://node2:9000</bdi>")
		require.NoError(t, g.Manager(0).AddHost(g.Host(2)))
		require.NoError(t, g.Conn(0, 2).WaitForConnect(t.Context()))
		time.Sleep(3 * time.Second)
		text, good := summaryOf(g.see(t, 0))
		require.Equal(t, "All is well: 3 links of 3 hosts up", text)
		require.True(t, good)
	})
}
