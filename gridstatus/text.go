package gridstatus

import (
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
)

// namesOf makes names that are as short as they can be without two being the same: without what the
// base URLs of all hosts have in common.
func namesOf(m *Mesh) map[string]string {
	urls := make([]*url.URL, len(m.Nodes))
	for i, n := range m.Nodes {
		u, err := url.Parse(n.Host)
		if err != nil || u.Host == "" {
			u = nil
		}
		urls[i] = u
	}
	scheme := common(urls, func(u *url.URL) string { return u.Scheme + "://" })
	port := common(urls, func(u *url.URL) string { return ":" + u.Port() })
	domain := commonDomain(urls)
	names := make(map[string]string, len(m.Nodes))
	for _, n := range m.Nodes {
		name := strings.TrimPrefix(n.Host, scheme)
		host, rest := name, ""
		if i := strings.LastIndexByte(name, ':'); i >= 0 && !strings.HasSuffix(name, "]") {
			host, rest = name[:i], name[i:]
		}
		names[n.Host] = strings.TrimSuffix(host, domain) + strings.TrimSuffix(rest, port)
	}
	return names
}

// common is a part that all have in common; empty if there is none.
func common(urls []*url.URL, part func(*url.URL) string) string {
	all := ""
	for i, u := range urls {
		if u == nil || i > 0 && part(u) != all {
			return ""
		}
		all = part(u)
	}
	return all
}

// commonDomain is the longest that all hosts are in, with its leading dot.
func commonDomain(urls []*url.URL) string {
	domain := ""
	for i, u := range urls {
		if u == nil || net.ParseIP(u.Hostname()) != nil {
			return ""
		}
		_, own, _ := strings.Cut(u.Hostname(), ".")
		own = "." + own
		if i == 0 {
			domain = own
		}
		for !strings.HasSuffix(own, domain) {
			_, shorter, found := strings.Cut(domain[1:], ".")
			if !found {
				return ""
			}
			domain = "." + shorter
		}
	}
	if domain == "." {
		return ""
	}
	return domain
}

// shortTime has two or three digits.
func shortTime(d time.Duration) string {
	switch us := float64(d) / 1e3; {
	case us < 10:
		return fmt.Sprintf("%.1f µs", us)
	case us < 1000:
		return fmt.Sprintf("%.0f µs", us)
	case us < 10_000:
		return fmt.Sprintf("%.1f ms", us/1e3)
	case us < 1_000_000:
		return fmt.Sprintf("%.0f ms", us/1e3)
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// ago is for people.
func ago(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", max(d, 0).Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.0f h", d.Hours())
	}
	return fmt.Sprintf("%.0f days", d.Hours()/24)
}

func byteText(n float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for ; n >= 1000 && i < len(units)-1; i++ {
		n /= 1024
	}
	if i == 0 || n >= 100 {
		return fmt.Sprintf("%.0f %s", n, units[i])
	}
	return fmt.Sprintf("%.1f %s", n, units[i])
}

func countText(n float64) string {
	switch {
	case n > 0 && n < 10:
		return fmt.Sprintf("%.1f", n)
	case n < 1000:
		return fmt.Sprintf("%.0f", n)
	case n < 100_000:
		return fmt.Sprintf("%.1f k", n/1e3)
	case n < 1_000_000:
		return fmt.Sprintf("%.0f k", n/1e3)
	}
	return fmt.Sprintf("%.1f M", n/1e6)
}
