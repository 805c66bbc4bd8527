package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
)

func tcpFloor() peer {
	return peer{
		name:  "tcp",
		about: "floor: pipelined echo over one TCP connection for all callers, answers in order",
		serve: func(c config) (server, error) { return newPlainServer(c, tcpServe) },
		dial:  tcpDial,
	}
}

const (
	tcpBuffer = 64 << 10
	// tcpCopied is the longest message that is copied to go with others. A longer one is written
	// from where it is.
	tcpCopied = 32 << 10
	tcpHeader = 4
	// tcpBulk is set in the length of a message that is not sent back.
	tcpBulk = 1 << 31
)

// tcpServe sends every message back, but those of bulk. Answers wait for each other as long as
// there are requests to be had without waiting. It is also the server of the other floors.
func tcpServe(conn net.Conn) {
	r, w := bufio.NewReaderSize(conn, tcpBuffer), bufio.NewWriterSize(conn, tcpBuffer)
	var buf []byte
	for {
		head, err := r.Peek(tcpHeader)
		if err != nil {
			return
		}
		bulk := head[0]&(tcpBulk>>24) != 0
		if buf, err = tcpRead(r, buf); err != nil {
			return
		}
		if bulk {
			continue
		}
		tcpWrite(w, buf)
		if r.Buffered() == 0 {
			if err := w.Flush(); err != nil {
				return
			}
		}
	}
}

// tcpWrite writes a message, whose errors are those of Flush.
func tcpWrite(w *bufio.Writer, b []byte) {
	w.Write(binary.BigEndian.AppendUint32(w.AvailableBuffer(), uint32(len(b))))
	w.Write(b)
}

// tcpRead reads a message to buf, or to a longer one.
func tcpRead(r *bufio.Reader, buf []byte) ([]byte, error) {
	head, err := r.Peek(tcpHeader)
	if err != nil {
		return buf, err
	}
	n := int(binary.BigEndian.Uint32(head) &^ tcpBulk)
	r.Discard(tcpHeader)
	if n > maxMessage+muxNumber {
		return buf, fmt.Errorf("message of %d bytes", n)
	}
	if n > cap(buf) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	_, err = io.ReadFull(r, buf)
	return buf, err
}

// tcpClient is one connection, with a goroutine to write and one to read.
type tcpClient struct {
	dial    func() (net.Conn, error) // another one, for bulk
	conn    net.Conn
	callers []*tcpCaller
	wg      sync.WaitGroup

	mu      sync.Mutex
	pending sync.Cond // there is something in out, or err
	out     tcpOut
	waiting []*tcpCaller // for answers, in the order of out
	err     error        // once the connection has ended
}

// tcpCaller waits for one answer at a time.
type tcpCaller struct {
	client *tcpClient
	answer []byte // good when done says so
	done   chan error
}

// tcpOut is messages to be written.
type tcpOut struct {
	whole net.Buffers // up to the last one that was not copied
	small []byte      // further ones
}

func (o *tcpOut) add(payload []byte) {
	o.small = binary.BigEndian.AppendUint32(o.small, uint32(len(payload)))
	if len(payload) <= tcpCopied {
		o.small = append(o.small, payload...)
		return
	}
	o.whole = append(o.whole, o.small, payload)
	o.small = nil
}

// empty reports whether nothing is pending.
func (o *tcpOut) empty() bool { return len(o.whole) == 0 && len(o.small) == 0 }

func (o *tcpOut) writeTo(conn net.Conn) error {
	if len(o.whole) == 0 {
		_, err := conn.Write(o.small)
		return err
	}
	all := append(o.whole, o.small)
	_, err := all.WriteTo(conn)
	return err
}

// reset makes o empty, with the buffer to use again.
func (o *tcpOut) reset() { *o = tcpOut{small: o.small[:0]} }

func tcpDial(c config, addr string) (client, error) {
	t := &tcpClient{dial: func() (net.Conn, error) { return plainDial(c, addr) }}
	conn, err := t.dial()
	if err != nil {
		return nil, err
	}
	t.conn = conn
	t.pending.L = &t.mu
	for range c.callers {
		t.callers = append(t.callers, &tcpCaller{client: t, done: make(chan error, 1)})
	}
	t.wg.Go(t.write)
	t.wg.Go(t.read)
	return t, nil
}

// write writes all that is pending at once.
func (t *tcpClient) write() {
	var out tcpOut
	for t.take(&out) {
		if err := out.writeTo(t.conn); err != nil {
			t.end(err)
			return
		}
		out.reset()
	}
}

// take waits until something is pending, and exchanges it for out, which is empty. It reports
// whether the connection goes on.
func (t *tcpClient) take(out *tcpOut) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.out.empty() && t.err == nil {
		t.pending.Wait()
	}
	if len(t.waiting) > 1 {
		// Others are about to call too, as their answers came together. To let them is what saves
		// the most system calls.
		t.mu.Unlock()
		runtime.Gosched()
		t.mu.Lock()
	}
	*out, t.out = t.out, *out
	return t.err == nil
}

// read hands answers to those who wait for them.
func (t *tcpClient) read() {
	r := bufio.NewReaderSize(t.conn, tcpBuffer)
	var next []*tcpCaller // the first of those who wait
	for i := 0; ; i++ {
		_, err := r.Peek(tcpHeader)
		if i == len(next) {
			t.mu.Lock()
			next, t.waiting = t.waiting, next[:0]
			t.mu.Unlock()
			i = 0
			if err == nil && len(next) == 0 {
				err = errors.New("answer without a call")
			}
		}
		if err == nil {
			next[i].answer, err = tcpRead(r, next[i].answer)
		}
		if err != nil {
			t.end(err)
			t.fail(next[i:])
			t.fail(t.waiting) // that nobody adds to any more
			return
		}
		next[i].done <- nil
	}
}

// end says why there are no more calls, unless that is known already.
func (t *tcpClient) end(err error) {
	t.conn.Close() // so that the other goroutine ends too
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		t.err = err
	}
	t.pending.Signal()
}

func (t *tcpClient) fail(callers []*tcpCaller) {
	for _, c := range callers {
		c.done <- t.err
	}
}

func (t *tcpClient) caller(i int) (caller, error) { return t.callers[i], nil }

func (t *tcpClient) close() error {
	t.end(net.ErrClosed)
	t.wg.Wait()
	return nil
}

func (c *tcpCaller) echo(payload []byte) error {
	err := c.client.send(c, payload)
	if err == nil {
		err = <-c.done
	}
	if err != nil {
		return fmt.Errorf("tcp: %w", err)
	}
	return checkEcho(len(c.answer), len(payload))
}

func (t *tcpClient) send(c *tcpCaller, payload []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return t.err
	}
	if t.out.empty() {
		t.pending.Signal()
	}
	t.out.add(payload)
	t.waiting = append(t.waiting, c)
	return nil
}

// bulk implements bulkSender, over a connection of its own: those who wait for answers are not
// held up.
func (c *tcpCaller) bulk(n int, payload []byte) error {
	conn, err := c.client.dial()
	if err != nil {
		return fmt.Errorf("tcp: bulk: %w", err)
	}
	defer conn.Close()
	head := binary.BigEndian.AppendUint32(nil, uint32(len(payload))|tcpBulk)
	for range n {
		if _, err := (&net.Buffers{head, payload}).WriteTo(conn); err != nil {
			return fmt.Errorf("tcp: bulk: %w", err)
		}
	}
	end := make([]byte, tcpHeader) // a message without payload, which is sent back
	if _, err = conn.Write(end); err == nil {
		_, err = io.ReadFull(conn, end)
	}
	if err != nil {
		return fmt.Errorf("tcp: end of bulk: %w", err)
	}
	return nil
}
