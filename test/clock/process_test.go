package clock

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/clockstep"
	"github.com/gridrpc/grid/internal/rig"
)

// Steps under one of two hosts: the other is a process of its own, which steps its clock when it is
// told to.

// Short, as these tests wait for them in earnest, but long enough for a machine that is busy.
const (
	interval = 1500 * time.Millisecond
	// silence is for how long a server waits to hear of a stream, and a while.
	silence = 4*interval + interval
	patient = time.Minute
)

// host is a host with a server, in either process.
type host struct {
	*grid.Manager
	server *http.Server
	served chan struct{}
}

// newHost makes a host with the auth of that name, which is to know peer.
func newHost(auth, peer string, edit func(o *grid.ManagerOptions)) (*host, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	local := "http://" + l.Addr().String()
	o := rig.Options(local, []string{local})
	if peer != "" {
		o.Hosts = append(o.Hosts, peer)
	}
	o.PingInterval, o.StreamPingInterval = interval, interval
	auths[auth](&o)
	if edit != nil {
		edit(&o)
	}
	m, err := grid.NewManager(context.Background(), o)
	if err != nil {
		l.Close()
		return nil, err
	}
	err = m.RegisterStreamingHandler(rig.TwoWay, grid.StreamHandler{
		Handle: func(ctx context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			for b := range in {
				out <- b
			}
			return nil
		},
		OutCapacity: 1, InCapacity: 1,
	})
	if err != nil {
		return nil, err
	}
	// Answers after two intervals.
	err = m.RegisterSingleHandler(rig.Handler, func(b []byte) ([]byte, *grid.RemoteErr) {
		time.Sleep(2 * interval)
		return b, nil
	})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle(grid.RoutePath, m.Handler())
	h := &host{Manager: m, server: &http.Server{Handler: mux}, served: make(chan struct{})}
	go func() {
		defer close(h.served)
		_ = h.server.Serve(l)
	}()
	return h, nil
}

func (h *host) close() {
	h.Manager.Close()
	h.server.Close()
	<-h.served
}

// check opens a stream and makes a request before do, and requires that both are well after it.
func (h *host) check(peer string, do func() error) error {
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	c := h.Connection(peer)
	if err := c.WaitForConnect(ctx); err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	st, err := c.NewStream(context.Background(), rig.TwoWay, nil)
	if err != nil {
		return fmt.Errorf("opening a stream: %w", err)
	}
	next, stop := pull(st)
	defer stop()
	request := rig.InBackground(func() error { return same([]byte("x"))(c.SingleRequest(ctx, rig.Handler, []byte("x"))) })
	deadlined := rig.InBackground(func() error { return h.deadline(c) })
	before := c.Stats().Reconnects
	if err := do(); err != nil {
		return err
	}
	if err := st.Send([]byte("still there")); err != nil {
		return fmt.Errorf("sending on an idle stream: %w", err)
	}
	got, err, _ := next()
	if err := same([]byte("still there"))(got, err); err != nil {
		return fmt.Errorf("receiving from an idle stream: %w", err)
	}
	if err := <-request; err != nil {
		return fmt.Errorf("a request that was running: %w", err)
	}
	if err := <-deadlined; err != nil {
		return err
	}
	if n := c.Stats().Reconnects - before; n > 0 {
		return fmt.Errorf("the link was lost %d times", n)
	}
	return nil
}

// deadline opens a stream that is to end by its deadline, and not before.
func (h *host) deadline(c *grid.Connection) error {
	const limit = 2 * interval
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	st, err := c.NewStream(ctx, rig.TwoWay, nil)
	if err == nil {
		err = rig.Consume(st)
	}
	took := time.Since(began)
	if !errors.Is(err, context.DeadlineExceeded) || took < limit-5*time.Millisecond || took > limit+patient {
		return fmt.Errorf("a stream with a deadline of %v ended after %v: %w", limit, took, err)
	}
	return nil
}

// peerCommand is the argument that makes the program the other process.
const peerCommand = "peer"

// bePeer is the other process. It connects with the host, reads a command a line, and answers each
// with a line.
//
//	step 1h   steps the clock
//	check 1h  opens streams and makes a request, and answers "opened"; after one more line it steps
//	          the clock, and answers a while later whether they are well
func bePeer(args []string) error {
	auth, peer, dials := args[0], args[1], args[2] == "dials"
	var h *host
	for {
		var err error
		if h, err = newHost(auth, peer, nil); err != nil {
			return err
		}
		if h.Connection(peer).Stats().Dials == dials {
			break // which of them does is a matter of the port
		}
		h.close()
	}
	defer h.close()
	fmt.Println(h.HostName())
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		verb, arg, _ := strings.Cut(commands.Text(), " ")
		d, err := time.ParseDuration(arg)
		if err != nil {
			return err
		}
		if verb == "step" {
			clockstep.By(d)
		} else {
			err = h.check(peer, func() error {
				fmt.Println("opened")
				if !commands.Scan() {
					return io.ErrUnexpectedEOF
				}
				clockstep.By(d)
				time.Sleep(silence)
				return nil
			})
		}
		if err != nil {
			fmt.Println(err)
		} else {
			fmt.Println("ok")
		}
	}
	return commands.Err()
}

// pair is both hosts, seen from this one.
type pair struct {
	*testing.T
	here    *host
	log     *rig.LogBook
	there   string // the name of the other
	command io.Writer
	answers *bufio.Scanner
}

// newPair starts the other process. It dials, or this one does.
func newPair(t *testing.T, auth string, itDials bool) *pair {
	p := &pair{T: t}
	logger, log := rig.NewLogBook()
	here, err := newHost(auth, "", func(o *grid.ManagerOptions) { o.Logger = logger })
	require.NoError(t, err)
	t.Cleanup(here.close)
	p.here, p.log = here, log
	role := "is dialled"
	if itDials {
		role = "dials"
	}
	cmd := exec.Command(os.Args[0], peerCommand, auth, here.HostName(), role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		_, _ = io.Copy(io.Discard, out)
		require.NoError(t, cmd.Wait())
	})
	p.command, p.answers = in, bufio.NewScanner(out)
	p.there = p.answer()
	require.NoError(t, here.AddHost(p.there))
	require.Equal(t, !itDials, p.conn().Stats().Dials)
	p.connect()
	return p
}

func (p *pair) conn() *grid.Connection { return p.here.Connection(p.there) }

func (p *pair) answer() string {
	p.Helper()
	require.True(p, p.answers.Scan(), "the other process has gone")
	return p.answers.Text()
}

func (p *pair) say(command, answer string) {
	p.Helper()
	_, err := fmt.Fprintln(p.command, command)
	require.NoError(p, err)
	require.Equal(p, answer, p.answer(), command)
}

// connect waits until the two are connected.
func (p *pair) connect() {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), patient)
	defer cancel()
	require.NoError(p, p.conn().WaitForConnect(ctx))
}

// cut makes the two connect once more.
func (p *pair) cut() {
	p.Helper()
	require.NoError(p, p.here.RemoveHost(p.there))
	require.NoError(p, p.here.AddHost(p.there))
}

// inPairs runs f for each step, with either host as the dialler, all of them at once.
func inPairs(t *testing.T, steps []time.Duration, f func(t *testing.T, d time.Duration, itDials bool)) {
	clockstep.Require(t)
	for _, d := range steps {
		for itDials, name := range map[bool]string{true: "the one that dials", false: "the one that is dialled"} {
			t.Run(fmt.Sprint(d, ", ", name), func(t *testing.T) {
				t.Parallel()
				f(t, d, itDials)
			})
		}
	}
}

// Streams and calls in both directions outlive a step under one of their hosts.
func TestStep_OfOneHostEndsNothing(t *testing.T) {
	inPairs(t, steps, func(t *testing.T, d time.Duration, itDials bool) {
		p := newPair(t, "secret", itDials)
		p.say("check "+d.String(), "opened")
		require.NoError(t, p.here.check(p.there, func() error {
			p.say("go on", "ok")
			return nil
		}))
	})
}

// A host whose clock is an hour off keeps its link. A new one is refused, with a reason that both
// sides tell, until the clocks agree again; a minute does not matter.
func TestStep_OfOneHostKeepsItOutUntilItIsSetRight(t *testing.T) {
	for auth, reason := range map[string]string{
		"secret": "token older than 5m0s, or from a clock too far ahead",
		"token":  "clocks differ by ",
	} {
		t.Run(auth, func(t *testing.T) {
			inPairs(t, []time.Duration{time.Minute, time.Hour, -time.Hour, -24 * time.Hour}, func(t *testing.T, d time.Duration, itDials bool) {
				p := newPair(t, auth, itDials)
				p.say("step "+d.String(), "ok")
				require.NoError(t, p.here.check(p.there, func() error { return nil }))
				p.cut()
				if d.Abs() <= time.Minute {
					p.connect()
					return
				}
				require.Eventually(t, func() bool {
					return strings.Contains(p.conn().Stats().LastError, reason) || len(p.log.About(reason)) > 0
				},
					patient, 10*time.Millisecond, "%+v", p.conn().Stats())
				require.NotEqual(t, grid.StateConnected, p.conn().State())
				p.say("step "+(-d).String(), "ok")
				p.connect()
				require.NoError(t, p.here.check(p.there, func() error { return nil }))
			})
		})
	}
}
