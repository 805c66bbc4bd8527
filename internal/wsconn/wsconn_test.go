package wsconn

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/offload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const limit = 1 << 20

// serve runs accept with every connection that is upgraded.
func serve(t *testing.T, accept func(c *Conn)) (url string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := Upgrade(w, r, nil, limit, time.Now().Add(10*time.Second), Counters{})
		if err != nil {
			return
		}
		defer c.Close()
		accept(c)
	}))
	t.Cleanup(s.Close)
	return "ws" + strings.TrimPrefix(s.URL, "http")
}

func dial(t *testing.T, url string, o DialOptions) (*Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if o.Limit == 0 {
		o.Limit = limit
	}
	c, _, err := Dial(ctx, url, o)
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// Ops that grid does not write.
const (
	opText = 0x1
	opPing = 0x9
)

// room is a copy of b as it is written.
func room(b []byte) []byte { return append(make([]byte, HeaderRoom), b...) }

func echo(c *Conn) {
	for {
		b, err := c.ReadMessage()
		if err != nil {
			return
		}
		err = c.WriteMessage(room(b))
		bytepool.Put(b)
		if err != nil {
			return
		}
	}
}

func TestConn_MessagesOfAllSizesBothWays(t *testing.T) {
	var in, out atomic.Int64
	var g offload.Group
	counters := Counters{
		Read:    offload.NewMeter(&g, func(n int64) { in.Add(n) }),
		Written: offload.NewMeter(&g, func(n int64) { out.Add(n) }),
	}
	c, err := dial(t, serve(t, echo), DialOptions{Counters: counters})
	require.NoError(t, err)
	before := bytepool.Out()
	for _, n := range []int{0, 1, 125, 126, 4095, 4096, 4097, 65535, 65536, 100_000, limit} {
		msg := bytes.Repeat([]byte{byte(n), 1}, n/2+1)[:n]
		require.NoError(t, c.WriteMessage(room(msg)))
		b, err := c.ReadMessage()
		require.NoError(t, err)
		require.True(t, bytes.Equal(msg, b), "%d bytes", n)
		bytepool.Put(b)
	}
	require.LessOrEqual(t, bytepool.Out(), before+1) // the echo's own may be out
	read, _ := c.Reading()
	written, _ := c.Writing()
	counters.Flush()
	g.Wait(time.Minute)
	require.Equal(t, in.Load(), read)
	require.Equal(t, out.Load(), written)
	require.Greater(t, read, int64(limit))
}

func TestConn_MessageAboveTheLimitIsRefused(t *testing.T) {
	t.Parallel()
	got := make(chan error, 1)
	c, err := dial(t, serve(t, func(c *Conn) { _, err := c.ReadMessage(); got <- err }), DialOptions{})
	require.NoError(t, err)
	_ = c.WriteMessage(make([]byte, HeaderRoom+limit+1))
	require.ErrorIs(t, <-got, ErrTooLarge)
}

// A frame header that claims 2^63-1 bytes is refused on its claim.
func TestConn_FrameHeaderThatClaimsEverythingIsRefused(t *testing.T) {
	t.Parallel()
	for _, claim := range []string{"\x7f\xff\xff\xff\xff\xff\xff\xff", "\xff\xff\xff\xff\xff\xff\xff\xff", "\x00\x00\x00\x00\x80\x00\x00\x00"} {
		got := make(chan error, 1)
		c, err := dial(t, serve(t, func(c *Conn) { _, err := c.ReadMessage(); got <- err }), DialOptions{})
		require.NoError(t, err)
		_, err = c.link.write([]byte("\x82\xff" + claim + "mask"))
		require.NoError(t, err)
		require.Error(t, <-got)
	}
}

// A message without end, in frames that hold nothing or hardly anything, or among control frames,
// is not read for ever.
func TestConn_MessageInEmptyFramesIsRefused(t *testing.T) {
	t.Parallel()
	const masked = "\x80mask"
	for name, frames := range map[string]string{
		"empty": "\x00" + masked, "pings": "\x89" + masked, "pongs": "\x8a" + masked,
		"a byte now and then": strings.Repeat("\x00"+masked, 100) + "\x00\x81maskx",
	} {
		t.Run(name, func(t *testing.T) {
			got := make(chan error, 1)
			c, err := dial(t, serve(t, func(c *Conn) { _, err := c.ReadMessage(); got <- err }), DialOptions{})
			require.NoError(t, err)
			_, err = c.link.write([]byte("\x02" + masked))
			for err == nil {
				_, err = c.link.write([]byte(strings.Repeat(frames, 1000/len(frames)+1)))
			}
			require.ErrorIs(t, <-got, ErrEmptyFrames)
			n, _ := c.Writing()
			require.Less(t, n, int64(8<<20)) // and what the sockets hold
		})
	}
	// One byte in each is slow, and no more.
	got := make(chan []byte, 1)
	c, err := dial(t, serve(t, func(c *Conn) { b, _ := c.ReadMessage(); got <- b }), DialOptions{})
	require.NoError(t, err)
	_, err = c.link.write([]byte("\x02" + masked + strings.Repeat("\x00\x81\x00\x00\x00\x00x", 100_000) + "\x80" + masked))
	require.NoError(t, err)
	require.Len(t, <-got, 100_000)
}

func TestConn_TextMessageIsRefused(t *testing.T) {
	t.Parallel()
	got := make(chan error, 1)
	c, err := dial(t, serve(t, func(c *Conn) { _, err := c.ReadMessage(); got <- err }), DialOptions{})
	require.NoError(t, err)
	require.NoError(t, c.writeFrame(opText, room([]byte("hello"))))
	require.ErrorContains(t, <-got, "not binary")
}

// The reader answers a websocket ping without waiting for the writer, whatever that does.
func TestConn_PingIsLeftToTheWriter(t *testing.T) {
	t.Parallel()
	poked := make(chan struct{}, 10)
	done := make(chan struct{})
	c, err := dial(t, serve(t, func(c *Conn) {
		c.OnPing(func() bool { poked <- struct{}{}; return true })
		go func() {
			defer close(done)
			_, _ = c.ReadMessage()
		}()
		<-poked
		<-poked
		require.NoError(t, c.WritePong())
		require.NoError(t, c.WritePong(), "one answer for both")
		<-done
	}), DialOptions{})
	require.NoError(t, err)
	pongs := make(chan string, 10)
	c.ws.SetPongHandler(func(s string) error { pongs <- s; return nil })
	require.NoError(t, c.writeFrame(opPing, room([]byte("one"))))
	require.NoError(t, c.writeFrame(opPing, room([]byte("two"))))
	go func() { _, _ = c.ReadMessage() }()
	require.Equal(t, "two", <-pongs)
	require.NoError(t, c.Close())
	<-done
	require.Empty(t, pongs)
}

func TestDial_RefusalTellsNothingSecret(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "go away: "+r.Header.Get("Authorization"), http.StatusForbidden)
	}))
	defer s.Close()
	_, err := dial(t, "ws"+strings.TrimPrefix(s.URL, "http"), DialOptions{Token: "very secret"})
	require.EqualError(t, err, `upgrade refused: 403 Forbidden: "go away: Bearer [redacted]"`, "nothing secret gets into a log")
}

func TestDial_RedirectSaysWhereTo(t *testing.T) {
	t.Parallel()
	for location, want := range map[string]string{
		"https://b.test/grid/v1": `to "https://b.test/grid/v1"`,
		"/login":                 `to "/login"`,
		"https://b.test/?very secret#very+secret":         `to "https://b.test/?[redacted]#[redacted]"`,
		"https://b.test/" + strings.Repeat("x", 10_000):   `to "https://b.test/` + strings.Repeat("x", 100),
		"https://b.test/\u202e":                           `to "https://b.test/\u202e"`,
		"https://" + strings.Repeat("very secret", 1_000): `to "https://[redacted]"`,
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", location)
			w.WriteHeader(http.StatusFound)
		}))
		defer s.Close()
		_, err := dial(t, "ws"+strings.TrimPrefix(s.URL, "http"), DialOptions{Token: "very secret"})
		require.ErrorContains(t, err, "upgrade refused: 302 Found, "+want)
		require.Less(t, len(err.Error()), 400)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "https://b.test")
		w.WriteHeader(http.StatusNotFound)
	}))
	defer s.Close()
	_, err := dial(t, "ws"+strings.TrimPrefix(s.URL, "http"), DialOptions{})
	require.EqualError(t, err, "upgrade refused: 404 Not Found", "it is no redirect")
}

// A server must not switch on what was not offered: decompression has no limit.
func TestDial_RefusesCompressionThatWasNotOffered(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		require.Empty(t, r.Header.Get("Sec-Websocket-Extensions"))
		u := websocket.Upgrader{EnableCompression: true}
		r.Header.Set("Sec-Websocket-Extensions", "permessage-deflate")
		c, err := u.Upgrade(w, r, nil)
		if err == nil {
			_, _, _ = c.ReadMessage()
			c.Close()
		}
	}))
	defer s.Close()
	_, err := dial(t, "ws"+strings.TrimPrefix(s.URL, "http"), DialOptions{})
	require.ErrorContains(t, err, "not offered")
}

func TestUpgrade_TakesNoCompression(t *testing.T) {
	t.Parallel()
	url := serve(t, echo)
	d := websocket.Dialer{EnableCompression: true}
	c, resp, err := d.DialContext(t.Context(), url, nil)
	require.NoError(t, err)
	defer c.Close()
	require.Empty(t, resp.Header.Get("Sec-Websocket-Extensions"))
}

// A server that accepts and says nothing holds a dial no longer than its context, however that
// ends.
func TestDial_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	go func() {
		c, err := l.Accept()
		if err == nil {
			cancel()
			_, _ = io.Copy(io.Discard, c) // until the dialler has closed it
			c.Close()
		}
	}()
	_, _, err = Dial(ctx, "ws://"+l.Addr().String(), DialOptions{Limit: limit})
	require.ErrorIs(t, err, context.Canceled)
}

func TestConn_PeerThatGoesAwayInsideAMessage(t *testing.T) {
	got := make(chan error, 1)
	before := bytepool.Out()
	c, err := dial(t, serve(t, func(c *Conn) { _, err := c.ReadMessage(); got <- err }), DialOptions{})
	require.NoError(t, err)
	_, err = c.link.write([]byte("\x82\xff\x00\x00\x00\x00\x00\x00\x10\x00maskhello"))
	require.NoError(t, err)
	c.Close()
	require.ErrorIs(t, <-got, io.ErrUnexpectedEOF)
	require.Equal(t, before, bytepool.Out())
}
