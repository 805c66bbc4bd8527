package main

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Requests that would be answered as if they had been others are refused.
func TestAPI_OddKeysAndConditions(t *testing.T) {
	c := newCluster(t)
	c.waitReady()
	leader := c.leader()
	do := func(node int, method, path, body string, header ...string) (status int, etag, got string) {
		req, err := http.NewRequest(method, "http://"+c.addrs[node]+path, strings.NewReader(body))
		require.NoError(t, err)
		for i := 0; i < len(header); i += 2 {
			req.Header[header[i]] = []string{header[i+1]}
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, resp.Header.Get("Etag"), string(b)
	}
	check := func(want int, method, path, body string, header ...string) (etag, got string) {
		t.Helper()
		var status int
		status, etag, got = do(leader, method, path, body, header...)
		require.Equal(t, want, status, got)
		return etag, got
	}
	// Keys travel as JSON, in which all bytes that are no UTF-8 are one character.
	for _, method := range []string{"PUT", "GET", "DELETE"} {
		check(http.StatusBadRequest, method, "/kv/%ff", "one")
	}
	check(http.StatusBadRequest, "PUT", "/kv/x", "one", "Idempotency-Key", "\xff")
	check(http.StatusNoContent, "PUT", "/kv/%C3%A9", "one")

	// A key of idempotency is that of one request, at each node.
	first, _ := check(http.StatusNoContent, "PUT", "/kv/a", "one", "Idempotency-Key", "X")
	for node := range c.addrs {
		status, etag, got := do(node, "PUT", "/kv/a", "one", "Idempotency-Key", "X")
		require.Equal(t, http.StatusNoContent, status, got)
		require.Equal(t, first, etag)
	}
	check(http.StatusUnprocessableEntity, "PUT", "/kv/b", "one", "Idempotency-Key", "X")
	check(http.StatusUnprocessableEntity, "PUT", "/kv/a", "two", "Idempotency-Key", "X")
	check(http.StatusUnprocessableEntity, "DELETE", "/kv/a", "", "Idempotency-Key", "X")
	check(http.StatusNotFound, "GET", "/kv/b", "")

	// A condition that is empty is one all the same.
	check(http.StatusBadRequest, "PUT", "/kv/a", "two", "If-Match", "")
	check(http.StatusBadRequest, "PUT", "/kv/a", "two", "If-None-Match", "")
	check(http.StatusBadRequest, "PUT", "/kv/a", "two", "If-Match", "", "If-None-Match", "*")
	check(http.StatusPreconditionFailed, "PUT", "/kv/a", "two", "If-None-Match", "*")
	check(http.StatusNoContent, "PUT", "/kv/a", "two", "If-Match", first)
	_, got := check(http.StatusOK, "GET", "/kv/a", "")
	require.Equal(t, "two", got)
}
