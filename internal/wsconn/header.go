package wsconn

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// MaxHeader is how many bytes the header of an upgrade request may have that is not made here:
// names and values, and 4 for what is around them in each line.
const MaxHeader = 32 << 10

// reserved are the fields of an upgrade request, in their canonical form, that are made here, or
// that HTTP makes for each connection.
var reserved = map[string]bool{
	"Authorization": true, "Connection": true, "Content-Length": true, "Expect": true, "Host": true,
	"Keep-Alive": true, "Proxy-Authenticate": true, "Proxy-Authorization": true, "Proxy-Connection": true,
	"Te": true, "Trailer": true, "Transfer-Encoding": true, "Upgrade": true,
}

// CheckHeader returns a copy of what is to go with an upgrade request, its names in canonical form,
// or why that can't be: HTTP would not carry it as it is, or it is not for an application to set.
func CheckHeader(h http.Header) (http.Header, error) {
	checked, size := make(http.Header, len(h)), 0
	for name, values := range h {
		if !isFieldName(name) {
			return nil, fmt.Errorf("%.64q is no name of a header", name)
		}
		canonical := http.CanonicalHeaderKey(name)
		if reserved[canonical] || strings.HasPrefix(canonical, "Sec-Websocket-") || strings.HasPrefix(canonical, "Grid-") {
			return nil, fmt.Errorf("the header %.64q is not for an application to set", name)
		}
		for _, v := range values {
			if size += len(name) + len(v) + 4; size > MaxHeader {
				return nil, fmt.Errorf("the headers have more than %d bytes", MaxHeader)
			}
			if err := checkValue(v); err != nil {
				return nil, fmt.Errorf("the value of header %.64q %w", name, err)
			}
			checked[canonical] = append(checked[canonical], v)
		}
	}
	return checked, nil
}

// isFieldName reports whether name is a token (RFC 9110, section 5.6.2).
func isFieldName(name string) bool {
	for i := range len(name) {
		c := name[i]
		if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') && !strings.Contains("!#$%&'*+-.^_`|~", name[i:i+1]) {
			return false
		}
	}
	return name != ""
}

// checkValue returns why HTTP would not carry a field's value as it is, in words that follow what
// has it.
func checkValue(v string) error {
	if strings.Trim(v, " \t") != v {
		return errors.New("begins or ends with white space, which HTTP removes")
	}
	for i := range len(v) {
		if c := v[i]; c < ' ' || c == 0x7f {
			return fmt.Errorf("has the control character %#02x, which HTTP does not carry, at byte %d", c, i)
		}
	}
	return nil
}
