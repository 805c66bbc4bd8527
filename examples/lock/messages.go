package main

import (
	"errors"

	"github.com/gridrpc/grid"
)

// lockArgs is what all requests are about.
type lockArgs struct {
	Name  string // of the lock
	UID   string `json:",omitempty"` // of one attempt to hold it
	Owner string `json:",omitempty"` // for people
}

var args = grid.NewJSONPool[lockArgs]()

// The requests. An answer without an error is a yes.
var (
	lockReq        = newRequest(1)
	rlockReq       = newRequest(2)
	unlockReq      = newRequest(3) // of both kinds
	refreshReq     = newRequest(4)
	forceUnlockReq = newRequest(5)
)

type request = grid.SingleHandler[*grid.JSON[lockArgs], grid.NoPayload]

func newRequest(id grid.HandlerID) *request {
	return grid.NewSingleHandler(id, args.NewJSON, grid.NewNoPayload)
}

// What a node refuses with. These travel as their text, by which errors.Is knows them on the other
// side.
var (
	errHeld     = errors.New("held by another")
	errUnknown  = errors.New("no such holder")
	errStarting = errors.New("started too recently to know what is held")
	errBadArgs  = errors.New("name or UID is missing")
)
