// Package gridraft is a transport for hashicorp/raft over the links of a grid: servers of a raft
// cluster are hosts, and talk over the one websocket that their hosts have between them anyway.
//
//	m, err := grid.NewManager(ctx, grid.ManagerOptions{Local: local, Hosts: hosts, ...,
//		Register: func(m *grid.Manager) error { // before another host can call
//			trans, err := gridraft.New(m, gridraft.Options{FirstID: 100})
//			if err != nil {
//				return err
//			}
//			r, err = raft.NewRaft(conf, fsm, logs, stable, snaps, trans)
//			return err
//		},
//	})
//
// The address of a server, in raft's configuration, is the base URL of its host. So a server can
// be called that is among the hosts of the manager, and no other. A new server that knows one of
// the others gets in by [Transport.Join], where these have an AcceptHost and [Transport.ServeJoin].
// Otherwise who adds a voter adds the host first. Who removes a server may remove the host when raft
// has.
//
// # What goes how
//
// Votes, pre-votes, heartbeats and other requests are single requests, each kind with a handler of
// its own. A pipeline is a stream, and so is a snapshot. Requests that are larger than a message
// should be go in parts, over a stream. Payloads are those of [raft.NetworkTransport], encoded by
// the same codec; what is around them is grid's, so that the two can't be mixed in one cluster.
//
// What raft would panic at is refused: entries that do not follow each other, of unknown types, or
// more than the 1024 that raft sends in a request, and configurations that can't be decoded. All
// else that a host of the manager sends is trusted, as raft trusts its peers.
//
// A heartbeat waits for nothing that is under way for the same server, be it entries that its disk
// is busy with, or a snapshot.
//
// # Groups
//
// Several groups may share a manager, each with a Transport whose Options.Group is its own. They
// share its links as well.
//
// # Trust
//
// Every host of the grid can call the handlers. What it sends is decoded with care, and bounded in
// size, but raft believes what its peers say: let nobody into the grid who may not decide what is
// in the log.
package gridraft
