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
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string

	pageTemplate = template.Must(template.New("page").Parse(pageHTML))

	version = hashOf(pageHTML + pageCSS + pageJS)

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
	// wideMatrix is the number of bytes of names from which they stand upright.
	wideMatrix = 110
	maxRows    = 1000 // of the links of one host
	// maxErrors are shown, and of one host no more than maxErrorsOf.
	maxErrors, maxErrorsOf = 50, 20
)

// page is what the template shows.
type page struct {
	Title, Host, Time, Clock string
	Version                  string // of the style and the script
	Style                    template.CSS
	Script                   template.JS
	Seconds, Milliseconds    int64
	Summary                  string
	Good, Compact, Upright   bool
	Others                   []string
	Columns                  []column
	Nodes                    []nodeRow
	Errors                   []errorRow
	MoreErrors               int
	Chosen                   *chosen // nil if no such host is known
}

type column struct {
	Number int
	Name   string
}

type nodeRow struct {
	column
	Host, Link, Err string
	Cells           []cell

	Class, Up, RoundTrip, Longest, In, Out, Messages, Queued string
	Calls, Streams, Handlers, Slow, Reconnects               int
	Refused                                                  int64
}

type cell struct{ Class, Text, Label string }

type errorRow struct {
	From, To, Class, State, Lost, Err string
	down                              bool
	age                               time.Duration // since it was lost
}

// chosen is the host whose links are listed.
type chosen struct {
	Name, Err string
	Links     []linkRow
	More      int
	Handlers  []handlerRow
}

type handlerRow struct {
	*Handler
	Kind, Limit string
}

type linkRow struct {
	*Link
	Name, Class, For, RoundTrip, In, Out, TotalIn, TotalOut, Messages, Queued, Kept, Limits string
}

// nobody stands for a host that is not in a mesh.
const nobody = "?"

// chosen is the host of the mesh that was asked for.
func (m *Mesh) chosen(node string) string {
	if node == "" {
		return m.Host
	}
	for _, n := range m.Nodes {
		if n.Host == node {
			return node
		}
	}
	return nobody
}

// writePage shows m, and the links of one of its hosts.
func writePage(w io.Writer, title string, m *Mesh, node string) error {
	names := namesOf(m)
	p := &page{
		Title: title, Host: names[m.Host], Version: version, Style: template.CSS(pageCSS), Script: template.JS(pageJS),
		Time: m.Time.Format(time.RFC3339), Clock: m.Time.Format("15:04:05 MST"),
		Milliseconds: m.Every.Milliseconds(), Seconds: int64(max(m.Every, time.Second).Seconds()),
		Compact: len(m.Nodes) >= largeMesh, Others: m.Others,
	}
	for i, n := range m.Nodes {
		p.Columns = append(p.Columns, column{i + 1, names[n.Host]})
		p.Upright = p.Upright || len(names[n.Host])*len(m.Nodes) >= wideMatrix
	}
	p.Summary, p.Good = summaryOf(m)
	at := make(map[string]int, len(m.Nodes))
	for i, n := range m.Nodes {
		at[n.Host] = i
	}
	for i := range m.Nodes {
		n := &m.Nodes[i]
		row := nodeRow{column: p.Columns[i], Host: n.Host, Link: "?node=" + url.QueryEscape(n.Host) + "#links", Err: n.Err}
		if n.View != nil {
			row.Cells = cellsOf(n.View, i, at, p.Compact)
			row.sum(n.View)
		}
		p.Nodes = append(p.Nodes, row)
		if n.Host == node {
			p.Chosen = chosenOf(n, names)
		}
	}
	p.Errors, p.MoreErrors = errorsOf(m, names)
	return pageTemplate.Execute(w, p)
}

// summaryOf counts the pairs of hosts of which one at least lists the other. One is up if nobody
// who lists it says otherwise.
func summaryOf(m *Mesh) (text string, good bool) {
	type pair struct{ a, b string }
	pairs := make(map[pair]bool)
	known := make(map[string]bool, len(m.Nodes))
	for _, n := range m.Nodes {
		known[n.Host] = true
	}
	answered, up := 0, 0
	for _, n := range m.Nodes {
		if n.View == nil {
			continue
		}
		answered++
		for i := range n.View.Links {
			l := &n.View.Links[i]
			if !known[l.Host] {
				continue
			}
			p := pair{min(n.Host, l.Host), max(n.Host, l.Host)}
			others, seen := pairs[p]
			pairs[p] = l.isUp() && (others || !seen)
		}
	}
	for _, isUp := range pairs {
		if isUp {
			up++
		}
	}
	if up == len(pairs) && answered == len(m.Nodes) {
		return fmt.Sprintf("All is well: %s of %s up", number(up, "link"), number(answered, "host")), true
	}
	return fmt.Sprintf("%d of %s up, %d of %s answering", up, number(len(pairs), "link"), answered, number(len(m.Nodes), "host")), false
}

func number(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// classOf tells a link that is not there yet from one that was lost or can't be made.
func classOf(l *Link) string {
	switch {
	case l.isUp():
		return "up"
	case l.LastError == "" && l.LastDisconnect.IsZero():
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
		c := cell{class, class, l.State}
		if l.isUp() && l.RoundTrip > 0 {
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
		if l.isUp() {
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

// errorsOf are those of all links: first of those that are not up, then the last ones. A host that
// does not answer has one row, whoever else has lost it.
func errorsOf(m *Mesh, names map[string]string) (rows []errorRow, more int) {
	lost := lostBy(m)
	for _, n := range m.Nodes {
		if n.View == nil {
			e := errorRow{From: names[m.Host], To: names[n.Host], Class: "down", State: "no answer", Err: n.Err}
			if others := lost[n.Host]; others > 0 {
				e.Err += fmt.Sprintf(" (%s not connected to it either)", number(others, "other"))
			}
			rows = append(rows, e)
		}
	}
	var links []errorRow
	for _, n := range m.Nodes {
		if n.View == nil {
			continue
		}
		own := linkErrors(n.View, names, lost)
		slices.SortStableFunc(own, compareErrors)
		if len(own) > maxErrorsOf { // so that one host can't hide what others say
			own, more = own[:maxErrorsOf], more+len(own)-maxErrorsOf
		}
		links = append(links, own...)
	}
	slices.SortStableFunc(links, compareErrors)
	rows = append(rows, links...)
	if len(rows) > maxErrors {
		rows, more = rows[:maxErrors], more+len(rows)-maxErrors
	}
	return rows, more
}

// lostBy has the hosts that do not answer, and how many others have lost them.
func lostBy(m *Mesh) map[string]int {
	lost := make(map[string]int)
	for _, n := range m.Nodes {
		if n.View == nil {
			lost[n.Host] = 0
		}
	}
	for _, n := range m.Nodes {
		if n.View == nil || n.Host == m.Host {
			continue
		}
		for i := range n.View.Links {
			l := &n.View.Links[i]
			if _, ok := lost[l.Host]; ok && !l.isUp() {
				lost[l.Host]++
			}
		}
	}
	return lost
}

// linkErrors are those of the links of one host, but for links to hosts that are lost anyway.
func linkErrors(v *View, names map[string]string, lost map[string]int) (rows []errorRow) {
	for i := range v.Links {
		l := &v.Links[i]
		if l.isUp() && l.LastError == "" {
			continue
		}
		if _, ok := lost[l.Host]; ok && !l.isUp() {
			continue
		}
		e := errorRow{
			From: names[v.Host], To: cmp.Or(names[l.Host], l.Host), Class: classOf(l), State: l.State,
			Err: l.LastError, down: !l.isUp(), age: math.MaxInt64,
		}
		if !l.LastDisconnect.IsZero() {
			e.age = max(0, v.Time.Sub(l.LastDisconnect))
			e.Lost = ago(e.age) + " ago"
		}
		rows = append(rows, e)
	}
	return rows
}

// compareErrors puts what is wrong now first, and then what was lost last.
func compareErrors(a, b errorRow) int {
	if a.down != b.down {
		if a.down {
			return -1
		}
		return 1
	}
	return cmp.Compare(a.age, b.age)
}

func chosenOf(n *Node, names map[string]string) *chosen {
	c := &chosen{Name: names[n.Host], Err: n.Err}
	if n.View == nil {
		return c
	}
	links := n.View.Links
	if len(links) > maxRows {
		links, c.More = links[:maxRows], len(links)-maxRows
	}
	for i := range links {
		l := &links[i]
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
			limits = append(limits, fmt.Sprintf("%s %d", option, l.LimitsReached[option]))
		}
		r.Limits = strings.Join(limits, ", ")
		c.Links = append(c.Links, r)
	}
	for i := range n.View.Handlers {
		h := &n.View.Handlers[i]
		r := handlerRow{Handler: h, Kind: "requests"}
		if h.Stream {
			r.Kind = "streams"
		}
		if h.MaxRunning > 0 {
			r.Limit = strconv.Itoa(h.MaxRunning)
		}
		c.Handlers = append(c.Handlers, r)
	}
	return c
}
