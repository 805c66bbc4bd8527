package grid

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gridrpc/grid/internal/backoff"
	"github.com/gridrpc/grid/internal/memory"
)

// RoutePath is the default path at which [Manager.Handler] is mounted and other hosts are dialled.
const RoutePath = "/grid/v1"

// ValidateTokenFn checks a token that another host has sent, and returns why it is not valid. Its
// error is logged, and in the handshake it is sent to that host, so it should not tell how a token
// is made. It may be called concurrently.
type ValidateTokenFn func(token string) error

// ManagerOptions are the options of [NewManager]. Local and Hosts are required, and a way to tell
// the other hosts from strangers: SharedSecret, or AuthFn and AuthToken. The zero value of every
// other field is its documented default.
//
// What is a number has bounds, which its documentation names, and [NewManager] refuses what is
// beyond them. Where it names no upper one, any is allowed: [math.MaxInt] is no limit.
type ManagerOptions struct {
	// Local is the base URL of this host, http or https without a path, by which the others know
	// it, such as "https://node1:9000". It must be in Hosts.
	//
	// Names of hosts are compared in one form, in which they are also returned: in lower case,
	// without the default port of their scheme or a dot at the end, IPv6 addresses in their
	// shortest form. A name that is not ASCII is written as DNS has it, with xn--; an IPv6 address
	// has no zone.
	Local string

	// Hosts are the base URLs of all hosts of the cluster, in any order. The list must be the same
	// on all of them, but for hosts that AcceptHost takes in. It can be changed later, see
	// [Manager.SetHosts]. Where Local is https they are https as well, unless AllowHTTPHosts is set.
	Hosts []string

	// AllowHTTPHosts allows hosts with http in the cluster of a host with https: what is said to
	// them can be read and changed on its way, and what they say as well.
	AllowHTTPHosts bool

	// LocalCalls makes [Manager.Connection] of the local host one that calls this Manager's own
	// handlers, without a socket, but otherwise like all others: with the same limits, deadlines
	// and errors. By default it is nil, so that calls to it return [ErrDisconnected].
	LocalCalls bool

	// SharedSecret are keys by which the hosts prove to each other that they belong together,
	// without sending them: the side that dials before it may call anything, and the side that was
	// dialled before it is sent anything. Each proof is an HMAC-SHA-256 over the names of both
	// hosts and over what the other side has drawn for it, so it is of no use to anybody else, at
	// another host or a second time. All hosts of a cluster must have SharedSecret, or none.
	//
	// The first key signs; what is signed with any of them is accepted. To change the key without
	// downtime, go through three configurations on all hosts: (old, new), then (new, old), then
	// (new); see [Manager.SetSharedSecret]. A key has 16 bytes or more, from a good source of
	// randomness; the slices are copied.
	//
	// It proves that the other side knows the key, not which of the hosts it is: see VerifyPeer.
	// It protects what is said afterwards from nobody, so use https where the network can't be
	// trusted. The clocks of two hosts must not be more than 5 minutes apart.
	SharedSecret [][]byte

	// AuthFn makes the bearer token that is sent to a host that is dialled, or asked to dial this
	// one. It is required where there is no SharedSecret, unless Insecure is set. It is called once
	// for each attempt, for different hosts concurrently; the token goes with the upgrade request and
	// with the handshake. It must be text that HTTP carries as it is: without control characters,
	// without white space at its ends, of 32 KiB at most; with any other the attempt fails, and so it
	// does where AuthFn panics, or takes longer than HandshakeTimeout.
	//
	// A bearer token is good for whoever has it. Whoever answers at the address of a host gets
	// this one's, and can use it at any host that accepts it; and the token does not prove to the
	// dialler who has answered. Use https, whose certificates do.
	AuthFn func() string

	// UpgradeHeader, if not nil, makes headers of the request by which a host is dialled, or asked to
	// dial this one, beside those of the protocol: for a proxy on the way, or for a peer of version 1
	// that asks for some (protocol section 1). target is the base URL of that host, in the form in
	// which names are compared. It is called as AuthFn is; what it returns, nil for none, is copied.
	//
	// Names and values must be what HTTP carries as it is: values without control characters, and
	// without white space at their ends. All together have 32 KiB at most, with 4 bytes more for each
	// line. What is for one connection can't be set (Connection, Upgrade, Transfer-Encoding and the
	// like), nor Authorization, Host, Content-Length, Expect, and what begins with Sec-WebSocket- or
	// Grid-. With any other header the attempt fails, and the error names it.
	UpgradeHeader func(target string) http.Header

	// AuthToken checks the tokens of hosts that dial this one, in the upgrade request and again in
	// the handshake. It is required like AuthFn. One of more than 32 KiB is refused without it. Where
	// it panics, or takes longer than HandshakeTimeout, the host is refused.
	AuthToken ValidateTokenFn

	// VerifyPeer, if not nil, has to agree to each host that dials this one: it is told the name
	// that the host claims, which is one of Hosts or one that AcceptHost may take in, and the upgrade
	// request with which it came, whose TLS has the client's certificates; or, of a host that is to be
	// dialled and asks for it, that request (protocol section 10). Its token or proof is valid by
	// then, but these may not tell the hosts apart. An error refuses it, and is sent to it. It may be
	// called concurrently. A panic, or HandshakeTimeout without an answer, refuses the host as well;
	// while a call hangs all others of that host are refused. See [VerifyTLSHost].
	VerifyPeer func(host string, r *http.Request) error

	// AcceptHost, if not nil, is asked about a host that is not among the hosts, and has dialled this
	// one or asked to be dialled (protocol sections 3 and 10). By default such a host is refused.
	// Where AcceptHost returns nil the host is added, as by [Manager.AddHost], and let in. An error
	// refuses it, and is sent to it; there its errors are [ErrNotAccepted]. A host that was added
	// stays until it is removed (see ForgetAfter), and is asked about again if it comes back after
	// that.
	//
	// host is the name that it claims, in the form in which names are compared, and r the request with
	// which it came. Its token or proof is valid by then, and VerifyPeer has agreed, if there is one.
	// Without VerifyPeer whoever has the key, or a token, may claim any name.
	//
	// AcceptHost is not asked about the local host, a text that is no name of a host, a host with http
	// beside https (see AllowHTTPHosts), and any host beyond MaxHosts. It may be called concurrently:
	// for each name once at a time, and for half of MaxHandshakes in all; other unknown hosts are
	// refused meanwhile. ctx ends with HandshakeTimeout, and with the Manager. A panic, or
	// HandshakeTimeout without an answer, refuses the host, which stays refused while the call hangs.
	// AcceptHost may call the Manager.
	AcceptHost func(ctx context.Context, host string, r *http.Request) error

	// Insecure allows SharedSecret, AuthFn and AuthToken to be left out. Whoever reaches the route
	// can then call every handler.
	Insecure bool

	// RoutePath is where the other hosts have mounted their Handler. It begins with a slash. The
	// default is the constant of the same name.
	RoutePath string

	// Dialer makes the connections to other hosts, for different ones concurrently. The default is a
	// [net.Dialer]. They need not have deadlines, as those through an SSH tunnel: then they are closed
	// in time instead. One that wraps a TCP connection says so by a method NetConn() net.Conn, or
	// SyscallConn, so that that is tuned. Where Dialer panics the attempt fails, and where it has not
	// returned within HandshakeTimeout, after which its ctx has ended: what it returns later is
	// closed.
	Dialer func(ctx context.Context, network, addr string) (net.Conn, error)

	// TLSConfig is used to dial https hosts. The default is the zero configuration: the system's
	// roots, and no client certificate. It is copied.
	TLSConfig *tls.Config

	// Register, if not nil, registers the handlers of this host. [NewManager] calls it once, on its own
	// goroutine, before anything connects: so no other host can call a handler that is not there yet,
	// which it could before the first line behind NewManager. Its error is that of NewManager, and so is
	// a panic. Then the Manager is closed.
	//
	// The Manager is complete, but for its links: it has all connections, and [Manager.AddHost] and the
	// like work. Calls return [ErrDisconnected], those to the local host included. Nothing may wait for
	// a link in Register itself, as there is none before it has returned; goroutines that it starts may.
	// Upgrade requests that arrive before wait for it.
	Register func(m *Manager) error

	// BlockConnect, if not nil, holds back dialling, asking to be dialled and accepting until it is
	// closed: after Register, for a host that is to connect later than it is made. Upgrade requests
	// that arrive before wait for it.
	BlockConnect <-chan struct{}

	// Incoming and Outgoing, if not nil, are told how many bytes were read from and written to all
	// connections since they last were: those of the websockets, without TLS. It is never 0, and
	// the sums are exact. They are called within a second, and when a connection ends, on
	// goroutines of their own: each once at a time, and one beside the other. While one blocks,
	// what it is to be told adds up; Close waits for it no longer than a second.
	Incoming, Outgoing func(n int64)

	// HandlerNames are what handlers are called where people read it: in errors, logs, metrics and
	// traces. By default, and without a name, a handler is called by its ID. HandlerOptions may have
	// other names for those under a subroute.
	HandlerNames map[HandlerID]string

	// HandlerOptions are options of single handlers, by ID and subroute: a name, how many calls may
	// be running, and for how long. What is zero there is taken from the subroute above: for a
	// handler under "pool1/disk2" from "pool1", and then from its ID without a subroute. The map is
	// copied. By default there are no such options.
	HandlerOptions map[HandlerKey]HandlerOptions

	// CallInterceptors are told of the requests and streams that this host begins, the first one
	// first, and of their ends in the reverse order. The default is none, which costs nothing.
	CallInterceptors []CallInterceptor

	// ServeInterceptors are told in the same way of those that this host serves. The default is
	// none.
	ServeInterceptors []ServeInterceptor

	// OnStateChange, if not nil, is told of every change of the state of a connection to another
	// host, in their order and one at a time, on a goroutine of its own. Close waits for it no
	// longer than a second, and not at all where it calls that itself.
	//
	// While it does not keep up, changes wait: of each host 16, of which the last then stands for
	// all that come after it as well, and says by its Missed for how many. Once 1024 wait, of all
	// hosts together, those of a host that is removed become one, or none if nothing was told of
	// the host yet. ManagerStats has StateChangesMissed.
	OnStateChange func(StateChange)

	// Logger takes what an operator should know: connections made, lost and refused, panics of
	// handlers. Its handler is called on a goroutine of its own, one line at a time and in their
	// order. 1024 lines wait while it does not keep up; those beyond are dropped, and counted by a
	// line when it goes on. So is a line with which it panics. The default is [slog.Default].
	Logger *slog.Logger

	// MaxMessageSize is the largest payload in bytes, in either direction. A larger one is refused
	// on the sender, with [ErrMessageTooLarge], and so is one above that of the host that it is
	// for: the two tell each other in the handshake (protocol section 3). Hosts of version 1 do not,
	// so it should not be less here than there: one that sends more loses its connection. From 1 to
	// 2146435071 bytes, which is 2 GiB less 1 MiB and a byte; the default is 32 MiB.
	MaxMessageSize int

	// MaxNesting is how deep arrays and maps may be nested in what typed handlers and calls decode.
	// Before anything of a payload is decoded it is looked through: one that is nested deeper, or in
	// which a header claims more than there can be, is refused with an error that says where. From 1
	// to 100000, as the code that decodes calls itself, and the stack of a goroutine has an end; the
	// default is 1000.
	MaxNesting int

	// MaxHandlers is how many handlers, of single requests and streams together, may be running at
	// a time for each host, those of callers that have gone included. A call beyond is refused at
	// once; its caller gets [ErrOverloaded]. At least 1; the default is 16384.
	MaxHandlers int

	// MaxStreams is how many of them may be streams. A stream beyond is refused like a call beyond
	// MaxHandlers. At least 1; the default is 12288: three quarters of MaxHandlers, so that streams
	// leave room for requests.
	MaxStreams int

	// MaxHostBytes is how many bytes of payloads may be kept here for each host: of those of
	// requests and streams whose handler is running, of messages that wait in streams, of what has
	// arrived only in part, and of answers that wait to be sent, or go in fragments. What would go
	// beyond is refused, and its caller gets [ErrOverloaded]: a request, a stream, or an answer
	// that would have to wait; a stream's message ends its stream with that error on both sides.
	// Each message that waits counts 168 bytes more, for what is around it. The metadata of a call
	// counts as well, while its handler can ask for it, and four times where there are
	// ServeInterceptors. What a typed handler is given counts four times, as decoded it takes more
	// than it did on the wire, but for [*Bytes]; an [*MSS], [*URLValues] or [*Array] what it takes
	// in memory if that is more, while [*JSON] and generated code are not looked into. The windows
	// of streams do not grow to where they might fill more than half of the limit, or leave no room
	// for a message of MaxMessageSize. At least MaxMessageSize; the default is 256 MiB, or eight
	// times MaxMessageSize if that is more.
	MaxHostBytes int

	// MaxStreamBytes is how many bytes may wait in a stream for its consumer, in each direction,
	// those in the channel of a handler included. A message beyond ends the stream with
	// [ErrOverloaded] on both sides; where nothing else waits, one of any size is taken. Each
	// counts 168 bytes more. The number of messages is bounded by the stream's capacities, or 65536
	// where a server does not tell its own (protocol section 8), and windows do not grow to where
	// they leave no room for one of MaxMessageSize, so it takes large messages to get there; only a
	// version 1 peer's capacity that is not known here bounds none (section 5). At least
	// MaxMessageSize; the default is 64 MiB, or twice MaxMessageSize if that is more.
	MaxStreamBytes int

	// MaxTotalBytes is how many bytes may be kept for all hosts together, counted like
	// MaxHostBytes. Half of it is divided among the hosts, as many as there are: that much each has
	// whatever the others do. Beyond it a host may have as much as that leaves for the others, of
	// the other half: so one host that takes all it can does not starve the rest. What would go
	// beyond is refused as for MaxHostBytes; a single payload is taken where no host has more than
	// its own. At least MaxMessageSize. The default is a quarter of the memory that the process may
	// use, as NewManager finds it: GOMEMLIMIT, the limit of its control group, or what the machine
	// has, whichever is least.
	MaxTotalBytes int

	// MaxTotalHandlers is how many handlers, streams included, may be running for all hosts
	// together, shared like MaxTotalBytes. A call beyond is refused like one beyond MaxHandlers. At
	// least 1. The default is one for each 64 KiB of the memory that the process may use: 131072 for
	// 8 GiB.
	MaxTotalHandlers int

	// MaxTotalStreams is how many of them may be streams. At least 1. The default is three quarters
	// of MaxTotalHandlers.
	MaxTotalStreams int

	// MaxQueuedBytes is how many bytes may wait to be sent to each host. Those who send more wait
	// for room, for as long as their context lets them, in the order in which they came; but a call
	// that has waited for an eighth of the time to its deadline goes behind all others. An answer
	// whose caller's deadline has passed is not sent. A single larger message is taken when nothing
	// else waits. Payloads above 64 KiB have 128 KiB more of their own, in which the shorter ones
	// go first, and what is owed without waiting (refusals, acks) 4 MiB: a peer that makes us owe
	// more, and does not read it, loses its connection. At least 4 KiB; the default is 256 KiB.
	MaxQueuedBytes int

	// MaxHandshakes is how many hosts may be on their way in, or asking to be dialled, at a time:
	// from the upgrade request on, while BlockConnect holds them back, until the handshake is
	// complete. Where there are more, the oldest gives way: it is closed, or answered 503 if it was
	// not upgraded yet. Most do not last longer than a round trip, so it takes a flood to push out
	// a host in earnest. At least 1; the default is 128, or twice the number of hosts if that is
	// more.
	MaxHandshakes int

	// MaxHosts bounds the hosts that AcceptHost takes in: once there are as many hosts, the local one
	// among them, further unknown ones are refused without it. So names that somebody makes up do not
	// add up without end. Those of Hosts, AddHost and SetHosts count, but are not refused. At least 1;
	// the default is 4096.
	MaxHosts int

	// ForgetAfter is how long a host that AcceptHost has taken in may be without a link: then it is
	// removed, as by [Manager.RemoveHost], within an eighth of that more, or a minute if that is less.
	// If it comes back AcceptHost is asked about it again. One that was given to [Manager.AddHost] or
	// [Manager.SetHosts] since stays. It should be longer than a restart of a host takes, and than a
	// cut of the network that is to be survived: what this host dials it does not look for any more.
	// From 1 ms to 30 days; by default they stay until they are removed.
	ForgetAfter time.Duration

	// MaxPings is how many pings of each host are answered in a second, those of its connection and
	// of its streams together. The other host is told in the handshake, and does not send more, so
	// its streams are pinged less often where they are too many. Further ones are dropped: a peer
	// of version 1 that hears of none any more gives the stream or the connection up. At least 2,
	// one for the connection and one for a stream; the default is 24704: 128 and twice MaxStreams.
	MaxPings int

	// RequestTimeout is the deadline of a single request whose context has none. It travels along
	// (protocol section 4), and after it the error is [context.DeadlineExceeded], as precisely as
	// that of [Connection.WithTimeout], which is for single calls. From 1 ms to 30 days; the default
	// is 60 s.
	RequestTimeout time.Duration

	// PingInterval is how often a connection is pinged. One that leaves a ping without an answer for
	// two intervals, and moves no large message either, is given up: so a dead host is noticed
	// within three, and at most a second. It need not be the same on all hosts; the side with the
	// lesser one pings (protocol section 8, confirmed pings). From 1 ms to 30 days; the default is
	// 10 s, the protocol's.
	PingInterval time.Duration

	// StreamPingInterval is how often an open stream is pinged. The stream is given up by its client
	// when it has heard nothing for two intervals since a ping, by its server after four of silence.
	// Where two hosts differ the lesser holds for both, but for what is below 1 s, in place of which
	// 1 s holds, or the greater of the two if that is less: they tell each other in the handshake
	// (protocol section 3), which hosts of version 1 do not. From 1 ms to 30 days; the default is
	// 15 s, the protocol's.
	StreamPingInterval time.Duration

	// WriteTimeout is how long a write may make no progress at all before the connection is given
	// up. Progress is seen in steps of 64 KiB, so a link must carry that much in the time. From 1 ms
	// to 30 days; the default is 20 s.
	WriteTimeout time.Duration

	// MessageTimeout is how long a message may take to arrive, from its first byte to its last,
	// also where it comes in fragments: so a link must carry MaxMessageSize in that time, or as
	// many as are sent at once. It is looked at every second, or more often with short intervals.
	// Where it has not, the connection is given up, or of a message in fragments its call or
	// stream. From 1 ms to 30 days; the default is 300 s.
	MessageTimeout time.Duration

	// HandshakeTimeout bounds dialling, upgrading and the handshake, as a whole: a peer that is not
	// done by then is closed, and the error says how far it has come. What comes before the upgrade
	// request is complete is for the HTTP server to bound, by its ReadHeaderTimeout.
	//
	// Functions of the application's that have not returned by then are left behind. Of AuthFn,
	// UpgradeHeader, Dialer and the functions of TLSConfig that is one for each host, which is neither
	// dialled nor asked to dial before it has returned; of AuthToken, VerifyPeer, AcceptHost and those
	// of Handler there are MaxHandshakes at most, whose places they take. From 1 ms to 30 days; the
	// default is 10 s.
	HandshakeTimeout time.Duration

	// MinBackoff is about the first pause between two attempts to dial a host, and what further
	// ones double from, each with up to a half more at random. The pauses begin anew after a
	// connection that lived, and when the host asks to be dialled (protocol section 10). From 1 ms
	// to 30 days, and no more than MaxBackoff; the default is 50 ms, or MaxBackoff if that is less.
	MinBackoff time.Duration

	// MaxBackoff is the longest of these pauses. A call, or WaitForConnect, that finds no
	// connection ends the present one, at most once a second for each host. From 1 ms to 30 days;
	// the default is 5 s, or MinBackoff if that is more.
	MaxBackoff time.Duration
}

const (
	// frameOverhead is what a websocket message may hold beyond the largest payload: its message,
	// and small ones that are merged with it.
	frameOverhead     = 1 << 20
	maxMaxMessageSize = 1<<31 - 1 - frameOverhead
	defaultNesting    = 1000
	// handlerMemory is the memory of the process that there should be, in bytes, for each handler
	// that may run. One takes a fraction of that; the rest is for what it works on.
	handlerMemory = 64 << 10
	// maxMaxNesting is what msgp allows in the values that it decodes by itself. It leaves each level
	// 2500 bytes of the stack that a goroutine may have on 32 bits.
	maxMaxNesting = 100_000
	minMaxPings   = 2
	minQueued     = 4 << 10
	minInterval   = time.Millisecond
	// maxInterval is a month: some of these travel as milliseconds in 32 bits, and they are
	// multiplied.
	maxInterval = 30 * 24 * time.Hour
)

// withDefaults checks o and returns a copy of it that is complete.
func (o ManagerOptions) withDefaults() (*ManagerOptions, error) {
	if o.Local == "" {
		return nil, errors.New("grid: ManagerOptions.Local is empty")
	}
	var err error
	if o.Local, err = normalHost(o.Local); err != nil {
		return nil, err
	}
	if o.Hosts, err = o.normalHosts(o.Hosts); err != nil {
		return nil, err
	}
	switch {
	case o.SharedSecret != nil && (o.AuthFn != nil || o.AuthToken != nil):
		return nil, errors.New("grid: ManagerOptions has SharedSecret, and AuthFn or AuthToken as well")
	case o.SharedSecret != nil || o.Insecure:
	case o.AuthFn == nil && o.AuthToken == nil:
		return nil, errors.New("grid: ManagerOptions has neither SharedSecret nor AuthFn and AuthToken, and Insecure is not set")
	case o.AuthFn == nil:
		return nil, errors.New("grid: ManagerOptions.AuthFn is missing, and Insecure is not set")
	case o.AuthToken == nil:
		return nil, errors.New("grid: ManagerOptions.AuthToken is missing, and Insecure is not set")
	}
	if o.RoutePath != "" && !isPath(o.RoutePath) {
		return nil, fmt.Errorf("grid: RoutePath %q is no URL path that begins with a slash", o.RoutePath)
	}
	if err := o.limits(); err != nil {
		return nil, err
	}
	minBackoff, maxBackoff := backoff.Min, backoff.Max
	if isInterval(o.MaxBackoff) {
		minBackoff = min(minBackoff, o.MaxBackoff)
	}
	if isInterval(o.MinBackoff) {
		maxBackoff = max(maxBackoff, o.MinBackoff)
	}
	for _, d := range []struct {
		name string
		d    *time.Duration
		def  time.Duration
	}{
		{"RequestTimeout", &o.RequestTimeout, time.Minute},
		{"PingInterval", &o.PingInterval, 10 * time.Second},
		{"StreamPingInterval", &o.StreamPingInterval, 15 * time.Second},
		{"WriteTimeout", &o.WriteTimeout, 20 * time.Second},
		{"MessageTimeout", &o.MessageTimeout, 5 * time.Minute},
		{"HandshakeTimeout", &o.HandshakeTimeout, 10 * time.Second},
		{"MinBackoff", &o.MinBackoff, minBackoff},
		{"MaxBackoff", &o.MaxBackoff, maxBackoff},
	} {
		if *d.d == 0 {
			*d.d = d.def
		}
		if !isInterval(*d.d) {
			return nil, fmt.Errorf("grid: %s is %v, must be %v to %v, or 0 for the default", d.name, *d.d, minInterval, maxInterval)
		}
	}
	if o.ForgetAfter != 0 && !isInterval(o.ForgetAfter) {
		return nil, fmt.Errorf("grid: ForgetAfter is %v, must be %v to %v, or 0 for the default", o.ForgetAfter, minInterval, maxInterval)
	}
	if o.MinBackoff > o.MaxBackoff {
		return nil, fmt.Errorf("grid: MinBackoff is %v, must be no more than MaxBackoff, which is %v", o.MinBackoff, o.MaxBackoff)
	}
	if err := o.checkHandlerOptions(); err != nil {
		return nil, err
	}
	o.HandlerNames = maps.Clone(o.HandlerNames)
	o.HandlerOptions = maps.Clone(o.HandlerOptions)
	o.CallInterceptors = slices.Clone(o.CallInterceptors)
	o.ServeInterceptors = slices.Clone(o.ServeInterceptors)
	if o.RoutePath == "" {
		o.RoutePath = RoutePath
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.TLSConfig != nil {
		o.TLSConfig = o.TLSConfig.Clone()
	}
	return &o, nil
}

func isInterval(d time.Duration) bool { return minInterval <= d && d <= maxInterval }

// limits checks those that are numbers, and fills in their defaults.
func (o *ManagerOptions) limits() (err error) {
	set := func(name string, n *int, least, most int, def int64) {
		switch {
		case *n == 0:
			*n = int(min(def, math.MaxInt))
		case err == nil && (*n < least || *n > most):
			err = fmt.Errorf("grid: %s is %d, must be %d to %d, or 0 for the default", name, *n, least, most)
		}
	}
	set("MaxMessageSize", &o.MaxMessageSize, 1, maxMaxMessageSize, 32<<20)
	set("MaxNesting", &o.MaxNesting, 1, maxMaxNesting, defaultNesting)
	set("MaxHandlers", &o.MaxHandlers, 1, math.MaxInt, 16384)
	set("MaxStreams", &o.MaxStreams, 1, math.MaxInt, int64(o.MaxHandlers-o.MaxHandlers/4))
	size := o.MaxMessageSize
	set("MaxHostBytes", &o.MaxHostBytes, size, math.MaxInt, max(256<<20, 8*int64(size)))
	set("MaxStreamBytes", &o.MaxStreamBytes, size, math.MaxInt, max(64<<20, 2*int64(size)))
	available := memory.Available()
	set("MaxTotalBytes", &o.MaxTotalBytes, size, math.MaxInt, max(available/4, int64(size)))
	set("MaxTotalHandlers", &o.MaxTotalHandlers, 1, math.MaxInt, max(available/handlerMemory, 128))
	set("MaxTotalStreams", &o.MaxTotalStreams, 1, math.MaxInt, int64(o.MaxTotalHandlers-o.MaxTotalHandlers/4))
	set("MaxQueuedBytes", &o.MaxQueuedBytes, minQueued, math.MaxInt, pendingLimit)
	if o.MaxHandshakes != 0 { // else it depends on the hosts
		set("MaxHandshakes", &o.MaxHandshakes, 1, math.MaxInt, 0)
	}
	set("MaxHosts", &o.MaxHosts, 1, math.MaxInt, 4096)
	set("MaxPings", &o.MaxPings, minMaxPings, math.MaxInt, 128+2*int64(min(o.MaxStreams, 1<<30)))
	return err
}

// maxHandshakes is MaxHandshakes, or its default for so many hosts.
func (o *ManagerOptions) maxHandshakes(hosts int) int {
	return cmp.Or(o.MaxHandshakes, max(128, 2*hosts))
}

// isPath reports whether s is a path that needs no escaping in a URL.
func isPath(s string) bool {
	u, err := url.Parse(s)
	return err == nil && strings.HasPrefix(s, "/") && u.EscapedPath() == s && u.Host == ""
}

// dialURL is the websocket URL of a host.
func (o *ManagerOptions) dialURL(host string) string {
	return "ws" + strings.TrimPrefix(host, "http") + o.RoutePath
}

// frameLimit is the largest websocket message that is read.
func (o *ManagerOptions) frameLimit() int64 { return int64(o.MaxMessageSize) + frameOverhead }

// isSecure reports whether the transport to a host protects what is sent, so that no checksum is
// needed.
func isSecure(host string) bool {
	return strings.HasPrefix(host, "https://")
}
