package hostname_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/hostname"
)

func TestSuggest_FindsWhatIsMeant(t *testing.T) {
	hosts := []string{
		"http://plain:9000", "https://disk-a.example.com:9000", "https://disk-b.example.com:9000", "https://default",
		"http://10.0.0.1:9000", "http://[::1]:9000", "http://both:9000", "https://both:9001", "http://abc",
	}
	for host, want := range map[string]string{
		"https://plain:9000":             "http://plain:9000",
		"plain:9000":                     "http://plain:9000",
		"PLAIN:9000":                     "http://plain:9000",
		"http://plain":                   "http://plain:9000",
		"http://plain:9001":              "http://plain:9000",
		"plain":                          "http://plain:9000",
		"https://plain":                  "http://plain:9000",
		"http://default":                 "https://default",
		"https://default:9000":           "https://default",
		"http://10.0.0.1":                "http://10.0.0.1:9000",
		"https://[0::1]:9000":            "http://[::1]:9000",
		"http://[::1]":                   "http://[::1]:9000",
		"https://both:9000":              "http://both:9000",
		"http://both:9001":               "https://both:9001",
		"https://both:9002":              "https://both:9001",
		"https://disk-a:9000":            "https://disk-a.example.com:9000",
		"http://disk-b":                  "https://disk-b.example.com:9000",
		"http://plain.example.com:9000":  "http://plain:9000",
		"http://palin:9000":              "http://plain:9000",
		"http://plan:9000":               "http://plain:9000",
		"http://plaine:9000":             "http://plain:9000",
		"http://plaim:9000":              "http://plain:9000",
		"https://disk-b.exmaple.com":     "https://disk-b.example.com:9000",
		"https://diskb.example.com:9000": "https://disk-b.example.com:9000",

		"http://plaimm:9000":  "",
		"http://10.0.0.2":     "",
		"http://[::2]:9000":   "",
		"http://plain1:9000":  "",
		"http://ab":           "",
		"http://example.com":  "",
		"http://a..b":         "",
		"http://plain:9000/x": "",
		"":                    "",
		"http://":             "",
		"\xff":                "",
	} {
		require.Equal(t, want, hostname.Suggest(host, hosts), host)
	}
	require.Empty(t, hostname.Suggest("http://plain", nil))
}
