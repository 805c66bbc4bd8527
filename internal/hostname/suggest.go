package hostname

import "strings"

// Suggest returns which of hosts, in normal form, is meant by one that is none of them; empty if
// that can't be told. It looks for another scheme or none, another port or none, a name with its
// domain or without, and a slip in typing; and prefers the first of those that are equally good.
func Suggest(host string, hosts []string) string {
	normal, err := Normalize(host)
	if err != nil {
		if normal, err = Normalize("http://" + host); err != nil {
			return ""
		}
	}
	said := split(normal)
	best, least := "", unlike
	for _, h := range hosts {
		if d := said.difference(split(h)); d < least {
			best, least = h, d
		}
	}
	return best
}

// parts are those of a host in normal form.
type parts struct{ scheme, name, port string }

func split(normal string) (p parts) {
	p.scheme, p.name, _ = strings.Cut(normal, "://")
	if i := strings.LastIndexByte(p.name, ':'); i >= 0 && !strings.HasSuffix(p.name, "]") {
		p.name, p.port = p.name[:i], p.name[i+1:]
	}
	return p
}

// How two hosts differ: the sum of these, or unlike.
const (
	inScheme = 1 << iota
	inPort
	inName
	unlike
)

func (p parts) difference(q parts) (d int) {
	if p.scheme != q.scheme {
		d += inScheme
	}
	if p.port != q.port {
		d += inPort
	}
	switch {
	case p.name == q.name:
	case isWithDomain(p.name, q.name), isWithDomain(q.name, p.name), isSlip(p.name, q.name):
		d += inName
	default:
		return unlike
	}
	return d
}

// isWithDomain reports whether long is the name short with a domain.
func isWithDomain(short, long string) bool {
	return strings.HasPrefix(long, short) && strings.HasPrefix(long[len(short):], ".")
}

// isSlip reports whether a letter was left out, was added, or is another one, or two were swapped.
// Names that differ in a digit are those of two hosts.
func isSlip(a, b string) bool {
	const least = 4
	if min(len(a), len(b)) < least {
		return false
	}
	for a != "" && b != "" && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for a != "" && b != "" && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	if strings.ContainsAny(a+b, "0123456789") {
		return false
	}
	return len(a) <= 1 && len(b) <= 1 || len(a) == 2 && len(b) == 2 && a[0] == b[1] && a[1] == b[0]
}
