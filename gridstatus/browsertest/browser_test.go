package browsertest

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridstatus"
	"github.com/gridrpc/grid/gridtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	statusID grid.HandlerID = 200
	echoID   grid.HandlerID = 1
	every                   = 200 * time.Millisecond
)

// newMesh is a small grid of n hosts, each with the page at /grid, who ping often.
func newMesh(t *testing.T, n int) *gridtest.Grid {
	return newMeshWith(t, n, gridstatus.Options{Title: "test mesh", Every: every},
		gridtest.WithOptions(func(_ int, o *grid.ManagerOptions) { o.PingInterval = 500 * time.Millisecond }))
}

func newMeshWith(t *testing.T, n int, o gridstatus.Options, opts ...gridtest.Option) *gridtest.Grid {
	pages := make([]*gridstatus.Status, n)
	opts = append(opts,
		gridtest.TCP(),
		gridtest.WithHandlers(func(node int, m *grid.Manager) (err error) {
			pages[node], err = gridstatus.New(m, statusID, o)
			return err
		}),
		gridtest.WithHandlers(func(_ int, m *grid.Manager) error {
			return m.RegisterSingleHandler(echoID, func(b []byte) ([]byte, *grid.RemoteErr) { return b, nil })
		}),
		gridtest.WithRoutes(func(node int, mux *http.ServeMux) { mux.Handle("/grid", pages[node]) }),
	)
	return gridtest.New(t, n, opts...)
}

// tab is a page in a real browser. It remembers what went wrong in it, and what it loaded.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex // guards what follows
	faults   []string
	requests []string
}

// browser is the program that GRID_BROWSER names, or one that is here. Without any the test is
// skipped.
func browser(t *testing.T) string {
	if name := os.Getenv("GRID_BROWSER"); name != "" {
		return name
	}
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("there is no Chromium here; Debian has it as the package chromium")
	return ""
}

// open starts a browser and shows url in it.
func open(t *testing.T, url string, width, height int64, prepare ...chromedp.Action[chromedp.Void]) *tab {
	opts := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(browser(t)), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.WSURLReadTimeout(time.Minute),
		// It must want nothing of its own from the network.
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true),
	)
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), opts...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &tab{t: t, ctx: ctx}
	require.NoError(t, chromedp.Listen(ctx, b.listen))
	var size []chromedp.EmulateViewportOption
	if width < 600 {
		size = append(size, chromedp.EmulateMobile)
	}
	_, err := chromedp.Call(ctx, network.Enable, network.EnableParams{})
	require.NoError(t, err)
	_, err = chromedp.Call(ctx, log.Enable, cdp.Empty{})
	require.NoError(t, err)
	run(b, chromedp.EmulateViewport(width, height, size...))
	for _, p := range prepare {
		run(b, p)
	}
	run(b, chromedp.Navigate(url))
	return b
}

func (b *tab) listen(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		b.faults = append(b.faults, e.ExceptionDetails.Text)
	case *log.EventEntryAdded:
		b.faults = append(b.faults, e.Entry.Text)
	case *network.EventRequestWillBeSent:
		b.requests = append(b.requests, e.Request.URL)
	}
}

// run is for what should take no time.
func run[T any](b *tab, a chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	v, err := chromedp.Run(ctx, a)
	require.NoError(b.t, err)
	return v
}

// eval returns what a JavaScript expression is.
func eval[T any](b *tab, js string) T {
	b.t.Helper()
	return run(b, chromedp.Evaluate[T](js))
}

// text is that of the first element a selector finds.
func (b *tab) text(selector string) string {
	b.t.Helper()
	return strings.TrimSpace(eval[string](b, `document.querySelector("`+selector+`")?.innerText ?? ""`))
}

// waitFor waits until an element says something. The page changes by itself.
func (b *tab) waitFor(selector, want string) {
	b.t.Helper()
	require.EventuallyWithT(b.t, func(c *assert.CollectT) {
		assert.Equal(c, want, b.text(selector))
	}, 20*time.Second, every/4)
}

// cell is one of the matrix, as a screen reader says it.
func (b *tab) cell(from, to int) (label, class string) {
	b.t.Helper()
	js := fmt.Sprintf(`(() => { const c = document.querySelector(".matrix tbody").rows[%d].cells[%d]; return [c.getAttribute("aria-label") ?? c.innerText, c.className] })()`, from, to+1)
	v := eval[[]string](b, js)
	return v[0], v[1]
}

// requireQuiet is that nothing went wrong, and that nothing came from elsewhere.
func (b *tab) requireQuiet(host string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Empty(b.t, b.faults)
	for _, url := range b.requests {
		if url != "data:," {
			require.True(b.t, strings.HasPrefix(url, host+"/grid"), url)
		}
	}
}

// contrast is the smallest one between a text of the page and what is behind it.
func (b *tab) contrast() float64 {
	b.t.Helper()
	worst := eval[struct {
		Ratio float64
		Text  string
	}](b, `(() => {
		const parse = c => c.match(/[\d.]+/g).map(Number);
		const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
			.reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
		const back = e => {
			for (; e; e = e.parentElement) {
				const c = parse(getComputedStyle(e).backgroundColor);
				if (c.length < 4 || c[3] === 1) return c;
			}
			return [255, 255, 255];
		};
		const clear = e => e ? getComputedStyle(e).opacity * clear(e.parentElement) : 1;
		let worst = {ratio: 21, text: ""};
		for (const walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT); walk.nextNode();) {
			const e = walk.currentNode.parentElement;
			if (!walk.currentNode.data.trim()) continue;
			const under = back(e), alpha = clear(e);
			const ink = parse(getComputedStyle(e).color).slice(0, 3).map((v, i) => alpha * v + (1 - alpha) * under[i]);
			const [x, y] = [light(ink), light(under)];
			const ratio = (Math.max(x, y) + .05) / (Math.min(x, y) + .05);
			if (ratio < worst.ratio) worst = {ratio, text: e.outerHTML};
		}
		return worst
	})()`)
	b.t.Logf("the least contrast is %.1f, of %s", worst.Ratio, worst.Text)
	return worst.Ratio
}
