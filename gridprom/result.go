package gridprom

import "github.com/gridrpc/grid"

// On the serving side an error is the handler's own, mostly, and not the remote's.
const (
	remoteError  = "remote_error"
	handlerError = "handler_error"
	otherError   = "error"
)

// results returns the values of the label of that name, on one side: those of
// [grid.CallResult.Status], but for handlerError.
func results(served bool) []string {
	remote := remoteError
	if served {
		remote = handlerError
	}
	return []string{
		"ok", remote, "disconnected", "overloaded", "deadline_exceeded", "canceled", "message_too_large", "protocol_error", otherError,
	}
}

// resultOf is how a call has ended that was served, or made, here.
func resultOf(r grid.CallResult, served bool) string {
	status := r.Status()
	if served && status == remoteError {
		return handlerError
	}
	return status
}
