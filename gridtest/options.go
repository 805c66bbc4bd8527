package gridtest

import (
	"net/http"

	"github.com/gridrpc/grid"
)

// Option changes what [New] makes. An option may be given several times: all of its functions are
// then called, in their order.
//
// Functions that are given are called each time a node is started, those of one node never at the
// same time. But for that of [WithStart] they run before the node is there, and none must call
// methods of the Grid that start or stop it. The test's FailNow may end them.
type Option func(o *options)

type options struct {
	tcp        bool
	net        Network
	log        bool
	names      []func(node int, addr string) (host string)
	edits      []func(node int, o *grid.ManagerOptions)
	handlers   []func(node int, m *grid.Manager) error
	starts     []func(node int, m *grid.Manager) error
	routes     []func(node int, mux *http.ServeMux)
	servers    []func(node int, s *http.Server)
	allStopped bool
	stopped    []int
}

// TCP makes the nodes use sockets of the loopback interface, with a port each that is theirs until
// the end of the Grid, also while they are stopped. The default is a network in memory.
func TCP() Option { return func(o *options) { o.tcp = true } }

// WithNetwork makes the nodes use a network of the test's own, in place of the one in memory that
// New makes. It may have other hosts as well, which the test plays. It is not closed.
func WithNetwork(n Network) Option { return func(o *options) { o.net = n } }

// WithHosts names the nodes: name is called once for each, with the address that the node would
// listen at, and returns its base URL, such as "https://" + addr for nodes with TLS. The default is
// "http://" + addr. With [TCP] the address must stay as it is; else the node listens at that of the
// base URL.
func WithHosts(name func(node int, addr string) (host string)) Option {
	return func(o *options) { o.names = append(o.names, name) }
}

// WithOptions changes the options of a node's manager. What they hold before is a token of this
// Grid, a Logger that is silent, unless [Log] is given, and the grid's own Dialer, which a Dialer
// in its place should call: others know of no partitions. Local must stay as it is. With a
// SharedSecret, or Insecure, the token of the Grid is taken out.
func WithOptions(edit func(node int, o *grid.ManagerOptions)) Option {
	return func(o *options) { o.edits = append(o.edits, edit) }
}

// WithHandlers registers the handlers of a node, before it is connected to any other: so they are
// there after a restart too. It is called by the Register of the manager's options, after one that
// [WithOptions] has set. An error ends the test.
func WithHandlers(register func(node int, m *grid.Manager) error) Option {
	return func(o *options) { o.handlers = append(o.handlers, register) }
}

// WithStart does what a program does once it has made its manager, and serves: start is called after
// each start of a node, which connects meanwhile, and others may call. So a test can show what
// becomes of a program that registers its handlers too late, or goes on when a link is there. It runs
// on the goroutine of [New], [Grid.Start] or [Grid.Restart], which waits for it. An error ends the
// test.
func WithStart(start func(node int, m *grid.Manager) error) Option {
	return func(o *options) { o.starts = append(o.starts, start) }
}

// WithRoutes mounts further routes on the HTTP server of a node, beside that of its manager.
// [Grid.Client] reaches them.
func WithRoutes(mount func(node int, mux *http.ServeMux)) Option {
	return func(o *options) { o.routes = append(o.routes, mount) }
}

// WithServer changes the HTTP server of a node before it serves: its timeouts, or its Handler,
// which has the routes of the node by then. With a TLSConfig the node speaks TLS, and needs a name
// that says so; see [WithHosts].
func WithServer(edit func(node int, s *http.Server)) Option {
	return func(o *options) { o.servers = append(o.servers, edit) }
}

// Stopped keeps [New] from starting these nodes, or any where none is given; [Grid.Start] does.
// They are hosts of the grid nevertheless.
func Stopped(nodes ...int) Option {
	return func(o *options) {
		o.stopped = append(o.stopped, nodes...)
		o.allStopped = o.allStopped || len(nodes) == 0
	}
}

// Log writes what the managers and HTTP servers log, at all levels, to the log of the test. By
// default it is thrown away.
func Log() Option { return func(o *options) { o.log = true } }
