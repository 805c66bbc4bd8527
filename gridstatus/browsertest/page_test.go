package browsertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridstatus"
	"github.com/gridrpc/grid/gridtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// shot keeps a picture of the page in the directory GRID_SHOTS, if that is set.
func (b *tab) shot(name string) {
	b.t.Helper()
	if dir := os.Getenv("GRID_SHOTS"); dir != "" {
		require.NoError(b.t, os.WriteFile(filepath.Join(dir, name+".png"), run(b, chromedp.FullScreenshot(100)), 0o644))
	}
}

func TestBrowser_FollowsTheMeshWhileThePageIsOpen(t *testing.T) {
	g := newMesh(t, 4)
	b := open(t, g.Host(0)+"/grid", 1200, 900)
	b.waitFor("#summary", "All is well: 6 links of 4 hosts up")
	row := b.rows()
	require.Eventually(t, func() bool {
		label, class := b.cell(row[g.Host(1)], row[g.Host(2)])
		return class == "up" && strings.HasPrefix(label, "connected, ") && strings.HasSuffix(label, "s")
	}, 20*time.Second, every, "a round-trip time")

	// What is the reader's must stay: this is the same page, its focus and scrolling.
	eval[bool](b, `(() => {
		window.mark = 1; window.said = [];
		const live = document.querySelector("[role=status]");
		new MutationObserver(() => window.said.push(live.innerText)).observe(live, {characterData: true, childList: true, subtree: true});
		document.querySelectorAll(".matrix a")[2].focus();
		window.scrollTo(0, 40);
		return true
	})()`)

	g.Partition([]int{0, 1, 3}, []int{0, 2, 3}) // only 1 and 2 can't reach each other
	b.waitFor("#summary", "5 of 6 links up, 4 of 4 hosts answering")
	b.waitFor("[role=status]", "5 of 6 links up, 4 of 4 hosts answering")
	for _, p := range [][2]int{{1, 2}, {2, 1}} {
		label, class := b.cell(row[g.Host(p[0])], row[g.Host(p[1])])
		require.Equal(t, "down", class)
		require.NotContains(t, label, "connected,")
	}
	_, class := b.cell(row[g.Host(1)], row[g.Host(3)])
	require.Equal(t, "up", class)
	require.Equal(t, "test mesh: 5 of 6 links up, 4 of 4 hosts answering", run(b, chromedp.Title()))
	require.Contains(t, b.text("section:has(#errors)"), "grid: disconnected")
	b.shot("cut")

	g.Heal()
	b.waitFor("#summary", "All is well: 6 links of 4 hosts up")
	_, class = b.cell(row[g.Host(1)], row[g.Host(2)])
	require.Equal(t, "up", class)
	require.Contains(t, b.text("section:has(#errors)"), "grid: disconnected", "the last error stays")

	b.waitFor("[role=status]", "All is well: 6 links of 4 hosts up") // no sooner than 5 refreshes after what was said before
	loads := b.loads()
	require.Eventually(t, func() bool { return b.loads() > loads+3 }, 20*time.Second, every)
	require.Equal(t, 1, eval[int](b, "window.mark"), "the page was loaded anew")
	require.Equal(t, 40, eval[int](b, "window.scrollY"))
	require.True(t, eval[bool](b, `document.activeElement === document.querySelectorAll(".matrix a")[2]`))
	require.Equal(t, []string{"5 of 6 links up, 4 of 4 hosts answering", "All is well: 6 links of 4 hosts up"}, eval[[]string](b, "window.said"),
		"a screen reader is to hear of changes only")
	b.requireQuiet(g.Host(0))
}

// loads is how often the page was loaded, by the browser or by itself.
func (b *tab) loads() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.requests)
}

// rows are those of the matrix, by the base URL of the host.
func (b *tab) rows() map[string]int {
	b.t.Helper()
	rows := make(map[string]int)
	for i, href := range eval[[]string](b, `[...document.querySelectorAll(".matrix a")].map(a => new URL(a.href).searchParams.get("node"))`) {
		rows[href] = i
	}
	return rows
}

func TestBrowser_ShowsTrafficAndTheChosenHost(t *testing.T) {
	g := newMesh(t, 3)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_, _ = g.Conn(1, 2).SingleRequest(ctx, echoID, make([]byte, 10_000))
			time.Sleep(time.Millisecond)
		}
	}()
	b := open(t, g.Host(0)+"/grid", 1200, 900)
	_, err := chromedp.RunResponse(b.ctx, chromedp.Click(fmt.Sprintf(`section:has(#hosts) a[href*="%s"]`, strings.TrimPrefix(g.Host(1), "http://127.0.0.1:"))))
	require.NoError(t, err)
	b.waitFor("#links", "Links of "+strings.TrimPrefix(g.Host(1), "http://"))
	require.True(t, strings.HasSuffix(eval[string](b, "location.href"), "#links"), "they are in sight")
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		assert.Regexp(c, `connected\s+\d+ s\s.*\d (KiB|MiB)/s\s`, b.text("section:has(#links) tbody"))
	}, 20*time.Second, every)
	stop()
	<-done
	b.shot("chosen")
	b.requireQuiet(g.Host(0))
}

func TestBrowser_SaysThatTheHostDoesNotAnswer(t *testing.T) {
	g := newMesh(t, 2)
	b := open(t, g.Host(0)+"/grid", 1200, 900)
	b.waitFor("#summary", "All is well: 1 link of 2 hosts up")
	g.Stop(0)
	require.Eventually(t, func() bool {
		return strings.HasPrefix(b.text("#summary"), "This host does not answer. What is below is older than ") && eval[bool](b, `document.body.classList.contains("stale")`)
	}, 20*time.Second, every)
	require.GreaterOrEqual(t, b.contrast(), 4.5)
	b.shot("stale")
	g.Start(0)
	g.WaitConnected()
	b.waitFor("#summary", "All is well: 1 link of 2 hosts up")
	require.False(t, eval[bool](b, `document.body.classList.contains("stale")`))
}

func TestBrowser_AsksNothingWhileNobodySeesThePage(t *testing.T) {
	g := newMesh(t, 2)
	b := open(t, g.Host(0)+"/grid", 1200, 900)
	b.waitFor("#summary", "All is well: 1 link of 2 hosts up")
	eval[bool](b, `(() => { Object.defineProperty(document, "hidden", {get: () => window.unseen, configurable: true}); window.unseen = true; return true })()`)
	time.Sleep(3 * every) // what is under way ends
	before := b.loads()
	time.Sleep(5 * every)
	require.Equal(t, before, b.loads())
	eval[bool](b, `(() => { window.unseen = false; document.dispatchEvent(new Event("visibilitychange")); return true })()`)
	require.Eventually(t, func() bool { return b.loads() > before+1 }, 20*time.Second, every)
}

func TestBrowser_WithoutScriptsLoadsThePageAnew(t *testing.T) {
	g := newMesh(t, 2)
	b := open(t, g.Host(0)+"/grid", 1200, 900, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
		return err
	}))
	require.Eventually(t, func() bool { return b.loads() >= 3 }, 20*time.Second, every)
	b.requireQuiet(g.Host(0))
}

func media(feature, value string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: feature, Value: value}},
		})
		return err
	})
}

func TestBrowser_PageCanBeReadInLightAndDark(t *testing.T) {
	g := newMesh(t, 4)
	g.Partition([]int{0, 1}, []int{0, 2}, []int{3})
	backs := map[string]string{}
	for _, scheme := range []string{"light", "dark"} {
		b := open(t, g.Host(0)+"/grid", 1200, 900, media("prefers-color-scheme", scheme))
		b.waitFor("#summary", "2 of 6 links up, 3 of 4 hosts answering")
		require.GreaterOrEqual(t, b.contrast(), 4.5, scheme)
		backs[scheme] = eval[string](b, "getComputedStyle(document.body).backgroundColor")
		b.shot(scheme)
		b.requireQuiet(g.Host(0))
	}
	require.NotEqual(t, backs["light"], backs["dark"])
}

func TestBrowser_PageFitsAPhone(t *testing.T) {
	g := newMesh(t, 8)
	g.Partition([]int{0, 1, 2, 3, 4, 5, 6}, []int{0, 2, 3, 4, 5, 6, 7})
	b := open(t, g.Host(0)+"/grid", 360, 740)
	b.waitFor("#summary", "27 of 28 links up, 8 of 8 hosts answering")
	require.Equal(t, 360, eval[int](b, "document.documentElement.scrollWidth"), "the page is wider than the screen")
	require.True(t, eval[bool](b, `[...document.querySelectorAll(".scroll")].every(e => e.getBoundingClientRect().right <= 360)`))
	// A table is scrolled on its own, with the hosts' names in sight.
	require.InDelta(t, 0, eval[float64](b, `(() => {
		const s = document.querySelector(".scroll"), th = s.querySelector("tbody th");
		const before = th.getBoundingClientRect().left;
		s.scrollLeft = 200;
		return s.scrollLeft === 200 ? th.getBoundingClientRect().left - s.getBoundingClientRect().left : 1000
	})()`), 4)
	require.True(t, eval[bool](b, `[...document.querySelectorAll("a, td, th, p")].every(e => parseFloat(getComputedStyle(e).fontSize) >= 12)`))
	b.shot("phone")
	b.requireQuiet(g.Host(0))
}

// page serves what its function returns, for what a real host can't be brought to say.
func page(t *testing.T) (url string, set func(http.HandlerFunc)) {
	var now atomic.Pointer[http.HandlerFunc]
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*now.Load())(w, r) }))
	t.Cleanup(srv.Close)
	return srv.URL + "/grid", func(h http.HandlerFunc) { now.Store(&h) }
}

// named is the page of a grid in memory, whose hosts have names instead of addresses.
func named(t *testing.T, n int, edit func(html string) string, opts ...gridtest.Option) http.HandlerFunc {
	pages := make([]*gridstatus.Status, n)
	opts = append(opts, gridtest.WithHandlers(func(node int, m *grid.Manager) (err error) {
		pages[node], err = gridstatus.New(m, statusID, gridstatus.Options{Title: "test mesh", Every: every})
		return err
	}))
	gridtest.New(t, n, opts...)
	return func(w http.ResponseWriter, r *http.Request) {
		answer := httptest.NewRecorder()
		r.Header.Del("Accept-Encoding")
		pages[0].ServeHTTP(answer, r)
		maps.Copy(w.Header(), answer.Header())
		_, _ = io.WriteString(w, edit(answer.Body.String()))
	}
}

func TestBrowser_PageWithLongNamesFitsAPhone(t *testing.T) {
	url, set := page(t)
	set(named(t, 3, strings.NewReplacer("test mesh", strings.Repeat("storagenodes.production.europe.", 4),
		">node", ">storagenode.production.europe.example.internal.node", "Links of node", "Links of "+strings.Repeat("long", 30)).Replace))
	b := open(t, url, 360, 740)
	require.Equal(t, 360, eval[int](b, "document.documentElement.scrollWidth"), "the page is wider than the screen")
	b.shot("long")
}

func TestBrowser_SaysWhatHasComeInstead(t *testing.T) {
	url, set := page(t)
	good := named(t, 2, func(html string) string { return html })
	set(good)
	b := open(t, url, 1200, 900)
	for _, c := range []struct {
		want   string
		answer http.HandlerFunc
	}{
		{"This host has answered with 401 Unauthorized.", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "<main id=summary>sign in", http.StatusUnauthorized)
		}},
		{"This host has answered with 502 Bad Gateway.", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }},
		{"Another page has come: load this one again, perhaps to sign in.", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/login" {
				http.Redirect(w, r, "/login", http.StatusFound)
				return
			}
			_, _ = io.WriteString(w, "<!DOCTYPE html><title>Sign in</title><main><h1>Sign in</h1></main>")
		}},
	} {
		b.waitFor("#summary", "All is well: 1 link of 2 hosts up")
		set(c.answer)
		require.Eventually(t, func() bool { return strings.HasPrefix(b.text("#summary"), c.want+" What is below is older than ") }, 20*time.Second, every/4, c.want)
		require.Equal(t, "test mesh", b.text("h1"))
		set(good)
	}
	b.waitFor("#summary", "All is well: 1 link of 2 hosts up")
}

// A host with a new version has a new page.
func TestBrowser_LoadsThePageOfANewVersionAnew(t *testing.T) {
	url, set := page(t)
	good := named(t, 2, func(html string) string { return html })
	set(good)
	b := open(t, url, 1200, 900)
	eval[int](b, "window.mark = 1")
	set(named(t, 2, func(html string) string { return strings.Replace(html, "data-version=\"", "data-version=\"new", 1) }))
	require.Eventually(t, func() bool { return eval[string](b, "String(window.mark)") == "undefined" }, 20*time.Second, every)
	set(good)
}

// A host that comes or goes does not take the focus to another one, and what is said of a cell is
// what it says now.
func TestBrowser_KeepsTheFocusWhileHostsComeAndGo(t *testing.T) {
	g := newMesh(t, 4)
	b := open(t, g.Host(0)+"/grid", 1200, 900)
	b.waitFor("#summary", "All is well: 6 links of 4 hosts up")
	hosts := g.Hosts()
	slices.Sort(hosts)
	rest := slices.DeleteFunc(slices.Clone(hosts), func(h string) bool { return h == g.Host(0) })
	focus := func() string { return eval[string](b, `new URL(document.activeElement.href).searchParams.get("node")`) }
	eval[bool](b, fmt.Sprintf(`(() => { document.querySelector('.matrix tr[data-key="%s"] a').focus(); return true })()`, rest[2]))
	require.Equal(t, rest[2], focus())
	for _, gone := range rest[:2] {
		require.NoError(t, g.Manager(0).RemoveHost(gone))
	}
	b.waitFor("#summary", "All is well: 1 link of 2 hosts up")
	require.Equal(t, rest[2], focus())
	require.Equal(t, 2, len(b.rows()))
	for _, back := range rest[:2] {
		require.NoError(t, g.Manager(0).AddHost(back))
	}
	b.waitFor("#summary", "All is well: 6 links of 4 hosts up")
	require.Equal(t, rest[2], focus())
	order := eval[[]string](b, `[...document.querySelectorAll(".matrix tbody tr")].map(row => row.dataset.key)`)
	require.Equal(t, hosts, order)
	require.Equal(t, hosts, eval[[]string](b, `[...document.querySelectorAll("section:has(#hosts) tbody tr")].map(row => row.dataset.key)`))

	// The hint under the pointer.
	rows := b.rows()
	name := func(h string) string { return strings.TrimPrefix(h, "http://") }
	eval[bool](b, fmt.Sprintf(`(() => { document.querySelector(".matrix tbody").rows[%d].cells[%d].dispatchEvent(new MouseEvent("mouseover", {bubbles: true})); return true })()`,
		rows[rest[0]], rows[rest[1]]+1))
	require.True(t, strings.HasPrefix(b.text("#hint"), name(rest[0])+" to "+name(rest[1])+": connected"), b.text("#hint"))
	i, j := slices.Index(g.Hosts(), rest[0]), slices.Index(g.Hosts(), rest[1])
	var others []int
	for k := range g.Len() {
		if k != i && k != j {
			others = append(others, k)
		}
	}
	g.Partition(append([]int{i}, others...), append([]int{j}, others...))
	require.Eventually(t, func() bool {
		hint := b.text("#hint")
		return strings.HasSuffix(hint, "connection error") || strings.HasSuffix(hint, "connecting")
	}, 20*time.Second, every)
	b.requireQuiet(g.Host(0))
}

// Where colours are the system's, what is down has a border.
func TestBrowser_PageInForcedColours(t *testing.T) {
	g := newMesh(t, 2)
	b := open(t, g.Host(0)+"/grid", 1200, 900, media("forced-colors", "active"))
	require.Equal(t, []string{"dashed", "solid"}, eval[[]string](b, `[".legend .wait", ".legend .down"].map(c => getComputedStyle(document.querySelector(c)).borderTopStyle)`))
}

// What a screen reader is given: names for all there is, and tables as tables.
func TestBrowser_PageForAScreenReader(t *testing.T) {
	g := newMesh(t, 3)
	g.Partition([]int{0, 1}, []int{0, 2})
	b := open(t, g.Host(0)+"/grid", 1200, 900)
	b.waitFor("#summary", "2 of 3 links up, 3 of 3 hosts answering")
	require.Equal(t, "en", eval[string](b, "document.documentElement.lang"))

	tree, err := chromedp.Call(b.ctx, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	require.NoError(t, err)
	names := map[string][]string{} // by role
	for _, n := range tree.Nodes {
		if n.Ignored || n.Role == nil {
			continue
		}
		role, name := strings.Trim(string(n.Role.Value), `"`), ""
		if n.Name != nil {
			name = strings.Trim(string(n.Name.Value), `"`)
		}
		names[role] = append(names[role], name)
	}
	require.Len(t, names["main"], 1)
	require.Len(t, names["status"], 1)
	require.Equal(t, []string{"test mesh", "Who is connected to whom", "Last errors", "Hosts"}, names["heading"][:4])
	require.Len(t, names["table"], 5)
	for _, role := range []string{"table", "region", "link", "heading", "rowheader", "columnheader"} {
		require.NotContains(t, names[role], "", "a %s without a name", role)
	}
	short := func(i int) string { return strings.TrimPrefix(g.Host(i), "http://") }
	for i := range 3 {
		require.Contains(t, names["columnheader"], short(i))
		require.Contains(t, names["rowheader"], short(i))
	}
	cells := strings.Join(names["cell"], "\n") + strings.Join(names["gridcell"], "\n")
	require.Contains(t, cells, "itself")
	require.Contains(t, cells, "connected")
	require.Regexp(t, "connection error|connecting", cells, "down in words")

	// All that can be used is reached by the tab key.
	want := eval[int](b, `document.querySelectorAll("a[href], [tabindex='0']").length`)
	reached := map[string]bool{}
	for range want {
		run(b, chromedp.KeyEvent("\t"))
		reached[eval[string](b, `(e => [...document.querySelectorAll("a[href], [tabindex='0']")].indexOf(e) + e.tagName)(document.activeElement)`)] = true
	}
	require.Len(t, reached, want)
	b.requireQuiet(g.Host(0))
}

func TestBrowser_PageWithAHundredHosts(t *testing.T) {
	n := 100
	if testing.Short() {
		n = 40 // a sixth of the links
	}
	links := n * (n - 1) / 2
	begin := time.Now()
	// In times that a slow machine keeps.
	g := newMeshWith(t, n, gridstatus.Options{Title: "test mesh", Every: 2 * time.Second, Timeout: 10 * time.Second},
		gridtest.WithOptions(func(_ int, o *grid.ManagerOptions) { o.PingInterval = time.Minute }))
	t.Logf("%d hosts were connected after %v", n, time.Since(begin))
	b := open(t, g.Host(0)+"/grid", 1920, 1080)
	require.Eventually(t, func() bool {
		return b.text("#summary") == fmt.Sprintf("All is well: %d links of %d hosts up", links, n)
	}, 5*time.Minute, every)
	require.Equal(t, n*n, eval[int](b, `document.querySelectorAll(".matrix td").length`))
	// The matrix can be seen without scrolling to the side, and what the pointer is on in words
	// wherever it is.
	require.True(t, eval[bool](b, `(s => s.scrollWidth <= s.clientWidth)(document.querySelector(".scroll"))`))
	require.True(t, eval[bool](b, `(() => {
		const rows = document.querySelector(".matrix tbody").rows;
		const cell = rows[Math.floor(0.9 * rows.length)].cells[Math.floor(rows.length / 2)];
		cell.scrollIntoView({block: "center"});
		cell.dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
		const hint = document.getElementById("hint").getBoundingClientRect();
		return hint.top >= 0 && hint.bottom <= innerHeight
	})()`))
	took := run(b, chromedp.Evaluate[float64](`(async () => {
		const begin = performance.now();
		await (await fetch(location.href, {headers: {Accept: "text/html"}})).text();
		return performance.now() - begin
	})()`, chromedp.EvalAwaitPromise))
	t.Logf("the page took %.0f ms", took)
	g.Partition([]int{n - 1})
	want := fmt.Sprintf("%d of %d links up, %d of %d hosts answering", links-(n-1), links, n-1, n)
	require.Eventually(t, func() bool { return b.text("#summary") == want }, 5*time.Minute, every)
	b.shot("hundred")
	b.requireQuiet(g.Host(0))
}

// TestPicture_IsThatOfTheReadme makes that of the README: GRID_SHOTS=$PWD/../../docs go test -run
// Picture .
func TestPicture_IsThatOfTheReadme(t *testing.T) {
	if os.Getenv("GRID_SHOTS") == "" {
		t.Skip("GRID_SHOTS, where to put it, is not set")
	}
	var pages [6]*gridstatus.Status
	hold := grid.StreamHandler{InCapacity: 1, Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, _ chan<- []byte) *grid.RemoteErr {
		<-ctx.Done()
		return nil
	}}
	g := gridtest.New(t, len(pages), // in memory, where hosts have names
		gridtest.WithOptions(func(_ int, o *grid.ManagerOptions) { o.PingInterval = 500 * time.Millisecond }),
		gridtest.WithHandlers(func(node int, m *grid.Manager) (err error) {
			pages[node], err = gridstatus.New(m, statusID, gridstatus.Options{Title: "The grid in rack 7", Every: time.Second})
			return errors.Join(err, m.RegisterStreamingHandler(2, hold),
				m.RegisterSingleHandler(echoID, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil }))
		}))
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for from := range pages {
		for to := range pages {
			if from == to {
				continue
			}
			wg.Go(func() {
				for ctx.Err() == nil {
					_, _ = g.Conn(from, to).SingleRequest(ctx, echoID, make([]byte, 500*(1+(from+to)%5)))
					time.Sleep(time.Duration(5+3*from+2*to) * time.Millisecond)
				}
			})
			if to%2 == 0 {
				_, err := g.Conn(from, to).NewStream(ctx, 2, nil)
				require.NoError(t, err)
			}
		}
	}
	srv := httptest.NewServer(pages[0])
	defer srv.Close()
	b := open(t, srv.URL, 1480, 700)
	// Silently, as when a cable is pulled.
	g.PartitionSilently([]int{0, 1, 2, 3, 4}, []int{0, 1, 2, 4, 5})
	b.waitFor("#summary", "14 of 15 links up, 6 of 6 hosts answering")
	g.PartitionSilently([]int{0, 1, 3, 4, 5}, []int{0, 2, 3, 4, 5})
	require.Eventually(t, func() bool {
		cell := func(from, to int) string { _, class := b.cell(from, to); return class }
		return cell(3, 5) == "up" && cell(5, 3) == "up" && cell(1, 2) == "down" && cell(2, 1) == "down"
	}, 20*time.Second, every)
	time.Sleep(3 * time.Second) // of traffic
	b.shot("gridstatus")
}
