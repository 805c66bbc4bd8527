package v1

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/faultconn"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// transcriptStep is what two version 1 peers said in the course of one thing.
type transcriptStep struct {
	Step     string
	Messages []transcriptMsg
}

type transcriptMsg struct {
	From       string
	Op         string
	MuxID      uint64 `json:"mux_id"`
	Seq        uint32
	DeadlineMS uint32 `json:"deadline_ms"`
	Handler    uint8
	Flags      string
	Payload    *string `json:"payload_hex"`
}

func loadTranscript(t *testing.T) []transcriptStep {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "testdata", "transcripts.json"))
	require.NoError(t, err)
	var steps []transcriptStep
	require.NoError(t, json.Unmarshal(b, &steps))
	require.Len(t, steps, 10)
	return steps
}

// raw is the message as it stands on the wire. The transcript has one subroute, which it does not
// name.
func (m transcriptMsg) raw(t *testing.T) rawpeer.Msg {
	t.Helper()
	r := rawpeer.Msg{MuxID: m.MuxID, Seq: m.Seq, DeadlineMS: m.DeadlineMS, Handler: m.Handler}
	for op, name := range rawpeer.OpNames {
		if name == m.Op {
			r.Op = op
		}
	}
	require.NotZero(t, r.Op, m.Op)
	for name := range strings.SplitSeq(strings.Trim(m.Flags, "[]"), ",") {
		flag, ok := map[string]uint8{
			"": 0, "CRC": rawpeer.FlagCRC, "EOF": rawpeer.FlagEOF, "ERR": rawpeer.FlagPayloadIsErr, "ZERO": rawpeer.FlagPayloadIsZero, "SUB": rawpeer.FlagSubroute,
		}[name]
		require.True(t, ok, name)
		r.Flags |= flag
	}
	if m.Payload != nil {
		r.Payload = rawpeer.Unhex(t, *m.Payload)
	}
	if r.Flags&rawpeer.FlagSubroute != 0 {
		r.Subroute = rawpeer.SubrouteID(m.Handler, "a/b")
	}
	return r
}

// replay plays one of the two peers against a node that has the role of the other.
type replay struct {
	t    *testing.T
	role string // of the node
	m    *grid.Manager
	conn *grid.Connection
	peer *rawpeer.Peer
}

// step says what the transcript's other peer said, each message once what the node had said before
// has come, and requires of the node what its counterpart said. How messages of the two directions
// of a stream mix is left open.
func (r *replay) step(s transcriptStep) {
	var want, got []rawpeer.Msg
	for _, m := range s.Messages {
		raw := m.raw(r.t)
		if s.Messages[0].From == r.role {
			raw.MuxID += rig.Mux1Base // by which a node keeps its numbers apart from the peer's
		}
		if m.From == r.role {
			if raw.Op != rawpeer.OpDisconnectServerMux || want[len(want)-1].Op != rawpeer.OpConnectMux {
				want = append(want, raw) // else it disconnects what was refused: no need to
			}
			continue
		}
		got = r.await(want, got)
		r.peer.Send(raw)
	}
	got = r.await(want, got)
	synctest.Wait()
	require.Empty(r.t, r.peer.Pending(), rawpeer.Dump(r.peer.Pending()))
	require.Len(r.t, got, len(want), rawpeer.Dump(got))

	numbered := []uint8{
		rawpeer.OpConnectMux, rawpeer.OpMuxClientMsg, rawpeer.OpUnblockSrvMux, rawpeer.OpAckMux, rawpeer.OpMuxServerMsg, rawpeer.OpUnblockClMux,
	}
	var seq uint32
	for i := range got {
		if slices.Contains(numbered, got[i].Op) {
			require.Equal(r.t, seq, got[i].Seq, rawpeer.Dump(got))
			seq++
			got[i].Seq = 0
		}
	}
	for _, w := range want {
		i := slices.IndexFunc(got, func(g rawpeer.Msg) bool { return g.Op == w.Op })
		g := got[i]
		got = slices.Delete(got, i, i+1)
		if slices.Contains(numbered, w.Op) {
			w.Seq = 0
		}
		if w.Op == rawpeer.OpMuxConnectError {
			require.NotEmpty(r.t, rawpeer.ConnectErrorText(r.t, g.Payload))
			g.Payload = w.Payload // whose text is the peer's own
		}
		if w.DeadlineMS%1000 == 999 {
			w.DeadlineMS++ // a millisecond went by on the way
		}
		require.Equal(r.t, w, g)
	}
}

// await adds to got what the node says, until it includes all of want.
func (r *replay) await(want, got []rawpeer.Msg) []rawpeer.Msg {
	count := func(msgs []rawpeer.Msg, op uint8) (n int) {
		for _, m := range msgs {
			if m.Op == op {
				n++
			}
		}
		return n
	}
	for _, w := range want {
		for count(got, w.Op) < count(want, w.Op) {
			m, err := r.peer.TryRecv()
			require.NoError(r.t, err, "waiting for %v, after%s", w, rawpeer.Dump(got))
			got = append(got, m)
		}
	}
	return got
}

// register registers what the transcript's peers had.
func (r *replay) register() {
	require.NoError(r.t, r.m.RegisterSingleHandler(1, func(b []byte) ([]byte, *grid.RemoteErr) { return append([]byte("re:"), b...), nil }))
	require.NoError(r.t, r.m.RegisterSingleHandler(2, func([]byte) ([]byte, *grid.RemoteErr) { return nil, grid.NewRemoteErrString("boom") }))
	require.NoError(r.t, r.m.RegisterSingleHandler(7, func(b []byte) ([]byte, *grid.RemoteErr) {
		if b != nil {
			return nil, grid.NewRemoteErrf("payload is %q", b)
		}
		return []byte{}, nil
	}, "a", "b"))
	stream := func(id grid.HandlerID, in int, payload string, h grid.StreamHandlerFn) {
		require.NoError(r.t, r.m.RegisterStreamingHandler(id, grid.StreamHandler{OutCapacity: 2, InCapacity: in, Handle: func(ctx context.Context, b []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			if string(b) != payload {
				return grid.NewRemoteErrf("payload is %q", b)
			}
			return h(ctx, b, in, out)
		}}))
	}
	stream(3, 0, "p", func(_ context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
		for i := range 4 {
			out <- []byte{byte(i)}
		}
		return nil
	})
	stream(4, 2, "p", func(_ context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
		for b := range in {
			out <- append([]byte("re:"), b...)
		}
		return grid.NewRemoteErrString("end with an error")
	})
	stream(5, 0, "", func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
		out <- []byte("x")
		<-ctx.Done()
		return grid.NewRemoteErr(ctx.Err())
	})
}

// calls are what the transcript's peers did, by the beginning of the step; each by the one who
// speaks first.
var transcriptCalls = map[string]func(ctx context.Context, c *grid.Connection) error{
	"single request, dialler asks":  askForEcho,
	"single request, acceptor asks": askForEcho,
	"single request, handler error": func(ctx context.Context, c *grid.Connection) error {
		_, err := c.SingleRequest(ctx, 2, []byte("q"))
		return expectRemote(err, "boom")
	},
	"single request, no handler": func(ctx context.Context, c *grid.Connection) error {
		_, err := c.SingleRequest(ctx, 9, []byte("q"))
		return expectRemote(err, "Invalid Handler for type: DiskInfo")
	},
	"single request, subroute a/b": func(ctx context.Context, c *grid.Connection) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		b, err := c.Subroute("a").Subroute("b").SingleRequest(ctx, 7, nil)
		if b == nil || len(b) > 0 {
			return errors.Join(err, errors.New("answer is not empty"))
		}
		return err
	},
	"stream without input": func(ctx context.Context, c *grid.Connection) error {
		got, err := readAll(ctx, c, 3, "p", nil)
		return errors.Join(err, expectText(got, "\x00\x01\x02\x03"))
	},
	"stream both ways": func(ctx context.Context, c *grid.Connection) error {
		got, err := readAll(ctx, c, 4, "p", []string{"0", "1", "2"})
		return errors.Join(expectRemote(err, "end with an error"), expectText(got, "re:0re:1re:2"))
	},
	"stream cancelled by the client": func(ctx context.Context, c *grid.Connection) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		s, err := c.NewStream(ctx, 5, nil)
		if err != nil {
			return err
		}
		err = s.Results(func(b []byte) error { cancel(); return expectText(string(b), "x") })
		if !errors.Is(err, context.Canceled) {
			return errors.Join(err, errors.New("not cancelled"))
		}
		return nil
	},
	"stream, no handler": func(ctx context.Context, c *grid.Connection) error {
		_, err := c.NewStream(ctx, 3, nil)
		return expectRemote(err, "Invalid Handler for type: LockUnlock")
	},
}

func askForEcho(ctx context.Context, c *grid.Connection) error {
	b, err := c.SingleRequest(ctx, 1, []byte("q"))
	return errors.Join(err, expectText(string(b), "re:q"))
}

// readAll returns all results, one after the other. It sends each of input when the one before has
// been answered.
func readAll(ctx context.Context, c *grid.Connection, id grid.HandlerID, payload string, input []string) (got string, err error) {
	s, err := c.NewStream(ctx, id, []byte(payload))
	if err != nil {
		return "", err
	}
	next := func() (err error) {
		if len(input) == 0 {
			s.CloseSend()
			return nil
		}
		err = s.Send([]byte(input[0]))
		input = input[1:]
		return err
	}
	if err := next(); err != nil {
		return "", err
	}
	return got, s.Results(func(b []byte) error { got += string(b); return next() })
}

func expectText(got, want string) error {
	if got != want {
		return errors.New("got " + got + ", want " + want)
	}
	return nil
}

func expectRemote(err error, text string) error {
	var remote *grid.RemoteErr
	if !errors.As(err, &remote) {
		return errors.Join(err, errors.New("not a RemoteErr"))
	}
	return expectText(remote.Error(), text)
}

// newReplay connects a node, without handlers, to a peer of version 1.
func newReplay(t *testing.T, role string) *replay {
	t.Helper()
	n := faultconn.NewNetwork()
	local, raw := rawpeer.HostPair(t, role == "acceptor")
	l := rig.ListenMemory(t, n, local)
	var rawServer *rawpeer.Server
	if role == "dialler" {
		rawServer = rawpeer.Serve(t, rig.ListenMemory(t, n, raw), rawpeer.Config{Bare: true})
	}
	o := rig.Options(local, []string{local, raw})
	o.Dialer = n.Dialer(rig.HostAddr(local))
	m, err := grid.NewManager(t.Context(), o)
	require.NoError(t, err)
	server := &http.Server{Handler: m.Handler()}
	go server.Serve(l)
	t.Cleanup(func() {
		server.Close()
		m.Close()
	})
	r := &replay{t: t, role: role, m: m, conn: m.Connection(raw)}

	connect := rawpeer.Connect{ID: []byte("0123456789abcdef"), Host: raw, Time: time.Now(), Token: rig.Token}
	if role == "acceptor" {
		r.peer = rawpeer.DialConfig(t, local, rawpeer.Config{Bare: true, Token: rig.Token, Dial: n.Dialer(rig.HostAddr(raw))})
		r.peer.Send(rawpeer.Msg{Op: rawpeer.OpConnect, Payload: connect.Encode()})
		want := rawpeer.ConnectResponse{ID: m.ID[:], Accepted: true, Caps: rig.AllCaps | rawpeer.CapFrameChecksum, Host: local, Told: rig.DefaultsTold}
		require.Equal(t, rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: want.Encode()}, r.peer.Recv())
	} else {
		r.peer = rawServer.Accept()
		want := rawpeer.Connect{ID: m.ID[:], Host: local, Time: time.Now(), Token: rig.Token, Caps: rig.AllCaps | rawpeer.CapFrameChecksum, To: raw, Told: rig.DefaultsTold}
		require.Equal(t, rawpeer.Msg{Op: rawpeer.OpConnect, Payload: want.Encode()}, r.peer.Recv())
		response := rawpeer.ConnectResponse{ID: connect.ID, Accepted: true}
		r.peer.Send(rawpeer.Msg{Op: rawpeer.OpConnectResponse, Payload: response.Encode()})
	}
	require.NoError(t, r.conn.WaitForConnect(t.Context()))
	return r
}

func TestV1Session_Transcript(t *testing.T) {
	t.Parallel()
	steps := loadTranscript(t)
	for _, role := range []string{"dialler", "acceptor"} {
		t.Run("we are the "+role, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newReplay(t, role)
				r.register()
				for _, s := range steps[1:] { // after the handshake
					if s.Step == "stream, no handler on the acceptor" && role == "acceptor" {
						r = newReplay(t, role)
					}
					done := make(chan error, 1)
					if s.Messages[0].From == role {
						for name, call := range transcriptCalls {
							if strings.HasPrefix(s.Step, name) {
								go func() { done <- call(t.Context(), r.conn) }()
							}
						}
					} else {
						done <- nil
					}
					t.Log(s.Step)
					r.step(s)
					require.NoError(t, <-done)
				}
				require.Equal(t, grid.StateConnected, r.conn.State())
			})
		})
	}
}
