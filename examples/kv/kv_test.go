package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const argsEnv = "GRID_KV_ARGS" // makes the test binary a node

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
		addr := fmt.Sprint("127.0.0.1:", 20000+mathrand.IntN(10000))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		defer l.Close()
		all = append(all, addr)
	}
	return all
}

// process is a node, and what it has printed.
type process struct {
	cmd  *exec.Cmd
	addr string

	mu    sync.Mutex
	lines []string
}

// cluster is three of them, the second and the third of which know the one before.
type cluster struct {
	t     *testing.T
	addrs []string
	dirs  []string
	nodes []*process
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{t: t, addrs: addresses(t, 3), nodes: make([]*process, 3)}
	for i := range c.addrs {
		c.dirs = append(c.dirs, t.TempDir())
		c.start(i)
	}
	return c
}

func (c *cluster) start(i int) {
	p := &process{cmd: exec.Command(os.Args[0]), addr: c.addrs[i]}
	args := []string{"-listen", c.addrs[i], "-secret", "0123456789abcdef", "-dir", c.dirs[i]}
	if i > 0 {
		args = append(args, "-join", "http://"+c.addrs[i-1])
	}
	p.cmd.Env = append(os.Environ(), argsEnv+"="+strings.Join(args, " "))
	out, err := p.cmd.StdoutPipe()
	require.NoError(c.t, err)
	require.NoError(c.t, p.cmd.Start())
	c.t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			p.mu.Lock()
			p.lines = append(p.lines, s.Text())
			p.mu.Unlock()
		}
	}()
	c.nodes[i] = p
}

// waitReady waits until all nodes say that another may be restarted.
func (c *cluster) waitReady() {
	c.t.Helper()
	for _, addr := range c.addrs {
		require.Eventually(c.t, func() bool {
			resp, err := http.Get("http://" + addr + "/ready")
			if err != nil {
				return false
			}
			defer resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		}, time.Minute, 20*time.Millisecond, "%s is not ready", addr)
	}
}

// leader returns which node leads, as the nodes print it.
func (c *cluster) leader() (leader int) {
	c.t.Helper()
	require.Eventually(c.t, func() bool {
		p := c.nodes[0]
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.lines) == 0 {
			return false
		}
		for leader = range c.addrs {
			if p.lines[len(p.lines)-1] == "leader is http://"+c.addrs[leader] {
				return true
			}
		}
		return false
	}, time.Minute, 20*time.Millisecond)
	return leader
}

// client asks one node after the other until one answers, as a client of a replicated service does.
// The key of a request makes sure that it is executed once.
type client struct {
	addrs []string
	http  http.Client
	at    int
}

func (c *client) do(method, key, body, match string) (status int, value, etag string, err error) {
	id := rand.Text()
	for range 3 * len(c.addrs) {
		req, err := http.NewRequest(method, "http://"+c.addrs[c.at]+"/kv/"+key, strings.NewReader(body))
		if err != nil {
			return 0, "", "", err
		}
		req.Header.Set("Idempotency-Key", id)
		switch match {
		case "":
		case "none":
			req.Header.Set("If-None-Match", "*")
		default:
			req.Header.Set("If-Match", match)
		}
		resp, err := c.http.Do(req)
		if err != nil { // the node is not there, or went away
			c.at = (c.at + 1) % len(c.addrs)
			time.Sleep(10 * time.Millisecond)
			continue
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		return resp.StatusCode, string(b), resp.Header.Get("ETag"), err
	}
	return 0, "", "", fmt.Errorf("none of %v answers", c.addrs)
}

// count adds one to the number at a key, by its version.
func (c *client) count(key string) error {
	for {
		status, value, etag, err := c.do(http.MethodGet, key, "", "")
		if err != nil || status != http.StatusOK && status != http.StatusNotFound {
			return fmt.Errorf("get: %d %s: %v", status, value, err)
		}
		if status == http.StatusNotFound {
			value, etag = "0", "none"
		}
		n, err := strconv.Atoi(value)
		if err != nil {
			return err
		}
		status, value, _, err = c.do(http.MethodPut, key, strconv.Itoa(n+1), etag)
		switch {
		case err == nil && status == http.StatusNoContent:
			return nil
		case err != nil || status != http.StatusPreconditionFailed:
			return fmt.Errorf("put: %d %s: %v", status, value, err)
		}
	}
}

func TestKV_HasAllOfTheAPI(t *testing.T) {
	c := newCluster(t)
	c.waitReady()
	for i := range c.addrs {
		k := &client{addrs: c.addrs, at: i}
		require := func(method, body, match string, want int, wantBody string) (etag string) {
			t.Helper()
			status, got, etag, err := k.do(method, "a/b", body, match)
			require.NoError(t, err)
			require.Equal(t, want, status, got)
			if want < 300 {
				require.Equal(t, wantBody, got)
			}
			return etag
		}
		require("GET", "", "", 404, "")
		one := require("PUT", "one", "", 204, "")
		if got := require("GET", "", "", 200, "one"); got != one {
			t.Fatalf("version %s was put, %s is there", one, got)
		}
		require("PUT", "two", "none", 412, "")
		two := require("PUT", "two", one, 204, "")
		require("PUT", "three", one, 412, "")
		require("DELETE", "", one, 412, "")
		require("PUT", "three", "x", 400, "")
		require("PUT", strings.Repeat("x", maxValue+1), "", 413, "")
		require("GET", "", "", 200, "two")
		require("DELETE", "", two, 204, "")
		require("GET", "", "", 404, "")
		require("PUT", "again", "none", 204, "")
		require("DELETE", "", "", 204, "")
	}
	resp, err := http.Get("http://" + c.addrs[0] + "/status")
	require.NoError(t, err)
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	for _, addr := range c.addrs {
		require.Contains(t, string(page), addr)
	}
}

// Nodes are killed and restarted, and clients notice no more than that it takes a while.
func TestKV_NoRequestFails(t *testing.T) {
	c := newCluster(t)
	c.waitReady()
	var (
		stop    = make(chan struct{})
		clients sync.WaitGroup
		shared  atomic.Int64
		own     [4]int
	)
	for i := range own {
		clients.Go(func() {
			k := &client{addrs: c.addrs, at: i % len(c.addrs)}
			for {
				select {
				case <-stop:
					return
				default:
				}
				if !assert.NoError(t, k.count(fmt.Sprint("own", i))) || !assert.NoError(t, k.count("shared")) {
					return
				}
				own[i]++
				shared.Add(1)
			}
		})
	}

	// The leader is killed, and comes back.
	progress := func() {
		t.Helper()
		from := shared.Load()
		require.Eventually(t, func() bool { return shared.Load() > from+5 || t.Failed() }, time.Minute, time.Millisecond)
	}
	progress()
	leader := c.leader()
	require.NoError(t, c.nodes[leader].cmd.Process.Kill())
	_ = c.nodes[leader].cmd.Wait()
	progress()
	c.start(leader)
	c.waitReady()

	// All are restarted, one after the other.
	for i := range c.addrs {
		require.NoError(t, c.nodes[i].cmd.Process.Signal(syscall.SIGTERM))
		require.NoError(t, c.nodes[i].cmd.Wait())
		progress()
		c.start(i)
		c.waitReady()
	}
	progress()
	close(stop)
	clients.Wait()

	// Nothing was lost, and nothing done twice.
	for at := range c.addrs {
		k := &client{addrs: c.addrs, at: at}
		for i, n := range own {
			_, value, _, err := k.do(http.MethodGet, fmt.Sprint("own", i), "", "")
			require.NoError(t, err)
			require.Equal(t, strconv.Itoa(n), value)
		}
		_, value, _, err := k.do(http.MethodGet, "shared", "", "")
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(shared.Load()), value)
	}
	t.Logf("%d counted", shared.Load())
}

// A command that comes twice has one effect, also after a snapshot.
func TestStore_ExecutesACommandOnce(t *testing.T) {
	s := newStore()
	apply := func(s *store, index uint64, entry string) result {
		return s.Apply(&raft.Log{Index: index, Data: []byte(entry)}).(result)
	}
	put := `{"ID":"1","Op":"put","Key":"k","Value":"YQ=="}`
	require.Equal(t, result{Held: true, Version: 1}, apply(s, 1, put))
	require.Equal(t, result{Held: true}, apply(s, 2, `{"ID":"2","Op":"delete","Key":"k"}`))
	require.Equal(t, result{Held: true, Version: 1}, apply(s, 3, put))
	require.Zero(t, s.get("k").Version)

	snap, err := s.Snapshot()
	require.NoError(t, err)
	stores := raft.NewInmemSnapshotStore()
	sink, err := stores.Create(1, 3, 1, raft.Configuration{}, 1, nil)
	require.NoError(t, err)
	require.NoError(t, snap.Persist(sink))
	_, r, err := stores.Open(sink.ID())
	require.NoError(t, err)
	again := newStore()
	require.NoError(t, again.Restore(r))
	apply(again, 4, put)
	require.Zero(t, again.get("k").Version)
	apply(again, 5, "not JSON")

	for i := range uint64(remembered + 10) {
		apply(again, 6+i, fmt.Sprintf(`{"ID":"x%d","Op":"put","Key":"k"}`, i))
	}
	require.Len(t, again.state.Results, remembered)
}
