package main

import (
	"bufio"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

// get asks the node over HTTP.
func get(n *node, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	n.routes().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w
}

func connectedNodes(t *testing.T) (a, b *node) {
	nodes := startNodes(t, freeHosts(t, 2))
	for _, n := range nodes {
		require.NoError(t, n.waitConnected(testContext(t)))
	}
	return nodes[0], nodes[1]
}

func TestStatus_TellsOfTheLinks(t *testing.T) {
	a, b := connectedNodes(t)
	status := func() nodeStatus {
		w := get(a, "/status")
		require.Equal(t, http.StatusOK, w.Code)
		require.NotContains(t, w.Body.String(), testSecret)
		var st nodeStatus
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &st))
		return st
	}
	st := status()
	require.Equal(t, a.HostName(), st.HostName)
	require.Equal(t, 1, st.Connected)
	require.Len(t, st.Links, 1)
	require.Equal(t, b.HostName(), st.Links[0].HostName)
	require.Equal(t, "connected", st.Links[0].State)
	require.NotZero(t, st.Links[0].LastConnect)

	a.Close()
	st = status()
	require.Zero(t, st.Connected)
	require.Equal(t, "shutdown", st.Links[0].State)
}

func TestStatus_DiskAndTreeOfAPeerAreAskedOverGrid(t *testing.T) {
	a, b := connectedNodes(t)
	w := get(a, "/disk/"+addr(b.HostName()))
	require.Equal(t, http.StatusOK, w.Code, w.Body)
	var d diskInfo
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &d))
	require.Equal(t, b.dir, d.Dir)
	require.NotZero(t, d.Total)

	w = get(a, "/tree/"+addr(b.HostName()))
	require.Equal(t, http.StatusOK, w.Code, w.Body)
	lines := strings.Split(strings.TrimSuffix(w.Body.String(), "\n"), "\n")
	require.Len(t, lines, 11)
	require.Equal(t, `{"Files":7,"Dirs":3,"Bytes":2100}`, lines[10])
	var e entry
	require.NoError(t, json.Unmarshal([]byte(lines[0]), &e))
	require.Equal(t, entry{Path: "a", Dir: true}, e)
}

func TestStatus_OfAFailedCallTellsWhoFailed(t *testing.T) {
	a, b := connectedNodes(t)
	peer := addr(b.HostName())
	for path, code := range map[string]int{
		"/disk/nobody:1":                            http.StatusNotFound,
		"/disk/" + addr(a.HostName()):               http.StatusNotFound,
		"/disk/" + peer + "?dir=/no/such/directory": http.StatusBadGateway,
	} {
		require.Equal(t, code, get(a, path).Code, path)
	}
	b.Close()
	for _, path := range []string{"/disk/", "/tree/"} {
		w := get(a, path+peer)
		require.Equal(t, http.StatusServiceUnavailable, w.Code)
		require.Contains(t, w.Body.String(), grid.ErrDisconnected.Error())
	}
}

func TestStatus_TreeThatIsCutSaysSoInItsLastLine(t *testing.T) {
	a, b := connectedNodes(t)
	srv := httptest.NewServer(a.routes())
	defer srv.Close()
	defer http.DefaultClient.CloseIdleConnections()
	resp, err := http.Get(srv.URL + "/tree/" + addr(b.HostName()) + "?forever=true")
	require.NoError(t, err)
	defer resp.Body.Close()
	lines, last := bufio.NewScanner(resp.Body), ""
	for n := 0; lines.Scan(); n++ {
		if last = lines.Text(); n == 100 {
			b.Close()
		}
	}
	require.NoError(t, lines.Err())
	var end treeError
	require.NoError(t, json.Unmarshal([]byte(last), &end))
	require.Contains(t, end.Error, grid.ErrDisconnected.Error())
}
