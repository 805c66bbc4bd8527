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
		start: func(c config) (pair, error) {
			p, err := newTCPPair(c)
			if err != nil {
				return nil, fmt.Errorf("tcp: %w", err)
			}
			return p, nil
		},
	}
}

const (
	tcpBuffer = 64 << 10
	// tcpCopied is the longest message that is copied to go with others. A longer one is written
	// from where it is.
	tcpCopied = 32 << 10
	tcpHeader = 4
)

// tcpServe sends every message back. Answers wait for each other as long as there are requests to
// be had without waiting.
func tcpServe(conn net.Conn) {
	r, w := bufio.NewReaderSize(conn, tcpBuffer), bufio.NewWriterSize(conn, tcpBuffer)
	var buf []byte
	for {
		var err error
		if buf, err = tcpRead(r, buf); err != nil {
			return
		}
		var head [tcpHeader]byte
		binary.BigEndian.PutUint32(head[:], uint32(len(buf)))
		w.Write(head[:])
		w.Write(buf) // Flush returns the errors of both
		if r.Buffered() == 0 {
			if err := w.Flush(); err != nil {
				return
			}
		}
	}
}

// tcpRead reads a message to buf, or to a longer one.
func tcpRead(r *bufio.Reader, buf []byte) ([]byte, error) {
	head, err := r.Peek(tcpHeader)
	if err != nil {
		return buf, err
	}
	n := int(binary.BigEndian.Uint32(head))
	r.Discard(tcpHeader)
	if n > maxMessage {
		return buf, fmt.Errorf("message of %d bytes", n)
	}
	if n > cap(buf) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	_, err = io.ReadFull(r, buf)
	return buf, err
}

// tcpPair is a server with one client connection, which has a goroutine to write and one to read.
type tcpPair struct {
	server  *plainServer
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
	pair   *tcpPair
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

func newTCPPair(c config) (*tcpPair, error) {
	s, err := newPlainServer(c, tcpServe)
	if err != nil {
		return nil, err
	}
	conn, err := s.dial()
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	p := &tcpPair{server: s, conn: conn}
	p.pending.L = &p.mu
	for range c.callers {
		p.callers = append(p.callers, &tcpCaller{pair: p, done: make(chan error, 1)})
	}
	p.wg.Go(p.write)
	p.wg.Go(p.read)
	return p, nil
}

// write writes all that is pending at once.
func (p *tcpPair) write() {
	var out tcpOut
	for p.take(&out) {
		if err := out.writeTo(p.conn); err != nil {
			p.end(err)
			return
		}
		out.reset()
	}
}

// take waits until something is pending, and exchanges it for out, which is empty. It reports
// whether the connection goes on.
func (p *tcpPair) take(out *tcpOut) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.out.empty() && p.err == nil {
		p.pending.Wait()
	}
	if len(p.waiting) > 1 {
		// Others are about to call too, as their answers came together. To let them is what saves
		// the most system calls.
		p.mu.Unlock()
		runtime.Gosched()
		p.mu.Lock()
	}
	*out, p.out = p.out, *out
	return p.err == nil
}

// read hands answers to those who wait for them.
func (p *tcpPair) read() {
	r := bufio.NewReaderSize(p.conn, tcpBuffer)
	var next []*tcpCaller // the first of those who wait
	for i := 0; ; i++ {
		_, err := r.Peek(tcpHeader)
		if i == len(next) {
			p.mu.Lock()
			next, p.waiting = p.waiting, next[:0]
			p.mu.Unlock()
			i = 0
			if err == nil && len(next) == 0 {
				err = errors.New("answer without a call")
			}
		}
		if err == nil {
			next[i].answer, err = tcpRead(r, next[i].answer)
		}
		if err != nil {
			p.end(err)
			p.fail(next[i:])
			p.fail(p.waiting) // that nobody adds to any more
			return
		}
		next[i].done <- nil
	}
}

// end says why there are no more calls, unless that is known already.
func (p *tcpPair) end(err error) {
	p.conn.Close() // so that the other goroutine ends too
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
	p.pending.Signal()
}

func (p *tcpPair) fail(callers []*tcpCaller) {
	for _, c := range callers {
		c.done <- p.err
	}
}

func (p *tcpPair) caller(i int) (caller, error) { return p.callers[i], nil }

func (p *tcpPair) close() error {
	p.end(net.ErrClosed)
	err := p.server.close()
	p.wg.Wait()
	if err != nil {
		return fmt.Errorf("tcp: close: %w", err)
	}
	return nil
}

func (c *tcpCaller) echo(payload []byte) error {
	err := c.pair.send(c, payload)
	if err == nil {
		err = <-c.done
	}
	if err != nil {
		return fmt.Errorf("tcp: %w", err)
	}
	return checkEcho(len(c.answer), len(payload))
}

func (p *tcpPair) send(c *tcpCaller, payload []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return p.err
	}
	if p.out.empty() {
		p.pending.Signal()
	}
	p.out.add(payload)
	p.waiting = append(p.waiting, c)
	return nil
}
