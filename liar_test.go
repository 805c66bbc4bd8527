package grid

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/faultconn"
)

// The tests of the files liar*_test.go are about a peer that has been let in and
// then does what it must not. Whatever it does, it may spoil its own calls and its
// own link, and nothing else: nobody else's calls, no memory, no slots.

const honestHost = "http://node1:9000"

// Both versions of what a peer may speak.
var liarKinds = map[string]rawConfig{
	"version 1": {},
	"extended":  {Caps: rawCapWideCredits | rawCapFragments},
}

// liarRig is a node, the peer that lies to it, and a host that is honest.
type liarRig struct {
	*testing.T
	g      *testGrid // the node, and the honest host
	raw    string    // the liar's name
	conn   *Connection
	honest *Connection // from the honest host to the node
	peer   *rawPeer
	log    *logBook
	next   func() *rawPeer // connects the liar once more
	before int             // buffers that were out

	causes  chan error // why the context of a served stream has ended
	release atomic.Pointer[chan struct{}]
}

// Handlers of the node, for the liar.
const (
	liarSlow HandlerID = 150 + iota // a request that runs until it is released
	liarHold                        // a stream that takes its input until its context ends
	liarFull                        // a stream that returns at once, and leaves output behind
	liarDeaf                        // a stream that ignores the end of its context
)

const liarCapacity = 2 // of these streams, in each direction

// inLiar runs f in a bubble four times: with either version, with the node as
// acceptor and as dialler.
func inLiar(t *testing.T, edit func(o *ManagerOptions), f func(r *liarRig)) {
	t.Helper()
	eachLiar(t, func(t *testing.T, dials bool, c rawConfig) {
		r := newLiarRig(t, dials, c, edit)
		f(r)
		r.works()
		r.over()
	})
}

func eachLiar(t *testing.T, f func(t *testing.T, dials bool, c rawConfig)) {
	t.Helper()
	for kind, c := range liarKinds {
		for role, dials := range map[string]bool{"dials us": true, "is dialled": false} {
			t.Run(kind+" "+role, func(t *testing.T) {
				inBubble(t, func(t *testing.T) { f(t, dials, c) })
			})
		}
	}
}

func newLiarRig(t *testing.T, dials bool, c rawConfig, edit func(o *ManagerOptions)) *liarRig {
	t.Helper()
	r := &liarRig{T: t, raw: rawHostFor(t, dials), causes: make(chan error, 100), before: bytepool.Out()}
	logger, log := newLogBook()
	r.log = log
	n := faultconn.NewNetwork()
	var s *rawServer
	if !dials {
		s = acceptRaw(t, listenMemory(t, n, r.raw), c)
	}
	hosts := []string{loneHost, honestHost}
	r.g = &testGrid{t: t, net: n, hosts: hosts, guests: true, edit: func(i int, o *ManagerOptions) {
		if i == 1 {
			return
		}
		o.Hosts = append([]string{r.raw}, hosts...)
		o.Logger = logger
		if edit != nil {
			edit(o)
		}
	}}
	r.g.startAll()
	r.conn, r.honest = r.g.nodes[0].Connection(r.raw), r.g.conn(1, 0)
	r.letGo()
	r.register()
	r.next = func() *rawPeer {
		if !dials {
			return s.accept()
		}
		return r.g.dialLone(r.raw, c)
	}
	r.connect()
	return r
}

// connect makes the link, once more where it was lost.
func (r *liarRig) connect() {
	r.Helper()
	r.peer = r.next()
	require.NoError(r, r.conn.WaitForConnect(r.Context()))
}

func (r *liarRig) extended() bool { return r.peer.c.Caps != 0 }

// letGo lets the handlers return that wait for nothing else.
func (r *liarRig) letGo() {
	later := make(chan struct{})
	if now := r.release.Swap(&later); now != nil {
		close(*now)
	}
}

func (r *liarRig) register() {
	m := r.g.nodes[0].Manager
	require.NoError(r, m.RegisterSingleHandler(liarSlow, func(b []byte) ([]byte, *RemoteErr) {
		<-*r.release.Load()
		return b, nil
	}))
	for id, h := range map[HandlerID]StreamHandlerFn{
		liarHold: func(ctx context.Context, payload []byte, in <-chan []byte, _ chan<- []byte) *RemoteErr {
			PutByteBuffer(payload)
			for b := range in {
				PutByteBuffer(b)
			}
			<-ctx.Done()
			r.causes <- context.Cause(ctx)
			return nil
		},
		liarFull: func(_ context.Context, payload []byte, _ <-chan []byte, out chan<- []byte) *RemoteErr {
			PutByteBuffer(payload)
			for i := range 2 * liarCapacity {
				out <- append(GetByteBuffer(), byte(i))
			}
			return nil
		},
		liarDeaf: func(_ context.Context, payload []byte, in <-chan []byte, _ chan<- []byte) *RemoteErr {
			PutByteBuffer(payload)
			for b := range in {
				PutByteBuffer(b)
			}
			<-*r.release.Load()
			return nil
		},
	} {
		require.NoError(r, m.RegisterStreamingHandler(id, StreamHandler{
			Handle: h, OutCapacity: liarCapacity, InCapacity: liarCapacity,
		}))
	}
}

// isUp tells whether the link lives.
func (r *liarRig) isUp() bool {
	synctest.Wait()
	r.peer.mu.Lock()
	defer r.peer.mu.Unlock()
	return r.peer.err == nil
}

// clear forgets what the node has said so far.
func (r *liarRig) clear() (said []rawMsg) {
	synctest.Wait()
	r.peer.mu.Lock()
	defer r.peer.mu.Unlock()
	said, r.peer.in = r.peer.in, nil
	return said
}

// works requires that calls of others are answered, and those of the liar, if its
// link lives, when it is honest for once.
func (r *liarRig) works() {
	r.Helper()
	b, err := r.honest.SingleRequest(r.Context(), testEcho, []byte("honest"))
	require.NoError(r, err)
	require.Equal(r, "honest", string(b))
	PutByteBuffer(b)
	if !r.isUp() {
		return
	}
	r.clear()
	const id = 1 << 60
	r.peer.send(rawMsg{MuxID: id, Handler: uint8(testEcho), Op: rawOpRequest, Flags: rawFlagEOF, Payload: []byte("alive")})
	require.Equal(r, rawMsg{MuxID: id, Op: rawOpResponse, Flags: crcEOF, Payload: []byte("alive")}, r.peer.recv())
	done := make(chan outcome, 1)
	go func() {
		b, err := r.conn.SingleRequest(r.Context(), testEcho, []byte("and"))
		done <- outcome{b, err}
	}()
	asked := r.peer.expect(rawOpRequest)
	r.peer.send(rawMsg{MuxID: asked.MuxID, Op: rawOpResponse, Flags: rawFlagEOF, Payload: []byte("so")})
	got := <-done
	require.NoError(r, got.err)
	require.Equal(r, "so", string(got.payload))
	PutByteBuffer(got.payload)
}

// quit gives up what the liar may have begun as a client, as an honest one does.
func (r *liarRig) quit(id uint64) {
	r.Helper()
	if r.isUp() { // twice, for what opens under the number of a stream
		r.peer.send(rawMsg{MuxID: id, Op: rawOpDisconnectServerMux})
		r.peer.send(rawMsg{MuxID: id, Op: rawOpDisconnectServerMux})
	} else {
		r.connect()
	}
	r.letGo()
	synctest.Wait()
	for len(r.causes) > 0 {
		<-r.causes
	}
}

// idle requires that nothing of the liar is left.
func (r *liarRig) idle() {
	r.Helper()
	synctest.Wait()
	st := r.conn.Stats()
	left := fmt.Sprintf("%d kept, %d handlers, %d served, %d streams, %d calls",
		st.KeptBytes, st.Handlers, st.StreamsServed, st.Streams, st.Calls)
	require.Equal(r, "0 kept, 0 handlers, 0 served, 0 streams, 0 calls", left)
}

// over requires, at the end of a test, that nothing at all is left.
func (r *liarRig) over() {
	r.Helper()
	r.idle()
	require.Empty(r, r.log.about("panic"))
	r.peer.close()
	r.g.stopAll()
	synctest.Wait()
	if bytepool.Strict {
		require.Zero(r, bytepool.Out()-r.before, "buffers are out")
	}
}

// liarOutcome is what came of a call or a stream, or of the whole link.
type liarOutcome string

const (
	stillThere  liarOutcome = "still there"
	endedWell   liarOutcome = "ended well"
	linkIsLost  liarOutcome = "link is lost"
	isFlow      liarOutcome = isFlowControl
	isOutOfTurn liarOutcome = isSequence
	isAgainst   liarOutcome = isProtocol
	isGone      liarOutcome = isDisconnected
	isTheirs    liarOutcome = isRemote
	isCancelled liarOutcome = isCanceled
	isLate      liarOutcome = isDeadline
)

func outcomeOf(err error) liarOutcome {
	switch {
	case err == nil:
		return endedWell
	case errors.Is(err, ErrOverloaded):
		return "overloaded"
	}
	return liarOutcome(strings.Join(kindOf(err), ", "))
}

// outcomeOfText is outcomeOf for what travels.
func outcomeOfText(text string) liarOutcome {
	for _, err := range []error{ErrFlowControl, ErrIncorrectSequence, ErrProtocol, ErrOverloaded, context.DeadlineExceeded} {
		if strings.HasPrefix(text, err.Error()) {
			return outcomeOf(err)
		}
	}
	return liarOutcome("unknown reason: " + text)
}

// liarRun makes every run take other cases of a product that is too large for one.
var liarRun = time.Now().UnixNano()

// sampled tells whether case i of a product is one of this run's, of so many that it
// takes to have had them all, more or less.
func sampled(i int, of int64) bool {
	x := uint64(int64(i)+liarRun) * 0x9e3779b97f4a7c15
	return int64(x>>33)%of == 0
}
