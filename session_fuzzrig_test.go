package grid

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/wsconn"
)

// What the fuzz targets have in common that drive whole sessions: an input that is a program, and
// sessions whose sockets are in the hand of the test.

// program is a fuzz input that is read as one.
type program struct{ b []byte }

func (p *program) done() bool { return len(p.b) == 0 }

// byte is the next byte, and 0 behind the end.
func (p *program) byte() (c byte) {
	if len(p.b) > 0 {
		c, p.b = p.b[0], p.b[1:]
	}
	return c
}

// n is a number below limit.
func (p *program) n(limit int) int { return int(p.byte()) % limit }

// pick is one of list.
func pick[T any](p *program, list ...T) T { return list[p.n(len(list))] }

// bytes is the next n bytes, or what is left.
func (p *program) bytes(n int) (b []byte) {
	n = min(n, len(p.b))
	b, p.b = p.b[:n], p.b[n:]
	return b
}

// fence stands between what a test has read when all was quiet, and what others write once a timer
// has woken them: the race detector does not see that the one comes before the other. Both sides
// call it in between.
type fence struct{ mu sync.Mutex }

func (f *fence) pass() {
	f.mu.Lock()
	defer f.mu.Unlock()
}

// wire is a socket in memory whose other end is a test. It never makes a writer wait, unless it is
// stalled.
type wire struct {
	mu      sync.Mutex // guards what follows
	changed sync.Cond
	in, out []byte
	ended   bool // nothing follows in
	stalled bool // what is written does not get away
	closed  bool
	dialled bool // an upgrade request is to be answered
}

func newWire() *wire {
	w := new(wire)
	w.changed.L = &w.mu
	return w
}

func (w *wire) Read(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		switch {
		case w.closed:
			return 0, net.ErrClosed
		case len(w.in) > 0:
			n := copy(b, w.in)
			w.in = w.in[n:]
			return n, nil
		case w.ended:
			return 0, io.EOF
		}
		w.changed.Wait()
	}
}

func (w *wire) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.stalled && !w.closed {
		w.changed.Wait()
	}
	if w.closed {
		return 0, net.ErrClosed
	}
	w.out = append(w.out, b...)
	if w.dialled {
		w.upgradeLocked()
	}
	return len(b), nil
}

// upgradeLocked answers an upgrade request, once it has been written, in front of what there is to
// be read.
func (w *wire) upgradeLocked() {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(w.out)))
	if err != nil {
		return
	}
	w.dialled, w.out = false, nil
	sum := sha1.Sum([]byte(r.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	w.in = append([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Accept: "+base64.StdEncoding.EncodeToString(sum[:])+"\r\n\r\n"), w.in...)
	w.changed.Broadcast()
}

// set changes the wire and tells those who wait.
func (w *wire) set(f func()) {
	w.mu.Lock()
	f()
	w.changed.Broadcast()
	w.mu.Unlock()
}

func (w *wire) Close() error {
	w.set(func() { w.closed = true })
	return nil
}

func (w *wire) isClosed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closed
}

// stall keeps what is written from getting away, or lets it go.
func (w *wire) stall(on bool) { w.set(func() { w.stalled = on }) }

// end is the end of what can be read.
func (w *wire) end() { w.set(func() { w.ended = true }) }

func (w *wire) LocalAddr() net.Addr { return new(net.TCPAddr) }

func (w *wire) RemoteAddr() net.Addr { return new(net.TCPAddr) }

func (w *wire) SetDeadline(time.Time) error { return nil }

func (w *wire) SetReadDeadline(time.Time) error { return nil }

func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// put is a binary websocket message for the reader: masked, but with zeros, as whoever dials must
// mask it; bare for the reader who has dialled.
func (w *wire) put(b []byte, mask bool) { w.set(func() { w.in = appendFrame(w.in, b, mask) }) }

func appendFrame(to, b []byte, mask bool) []byte {
	bit := byte(0)
	if mask {
		bit = 0x80
	}
	switch n := len(b); {
	case n < 126:
		to = append(to, 0x82, bit|byte(n))
	case n < 1<<16:
		to = binary.BigEndian.AppendUint16(append(to, 0x82, bit|126), uint16(n))
	default:
		to = binary.BigEndian.AppendUint64(append(to, 0x82, bit|127), uint64(n))
	}
	if mask {
		to = append(to, 0, 0, 0, 0)
	}
	return append(to, b...)
}

// take returns what was written, as the messages of the websocket; its last word is none.
func (w *wire) take(t testing.TB) (frames [][]byte) {
	w.mu.Lock()
	b := w.out
	w.out = nil
	w.mu.Unlock()
	for len(b) > 0 {
		require.GreaterOrEqual(t, len(b), 2, "half a websocket frame was written")
		message := b[0] == 0x82
		require.True(t, message || b[0] == 0x88, "of several frames, or not binary: %x", b[0])
		masked, n := b[1]&0x80 != 0, uint64(b[1]&0x7f)
		b = b[2:]
		switch n {
		case 126:
			n, b = uint64(binary.BigEndian.Uint16(b)), b[2:]
		case 127:
			n, b = binary.BigEndian.Uint64(b), b[8:]
		}
		var mask []byte
		if masked {
			mask, b = b[:4], b[4:]
		}
		require.GreaterOrEqual(t, uint64(len(b)), n, "half a websocket frame was written")
		frame := b[:n:n]
		b = b[n:]
		for i := range mask {
			for j := i; j < len(frame); j += 4 {
				frame[j] ^= mask[i]
			}
		}
		if message {
			frames = append(frames, frame)
		}
	}
	return frames
}

// upgradeTo is a request to upgrade to a websocket over w, and where it is answered.
func upgradeTo(w *wire) (http.ResponseWriter, *http.Request) {
	return hijackWriter{w}, &http.Request{
		Method: http.MethodGet, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Host: "local",
		Header: http.Header{
			"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Authorization": {"Bearer " + testToken},
			"Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="},
		},
	}
}

// hijackWriter lets a wire be hijacked.
type hijackWriter struct{ w *wire }

func (h hijackWriter) Header() http.Header { return http.Header{} }

func (h hijackWriter) Write(b []byte) (int, error) { return len(b), nil }

func (h hijackWriter) WriteHeader(int) {}

func (h hijackWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.w, bufio.NewReadWriter(bufio.NewReaderSize(h.w, 4<<10), bufio.NewWriter(h.w)), nil
}

// forgetUpgrade drops the answer to the upgrade, which must be there.
func (w *wire) forgetUpgrade(t testing.TB) {
	w.mu.Lock()
	defer w.mu.Unlock()
	head, rest, ok := bytes.Cut(w.out, []byte("\r\n\r\n"))
	require.True(t, ok && bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")), "%q", w.out)
	w.out = rest
}

// fuzzHosts are two hosts that know each other.
var fuzzHosts = []string{"http://fuzz0:9000", "http://fuzz1:9000"}

// wireCaps are all extensions but the checksums of frames, which say nothing about what is in them.
const wireCaps = ourCaps &^ capFrameChecksum

// fuzzHost is a manager with a session whose socket is a wire: all that it reads is put there, and
// all that it writes taken from there, by the test. It is for use in a bubble.
type fuzzHost struct {
	*Manager
	t    *testing.T
	conn *Connection
	sess *session
	wire *wire
}

// newFuzzHost makes host i of the two, after a handshake in which the other has named caps. It must
// be closed.
func newFuzzHost(t *testing.T, i int, caps caps, edit func(o *ManagerOptions)) *fuzzHost {
	o := testOptions(fuzzHosts[i], fuzzHosts)
	o.BlockConnect = make(chan struct{}) // nobody dials
	if edit != nil {
		edit(&o)
	}
	m, err := NewManager(t.Context(), o)
	require.NoError(t, err)
	h := &fuzzHost{Manager: m, t: t, conn: m.Connection(fuzzHosts[1-i]), wire: newWire()}
	w, r := upgradeTo(h.wire)
	ws, err := wsconn.Upgrade(w, r, nil, 1<<30, time.Time{}, wsconn.Counters{})
	require.NoError(t, err)
	h.wire.forgetUpgrade(t)
	h.sess = newSession(h.conn, ws, peer{id: [16]byte{1}, caps: caps})
	require.NoError(t, h.conn.adopt(h.sess))
	return h
}

// run starts the session's goroutines.
func (h *fuzzHost) run() { h.start(func() { h.conn.serve(h.sess) }) }

// put is a websocket message for the session.
func (h *fuzzHost) put(b []byte) { h.wire.put(b, true) }

// take returns what the session has written, decoded by the scripted peer.
func (h *fuzzHost) take() (msgs []rawpeer.Msg) {
	for _, b := range h.wire.take(h.t) {
		m, err := rawpeer.DecodeMerged(b)
		require.NoError(h.t, err, "%x", b)
		msgs = append(msgs, m...)
	}
	return msgs
}

// ended reports whether the session has.
func (h *fuzzHost) ended() bool {
	select {
	case <-h.sess.done:
		return true
	default:
		return false
	}
}
