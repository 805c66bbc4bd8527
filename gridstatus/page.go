package gridstatus

import (
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gridrpc/grid"
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string

	pageTemplate = template.Must(template.New("page").Parse(pageHTML))

	// policy lets the page run and load what is part of it, and nothing else.
	policy = strings.Join([]string{
		"default-src 'none'", "style-src " + hashOf(pageCSS), "script-src " + hashOf(pageJS),
		"img-src data:", "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
	}, "; ")
)

func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

const (
	// largeMesh is the number of hosts from which a cell of the matrix is a dot.
	largeMesh = 21
	maxErrors = 50
)

// page is what the template shows.
type page struct {
	Title, Host, Time, Clock string
	Style                    template.CSS
	Script                   template.JS
	Seconds, Milliseconds    int64
	Summary                  string
	Good, Compact            bool
	Others                   []string
	Columns                  []column
	Nodes                    []nodeRow
	Errors                   []errorRow
	MoreErrors               int
	Chosen                   *chosen
}

type column struct {
	Number int
	Name   string
}

type nodeRow struct {
	column
	Link, Err string
	Cells     []cell

	Class, Up, RoundTrip, Longest, In, Out, Messages, Queued string
	Calls, Streams, Handlers, Slow, Reconnects               int
	Refused                                                  int64
}

type cell struct{ Class, Text, Label string }

type errorRow struct {
	From, To, Class, State, Lost, Err string
	down                              bool
	lost                              time.Time
}

// chosen is the host whose links are listed.
type chosen struct {
	Name, Err string
	Links     []linkRow
}

type linkRow struct {
	*Link
	Name, Class, For, RoundTrip, In, Out, TotalIn, TotalOut, Messages, Queued, Kept, Limits string
}

// writePage shows m, and the links of the host node.
func writePage(w io.Writer, title string, m *Mesh, node string) error {
	names := namesOf(m)
	p := &page{
		Title: title, Host: names[m.Host], Style: template.CSS(pageCSS), Script: template.JS(pageJS),
		Time: m.Time.Format(time.RFC3339), Clock: m.Time.Format("15:04:05 MST"),
		Milliseconds: m.Every.Milliseconds(), Seconds: int64(max(m.Every, time.Second).Seconds()),
		Compact: len(m.Nodes) >= largeMesh, Others: m.Others,
	}
	for i, n := range m.Nodes {
		p.Columns = append(p.Columns, column{i + 1, names[n.Host]})
	}
	p.Summary, p.Good = summaryOf(m)
	at := make(map[string]int, len(m.Nodes))
	for i, n := range m.Nodes {
		at[n.Host] = i
	}
	for i := range m.Nodes {
		n := &m.Nodes[i]
		row := nodeRow{column: p.Columns[i], Link: "?node=" + url.QueryEscape(n.Host), Err: n.Err}
		if n.View != nil {
			row.Cells = cellsOf(n.View, i, at, p.Compact)
			row.sum(n.View)
		}
		p.Nodes = append(p.Nodes, row)
		if n.Host == node || p.Chosen == nil && n.Host == m.Host {
			p.Chosen = chosenOf(n, names, m.Time)
		}
	}
	p.Errors, p.MoreErrors = errorsOf(m, names)
	return pageTemplate.Execute(w, p)
}

// namesOf makes names that are as short as they can be without two being the same.
func namesOf(m *Mesh) map[string]string {
	names := make(map[string]string, len(m.Nodes))
	scheme, port := "", ""
	for i, n := range m.Nodes {
		u, err := url.Parse(n.Host)
		if err != nil {
			u = &url.URL{}
		}
		if i == 0 {
			scheme, port = u.Scheme, u.Port()
		}
		if u.Scheme != scheme {
			scheme = ""
		}
		if u.Port() != port {
			port = ""
		}
	}
	for _, n := range m.Nodes {
		name := n.Host
		if scheme != "" {
			name = strings.TrimPrefix(name, scheme+"://")
		}
		if port != "" {
			name = strings.TrimSuffix(name, ":"+port)
		}
		names[n.Host] = name
	}
	return names
}

// summaryOf counts the pairs of hosts. One is up if nobody who sees it says otherwise.
func summaryOf(m *Mesh) (text string, good bool) {
	type pair struct{ a, b string }
	pairOf := func(a, b string) pair { return pair{min(a, b), max(a, b)} }
	known := make(map[pair]bool)
	answered := 0
	for _, n := range m.Nodes {
		if n.View == nil {
			continue
		}
		answered++
		for _, l := range n.View.Links {
			p := pairOf(n.Host, l.Host)
			up, seen := known[p]
			known[p] = l.State == grid.StateConnected && (up || !seen)
		}
	}
	up := 0
	for i, a := range m.Nodes {
		for _, b := range m.Nodes[i+1:] {
			if known[pairOf(a.Host, b.Host)] {
				up++
			}
		}
	}
	all := len(m.Nodes) * (len(m.Nodes) - 1) / 2
	if up == all && answered == len(m.Nodes) {
		return fmt.Sprintf("All %d links of %d hosts are up", all, len(m.Nodes)), true
	}
	return fmt.Sprintf("%d of %d links are up, %d of %d hosts answer", up, all, answered, len(m.Nodes)), false
}

// classOf tells a link that is not there yet from one that was lost or can't be made.
func classOf(l *Link) string {
	switch {
	case l.State == grid.StateConnected:
		return "up"
	case l.LastError == "" && (l.State == grid.StateUnconnected || l.State == grid.StateConnecting):
		return "wait"
	}
	return "down"
}

// dots are what cells of a large matrix have in place of words.
var dots = map[string]string{"up": "·", "wait": "…", "down": "×"}

// cellsOf is a row of the matrix, that of the host at index self.
func cellsOf(v *View, self int, at map[string]int, compact bool) []cell {
	cells := make([]cell, len(at))
	for i := range cells {
		cells[i] = cell{"none", "", "not known"}
	}
	for i := range v.Links {
		l := &v.Links[i]
		to, ok := at[l.Host]
		if !ok {
			continue
		}
		class := classOf(l)
		c := cell{class, class, l.State.String()}
		if l.State == grid.StateConnected && l.RoundTrip > 0 {
			c.Text = shortTime(l.RoundTrip)
			c.Label += ", " + c.Text
		}
		if compact {
			c.Text = dots[class]
		}
		cells[to] = c
	}
	cells[self] = cell{"none", "–", "itself"}
	return cells
}

// sum fills in the figures of all links of a host.
func (r *nodeRow) sum(v *View) {
	var all Rate
	var total, longest time.Duration
	up, measured, rated, queued := 0, 0, false, 0
	for i := range v.Links {
		l := &v.Links[i]
		if l.State == grid.StateConnected {
			up++
			if l.RoundTrip > 0 {
				measured++
				total += l.RoundTrip
				longest = max(longest, l.RoundTrip)
			}
		}
		if l.Rate != nil {
			rated = true
			all.add(l.Rate)
		}
		queued += l.QueuedBytes
		r.Calls += l.Calls
		r.Streams += l.Streams
		r.Handlers += l.Handlers
		r.Slow += l.SlowConsumers
		r.Refused += l.Refused
		r.Reconnects += l.Reconnects
	}
	r.Up, r.Class = fmt.Sprintf("%d of %d", up, len(v.Links)), "up"
	if up < len(v.Links) {
		r.Class = "down"
	}
	if measured > 0 {
		r.RoundTrip, r.Longest = shortTime(total/time.Duration(measured)), shortTime(longest)
	}
	if rated {
		r.In, r.Out, r.Messages = rateText(&all)
	}
	r.Queued = byteText(float64(queued))
}

func rateText(r *Rate) (in, out, messages string) {
	return byteText(r.BytesIn) + "/s", byteText(r.BytesOut) + "/s", countText(r.MessagesIn+r.MessagesOut) + "/s"
}

// errorsOf are those of all links: first of those that are not up, then the last ones.
// A host that does not answer has one row, whoever else has lost it.
func errorsOf(m *Mesh, names map[string]string) (rows []errorRow, more int) {
	gone := make(map[string]int) // by how many others
	for _, n := range m.Nodes {
		if n.View == nil {
			gone[n.Host] = 0
		}
	}
	for _, n := range m.Nodes {
		if n.View == nil {
			continue
		}
		for i := range n.View.Links {
			l := &n.View.Links[i]
			down := l.State != grid.StateConnected
			if _, ok := gone[l.Host]; ok && down {
				if n.Host != m.Host {
					gone[l.Host]++
				}
				continue
			}
			if !down && l.LastError == "" {
				continue
			}
			e := errorRow{
				From: names[n.Host], To: cmp.Or(names[l.Host], l.Host), Class: classOf(l), State: l.State.String(),
				Err: l.LastError, down: down, lost: l.LastDisconnect,
			}
			if !l.LastDisconnect.IsZero() {
				e.Lost = ago(n.View.Time.Sub(l.LastDisconnect)) + " ago"
			}
			rows = append(rows, e)
		}
	}
	slices.SortStableFunc(rows, func(a, b errorRow) int {
		if a.down != b.down {
			if a.down {
				return -1
			}
			return 1
		}
		return b.lost.Compare(a.lost)
	})
	var first []errorRow
	for _, n := range m.Nodes {
		if n.View != nil {
			continue
		}
		e := errorRow{From: names[m.Host], To: names[n.Host], Class: "down", State: "no answer", Err: n.Err}
		if others := gone[n.Host]; others > 0 {
			e.Err += fmt.Sprintf(" (%d others are not connected to it either)", others)
		}
		first = append(first, e)
	}
	rows = append(first, rows...)
	if len(rows) > maxErrors {
		rows, more = rows[:maxErrors], len(rows)-maxErrors
	}
	return rows, more
}

func chosenOf(n *Node, names map[string]string, now time.Time) *chosen {
	c := &chosen{Name: names[n.Host], Err: n.Err}
	if n.View == nil {
		return c
	}
	for i := range n.View.Links {
		l := &n.View.Links[i]
		r := linkRow{
			Link: l, Name: cmp.Or(names[l.Host], l.Host), Class: classOf(l),
			TotalIn: byteText(float64(l.BytesIn)), TotalOut: byteText(float64(l.BytesOut)),
			Queued: byteText(float64(l.QueuedBytes)), Kept: byteText(float64(l.KeptBytes)),
		}
		if !l.Since.IsZero() {
			r.For = ago(n.View.Time.Sub(l.Since))
		}
		if l.RoundTrip > 0 {
			r.RoundTrip = shortTime(l.RoundTrip) + " ± " + shortTime(l.RoundTripDeviation)
		}
		if l.Rate != nil {
			r.In, r.Out, r.Messages = rateText(l.Rate)
		}
		var limits []string
		for _, option := range slices.Sorted(maps.Keys(l.LimitsReached)) {
			limits = append(limits, fmt.Sprintf("%s %d", clip(option), l.LimitsReached[option]))
		}
		r.Limits = strings.Join(limits, ", ")
		c.Links = append(c.Links, r)
	}
	return c
}

// shortTime has two or three digits.
func shortTime(d time.Duration) string {
	switch us := float64(d) / 1e3; {
	case us < 10:
		return fmt.Sprintf("%.1f µs", us)
	case us < 1000:
		return fmt.Sprintf("%.0f µs", us)
	case us < 10_000:
		return fmt.Sprintf("%.1f ms", us/1e3)
	case us < 1_000_000:
		return fmt.Sprintf("%.0f ms", us/1e3)
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// ago is for people.
func ago(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", max(d, 0).Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.0f h", d.Hours())
	}
	return fmt.Sprintf("%.0f days", d.Hours()/24)
}

func byteText(n float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for ; n >= 1000 && i < len(units)-1; i++ {
		n /= 1024
	}
	if i == 0 || n >= 100 {
		return fmt.Sprintf("%.0f %s", n, units[i])
	}
	return fmt.Sprintf("%.1f %s", n, units[i])
}

func countText(n float64) string {
	switch {
	case n > 0 && n < 10:
		return fmt.Sprintf("%.1f", n)
	case n < 1000:
		return fmt.Sprintf("%.0f", n)
	case n < 100_000:
		return fmt.Sprintf("%.1f k", n/1e3)
	case n < 1_000_000:
		return fmt.Sprintf("%.0f k", n/1e3)
	}
	return fmt.Sprintf("%.1f M", n/1e6)
}
