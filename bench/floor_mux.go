package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"runtime"
	"sync"
)

func muxFloor() peer {
	return peer{
		name:  "mux",
		about: "floor: the least that calls which block need over one connection for all callers: messages with a length and a number, a channel for each caller, a goroutine that writes what has come together and one that reads; answers in order",
		serve: func(c config) (server, error) { return newPlainServer(c, tcpServe) },
		dial:  muxDial,
	}
}

// muxNumber is the length of the number in front of a payload, of which the server knows nothing.
const muxNumber = 8

// muxClient is one connection, with a goroutine to write and one to read.
type muxClient struct {
	conn    net.Conn
	callers []*muxCaller // by the number of their calls
	wg      sync.WaitGroup

	mu      sync.Mutex
	pending sync.Cond // there is something in out, or err
	out     []byte
	err     error // once the connection has ended
}

// muxCaller waits for one answer at a time.
type muxCaller struct {
	client *muxClient
	number int
	answer []byte // good when done says so
	done   chan error
}

func muxDial(c config, addr string) (client, error) {
	conn, err := plainDial(c, addr)
	if err != nil {
		return nil, err
	}
	m := &muxClient{conn: conn}
	m.pending.L = &m.mu
	for i := range c.callers {
		m.callers = append(m.callers, &muxCaller{client: m, number: i, done: make(chan error, 1)})
	}
	m.wg.Go(m.write)
	m.wg.Go(m.read)
	return m, nil
}

// write writes all that is pending at once.
func (m *muxClient) write() {
	var out []byte
	for {
		m.mu.Lock()
		for len(m.out) == 0 && m.err == nil {
			m.pending.Wait()
		}
		m.mu.Unlock()
		runtime.Gosched() // others are about to call too
		m.mu.Lock()
		out, m.out = m.out, out[:0]
		err := m.err
		m.mu.Unlock()
		if err == nil {
			_, err = m.conn.Write(out)
		}
		if err != nil {
			m.end(err)
			return
		}
	}
}

// read hands answers to those who wait for them.
func (m *muxClient) read() {
	r := bufio.NewReaderSize(m.conn, tcpBuffer)
	for {
		c, err := m.readOne(r)
		if err != nil {
			m.end(err)
			return
		}
		c.done <- nil
	}
}

// readOne reads an answer to its caller.
func (m *muxClient) readOne(r *bufio.Reader) (*muxCaller, error) {
	head, err := r.Peek(tcpHeader + muxNumber)
	if err != nil {
		return nil, err
	}
	number := binary.BigEndian.Uint64(head[tcpHeader:])
	if number >= uint64(len(m.callers)) {
		return nil, fmt.Errorf("answer to %d", number)
	}
	c := m.callers[number]
	c.answer, err = tcpRead(r, c.answer)
	return c, err
}

// end says why there are no more calls, unless that is known already.
func (m *muxClient) end(err error) {
	m.conn.Close() // so that the other goroutine ends too
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return
	}
	m.err = err
	m.pending.Signal()
	for _, c := range m.callers {
		select {
		case c.done <- err:
		default: // it has not taken its answer yet
		}
	}
}

func (m *muxClient) caller(i int) (caller, error) { return m.callers[i], nil }

func (m *muxClient) close() error {
	m.end(net.ErrClosed)
	m.wg.Wait()
	return nil
}

func (c *muxCaller) echo(payload []byte) error {
	err := c.client.send(c.number, payload)
	if err == nil {
		err = <-c.done
	}
	if err != nil {
		return fmt.Errorf("mux: %w", err)
	}
	return checkEcho(len(c.answer)-muxNumber, len(payload))
}

func (m *muxClient) send(number int, payload []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	if len(m.out) == 0 {
		m.pending.Signal()
	}
	m.out = binary.BigEndian.AppendUint32(m.out, uint32(muxNumber+len(payload)))
	m.out = binary.BigEndian.AppendUint64(m.out, uint64(number))
	m.out = append(m.out, payload...)
	return nil
}
