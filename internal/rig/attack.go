package rig

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/errlog"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
)

// The tests with an Attacked are about a peer that lies and floods. Each holds four things: what it
// makes the node keep has a bound, the node goes on, an honest host is served meanwhile, and the
// log has the reason, once, and no secret.

// AttackToken must be in no line of a log.
const AttackToken = "s3cr3t-of-the-cluster"

const AttackOther = "http://node1:9000" // the honest host

// Attacked is a node, an honest host that calls it, and a peer that does not behave.
type Attacked struct {
	*testing.T
	Grid *Grid // the node, and the honest one
	Node *Node
	Raw  string           // the attacker's name
	Conn *grid.Connection // to the attacker
	Book *LogBook
	c    rawpeer.Config
	Next func() *rawpeer.Peer // connects the attacker, perhaps once more
	// Server is the attacker's, where it is dialled, else one that nobody asks.
	Server *rawpeer.Server

	opts   grid.ManagerOptions // of the node
	Before int64               // the heap before the attack, by RunAttack
}

// InAttack runs f in a bubble twice, as InWire does: the attacker dials the node, or is dialled. It
// is not connected before next. edit may be nil.
func InAttack(t *testing.T, c rawpeer.Config, edit func(o *grid.ManagerOptions), f func(a *Attacked)) {
	t.Helper()
	for name, rawDials := range map[string]bool{"we accept": true, "we dial": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { RunAttack(t, rawDials, c, edit, f) })
		})
	}
}

// InAttackByDialler runs f in a bubble, where the attacker is one that dials.
func InAttackByDialler(t *testing.T, c rawpeer.Config, edit func(o *grid.ManagerOptions), f func(a *Attacked)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { RunAttack(t, true, c, edit, f) })
}

// RunAttack runs f in the bubble that the test is in, with the attacker in one role.
func RunAttack(t *testing.T, rawDials bool, c rawpeer.Config, edit func(o *grid.ManagerOptions), f func(a *Attacked)) {
	t.Helper()
	a := NewAttacked(t, rawDials, c, edit)
	a.Before = Heap()
	f(a)
	a.Served()
	synctest.Wait()
	a.CheckLog()
}

// NewAttacked makes one, in a bubble, with the attacker in one role, who is not connected yet.
func NewAttacked(t *testing.T, rawDials bool, c rawpeer.Config, edit func(o *grid.ManagerOptions)) *Attacked {
	t.Helper()
	a := &Attacked{T: t, Raw: PeerHost(t, rawDials), Book: new(LogBook), c: c, Server: new(rawpeer.Server)}
	n := faultconn.NewNetwork()
	n.SetLinkBuffer(HostAddr(LoneHost), HostAddr(a.Raw), 16<<10)
	if rawDials {
		a.Next = func() *rawpeer.Peer { return a.Dial(a.c) }
	} else {
		a.Server = rawpeer.Serve(t, ListenMemory(t, n, a.Raw), c)
		a.Next = a.Server.Accept
	}
	a.Grid = Setup{Net: n, Hosts: []string{LoneHost, AttackOther}, Guests: !rawDials, Edit: func(i int, o *grid.ManagerOptions) {
		o.AuthFn = func() string { return AttackToken }
		o.AuthToken = func(token string) error {
			if token != AttackToken {
				return errors.New("wrong token")
			}
			return nil
		}
		if i == 0 {
			o.Hosts = append(o.Hosts[:len(o.Hosts):len(o.Hosts)], a.Raw)
			o.Logger = slog.New(slog.NewTextHandler(a.Book, &slog.HandlerOptions{Level: slog.LevelDebug}))
			if edit != nil {
				edit(o)
			}
			a.opts = *o
		}
	}}.Start(t)
	a.Node = a.Grid.Node(0)
	a.Conn = a.Node.Connection(a.Raw)
	a.Served()
	return a
}

// Dial connects to the node as the attacker, or leaves that to the test.
func (a *Attacked) Dial(c rawpeer.Config) *rawpeer.Peer {
	a.Helper()
	c.Host, c.Token, c.Dial = a.Raw, AttackToken, a.Grid.Net.Dialer(HostAddr(a.Raw))
	return rawpeer.DialConfig(a, LoneHost, c)
}

// Served requires that the honest host is served.
func (a *Attacked) Served() {
	a.Helper()
	for i := range 5 {
		require.NoError(a, HonestCall(a.Grid.Conn(1, 0), i))
	}
}

// HonestCall makes a request, and sometimes a stream.
func HonestCall(c *grid.Connection, i int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	text := fmt.Sprint("honest ", i)
	b, err := c.SingleRequest(ctx, Echo, []byte(text))
	if err == nil && string(b) != text {
		err = fmt.Errorf("%q in place of %q", b, text)
	}
	grid.PutByteBuffer(b)
	if err != nil || i%5 != 0 {
		return err
	}
	st, err := c.NewStream(ctx, Stream, []byte(text))
	if err != nil {
		return err
	}
	return Consume(st)
}

// During requires that the honest host is served while the attack runs, and that no call takes
// long.
func (a *Attacked) During(attack func()) {
	a.Helper()
	stop, done := make(chan struct{}), make(chan struct{})
	var calls int
	var slowest time.Duration
	var failed error
	go func() {
		defer close(done)
		for failed == nil {
			start := time.Now()
			failed = HonestCall(a.Grid.Conn(1, 0), calls)
			slowest = max(slowest, time.Since(start))
			calls++
			// At first without a pause, because an attack may take no time at all.
			var pause <-chan time.Time
			if calls > 50 {
				pause = time.After(50 * time.Millisecond)
			} else {
				now := make(chan time.Time)
				close(now)
				pause = now
			}
			select {
			case <-stop:
				return
			case <-pause:
			}
		}
	}()
	func() {
		defer func() { close(stop); <-done }() // also where the attack has failed the test
		attack()
	}()
	require.NoError(a, failed, "the honest host's call %d", calls)
	require.Less(a, slowest, time.Second, "of %d calls", calls)
	require.Zero(a, a.Node.Connection(AttackOther).Stats().Reconnects)
}

// Logged requires one line of the log, from level info, with all of parts.
func (a *Attacked) Logged(parts ...string) {
	a.Helper()
	lines := a.about(parts)
	require.Len(a, lines, 1, "about %q, of %q", parts, a.Book.About(""))
}

// LoggedFew is Logged of an attack that goes on for ever new reasons.
func (a *Attacked) LoggedFew(parts ...string) {
	a.Helper()
	lines := a.about(parts)
	require.NotEmpty(a, lines, "about %q, of %q", parts, a.Book.About(""))
	require.LessOrEqual(a, len(lines), errlog.MaxReasons, "about %q: %q", parts, lines)
}

func (a *Attacked) about(parts []string) (lines []string) {
	synctest.Wait()
	for _, line := range a.Book.About(parts...) {
		// The honest host may have listened a moment later.
		if !strings.Contains(line, "level=DEBUG") && !strings.Contains(line, "connection refused") {
			lines = append(lines, line)
		}
	}
	return lines
}

var logNoise = regexp.MustCompile(`time=\S+ |addr=\S+`)

// CheckLog requires that nothing was said twice, and no secret told.
func (a *Attacked) CheckLog() {
	a.Helper()
	said := map[string]int{}
	infos := 0
	for _, line := range a.Book.About("") {
		require.NotContains(a, line, AttackToken)
		require.Less(a, len(line), 2000, "%.200s", line)
		switch {
		case strings.Contains(line, "level=DEBUG"):
		case strings.Contains(line, "level=INFO"):
			infos++
		default:
			key := logNoise.ReplaceAllString(line, "")
			said[key]++
			require.Equal(a, 1, said[key], "said again: %s", line)
		}
	}
	require.LessOrEqual(a, infos, 6, "%q", a.Book.About("level=INFO"))
}

// RequireGrown requires that the heap has grown by less since before the attack. The race
// detector's pool keeps more.
func (a *Attacked) RequireGrown(most int64) {
	a.Helper()
	if bytepool.Strict {
		most = 2*most + 16<<20
	}
	grown := Heap() - a.Before
	a.Logf("heap has grown by %d KiB, %d KiB are allowed", grown>>10, most>>10)
	require.Less(a, grown, most)
}

// Echoes requires that the attacker's link works.
func (a *Attacked) Echoes(p *rawpeer.Peer) {
	a.Helper()
	p.Send(rawpeer.Msg{MuxID: 1 << 60, Handler: uint8(Echo), Op: rawpeer.OpRequest, Flags: CRCEOF, Payload: []byte("alive")})
	for {
		if m := p.Recv(); m.Op == rawpeer.OpResponse && m.MuxID == 1<<60 {
			require.Equal(a, "alive", string(m.Payload))
			return
		}
	}
}

// What a peer makes the node keep in whole: requests, answers, reasons.

// KeptLimits are small, so that a test reaches them.
func KeptLimits(o *grid.ManagerOptions) {
	o.MaxMessageSize = 1 << 20
	o.MaxHostBytes = 4 << 20
	o.MaxStreamBytes = 1 << 20
	o.MaxHandlers, o.MaxStreams = 400, 300
	o.WriteTimeout = 5 * time.Second
}
