package wsconn

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRedact_TakesOutATokenAndItsParts(t *testing.T) {
	const token = `a long "secret" <of> the cluster`
	for text, want := range map[string]string{
		"":                              "",
		"nothing of it":                 "nothing of it",
		token:                           "[redacted]",
		"x" + token + "y":               "x[redacted]y",
		token + token:                   "[redacted]",
		"first " + token[:20] + ", cut": "first [redacted], cut",
		"then " + token[12:]:            "then [redacted]",
		`as "a long \"secret\" <of> the cluster"`:            `as "[redacted]"`,
		`as "a long \"secret\" \u003cof\u003e the cluster"`:  `as "[redacted]"`,
		"a+long+%22secret%22+%3Cof%3E+the+cluster":           "[redacted]",
		"a%20long%20%22secret%22%20%3Cof%3E%20the%20cluster": "[redacted]",
		"a long &#34;secret&#34; &lt;of&gt; the cluster":     "[redacted]",
		"of the cluster": "of the cluster", // too little to be of use
	} {
		require.Equal(t, want, Redact(text, token))
	}
	require.Equal(t, "the [redacted] is good", Redact("the password is good", "password"))
	require.Equal(t, "the pass is good", Redact("the pass is good", "password"))
	require.Equal(t, "the token is good", Redact("the token is good", "token"), "a word")
	require.Equal(t, "x", Redact("x", ""))
}

// Both may be long and a peer's, who could keep a processor busy.
func TestRedact_OfLongTextsIsQuick(t *testing.T) {
	began := time.Now()
	Redact(strings.Repeat("ab", 32<<10), strings.Repeat("ab", 16<<10)+"c")
	require.Less(t, time.Since(began), 2*time.Second)
	began = time.Now()
	Redact(strings.Repeat("ab", 8<<20), strings.Repeat("ab", 16<<10)+"c")
	require.Less(t, time.Since(began), 2*time.Second)
}

// Of a long text only the beginning is looked through, and returned; nothing of a token that is cut
// in two there.
func TestRedact_OfALongTextReturnsTheBeginning(t *testing.T) {
	const token = "s3cr3t-of-the-cluster"
	for n := range 2 * len(token) {
		got := Redact(strings.Repeat("-", maxRedacted-n)+token+strings.Repeat("-", 1<<20), token)
		require.LessOrEqual(t, len(got), maxRedacted)
		require.Greater(t, len(got), maxRedacted-3*len(token))
		require.Empty(t, strings.Trim(strings.ReplaceAll(got, redacted, ""), "-"), "%d bytes of it are in front", n)
	}
	short := strings.Repeat("-", maxRedacted)
	require.Equal(t, short, Redact(short, token))
}
