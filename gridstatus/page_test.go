package gridstatus

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gridrpc/grid"
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
					Host: m.Nodes[j].Host, State: grid.StateConnected, Since: time.Unix(0, 0),
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
	require.NoError(t, writePage(&b, "title", m, node))
	return b.String()
}

// requireIn does not print the page where require.Contains would.
func requireIn(t *testing.T, page, part string) {
	t.Helper()
	require.True(t, strings.Contains(page, part), "the page does not have %q", part)
}

func TestPageOfManyHostsIsCompact(t *testing.T) {
	small := render(t, madeUp(largeMesh-1), "")
	require.False(t, strings.Contains(small, `class="matrix compact"`))
	requireIn(t, small, `aria-label="connected, 123 µs">123 µs</td>`)
	large := render(t, madeUp(100), "")
	requireIn(t, large, `class="matrix compact"`)
	require.Equal(t, 100*99, strings.Count(large, `<td class="up" aria-label="connected, 123 µs">·</td>`))
	requireIn(t, large, "All 4950 links of 100 hosts are up")
	require.Less(t, len(large), 1<<20)
}

func TestPageIsThereForAnyMesh(t *testing.T) {
	for _, m := range []*Mesh{
		{}, {Nodes: []Node{{}}}, {Host: "://", Nodes: []Node{{Host: "://"}, {Host: "x", Err: "y"}}},
		{Nodes: []Node{{Host: "a", View: &View{}}, {Host: "b", View: &View{Links: []Link{{Host: "b"}, {Host: "c"}}}}}},
		madeUp(1), madeUp(2),
	} {
		requireIn(t, render(t, m, ""), "</html>")
	}
	requireIn(t, render(t, madeUp(1), ""), "All 0 links of 1 hosts are up")
}

func TestErrorsBeginWithWhatIsWrongNow(t *testing.T) {
	m := madeUp(3)
	at := func(sec int64) time.Time { return time.Unix(1e9-sec, 0) }
	l := m.Nodes[0].View.Links
	l[0].LastError, l[0].LastDisconnect = "older", at(200)
	l[1].LastError, l[1].LastDisconnect = "newer", at(100)
	l = m.Nodes[1].View.Links // the last of them to a host that is gone
	l[0].State, l[0].LastError = grid.StateConnectionError, "never made"
	l[1].State = grid.StateConnecting
	m.Nodes[2] = Node{Host: m.Nodes[2].Host, Err: "silent"}
	rows, more := errorsOf(m, namesOf(m))
	var got []string
	for _, r := range rows {
		got = append(got, fmt.Sprint(r.From, ">", r.To, " ", r.Class, " ", r.State, " ", r.Lost, " ", r.Err))
	}
	require.Zero(t, more)
	require.Equal(t, []string{
		"node0.example>node2.example down no answer  silent (1 others are not connected to it either)",
		"node1.example>node0.example down connection error  never made",
		"node0.example>node2.example up connected 100 s ago newer",
		"node0.example>node1.example up connected 3 min ago older",
	}, got)

	m = madeUp(20)
	for i := range m.Nodes {
		for j := range m.Nodes[i].View.Links {
			m.Nodes[i].View.Links[j].State = grid.StateConnectionError
		}
	}
	rows, more = errorsOf(m, namesOf(m))
	require.Len(t, rows, maxErrors)
	require.Equal(t, 20*19-maxErrors, more)
	requireIn(t, render(t, m, ""), "; 330 more are not shown")
}

// One that either side does not take to be up is not.
func TestLinkIsUpIfNobodySaysOtherwise(t *testing.T) {
	for _, side := range []int{0, 1} {
		m := madeUp(2)
		m.Nodes[side].View.Links[0].State = grid.StateConnectionError
		text, good := summaryOf(m)
		require.Equal(t, "0 of 1 links are up, 2 of 2 hosts answer", text)
		require.False(t, good)
	}
	m := madeUp(2)
	m.Nodes[1].View = nil
	text, good := summaryOf(m)
	require.Equal(t, "1 of 1 links are up, 1 of 2 hosts answer", text)
	require.False(t, good)
}

func TestNamesAreShortAndDiffer(t *testing.T) {
	for _, c := range [][2][]string{
		{{"http://a:9000", "http://b:9000"}, {"a", "b"}},
		{{"http://a:9000", "http://a:9001"}, {"a:9000", "a:9001"}},
		{{"http://a:9000", "https://a:9000"}, {"http://a", "https://a"}},
		{{"https://a", "https://b"}, {"a", "b"}},
		{{"http://[::1]:9000", "http://[::2]:9000"}, {"[::1]", "[::2]"}},
		{{"http://a:80", "http://b"}, {"a:80", "b"}},
		{{"%", "http://b"}, {"%", "http://b"}},
	} {
		m := &Mesh{}
		for _, h := range c[0] {
			m.Nodes = append(m.Nodes, Node{Host: h})
		}
		names := namesOf(m)
		require.Equal(t, c[1], []string{names[c[0][0]], names[c[0][1]]})
	}
}

func TestFigures(t *testing.T) {
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
		if err := writePage(&out, "title", m, ""); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(out.Len()), "bytes")
}
