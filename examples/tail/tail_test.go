package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridtest"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is a node with a log, and one that follows it. It is used within a bubble.
type pair struct {
	*gridtest.Grid
	*source
	t *testing.T

	stop  context.CancelFunc
	ended chan error // what the follower has ended with

	mu  sync.Mutex
	got []string
}

// follow starts both. before is called with each line before it is taken.
func follow(t *testing.T, before func()) *pair {
	s := &source{path: filepath.Join(t.TempDir(), "log"), poll: poll, ends: make(chan error, 16)}
	p := &pair{source: s, t: t, ended: make(chan error, 1)}
	p.Grid = gridtest.New(t, 2, gridtest.WithHandlers(func(node int, m *grid.Manager) error {
		if node == 1 {
			return s.register(m)
		}
		return (&source{poll: poll}).register(m) // without a log
	}))
	ctx, cancel := context.WithCancel(t.Context())
	p.stop = cancel
	f := &follower{conn: p.Conn(0, 1)}
	go func() {
		p.ended <- f.run(ctx, func(line []byte) error {
			before()
			p.mu.Lock()
			defer p.mu.Unlock()
			p.got = append(p.got, string(line))
			return nil
		})
	}()
	time.Sleep(poll) // the handler runs by then
	return p
}

// write appends to the log.
func (p *pair) write(text string) {
	f, err := os.OpenFile(p.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(p.t, err)
	_, err = f.WriteString(text)
	require.NoError(p.t, errors.Join(err, f.Close()))
}

// has requires that the lines come, and no others.
func (p *pair) has(want ...string) {
	p.t.Helper()
	time.Sleep(2*poll + 2*maxPause)
	p.mu.Lock()
	defer p.mu.Unlock()
	require.Equal(p.t, want, p.got)
	p.got = nil
}

// end requires that both sides end when the follower gives up.
func (p *pair) end() {
	p.t.Helper()
	p.stop()
	require.ErrorIs(p.t, <-p.ended, context.Canceled)
	require.ErrorIs(p.t, <-p.ends, context.Canceled)
	synctest.Wait()
	require.Empty(p.t, p.ends)
}

func bubble(t *testing.T, f func(t *testing.T, p *pair)) {
	synctest.Test(t, func(t *testing.T) { f(t, follow(t, func() {})) })
}

func TestFollow_CancelEndsTheHandler(t *testing.T) {
	bubble(t, func(t *testing.T, p *pair) {
		p.has() // no file yet
		p.write("one\ntwo\nthr")
		p.has("one", "two")
		p.write("ee\n\n")
		p.has("three", "")
		p.end()
	})
}

func TestFollow_EachLineOnceAcrossCuts(t *testing.T) {
	bubble(t, func(t *testing.T, p *pair) {
		var want []string
		var wg sync.WaitGroup
		for i := range 2000 {
			want = append(want, fmt.Sprint("line ", i))
		}
		wg.Go(func() {
			for i, line := range want {
				p.write(line + "\n")
				if i%7 == 0 {
					time.Sleep(poll / 3)
				}
			}
		})
		for range 10 {
			time.Sleep(11 * poll)
			p.Cut(0, 1)
			require.ErrorIs(t, <-p.ends, grid.ErrDisconnected)
			p.WaitConnected()
		}
		wg.Wait()
		p.has(want...)
		p.end()
	})
}

func TestFollow_NodeThatRestarts(t *testing.T) {
	bubble(t, func(t *testing.T, p *pair) {
		p.write("one\n")
		p.has("one")
		p.Stop(1)
		require.ErrorIs(t, <-p.ends, grid.ErrDisconnected)
		p.write("two\n")
		p.Start(1)
		p.WaitConnected()
		p.has("two")
		p.end()
	})
}

// A shutdown waits for no follower: the handler hears of it, and the follower goes on at the
// successor.
func TestFollow_NodeThatShutsDown(t *testing.T) {
	bubble(t, func(t *testing.T, p *pair) {
		p.write("one\n")
		p.has("one")
		for _, line := range []string{"two", "three"} {
			begin := time.Now()
			require.NoError(t, p.Manager(1).Shutdown(t.Context()))
			require.Less(t, time.Since(begin), 2*time.Second)
			require.Equal(t, errLeaving, <-p.ends)
			p.Stop(1)
			p.write(line + "\n")
			p.Start(1)
			p.WaitConnected()
			p.has(line)
		}
		p.end()
	})
}

// So does that of the follower's own node.
func TestFollow_OwnNodeShutsDown(t *testing.T) {
	bubble(t, func(t *testing.T, p *pair) {
		p.write("one\n")
		p.has("one")
		begin := time.Now()
		require.NoError(t, p.Manager(0).Shutdown(t.Context()))
		require.Less(t, time.Since(begin), 2*time.Second)
		require.Equal(t, errLeaving, <-p.ends)
		require.ErrorIs(t, <-p.ended, grid.ErrDisconnected)
	})
}

func TestFile_ThatIsRotated(t *testing.T) {
	rotations := map[string]func(p *pair){
		"renamed":   func(p *pair) { require.NoError(p.t, os.Rename(p.path, p.path+".1")) },
		"removed":   func(p *pair) { require.NoError(p.t, os.Remove(p.path)) },
		"truncated": func(p *pair) { require.NoError(p.t, os.Truncate(p.path, 0)) },
	}
	for name, rotate := range rotations {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, p *pair) {
				p.write("one\ntwo\n")
				p.has("one", "two")
				rotate(p)
				p.has()
				p.write("1\n2\n")
				p.has("1", "2")
				rotate(p)
				p.write("longer than it was\nby far\n") // between two looks
				p.has("longer than it was", "by far")
				p.end()
			})
		})
		t.Run(name+" while cut off", func(t *testing.T) {
			bubble(t, func(t *testing.T, p *pair) {
				p.write("one\ntwo\n")
				p.has("one", "two")
				p.Partition([]int{0})
				require.ErrorIs(t, <-p.ends, grid.ErrDisconnected)
				rotate(p)
				p.write("longer than it was\nby far\n")
				p.Heal()
				p.WaitConnected()
				p.has("longer than it was", "by far")
				p.end()
			})
		})
	}
}

// A file that has become shorter is another one, though it begins as before.
func TestFile_ThatIsShortened(t *testing.T) {
	bubble(t, func(t *testing.T, p *pair) {
		line := strings.Repeat("x", headSize)
		p.write(line + "\ntwo\nthree\n")
		p.has(line, "two", "three")
		require.NoError(t, os.Truncate(p.path, headSize+5))
		p.has(line, "two")
		p.end()
	})
}

// What was written last to a file that is renamed comes as well, before the new one.
func TestFile_RestOfARenamedOne(t *testing.T) {
	bubble(t, func(t *testing.T, p *pair) {
		p.write("one\n")
		p.has("one")
		p.write("two\nthr")
		require.NoError(t, os.Rename(p.path, p.path+".1"))
		p.write("1\n")
		p.has("two", "thr", "1")
		p.end()
	})
}

func TestFile_WithALongLine(t *testing.T) {
	bubble(t, func(t *testing.T, p *pair) {
		long := strings.Repeat("x", chunkSize)
		p.write("short\n" + long + "yz\nshort\n")
		p.has("short", long, "yz", "short")
		p.end()
	})
}

func TestFollow_SlowConsumerHoldsItUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		p := follow(t, func() { <-goOn })
		line := strings.Repeat("x", 999) + "\n"
		p.write(strings.Repeat(line, 10_000))
		time.Sleep(time.Minute)
		ahead := p.sent.Load()
		require.Positive(t, ahead)
		require.Less(t, ahead, int64(32*chunkSize))
		time.Sleep(time.Minute)
		require.Equal(t, ahead, p.sent.Load())
		close(goOn)
		time.Sleep(time.Minute)
		p.mu.Lock()
		require.Len(t, p.got, 10_000)
		p.mu.Unlock()
		p.end()
	})
}

func TestFollow_CancelWhileTheHandlerWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		p := follow(t, func() { <-goOn })
		p.write(strings.Repeat("line\n", 1_000_000))
		time.Sleep(time.Minute)
		ahead := p.sent.Load()
		p.stop()
		require.ErrorIs(t, <-p.ends, context.Canceled, "at once, whatever the consumer does")
		require.LessOrEqual(t, p.sent.Load(), ahead+chunkSize)
		close(goOn)
		require.ErrorIs(t, <-p.ended, context.Canceled)
	})
}

func TestFile_ThatIsNotThere(t *testing.T) {
	bubble(t, func(t *testing.T, p *pair) {
		defer p.end()
		f := &follower{conn: p.Conn(1, 0)}
		require.ErrorIs(t, f.run(t.Context(), nil), errNoFile)
	})
}

func TestFollow_ConsumerFails(t *testing.T) {
	bubble(t, func(t *testing.T, p *pair) {
		p.write("one\n")
		f := &follower{conn: p.Conn(0, 1)}
		require.ErrorIs(t, f.run(t.Context(), func([]byte) error { return io.ErrClosedPipe }), io.ErrClosedPipe)
		require.ErrorIs(t, <-p.ends, context.Canceled)
		p.end()
	})
}

// A position comes from another host.
func TestFollow_FromAStrangePosition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := follow(t, func() {})
		p.write("one\n")
		for _, at := range []position{{-1, 0}, {1 << 62, 0}, {3, 0}, {5, hash([]byte("one\n"))}} {
			f := &follower{conn: p.Conn(0, 1), at: at}
			err := f.run(t.Context(), func(line []byte) error { return errors.New(string(line)) })
			require.EqualError(t, err, "one", "%v", at)
			require.ErrorIs(t, <-p.ends, context.Canceled)
		}
		p.end()
	})
}

func TestTailProgram_Demo(t *testing.T) {
	var out bytes.Buffer
	err := run(t.Context(), nil, &out)
	require.NoError(t, err, "%s", &out)
}

func TestTailProgram_CommandLine(t *testing.T) {
	for _, args := range []string{"-file x", "x", "-listen :1", "-listen h:1 -hosts http://h:1,http://h:2 -secret short"} {
		require.Error(t, run(t.Context(), strings.Fields(args), io.Discard), args)
	}
}
