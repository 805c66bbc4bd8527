package asynclog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/slogtest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gridrpc/grid/internal/offload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// It does what is asked of a handler as well as that behind it.
func TestHandler_IsAsGoodAsWhatItStandsBefore(t *testing.T) {
	for name, attrs := range map[string][]slog.Attr{"plain": nil, "with attributes": {slog.Int("x", 1)}} {
		t.Run(name, func(t *testing.T) {
			var g offload.Group
			var b bytes.Buffer
			slogtest.Run(t, func(*testing.T) slog.Handler {
				b.Reset()
				return New(&g, slog.NewJSONHandler(&b, nil), attrs...).Handler()
			}, func(t *testing.T) map[string]any {
				g.Wait(time.Minute)
				var got map[string]any
				require.NoError(t, json.Unmarshal(b.Bytes(), &got))
				if attrs != nil {
					require.EqualValues(t, 1, got["x"])
					delete(got, "x")
				}
				return got
			})
		})
	}
}

// odd is a handler that calls do before it takes a line, and with every question that it is asked.
type odd struct {
	slog.Handler
	do func(msg string)
}

func (o odd) Enabled(ctx context.Context, l slog.Level) bool {
	o.do("enabled")
	return o.Handler.Enabled(ctx, l)
}

func (o odd) Handle(ctx context.Context, r slog.Record) error {
	o.do(r.Message)
	return o.Handler.Handle(ctx, r)
}

func (o odd) WithAttrs(attrs []slog.Attr) slog.Handler {
	o.do("attrs")
	return odd{o.Handler.WithAttrs(attrs), o.do}
}

func (o odd) WithGroup(name string) slog.Handler {
	o.do("group")
	return odd{o.Handler.WithGroup(name), o.do}
}

// book is what was written, without times.
type book struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *book) handler() slog.Handler {
	return slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}})
}

func (b *book) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *book) lines() []string {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Split(strings.TrimSpace(b.b.String()), "\n")
}

// valuer is an attribute whose value is made by code of the application's.
type valuer func()

func (v valuer) LogValue() slog.Value { v(); return slog.StringValue("made") }

// Whatever a handler is asked, it is not by those who log, and while it does not answer they go on.
func TestHandler_ThatBlocksHoldsNobodyUp(t *testing.T) {
	for _, at := range []string{"enabled", "attrs", "group", "first", "value"} {
		synctest.Test(t, func(t *testing.T) {
			var g offload.Group
			var b book
			stuck := make(chan struct{})
			blockAt := func(msg string) {
				if msg == at {
					<-stuck
				}
			}
			log := New(&g, odd{b.handler(), blockAt}, slog.String("local", "a")).With("b", 1).WithGroup("g")
			log.Info("first", "made", valuer(func() { blockAt("value") }))
			synctest.Wait()
			const more = 3000
			for i := range more {
				log.Info("line", "i", i)
			}
			log.WithGroup("").With().Info("last")
			close(stuck)
			got := b.lines()
			require.Len(t, got, 1+maxLines+1, "at %s", at)
			require.Equal(t, "msg=first local=a b=1 g.made=made", got[0])
			for i, line := range got[1 : maxLines+1] {
				require.Equal(t, fmt.Sprintf("msg=line local=a b=1 g.i=%d", i), line)
			}
			require.Equal(t, fmt.Sprintf(`msg="grid: log lines dropped" local=a lines=%d`, more+1-maxLines), got[maxLines+1])
			log.Info("again")
			require.Equal(t, "msg=again local=a b=1", b.lines()[maxLines+2])
		})
	}
}

// How many were dropped is told where they would have been.
func TestHandler_TellsWhereLinesWereDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g offload.Group
		var b book
		step := make(chan struct{})
		log := New(&g, odd{b.handler(), func(msg string) {
			if msg == "line" {
				<-step
			}
		}})
		log.Info("line")
		synctest.Wait()
		for range maxLines + 3 {
			log.Info("line")
		}
		step <- struct{}{} // the first is through, the second begins: there is room for one
		synctest.Wait()
		log.Warn("new")
		log.Warn("new and dropped")
		close(step)
		got := b.lines()
		require.Len(t, got, 1+maxLines+3)
		require.Equal(t, []string{`msg="grid: log lines dropped" lines=3`, "msg=new", `msg="grid: log lines dropped" lines=1`}, got[maxLines+1:])
	})
}

// Those that nobody may want to see leave room for the others.
func TestHandler_DebugLinesTakeNoPlaceOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g offload.Group
		var b book
		stuck := make(chan struct{})
		log := New(&g, odd{b.handler(), func(string) { <-stuck }})
		log.Info("first")
		synctest.Wait()
		for range 10 * maxLines {
			log.Debug("noise")
		}
		for range maxLines - maxDebugLines {
			log.Info("line")
		}
		close(stuck)
		count := 0
		for _, line := range b.lines() {
			if line == "msg=line" {
				count++
			}
		}
		require.Equal(t, maxLines-maxDebugLines, count)
	})
}

// A handler that panics or ends its goroutine loses that line, and is told so.
func TestHandler_ThatPanicsOrExitsLosesOneLine(t *testing.T) {
	for name, leave := range map[string]func(){"panic": func() { panic("no") }, "Goexit": runtime.Goexit, "nil panic": func() { panic(errors.New("no")) }} {
		for _, at := range []string{"enabled", "attrs", "group", "bad"} {
			synctest.Test(t, func(t *testing.T) {
				var g offload.Group
				var b book
				left := 0
				log := New(&g, odd{b.handler(), func(msg string) {
					if msg == at && left < 3 {
						left++
						leave()
					}
				}})
				log = log.With("a", 1).WithGroup("g")
				for range 3 {
					log.Info("bad", "x", 1)
					synctest.Wait()
				}
				require.Equal(t, 3, left, "%s at %s", name, at)
				log.Info("good", "x", 1)
				require.Contains(t, b.lines()[len(b.lines())-1], "msg=good a=1 g.x=1", "%s at %s", name, at)
				require.Contains(t, strings.Join(b.lines(), "\n"), "log lines dropped")
			})
		}
	}
}

// One that never works is asked again only when there is a line.
func TestHandler_ThatAlwaysPanicsIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g offload.Group
		calls := 0
		log := New(&g, odd{slog.DiscardHandler, func(string) { calls++; panic("no") }})
		for range 10 {
			log.Info("line")
			synctest.Wait()
		}
		require.LessOrEqual(t, calls, 20)
	})
}

// One that logs to what it stands behind does not wait for itself.
func TestHandler_ThatLogsItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g offload.Group
		var b book
		var log *slog.Logger
		log = New(&g, odd{b.handler(), func(msg string) {
			if msg == "outer" {
				log.Info("inner")
				g.Wait(time.Hour)
			}
		}})
		log.Info("outer")
		require.Equal(t, []string{"msg=outer", "msg=inner"}, b.lines())
	})
}
