package wsconn

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHeader_OfTheApplicationIsCopiedInCanonicalForm(t *testing.T) {
	given := http.Header{"x-a": {"1", ""}, "X-B": {"b c", "\xff"}, "Cookie": nil, "User-Agent": {"u"}, "!#$%&'*+-.^_`|~09azAZ": {"v"}}
	h, err := CheckHeader(given)
	require.NoError(t, err)
	require.Equal(t, http.Header{"X-A": {"1", ""}, "X-B": {"b c", "\xff"}, "User-Agent": {"u"}, "!#$%&'*+-.^_`|~09azaz": {"v"}}, h)
	h["X-B"][0] = "other"
	require.Equal(t, "b c", given["X-B"][0])
	h, err = CheckHeader(nil)
	require.NoError(t, err)
	require.Empty(t, h)
}

// The error names the header, and never shows its value.
func TestHeader_ThatHTTPOrTheUpgradeWouldNotCarryIsRefused(t *testing.T) {
	const value = "the value of it"
	refused := func(name, value, want string) {
		t.Helper()
		_, err := CheckHeader(http.Header{name: {value}})
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "the value of it")
	}
	for _, name := range []string{
		"Upgrade", "connection", "HOST", "Authorization", "Sec-WebSocket-Key", "sec-websocket-protocol", "Sec-WebSocket-X",
		"Grid-Challenge", "grid-anything", "Content-Length", "Transfer-Encoding", "TE", "Trailer", "Keep-Alive", "Expect",
		"Proxy-Connection", "Proxy-Authorization", "Proxy-Authenticate",
	} {
		refused(name, value, `the header "`+name+`" is not for an application to set`)
	}
	for _, name := range []string{"", "a b", "a:", "é", "a\r\nb", "a\x00", "(a)", "a/b", "[", "{", "@"} {
		refused(name, value, "is no name of a header")
	}
	refused(strings.Repeat("(", 1000), value, `"`+strings.Repeat("(", 64)+`" is no name`)
	for bad, want := range map[string]string{
		" " + value: "white space", value + "\t": "white space",
		value + "\r\nInjected: 1": "control character 0x0d", value + "\n": "control character 0x0a",
		value + "\x00": "control character", value + "\x7f": "control character 0x7f",
	} {
		refused("X-A", bad, `the value of header "X-A" `)
		refused("X-A", bad, want)
	}
}

func TestHeader_IsBounded(t *testing.T) {
	h := http.Header{"X-A": {strings.Repeat("x", MaxHeader-3-4)}}
	_, err := CheckHeader(h)
	require.NoError(t, err)
	h["X-A"] = append(h["X-A"], "")
	_, err = CheckHeader(h)
	require.EqualError(t, err, "the headers have more than 32768 bytes")
	h = http.Header{}
	for range MaxHeader {
		h["X"] = append(h["X"], "")
	}
	_, err = CheckHeader(h)
	require.Error(t, err, "empty ones count")
}
