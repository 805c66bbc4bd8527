package grid

import (
	"cmp"
	"context"
	"time"

	"github.com/gridrpc/grid/internal/monotime"
)

// Deadlines travel as the time that is left.

// deadlineSlack is how much earlier the server may find the deadline passed, which travels in whole
// milliseconds, and how much later our context may end.
const deadlineSlack = 10 * time.Millisecond

// awaitDeadline returns the error of a call whose deadline has passed for the server, and here will
// have in so much time: that of its context, if it ends by then, which knows the cause.
func awaitDeadline(ctx context.Context, left time.Duration) error {
	late := time.NewTimer(left + deadlineSlack)
	defer late.Stop()
	select {
	case <-ctx.Done():
	case <-late.C:
	}
	return cmp.Or(contextError(ctx), context.DeadlineExceeded)
}

// pinned is a deadline, zero for none, by the monotonic clock, as the timer of its context has it.
// One that the application has made of a wall time would move when somebody sets the clock.
func pinned(now, deadline time.Time) time.Time {
	if deadline.IsZero() {
		return deadline
	}
	return now.Add(deadline.Sub(now))
}

// remainingMS is the time left until deadline as it travels; 0 without one.
func remainingMS(deadline time.Time) (uint32, error) {
	if deadline.IsZero() {
		return 0, nil
	}
	left := time.Until(deadline)
	if left <= 0 {
		return 0, context.DeadlineExceeded
	}
	return milliseconds(left), nil
}

// milliseconds is a time that is left as it travels: at least one.
func milliseconds(left time.Duration) uint32 {
	return uint32(min(max(left.Milliseconds(), 1), 1<<32-1))
}

// setDeadline sets what is left until a deadline, where the message tells of it.
func (m *message) setDeadline(deadline time.Time) (err error) {
	if m.DeadlineMS != 0 {
		m.DeadlineMS, err = remainingMS(deadline)
	}
	return err
}

// deadline is when that of m is by this host's clock, of a message that has arrived now; zero for
// none.
func (m *message) deadline(now time.Time) time.Time {
	if m.DeadlineMS == 0 {
		return time.Time{}
	}
	return now.Add(time.Duration(m.DeadlineMS) * time.Millisecond)
}

// lateAfter is when an eighth of the time to a deadline is over, Never without one. What has waited
// for so long, at one of the places where a call may wait, will probably be too late.
func lateAfter(now, deadline time.Time) monotime.Time {
	if deadline.IsZero() {
		return monotime.Never
	}
	return monotime.Of(now.Add(deadline.Sub(now) / 8))
}
