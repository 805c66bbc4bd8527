package grid

import (
	"cmp"
	"slices"
)

// HandlerStats is what has become of the calls of one handler since it was registered.
type HandlerStats struct {
	ID HandlerID
	// Name is that of ManagerOptions.HandlerOptions or HandlerNames, or the ID in digits.
	Name string
	// Subroute is empty where there is none.
	Subroute string
	// Stream tells a handler of streams from one of single requests.
	Stream bool
	// Running are the calls that have begun and not ended: from when the whole payload was there,
	// until the handler has returned; so those that wait for a goroutine are among them.
	Running int
	// MaxRunning is how many there may be; 0 for no limit.
	MaxRunning int
	// Calls is how many have come as a whole, or were refused; Failed how many of them have ended
	// with an error or a panic of the handler, and Refused how many a limit has kept from it.
	Calls, Failed, Refused int64
}

// HandlerStats returns the present statistics of all handlers that are registered, by ID and
// subroute. It takes time in proportion to them. The slice is the caller's.
func (m *Manager) HandlerStats() []HandlerStats {
	var all []HandlerStats
	add := func(id HandlerID, h handler) {
		calls, st := h.calls(), HandlerStats{ID: id, Stream: h.stream != nil}
		st.Subroute = h.subroute()
		st.Name = m.opts.handlerName(id, st.Subroute)
		// In this order, so that none has ended before it has begun.
		ended, refused, turnedAway := calls.ended.Load(), calls.refused.Load(), calls.turnedAway.Load()
		st.Failed = calls.failed.Load()
		began := calls.began.Load()
		st.Running, st.MaxRunning = int(began-ended), calls.max
		st.Calls, st.Refused = began+refused, refused+turnedAway
		all = append(all, st)
	}
	for id := range m.handlers.plain {
		if h := m.handlers.plain[id].Load(); h != nil {
			add(HandlerID(id), *h)
		}
	}
	m.handlers.sub.Range(func(key subHandlerID, h handler) bool {
		add(HandlerID(key[0]), h)
		return true
	})
	slices.SortFunc(all, func(a, b HandlerStats) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Subroute, b.Subroute))
	})
	return all
}
