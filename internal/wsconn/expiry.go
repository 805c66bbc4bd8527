package wsconn

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// expiry stands in for the deadline of a connection that has none, such as one through an SSH
// tunnel: it closes it in time.
type expiry struct {
	mu    sync.Mutex
	timer *time.Timer // nil for none
}

// stand is given what has come of setting a deadline, and returns nil if there is one now, or none
// any more where t is zero.
func (e *expiry) stand(l *link, err error, t time.Time) error {
	if err == nil || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		return err
	}
	if !e.stop() {
		return os.ErrDeadlineExceeded // the last one
	}
	if !t.IsZero() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.timer = time.AfterFunc(time.Until(t), func() { l.close() })
	}
	return nil
}

// stop removes the deadline. It reports whether that had not passed.
func (e *expiry) stop() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.timer == nil {
		return true
	}
	inTime := e.timer.Stop()
	e.timer = nil
	return inTime
}
