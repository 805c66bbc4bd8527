// Package hostname brings the base URLs by which hosts are known into one form, so that two
// spellings of one host are the same string.
package hostname

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// maxName is how many bytes a DNS name may have.
const maxName = 253

// Normalize returns the normal form of a base URL: scheme and name in lower case, without a default
// port, a dot at the end of the name or zeros in front of the port, and with an IP address as
// [netip.Addr] writes it. It is an error if there is no such form, which says what to write in its
// place if that is clear.
func Normalize(host string) (string, error) {
	normal, err := normalize(host)
	if err == nil {
		return normal, nil
	}
	if better := corrected(host); len(better) > 0 {
		err = fmt.Errorf("%w: write %s", err, strings.Join(better, ", or "))
	}
	return "", err
}

// corrected is what may be meant by a host of which only the scheme or the end is wrong.
func corrected(host string) (better []string) {
	const most = len("https://") + maxName + len(":65535/")
	if len(host) > most {
		return nil
	}
	scheme, rest := cutScheme(strings.TrimSpace(host))
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		rest = rest[:i]
	}
	schemes := []string{"http", "https"}
	switch strings.ToLower(scheme) {
	case "http", "ws":
		schemes = schemes[:1]
	case "https", "wss":
		schemes = schemes[1:]
	}
	for _, scheme := range schemes {
		if normal, err := normalize(scheme + "://" + rest); err == nil {
			better = append(better, normal)
		}
	}
	return better
}

// cutScheme cuts a scheme off, also one of HTTP behind which a colon or a slash is missing, or one
// is too many.
func cutScheme(host string) (scheme, rest string) {
	for _, scheme := range []string{"https", "http"} {
		if len(host) > len(scheme) && strings.EqualFold(host[:len(scheme)], scheme) {
			rest := strings.TrimPrefix(host[len(scheme):], ":")
			if bare := strings.TrimLeft(rest, "/"); bare != rest {
				return scheme, bare
			}
		}
	}
	scheme, rest, ok := strings.Cut(host, "://")
	if !ok {
		return "", strings.TrimPrefix(host, "//")
	}
	return scheme, rest
}

var errScheme = errors.New("URL must begin with http:// or https://")

func normalize(host string) (string, error) {
	if !strings.Contains(host, "://") {
		return "", errScheme
	}
	u, err := url.Parse(host)
	if err != nil {
		var e *url.Error
		if errors.As(err, &e) {
			err = e.Err
		}
		return "", fmt.Errorf("unusable URL: %w", err)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https" || u.Opaque != "":
		return "", errScheme
	case u.User != nil:
		return "", errors.New("URL has a user name")
	case u.Path != "" || u.RawQuery != "" || u.ForceQuery || strings.Contains(host, "#"):
		return "", errors.New("URL must end after the host and port")
	case u.Hostname() == "":
		return "", errors.New("URL has no host name")
	}
	name, err := normalName(u.Hostname(), strings.HasPrefix(u.Host, "["))
	if err != nil {
		return "", err
	}
	port, err := normalPort(u)
	if err != nil {
		return "", err
	}
	return u.Scheme + "://" + name + port, nil
}

// normalName is the normal form of a name or an address, which is in brackets if it is one of IPv6.
func normalName(name string, bracketed bool) (string, error) {
	if bracketed || strings.Contains(name, ":") {
		return normalIPv6(name, bracketed)
	}
	name = strings.TrimSuffix(name, ".")
	if len(name) > maxName {
		return "", fmt.Errorf("host name has %d bytes, the limit is %d", len(name), maxName)
	}
	for _, c := range name {
		switch {
		case c >= 0x80:
			return "", fmt.Errorf("host name has the letter %q, which is not ASCII: write the name as DNS has it, with xn--", c)
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		default:
			return "", fmt.Errorf("host name has the character %q", c)
		}
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" {
			return "", errors.New("host name has two dots in a row, or begins with one")
		}
	}
	return strings.ToLower(name), nil
}

func normalIPv6(name string, bracketed bool) (string, error) {
	if !bracketed {
		return "", errors.New("IPv6 address must be in square brackets")
	}
	addr, err := netip.ParseAddr(name)
	switch {
	case err != nil || !addr.Is6():
		return "", errors.New("what is in square brackets is no IPv6 address")
	case addr.Zone() != "":
		return "", fmt.Errorf("IPv6 address has the zone %q, which means something on this machine alone: use a name, or an address without a zone", addr.Zone())
	case addr.Is4In6():
		return addr.Unmap().String(), nil
	}
	return "[" + addr.String() + "]", nil
}

// normalPort is the port with its colon; empty for the default one.
func normalPort(u *url.URL) (string, error) {
	port := u.Port()
	if port == "" && !strings.HasSuffix(u.Host, ":") {
		return "", nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", fmt.Errorf("port %q must be 1 to 65535", port)
	}
	if u.Scheme == "http" && n == 80 || u.Scheme == "https" && n == 443 {
		return "", nil
	}
	return ":" + strconv.FormatUint(n, 10), nil
}
