package grid_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
	"github.com/gridrpc/grid/internal/seed"
)

// optionPair is two hosts, of which each may have other options. An option that is not there has
// its default.
type optionPair [2]map[string]int64

func (p optionPair) options(i int) (o grid.ManagerOptions) {
	for name, v := range p[i] {
		grid.SetOption(&o, name, v)
	}
	return o
}

func (p optionPair) size(i int) int { return cmp.Or(p.options(i).MaxMessageSize, 32<<20) }

// sharesEnough reports whether a host can have two links at work at a time, as calls to itself do.
func (p optionPair) sharesEnough(i int) bool {
	return cmp.Or(p.options(i).MaxTotalBytes, math.MaxInt) >= 1<<20
}

// intervals are those of the pings, and the period with which a host looks after them. That of
// streams is the lesser of both hosts, where that is not below a second.
func (p optionPair) intervals(i int) (link, stream, period time.Duration) {
	o := p.options(i)
	stream = cmp.Or(o.StreamPingInterval, 15*time.Second)
	other := cmp.Or(p.options(1-i).StreamPingInterval, 15*time.Second)
	stream = max(min(stream, other), min(max(stream, other), time.Second))
	link = cmp.Or(o.PingInterval, 10*time.Second)
	return link, stream, min(min(link, stream, cmp.Or(o.WriteTimeout, 20*time.Second))/8, time.Second)
}

// pingsAnswered reports whether one host answers all pings of another that has a stream open.
func (p optionPair) pingsAnswered(by, of int) bool {
	link, stream, period := p.intervals(of)
	pings := time.Second/(link-period) + 1 + time.Second/(stream-period) + 1
	o := p.options(by)
	handlers := cmp.Or(o.MaxHandlers, 16384)
	streams := cmp.Or(o.MaxStreams, handlers-handlers/4)
	return int64(pings) <= int64(cmp.Or(o.MaxPings, 128+2*min(streams, 1<<29)))
}

// streamStays reports whether an idle stream of one host at the other may be held against them: its
// pings are as many as the other answers.
func (p optionPair) streamStays(from int) bool { return p.pingsAnswered(1-from, from) }

// idle is for how long the hosts are left to themselves: hours, but of short intervals less.
func (p optionPair) idle() time.Duration {
	_, _, a := p.intervals(0)
	_, _, b := p.intervals(1)
	for i := range 2 { // the link of each with itself
		a = min(a, cmp.Or(p.options(i).StreamPingInterval, 15*time.Second)/8)
	}
	looks := time.Duration(100) // a dozen intervals
	if !testing.Short() {
		looks = 10_000
	}
	return looks * min(a, b)
}

// payload is the largest to try. One that goes in fragments takes long with the race detector.
func (p optionPair) payload() int {
	if testing.Short() && !maps.Equal(p[0], p[1]) {
		return 1 << 10
	}
	return 70 << 10
}

// drawOption draws from the whole range of an option, as many of each magnitude.
func drawOption(random *rand.Rand, b grid.OptionBound) int64 {
	least, greatest := math.Log(float64(b.Least)), math.Log(float64(b.Greatest))
	return int64(min(max(math.Exp(least+random.Float64()*(greatest-least)), float64(b.Least)), math.Nextafter(float64(b.Greatest), 0)))
}

// drawOptions draws all options of a host, each with a chance of its default and its bounds.
func drawOptions(t *testing.T, random *rand.Rand) map[string]int64 {
	all := make(map[string]int64)
	size := 32 << 20
	for _, name := range grid.NumericOptions(t) { // MaxMessageSize is the first
		b := grid.OptionBounds(size)[name]
		switch random.IntN(8) {
		case 0:
			continue
		case 1:
			all[name] = b.Least
		case 2:
			all[name] = b.Greatest
		default:
			all[name] = drawOption(random, b)
		}
		if name == "MaxMessageSize" {
			size = int(all[name])
		}
	}
	if least, longest := all["MinBackoff"], all["MaxBackoff"]; longest != 0 && least > longest {
		all["MinBackoff"], all["MaxBackoff"] = longest, least
	}
	return all
}

const typedOption = rig.Handler + 1

func typedOptionHandler() *grid.SingleHandler[*grid.MSS, *grid.MSS] {
	return grid.NewSingleHandler(typedOption, grid.NewMSS, grid.NewMSS)
}

// letThrough makes a call, a typed one and a two-way stream, with payloads of up to n bytes.
func letThrough(t *testing.T, c *grid.Connection, n int) error {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	payload := bytes.Repeat([]byte{'x'}, n)
	got, err := c.SingleRequest(ctx, rig.Echo, payload)
	if err != nil {
		return fmt.Errorf("request: %w", err)
	}
	require.True(t, bytes.Equal(payload, got))
	grid.PutByteBuffer(got)

	values := grid.NewMSSWith(map[string]string{})
	if n >= 11 {
		values.Set("key", "value")
	}
	back, err := typedOptionHandler().Call(ctx, c, values)
	if err != nil {
		return fmt.Errorf("typed request: %w", err)
	}
	require.Equal(t, values, back)

	s, err := c.NewStream(ctx, rig.TwoWay, nil)
	if err != nil {
		return fmt.Errorf("opening: %w", err)
	}
	// The window grows with those that are small.
	const messages = 30
	message := func(i int) []byte {
		if i < messages-1 {
			return payload[:min(n, 50)]
		}
		return payload
	}
	go func() {
		for i := range messages {
			if s.Send(message(i)) != nil {
				break
			}
		}
		s.CloseSend()
	}()
	received := 0
	err = s.Results(func(b []byte) error {
		require.True(t, bytes.Equal(message(received), b))
		grid.PutByteBuffer(b)
		received++
		return nil
	})
	if err != nil {
		return fmt.Errorf("stream, after %d messages: %w", received, err)
	}
	require.Equal(t, messages, received)
	return nil
}

// requirePairWorks requires that two hosts with such options can call each other, and with local
// calls themselves, that their link lasts, and streams on it unless there are too many pings for
// the options.
func requirePairWorks(t *testing.T, p optionPair, local bool) {
	t.Helper()
	edit := func(i int, o *grid.ManagerOptions) {
		for name, v := range p[i] {
			grid.SetOption(o, name, v)
		}
		o.LocalCalls = local
	}
	rig.InPair(t, edit, func(t *testing.T, g *rig.Grid, _ *grid.Connection) {
		n := min(p.size(0), p.size(1), p.payload())
		for i := range 2 {
			require.NoError(t, typedOptionHandler().Register(g.Manager(i), func(v *grid.MSS) (*grid.MSS, *grid.RemoteErr) { return v, nil }))
		}
		works := func(c *grid.Connection, n int) {
			require.NoError(t, letThrough(t, c, n), "to %s", c.HostName())
		}
		work := func(n int) {
			for i := range 2 {
				works(g.Conn(i, 1-i), n)
				if local && p.sharesEnough(i) {
					works(g.Conn(i, i), n)
				}
			}
		}
		work(n)
		type open struct {
			from int
			s    *grid.Stream
		}
		var streams []open
		for i := range 2 {
			s, err := g.Conn(i, 1-i).NewStream(t.Context(), rig.TwoWay, nil)
			require.NoError(t, err, "from node %d", i)
			streams = append(streams, open{i, s})
		}
		time.Sleep(p.idle())
		synctest.Wait()
		for _, o := range streams {
			err := o.s.Send(make([]byte, min(n, 50)))
			if err == nil {
				o.s.CloseSend()
				err = rig.Consume(o.s)
			}
			if p.streamStays(o.from) {
				require.NoError(t, err, "a stream from node %d, after %v", o.from, p.idle())
			}
		}
		for i := range 2 {
			st := g.Conn(i, 1-i).Stats()
			require.Equal(t, grid.StateConnected, st.State)
			require.Zero(t, st.Reconnects, "node %d: %s", i, st.LastError)
		}
		work(min(n, 50))
	})
}

// Whatever an option is, of those that are a number and within its bounds, on both hosts or on one
// of them: a call and a stream work, and the link lasts.
func TestOptions_AtTheirBoundsLetCallsAndStreamsThrough(t *testing.T) {
	random := seed.Rand(t)
	for _, name := range grid.NumericOptions(t) {
		b := grid.OptionBounds(32 << 20)[name]
		values := map[string]int64{"least": b.Least, "greatest": b.Greatest}
		draws := 1
		if !testing.Short() {
			draws = 5
		}
		for i := range draws {
			values[fmt.Sprint("random ", i)] = drawOption(random, b)
		}
		for which, v := range values {
			set, none := map[string]int64{name: v}, map[string]int64(nil)
			for where, p := range map[string]optionPair{"both": {set, set}, "first": {set, none}, "second": {none, set}} {
				if testing.Short() && where != "both" && strings.HasPrefix(which, "random") {
					continue
				}
				t.Run(strings.Join([]string{name, which, where}, "/"), func(t *testing.T) {
					t.Logf("%v", p)
					requirePairWorks(t, p, !testing.Short())
				})
			}
		}
	}
}

// All options at once, at random and each host its own, or at their bounds.
func TestOptions_TogetherLetCallsAndStreamsThrough(t *testing.T) {
	least, greatest := make(map[string]int64), make(map[string]int64)
	for _, name := range grid.NumericOptions(t) {
		least[name] = grid.OptionBounds(1)[name].Least
		greatest[name] = grid.OptionBounds(math.MaxInt32 - 1<<20)[name].Greatest
	}
	for name, p := range map[string]optionPair{
		"least": {least, least}, "greatest": {greatest, greatest}, "least and greatest": {least, greatest},
		"greatest and least": {greatest, least}, "least and defaults": {least, nil}, "defaults and greatest": {nil, greatest},
	} {
		t.Run(name, func(t *testing.T) { requirePairWorks(t, p, true) })
	}
	random := seed.Rand(t)
	pairs := 15
	if !testing.Short() {
		pairs = 500
	}
	for i := range pairs {
		p := optionPair{drawOptions(t, random), drawOptions(t, random)}
		if i%4 == 0 {
			p[1] = p[0]
		}
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Logf("%v", p)
			requirePairWorks(t, p, true)
		})
	}
}

// Whatever may be queued, it goes in messages that the other host reads, and pings go between them.
func TestOptions_QueueOfAnySizeKeepsALinkThatIsSlow(t *testing.T) {
	const size, calls, rate = 40 << 10, 100, 512 << 10
	for _, queued := range []int{4 << 10, 16 << 20, math.MaxInt} {
		rig.InPair(t, func(_ int, o *grid.ManagerOptions) {
			o.MaxMessageSize, o.MaxQueuedBytes, o.PingInterval = size, queued, time.Second
		}, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
			g.Net.Rate(g.Addr(0), g.Addr(1), rate)
			var results []<-chan error
			for range calls {
				results = append(results, rig.InBackground(func() error {
					b, err := c.SingleRequest(t.Context(), rig.Echo, make([]byte, size))
					grid.PutByteBuffer(b)
					return err
				}))
			}
			for _, r := range results {
				require.NoError(t, <-r)
			}
			require.Zero(t, c.Stats().Reconnects)
		})
	}
}

// Streams of any capacities carry more messages than these, also where the consumers are slow.
func TestOptions_CapacitiesAtTheirBoundsLetStreamsThrough(t *testing.T) {
	const most = 65536
	random := seed.Rand(t)
	capacities := [][2]int{{0, 1}, {1, 1}, {1, most}, {most, 1}, {most, most}}
	draws := 5
	if !testing.Short() {
		draws = 100
	}
	for range draws {
		c := grid.OptionBound{Least: 1, Greatest: most}
		capacities = append(capacities, [2]int{int(drawOption(random, c)), int(drawOption(random, c))})
	}
	for _, c := range capacities {
		rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, conn *grid.Connection) {
			g.Stream(c[0], c[1], func(_ context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
				time.Sleep(time.Minute) // while as many arrive as may
				for b := range in {
					out <- b
				}
				return nil
			})
			n := 1500
			if !testing.Short() {
				n = max(c[0], c[1]) + 1500
			}
			s := rig.OpenStream(t, t.Context(), conn)
			go func() {
				for i := range n {
					if s.Send(fmt.Append(nil, i)) != nil {
						break
					}
				}
				s.CloseSend()
			}()
			time.Sleep(2 * time.Minute)
			got, err := rig.Collect(s, 0)
			require.NoError(t, err, "%v", c)
			require.Len(t, got, n)
			for i, text := range got {
				require.Equal(t, fmt.Sprint(i), text)
			}
			require.Zero(t, conn.Stats().Reconnects)
		})
	}
	for _, c := range []struct {
		out, in int
		text    string
	}{
		{-1, 1, "grid: OutCapacity is -1, must be 1 to 65536"},
		{most + 1, 1, "grid: OutCapacity is 65537, must be 1 to 65536"},
		{math.MaxInt, 1, fmt.Sprintf("grid: OutCapacity is %d, must be 1 to 65536", math.MaxInt)},
		{1, -1, "grid: InCapacity is -1, must be 0 to 65536"},
		{1, most + 1, "grid: InCapacity is 65537, must be 0 to 65536"},
		{1, math.MinInt, fmt.Sprintf("grid: InCapacity is %d, must be 0 to 65536", math.MinInt)},
	} {
		m := newLoner(t, nil)
		handle := func(context.Context, []byte, <-chan []byte, chan<- []byte) *grid.RemoteErr { return nil }
		require.EqualError(t, m.RegisterStreamingHandler(rig.Handler, grid.StreamHandler{Handle: handle, OutCapacity: c.out, InCapacity: c.in}), c.text)
		typed := grid.NewStream(rig.Handler, grid.NewMSS, grid.NewMSS, grid.NewMSS).WithOutCapacity(c.out).WithInCapacity(c.in)
		require.EqualError(t, typed.Register(m, func(context.Context, *grid.MSS, <-chan *grid.MSS, chan<- *grid.MSS) *grid.RemoteErr { return nil }), c.text)
	}
}

// Every ID but 0 is one, and a subroute or the name of a handler may be of any length.
func TestOptions_HandlersOfAnyIDAndName(t *testing.T) {
	long := strings.Repeat("a very long name, ", 1<<16)
	names := make(map[grid.HandlerID]string)
	for id := range 256 {
		names[grid.HandlerID(id)] = long
	}
	rig.InPair(t, func(_ int, o *grid.ManagerOptions) { o.HandlerNames = names }, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		for _, route := range []string{"r", "\x00\xff", long} {
			sub := c.Subroute(route)
			for id := range 256 {
				if route == long && id%64 != 63 { // each is hashed
					continue
				}
				h := func(b []byte) ([]byte, *grid.RemoteErr) { return append(b, byte(id)), nil }
				err := g.Manager(1).RegisterSingleHandler(grid.HandlerID(id), h, route)
				if id == 0 {
					require.ErrorIs(t, err, grid.ErrUnknownHandler)
					_, err = sub.SingleRequest(t.Context(), 0, nil)
					require.ErrorIs(t, err, grid.ErrUnknownHandler)
					continue
				}
				require.NoError(t, err)
				got, err := sub.SingleRequest(t.Context(), grid.HandlerID(id), nil)
				require.NoError(t, err)
				require.Equal(t, []byte{byte(id)}, got)
			}
		}
		_, err := c.SingleRequest(t.Context(), 255, nil)
		require.True(t, grid.IsRemoteErr(err))
		require.ErrorContains(t, err, "no request handler with ID 255 (a very long")
		require.Less(t, len(err.Error()), 70<<10, "clipped")
		g.RequireWorks()
		require.Zero(t, c.Stats().Reconnects)
	})
}
