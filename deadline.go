package grid

import (
	"context"
	"time"
)

// What has a deadline, and how it is sent in time.

// sendOpening implements clientHost.
func (s *session) sendOpening(done <-chan struct{}, m message, seq *sequence, deadline time.Time) error {
	if s.fragmented(&m) {
		_, err := s.sendFragments(done, &m, seq, deadline, nil)
		return err
	}
	return s.sendInTime(done, &m, seq, deadline)
}

// sendAnswer is send for what is of no use after a deadline, if there is one: it is not
// sent then, or no more of it.
func (s *session) sendAnswer(m message, deadline time.Time) error {
	if deadline.IsZero() {
		return s.send(nil, m, nil)
	}
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	if s.fragmented(&m) {
		_, err := s.sendFragments(ctx.Done(), &m, nil, deadline, nil)
		return err
	}
	return s.sendInTime(ctx.Done(), &m, nil, deadline)
}

// sendInTime is outQueue.send for what has a deadline, or may have one, and is not
// fragmented.
func (s *session) sendInTime(done <-chan struct{}, m *message, seq *sequence, deadline time.Time) error {
	if full, err := s.out.trySend(m, seq); !full {
		return err
	}
	t := turn{size: m.Msgsize(), late: lateAfter(time.Now(), deadline)}
	if err := s.out.await(&s.out.small, &t, done); err != nil {
		return err
	}
	if err := m.setDeadline(deadline); err != nil {
		s.out.pass(&t)
		return errSendCancelled
	}
	return s.out.sendInTurn(&t, m, seq)
}

// lateAfter is when an eighth of the time to a deadline is over, zero for none. What has
// waited for so long, at one of the places where a call may wait, will probably be too
// late.
func lateAfter(now, deadline time.Time) time.Time {
	if deadline.IsZero() {
		return deadline
	}
	return now.Add(deadline.Sub(now) / 8)
}

// setDeadline sets what is left until a deadline, where the message tells of it.
func (m *message) setDeadline(deadline time.Time) (err error) {
	if m.DeadlineMS != 0 {
		m.DeadlineMS, err = remainingMS(deadline, 0)
	}
	return err
}

// defaultDeadline is that of a single request whose context has none.
const defaultDeadline = time.Minute

// remainingMS is the time left until deadline as it travels: whole
// milliseconds, at least one. Without a deadline it is that of def, where 0 is
// none.
func remainingMS(deadline time.Time, def time.Duration) (uint32, error) {
	left := def
	if !deadline.IsZero() {
		if left = time.Until(deadline); left <= 0 {
			return 0, context.DeadlineExceeded
		}
		left = max(left, time.Millisecond)
	}
	return uint32(min(left.Milliseconds(), 1<<32-1)), nil
}
