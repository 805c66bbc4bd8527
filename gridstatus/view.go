package gridstatus

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/gridrpc/grid"
)

// View is how one host sees its connections. As JSON, here and in what it holds, times are those of
// RFC 3339, durations nanoseconds, and most fields that are zero are left out.
type View struct {
	// Host is the base URL of the host whose view it is.
	Host string
	// ID is that of its manager, new for each.
	ID string
	// Time is when the view was taken, by that host's clock, as are the times in it.
	Time time.Time
	// Links are in the order of [grid.Manager.Targets].
	Links []Link
	// Handlers are those that the host serves, in the order of [grid.Manager.HandlerStats]; of a
	// host with more than 1000 they are the first.
	Handlers []Handler `json:",omitempty"`
}

// Handler is a handler of a host, and what has become of its calls: see [grid.HandlerStats].
type Handler struct {
	ID       int
	Name     string
	Subroute string `json:",omitzero"`
	Stream   bool   `json:",omitzero"`

	Running    int   `json:",omitzero"`
	MaxRunning int   `json:",omitzero"` // 0 for no limit
	Calls      int64 `json:",omitzero"`
	Failed     int64 `json:",omitzero"`
	Refused    int64 `json:",omitzero"`
}

// Link is a connection to another host, as one of its two hosts sees it. What is not explained here
// is in [grid.ConnectionStats].
type Link struct {
	// Host is the base URL of the other host.
	Host string
	// State is the name of a [grid.State]; of one that is not known here, if the host whose view it
	// is runs a later version.
	State string
	// Since is when it was connected, or lost; zero for neither so far.
	Since time.Time `json:",omitzero"`
	// Dials reports whether the host whose view it is dials the other.
	Dials bool `json:",omitzero"`
	// Reconnects is the number of connections made after the first.
	Reconnects int `json:",omitzero"`
	// LastDisconnect is when a connection was lost last; zero for never.
	LastDisconnect time.Time `json:",omitzero"`
	// LastError is why, or why none could be made; it stays when all is well again.
	LastError string `json:",omitzero"`

	RoundTrip          time.Duration `json:",omitzero"` // the running mean
	RoundTripDeviation time.Duration `json:",omitzero"`

	BytesIn     int64 `json:",omitzero"`
	BytesOut    int64 `json:",omitzero"`
	MessagesIn  int64 `json:",omitzero"`
	MessagesOut int64 `json:",omitzero"`
	// Rate is what has gone over it lately; nil if that is not known.
	Rate *Rate `json:",omitempty"`

	Calls         int   `json:",omitzero"`
	Streams       int   `json:",omitzero"`
	Handlers      int   `json:",omitzero"`
	StreamsServed int   `json:",omitzero"`
	SlowConsumers int   `json:",omitzero"`
	QueuedBytes   int   `json:",omitzero"`
	QueuedSenders int   `json:",omitzero"`
	KeptBytes     int64 `json:",omitzero"`
	Refused       int64 `json:",omitzero"`

	LimitsReached map[string]int64 `json:",omitempty"`
}

// Rate is a flow, each second.
type Rate struct {
	BytesIn, BytesOut, MessagesIn, MessagesOut float64
}

func (r *Rate) add(o *Rate) {
	r.BytesIn += o.BytesIn
	r.BytesOut += o.BytesOut
	r.MessagesIn += o.MessagesIn
	r.MessagesOut += o.MessagesOut
}

var connected = grid.StateConnected.String()

// isUp reports whether calls can be made over the link.
func (l *Link) isUp() bool { return l.State == connected }

func viewOf(m *grid.Manager) *View {
	st := m.Stats()
	v := &View{Host: st.HostName, ID: st.ID, Time: time.Now(), Links: make([]Link, len(st.Connections))}
	for i := range st.Connections {
		v.Links[i] = linkOf(&st.Connections[i])
	}
	handlers := m.HandlerStats()
	for _, h := range handlers[:min(len(handlers), maxHandlers)] {
		v.Handlers = append(v.Handlers, handlerOf(&h))
	}
	return v
}

func handlerOf(h *grid.HandlerStats) Handler {
	return Handler{
		ID: int(h.ID), Name: clip(h.Name, maxText), Subroute: clip(h.Subroute, maxText), Stream: h.Stream,
		Running: h.Running, MaxRunning: h.MaxRunning, Calls: h.Calls, Failed: h.Failed, Refused: h.Refused,
	}
}

func linkOf(c *grid.ConnectionStats) Link {
	l := Link{
		Host: c.HostName, State: c.State.String(), Since: c.LastDisconnect, Dials: c.Dials, Reconnects: c.Reconnects,
		LastDisconnect: c.LastDisconnect, LastError: plain(c.LastError),
		RoundTrip: c.RoundTripMean, RoundTripDeviation: c.RoundTripDeviation,
		BytesIn: c.BytesIn, BytesOut: c.BytesOut, MessagesIn: c.MessagesIn, MessagesOut: c.MessagesOut,
		Calls: c.Calls, Streams: c.Streams, Handlers: c.Handlers, StreamsServed: c.StreamsServed,
		SlowConsumers: c.SlowConsumers, QueuedBytes: c.QueuedBytes, QueuedSenders: c.QueuedSenders,
		KeptBytes: c.KeptBytes, Refused: c.Refused, LimitsReached: c.LimitsReached,
	}
	if l.isUp() {
		l.Since = c.LastConnect
	}
	return l
}

// What another host may say, so that one that lies can't make a page grow without bounds.
const (
	maxView  = 4 << 20 // bytes
	maxLinks = 5000
	// Of more handlers the first are taken.
	maxHandlers = 1000
	maxText     = 300 // bytes
	maxID       = 64
	maxLimits   = 20
)

// decodeView reads what host has said. Of what it returns nothing is larger than the limits above.
func decodeView(host string, b []byte) (*View, error) {
	if len(b) > maxView {
		return nil, fmt.Errorf("its view has %d bytes, the limit is %d", len(b), maxView)
	}
	// Links and handlers one by one: decoded at once, 4 MiB of empty ones would take gigabytes.
	var said struct {
		Host, ID        string
		Time            time.Time
		Links, Handlers json.RawMessage
	}
	if err := json.Unmarshal(b, &said); err != nil {
		return nil, fmt.Errorf("its view can't be read: %w", err)
	}
	if said.Host != host {
		return nil, fmt.Errorf("it calls itself %q", clip(said.Host, maxText))
	}
	v := &View{Host: host, ID: clip(said.ID, maxID), Time: said.Time.UTC()}
	seen := map[string]bool{host: true, "": true}
	err := eachOf("Links", said.Links, func(n int, links *json.Decoder) error {
		if n == maxLinks {
			return fmt.Errorf("its view has more than %d links", maxLinks)
		}
		var l Link
		if err := links.Decode(&l); err != nil {
			return fmt.Errorf("its view can't be read: link %d: %w", n, err)
		}
		l.clean()
		if !seen[l.Host] {
			seen[l.Host] = true
			v.Links = append(v.Links, l)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = eachOf("Handlers", said.Handlers, func(n int, handlers *json.Decoder) error {
		if n == maxHandlers {
			return errEnough
		}
		var h Handler
		if err := handlers.Decode(&h); err != nil {
			return fmt.Errorf("its view can't be read: handler %d: %w", n, err)
		}
		h.Name, h.Subroute = clip(h.Name, maxText), clip(h.Subroute, maxText)
		v.Handlers = append(v.Handlers, h)
		return nil
	})
	if err != nil && err != errEnough {
		return nil, err
	}
	return v, nil
}

var errEnough = errors.New("enough")

// eachOf calls decode for each value of an array, which may be missing.
func eachOf(name string, array json.RawMessage, decode func(n int, values *json.Decoder) error) error {
	if len(array) == 0 || string(array) == "null" {
		return nil
	}
	values := json.NewDecoder(bytes.NewReader(array))
	if t, err := values.Token(); err != nil || t != json.Delim('[') {
		return fmt.Errorf("its view can't be read: %s is no array", name)
	}
	for n := 0; values.More(); n++ {
		if err := decode(n, values); err != nil {
			return err
		}
	}
	return nil
}

func (l *Link) clean() {
	l.Host, l.State, l.LastError, l.Rate = clip(l.Host, maxText), clip(l.State, maxID), clip(l.LastError, maxText), nil
	// Other zones may be such that they can't be encoded again.
	l.Since, l.LastDisconnect = l.Since.UTC(), l.LastDisconnect.UTC()
	l.RoundTrip, l.RoundTripDeviation = min(max(l.RoundTrip, 0), time.Hour), min(max(l.RoundTripDeviation, 0), time.Hour)
	if len(l.LimitsReached) > maxLimits {
		l.LimitsReached = nil
	}
	for option := range l.LimitsReached {
		if len(option) > maxID {
			delete(l.LimitsReached, option)
		}
	}
}

// clip keeps n bytes of a text, without characters that are for terminals.
func clip(text string, n int) string {
	cut := func(s string) string { return strings.ToValidUTF8(s[:min(len(s), n)], "") }
	if short := plain(text[:min(len(text), n)]); len(text) <= n && len(short) <= n {
		return short
	}
	return cut(plain(cut(text))) + " ..."
}

// plain puts a mark in the place of characters that move a cursor, or turn around what is beside
// them. A browser is not harmed by them, but whoever reads what it was sent may be.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

// rateFrom is measured between an earlier view of the same host, not older than that, and v.
func (v *View) rateFrom(old *View, oldest time.Duration) {
	if old.ID != v.ID {
		return
	}
	// By the host's own clock, so it does not matter how long the answer took.
	took := v.Time.Sub(old.Time)
	if took <= 0 || took > oldest {
		return
	}
	before := make(map[string]*Link, len(old.Links))
	for i := range old.Links {
		before[old.Links[i].Host] = &old.Links[i]
	}
	for i := range v.Links {
		l := &v.Links[i]
		b := before[l.Host]
		if b == nil || l.BytesIn < b.BytesIn || l.BytesOut < b.BytesOut { // the host was removed, and is back
			continue
		}
		per := func(now, then int64) float64 { return float64(now-then) / took.Seconds() }
		l.Rate = &Rate{
			BytesIn: per(l.BytesIn, b.BytesIn), BytesOut: per(l.BytesOut, b.BytesOut),
			MessagesIn: per(l.MessagesIn, b.MessagesIn), MessagesOut: per(l.MessagesOut, b.MessagesOut),
		}
	}
}
