package gridtest

import (
	"bytes"
	"log/slog"
	"sync"
	"testing"
)

// testLog writes to the log of a test until it is closed: afterwards that would be a panic.
type testLog struct {
	t testing.TB

	mu     sync.Mutex
	closed bool
}

func (l *testLog) handler() slog.Handler {
	return slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug})
}

// Write implements io.Writer.
func (l *testLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.t.Logf("%s", bytes.TrimSpace(line))
	}
	return len(line), nil
}

func (l *testLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}
