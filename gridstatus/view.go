package gridstatus

import (
	"time"

	"github.com/gridrpc/grid"
)

// View is how one host sees its connections. As JSON, here and in what it holds, fields
// that are zero are left out, times are those of RFC 3339, and durations nanoseconds.
type View struct {
	// Host is the base URL of the host whose view it is.
	Host string
	// ID is that of its manager, new for each.
	ID string
	// Time is when the view was taken, by that host's clock, as are the times in it.
	Time time.Time
	// Links are in the order of [grid.Manager.Targets].
	Links []Link
}

// Link is a connection to another host, as one of its two hosts sees it. What is not
// explained here is in [grid.ConnectionStats].
type Link struct {
	// Host is the base URL of the other host.
	Host  string
	State grid.State
	// Since is when it was connected, or lost; zero for neither so far.
	Since time.Time `json:",omitzero"`
	// Dials tells whether the host whose view it is dials the other.
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

func viewOf(m *grid.Manager) *View {
	st := m.Stats()
	v := &View{Host: st.HostName, ID: st.ID, Time: time.Now(), Links: make([]Link, len(st.Connections))}
	for i := range st.Connections {
		v.Links[i] = linkOf(&st.Connections[i])
	}
	return v
}

func linkOf(c *grid.ConnectionStats) Link {
	l := Link{
		Host: c.HostName, State: c.State, Since: c.LastDisconnect, Dials: c.Dials, Reconnects: c.Reconnects,
		LastDisconnect: c.LastDisconnect, LastError: c.LastError,
		RoundTrip: c.RoundTripMean, RoundTripDeviation: c.RoundTripDeviation,
		BytesIn: c.BytesIn, BytesOut: c.BytesOut, MessagesIn: c.MessagesIn, MessagesOut: c.MessagesOut,
		Calls: c.Calls, Streams: c.Streams, Handlers: c.Handlers, StreamsServed: c.StreamsServed,
		SlowConsumers: c.SlowConsumers, QueuedBytes: c.QueuedBytes, QueuedSenders: c.QueuedSenders,
		KeptBytes: c.KeptBytes, Refused: c.Refused, LimitsReached: c.LimitsReached,
	}
	if c.State == grid.StateConnected {
		l.Since = c.LastConnect
	}
	return l
}

// link returns that to a host; nil if there is none.
func (v *View) link(host string) *Link {
	if v == nil {
		return nil
	}
	for i := range v.Links {
		if v.Links[i].Host == host {
			return &v.Links[i]
		}
	}
	return nil
}

// rateFrom is measured between an earlier view of the same host and v.
func (v *View) rateFrom(old *View) {
	if old == nil || old.ID != v.ID {
		return
	}
	// By the host's own clock, so it does not matter how long the answer took.
	took := v.Time.Sub(old.Time)
	if took <= 0 || took > oldestForRate {
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
