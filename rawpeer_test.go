package grid

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
)

// rawTimeout is how long a scripted peer waits for anything before the test
// fails; its bubble's time where it runs in one.
const rawTimeout = 10 * time.Second

// rawConfig is how a scripted peer behaves. The zero value is a version 1 peer.
type rawConfig struct {
	Host        string // its own base URL
	Token       string
	ID          []byte // made up if nil
	Caps        uint64
	Dial        func(ctx context.Context, network, addr string) (net.Conn, error) // nil: real TCP
	Refuse      string                                                            // accepting: the reason to refuse the Connect
	Bare        bool                                                              // leaves the handshake to the test
	ManualPings bool                                                              // does not answer connection pings, recv returns them
	Unread      bool                                                              // reads nothing after the handshake until startReading
	Timeout     time.Duration                                                     // rawTimeout if 0
}

func (c rawConfig) instance() []byte {
	if c.ID != nil {
		return c.ID
	}
	id := uuid.New()
	return id[:]
}

// rawPeer is one end of a websocket that says what a test tells it to. It
// reads in the background, so that pings are answered while the test is busy.
// Its methods without an error result fail the test and belong on the test's
// goroutine; those starting with try may be called from any.
type rawPeer struct {
	t       testing.TB
	c       rawConfig
	ws      *websocket.Conn
	timeout time.Duration

	request   *http.Request      // accepted: of the upgrade
	connect   rawConnect         // accepted: what the dialler said
	response  rawConnectResponse // dialled: what the acceptor said
	handshake error              // accepted: why there is no connect

	reading sync.WaitGroup
	writing chan struct{} // holds a token while somebody writes
	news    chan struct{} // holds a token when in or err may have changed

	mu  sync.Mutex
	in  []rawMsg // received, not yet handed out
	err error    // why no more will come
}

func newRawPeer(t testing.TB, ws *websocket.Conn, c rawConfig) *rawPeer {
	return &rawPeer{
		t: t, c: c, ws: ws, timeout: cmp.Or(c.Timeout, rawTimeout),
		writing: make(chan struct{}, 1), news: make(chan struct{}, 1),
	}
}

// dialRaw connects to the grid at a base URL as a peer that the other side
// accepts.
func dialRaw(t testing.TB, url, token, host string, caps uint64) *rawPeer {
	t.Helper()
	return dialRawConfig(t, url, rawConfig{Host: host, Token: token, Caps: caps})
}

func dialRawConfig(t testing.TB, url string, c rawConfig) *rawPeer {
	t.Helper()
	ws, resp, err := upgradeRaw(t.Context(), url, c)
	if resp != nil {
		require.NoError(t, err, "upgrade answered %s", resp.Status)
	}
	require.NoError(t, err)
	p := newRawPeer(t, ws, c)
	t.Cleanup(p.close)
	if !c.Bare {
		hello := rawConnect{ID: c.instance(), Host: c.Host, Time: time.Now(), Token: c.Token, Caps: c.Caps}
		p.send(rawMsg{Op: rawOpConnect, Payload: hello.encode()})
		m, err := p.readHandshake(rawOpConnectResponse)
		require.NoError(t, err)
		p.response, err = decodeRawConnectResponse(m.Payload)
		require.NoError(t, err)
		require.True(t, p.response.Accepted, "refused: %s", p.response.Reason)
	}
	if !c.Unread {
		p.startReading()
	}
	return p
}

// upgradeRaw dials without any handshake, for tests of the upgrade alone.
func upgradeRaw(ctx context.Context, base string, c rawConfig) (*websocket.Conn, *http.Response, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, nil, err
	}
	u.Scheme = strings.Replace(u.Scheme, "http", "ws", 1)
	if u.Path == "" {
		u.Path = "/grid/v1"
	}
	d := websocket.Dialer{NetDialContext: c.Dial, HandshakeTimeout: rawTimeout}
	return d.DialContext(ctx, u.String(), http.Header{"Authorization": {"Bearer " + c.Token}})
}

// startReading is for a peer that was made with Unread, once.
func (p *rawPeer) startReading() {
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

// readOne takes one websocket message.
func (p *rawPeer) readOne() error {
	_, b, err := p.ws.ReadMessage()
	if err != nil {
		return err
	}
	msgs, err := decodeMerged(b)
	if err != nil {
		p.ws.Close()
		return fmt.Errorf("undecodable message: %w\n%s", err, hex.Dump(b[:min(len(b), 512)]))
	}
	for _, m := range msgs {
		if m.Op == rawOpPing && m.MuxID == 0 && !p.c.ManualPings {
			pong, err := rawPong(m)
			if err != nil {
				return fmt.Errorf("undecodable ping %v: %w", m, err)
			}
			_ = p.trySend(pong) // where that fails the next read does, too
			continue
		}
		p.mu.Lock()
		p.in = append(p.in, m)
		p.mu.Unlock()
		p.tellNews()
	}
	return nil
}

func (p *rawPeer) tellNews() {
	select {
	case p.news <- struct{}{}:
	default:
	}
}

// readHandshake reads before the background does.
func (p *rawPeer) readHandshake(op uint8) (m rawMsg, err error) {
	if err = p.ws.SetReadDeadline(time.Now().Add(p.timeout)); err != nil {
		return m, err
	}
	if err = p.readOne(); err != nil {
		return m, fmt.Errorf("waiting for %s: %w", rawOpName(op), err)
	}
	if m, err = p.tryRecv(); err == nil && m.Op != op {
		err = fmt.Errorf("waiting for %s, got %v", rawOpName(op), m)
	}
	return m, errors.Join(err, p.ws.SetReadDeadline(time.Time{}))
}

// trySendBytes sends any bytes as one websocket message.
func (p *rawPeer) trySendBytes(b []byte) error {
	p.writing <- struct{}{}
	defer func() { <-p.writing }()
	if err := p.ws.SetWriteDeadline(time.Now().Add(p.timeout)); err != nil {
		return err
	}
	return p.ws.WriteMessage(websocket.BinaryMessage, b)
}

func (p *rawPeer) trySend(m rawMsg) error { return p.trySendBytes(m.encode()) }

func (p *rawPeer) send(m rawMsg) {
	p.t.Helper()
	require.NoError(p.t, p.trySend(m), "sending %v", m)
}

// sendMerged sends messages as one merged message, also if it is only one.
func (p *rawPeer) sendMerged(msgs ...rawMsg) {
	p.t.Helper()
	require.NoError(p.t, p.trySendBytes(encodeMerged(msgs...)), "sending merged %v", msgs)
}

// tryRecv returns the next message. The error is os.ErrDeadlineExceeded when
// none comes in time, else why none will come.
func (p *rawPeer) tryRecv() (rawMsg, error) {
	late := time.NewTimer(p.timeout)
	defer late.Stop()
	for {
		if m, ok, err := p.next(); ok || err != nil {
			return m, err
		}
		select {
		case <-p.news:
		case <-late.C:
			return rawMsg{}, os.ErrDeadlineExceeded
		}
	}
}

func (p *rawPeer) next() (m rawMsg, ok bool, _ error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.in) == 0 {
		return m, false, p.err
	}
	m, p.in = p.in[0], p.in[1:]
	return m, true, nil
}

func (p *rawPeer) recv() rawMsg {
	p.t.Helper()
	m, err := p.tryRecv()
	require.NoError(p.t, err, "waiting for a message")
	return m
}

// expect returns the next message, which must have that op.
func (p *rawPeer) expect(op uint8) rawMsg {
	p.t.Helper()
	m, err := p.tryRecv()
	require.NoError(p.t, err, "waiting for %s", rawOpName(op))
	if m.Op != op {
		require.Failf(p.t, "another message", "waiting for %s, got\n  %v\nand after it %d:%s",
			rawOpName(op), m, len(p.pending()), rawDump(p.pending()))
	}
	return m
}

// pending returns what has arrived and was not asked for: nothing, if a test
// expects silence and has waited for it.
func (p *rawPeer) pending() []rawMsg {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.in)
}

// drain returns what comes until the other side closes, and how that shows.
func (p *rawPeer) drain() (msgs []rawMsg, closed error) {
	p.t.Helper()
	for {
		m, err := p.tryRecv()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			require.Failf(p.t, "still open", "after %d messages:%s", len(msgs), rawDump(msgs))
		}
		if err != nil {
			return msgs, err
		}
		msgs = append(msgs, m)
	}
}

// expectClosed waits for the other side to close without another message.
func (p *rawPeer) expectClosed() {
	p.t.Helper()
	msgs, _ := p.drain()
	require.Empty(p.t, msgs, "before the close:%s", rawDump(msgs))
}

// close breaks the connection off, without a closing handshake.
func (p *rawPeer) close() {
	p.ws.Close()
	p.reading.Wait()
}

func rawDump(msgs []rawMsg) string {
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
