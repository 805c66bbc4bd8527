package wsconn

import (
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// MaxToken is how many bytes a token may have.
const MaxToken = 32 << 10

// CheckToken returns why HTTP would not carry a bearer token as it is.
func CheckToken(token string) error {
	switch {
	case len(token) > MaxToken:
		return fmt.Errorf("token has %d bytes, the limit is %d", len(token), MaxToken)
	case strings.Trim(token, " \t") != token:
		return errors.New("token begins or ends with white space, which HTTP removes")
	}
	for i := range len(token) {
		if c := token[i]; c < ' ' || c == 0x7f {
			return fmt.Errorf("token has the control character %#02x, which HTTP does not carry, at byte %d", c, i)
		}
	}
	return nil
}

const (
	// minSecret is how many bytes a token has at least that is a secret, and not a word.
	minSecret = 8
	// secretRun is how many bytes in a row of a token are as good as all of it.
	secretRun = 16
	redacted  = "[redacted]"
)

// Redact takes a token out of a text that somebody else has made, and that may repeat it or some of
// it, also as it is quoted by Go or JSON, or escaped for a URL or HTML. What is shorter than 8 bytes
// is no secret, and often a word.
func Redact(text, token string) string {
	if len(token) < minSecret || len(text) < minSecret {
		return text
	}
	forms := []string{token}
	for _, form := range []string{
		inside(strconv.Quote(token)), inside(strconv.QuoteToASCII(token)), inside(jsonQuote(token)),
		url.QueryEscape(token), url.PathEscape(token), html.EscapeString(token),
	} {
		if !slices.Contains(forms, form) {
			forms = append(forms, form)
		}
	}
	for _, form := range forms {
		text = redactRuns(text, form)
	}
	return text
}

// redactRuns takes out what has secretRun bytes in a row in common with secret, or all of a shorter
// one.
func redactRuns(text, secret string) string {
	n := min(len(secret), secretRun)
	if len(text) < n {
		return text
	}
	var b strings.Builder
	kept := 0 // up to where text is in b, or left out
	for i := 0; i+n <= len(text); {
		if !strings.Contains(secret, text[i:i+n]) {
			i++
			continue
		}
		end := i + n
		for end < len(text) && strings.Contains(secret, text[end-n+1:end+1]) {
			end++
		}
		b.WriteString(text[kept:i])
		b.WriteString(redacted)
		i, kept = end, end
	}
	b.WriteString(text[kept:])
	return b.String()
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
