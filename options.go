package grid

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// RoutePath is the default path at which [Manager.Handler] is mounted and other
// hosts are dialled.
const RoutePath = "/grid/v1"

// ValidateTokenFn checks a token that another host has sent, and returns why it
// is not valid. Its error is sent to that host, so it should not tell how a
// token is made. It may be called concurrently.
type ValidateTokenFn func(token string) error

// ManagerOptions are the options of [NewManager]. Local and Hosts, AuthFn and
// AuthToken are required; the zero value of every other field is its documented
// default.
type ManagerOptions struct {
	// Local is the base URL of this host, http or https without a path, by
	// which the others know it, such as "https://node1:9000". It must be in
	// Hosts, letter by letter.
	Local string

	// Hosts are the base URLs of all hosts of the cluster, in any order. The
	// list must be the same on all of them.
	Hosts []string

	// AuthFn makes the token that is sent to a host that is dialled. It is
	// called for each attempt, possibly concurrently. Required unless Insecure
	// is set.
	AuthFn func() string

	// AuthToken checks the tokens of hosts that dial this one, in the upgrade
	// request and again in the handshake. Required unless Insecure is set.
	AuthToken ValidateTokenFn

	// Insecure allows AuthFn and AuthToken to be left out. Whoever reaches the
	// route can then call every handler.
	Insecure bool

	// RoutePath is where the other hosts have mounted their Handler. It begins
	// with a slash. The default is the constant of the same name.
	RoutePath string

	// Dialer makes the connections to other hosts. The default is a
	// [net.Dialer].
	Dialer func(ctx context.Context, network, addr string) (net.Conn, error)

	// TLSConfig is used to dial https hosts. The default is the zero
	// configuration: the system's roots, and no client certificate. It is
	// copied.
	TLSConfig *tls.Config

	// BlockConnect, if not nil, holds back dialling and accepting alike until
	// it is closed. Upgrade requests that arrive before wait for it.
	BlockConnect <-chan struct{}

	// Incoming and Outgoing, if not nil, are told the number of bytes whenever
	// some were read from or written to a connection: those of the websockets,
	// without TLS. They are called concurrently and must not block.
	Incoming, Outgoing func(n int64)

	// Logger takes what an operator should know: connections made, lost and
	// refused, panics of handlers. The default is [slog.Default].
	Logger *slog.Logger

	// MaxMessageSize is the largest payload in bytes, in either direction. A
	// larger one is refused on the sender, with [ErrMessageTooLarge]; a peer
	// that sends one loses its connection. The default is 32 MiB.
	MaxMessageSize int

	// MaxHandlers is how many handlers, of single requests and streams
	// together, may be running at a time for each host. A request beyond is
	// refused at once; its caller gets a [RemoteErr] that says so. The default
	// is 16384.
	MaxHandlers int

	// PingInterval is how often a connection is pinged. One that has answered
	// no ping for two intervals, and moves no data either, is given up. The
	// default is 10 s, the protocol's; all hosts should agree.
	PingInterval time.Duration

	// StreamPingInterval is how often an open stream is pinged. The stream is
	// given up by its client after two intervals of silence, by its server
	// after four. The default is 15 s, the protocol's; all hosts must agree.
	StreamPingInterval time.Duration

	// WriteTimeout is how long a write may make no progress at all before the
	// connection is given up. Progress is seen in steps of 64 KiB, so a link
	// must carry that much in the time. The default is 20 s.
	WriteTimeout time.Duration

	// HandshakeTimeout bounds dialling, upgrading and the handshake, each as a
	// whole. The default is 10 s.
	HandshakeTimeout time.Duration
}

const (
	// frameOverhead is what a websocket message may hold beyond the largest
	// payload: its message, and small ones that are merged with it.
	frameOverhead     = 1 << 20
	maxMaxMessageSize = 1<<31 - 1 - frameOverhead
)

// withDefaults checks o and returns a copy of it that is complete.
func (o ManagerOptions) withDefaults() (*ManagerOptions, error) {
	// Names are compared letter by letter, but two that differ in capitals alone
	// are one host.
	hosts := make(map[string]bool, len(o.Hosts))
	for _, h := range o.Hosts {
		if err := checkHost(h); err != nil {
			return nil, fmt.Errorf("grid: host %q: %w", h, err)
		}
		key := strings.ToLower(h)
		if hosts[key] {
			return nil, fmt.Errorf("grid: host %q is given twice", h)
		}
		hosts[key] = true
	}
	switch {
	case o.Local == "":
		return nil, errors.New("grid: ManagerOptions.Local is empty")
	case !slices.Contains(o.Hosts, o.Local):
		return nil, fmt.Errorf("grid: local host %q is not in Hosts %q", o.Local, o.Hosts)
	case o.AuthFn == nil && !o.Insecure:
		return nil, errors.New("grid: ManagerOptions.AuthFn is missing, and Insecure is not set")
	case o.AuthToken == nil && !o.Insecure:
		return nil, errors.New("grid: ManagerOptions.AuthToken is missing, and Insecure is not set")
	case o.RoutePath != "" && !isPath(o.RoutePath):
		return nil, fmt.Errorf("grid: RoutePath %q is no URL path that begins with a slash", o.RoutePath)
	case o.MaxMessageSize < 0 || o.MaxMessageSize > maxMaxMessageSize:
		return nil, fmt.Errorf("grid: MaxMessageSize is %d, must be 1 to %d, or 0 for the default", o.MaxMessageSize, maxMaxMessageSize)
	case o.MaxHandlers < 0:
		return nil, fmt.Errorf("grid: MaxHandlers is %d", o.MaxHandlers)
	}
	for _, d := range []struct {
		name string
		d    *time.Duration
		def  time.Duration
	}{
		{"PingInterval", &o.PingInterval, 10 * time.Second},
		{"StreamPingInterval", &o.StreamPingInterval, 15 * time.Second},
		{"WriteTimeout", &o.WriteTimeout, 20 * time.Second},
		{"HandshakeTimeout", &o.HandshakeTimeout, 10 * time.Second},
	} {
		if *d.d == 0 {
			*d.d = d.def
		}
		if *d.d < time.Millisecond {
			return nil, fmt.Errorf("grid: %s is %v, must be at least 1ms", d.name, *d.d)
		}
	}
	o.Hosts = append([]string(nil), o.Hosts...)
	if o.RoutePath == "" {
		o.RoutePath = RoutePath
	}
	if o.MaxMessageSize == 0 {
		o.MaxMessageSize = 32 << 20
	}
	if o.MaxHandlers == 0 {
		o.MaxHandlers = 16384
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.TLSConfig != nil {
		o.TLSConfig = o.TLSConfig.Clone()
	}
	return &o, nil
}

// checkHost checks the name of a host.
func checkHost(host string) error {
	u, err := url.Parse(host)
	switch {
	case err != nil:
		return fmt.Errorf("unusable URL: %w", errors.Unwrap(err))
	case !strings.HasPrefix(host, "http://") && !strings.HasPrefix(host, "https://"):
		return errors.New("URL must begin with http:// or https://")
	case u.Hostname() == "":
		return errors.New("URL has no host name")
	case u.User != nil:
		return errors.New("URL has a user name")
	case u.Path != "" || u.RawQuery != "" || u.ForceQuery || strings.Contains(host, "#"):
		return errors.New("URL must end after the host and port")
	case strings.Contains(u.Hostname(), ":") && !strings.HasPrefix(u.Host, "["):
		return errors.New("IPv6 address must be in square brackets")
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("port %q must be 1 to 65535", port)
		}
	}
	return nil
}

// isPath tells whether s is a path that needs no escaping in a URL.
func isPath(s string) bool {
	u, err := url.Parse(s)
	return err == nil && strings.HasPrefix(s, "/") && u.EscapedPath() == s && u.Host == ""
}

// dialURL is the websocket URL of a host.
func (o *ManagerOptions) dialURL(host string) string {
	return "ws" + strings.TrimPrefix(host, "http") + o.RoutePath
}

func (o *ManagerOptions) token() string {
	if o.AuthFn == nil {
		return ""
	}
	return o.AuthFn()
}

func (o *ManagerOptions) validate(token string) error {
	if o.AuthToken == nil {
		return nil
	}
	return o.AuthToken(token)
}

// frameLimit is the largest websocket message that is read.
func (o *ManagerOptions) frameLimit() int64 { return int64(o.MaxMessageSize) + frameOverhead }

// isSecure tells whether the transport to a host protects what is sent, so that
// no checksum is needed.
func isSecure(host string) bool {
	return strings.HasPrefix(host, "https://") || strings.HasPrefix(host, "wss://")
}
