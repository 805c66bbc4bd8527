package gridstatus

import (
	"bytes"
	"fmt"
	"html"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// madeUp is a mesh of n hosts whose links are all up.
func madeUp(n int) *Mesh {
	m := &Mesh{Host: "https://node0.example:9000", Time: time.Unix(1e9, 0), Every: 2 * time.Second}
	for i := range n {
		m.Nodes = append(m.Nodes, Node{Host: fmt.Sprintf("https://node%d.example:9000", i)})
	}
	for i := range m.Nodes {
		v := &View{Host: m.Nodes[i].Host, Time: m.Time}
		for j := range m.Nodes {
			if i != j {
				v.Links = append(v.Links, Link{
					Host: m.Nodes[j].Host, State: connected, Since: time.Unix(0, 0),
					RoundTrip: 123 * time.Microsecond, Rate: &Rate{BytesIn: 1, BytesOut: 2, MessagesIn: 3, MessagesOut: 4},
				})
			}
		}
		m.Nodes[i].View = v
	}
	return m
}

func render(t testing.TB, m *Mesh, node string) string {
	var b bytes.Buffer
	require.NoError(t, writePage(&b, "title", m, m.chosen(node)))
	return b.String()
}

// requireIn does not print the page where require.Contains would.
func requireIn(t *testing.T, page, part string) {
	t.Helper()
	require.True(t, strings.Contains(page, part), "the page does not have %q", part)
}

func TestPage_OfManyHostsIsCompact(t *testing.T) {
	small := render(t, madeUp(largeMesh-1), "")
	require.False(t, strings.Contains(small, `class="matrix compact"`))
	requireIn(t, small, `aria-label="connected, 123 µs">123 µs</td>`)
	large := render(t, madeUp(100), "")
	requireIn(t, large, `class="matrix compact"`)
	require.Equal(t, 100*99, strings.Count(large, `<td class="up" aria-label="connected, 123 µs">·</td>`))
	requireIn(t, large, "All is well: 4950 links of 100 hosts up")
	require.Less(t, len(large), 1<<20)
}

func TestPage_IsThereForAnyMesh(t *testing.T) {
	for _, m := range []*Mesh{
		{}, {Nodes: []Node{{}}}, {Host: "://", Nodes: []Node{{Host: "://"}, {Host: "x", Err: "y"}}},
		{Nodes: []Node{{Host: "a", View: &View{}}, {Host: "b", View: &View{Links: []Link{{Host: "b"}, {Host: "c"}}}}}},
		madeUp(1), madeUp(2),
	} {
		requireIn(t, render(t, m, ""), "</html>")
	}
	requireIn(t, render(t, madeUp(1), ""), "All is well: 0 links of 1 host up")
}

var (
	tableCell = regexp.MustCompile(`(?s)<t[dh]([^>]*)>(.*?)</t[dh]>`)
	tag       = regexp.MustCompile(`<[^>]*>`)
)

// table returns what stands in the cells of the one under a heading, row by row, each with its
// class before it.
func table(page, heading string) (rows [][]string) {
	_, page, _ = strings.Cut(page, `<h2 id="`+heading+`">`)
	page, _, _ = strings.Cut(page, "</table>")
	for row := range strings.SplitSeq(page, "<tr") {
		var cells []string
		for _, m := range tableCell.FindAllStringSubmatch(row, -1) {
			text := html.UnescapeString(tag.ReplaceAllString(m[2], ""))
			if _, class, ok := strings.Cut(m[1], `class="`); ok {
				class, _, _ = strings.Cut(class, `"`)
				text = class + ":" + text
			}
			cells = append(cells, text)
		}
		if cells != nil {
			rows = append(rows, cells)
		}
	}
	return rows
}

// Each figure stands in the column that is named for it.
func TestPage_FiguresAreInTheirColumns(t *testing.T) {
	m := madeUp(3)
	now := m.Time
	m.Nodes[0].View.Links = []Link{
		{
			Host: m.Nodes[1].Host, State: connected, Since: now.Add(-90 * time.Second), Reconnects: 101,
			RoundTrip: 10 * time.Millisecond, RoundTripDeviation: 2 * time.Millisecond,
			BytesIn: 1 << 30, BytesOut: 2 << 30, Rate: &Rate{BytesIn: 3 << 10, BytesOut: 4 << 10, MessagesIn: 50, MessagesOut: 60},
			Calls: 7, Streams: 8, Handlers: 9, StreamsServed: 10, SlowConsumers: 11, QueuedBytes: 12 << 20, QueuedSenders: 13,
			KeptBytes: 14 << 20, Refused: 15, LimitsReached: map[string]int64{"MaxPings": 17, "MaxHandlers": 16},
		},
		{
			Host: m.Nodes[2].Host, State: connected, Since: now.Add(-30 * 24 * time.Hour), Reconnects: 1,
			RoundTrip: 30 * time.Millisecond, Rate: &Rate{BytesIn: 1 << 10, BytesOut: 1 << 10, MessagesIn: 1, MessagesOut: 1},
			Calls: 1, Streams: 1, Handlers: 1, StreamsServed: 1, QueuedBytes: 1 << 20, QueuedSenders: 1,
		},
	}
	page := render(t, m, "")
	require.Equal(t, [][]string{
		{"To", "State", "For", "Round trip", "In", "Out", "In, total", "Out, total", "Messages", "Queued", "Senders waiting", "Kept", "Calls", "Streams", "Handlers", "of streams", "Slow consumers", "Refused", "Reconnects", "text:Limits reached"},
		{"node1", "up:connected", "90 s", "10 ms ± 2.0 ms", "3.0 KiB/s", "4.0 KiB/s", "1.0 GiB", "2.0 GiB", "110/s", "12.0 MiB", "13", "14.0 MiB", "7", "8", "9", "10", "wait:11", "wait:15", "101", "text:MaxHandlers 16, MaxPings 17"},
		{"node2", "up:connected", "30 days", "30 ms ± 0.0 µs", "1.0 KiB/s", "1.0 KiB/s", "0 B", "0 B", "2.0/s", "1.0 MiB", "1", "0 B", "1", "1", "1", "1", ":0", ":0", "1", "text:"},
	}, table(page, "links"))
	require.Equal(t, []string{"Host", "Links up", "Round trip", "Longest", "In", "Out", "Messages", "Queued", "Calls", "Streams", "Handlers", "Slow consumers", "Refused", "Reconnects"}, table(page, "hosts")[0])
	require.Equal(t, []string{"node0", "up:2 of 2", "20 ms", "30 ms", "4.0 KiB/s", "5.0 KiB/s", "112/s", "13.0 MiB", "8", "9", "10", "wait:11", "wait:15", "102"}, table(page, "hosts")[1])
	require.Equal(t, [][]string{
		{"from \\ to", "node0", "node1", "node2"},
		{"node0", "none:–", "up:10 ms", "up:30 ms"},
		{"node1", "up:123 µs", "none:–", "up:123 µs"},
		{"node2", "up:123 µs", "up:123 µs", "none:–"},
	}, table(page, "matrix"))

	// One link was lost, one was never made, one is not listed, a host says nothing, and the others
	// are those of another one.
	m.Nodes[0].View.Links[0].State, m.Nodes[0].View.Links[0].LastDisconnect = "connecting", now.Add(-time.Second)
	m.Nodes[0].View.Links[1].State = "connecting"
	m.Nodes[1].View.Links = m.Nodes[1].View.Links[:1]
	m.Nodes[2].View, m.Nodes[2].Err = nil, "silent"
	page = render(t, m, m.Nodes[1].Host)
	require.Equal(t, [][]string{
		{"node0", "none:–", "down:down", "wait:wait"},
		{"node1", "up:123 µs", "none:–", "none:"},
		{"node2", "gone:no answer"},
	}, table(page, "matrix")[1:])
	require.Equal(t, []string{"node0", "down:0 of 2", "–", "–"}, table(page, "hosts")[1][:4])
	require.Equal(t, []string{"node1", "up:1 of 1", "123 µs", "123 µs"}, table(page, "hosts")[2][:4])
	require.Equal(t, []string{"node2", "down text:silent"}, table(page, "hosts")[3])
	requireIn(t, page, "Links of node1")
	require.Equal(t, "node0", table(page, "links")[1][0])
	require.Equal(t, [][]string{
		{"node0", "node2", "down:no answer", "", "text:silent"},
		{"node0", "node1", "down:connecting", "1 s ago", "text:"},
	}, table(page, "errors")[1:])
	requireIn(t, page, `data-every="2000"`)
	requireIn(t, page, `<meta http-equiv="refresh" content="2">`)
	requireIn(t, page, `<a href="?node=https%3A%2F%2Fnode2.example%3A9000#links">`)
}

func TestPage_ListsTheHandlersOfTheHostThatIsChosen(t *testing.T) {
	m := madeUp(2)
	requireNotIn := func(page, text string) { t.Helper(); require.NotContains(t, page, text) }
	requireNotIn(render(t, m, ""), `id="handlers"`)
	m.Nodes[1].View.Handlers = []Handler{
		{ID: 1, Name: "lock<", Running: 2, MaxRunning: 3, Calls: 4, Failed: 5, Refused: 6},
		{ID: 7, Name: "7", Subroute: "a/b", Stream: true, Running: 1, Calls: 1},
	}
	requireNotIn(render(t, m, ""), `id="handlers"`)
	require.Equal(t, [][]string{
		{"Handler", "ID", "Subroute", "Serves", "Running", "Limit", "Calls", "Errors", "Refused"},
		{"lock<", "1", "", "requests", "2", "3", "4", "5", "wait:6"},
		{"7", "7", "a/b", "streams", "1", "–", "1", "0", ":0"},
	}, table(render(t, m, m.Nodes[1].Host), "handlers"))
}

// What hosts and their errors are called is text.
func TestPage_TextsAreEscaped(t *testing.T) {
	const bad = `"><script>alert(1)</script><b>&amp;`
	m := madeUp(2)
	m.Nodes[0].Host, m.Host, m.Nodes[0].View.Host = bad, bad, bad
	m.Nodes[1].View, m.Nodes[1].Err = nil, bad
	m.Nodes[0].View.Links = append(m.Nodes[0].View.Links, Link{Host: bad + "2", State: bad, LastError: bad, LimitsReached: map[string]int64{bad: 1}})
	m.Others = []string{bad}
	var b bytes.Buffer
	require.NoError(t, writePage(&b, bad, m, bad))
	page := b.String()
	require.Equal(t, 1, strings.Count(page, "<script"), "its own")
	require.NotContains(t, page, "<b>")
	require.Greater(t, strings.Count(page, "&lt;script&gt;alert(1)"), 10)
}

// One that lies, or whose clock is ahead, does not hide what others say.
func TestPage_ErrorsOfOneHostDoNotHideThoseOfOthers(t *testing.T) {
	m := madeUp(3)
	for i := range 100 {
		m.Nodes[1].View.Links = append(m.Nodes[1].View.Links, Link{
			Host: fmt.Sprint("made up ", i), State: "connection error", LastError: "lie", LastDisconnect: m.Time.AddDate(7000, 0, 0),
		})
	}
	l := &m.Nodes[2].View.Links[0]
	l.State, l.LastError, l.LastDisconnect = "connection error", "true", m.Time.Add(-time.Hour)
	rows, more := errorsOf(m, namesOf(m))
	require.Equal(t, 100-maxErrorsOf, more)
	require.Len(t, rows, maxErrorsOf+1)
	require.Equal(t, "true", rows[maxErrorsOf].Err)
	require.Equal(t, "0 s ago", rows[0].Lost)
}

func TestPage_ManyLinksOfOneHostAreCutOff(t *testing.T) {
	m := madeUp(2)
	for i := range maxLinks {
		m.Nodes[0].View.Links = append(m.Nodes[0].View.Links, Link{Host: strings.Repeat("'", maxText-5) + fmt.Sprint(i), State: connected})
	}
	page := render(t, m, "")
	require.Len(t, table(page, "links"), 1+maxRows)
	requireIn(t, page, "4001 more are not shown")
	require.Less(t, len(page), 8<<20)
}

func TestPage_ErrorsBeginWithWhatIsWrongNow(t *testing.T) {
	m := madeUp(3)
	at := func(sec int64) time.Time { return time.Unix(1e9-sec, 0) }
	l := m.Nodes[0].View.Links
	l[0].LastError, l[0].LastDisconnect = "older", at(200)
	l[1].LastError, l[1].LastDisconnect = "newer", at(100)
	l = m.Nodes[1].View.Links // the last of them to a host that is gone
	l[0].State, l[0].LastError = "connection error", "never made"
	l[1].State = "connecting"
	m.Nodes[2] = Node{Host: m.Nodes[2].Host, Err: "silent"}
	rows, more := errorsOf(m, namesOf(m))
	var got []string
	for _, r := range rows {
		got = append(got, fmt.Sprint(r.From, ">", r.To, " ", r.Class, " ", r.State, " ", r.Lost, " ", r.Err))
	}
	require.Zero(t, more)
	require.Equal(t, []string{
		"node0>node2 down no answer  silent (1 other not connected to it either)",
		"node1>node0 down connection error  never made",
		"node0>node2 up connected 100 s ago newer",
		"node0>node1 up connected 3 min ago older",
	}, got)

	m = madeUp(20)
	for i := range m.Nodes {
		for j := range m.Nodes[i].View.Links {
			m.Nodes[i].View.Links[j].State = "connection error"
		}
	}
	rows, more = errorsOf(m, namesOf(m))
	require.Len(t, rows, maxErrors)
	require.Equal(t, 20*19-maxErrors, more)
	requireIn(t, render(t, m, ""), "; 330 more are not shown")
}

// One that either side does not take to be up is not.
func TestPage_LinkIsUpIfNobodySaysOtherwise(t *testing.T) {
	for _, side := range []int{0, 1} {
		m := madeUp(2)
		m.Nodes[side].View.Links[0].State = "connection error"
		text, good := summaryOf(m)
		require.Equal(t, "0 of 1 link up, 2 of 2 hosts answering", text)
		require.False(t, good)
	}
	m := madeUp(2)
	m.Nodes[1].View = nil
	text, good := summaryOf(m)
	require.Equal(t, "1 of 1 link up, 1 of 2 hosts answering", text)
	require.False(t, good)
}

func TestPage_NamesAreShortAndDiffer(t *testing.T) {
	for _, c := range [][2][]string{
		{{"http://a:9000", "http://b:9000"}, {"a", "b"}},
		{{"http://a:9000", "http://a:9001"}, {"a:9000", "a:9001"}},
		{{"http://a:9000", "https://a:9000"}, {"http://a", "https://a"}},
		{{"https://a", "https://b"}, {"a", "b"}},
		{{"http://[::1]:9000", "http://[::2]:9000"}, {"[::1]", "[::2]"}},
		{{"http://a:80", "http://b"}, {"a:80", "b"}},
		{{"%", "http://b"}, {"%", "http://b"}},
		{{"http://a.x.example:9", "http://b.x.example:9"}, {"a", "b"}},
		{{"http://a.x.example:9", "http://b.y.example:9"}, {"a.x", "b.y"}},
		{{"http://a.x.example:8", "http://a.x.example:9"}, {"a:8", "a:9"}},
		{{"http://x.example", "http://a.x.example"}, {"x", "a.x"}},
		{{"http://a.example", "http://b.elsewhere"}, {"a.example", "b.elsewhere"}},
		{{"http://a", "http://b.example"}, {"a", "b.example"}},
		{{"http://10.0.0.1:9", "http://10.1.0.1:9"}, {"10.0.0.1", "10.1.0.1"}},
	} {
		m := &Mesh{}
		for _, h := range c[0] {
			m.Nodes = append(m.Nodes, Node{Host: h})
		}
		names := namesOf(m)
		require.Equal(t, c[1], []string{names[c[0][0]], names[c[0][1]]})
	}
}

func TestPage_FiguresAreShort(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0.0 µs": 0, "9.9 µs": 9900, "100 µs": 100 * time.Microsecond, "1.0 ms": time.Millisecond,
		"15 ms": 15 * time.Millisecond, "999 ms": 999 * time.Millisecond, "1.5 s": 1500 * time.Millisecond,
	} {
		require.Equal(t, want, shortTime(d))
	}
	for want, d := range map[string]time.Duration{
		"0 s": -5, "119 s": 119 * time.Second, "2 min": 2 * time.Minute, "119 min": 119 * time.Minute,
		"3 h": 3 * time.Hour, "47 h": 47 * time.Hour, "4 days": 100 * time.Hour,
	} {
		require.Equal(t, want, ago(d))
	}
	for want, n := range map[string]float64{
		"0 B": 0, "999 B": 999, "1.0 KiB": 1024, "97.7 KiB": 1e5, "977 KiB": 1e6, "9.5 MiB": 1e7, "931 GiB": 1e12, "888 PiB": 1e18,
	} {
		require.Equal(t, want, byteText(n))
	}
	for want, n := range map[string]float64{"0": 0, "0.3": 0.26, "999": 999, "1.0 k": 1000, "99.0 k": 99_000, "500 k": 5e5, "2.5 M": 2.5e6} {
		require.Equal(t, want, countText(n))
	}
}

func BenchmarkPageOf100Hosts(b *testing.B) {
	m := madeUp(100)
	var out bytes.Buffer
	for b.Loop() {
		out.Reset()
		if err := writePage(&out, "title", m, m.Host); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(out.Len()), "bytes")
}
