// Package gridstatus is a page on which an operator sees a whole grid, served by any of
// its hosts: which hosts are connected, as each of the two sides sees it, the round-trip
// times, the traffic, what waits in queues, the streams, and the last errors.
//
// Every host makes a [Status] with the same handler ID, through which the others ask for
// what it sees, and mounts it where its operators, and nobody else, can reach it:
//
//	status, err := gridstatus.New(m, statusID, gridstatus.Options{})
//	if err != nil {
//		return err
//	}
//	adminMux.Handle("/grid", status)
//
// The page has all it needs in itself: it loads nothing from elsewhere. While it is open
// and visible it refreshes itself every 2 s, where scripts are not allowed by loading
// anew. It is made for light and dark, small screens and screen readers. The same is
// there as JSON, at ?format=json, as a [Mesh].
//
// # Cost
//
// Nothing happens while nobody looks. However many pages are open on a host, it asks
// each other host once in Options.Every, with one small request; the answer has some
// 300 bytes for each link. For 100 hosts that is 3 MB in 2 s at the host that is looked
// at, and 30 KB at each other. A host makes its answer anew twice in Options.Every at
// most, in a time that is in proportion to its open streams.
//
// # Who may see it
//
// The page and the JSON have no authentication of their own, and show host names,
// errors and load to whoever asks. They change nothing. Wrap the Status in what guards
// the other pages of your operators, or mount it on a port that only they can reach.
// Views come from hosts that have the grid's token; what they say is bounded in size,
// and shown as text.
//
// # Hosts that do not answer
//
// A host that this one is not connected to, that has no handler for the ID, or that does
// not answer within Options.Timeout has no row in the matrix; the page says why.
package gridstatus
