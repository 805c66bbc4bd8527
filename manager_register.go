package grid

import (
	"context"
	"errors"
	"fmt"

	"github.com/gridrpc/grid/internal/clip"
)

// holdBack is what holds back connecting, in both directions: Register, and BlockConnect.
type holdBack struct {
	registered chan struct{}   // closed once Register has returned
	block      <-chan struct{} // BlockConnect, nil for none
}

func (h *holdBack) init(o *ManagerOptions) {
	h.registered, h.block = make(chan struct{}), o.BlockConnect
}

// wait waits until nothing holds back, or ctx ends. It reports whether the first was so.
func (h *holdBack) wait(ctx context.Context) bool {
	for _, c := range []<-chan struct{}{h.registered, h.block} {
		if c == nil {
			continue
		}
		select {
		case <-c:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// errRegistering is why nothing is taken that could wait.
var errRegistering = errors.New("Register has not returned")

// isRegistering reports whether Register has not returned.
func (h *holdBack) isRegistering() bool { return !isClosed(h.registered) }

// isBlocked reports whether BlockConnect is not closed.
func (h *holdBack) isBlocked() bool { return h.block != nil && !isClosed(h.block) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// register calls Register, if there is one. It closes the manager where that ends the goroutine.
func (m *Manager) register() (err error) {
	if m.opts.Register != nil {
		returned := false
		defer func() {
			if returned {
				return
			}
			if p := recover(); p != nil {
				m.panics.Panicked(m.opts.Logger, "grid: Register panicked", p)
				err = fmt.Errorf("panicked: %s", clip.Text(fmt.Sprint(p)))
				return
			}
			m.Close()
		}()
		err = notNilRemote(m.opts.Register(m))
		returned = true
	}
	if err == nil {
		close(m.hold.registered)
	}
	return err
}
