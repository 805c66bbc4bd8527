package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
)

// startDynamic starts a node that others may join, to be stopped with the test.
func startDynamic(t *testing.T, host string) *dynamic {
	l, err := net.Listen("tcp", addr(host))
	require.NoError(t, err)
	d := &dynamic{leaving: make(map[string]bool)}
	n, err := startNode(t.Context(), host, l, testSecret, testTree(t), grid.ManagerOptions{
		Local:         host,
		Hosts:         []string{host},
		OnStateChange: func(c grid.StateChange) { d.removeLeft(c) },
		Logger:        slog.New(slog.DiscardHandler),
	}, d.register)
	require.NoError(t, err)
	t.Cleanup(n.stop)
	return d
}

// postJoin asks the node over HTTP, with any signature.
func postJoin(d *dynamic, signature, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequest("POST", joinPath, strings.NewReader(body))
	r.Header.Set(signatureHeader, signature)
	d.mux.ServeHTTP(w, r)
	return w
}

// signed asks the node over HTTP, as one that knows the secret.
func signed(d *dynamic, body string) *httptest.ResponseRecorder {
	return postJoin(d, d.signer.request([]byte(body)), body)
}

// joinBody is a request that d takes, to make host its own.
func joinBody(d *dynamic, host string) string { return joinBodyAt(d.HostName(), host, time.Now()) }

func joinBodyAt(to, host string, at time.Time) string {
	b, err := json.Marshal(joinRequest{host, to, at.UnixNano()})
	if err != nil {
		panic(err)
	}
	return string(b)
}

// answerSigned answers a request as a node that knows the secret would.
func answerSigned(w http.ResponseWriter, r *http.Request, answer string) {
	s := newSigner(testSecret)
	w.Header().Set(signatureHeader, s.answer(r.Header.Get(signatureHeader), []byte(answer)))
	io.WriteString(w, answer)
}

// listOf is an answer with hosts.
func listOf(hosts ...string) string {
	b, err := json.Marshal(hosts)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func TestJoin_BadRequestIsToldWhatIsWrong(t *testing.T) {
	d := startDynamic(t, freeHosts(t, 1)[0])
	for _, c := range []struct{ body, want string }{
		{"", "unexpected end of JSON input"},
		{"http://a:1", "invalid character"},
		{`{"Host":1}`, "cannot unmarshal number"},
		{`{"Host":"` + strings.Repeat("a", maxJoinRequest) + `"}`, "request body too large"},
		{joinBody(d, ""), `host "" is not http:// with a host and a port`},
		{joinBody(d, "https://a:1"), `host "https://a:1" is not http:// with a host and a port`},
		{joinBody(d, "http://a:1/path"), "and nothing else"},
		{joinBody(d, "http://a:1?x"), "and nothing else"},
		{joinBody(d, "http://u:p@a:1"), "and nothing else"},
		{joinBody(d, "http://a:99999"), "must be 1 to 65535"},
		{joinBody(d, "http://"), "and nothing else"},
		{joinBody(d, d.HostName()), "is the node that was asked"},
	} {
		w := signed(d, c.body)
		require.Equal(t, http.StatusBadRequest, w.Code, c.body)
		require.Contains(t, w.Body.String(), c.want)
	}
	require.Empty(t, d.Targets())
}

func TestJoin_NeedsASignatureThatWasNotUsed(t *testing.T) {
	d := startDynamic(t, freeHosts(t, 1)[0])
	const host = "http://127.0.0.1:1"
	body := joinBody(d, host)
	for _, c := range []struct{ signature, body, want string }{
		{"", body, "not signed with the secret of this cluster"},
		{"nonsense", body, "not signed with the secret of this cluster"},
		{newSigner("not-the-secret-of-the-others").request([]byte(body)), body, "not signed with the secret of this cluster"},
		{d.signer.request([]byte(body)), joinBody(d, "http://127.0.0.1:2"), "not signed with the secret of this cluster"},
		{d.signer.answer(d.signer.request([]byte(body)), nil), body, "not signed with the secret of this cluster"},
	} {
		w := postJoin(d, c.signature, c.body)
		require.Equal(t, http.StatusUnauthorized, w.Code)
		require.Equal(t, c.want+"\n", w.Body.String())
	}
	for body, want := range map[string]string{
		"{}": "signed for another node",
		joinBodyAt("http://127.0.0.1:3", host, time.Now()):                      "signed for another node",
		joinBodyAt(d.HostName(), host, time.Now().Add(-maxJoinAge-time.Second)): "signed too long ago",
		joinBodyAt(d.HostName(), host, time.Now().Add(maxJoinAge+time.Minute)):  "by a clock too far ahead",
	} {
		w := signed(d, body)
		require.Equal(t, http.StatusUnauthorized, w.Code)
		require.Contains(t, w.Body.String(), want)
	}
	require.Empty(t, d.Targets())

	w := signed(d, body)
	require.Equal(t, http.StatusOK, w.Code, w.Body)
	require.JSONEq(t, `["http://127.0.0.1:1","`+d.HostName()+`"]`, w.Body.String())
	require.NoError(t, d.RemoveHost(host))
	w = signed(d, body)
	require.Equal(t, http.StatusUnauthorized, w.Code)
	require.Equal(t, "signature was used before\n", w.Body.String())
	require.Empty(t, d.Targets())
}

func TestJoin_NodeThatShutsDownCantBeJoined(t *testing.T) {
	d := startDynamic(t, freeHosts(t, 1)[0])
	d.Close()
	w := signed(d, joinBody(d, "http://127.0.0.1:1"))
	require.Equal(t, http.StatusServiceUnavailable, w.Code, "it may be back: %s", w.Body)
}

// A host may have another program at its address by now, or be on its way down.
func TestJoin_IsNotPreventedByAHostThatFailsOrRefuses(t *testing.T) {
	hosts := freeHosts(t, 2)
	a, d := startDynamic(t, hosts[0]), startDynamic(t, hosts[1])
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	signatures := make(chan string, 3)
	mux := http.NewServeMux() // it is dialled as well
	mux.HandleFunc("POST "+joinPath, func(w http.ResponseWriter, r *http.Request) {
		signatures <- r.Header.Get(signatureHeader)
		switch len(signatures) {
		case 1:
			http.Error(w, "the manager is shutting down", http.StatusServiceUnavailable)
		case 2:
			answerSigned(w, r, "no list of hosts")
		default:
			answerSigned(w, r, listOf(other.URL, hosts[0]))
		}
	})
	failing := httptest.NewServer(mux)
	defer failing.Close()

	startJoining(testContext(t), t, d, failing.URL)
	until(t, within, "the node that is up knows it", func() bool { return slices.Contains(a.Targets(), hosts[1]) })
	require.NotEqual(t, <-signatures, <-signatures, "another one for each attempt")
	until(t, within, "it knows the others", func() bool { return slices.Contains(d.Targets(), hosts[0]) })
	require.ElementsMatch(t, []string{hosts[0], failing.URL}, d.Targets())
}

// startJoining has a node join through another, until the test ends.
func startJoining(ctx context.Context, t *testing.T, d *dynamic, through string) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- d.join(ctx, []string{through}) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
}

// joined are two nodes of which the second has joined through the first.
func joined(t *testing.T) (a, b *dynamic) {
	hosts := freeHosts(t, 2)
	a, b = startDynamic(t, hosts[0]), startDynamic(t, hosts[1])
	ctx := testContext(t)
	startJoining(ctx, t, b, hosts[0])
	until(t, within, "the two know each other",
		func() bool { return len(a.Targets()) == 1 }, func() bool { return len(b.Targets()) == 1 })
	require.NoError(t, a.waitConnected(ctx))
	require.NoError(t, b.waitConnected(ctx))
	return a, b
}

func TestLeave_InPlaceOfAnotherIsRefused(t *testing.T) {
	ctx := testContext(t)
	a, b := joined(t)
	require.NoError(t, a.add("http://127.0.0.1:1"))
	for _, host := range []string{"http://127.0.0.1:1", a.HostName(), ""} {
		_, err := b.Connection(a.HostName()).SingleRequest(ctx, leaveID, []byte(host))
		require.True(t, grid.IsRemoteErr(err), "%v", err)
		require.ErrorContains(t, err, b.HostName()+" may not leave in place of another host")
	}
	b.Close()
	until(t, within, "the link has ended", func() bool { return a.Stats().Connected == 0 })
	require.ElementsMatch(t, []string{b.HostName(), "http://127.0.0.1:1"}, a.Targets())
}

func TestLeave_RemovesTheNodeWhenItsLinkHasEnded(t *testing.T) {
	a, b := joined(t)
	require.Equal(t, 1, b.leave(testContext(t)))
	require.Equal(t, []string{b.HostName()}, a.Targets())
	b.Close()
	until(t, within, "it is removed", func() bool { return len(a.Targets()) == 0 })
}

func TestJoin_AgainBeforeTheLinkHasEndedKeepsTheNode(t *testing.T) {
	a, b := joined(t)
	require.Equal(t, 1, b.leave(testContext(t)))
	w := signed(a, joinBody(a, b.HostName()))
	require.Equal(t, http.StatusOK, w.Code, w.Body)
	b.Close()
	until(t, within, "the link has ended", func() bool { return a.Stats().Connected == 0 })
	require.Equal(t, []string{b.HostName()}, a.Targets())
}

// A node that leaves would not tell one that joins now.
func TestJoin_NodeThatLeavesCantBeJoined(t *testing.T) {
	hosts := freeHosts(t, 2)
	a, b := startDynamic(t, hosts[0]), startDynamic(t, hosts[1])
	require.Zero(t, a.leave(t.Context()))
	err := b.join(t.Context(), hosts[:1])
	require.ErrorContains(t, err, "refused: 410 Gone: this node leaves")
	require.Empty(t, a.Targets())
	require.Empty(t, b.Targets())
}

// Who answers has to know the secret, and is not believed without limit even then.
func TestJoin_AnswersAreChecked(t *testing.T) {
	var asked atomic.Int64
	victim := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer victim.Close()
	var many []string
	for i := range maxHosts + 1 {
		many = append(many, fmt.Sprintf("http://127.0.0.1:1%04d", i))
	}
	for want, answer := range map[string]http.HandlerFunc{
		"refused: the answer has 1001 hosts, the limit is 1000":       func(w http.ResponseWriter, r *http.Request) { answerSigned(w, r, listOf(many...)) },
		"refused: answer: not signed with the secret of this cluster": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, listOf(victim.URL)) },
		"refused: 307 Temporary Redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, victim.URL, http.StatusTemporaryRedirect)
		},
		"": func(w http.ResponseWriter, r *http.Request) {
			answerSigned(w, r, listOf(victim.URL+"/delete?x=", "http://u:p@"+addr(victim.URL), "https"+victim.URL[4:], "::", ""))
		},
	} {
		d := startDynamic(t, freeHosts(t, 1)[0])
		liar := httptest.NewServer(answer)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- d.join(ctx, []string{liar.URL}) }()
		if want == "" { // it is a host now, and the others are not
			require.Eventually(t, func() bool { return len(d.Targets()) > 0 }, 10*time.Second, time.Millisecond)
			require.Equal(t, []string{liar.URL}, d.Targets())
			cancel()
			require.NoError(t, <-ended)
		} else {
			require.ErrorContains(t, <-ended, want)
			require.Empty(t, d.Targets())
		}
		cancel()
		liar.Close()
	}
	require.Zero(t, asked.Load(), "somebody was asked who is no host")
}
