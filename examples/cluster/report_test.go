package main

import (
	"bytes"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

// startNodes starts a node for each of the hosts, to be stopped with the test.
func startNodes(t *testing.T, hosts []string) []*node {
	var nodes []*node
	for _, h := range hosts {
		l, err := net.Listen("tcp", addr(h))
		require.NoError(t, err)
		n, err := startNode(t.Context(), h, l, testSecret, testTree(t), grid.ManagerOptions{
			Local:  h,
			Hosts:  hosts,
			Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		t.Cleanup(n.stop)
		nodes = append(nodes, n)
	}
	return nodes
}

func TestProgress_RewritesItselfOnATerminalOnly(t *testing.T) {
	var out bytes.Buffer
	r := &report{w: &out, terminal: true}
	r.progress("%d entries", 1)
	r.check(true, "done")
	require.Equal(t, "\r\x1b[K        1 entries\r\x1b[K  ok    done\n", out.String())

	out.Reset()
	r = &report{w: &out}
	r.progress("%d entries", 1)
	r.check(true, "done")
	require.Equal(t, "        1 entries\n  ok    done\n", out.String())
}

func TestVerdict_NamesWhatFailed(t *testing.T) {
	var out bytes.Buffer
	r := newReport(&out)
	require.True(t, r.check(true, "this"))
	require.NoError(t, r.end())
	require.False(t, r.check(false, "that"))
	out.Reset()
	require.Error(t, r.end())
	require.Equal(t, "\n1 of 2 checks failed:\n        that\n", out.String())
}

func TestVerdict_FiguresAreShort(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1<<20 - 1: "1.0 MiB", 3 << 40: "3.0 TiB",
	} {
		require.Equal(t, want, size(n))
	}
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		require.Equal(t, want, number(n))
	}
	require.Equal(t, time.Hour, took(time.Now().Add(-time.Hour)).Truncate(time.Minute))
}

func TestDisk_IsThatOfTheSystem(t *testing.T) {
	d, err := readDisk(t.TempDir())
	require.NoError(t, err)
	require.NotZero(t, d.Total)
	require.LessOrEqual(t, d.Free, d.Total)
	_, err = readDisk(t.TempDir() + "/missing")
	require.Error(t, err)
}
