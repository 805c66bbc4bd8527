package rig

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
)

// LogBook keeps the lines of a log.
type LogBook struct {
	mu    sync.Mutex
	Lines []string
}

// NewLogBook returns a logger, from level info, and what it writes to.
func NewLogBook() (*slog.Logger, *LogBook) {
	b := new(LogBook)
	return slog.New(slog.NewTextHandler(b, nil)), b
}

// Write implements io.Writer.
func (b *LogBook) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.Lines = append(b.Lines, string(bytes.TrimSpace(line)))
	return len(line), nil
}

// About returns the lines so far that contain all of parts.
func (b *LogBook) About(parts ...string) (lines []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
next:
	for _, line := range b.Lines {
		for _, part := range parts {
			if !strings.Contains(line, part) {
				continue next
			}
		}
		lines = append(lines, line)
	}
	return lines
}
