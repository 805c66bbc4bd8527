package rawpeer

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
)

// Timeout is how long a scripted peer waits for anything before the test fails; its bubble's time
// where it runs in one.
const Timeout = 10 * time.Second

// Config is how a scripted peer behaves. The zero value is a version 1 peer, which says neither
// whom it wants nor who it is when it is dialled.
type Config struct {
	To          string                       // dialling: whom it wants
	Says        string                       // accepting: which host it says it is
	Key         []byte                       // of the shared secret, that it proves to the other side, as To or Says
	Challenge   func(r *http.Request) []byte // accepting: makes the challenge; nil: a new one if there is a Key
	Host        string                       // its own base URL
	Token       string
	ID          []byte // made up if nil
	Caps        uint64
	Told        Told                                                              // of its options; of version 1 nothing
	Dial        func(ctx context.Context, network, addr string) (net.Conn, error) // nil: real TCP
	Refuse      string                                                            // accepting: the reason to refuse the Connect
	Bare        bool                                                              // leaves the handshake to the test
	ManualPings bool                                                              // does not answer connection pings, recv returns them
	Unread      bool                                                              // reads nothing after the handshake until StartReading
	Timeout     time.Duration                                                     // Timeout if 0
	TLS         *tls.Config                                                       // of its sockets, in either role; nil for none
	Path        string                                                            // of the route; "/grid/v1" if empty
	ClockHeader string                                                            // of the upgrade request: the time that a version 1 peer sends, and asks for
}

// Instance is the ID of the process, made up where the test gives none.
func (c Config) Instance() []byte {
	if c.ID != nil {
		return c.ID
	}
	id := uuid.New()
	return id[:]
}

// Peer is one end of a websocket that says what a test tells it to. It reads in the background, so
// that pings are answered while the test is busy. Its methods without an error result fail the test
// and belong on the test's goroutine; those starting with try may be called from any.
type Peer struct {
	checksums atomic.Bool // frames have them, since the handshake
	t         testing.TB
	Config    Config
	WS        *websocket.Conn
	Timeout   time.Duration

	Challenge []byte          // of the upgrade, either side's
	Request   *http.Request   // accepted: of the upgrade
	Connect   Connect         // accepted: what the dialler said
	Response  ConnectResponse // dialled: what the acceptor said
	Handshake error           // accepted: why there is no connect

	reading sync.WaitGroup
	writing chan struct{} // holds a token while somebody writes
	news    chan struct{} // holds a token when in or err may have changed

	mu        sync.Mutex
	in        []Msg           // received, not yet handed out
	err       error           // why no more will come
	abandoned map[uint64]bool // see Abandon
}

// NewPeer is for a websocket that the test has dialled itself. Nothing is read before StartReading.
func NewPeer(t testing.TB, ws *websocket.Conn, c Config) *Peer {
	return &Peer{
		t: t, Config: c, WS: ws, Timeout: cmp.Or(c.Timeout, Timeout),
		writing: make(chan struct{}, 1), news: make(chan struct{}, 1),
	}
}

// Dial connects to the grid at a base URL as a peer that the other side accepts.
func Dial(t testing.TB, url, token, host string, caps uint64) *Peer {
	t.Helper()
	return DialConfig(t, url, Config{Host: host, Token: token, Caps: caps})
}

// DialConfig connects to the grid at a base URL.
func DialConfig(t testing.TB, url string, c Config) *Peer {
	t.Helper()
	if c.Key != nil && c.Token == "" {
		c.Token = Pass(c.Key, c.Host, c.To, time.Now())
	}
	ws, resp, err := Upgrade(t.Context(), url, c)
	if resp != nil {
		require.NoError(t, err, "upgrade answered %s", resp.Status)
	}
	require.NoError(t, err)
	p := NewPeer(t, ws, c)
	p.Challenge = ParseNonce(resp.Header.Get(ChallengeHeader))
	t.Cleanup(p.Close)
	if !c.Bare {
		hello := Connect{ID: c.Instance(), Host: c.Host, Time: time.Now(), Token: c.Token, Caps: c.Caps, To: c.To, Told: c.Told}
		meeting := Meeting{Dialler: c.Host, Acceptor: c.To, Challenge: p.Challenge, DiallerID: hello.ID}
		if c.Key != nil {
			hello.Token = meeting.Response(c.Key)
		}
		p.Send(Msg{Op: OpConnect, Payload: hello.Encode()})
		m, err := p.ReadHandshake(OpConnectResponse)
		require.NoError(t, err)
		p.Response, err = DecodeConnectResponse(m.Payload)
		require.NoError(t, err)
		require.True(t, p.Response.Accepted, "refused: %s", p.Response.Reason)
		p.checksums.Store(c.Caps&p.Response.Caps&CapFrameChecksum != 0)
		if c.Key != nil {
			meeting.AcceptorID = p.Response.ID
			require.Equal(t, meeting.Proof(c.Key, hello.Token), p.Response.Proof)
		}
	}
	if !c.Unread {
		p.StartReading()
	}
	return p
}

// Upgrade dials without any handshake, for tests of the upgrade alone.
func Upgrade(ctx context.Context, base string, c Config) (*websocket.Conn, *http.Response, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, nil, err
	}
	u.Scheme = strings.Replace(u.Scheme, "http", "ws", 1)
	if u.Path == "" {
		u.Path = cmp.Or(c.Path, "/grid/v1")
	}
	d := websocket.Dialer{NetDialContext: c.Dial, HandshakeTimeout: Timeout, TLSClientConfig: c.TLS}
	header := http.Header{"Authorization": {"Bearer " + c.Token}}
	if c.ClockHeader != "" {
		header.Set(c.ClockHeader, strconv.FormatInt(time.Now().UnixNano(), 10))
	}
	return d.DialContext(ctx, u.String(), header)
}

// StartReading is for a peer that was made with Unread, once.
func (p *Peer) StartReading() {
	p.reading.Go(func() {
		for {
			if err := p.readOne(); err != nil {
				p.mu.Lock()
				p.err = err
				p.mu.Unlock()
				p.tellNews()
				return
			}
		}
	})
}

// ReadAll hands every websocket message to f, in the background, until the link or f fails. It is
// for a peer that was made with Unread, in place of StartReading.
func (p *Peer) ReadAll(f func(b []byte) error) {
	p.reading.Go(func() {
		for {
			_, b, err := p.WS.ReadMessage()
			if err != nil || f(b) != nil {
				return
			}
		}
	})
}

// readOne takes one websocket message.
func (p *Peer) readOne() error {
	_, b, err := p.WS.ReadMessage()
	if err != nil {
		return err
	}
	var msgs []Msg
	if p.checksums.Load() {
		b, err = CheckFrame(b)
	}
	if err == nil {
		msgs, err = DecodeMerged(b)
	}
	if err != nil {
		p.WS.Close()
		return fmt.Errorf("undecodable message: %w\n%s", err, hex.Dump(b[:min(len(b), 512)]))
	}
	for _, m := range msgs {
		if m.Op == OpPing && m.MuxID == 0 && !p.Config.ManualPings {
			pong, err := Pong(m)
			if err != nil {
				return fmt.Errorf("undecodable ping %v: %w", m, err)
			}
			_ = p.TrySend(pong) // where that fails the next read does, too
			continue
		}
		p.mu.Lock()
		late := p.abandoned[m.MuxID] && slices.Contains(toClients, m.Op)
		if !late {
			p.in = append(p.in, m)
		}
		p.mu.Unlock()
		if late {
			if slices.Contains([]uint8{OpAckMux, OpMuxServerMsg, OpPong}, m.Op) {
				_ = p.TrySend(Msg{MuxID: m.MuxID, Op: OpDisconnectClientMux})
			}
			continue
		}
		p.tellNews()
	}
	return nil
}

// toClients are the ops that speak of a stream or request which their receiver began.
var toClients = []uint8{OpAckMux, OpMuxConnectError, OpMuxServerMsg, OpUnblockClMux, OpDisconnectClientMux, OpResponse, OpPong}

// Abandon has the peer answer what it is sent from now on of streams of its own as version 1 does
// once it has cancelled them: by an op that speaks of a stream of the other side.
func (p *Peer) Abandon(ids ...uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.abandoned == nil {
		p.abandoned = make(map[uint64]bool)
	}
	for _, id := range ids {
		p.abandoned[id] = true
	}
}

func (p *Peer) tellNews() {
	select {
	case p.news <- struct{}{}:
	default:
	}
}

// HasChecksums reports whether frames have a checksum, in place of the messages in them: both sides
// have said so.
func (p *Peer) HasChecksums() bool { return p.checksums.Load() }

// ReadHandshake reads before the background does.
func (p *Peer) ReadHandshake(op uint8) (m Msg, err error) {
	if err = p.WS.SetReadDeadline(time.Now().Add(p.Timeout)); err != nil {
		return m, err
	}
	if err = p.readOne(); err != nil {
		return m, fmt.Errorf("waiting for %s: %w", OpName(op), err)
	}
	if m, err = p.TryRecv(); err == nil && m.Op != op {
		err = fmt.Errorf("waiting for %s, got %v", OpName(op), m)
	}
	return m, errors.Join(err, p.WS.SetReadDeadline(time.Time{}))
}

// TrySendBytes sends any bytes as one websocket message, with a checksum where frames have one.
func (p *Peer) TrySendBytes(b []byte) error {
	if p.checksums.Load() {
		b = WithChecksum(b)
	}
	return p.TrySendFrame(b)
}

// TrySendFrame sends any bytes as one websocket message.
func (p *Peer) TrySendFrame(b []byte) error {
	p.writing <- struct{}{}
	defer func() { <-p.writing }()
	if err := p.WS.SetWriteDeadline(time.Now().Add(p.Timeout)); err != nil {
		return err
	}
	return p.WS.WriteMessage(websocket.BinaryMessage, b)
}

// TrySend sends one message.
func (p *Peer) TrySend(m Msg) error { return p.TrySendBytes(m.Encode()) }

// Send sends one message.
func (p *Peer) Send(m Msg) {
	p.t.Helper()
	require.NoError(p.t, p.TrySend(m), "sending %v", m)
}

// SendMerged sends messages as one merged message, also if it is only one.
func (p *Peer) SendMerged(msgs ...Msg) {
	p.t.Helper()
	require.NoError(p.t, p.TrySendBytes(EncodeMerged(msgs...)), "sending merged %v", msgs)
}

// TryRecv returns the next message. The error is os.ErrDeadlineExceeded when none comes in time,
// else why none will come.
func (p *Peer) TryRecv() (Msg, error) {
	late := time.NewTimer(p.Timeout)
	defer late.Stop()
	for {
		if m, ok, err := p.Next(); ok || err != nil {
			return m, err
		}
		select {
		case <-p.news:
		case <-late.C:
			return Msg{}, os.ErrDeadlineExceeded
		}
	}
}

// Next returns the next message, if one has arrived, or why none will.
func (p *Peer) Next() (m Msg, ok bool, _ error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.in) == 0 {
		return m, false, p.err
	}
	m, p.in = p.in[0], p.in[1:]
	return m, true, nil
}

// Recv returns the next message.
func (p *Peer) Recv() Msg {
	p.t.Helper()
	m, err := p.TryRecv()
	require.NoError(p.t, err, "waiting for a message")
	return m
}

// Expect returns the next message, which must have that op.
func (p *Peer) Expect(op uint8) Msg {
	p.t.Helper()
	m, err := p.TryRecv()
	require.NoError(p.t, err, "waiting for %s", OpName(op))
	if m.Op != op {
		require.Failf(p.t, "another message", "waiting for %s, got\n  %v\nand after it %d:%s",
			OpName(op), m, len(p.Pending()), Dump(p.Pending()))
	}
	return m
}

// Pending returns what has arrived and was not asked for: nothing, if a test expects silence and
// has waited for it.
func (p *Peer) Pending() []Msg {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.in)
}

// Err is why nothing more will come, nil as long as something may.
func (p *Peer) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Take is Pending, and forgets it.
func (p *Peer) Take() (msgs []Msg) {
	p.mu.Lock()
	defer p.mu.Unlock()
	msgs, p.in = p.in, nil
	return msgs
}

// Drain returns what comes until the other side closes, and how that shows.
func (p *Peer) Drain() (msgs []Msg, closed error) {
	p.t.Helper()
	for {
		m, err := p.TryRecv()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			require.Failf(p.t, "still open", "after %d messages:%s", len(msgs), Dump(msgs))
		}
		if err != nil {
			return msgs, err
		}
		msgs = append(msgs, m)
	}
}

// ExpectClosed waits for the other side to close without another message.
func (p *Peer) ExpectClosed() {
	p.t.Helper()
	msgs, _ := p.Drain()
	require.Empty(p.t, msgs, "before the close:%s", Dump(msgs))
}

// Close breaks the connection off, without a closing handshake.
func (p *Peer) Close() {
	p.WS.Close()
	p.reading.Wait()
}

// Dump is the first of many messages, for people.
func Dump(msgs []Msg) string {
	var b bytes.Buffer
	for i, m := range msgs {
		if i == 50 {
			fmt.Fprintf(&b, "\n  ... %d more", len(msgs)-i)
			break
		}
		fmt.Fprintf(&b, "\n  %v", m)
	}
	return b.String()
}
