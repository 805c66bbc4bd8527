package chaos

import (
	"fmt"
	"slices"
)

// off is what hosts do not stand yet.
var off = []string{
	"Logger panics", "AuthFn panics", "Dialer panics", "Incoming panics", "Outgoing panics",
	"Logger stays blocked", "Incoming stays blocked", "Outgoing stays blocked",
}

func isOn(what string) bool { return !slices.Contains(off, what) }

// What callbacks may do: block for a while; panic; or block while it is looked at whether all works,
// which is for those without which it does.
var (
	blocking  = callbacksThat("blocks", all...)
	panicking = callbacksThat("panics", all...)
	harmless  = callbacksThat("stays blocked", logging, incoming, outgoing, stateChange)
	// sizesDiffer is whether hosts have a MaxMessageSize of their own.
	sizesDiffer = isOn("sizes differ")
)

func callbacksThat(does string, among ...callback) (some []callback) {
	for _, c := range among {
		if isOn(fmt.Sprint(c, " ", does)) {
			some = append(some, c)
		}
	}
	return some
}
