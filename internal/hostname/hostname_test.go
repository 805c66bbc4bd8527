package hostname_test

import (
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/hostname"
)

func TestNormalize_SpellingsOfOneHostAreOne(t *testing.T) {
	for want, spellings := range map[string][]string{
		"http://b.test":          {"http://b.test", "HTTP://b.test", "http://B.Test", "http://b.test:80", "http://b.test:080", "http://b.test.", "http://B.TEST.:80"},
		"https://b.test":         {"https://b.test", "https://b.test:443", "Https://b.test.:443"},
		"http://b.test:443":      {"http://b.test:443", "http://b.test:0443"},
		"https://b.test:80":      {"https://b.test:80"},
		"http://b_1:9000":        {"http://b_1:9000", "http://B_1:09000"},
		"http://10.0.0.1":        {"http://10.0.0.1", "http://10.0.0.1.", "http://[::ffff:10.0.0.1]", "http://[::ffff:a00:1]:80"},
		"http://[::1]:9000":      {"http://[::1]:9000", "http://[0:0:0:0:0:0:0:1]:9000", "http://[0000::0001]:9000"},
		"https://[2001:db8::a]":  {"https://[2001:db8::a]", "https://[2001:DB8:0:0::A]:443", "https://[2001:0db8::000a]"},
		"http://xn--bcher-kva.x": {"http://xn--bcher-kva.x", "http://XN--BCHER-KVA.x"},
	} {
		for _, s := range spellings {
			got, err := hostname.Normalize(s)
			require.NoError(t, err, s)
			require.Equal(t, want, got, s)
		}
	}
}

func TestNormalize_SaysWhatIsWrong(t *testing.T) {
	for host, want := range map[string]string{
		"":                                   "must begin with http:// or https://",
		"b.test:9000":                        "must begin with http:// or https://: write http://b.test:9000, or https://b.test:9000",
		"127.0.0.1:99":                       "must begin with http:// or https://: write http://127.0.0.1:99, or https://127.0.0.1:99",
		"[::1]:99":                           "must begin with http:// or https://: write http://[::1]:99, or https://[::1]:99",
		"//b.test/":                          "must begin with http:// or https://: write http://b.test, or https://b.test",
		"wss://b.test":                       "must begin with http:// or https://: write https://b.test",
		"ws://b.test/":                       "must begin with http:// or https://: write http://b.test",
		"tcp://b.test:9000":                  "must begin with http:// or https://: write http://b.test:9000, or https://b.test:9000",
		"http:/b.test:9000":                  "must begin with http:// or https://: write http://b.test:9000",
		"HTTPS//b.test":                      "must begin with http:// or https://: write https://b.test",
		"http:///b":                          "must end after the host and port: write http://b",
		" https://b.test:9000\n":             "write https://b.test:9000",
		"http:9000":                          "must begin with http:// or https://: write http://http:9000, or https://http:9000",
		"unix:///b":                          "must begin with http:// or https://",
		"http:b.test":                        "must begin with http:// or https://",
		"http://":                            "no host name",
		"http://:80":                         "no host name",
		"http://.":                           "two dots in a row",
		"http://a..b":                        "two dots in a row",
		"http://.b":                          "begins with one",
		"http://b..":                         "two dots in a row",
		"http://user@b":                      "user name",
		"http://b/":                          "must end after the host and port: write http://b",
		"HTTPS://B:443/grid/v1?x":            "must end after the host and port: write https://b",
		"http://b?":                          "must end after the host and port: write http://b",
		"http://b#":                          "must end after the host and port: write http://b",
		"http://b:":                          `port "" must be 1 to 65535`,
		"http://b:0":                         `port "0" must be 1 to 65535`,
		"http://b:65536":                     `port "65536" must be 1 to 65535`,
		"http://b:x":                         "unusable URL",
		"http://bücher.test":                 `letter 'ü', which is not ASCII: write the name as DNS has it, with xn--`,
		"http://b\u3002test":                 "not ASCII",
		"http://\u212ab":                     "not ASCII",
		"http://b%FF":                        "not ASCII",
		"http://a,b":                         "character ','",
		"http://::1":                         "",
		"http://[::1":                        "unusable URL",
		"http://[b.test]":                    "", // by net/url, in some words or other
		"http://[10.0.0.1]":                  "",
		"http://[fe80::1%25eth0]:9000":       `zone "eth0"`,
		"http://" + strings.Repeat("a", 254): "host name has 254 bytes, the limit is 253",
	} {
		got, err := hostname.Normalize(host)
		require.ErrorContains(t, err, want, host)
		require.Empty(t, got)
		require.Equal(t, strings.Contains(want, "write http"), strings.Contains(err.Error(), "write http"), err)
	}
}

// A normal form is its own, can be dialled, and is that of the host in capitals or with its default
// port.
func FuzzNormalize(f *testing.F) {
	for _, s := range []string{"http://b.test:80", "https://[::FFFF:10.0.0.1]:443", "http://[fe80::1%25a]", "http://b.test.", "HTTP://x_y:080"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, host string) {
		normal, err := hostname.Normalize(host)
		if err != nil {
			return
		}
		for _, same := range []string{normal, strings.ToUpper(normal)} {
			again, err := hostname.Normalize(same)
			require.NoError(t, err, same)
			require.Equal(t, normal, again)
		}
		u, err := url.Parse(normal)
		require.NoError(t, err)
		require.NotEmpty(t, u.Hostname())
		require.Equal(t, normal, u.Scheme+"://"+u.Host)
		if u.Port() == "" {
			again, err := hostname.Normalize(normal + map[string]string{"http": ":80", "https": ":443"}[u.Scheme])
			require.NoError(t, err)
			require.Equal(t, normal, again)
		}
		if strings.HasPrefix(u.Host, "[") {
			require.True(t, netip.MustParseAddr(u.Hostname()).Is6())
		}
	})
}
