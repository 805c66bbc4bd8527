package grid

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

	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/faultconn"
)

// The tests of the files attack*_test.go are about a peer that lies and floods. Each
// holds four things: what it makes the node keep has a bound, the node goes on, an
// honest host is served meanwhile, and the log has the reason, once, and no secret.

// attackToken must be in no line of a log.
const attackToken = "s3cr3t-of-the-cluster"

const (
	attackOther = "http://node1:9000" // the honest host
	// allCaps are those of a peer that speaks all extensions.
	allCaps = rawCapWideCredits | rawCapFragments | rawCapDrain | rawCapMetadata
)

// attacked is a node, an honest host that calls it, and a peer that does not behave.
type attacked struct {
	*testing.T
	grid *testGrid // the node, and the honest one
	node *node
	raw  string      // the attacker's name
	conn *Connection // to the attacker
	log  *logBook
	c    rawConfig
	next func() *rawPeer // connects the attacker, perhaps once more

	before int64 // the heap before the attack
}

// inAttack runs f in a bubble twice, as inV1 does: the attacker dials the node, or is
// dialled. It is not connected before next. edit may be nil.
func inAttack(t *testing.T, c rawConfig, edit func(o *ManagerOptions), f func(a *attacked)) {
	t.Helper()
	for name, rawDials := range map[string]bool{"we accept": true, "we dial": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runAttack(t, rawDials, c, edit, f) })
		})
	}
}

// atTheDoor runs f in a bubble, where the attacker is one that dials.
func atTheDoor(t *testing.T, c rawConfig, edit func(o *ManagerOptions), f func(a *attacked)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { runAttack(t, true, c, edit, f) })
}

func runAttack(t *testing.T, rawDials bool, c rawConfig, edit func(o *ManagerOptions), f func(a *attacked)) {
	t.Helper()
	a := &attacked{T: t, raw: rawHostFor(t, rawDials), log: new(logBook), c: c}
	n := faultconn.NewNetwork()
	n.SetLinkBuffer(hostAddr(loneHost), hostAddr(a.raw), 16<<10)
	if rawDials {
		a.next = func() *rawPeer { return a.dial(a.c) }
	} else {
		a.next = acceptRaw(t, listenMemory(t, n, a.raw), c).accept
	}
	a.grid = &testGrid{t: t, net: n, hosts: []string{loneHost, attackOther}, guests: !rawDials, edit: func(i int, o *ManagerOptions) {
		o.AuthFn = func() string { return attackToken }
		o.AuthToken = func(token string) error {
			if token != attackToken {
				return errors.New("wrong token")
			}
			return nil
		}
		if i == 0 {
			o.Hosts = append(o.Hosts[:len(o.Hosts):len(o.Hosts)], a.raw)
			o.Logger = slog.New(slog.NewTextHandler(a.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			if edit != nil {
				edit(o)
			}
		}
	}}
	a.grid.startAll()
	a.node = a.grid.nodes[0]
	a.conn = a.node.Connection(a.raw)
	a.served()
	a.before = heap()
	f(a)
	a.served()
	synctest.Wait()
	a.checkLog()
}

// dial connects to the node as the attacker, or leaves that to the test.
func (a *attacked) dial(c rawConfig) *rawPeer {
	a.Helper()
	c.Host, c.Token, c.Dial = a.raw, attackToken, a.grid.net.Dialer(hostAddr(a.raw))
	return dialRawConfig(a, loneHost, c)
}

// session is the one with the attacker.
func (a *attacked) session() *session {
	a.Helper()
	require.NoError(a, a.conn.WaitForConnect(a.Context()))
	return a.conn.session.Load()
}

// served requires that the honest host is served.
func (a *attacked) served() {
	a.Helper()
	for i := range 5 {
		require.NoError(a, honestCall(a.grid.conn(1, 0), i))
	}
}

// honestCall makes a request, and sometimes a stream.
func honestCall(c *Connection, i int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	text := fmt.Sprint("honest ", i)
	b, err := c.SingleRequest(ctx, testEcho, []byte(text))
	if err == nil && string(b) != text {
		err = fmt.Errorf("%q in place of %q", b, text)
	}
	PutByteBuffer(b)
	if err != nil || i%5 != 0 {
		return err
	}
	st, err := c.NewStream(ctx, testStream, []byte(text))
	if err != nil {
		return err
	}
	return consume(st)
}

// during requires that the honest host is served while the attack runs, and that no
// call takes long.
func (a *attacked) during(attack func()) {
	a.Helper()
	stop, done := make(chan struct{}), make(chan struct{})
	var calls int
	var slowest time.Duration
	var failed error
	go func() {
		defer close(done)
		for failed == nil {
			start := time.Now()
			failed = honestCall(a.grid.conn(1, 0), calls)
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
	require.Zero(a, a.node.Connection(attackOther).Stats().Reconnects)
}

// logged requires one line of the log, from level info, with all of parts.
func (a *attacked) logged(parts ...string) {
	a.Helper()
	synctest.Wait()
	var lines []string
	for _, line := range a.log.about(parts...) {
		// The honest host may have listened a moment later.
		if !strings.Contains(line, "level=DEBUG") && !strings.Contains(line, "connection refused") {
			lines = append(lines, line)
		}
	}
	require.Len(a, lines, 1, "about %q, of %q", parts, a.log.about(""))
}

// ended waits until the node has ended the link with the attacker.
func (a *attacked) ended(s *session) {
	a.Helper()
	select {
	case <-s.done:
	case <-time.After(time.Minute):
		require.Fail(a, "the link is up still")
	}
}

// lost requires that the node ends the link with the attacker, and logs why.
func (a *attacked) lost(s *session, why ...string) {
	a.Helper()
	a.ended(s)
	for _, text := range why {
		require.ErrorContains(a, s.err, text)
	}
	synctest.Wait()
	a.logged(append(why, "connection lost")...)
}

var logNoise = regexp.MustCompile(`time=\S+ |addr=\S+`)

// checkLog requires that nothing was said twice, and no secret told.
func (a *attacked) checkLog() {
	a.Helper()
	said := map[string]int{}
	infos := 0
	for _, line := range a.log.about("") {
		require.NotContains(a, line, attackToken)
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
	require.LessOrEqual(a, infos, 6, "%q", a.log.about("level=INFO"))
}

// requireGrown requires that the heap has grown by less since before the attack. The
// race detector's pool keeps more.
func (a *attacked) requireGrown(most int64) {
	a.Helper()
	if bytepool.Strict {
		most = 2*most + 16<<20
	}
	grown := heap() - a.before
	a.Logf("heap has grown by %d KiB, %d KiB are allowed", grown>>10, most>>10)
	require.Less(a, grown, most)
}

// queueBounds requires that what waits for the attacker's writer is within limits.
func (a *attacked) queueBounds(s *session) {
	a.Helper()
	q := &s.out
	q.mu.Lock()
	defer q.mu.Unlock()
	const oneMore = 64 << 10
	require.LessOrEqual(a, q.posted, postedLimit+oneMore)
	require.LessOrEqual(a, len(q.urgent.buf), urgentLimit+firstBuffer)
	require.LessOrEqual(a, len(q.batch.buf), postedLimit+s.opts.MaxQueuedBytes+largeLimit+oneMore)
	require.LessOrEqual(a, q.small.taken+q.small.promised, s.opts.MaxQueuedBytes+oneMore)
	require.LessOrEqual(a, q.large.taken+q.large.promised, largeLimit+oneMore)
}

// idle requires that nothing of the attack is left.
func (a *attacked) idle() {
	a.Helper()
	synctest.Wait()
	st := a.conn.Stats()
	require.Zero(a, st.KeptBytes, "bytes are kept")
	require.Zero(a, st.Handlers)
	require.Zero(a, st.Calls+st.Streams+st.StreamsServed)
	if s := a.conn.session.Load(); s != nil {
		require.Zero(a, s.opener.openings.size())
	}
}

// echoes requires that the attacker's link works.
func (a *attacked) echoes(p *rawPeer) {
	a.Helper()
	p.send(rawMsg{MuxID: 1 << 60, Handler: uint8(testEcho), Op: rawOpRequest, Flags: crcEOF, Payload: []byte("alive")})
	for {
		if m := p.recv(); m.Op == rawOpResponse && m.MuxID == 1<<60 {
			require.Equal(a, "alive", string(m.Payload))
			return
		}
	}
}
