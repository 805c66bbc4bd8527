package main

import (
	"bufio"
	"fmt"
	"net"
)

func windowFloor() peer {
	return peer{
		name:   "window",
		about:  "floor: one goroutine at each end of one TCP connection; the client's keeps as many messages under way as there are callers",
		single: true,
		serve:  func(c config) (server, error) { return newPlainServer(c, tcpServe) },
		dial:   windowDial,
	}
}

// windowMost is how many bytes may be under way. The client does not read while it writes, so it
// would wait for ever on a server that does the same.
const windowMost = 256 << 10

// windowClient is one connection, and its only caller.
type windowClient struct {
	conn     net.Conn
	r        *bufio.Reader
	w        *bufio.Writer
	callers  int
	underway int
	answer   []byte
}

func windowDial(c config, addr string) (client, error) {
	conn, err := plainDial(c, addr)
	if err != nil {
		return nil, err
	}
	return &windowClient{
		conn: conn, r: bufio.NewReaderSize(conn, tcpBuffer), w: bufio.NewWriterSize(conn, tcpBuffer), callers: c.callers,
	}, nil
}

func (w *windowClient) caller(int) (caller, error) { return w, nil }
func (w *windowClient) close() error               { return w.conn.Close() }

// echo receives the answer to a message of an earlier call's, and sends another one, together with
// those for which there are answers already. All are of the same length.
func (w *windowClient) echo(payload []byte) (err error) {
	if w.callers*len(payload) > windowMost {
		return fmt.Errorf("window: %d messages of %d bytes: %w", w.callers, len(payload), errCannot)
	}
	for ; w.underway < w.callers; w.underway++ {
		tcpWrite(w.w, payload)
	}
	if w.r.Buffered() == 0 {
		if err := w.w.Flush(); err != nil {
			return fmt.Errorf("window: %w", err)
		}
	}
	if w.answer, err = tcpRead(w.r, w.answer); err != nil {
		return fmt.Errorf("window: %w", err)
	}
	w.underway--
	return checkEcho(len(w.answer), len(payload))
}
