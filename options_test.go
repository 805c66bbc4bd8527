package grid

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/memory"
)

const testToken = "token"

// testOptions are for one of hosts, with a silent log.
func testOptions(local string, hosts []string) ManagerOptions {
	return ManagerOptions{
		Local:  local,
		Hosts:  hosts,
		AuthFn: func() string { return testToken },
		AuthToken: func(token string) error {
			if token != testToken {
				return errors.New("wrong token")
			}
			return nil
		},
		Logger: slog.New(slog.DiscardHandler),
	}
}

func TestOptions_BadOnesAreNamed(t *testing.T) {
	const local, other = "http://node1:9000", "http://node2:9000"
	host := func(name string) func(*ManagerOptions) {
		return func(o *ManagerOptions) { o.Hosts = append(o.Hosts, name) }
	}
	for _, c := range []struct {
		name    string
		edit    func(o *ManagerOptions)
		culprit string
	}{
		{"no local host", func(o *ManagerOptions) { o.Local = "" }, "ManagerOptions.Local"},
		{"no hosts", func(o *ManagerOptions) { o.Hosts = nil }, local},
		{"local host not in the list", func(o *ManagerOptions) { o.Local = "http://node3:9000" }, "http://node3:9000"},
		{"local host twice", host(local), local},
		{"another host twice", host(other), other},
		{"a host twice, in capitals", host("http://NODE2:9000"), "http://NODE2:9000"},
		{"empty host", host(""), `host ""`},
		{"host without a scheme", host("node3:9000"), "node3:9000"},
		{"address without a scheme", host("10.0.0.3:9000"), "10.0.0.3:9000"},
		{"websocket scheme", host("ws://node3:9000"), "ws://node3:9000"},
		{"another spelling of a host", host("HTTP://NODE2.:09000"), `host "HTTP://NODE2.:09000" is given twice, also as "http://node2:9000"`},
		{"another spelling of the local host", host("HTTP://NODE1:9000"), `host "HTTP://NODE1:9000" is given twice, also as "http://node1:9000"`},
		{"http in the cluster of a host with https", func(o *ManagerOptions) {
			o.Local = "https://node3:9000"
			o.Hosts = []string{o.Local, other}
		}, `host "http://node2:9000" has http, the local host "https://node3:9000" https, and AllowHTTPHosts is not set`},
		{"IPv6 zone", host("https://[fe80::1%25eth0]:9000"), `zone "eth0"`},
		{"not ASCII", host("https://bücher:9000"), "with xn--"},
		{"unknown scheme", host("ftp://node3:9000"), "ftp://node3:9000"},
		{"scheme alone", host("http://"), "http://"},
		{"port without a name", host("http://:9000"), "http://:9000"},
		{"trailing slash", host("http://node3:9000/"), "http://node3:9000/"},
		{"path", host("http://node3:9000/grid"), "http://node3:9000/grid"},
		{"query", host("http://node3:9000?a=b"), "http://node3:9000?a=b"},
		{"empty query", host("http://node3:9000?"), "http://node3:9000?"},
		{"fragment", host("http://node3:9000#a"), "http://node3:9000#a"},
		{"empty fragment", host("http://node3:9000#"), "http://node3:9000#"},
		{"user", host("http://user@node3:9000"), "http://user@node3:9000"},
		{"no URL", host("http://node3:port"), "http://node3:port"},
		{"port without a number", host("http://node3:"), "http://node3:"},
		{"port 0", host("http://node3:0"), "http://node3:0"},
		{"port too high", host("http://node3:65536"), "http://node3:65536"},
		{"space", host("http://node 3:9000"), "http://node 3:9000"},
		{"bare IPv6", host("http://::1:9000"), "http://::1:9000"},
		{"open bracket", host("http://[::1:9000"), "http://[::1:9000"},
		{"no AuthFn", func(o *ManagerOptions) { o.AuthFn = nil }, "AuthFn"},
		{"no AuthToken", func(o *ManagerOptions) { o.AuthToken = nil }, "AuthToken"},
		{"secret and token", func(o *ManagerOptions) { o.SharedSecret = [][]byte{make([]byte, 16)} }, "SharedSecret, and AuthFn or AuthToken as well"},
		{"no way to know the others", func(o *ManagerOptions) { o.AuthFn, o.AuthToken = nil, nil }, "neither SharedSecret nor AuthFn"},
		{"no key", func(o *ManagerOptions) { o.AuthFn, o.AuthToken, o.SharedSecret = nil, nil, [][]byte{} }, "SharedSecret: no key"},
		{"short key", func(o *ManagerOptions) {
			o.AuthFn, o.AuthToken, o.SharedSecret = nil, nil, [][]byte{make([]byte, 16), make([]byte, 15)}
		}, "SharedSecret: key 2 has 15 bytes"},
		{"route without a slash", func(o *ManagerOptions) { o.RoutePath = "grid" }, `RoutePath "grid"`},
		{"negative message size", func(o *ManagerOptions) { o.MaxMessageSize = -1 }, "MaxMessageSize is -1"},
		{"message size above the protocol's", func(o *ManagerOptions) { o.MaxMessageSize = 1<<31 - 1 }, "MaxMessageSize is 2147483647"},
		{"negative handlers", func(o *ManagerOptions) { o.MaxHandlers = -1 }, "MaxHandlers is -1"},
		{"negative streams", func(o *ManagerOptions) { o.MaxStreams = -1 }, "MaxStreams is -1"},
		{"less for a host than a message", func(o *ManagerOptions) { o.MaxHostBytes = 1 << 20 }, "MaxHostBytes is 1048576, must be 33554432"},
		{"less for a stream than a message", func(o *ManagerOptions) { o.MaxMessageSize, o.MaxStreamBytes = 100, 99 }, "MaxStreamBytes is 99, must be 100"},
		{"tiny queue", func(o *ManagerOptions) { o.MaxQueuedBytes = 4095 }, "MaxQueuedBytes is 4095"},
		{"negative handshakes", func(o *ManagerOptions) { o.MaxHandshakes = -1 }, "MaxHandshakes is -1"},
		{"negative pings", func(o *ManagerOptions) { o.MaxPings = -1 }, "MaxPings is -1"},
		{"negative message timeout", func(o *ManagerOptions) { o.MessageTimeout = -1 }, "MessageTimeout is -1ns"},
		{"negative ping interval", func(o *ManagerOptions) { o.PingInterval = -time.Second }, "PingInterval is -1s"},
		{"tiny ping interval", func(o *ManagerOptions) { o.PingInterval = 1 }, "PingInterval is 1ns"},
		{"negative stream ping interval", func(o *ManagerOptions) { o.StreamPingInterval = -1 }, "StreamPingInterval is -1ns"},
		{"negative write timeout", func(o *ManagerOptions) { o.WriteTimeout = -1 }, "WriteTimeout is -1ns"},
		{"ping interval without end", func(o *ManagerOptions) { o.PingInterval = math.MaxInt64 }, "PingInterval is 2562047h47m16.854775807s, must be 1ms to 720h0m0s"},
		{"stream ping interval without end", func(o *ManagerOptions) { o.StreamPingInterval = math.MaxInt64 }, "StreamPingInterval is 2562047h"},
		{"negative nesting", func(o *ManagerOptions) { o.MaxNesting = -1 }, "MaxNesting is -1"},
		{"negative least pause", func(o *ManagerOptions) { o.MinBackoff = -1 }, "MinBackoff is -1ns"},
		{"negative longest pause", func(o *ManagerOptions) { o.MaxBackoff = -1 }, "MaxBackoff is -1ns"},
		{"pauses the wrong way round", func(o *ManagerOptions) { o.MinBackoff, o.MaxBackoff = time.Minute, time.Second },
			"MinBackoff is 1m0s, must be no more than MaxBackoff, which is 1s"},
		{"negative handshake timeout", func(o *ManagerOptions) { o.HandshakeTimeout = -1 }, "HandshakeTimeout is -1ns"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := testOptions(local, []string{local, other})
			c.edit(&o)
			m, err := NewManager(t.Context(), o)
			if err == nil {
				m.Close()
			}
			require.ErrorContains(t, err, c.culprit)
			require.True(t, strings.HasPrefix(err.Error(), "grid: "), err)
			require.Nil(t, m)
		})
	}
}

func TestOptions_UsableHosts(t *testing.T) {
	hosts := []string{
		"http://node1:9000", "https://node1:9000", "https://node2", "http://localhost", "http://node3.example",
		"http://10.0.0.1:9000", "https://10.0.0.1:9001", "http://[::1]:9000", "https://[2001:db8::1]",
		"http://node_4:65535", "http://xn--bcher-kva.example:1",
	}
	for _, local := range hosts {
		given := testOptions(local, hosts)
		given.AllowHTTPHosts = true
		o, err := given.withDefaults()
		require.NoError(t, err, local)
		require.Equal(t, hosts, o.Hosts)
		require.Equal(t, local, o.Local)
	}
	// Other spellings are returned in the form that they are compared in.
	given := testOptions("HTTP://Node1.:80", []string{"http://NODE1", "http://[2001:DB8::0:1]:09000"})
	o, err := given.withDefaults()
	require.NoError(t, err)
	require.Equal(t, "http://node1", o.Local)
	require.Equal(t, []string{"http://node1", "http://[2001:db8::1]:9000"}, o.Hosts)
	// A cluster of one has nobody to talk to, and is none the worse for it.
	m, err := NewManager(t.Context(), testOptions(hosts[0], hosts[:1]))
	require.NoError(t, err)
	require.Empty(t, m.Targets())
	require.NoError(t, m.Close())
}

func TestOptions_HostsAreDialledAtTheRoute(t *testing.T) {
	for host, url := range map[string]string{
		"http://node1:9000":   "ws://node1:9000/grid/v1",
		"https://node1":       "wss://node1/grid/v1",
		"https://[::1]:9000":  "wss://[::1]:9000/grid/v1",
		"http://http.example": "ws://http.example/grid/v1",
	} {
		o, err := testOptions(host, []string{host}).withDefaults()
		require.NoError(t, err)
		require.Equal(t, url, o.dialURL(host))
		o.RoutePath = "/other"
		require.Equal(t, strings.TrimSuffix(url, RoutePath)+"/other", o.dialURL(host))
	}
}

// bearerOf is the token that a host with such options shows.
func bearerOf(t *testing.T, o *ManagerOptions) string {
	b, err := o.bearer()
	require.NoError(t, err)
	return b
}

// Where HTTP would alter a token, no attempt is made with it, and the reason is not that the other
// side refuses it.
func TestOptions_TokensThatHTTPWouldAlterAreRefused(t *testing.T) {
	for token, want := range map[string]string{
		" secret":                    "white space",
		"secret ":                    "white space",
		"secret\t":                   "white space",
		"sec\nret":                   "control character 0x0a, which HTTP does not carry, at byte 3",
		"secret\r\n":                 "control character 0x0d",
		"sec\x00ret":                 "control character",
		"sec\x7fret":                 "control character 0x7f",
		"sec\tret":                   "control character 0x09",
		strings.Repeat("x", 1<<15+1): "token has 32769 bytes, the limit is 32768",
	} {
		_, err := (&ManagerOptions{AuthFn: func() string { return token }}).bearer()
		require.ErrorContains(t, err, "AuthFn: token ")
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), token)
	}
	for _, token := range []string{"", "secret", "a b", "\xff\x80", `"`, strings.Repeat("x", 1<<15)} {
		got, err := (&ManagerOptions{AuthFn: func() string { return token }}).bearer()
		require.NoError(t, err)
		require.Equal(t, token, got)
	}
}

func TestOptions_InsecureAllowsAuthenticationToBeLeftOut(t *testing.T) {
	local := "http://node1:9000"
	o, err := ManagerOptions{Local: local, Hosts: []string{local}, Insecure: true}.withDefaults()
	require.NoError(t, err)
	require.Empty(t, bearerOf(t, o))
	require.NoError(t, o.validate("anything"))

	// What is given counts all the same.
	given := testOptions(local, []string{local})
	given.Insecure = true
	o, err = given.withDefaults()
	require.NoError(t, err)
	require.Equal(t, testToken, bearerOf(t, o))
	require.Error(t, o.validate("anything"))
}

// The zero value of a field is a default, which its documentation states.
func TestOptions_DefaultsAreTheDocumentedOnes(t *testing.T) {
	local := "http://node1:9000"
	o, err := ManagerOptions{Local: local, Hosts: []string{local}, Insecure: true}.withDefaults()
	require.NoError(t, err)
	docs := optionDocs(t)
	stated := regexp.MustCompile(`default is (\d+)( MiB| KiB| s| ms|)\b`)
	o.MaxHandshakes = o.maxHandshakes(1) // which goes by the hosts that there are
	// These go by the memory that there is.
	available := memory.Available()
	require.EqualValues(t, min(max(available/4, int64(o.MaxMessageSize)), math.MaxInt), o.MaxTotalBytes)
	require.EqualValues(t, max(available>>16, 128), o.MaxTotalHandlers)
	require.Equal(t, o.MaxTotalHandlers-o.MaxTotalHandlers/4, o.MaxTotalStreams)
	byMemory := []string{"MaxTotalBytes", "MaxTotalHandlers", "MaxTotalStreams"}
	v := reflect.ValueOf(*o)
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		doc := docs[name]
		require.NotEmpty(t, doc, "%s is not documented", name)
		if slices.Contains(byMemory, name) {
			require.Contains(t, doc, "The default is", name)
			continue
		}
		var want string
		if m := stated.FindStringSubmatch(doc); m != nil {
			want = m[1] + m[2]
		}
		switch f := v.Field(i).Interface().(type) {
		case int:
			if want == fmt.Sprintf("%d MiB", f>>20) && f%(1<<20) == 0 {
				continue
			}
			if want == fmt.Sprintf("%d KiB", f>>10) && f%(1<<10) == 0 {
				continue
			}
			require.Equal(t, want, fmt.Sprint(f), name)
		case time.Duration:
			if f == 0 {
				require.Contains(t, doc, "by default", name)
				continue
			}
			if want == fmt.Sprintf("%d ms", f.Milliseconds()) {
				continue
			}
			require.Equal(t, want, fmt.Sprintf("%.0f s", f.Seconds()), name)
		default:
			require.Regexp(t, `default|[Rr]equired|must|if not nil|allows`, doc, "%s does not say what its zero value means", name)
		}
	}
	require.Equal(t, RoutePath, o.RoutePath)
	require.Equal(t, "/grid/v1", RoutePath)
	require.Same(t, slog.Default(), o.Logger)
}

// optionDocs are the comments on the fields of ManagerOptions, on one line each.
func optionDocs(t *testing.T) map[string]string {
	file, err := parser.ParseFile(token.NewFileSet(), "options.go", nil, parser.ParseComments)
	require.NoError(t, err)
	docs := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok || spec.Name.Name != "ManagerOptions" {
			return true
		}
		for _, field := range spec.Type.(*ast.StructType).Fields.List {
			for _, name := range field.Names {
				docs[name.Name] = strings.Join(strings.Fields(field.Doc.Text()), " ")
			}
		}
		return false
	})
	return docs
}

func TestOptions_LimitsFollowEachOther(t *testing.T) {
	local := "http://node1:9000"
	o, err := ManagerOptions{Local: local, Hosts: []string{local}, Insecure: true, MaxMessageSize: 256 << 20, MaxHandlers: 10}.withDefaults()
	require.NoError(t, err)
	require.Equal(t, []int{8, min(2<<30, math.MaxInt), 512 << 20, 128 + 2*8}, []int{o.MaxStreams, o.MaxHostBytes, o.MaxStreamBytes, o.MaxPings})
	hosts := []string{local}
	for i := range 1000 {
		hosts = append(hosts, fmt.Sprintf("http://other%d:9000", i))
	}
	o, err = ManagerOptions{Local: local, Hosts: hosts, Insecure: true}.withDefaults()
	require.NoError(t, err)
	require.Equal(t, 2002, o.maxHandshakes(len(hosts)))
}

func TestOptions_AreCopied(t *testing.T) {
	given := testOptions("https://node1:9000", []string{"https://node1:9000", "https://node2:9000"})
	given.TLSConfig = &tls.Config{ServerName: "name"}
	blocked := make(chan struct{})
	given.BlockConnect = blocked
	m, err := NewManager(context.Background(), given)
	require.NoError(t, err)
	defer m.Close()

	given.Hosts[1] = "https://other:9000"
	given.TLSConfig.ServerName = "other"
	given.AuthFn, given.AuthToken = nil, nil
	require.Equal(t, []string{"https://node2:9000"}, m.Targets())
	require.Equal(t, "name", m.opts.TLSConfig.ServerName)
	require.Equal(t, testToken, bearerOf(t, m.opts))

	// What the accessors return is the caller's.
	m.Targets()[0] = "https://other:9000"
	require.Equal(t, []string{"https://node2:9000"}, m.Targets())

	// And the defaults are not written into what was given.
	require.Zero(t, given.MaxMessageSize)
	require.Zero(t, given.PingInterval)
	require.Empty(t, given.RoutePath)
}
