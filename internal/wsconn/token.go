package wsconn

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"html"
	"math/bits"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// MaxToken is how many bytes a token may have.
const MaxToken = 32 << 10

// CheckToken returns why HTTP would not carry a bearer token as it is.
func CheckToken(token string) error {
	if len(token) > MaxToken {
		return fmt.Errorf("token has %d bytes, the limit is %d", len(token), MaxToken)
	}
	if err := checkValue(token); err != nil {
		return fmt.Errorf("token %w", err)
	}
	return nil
}

const (
	// minSecret is how many bytes a token has at least that is a secret, and not a word.
	minSecret = 8
	// secretRun is how many bytes in a row of a token are as good as all of it.
	secretRun = 16
	redacted  = "[redacted]"
	// maxRedacted is how much of a text is looked through. Nobody keeps as much.
	maxRedacted = 16 << 10
)

// Redact takes a token out of a text that somebody else has made, and that may repeat it or some of
// it, also as it is quoted by Go or JSON, or escaped for a URL or HTML. What is shorter than 8
// bytes is no secret, and often a word. Of a text of more than 16 KiB it returns the beginning.
func Redact(text, token string) string {
	if len(token) < minSecret || len(text) < minSecret {
		return text
	}
	whole := len(text)
	if len(text) > maxRedacted {
		text = text[:maxRedacted]
		whole = maxRedacted - (secretRun - 1) // so much of a token that was cut in two may not be seen
	}
	told := make([]bool, len(text)) // which bytes are the token's
	for _, form := range formsOf(token) {
		markRuns(told, text, form)
	}
	var b strings.Builder
	for i := range whole {
		switch {
		case !told[i]:
			b.WriteByte(text[i])
		case i == 0 || !told[i-1]:
			b.WriteString(redacted)
		}
	}
	return b.String()
}

// unreserved is what no form of a token spells in another way, such as all of a pass.
const unreserved = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~"

// formsOf returns the different ways in which a text may spell a token.
func formsOf(token string) []string {
	forms := []string{token}
	if strings.Trim(token, unreserved) == "" {
		return forms
	}
	for _, form := range []string{
		inside(strconv.Quote(token)), inside(strconv.QuoteToASCII(token)), inside(jsonQuote(token)),
		url.QueryEscape(token), url.PathEscape(token), html.EscapeString(token),
	} {
		if !slices.Contains(forms, form) {
			forms = append(forms, form)
		}
	}
	return forms
}

// markRuns marks in told what text has in common with secret: secretRun bytes in a row or more, or
// all of a shorter one. Both may be long, and made by a peer, so each is gone through once, and a
// byte of secret, of which there are most, costs little.
func markRuns(told []bool, text, secret string) {
	n := min(len(secret), secretRun)
	if len(text) < n {
		return
	}
	runs := newRunTable([]byte(text), n)
	b := []byte(secret)
	for i := 0; i+n <= len(b) && runs.left > 0; i++ {
		runs.find(runAt(b, i, n))
	}
	for i, first := range runs.first {
		if runs.found[first] {
			for j := range n {
				told[i+j] = true
			}
		}
	}
}

// A run is minSecret to secretRun bytes in a row, all of one length: the first 8 and the last 8.
type run struct{ head, tail uint64 }

func runAt(b []byte, i, n int) run {
	return run{binary.LittleEndian.Uint64(b[i:]), binary.LittleEndian.Uint64(b[i+n-8:])}
}

// runTable finds the runs of a text, each once: so nobody can make it busy by repeating one. It is
// a hash table with keys of its own, so that nobody can make up runs that collide.
type runTable struct {
	mul   run // odd
	shift int
	heads []int32 // by hash: 1 and where the first of a chain is in the text; 0 for none
	next  []int32 // the same by place in the text
	runs  []run
	first []int32 // where in the text the same run is for the first time
	found []bool  // by that
	left  int     // how many are in the chains
}

func newRunTable(text []byte, n int) *runTable {
	count := len(text) - n + 1
	size := bits.Len(uint(4 * count)) // sparse, so that most of what is not there meets an empty chain
	t := &runTable{
		mul:   run{rand.Uint64() | 1, rand.Uint64() | 1},
		shift: 64 - size,
		heads: make([]int32, 1<<size),
		next:  make([]int32, count),
		runs:  make([]run, count),
		first: make([]int32, count),
		found: make([]bool, count),
	}
	for i := range count {
		r := runAt(text, i, n)
		head := t.head(r)
		at := *head
		for at != 0 && t.runs[at-1] != r {
			at = t.next[at-1]
		}
		if at != 0 {
			t.first[i] = at - 1
			continue
		}
		t.runs[i], t.first[i] = r, int32(i)
		t.next[i], *head = *head, int32(i+1)
		t.left++
	}
	return t
}

func (t *runTable) head(r run) *int32 {
	return &t.heads[(r.head*t.mul.head+r.tail*t.mul.tail)>>t.shift]
}

// find marks a run as found and takes it out of its chain, if it is there.
func (t *runTable) find(r run) {
	for at := t.head(r); *at != 0; at = &t.next[*at-1] {
		if i := *at - 1; t.runs[i] == r {
			t.found[i] = true
			*at = t.next[i]
			t.left--
			return
		}
	}
}

// inside is a quoted text without its quotes.
func inside(quoted string) string { return quoted[1 : len(quoted)-1] }

func jsonQuote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string can be marshalled
	}
	return string(b)
}
