package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// asProgram in the environment makes the test binary the program itself, so that the processes of a
// cluster are built as the test is.
const asProgram = "GRID_CLUSTER_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

const testSecret = "a-secret-not-to-be-printed"

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// testTree makes a tree of 7 files, 3 directories and 2,100 bytes.
func testTree(t *testing.T) string {
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(root, "a", "b"), 0o755))
	require.NoError(t, os.Mkdir(filepath.Join(root, "empty"), 0o755))
	for i, dir := range []string{"", "", "a", "a", "a", "a/b", "a/b"} {
		name := filepath.Join(root, filepath.FromSlash(dir), fmt.Sprintf("file%d", i))
		require.NoError(t, os.WriteFile(name, make([]byte, 300), 0o644))
	}
	return root
}

func TestDemo_Holds(t *testing.T) {
	var out, errs bytes.Buffer
	code := run(testContext(t), []string{"-dir", testTree(t)}, &out, &errs)
	require.Zero(t, code, "stdout:\n%s\nstderr:\n%s", &out, &errs)
	require.Equal(t, 6, strings.Count(out.String(), "of which"), out.String())
	for _, want := range []string{
		"7 files and 3 directories, 2.1 KiB; a local walk counts 7 and 3, 2.1 KiB",
		" entries with: grid: disconnected",
		"reconnected ",
		"a missing handler: ",
		"a handler's error: disk of /no/such/directory: ",
		"All 15 checks held",
	} {
		require.Contains(t, out.String(), want)
	}
	require.NotContains(t, out.String(), "FAIL")
	require.NotContains(t, out.String(), "\x1b", "a line was rewritten, but this is no terminal")
}

func TestDemo_FailsWhenInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	code := run(ctx, []string{"-dir", testTree(t)}, io.Discard, io.Discard)
	require.Equal(t, 1, code)
}

func TestProcess_ThreeEndWhenAllAreDone(t *testing.T) {
	ctx := testContext(t)
	dir, hosts := testTree(t), freeHosts(t, 3)
	var ps []*process
	for _, h := range hosts {
		p := newProcess(ctx, hosts, h, dir, "-once")
		require.NoError(t, p.Start())
		ps = append(ps, p)
	}
	for i, p := range ps {
		p.requireGood(t)
		for j, h := range hosts {
			if i != j {
				require.Contains(t, p.out.String(), "\n"+h+"\n")
			}
		}
		require.Equal(t, 2, strings.Count(p.out.String(), "of which"), p.out.String())
		require.Equal(t, 2, strings.Count(p.out.String(), "10 entries, 2.1 KiB; it counts 10 itself"), p.out.String())
	}
}

func TestProcess_ThatServesEndsWellOnSignal(t *testing.T) {
	skipWithoutSignals(t)
	ctx := testContext(t)
	dir, hosts := testTree(t), freeHosts(t, 2)
	serving := newProcess(ctx, hosts, hosts[0], dir)
	serving.Stdout = nil
	stdout, err := serving.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, serving.Start())
	other := newProcess(ctx, hosts, hosts[1], dir, "-once")
	require.NoError(t, other.Start())
	other.requireGood(t)

	lines := bufio.NewScanner(io.TeeReader(stdout, &serving.out))
	for lines.Scan() {
		if strings.Contains(lines.Text(), "stop with Ctrl-C") {
			require.NoError(t, serving.Process.Signal(syscall.SIGTERM))
		}
	}
	require.NoError(t, lines.Err())
	serving.requireGood(t)
	require.Contains(t, serving.out.String(), "stop with Ctrl-C")
}

// A node must not leave its peers waiting for an answer to "done" that was lost with its own end.
func TestProcess_PeerThatIsDoneAndGoneWasTold(t *testing.T) {
	ctx := testContext(t)
	hosts := freeHosts(t, 2)
	nodes := startNodes(t, hosts)
	a, b := nodes[0], nodes[1]
	require.NoError(t, a.waitConnected(ctx))
	require.NoError(t, b.waitConnected(ctx))

	require.NoError(t, a.tellDone(ctx, hosts[1]))
	require.NoError(t, isClosed(b.peersDone()))
	a.Close()
	require.NoError(t, b.tellDone(ctx, hosts[0]))
	require.Error(t, isClosed(a.peersDone()))
}

func TestCommandLine_ThatIsWrongIsToldWhy(t *testing.T) {
	dir, empty := testTree(t), t.TempDir()
	two := "http://127.0.0.1:1,http://127.0.0.1:2"
	for _, c := range []struct {
		want string
		args []string
	}{
		{"-listen needs a -secret", []string{"-listen", "127.0.0.1:1", "-hosts", two}},
		{"16 characters", []string{"-listen", "127.0.0.1:1", "-hosts", two, "-secret", "too short"}},
		{"-listen needs -hosts", []string{"-listen", "127.0.0.1:1", "-secret", testSecret}},
		{"need -listen", []string{"-hosts", two}},
		{"need -listen", []string{"-once"}},
		{"need -listen", []string{"-dynamic", "-http", "127.0.0.1:1"}},
		{"-once and -dynamic", []string{"-listen", ":1", "-hosts", "http://127.0.0.1:1", "-secret", testSecret, "-dynamic", "-once"}},
		{"-dynamic needs -hosts", []string{"-listen", ":1", "-secret", testSecret, "-dynamic"}},
		{"two URLs", []string{"-listen", ":1", "-hosts", "http://127.0.0.1:1", "-secret", testSecret}},
		{"need -listen", []string{"-ping", "1s"}},
		{"is not in -hosts", []string{"-listen", ":1", "-hosts", two, "-secret", testSecret, "-local", "http://other:1"}},
		{"does not begin with http://", []string{"-listen", ":1", "-hosts", two + ",https://a:1", "-secret", testSecret}},
		{`unexpected argument "more"`, []string{"-dir", dir, "more"}},
		{"is empty", []string{"-dir", empty}},
		{"-dir: ", []string{"-dir", filepath.Join(empty, "missing")}},
		{"flag provided but not defined", []string{"-nonsense"}},
	} {
		var errs bytes.Buffer
		require.Equal(t, 2, run(t.Context(), c.args, io.Discard, &errs), c.want)
		require.Contains(t, errs.String(), c.want)
		require.NotContains(t, errs.String(), testSecret)
	}
}

func TestCommandLine_LocalHostIsTheOneThatListens(t *testing.T) {
	for _, c := range []struct {
		listen, local string
		hosts         []string
		want          string
	}{
		{"127.0.0.1:2", "", []string{"http://127.0.0.1:1", "http://127.0.0.1:2"}, "http://127.0.0.1:2"},
		{":2", "", []string{"http://a:1", "http://b:2"}, "http://b:2"},
		{":2", "http://a:2", []string{"http://a:2", "http://b:2"}, "http://a:2"},
		{"b:2", "", []string{"http://a:2", "http://b:2"}, "http://b:2"},
		{":2", "", []string{"http://a:2", "http://b:2"}, ""},
		{":3", "", []string{"http://a:2", "http://b:2"}, ""},
		{"3", "", []string{"http://a:2", "http://b:2"}, ""},
	} {
		got, err := (&member{listen: c.listen, local: c.local, hosts: c.hosts}).localHost()
		require.Equal(t, c.want, got)
		require.Equal(t, c.want == "", err != nil, "%v", err)
	}
}

func isClosed(c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	default:
		return errors.New("not closed")
	}
}
