package main

import (
	"github.com/gridrpc/grid"
)

//go:generate go -C ../../tools tool msgp -unexported -file ../examples/cluster/messages.go -o ../examples/cluster/messages_gen.go -tests=false -io=false

// diskRequest asks for the disk that a directory is on; an empty one stands for the directory that
// the node serves.
type diskRequest struct {
	Dir string
}

// diskInfo is the answer, in bytes.
type diskInfo struct {
	Dir         string
	Total, Free uint64
}

// walkRequest asks for the entries of the directory that the node serves.
type walkRequest struct {
	// Forever begins again and again, until the stream is ended.
	Forever bool
}

// entry is a file or a directory.
type entry struct {
	Path string
	Dir  bool
	Size int64
}

// tally counts entries. It also answers the request to count.
type tally struct {
	Files, Dirs int
	Bytes       int64
}

func (t *tally) add(e *entry) {
	if e.Dir {
		t.Dirs++
		return
	}
	t.Files++
	t.Bytes += e.Size
}

func (t *tally) entries() int { return t.Files + t.Dirs }

// The handlers of the cluster: the same IDs on every node.
const (
	diskID grid.HandlerID = iota + 1
	countID
	walkID
	doneID
	missingID // nobody has registered it
	statusID
	leaveID
	hostsID
)

var (
	disks = grid.NewSingleHandler(diskID,
		func() *diskRequest { return new(diskRequest) },
		func() *diskInfo { return new(diskInfo) })
	hostLists = grid.NewJSONPool[[]string]()
	hostsOf   = grid.NewSingleHandler(hostsID, grid.NewNoPayload, hostLists.NewJSON)
	counts    = grid.NewSingleHandler(countID, grid.NewNoPayload, func() *tally { return new(tally) })
	walks     = grid.NewStream(walkID,
		func() *walkRequest { return new(walkRequest) },
		(func() grid.NoPayload)(nil), // the client sends nothing
		func() *entry { return new(entry) })
)
