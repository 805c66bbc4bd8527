package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// freeHosts returns the URLs of n ports that nobody listens on.
func freeHosts(t *testing.T, n int) []string {
	var hosts []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close() // once all are found: no port twice
		hosts = append(hosts, "http://"+l.Addr().String())
	}
	return hosts
}

// command is the program with arguments, in a process of its own.
func command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, os.Args[0], args...)
	// The race detector would have every process wait a second at its end.
	c.Env = append(os.Environ(), asProgram+"=1", "GORACE=atexit_sleep_ms=0")
	return c
}

func skipWithoutSignals(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there are no such signals on Windows")
	}
}

// process is one node in a process of its own. Its output may be read once the process has ended.
type process struct {
	*exec.Cmd
	out, errs bytes.Buffer
}

func newProcess(ctx context.Context, hosts []string, local, dir string, more ...string) *process {
	args := append([]string{"-listen", addr(local), "-hosts", strings.Join(hosts, ","), "-secret", testSecret, "-dir", dir}, more...)
	p := &process{Cmd: command(ctx, args...)}
	p.Stdout, p.Stderr = &p.out, &p.errs
	return p
}

// requireGood waits for the end of the process, which must be a good one.
func (p *process) requireGood(t *testing.T) {
	t.Helper()
	err := p.Wait()
	require.NoError(t, err, "stdout:\n%s\nstderr:\n%s", &p.out, &p.errs)
	require.NotContains(t, p.out.String(), "FAIL")
	require.NotContains(t, p.out.String()+p.errs.String(), testSecret)
}

// until polls until all of the conditions have held once, and returns when that was, for each. It
// fails the test if it takes longer than within.
func until(t *testing.T, within time.Duration, what string, conds ...func() bool) []time.Duration {
	t.Helper()
	start, times := time.Now(), make([]time.Duration, len(conds))
	for left := len(conds); left > 0; time.Sleep(10 * time.Millisecond) {
		for i, cond := range conds {
			if times[i] == 0 && cond() {
				times[i] = time.Since(start)
				left--
			}
		}
		if left > 0 && time.Since(start) > within {
			require.Failf(t, what, "not within %v", within)
		}
	}
	return times
}

// output is what a process has printed so far.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}
