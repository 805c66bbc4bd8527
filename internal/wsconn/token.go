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
	// maxRedacted is how much of a text is looked through. Nobody keeps as much.
	maxRedacted = 16 << 10
)

// Redact takes a token out of a text that somebody else has made, and that may repeat it or some of
// it, also as it is quoted by Go or JSON, or escaped for a URL or HTML. What is shorter than 8 bytes
// is no secret, and often a word. Of a text of more than 16 KiB it returns the beginning.
func Redact(text, token string) string {
	if len(token) < minSecret || len(text) < minSecret {
		return text
	}
	whole := len(text)
	if len(text) > maxRedacted {
		text = text[:maxRedacted]
		whole = maxRedacted - (secretRun - 1) // so much of a token that was cut in two may not be seen
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
	told := make([]bool, len(text)) // which bytes are the token's
	for _, form := range forms {
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

// markRuns marks in told what text has in common with secret: secretRun bytes in a row or more, or
// all of a shorter one. Both may be long, and made by a peer, so each is gone through once.
func markRuns(told []bool, text, secret string) {
	n := min(len(secret), secretRun)
	common := make(map[string]bool, len(text)) // of the runs in text: whether it is in secret
	for i := 0; i+n <= len(text); i++ {
		common[text[i:i+n]] = false
	}
	for i := 0; i+n <= len(secret); i++ {
		if _, ok := common[secret[i:i+n]]; ok {
			common[secret[i:i+n]] = true
		}
	}
	for i := 0; i+n <= len(text); i++ {
		if common[text[i:i+n]] {
			for j := range n {
				told[i+j] = true
			}
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
