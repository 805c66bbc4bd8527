// Package chaos holds nothing but a test: five managers in a full mesh, called all the time in
// every way, while their links fail, they restart or remove each other, their addresses, handlers
// and limits change, their callbacks block and panic, and the clock is stepped, and a model of what
// must hold.
//
//	go test -v ./test/chaos -duration 60s             # in memory
//	go test -v ./test/chaos -duration 60s -tcp        # over loopback sockets
//	go test -v ./test/chaos -seed 4711                # a certain schedule again
//	go test -v ./test/chaos -faults cut,panic         # some of the faults, by their names in the trace
//	go test -v ./test/chaos -run Soak -duration 20m -timeout 30m -tcp -chart soak.svg
//
// It prints one line:
//
//	chaos: seed S, N calls, M streams, K cuts, R restarts, violations V
//
// N are single requests; K are the cuts that found a link. The seed draws the faults and the calls;
// what meets what is up to the scheduler of the day, so a seed that has failed once may have to be
// tried more than once.
//
// The clock can be stepped only in a program that is built for it, see package clockstep:
// TestChaos_EveryCallHasItsEndThoughTheClockIsStepped is TestChaos_EveryCallHasItsEnd in such a
// one, for as long and with the same flags.
//
// # Who owns what
//
// A cluster owns its nodes and the fabric that joins them: a faultconn.Network, or loopback sockets
// whose ends are wrapped. A node is a name, under which one manager with its HTTP server lives
// after the other. The clients, some for each ordered pair of hosts, make one call after the other,
// and end with a context; the last call they finish. A round of faults is drawn in advance,
// injected by one goroutine with one more for each fault that lasts, and ends with a heal; then all
// pairs must work within two seconds. The model is told by clients and handlers what they see. It
// owns the ledger of calls, which forgets those that ended long ago, so that a soak of hours holds
// no more than a minute.
//
// # What must hold
//
// Every payload has the number of its call, its own number and a checksum.
//
//   - A call returns its own answer; or the error that its handler was told to
//     return; or one that is documented, and that it could have: a deadline only
//     once it has passed, a cause only once it was given, a violation of the
//     protocol only where bits were flipped. It returns in time.
//   - The messages of a stream come in order, none missing and none twice. It
//     ends well only if its handler did, and all has come. An input that ends while
//     the handler's context lives is complete.
//   - No call runs twice, on another host, or under another subroute; nor does one that a
//     Retrier takes from host to host. What grid.CanRetry allows has not run, and never will.
//   - A handler that has a context sees it end when its caller has given up, and is not
//     cancelled otherwise.
//   - A stream ends well by Finish only if its handler did, and has had all that was sent.
//     A message whose context has ended was not sent.
//   - What a handler's error wraps, its code, and the metadata of calls are what they were.
//   - Calls to many yield one answer of each; a quorum is as many as it should be.
//   - A call that was lost never runs, see below.
//   - After a heal every host can call every other within two seconds, while the
//     load goes on; and once more, after all connections of one host have become
//     half-open. A callback of a host that is not needed for it is blocked meanwhile.
//   - While a handler is not registered, no call to it is answered by it, and while
//     it is, none is told that there is none.
//   - When the callers have stopped, nothing is under way; when the managers have,
//     there are no sockets and no goroutines; and the pool gets back the buffers of
//     calls that end well.
//
// # Calls that are lost
//
// A call that fails with its link may have run, and may be about to: what was delivered before the
// end is still worked off. So its failure says nothing about a run that follows. But a request that
// was only queued must die with its link.
//
// The fault called a loss makes that visible. It holds back all that one host sends to another, and
// after a while cuts every connection of the two before it lets anything go: so nothing that was
// sent meanwhile, over whichever connection, has arrived. A call that began within a loss and
// failed within it must never run. Nor must one that failed later, if its manager has made no
// connection from before the call until after its failure: what it sent went over one of those that
// were cut. Of all other calls nothing is said.
package chaos
