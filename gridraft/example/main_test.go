package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const argsEnv = "GRIDRAFT_EXAMPLE_ARGS" // makes the test binary a server

func TestMain(m *testing.M) {
	if args, ok := os.LookupEnv(argsEnv); ok {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := run(ctx, strings.Fields(args), os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// addresses are free, and none that the system gives to clients.
func addresses(t *testing.T, n int) (all []string) {
	for tries := 0; len(all) < n; tries++ {
		require.Less(t, tries, 1000)
		addr := fmt.Sprint("127.0.0.1:", 20000+rand.IntN(10000))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		defer l.Close()
		all = append(all, addr)
	}
	return all
}

// process is a server, and what it has said.
type process struct {
	cmd *exec.Cmd

	mu    sync.Mutex
	lines []string
}

// start starts one that joins another, unless that is empty.
func start(t *testing.T, addr, join string) *process {
	p := &process{cmd: exec.Command(os.Args[0])}
	args := argsEnv + "=-listen " + addr + " -secret 0123456789abcdef"
	if join != "" {
		args += " -join http://" + join
	}
	p.cmd.Env = append(os.Environ(), args)
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			p.mu.Lock()
			p.lines = append(p.lines, s.Text())
			p.mu.Unlock()
		}
	}()
	return p
}

// leader returns which one a server has named last.
func (p *process) leader() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.lines) - 1; i >= 0; i-- {
		if addr, ok := strings.CutPrefix(p.lines[i], "leader is http://"); ok {
			return addr
		}
		if p.lines[i] == "no leader" {
			return ""
		}
	}
	return ""
}

// ask tries until a server answers, as clients do.
func ask(t *testing.T, method, addr, key, body string) string {
	t.Helper()
	var last string
	require.Eventually(t, func() bool {
		req, err := http.NewRequest(method, "http://"+addr+"/keys/"+key, strings.NewReader(body))
		require.NoError(t, err)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			last = err.Error()
			return false
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		last = string(b)
		return resp.StatusCode < 300
	}, time.Minute, 50*time.Millisecond, "%s %s", method, key)
	return last
}

// What the README has one do: each server joins by one that it knows, which need not lead; the leader
// is killed, and comes back.
func TestExample_OutlivesItsLeader(t *testing.T) {
	all := addresses(t, 3)
	servers := map[string]*process{all[0]: start(t, all[0], "")}
	ask(t, http.MethodPut, all[0], "sky", "blue")
	for i, addr := range all[1:] {
		servers[addr] = start(t, addr, all[i])
		require.Equal(t, "blue", ask(t, http.MethodGet, addr, "sky", ""))
	}

	var leader string
	require.Eventually(t, func() bool { leader = servers[all[0]].leader(); return leader != "" }, time.Minute, 10*time.Millisecond)
	require.NoError(t, servers[leader].cmd.Process.Kill())
	_ = servers[leader].cmd.Wait()
	var other string
	for _, addr := range all {
		if addr != leader {
			other = addr
		}
	}
	require.Equal(t, "blue", ask(t, http.MethodGet, other, "sky", ""))
	ask(t, http.MethodPut, other, "sky", "grey")

	servers[leader] = start(t, leader, other)
	require.Equal(t, "grey", ask(t, http.MethodGet, leader, "sky", ""))

	// All leave in order.
	for _, p := range servers {
		require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	}
	for _, p := range servers {
		require.NoError(t, p.cmd.Wait())
	}
}
