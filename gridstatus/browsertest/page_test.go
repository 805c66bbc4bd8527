package browsertest

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
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

func TestPageFollowsTheMeshWhileOpen(t *testing.T) {
	g := newMesh(t, 4)
	b := open(t, g.Host(0)+"/grid", 1200, 900)
	b.waitFor("#summary", "All 6 links of 4 hosts are up")
	row := b.rows()
	require.Eventually(t, func() bool {
		label, class := b.cell(row[g.Host(1)], row[g.Host(2)])
		return class == "up" && strings.HasPrefix(label, "connected, ") && strings.HasSuffix(label, "s")
	}, 20*time.Second, every, "a round-trip time")

	// What is the reader's must stay: this is the same page, its focus and scrolling.
	eval[bool](b, `(() => {
		window.mark = 1; window.said = [];
		new MutationObserver(() => said.push(summary.innerText)).observe(summary, {characterData: true, childList: true, subtree: true});
		document.querySelectorAll(".matrix a")[2].focus();
		window.scrollTo(0, 40);
		return true
	})()`)

	g.Partition([]int{0, 1, 3}, []int{0, 2, 3}) // only 1 and 2 can't reach each other
	b.waitFor("#summary", "5 of 6 links are up, 4 of 4 hosts answer")
	for _, p := range [][2]int{{1, 2}, {2, 1}} {
		label, class := b.cell(row[g.Host(p[0])], row[g.Host(p[1])])
		require.Equal(t, "down", class)
		require.NotContains(t, label, "connected,")
	}
	_, class := b.cell(row[g.Host(1)], row[g.Host(3)])
	require.Equal(t, "up", class)
	require.Equal(t, "test mesh: 5 of 6 links are up, 4 of 4 hosts answer", run(b, chromedp.Title()))
	require.Contains(t, b.text("section[aria-labelledby=errors]"), "grid: disconnected")
	b.shot("cut")

	g.Heal()
	b.waitFor("#summary", "All 6 links of 4 hosts are up")
	_, class = b.cell(row[g.Host(1)], row[g.Host(2)])
	require.Equal(t, "up", class)
	require.Contains(t, b.text("section[aria-labelledby=errors]"), "grid: disconnected", "the last error stays")

	loads := b.loads()
	require.Eventually(t, func() bool { return b.loads() > loads+3 }, 20*time.Second, every)
	require.Equal(t, 1, eval[int](b, "window.mark"), "the page was loaded anew")
	require.Equal(t, 40, eval[int](b, "window.scrollY"))
	require.True(t, eval[bool](b, `document.activeElement === document.querySelectorAll(".matrix a")[2]`))
	require.Equal(t, []string{"5 of 6 links are up, 4 of 4 hosts answer", "All 6 links of 4 hosts are up"}, eval[[]string](b, "said"),
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

func TestPageShowsTrafficAndTheChosenHost(t *testing.T) {
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
	_, err := chromedp.RunResponse(b.ctx, chromedp.Click(fmt.Sprintf(`section[aria-labelledby=hosts] a[href*="%s"]`, strings.TrimPrefix(g.Host(1), "http://127.0.0.1:"))))
	require.NoError(t, err)
	b.waitFor("#links", "Links of "+strings.TrimPrefix(g.Host(1), "http://"))
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		assert.Regexp(c, `connected\s+\d+ s\s.*\d (KiB|MiB)/s\s`, b.text("section[aria-labelledby=links] tbody"))
	}, 20*time.Second, every)
	stop()
	<-done
	b.shot("chosen")
	b.requireQuiet(g.Host(0))
}

func TestPageSaysThatItsHostDoesNotAnswer(t *testing.T) {
	g := newMesh(t, 2)
	b := open(t, g.Host(0)+"/grid", 1200, 900)
	b.waitFor("#summary", "All 1 links of 2 hosts are up")
	g.Stop(0)
	require.Eventually(t, func() bool {
		return strings.HasPrefix(b.text("#summary"), "This host has not answered since ") && eval[bool](b, `document.body.classList.contains("stale")`)
	}, 20*time.Second, every)
	b.shot("stale")
	g.Start(0)
	g.WaitConnected()
	b.waitFor("#summary", "All 1 links of 2 hosts are up")
	require.False(t, eval[bool](b, `document.body.classList.contains("stale")`))
}

func TestPageThatNobodySeesAsksNothing(t *testing.T) {
	g := newMesh(t, 2)
	b := open(t, g.Host(0)+"/grid", 1200, 900)
	b.waitFor("#summary", "All 1 links of 2 hosts are up")
	eval[bool](b, `(() => { Object.defineProperty(document, "hidden", {get: () => window.unseen, configurable: true}); window.unseen = true; return true })()`)
	time.Sleep(3 * every) // what is under way ends
	before := b.loads()
	time.Sleep(5 * every)
	require.Equal(t, before, b.loads())
	eval[bool](b, `(() => { window.unseen = false; document.dispatchEvent(new Event("visibilitychange")); return true })()`)
	require.Eventually(t, func() bool { return b.loads() > before+1 }, 20*time.Second, every)
}

func TestPageWithoutScriptsIsLoadedAnew(t *testing.T) {
	g := newMesh(t, 2)
	b := open(t, g.Host(0)+"/grid", 1200, 900, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
		return err
	}))
	require.Eventually(t, func() bool { return b.loads() >= 3 }, 20*time.Second, every)
	b.requireQuiet(g.Host(0))
}

// contrast is the smallest one between a text of the page and what is behind it.
const contrast = `(() => {
	const parse = c => c.match(/[\d.]+/g).map(Number);
	const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
		.reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
	const back = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] === 1) return c } return [255, 255, 255] };
	let worst = {ratio: 21, text: ""};
	for (const walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT); walk.nextNode();) {
		const e = walk.currentNode.parentElement;
		if (!walk.currentNode.data.trim()) continue;
		const [a, b] = [light(parse(getComputedStyle(e).color)), light(back(e))];
		const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
		if (ratio < worst.ratio) worst = {ratio, text: e.outerHTML};
	}
	return worst
})()`

func TestPageCanBeReadInLightAndDark(t *testing.T) {
	g := newMesh(t, 4)
	g.Partition([]int{0, 1}, []int{0, 2}, []int{3})
	backs := map[string]string{}
	for _, scheme := range []string{"light", "dark"} {
		b := open(t, g.Host(0)+"/grid", 1200, 900, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
			})
			return err
		}))
		b.waitFor("#summary", "2 of 6 links are up, 3 of 4 hosts answer")
		worst := eval[struct {
			Ratio float64
			Text  string
		}](b, contrast)
		t.Logf("%s: the least contrast is %.1f, of %s", scheme, worst.Ratio, worst.Text)
		require.GreaterOrEqual(t, worst.Ratio, 4.5, worst.Text)
		backs[scheme] = eval[string](b, "getComputedStyle(document.body).backgroundColor")
		b.shot(scheme)
		b.requireQuiet(g.Host(0))
	}
	require.NotEqual(t, backs["light"], backs["dark"])
}

func TestPageFitsAPhone(t *testing.T) {
	g := newMesh(t, 8)
	g.Partition([]int{0, 1, 2, 3, 4, 5, 6}, []int{0, 2, 3, 4, 5, 6, 7})
	b := open(t, g.Host(0)+"/grid", 360, 740)
	b.waitFor("#summary", "27 of 28 links are up, 8 of 8 hosts answer")
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

// What a screen reader is given: names for all there is, and tables as tables.
func TestPageForAScreenReader(t *testing.T) {
	g := newMesh(t, 3)
	g.Partition([]int{0, 1}, []int{0, 2})
	b := open(t, g.Host(0)+"/grid", 1200, 900)
	b.waitFor("#summary", "2 of 3 links are up, 3 of 3 hosts answer")
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
	require.Len(t, names["table"], 4)
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

func TestPageWithAHundredHosts(t *testing.T) {
	const n = 100
	begin := time.Now()
	g := newMesh(t, n)
	t.Logf("%d hosts were connected after %v", n, time.Since(begin))
	b := open(t, g.Host(0)+"/grid", 1600, 1000)
	require.Eventually(t, func() bool { return b.text("#summary") == "All 4950 links of 100 hosts are up" }, time.Minute, every)
	require.Equal(t, n*n, eval[int](b, `document.querySelectorAll(".matrix td").length`))
	// The whole matrix can be seen at once on a usual screen.
	require.LessOrEqual(t, eval[float64](b, `document.querySelector(".matrix").getBoundingClientRect().width`), 1900.)
	took := run(b, chromedp.Evaluate[float64](`(async () => {
		const begin = performance.now();
		await (await fetch(location.href, {headers: {Accept: "text/html"}})).text();
		return performance.now() - begin
	})()`, chromedp.EvalAwaitPromise))
	t.Logf("the page took %.0f ms", took)
	g.Partition([]int{99})
	require.Eventually(t, func() bool { return b.text("#summary") == "4851 of 4950 links are up, 99 of 100 hosts answer" }, time.Minute, every)
	b.shot("hundred")
	b.requireQuiet(g.Host(0))
}

// TestPicture makes that of the README: GRID_SHOTS=$PWD/../../docs go test -run Picture .
func TestPicture(t *testing.T) {
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
	b := open(t, srv.URL, 1180, 700)
	// Silently, as when a cable is pulled.
	g.PartitionSilently([]int{0, 1, 2, 3, 4}, []int{0, 1, 2, 4, 5})
	b.waitFor("#summary", "14 of 15 links are up, 6 of 6 hosts answer")
	g.PartitionSilently([]int{0, 1, 3, 4, 5}, []int{0, 2, 3, 4, 5})
	require.Eventually(t, func() bool {
		cell := func(from, to int) string { _, class := b.cell(from, to); return class }
		return cell(3, 5) == "up" && cell(5, 3) == "up" && cell(1, 2) == "down" && cell(2, 1) == "down"
	}, 20*time.Second, every)
	time.Sleep(3 * time.Second) // of traffic
	b.shot("gridstatus")
}
