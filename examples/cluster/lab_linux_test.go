package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Of the hosts in the lab, which no other network can see.
const (
	labPing = time.Second
	labHTTP = "127.0.0.1:8001"
)

// lab is three hosts, each with a process of the program and a network namespace of its own, and a
// link between each two of them:
//
//	[ host 0 to1 ]----[ 0to1 wire 1to0 ]----[ to0 host 1 ]
//
// So a link can be taken down at one host without the other seeing it, and be impaired alone.
type lab struct {
	hosts []*labHost
	links []*labLink
	netem bool // of the kernel; else the wires impair
}

type labHost struct {
	url, dir string
	ns       *netns
	client   *http.Client
	hosts    []string // of all
	process  *process
	out      *output
}

// labLink is that between two hosts, which have an interface for it each.
type labLink struct {
	between [2]*labHost
	devices [2]string
	wire    *wire
}

// newLab builds the lab and starts the processes. It skips the test where that is not possible.
func newLab(t *testing.T) *lab {
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skipf("needs the tools of iproute2: %v", err)
	}
	outside := func() *netns {
		ns, err := newNetns()
		if err != nil {
			t.Skip(err)
		}
		t.Cleanup(ns.close)
		return ns
	}
	between := outside()
	if err := between.run("ip link add probe type veth peer name eborp"); err != nil {
		t.Skipf("no pair of interfaces can be made: %v", err)
	}
	l := &lab{}
	if err := between.run("tc qdisc add dev probe root netem loss 0%"); err != nil {
		t.Logf("links are impaired by the test itself, since this kernel can't: %v", err)
	} else {
		l.netem = true
	}
	var urls []string
	for i := range 3 {
		urls = append(urls, fmt.Sprintf("http://10.0.0.%d:9000", i+1))
	}
	for i, url := range urls {
		h := &labHost{url: url, dir: labTree(t), ns: outside(), hosts: urls}
		// A connection each: one that is kept would outlive the test.
		h.client = &http.Client{Transport: &http.Transport{DialContext: h.ns.dial, DisableKeepAlives: true}}
		require.NoError(t, h.ns.run(fmt.Sprintf("ip link set lo up \n ip addr add 10.0.0.%d/32 dev lo", i+1)))
		l.hosts = append(l.hosts, h)
	}
	for i, a := range l.hosts {
		for j, b := range l.hosts[:i] {
			l.links = append(l.links, newLabLink(t, between, a, b, i, j))
		}
	}
	for _, h := range l.hosts {
		h.start(t)
	}
	return l
}

// labTree makes a tree that takes some round trips to stream.
func labTree(t *testing.T) string {
	root := testTree(t)
	for i := range 2000 {
		require.NoError(t, os.WriteFile(filepath.Join(root, "empty", fmt.Sprintf("a file with a name of some length, %d", i)), nil, 0o644))
	}
	return root
}

// newLabLink joins hosts a and b, numbers i and j.
func newLabLink(t *testing.T, between *netns, a, b *labHost, i, j int) *labLink {
	k := &labLink{between: [2]*labHost{a, b}, devices: [2]string{fmt.Sprintf("to%d", j), fmt.Sprintf("to%d", i)}}
	ends := [2]string{fmt.Sprintf("%dto%d", i, j), fmt.Sprintf("%dto%d", j, i)}
	for x, h := range k.between {
		require.NoError(t, between.run(fmt.Sprintf(`
			ip link add %[1]s type veth peer name %[2]s netns %[3]s
			ip link set %[1]s up`, ends[x], k.devices[x], h.ns.path)))
		// A host has one address for all its links, each of which leads to one other. The kernel
		// restores such a route when the link comes up again.
		require.NoError(t, h.ns.run(fmt.Sprintf(`
			ip addr add %s peer %s dev %s
			ip link set %[3]s up`, h.ip(), k.between[1-x].ip(), k.devices[x])))
	}
	var err error
	k.wire, err = newWire(between, ends[0], ends[1])
	if errors.Is(err, syscall.EPERM) {
		t.Skipf("packets can't be carried: %v", err)
	}
	require.NoError(t, err)
	t.Cleanup(k.wire.close)
	return k
}

// link returns the link between two hosts, and where in it a is.
func (l *lab) link(a, b *labHost) (k *labLink, end int) {
	for _, k := range l.links {
		switch k.between {
		case [2]*labHost{a, b}:
			return k, 0
		case [2]*labHost{b, a}:
			return k, 1
		}
	}
	panic("no such link")
}

// set takes the interface of a for its link to b up or down.
func (l *lab) set(t *testing.T, a, b *labHost, upOrDown string) {
	k, end := l.link(a, b)
	require.NoError(t, a.ns.run("ip link set "+k.devices[end]+" "+upOrDown))
}

// impair makes the link between two hosts a bad one, or with the zero value good again.
func (l *lab) impair(t *testing.T, a, b *labHost, how impairment) {
	k, _ := l.link(a, b)
	if !l.netem {
		k.wire.impaired.Store(&how)
		return
	}
	for end, h := range k.between {
		do := "tc qdisc replace dev " + k.devices[end] + " root " + how.netem()
		if how == (impairment{}) {
			do = "tc qdisc del dev " + k.devices[end] + " root"
		}
		require.NoError(t, h.ns.run(do))
	}
}

func (h *labHost) ip() string { return strings.TrimSuffix(addr(h.url), ":9000") }

// start starts the process of the host, which ends with the test.
func (h *labHost) start(t *testing.T) {
	h.out = &output{}
	p := newProcess(context.Background(), h.hosts, h.url, h.dir, "-ping", labPing.String(), "-http", labHTTP)
	p.Stdout, p.Stderr = h.out, h.out
	require.NoError(t, h.ns.start(p.Cmd))
	h.process = p
	t.Cleanup(func() {
		p.Process.Kill()
		p.Wait() // an error where the test has done so
		if t.Failed() {
			t.Logf("%s printed:\n%s", h.url, h.out)
		}
	})
}

// open asks the process over HTTP. A status that is not OK is an error.
func (h *labHost) open(path string) (io.ReadCloser, error) {
	resp, err := h.client.Get("http://" + labHTTP + path)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return nil, errors.Join(fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(text)), err)
	}
	return resp.Body, nil
}

// linkTo is what the process says of its link to another.
func (h *labHost) linkTo(t *testing.T, other *labHost) linkStatus {
	body, err := h.open("/status")
	require.NoError(t, err)
	defer body.Close()
	var st nodeStatus
	require.NoError(t, json.NewDecoder(body).Decode(&st))
	for _, k := range st.Links {
		if k.HostName == other.url {
			return k
		}
	}
	require.Fail(t, "no status", "of %s at %s", other.url, h.url)
	panic("unreachable")
}

// askDisk makes a call to another host, and checks that the answer is that host's.
func (h *labHost) askDisk(other *labHost) error {
	body, err := h.open("/disk/" + addr(other.url))
	if err != nil {
		return err
	}
	defer body.Close()
	var d diskInfo
	if err := json.NewDecoder(body).Decode(&d); err != nil {
		return err
	}
	if d.Dir != other.dir || d.Total == 0 {
		return fmt.Errorf("wrong answer: %+v", d)
	}
	return nil
}

// openTree opens a stream from another host.
func (h *labHost) openTree(other *labHost, query string) (io.ReadCloser, error) {
	return h.open("/tree/" + addr(other.url) + query)
}

// readTree reads a stream to its end. It returns the number of lines, and the last.
func readTree(body io.ReadCloser) (n int, last string, err error) {
	defer body.Close()
	lines := bufio.NewScanner(body)
	for ; lines.Scan(); n++ {
		last = lines.Text()
	}
	return n, last, lines.Err()
}
