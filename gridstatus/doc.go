// Package gridstatus is a page on which an operator sees a whole grid, served by any of its hosts:
// which hosts are connected, as each of the two sides sees it, the round-trip times, the traffic,
// what waits in queues, the streams, the last errors, and what each host's handlers have served.
//
// Every host makes a [Status] with the same handler ID, through which the others ask for what it
// sees, and mounts it where its operators, and nobody else, can reach it:
//
//	status, err := gridstatus.New(m, statusID, gridstatus.Options{})
//	if err != nil {
//		return err
//	}
//	adminMux.Handle("/grid", status)
//
// The page has all it needs in itself: it loads nothing from elsewhere. While it is open and
// visible it refreshes itself, every 2 s unless Options.Every says otherwise; where scripts are not
// allowed, by loading anew. It is made for light and dark, small screens and screen readers. The
// same is there as JSON, at ?format=json, as a [Mesh].
//
// # Cost
//
// Nothing happens while nobody looks. However many pages are open on a host, it asks each other
// host once in Options.Every, with one small request. The answer has 200 to 400 bytes for each
// link and 50 to 150 for each handler, and a host makes it anew twice in Options.Every at most, in a
// time that is in proportion to its open streams. So for 100 hosts, of which one is looked at, 3 MB
// come to that one in 2 s, and 30 KB go out from each other. Its page has 630 KB then, some 30 KB of them with gzip, and takes
// some 50 ms of one core, once for all readers who have chosen the same host; the JSON has 2 to 4
// MB.
//
// # Who may see it
//
// The page and the JSON have no authentication of their own, and show host names, errors and load
// to whoever asks. They change nothing. Wrap the Status in what guards the other pages of your
// operators, or mount it on a port that only they can reach. Its links keep no other query values
// than its own, so a token does not belong there.
//
// # What other hosts may say
//
// Views come from hosts that have the grid's token, and what they say is shown as text. One that
// has more than 4 MiB or 5000 links, or calls its host by another name, is refused. Texts are cut
// at 300 bytes, and handlers after the first 1000 are left out. The page lists 50 errors, 20 of them
// by one host, and 1000 links of the host that is chosen. Nothing of that is an option.
//
// A host that this one is not connected to, that has no handler for the ID, or that does not answer
// within Options.Timeout has no row in the matrix; the page says why. Hosts may run different
// versions: fields that are not known are skipped, and states that are not are shown by their name.
package gridstatus
