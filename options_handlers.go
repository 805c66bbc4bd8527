package grid

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// HandlerKey says for which handlers [HandlerOptions] hold.
type HandlerKey struct {
	ID HandlerID
	// Subroute is the name of a subroute, with its parts joined by "/"; empty for none.
	Subroute string
}

// HandlerOptions are what holds for one handler of single requests or of streams: see
// ManagerOptions.HandlerOptions. A field that is zero is that of the subroute above, and there of
// the one above that.
//
// They take effect when a handler is registered under the key, which may be at any time. So options
// of an ID or a subroute that nothing is registered under are no error, and do nothing but name the
// handler where this host calls it: [Manager.HandlerStats] says which handlers there are.
type HandlerOptions struct {
	// Name is what the handler is called where people read it, on both sides of a call. By default
	// it is that of ManagerOptions.HandlerNames.
	Name string

	// MaxRunning is how many calls of the handler may be running here at a time, for all hosts
	// together, those of callers that have gone included. The hosts share it as they do
	// MaxTotalHandlers: half is divided among them, at least one each where there are so many, and
	// who calls more may have half of what is left of the rest. A call counts once its whole payload
	// is there. A call beyond is refused at once; its caller gets [ErrOverloaded]. So a handler that
	// has become slow leaves the slots of MaxHandlers and MaxTotalHandlers to the others. Each handler counts by itself, also where the options are
	// those of several. At least 1; by default there is no limit.
	MaxRunning int

	// Timeout is how long a call of the handler may take here, from its arrival on, where its
	// caller gives it longer, or any time, as streams have by default. After it the context of the
	// handler ends, with [context.DeadlineExceeded] as its cause. A stream ends then, and its client
	// gets a [RemoteErr] that says so; a single request still gets what its handler returns. One
	// whose handler has no context (see [SingleHandlerFn]) can't be ended by it. From 1 ms to 30
	// days; by default there is none but the caller's.
	Timeout time.Duration
}

func (o *ManagerOptions) checkHandlerOptions() error {
	for key, h := range o.HandlerOptions {
		name := fmt.Sprintf("grid: HandlerOptions of handler %d", key.ID)
		if key.Subroute != "" {
			name += fmt.Sprintf(", subroute %q", key.Subroute)
		}
		switch {
		case key.ID == 0:
			return fmt.Errorf("%w: %s", ErrUnknownHandler, name)
		case h.MaxRunning < 0:
			return fmt.Errorf("%s: MaxRunning is %d, must be 1 or more, or 0 for no limit", name, h.MaxRunning)
		case h.Timeout != 0 && !isInterval(h.Timeout):
			return fmt.Errorf("%s: Timeout is %v, must be %v to %v, or 0 for none", name, h.Timeout, minInterval, maxInterval)
		}
	}
	return nil
}

// handlerOptions are those that hold for a handler.
func (o *ManagerOptions) handlerOptions(id HandlerID, subroute string) (all HandlerOptions) {
	if len(o.HandlerOptions) > 0 {
		for more := true; more; {
			h := o.HandlerOptions[HandlerKey{id, subroute}]
			all.Name = cmp.Or(all.Name, h.Name)
			all.MaxRunning = cmp.Or(all.MaxRunning, h.MaxRunning)
			all.Timeout = cmp.Or(all.Timeout, h.Timeout)
			more = subroute != ""
			subroute = subroute[:max(strings.LastIndexByte(subroute, '/'), 0)]
		}
	}
	all.Name = cmp.Or(all.Name, o.HandlerNames[id])
	return all
}

// handlerName is what a handler is called.
func (o *ManagerOptions) handlerName(id HandlerID, subroute string) string {
	return cmp.Or(o.handlerOptions(id, subroute).Name, strconv.Itoa(int(id)))
}

// handlerText is what a handler is called where its ID is wanted as well.
func (o *ManagerOptions) handlerText(id HandlerID, subroute string) string {
	text := strconv.Itoa(int(id))
	if name := o.handlerOptions(id, subroute).Name; name != "" {
		text += " (" + name + ")"
	}
	return text
}
