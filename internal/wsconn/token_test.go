package wsconn

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/bytepool"
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

// Both may be long and a peer's, who could keep a processor busy. The text is most often short, and
// the token a stranger's.
func TestRedact_OfLongTextsIsQuick(t *testing.T) {
	short := "the token that was shown is not known to this host"
	for _, test := range []struct {
		text, token string
		most        time.Duration
	}{
		{short, strings.Repeat("x", MaxToken), 3 * time.Millisecond},
		{short, strings.Repeat("ab1_", MaxToken/4), 3 * time.Millisecond},
		{short, strings.Repeat("ab1+", MaxToken/4), 10 * time.Millisecond},
		{short, strings.Repeat("<", MaxToken), 15 * time.Millisecond}, // 17 times as much to look through
		{short, strings.Repeat(short[1:], MaxToken/len(short)), 10 * time.Millisecond},
		{strings.Repeat("ab", 32<<10), strings.Repeat("ab", 16<<10-1) + "c", 50 * time.Millisecond},
		{strings.Repeat("ab", 8<<20), strings.Repeat("ab", 16<<10-1) + "c", 50 * time.Millisecond},
		{strings.Repeat("<", 16<<10), strings.Repeat("<", MaxToken), 50 * time.Millisecond},
	} {
		took := time.Hour
		if bytepool.Strict {
			test.most *= 20 // the race detector is slow
		}
		for tries := 0; tries < 20 && took >= test.most; tries++ { // other processes have their share
			began := time.Now()
			Redact(test.text, test.token)
			took = min(took, time.Since(began))
		}
		t.Logf("%d bytes %.4q, %d bytes %.4q: %v", len(test.text), test.text, len(test.token), test.token, took)
		require.Less(t, took, test.most, "%.4q and %.4q", test.text, test.token)
	}
}

func TestRedact_UnreservedBytesHaveOneForm(t *testing.T) {
	for _, c := range unreserved {
		forms := formsOf(string(c) + "<")
		require.Len(t, forms, 4) // Go's are the token, and the two of URLs are one
		for _, form := range forms {
			require.True(t, strings.HasPrefix(form, string(c)), form)
		}
	}
}

// naiveRuns is what markRuns does, as plain as it can be.
func naiveRuns(told []bool, text, secret string) {
	n := min(len(secret), secretRun)
	for i := 0; i+n <= len(text); i++ {
		if strings.Contains(secret, text[i:i+n]) {
			for j := range n {
				told[i+j] = true
			}
		}
	}
}

func TestRedact_MarksEveryRunAndNoOther(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	letters := func(n, kinds int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte('a' + random.IntN(kinds))
		}
		return string(b)
	}
	marked := 0
	for range 5000 {
		secret := letters(minSecret+random.IntN(100), 1+random.IntN(3))
		var text strings.Builder
		for range random.IntN(8) {
			begin := random.IntN(len(secret))
			text.WriteString(secret[begin : begin+random.IntN(len(secret)-begin+1)])
			text.WriteString(letters(random.IntN(20), 4))
		}
		got, want := make([]bool, text.Len()), make([]bool, text.Len())
		markRuns(got, text.String(), secret)
		naiveRuns(want, text.String(), secret)
		require.Equal(t, want, got, "%q in %q", secret, text.String())
		marked += strings.Count(fmt.Sprint(want), "true")
	}
	require.Greater(t, marked, 10_000)
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
