package gridstatus

import (
	"encoding/json"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gridrpc/grid"
	"github.com/stretchr/testify/require"
)

// fill gives each field a value of its own, from n on.
func fill(v reflect.Value, n int64) int64 {
	for i := range v.NumField() {
		switch f := v.Field(i); f.Interface().(type) {
		case time.Time:
			f.Set(reflect.ValueOf(time.Unix(n, 0)))
		case string:
			f.SetString(fmt.Sprint(n))
		case grid.State, bool, *Rate: // set by hand
		case map[string]int64:
			f.Set(reflect.ValueOf(map[string]int64{"MaxHandlers": n}))
		default:
			if f.Kind() == reflect.Struct {
				n = fill(f, n)
				continue
			}
			f.SetInt(n)
		}
		n++
	}
	return n
}

// All that a Link has is what ConnectionStats has under that name.
func TestView_LinkHasWhatTheConnectionHas(t *testing.T) {
	var c grid.ConnectionStats
	fill(reflect.ValueOf(&c).Elem(), 1)
	c.State, c.Dials = grid.StateConnected, true
	l := linkOf(&c)
	require.Equal(t, c.HostName, l.Host)
	require.Equal(t, "connected", l.State)
	require.Equal(t, c.LastConnect, l.Since)
	require.Equal(t, c.RoundTripMean, l.RoundTrip)
	from, to := reflect.ValueOf(c), reflect.ValueOf(l)
	for i := range to.NumField() {
		switch name := to.Type().Field(i).Name; name {
		case "Host", "State", "Since", "RoundTrip", "Rate":
		default:
			require.Equal(t, from.FieldByName(name).Interface(), to.Field(i).Interface(), name)
		}
	}
	for state := grid.StateUnconnected; state <= grid.StateShutdown; state++ {
		c.State = state
		l := linkOf(&c)
		require.Equal(t, state.String(), l.State)
		require.Equal(t, state == grid.StateConnected, l.isUp())
		if !l.isUp() {
			require.Equal(t, c.LastDisconnect, l.Since)
		}
	}
}

func TestView_IsReadAsItWasWritten(t *testing.T) {
	v := &View{Host: "h", ID: "id", Time: time.Unix(1, 2).UTC(), Links: make([]Link, 2)}
	for i := range v.Links {
		fill(reflect.ValueOf(&v.Links[i]).Elem(), int64(100*i+1))
		l := &v.Links[i]
		l.Dials, l.Since, l.LastDisconnect = true, l.Since.UTC(), l.LastDisconnect.UTC()
	}
	v.Handlers = []Handler{{ID: 1, Name: "lock", Subroute: "a/b", Stream: true, Running: 2, MaxRunning: 3, Calls: 4, Failed: 5, Refused: 6}, {ID: 2, Name: "2"}}
	b, err := json.Marshal(v)
	require.NoError(t, err)
	got, err := decodeView("h", b)
	require.NoError(t, err)
	require.Equal(t, v, got)
}

// All that a Handler has is what HandlerStats has under that name.
func TestView_HandlerHasWhatTheManagerHas(t *testing.T) {
	st := grid.HandlerStats{ID: 1, Name: "lock", Subroute: "a", Stream: true, Running: 2, MaxRunning: 3, Calls: 4, Failed: 5, Refused: 6}
	h := handlerOf(&st)
	from, to := reflect.ValueOf(st), reflect.ValueOf(h)
	require.Equal(t, from.NumField(), to.NumField())
	for i := range to.NumField() {
		name := to.Type().Field(i).Name
		require.Equal(t, fmt.Sprint(from.FieldByName(name).Interface()), fmt.Sprint(to.Field(i).Interface()), name)
	}
}

// Whatever a host says of its handlers, it is bounded.
func TestView_HandlersAreBounded(t *testing.T) {
	v, err := decodeView("h", []byte(`{"Host":"h","Handlers":[`+many(`{"Name":"`+strings.Repeat("x", 1000)+`"}`, 3*maxHandlers)+`]}`))
	require.NoError(t, err)
	require.Len(t, v.Handlers, maxHandlers)
	require.Len(t, v.Handlers[0].Name, maxText+len(" ..."))
	for said, want := range map[string]string{
		`{"Host":"h","Handlers":{}}`:     "its view can't be read: Handlers is no array",
		`{"Host":"h","Handlers":[{},0]}`: "its view can't be read: handler 1: ",
	} {
		_, err := decodeView("h", []byte(said))
		require.ErrorContains(t, err, want)
	}
}

// Another version may say more, and of states that are not known here.
func TestView_OfAnotherVersionIsRead(t *testing.T) {
	v, err := decodeView("h", []byte(`{"Host":"h","Color":"red","Links":[{"Host":"a","State":"draining","Width":1}]}`))
	require.NoError(t, err)
	require.Equal(t, "draining", v.Links[0].State)
	v, err = decodeView("h", []byte(`{"Host":"h","Links":null}`))
	require.NoError(t, err)
	require.Empty(t, v.Links)
}

func TestView_ThatIsRefused(t *testing.T) {
	for said, want := range map[string]string{
		``:                                      "its view can't be read: ",
		`{"Host":"h"`:                           "its view can't be read: ",
		`{"Host":"h"} x`:                        "its view can't be read: ",
		`{"Host":"h","Time":5}`:                 "its view can't be read: ",
		`{"Host":"h","Links":{}}`:               "its view can't be read: Links is no array",
		`{"Host":"h","Links":[{},0]}`:           "its view can't be read: link 1: ",
		`{"Host":"h","Links":[{"Calls":1e99}]}`: "its view can't be read: link 0: ",
		`{"Host":"` + strings.Repeat("x", 500) + `"}`:         `it calls itself "xxx`,
		`{"Host":"h","Links":[` + many(`{}`, maxLinks) + `]}`: "its view has more than 5000 links",
		strings.Repeat(" ", maxView+1):                        "its view has 4194305 bytes, the limit is 4194304",
		`{"Host":"h","Links":[` + strings.Repeat("[", 20_000): "its view can't be read: ",
	} {
		_, err := decodeView("h", []byte(said))
		require.ErrorContains(t, err, want)
		require.LessOrEqual(t, len(err.Error()), 500)
	}
}

// many is one JSON value and n more.
func many(value string, n int) string { return value + strings.Repeat(","+value, n) }

// A view of 4 MiB does not take hundreds of them.
func TestView_DoesNotBurst(t *testing.T) {
	for name, links := range map[string]string{
		"nothing but zeros":  many(`0`, maxView/2-100),
		"empty links":        many(`{}`, maxView/3-100),
		"links of one name":  many(`{"Host":"a"}`, maxLinks-1),
		"links without end":  many(`{"LimitsReached":{"a":1}}`, maxLinks*20),
		"limits without end": `{"LimitsReached":{` + many(`"a":1`, maxView/6-100) + `}}`,
	} {
		for _, array := range []string{"Links", "Handlers"} {
			b := []byte(`{"Host":"h","` + array + `":[` + links + `]}`)
			require.LessOrEqual(t, len(b), maxView)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, _ = decodeView("h", b)
			runtime.ReadMemStats(&after)
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<20), "%s: %s", array, name)
		}
	}
}

func TestView_WhatALinkSaysIsBounded(t *testing.T) {
	limits := make(map[string]int64)
	for i := range maxLimits + 1 {
		limits[fmt.Sprint(i)] = 1
	}
	b, err := json.Marshal(View{Host: "h", ID: strings.Repeat("i", 1000), Links: []Link{
		{Host: strings.Repeat("é", 1000), State: strings.Repeat("s", 1000), LastError: strings.Repeat("é", 1000), Rate: &Rate{BytesIn: 1}, LimitsReached: limits},
		{Host: "a", RoundTrip: -1, RoundTripDeviation: 1 << 62, LimitsReached: map[string]int64{"MaxPings": 1, strings.Repeat("x", 100): 2}},
		{Host: "a", Calls: 1}, {Host: ""}, {Host: "h"},
	}})
	require.NoError(t, err)
	v, err := decodeView("h", b)
	require.NoError(t, err)
	require.Len(t, v.ID, maxID+len(" ..."))
	require.Equal(t, []Link{
		{Host: strings.Repeat("é", 150) + " ...", State: strings.Repeat("s", 64) + " ...", LastError: strings.Repeat("é", 150) + " ..."},
		{Host: "a", RoundTripDeviation: time.Hour, LimitsReached: map[string]int64{"MaxPings": 1}},
	}, v.Links)
}

// A zone that JSON reads and does not write.
func TestView_InAnOddZoneIsWrittenAgain(t *testing.T) {
	const odd = `"2024-01-01T00:00:00+24:00"`
	v, err := decodeView("h", []byte(`{"Host":"h","Time":`+odd+`,"Links":[{"Host":"a","Since":`+odd+`,"LastDisconnect":`+odd+`}]}`))
	require.NoError(t, err)
	_, err = json.Marshal(v)
	require.NoError(t, err)
}

func TestRates_ComeOfTwoViewsOfOneManager(t *testing.T) {
	at := func(id string, sec int64, bytes int64) *View {
		return &View{Host: "a", ID: id, Time: time.Unix(sec, 0), Links: []Link{{Host: "b", BytesIn: bytes, BytesOut: 2 * bytes, MessagesIn: 3 * bytes, MessagesOut: 4 * bytes}}}
	}
	less := at("x", 2, 100)
	less.Links[0].BytesOut = 1
	for name, c := range map[string]struct{ old, now *View }{
		"a new manager":                       {at("x", 1, 0), at("y", 2, 100)},
		"a clock set back":                    {at("x", 3, 0), at("x", 2, 100)},
		"long ago":                            {at("x", 3, 0), at("x", 100, 100)},
		"at the same time":                    {at("x", 2, 0), at("x", 2, 100)},
		"a host that is new":                  {&View{ID: "x", Time: time.Unix(1, 0)}, at("x", 2, 100)},
		"a host that was removed and is back": {at("x", 1, 1000), at("x", 2, 100)},
		"less has gone out":                   {at("x", 1, 1), less},
	} {
		c.now.rateFrom(c.old, time.Minute)
		require.Nil(t, c.now.Links[0].Rate, name)
	}
	now := at("x", 3, 100)
	now.rateFrom(at("x", 1, 50), time.Minute)
	require.Equal(t, &Rate{BytesIn: 25, BytesOut: 50, MessagesIn: 75, MessagesOut: 100}, now.Links[0].Rate)

	// One that is given twice keeps them; that of another manager is another.
	again := at("x", 3, 100)
	m := &Mesh{Nodes: []Node{{Host: "a", View: again}}}
	m.addRates(&Mesh{Nodes: []Node{{Host: "a", View: now}}})
	require.Same(t, now, m.Nodes[0].View)
	other := at("y", 3, 100)
	m = &Mesh{Nodes: []Node{{Host: "a", View: other}}}
	m.addRates(&Mesh{Nodes: []Node{{Host: "a", View: now}}})
	require.Same(t, other, m.Nodes[0].View)
}

// Rates are there, however seldom somebody looks.
func TestRates_OfAPageThatIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newMesh(t, 2, Options{Every: time.Hour}, nil)
		g.see(t, 0)
		time.Sleep(time.Hour)
		require.NotNil(t, g.see(t, 0).node(t, g.Host(1)).link(t, g.Host(0)).Rate)
	})
}
