package main

import (
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// within is the time in which processes must have started, connected and worked; the longest pause
// between attempts to connect, or to join, is 5 s.
const within = 30 * time.Second

// serving is a process that goes on until it is stopped, and answers an operator.
type serving struct {
	*process
	out    *output
	client *http.Client
	page   string // its URL
}

// start starts a process that has -http 127.0.0.1:0, and ends with the test.
func (p *process) start(t *testing.T) *serving {
	t.Helper()
	s := &serving{process: p, out: &output{}}
	// A connection each: one that is kept would outlive the test.
	s.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: within}
	p.Stdout, p.Stderr = s.out, s.out
	require.NoError(t, p.Start())
	t.Cleanup(func() {
		p.Process.Kill()
		p.Wait() // an error where the test has done so
		if t.Failed() {
			t.Logf("%v printed:\n%s", p.Args[1:], s.out)
		}
		require.NotContains(t, s.out.String(), testSecret)
	})
	announced := regexp.MustCompile(`the status page is at (http://\S+/)`)
	until(t, within, "the page is served", func() bool {
		if m := announced.FindStringSubmatch(s.out.String()); m != nil {
			s.page = m[1]
		}
		return s.page != ""
	})
	return s
}

// get asks for what is below the page, which must be there.
func (s *serving) get(t *testing.T, path string) (body, contentType string) {
	t.Helper()
	resp, err := s.client.Get(s.page + path)
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "%s", b)
	return string(b), resp.Header.Get("Content-Type")
}

// links are the states of the links, as /status tells them.
func (s *serving) links(t *testing.T) map[string]string {
	t.Helper()
	body, _ := s.get(t, "status")
	var st nodeStatus
	require.NoError(t, json.Unmarshal([]byte(body), &st))
	links := make(map[string]string)
	for _, l := range st.Links {
		links[l.HostName] = l.State
	}
	return links
}

// prints is a condition for until.
func (s *serving) prints(text string, times int) func() bool {
	return func() bool { return strings.Count(s.out.String(), text) >= times }
}

// requireEndsWell interrupts the process, which must take that for no failure.
func (s *serving) requireEndsWell(t *testing.T) {
	t.Helper()
	require.NoError(t, s.Process.Signal(syscall.SIGTERM))
	require.NoError(t, s.Wait(), "%s", s.out)
	require.NotContains(t, s.out.String(), "FAIL")
}

// requireMesh waits until the page shows that all hosts see each other.
func (s *serving) requireMesh(t *testing.T, hosts int) {
	t.Helper()
	until(t, within, "the page shows all links", func() bool {
		body, contentType := s.get(t, "?format=json")
		require.Equal(t, "application/json", contentType)
		var mesh struct { // what is of interest of a gridstatus.Mesh
			Nodes []struct {
				View struct{ Links []struct{ State string } }
			}
		}
		require.NoError(t, json.Unmarshal([]byte(body), &mesh))
		links := 0
		for _, n := range mesh.Nodes {
			for _, l := range n.View.Links {
				if l.State == "connected" {
					links++
				}
			}
		}
		return len(mesh.Nodes) == hosts && links == hosts*(hosts-1)
	})
	html, contentType := s.get(t, "")
	require.Equal(t, "text/html; charset=utf-8", contentType)
	for host := range s.links(t) {
		require.Contains(t, html, addr(host))
	}
}

func TestStatusPage_IsServedByTheDemoUntilInterrupted(t *testing.T) {
	skipWithoutSignals(t)
	p := &process{Cmd: command(testContext(t), "-dir", testTree(t), "-http", "127.0.0.1:0")}
	s := p.start(t)
	require.Contains(t, s.out.String(), "\nAll 15 checks held\n")
	s.requireMesh(t, 3)
	s.requireEndsWell(t)
}

func TestStatusPage_ThatCantBeServedFailsTheDemoEarly(t *testing.T) {
	var out, errs output
	require.Equal(t, 1, run(testContext(t), []string{"-dir", testTree(t), "-http", "127.0.0.1:no-port"}, &out, &errs))
	require.Contains(t, errs.String(), "cluster: -http: listen tcp")
	require.Empty(t, out.String())
}

func TestStatusPage_IsServedByTheProcessesOfAFixedCluster(t *testing.T) {
	ctx, dir, hosts := testContext(t), testTree(t), freeHosts(t, 2)
	var all []*serving
	for _, h := range hosts {
		all = append(all, newProcess(ctx, hosts, h, dir, "-http", "127.0.0.1:0").start(t))
	}
	for _, s := range all {
		s.requireMesh(t, 2)
	}
}

func TestStatusPage_IsAtTheRootOnly(t *testing.T) {
	a, b := connectedNodes(t)
	w := get(a, "/")
	require.Equal(t, http.StatusOK, w.Code)
	require.Contains(t, w.Body.String(), addr(b.HostName()))
	require.Equal(t, http.StatusNotFound, get(a, "/nothing").Code)
}
