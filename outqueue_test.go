package grid

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/bytepool"
)

func newOutQueue() *outQueue {
	q := new(outQueue)
	q.init(flagCRC, pendingLimit)
	return q
}

// takeMessages decodes what is queued, the urgent first.
func takeMessages(t *testing.T, q *outQueue) (msgs []message) {
	t.Helper()
	urgent, normal := q.take()
	for _, b := range []batch{urgent, normal} {
		if b.count == 0 {
			continue
		}
		var m message
		rest, err := m.parse(append([]byte(nil), b.frame()...))
		require.NoError(t, err)
		if m.Op == opMerged {
			require.NoError(t, eachMerged(m.Seq, rest, func(b []byte) error {
				var m message
				_, err := m.parse(b)
				msgs = append(msgs, m)
				return err
			}))
		} else {
			msgs = append(msgs, m)
		}
		b.release()
	}
	return msgs
}

// A disconnect takes no number, and nothing of its stream follows it.
func TestOutQueueTakesNothingAfterADisconnect(t *testing.T) {
	q := newOutQueue()
	var seq sequence
	require.NoError(t, q.send(nil, &message{Op: opMuxServerMsg}, &seq))
	require.NoError(t, q.post(&message{Op: opDisconnectClientMux}, &seq))
	require.Equal(t, errSendCancelled, q.send(nil, &message{Op: opMuxServerMsg}, &seq))
	require.Equal(t, errSendCancelled, q.sendLarge(nil, &message{Op: opMuxServerMsg}, &seq))
	require.NoError(t, q.post(&message{Op: opPing}, &seq), "dropped")
	msgs := takeMessages(t, q)
	require.Len(t, msgs, 2)
	require.Equal(t, opDisconnectClientMux, msgs[1].Op)
	require.Zero(t, msgs[1].Seq)
}

// The order of sequence numbers is the order on the wire, whoever sends.
func TestOutQueueNumbersInTheOrderSent(t *testing.T) {
	q := newOutQueue()
	var seqs [3]sequence
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			for j := range 500 {
				m := message{MuxID: uint64(i % 3), Op: opMuxClientMsg, Payload: make([]byte, j)}
				require.NoError(t, q.send(nil, &m, &seqs[i%3]))
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	var next [3]uint32
	for total := 0; total < 12*500; {
		msgs := takeMessages(t, q)
		for _, m := range msgs {
			require.Equal(t, next[m.MuxID], m.Seq)
			next[m.MuxID]++
		}
		total += len(msgs)
	}
	<-done
}

func TestOutQueueIsBoundedAndWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := bytepool.Out()
		q := newOutQueue()
		send := func(done <-chan struct{}, n int) error {
			return q.send(done, &message{Op: opRequest, Payload: make([]byte, n)}, nil)
		}
		// One that is too large for the limit goes when nothing else waits.
		require.NoError(t, send(nil, 10*pendingLimit))
		result := make(chan error, 3)
		done := make(chan struct{})
		go func() { result <- send(done, 1) }()
		synctest.Wait()
		require.Empty(t, result)
		close(done)
		require.ErrorIs(t, <-result, errSendCancelled)

		go func() { result <- send(nil, pendingLimit-200) }()
		go func() { result <- send(nil, pendingLimit-200) }()
		synctest.Wait()
		require.Empty(t, result)
		require.Len(t, takeMessages(t, q), 1)
		require.NoError(t, <-result)
		synctest.Wait()
		require.Empty(t, result, "there is room for one of them")

		// What must be answered is taken all the same, and the end of the
		// queue ends the wait.
		require.NoError(t, q.post(&message{Op: opPong}, nil))
		gone := errors.New("gone")
		q.close(gone)
		q.close(errors.New("too late"))
		require.ErrorIs(t, <-result, gone)
		require.ErrorIs(t, send(nil, 1), gone)
		require.ErrorIs(t, q.post(&message{Op: opPong}, nil), gone)
		require.ErrorIs(t, q.postUrgent(&message{Op: opPong}), gone)
		_, err := q.wait()
		require.ErrorIs(t, err, gone)
		require.Equal(t, out, bytepool.Out(), "buffers are missing")
	})
}

// Senders get room in the order in which they came, and those that arrive later, or
// are small, don't overtake them.
func TestOutQueueServesThoseThatWaitInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newOutQueue()
		message := func(id uint64, size int) *message {
			return &message{MuxID: id, Op: opRequest, Payload: make([]byte, size)}
		}
		ids := func() (ids []uint64) {
			for _, m := range takeMessages(t, q) {
				ids = append(ids, m.MuxID)
			}
			synctest.Wait()
			return ids
		}
		require.NoError(t, q.send(nil, message(0, pendingLimit), nil))
		cancelled := make(chan struct{})
		results := make(chan error, 4)
		for i, size := range []int{pendingLimit / 2, pendingLimit / 3, pendingLimit, 1} {
			go func() {
				var done <-chan struct{}
				if i == 2 {
					done = cancelled
				}
				results <- q.send(done, message(uint64(i+1), size), nil)
			}()
			synctest.Wait()
		}
		full, err := q.trySend(message(5, 1), nil)
		require.NoError(t, err)
		require.True(t, full)

		require.Equal(t, []uint64{0}, ids())
		require.Len(t, results, 2)
		full, err = q.trySend(message(5, 1), nil)
		require.NoError(t, err)
		require.True(t, full, "there is room, but not for all that wait")
		full, err = q.wait()
		require.NoError(t, err)
		require.True(t, full, "nobody can join the batch")
		close(cancelled)
		synctest.Wait()
		require.Len(t, results, 4, "nobody is behind one that has left")
		require.ElementsMatch(t, []uint64{1, 2, 4}, ids())
		for range 4 {
			if err := <-results; err != nil {
				require.ErrorIs(t, err, errSendCancelled)
			}
		}
		require.Zero(t, q.small.taken+q.small.promised+q.small.line.Len())
	})
}

// When the first in line has waited for half of its time, the last one is served.
func TestOutQueuePassesOverThoseThatAreLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newOutQueue()
		message := func(id uint64) *message {
			return &message{MuxID: id, Op: opRequest, Payload: make([]byte, pendingLimit/2)}
		}
		next := func(want ...uint64) {
			t.Helper()
			var ids []uint64
			for _, m := range takeMessages(t, q) {
				ids = append(ids, m.MuxID)
			}
			require.ElementsMatch(t, want, ids)
			synctest.Wait()
		}
		require.NoError(t, q.send(nil, message(0), nil))
		late := halfway(time.Now(), time.Now().Add(time.Second))
		for id := range uint64(5) {
			late := late
			if id == 1 {
				late = time.Time{}
			}
			go func() {
				turn, err := q.await(&q.small, message(0).Msgsize(), late, nil)
				if err == nil {
					err = q.sendInTurn(turn, message(id+1), nil)
				}
				require.NoError(t, err)
			}()
			synctest.Wait()
		}
		next(0)
		next(1)
		next(2)
		time.Sleep(time.Second/2 + 1)
		next(3) // had it already
		next(5)
		next(4)
		next()
	})
}

// Room that was granted to a sender which does not need it any more goes to the next.
func TestOutQueuePassesOnWhatIsNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newOutQueue()
		first, err := q.await(&q.small, pendingLimit, time.Time{}, nil)
		require.NoError(t, err)
		var ended sequence
		require.NoError(t, q.post(&message{Op: opDisconnectClientMux}, &ended))
		results := make(chan error, 3)
		for _, seq := range []*sequence{&ended, new(sequence)} {
			go func() {
				results <- q.send(nil, &message{Op: opMuxClientMsg, Payload: make([]byte, pendingLimit/2)}, seq)
			}()
			synctest.Wait()
		}
		require.Empty(t, results)
		q.pass(first)
		synctest.Wait()
		require.Len(t, results, 2)
		require.Equal(t, errSendCancelled, <-results)
		require.NoError(t, <-results)
		go func() { results <- q.send(nil, &message{Op: opRequest, Payload: make([]byte, pendingLimit)}, nil) }()
		synctest.Wait()
		require.Empty(t, results)
		require.Len(t, takeMessages(t, q), 2)
		require.NoError(t, <-results)
		require.Len(t, takeMessages(t, q), 1)
		require.Zero(t, q.small.taken+q.small.promised+q.small.line.Len())
	})
}

// Large payloads go beside everything else, two at a time.
func TestOutQueueSendsTwoLargePayloadsAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(session)
		q := &s.out
		q.init(flagCRC, pendingLimit)
		for id := range uint64(4) {
			go func() {
				m := message{MuxID: id, Op: opRequest, Payload: make([]byte, 3*fragmentSize+1)}
				_, err := s.sendFragments(nil, &m, nil, nil)
				require.NoError(t, err)
			}()
			synctest.Wait()
		}
		require.NoError(t, q.send(nil, &message{MuxID: 9, Op: opRequest}, nil))
		const parts = 4 // of a payload
		begun := make(map[uint64]int)
		ended := 0
		for batch := 0; ended < 4; batch++ {
			msgs := takeMessages(t, q)
			require.NotEmpty(t, msgs)
			for _, m := range msgs {
				if m.MuxID == 9 {
					require.Zero(t, batch)
					continue
				}
				begun[m.MuxID]++
				if begun[m.MuxID] == parts {
					ended++
				}
				require.LessOrEqual(t, len(begun)-ended, largeTurns)
			}
			synctest.Wait()
		}
		require.Len(t, begun, 4)
		require.Zero(t, q.large.taken+q.large.promised+q.turns.promised)
	})
}

// A peer that floods us with what must be answered, and reads nothing, can't
// make the queue grow without end.
func TestOutQueueRefusesAFloodOfAnswers(t *testing.T) {
	q := newOutQueue()
	for _, post := range []func() error{
		func() error { return q.post(&message{Op: opPong, Payload: make([]byte, 30)}, nil) },
		func() error { return q.postUrgent(&message{Op: opPong, Payload: make([]byte, 30)}) },
	} {
		var err error
		n := 0
		for ; err == nil && n < 1_000_000; n++ {
			err = post()
		}
		require.ErrorIs(t, err, errFlooded)
		require.Greater(t, n, 50)
	}
	require.Less(t, cap(q.batch.buf)+cap(q.urgent.buf), 4*postedLimit)
	takeMessages(t, q)
	require.NoError(t, q.post(&message{Op: opPong}, nil), "once it was written there is room again")
	q.close(errClosed)
}

func TestOutQueuePingsOvertakeData(t *testing.T) {
	q := newOutQueue()
	require.NoError(t, q.send(nil, &message{Op: opRequest, Payload: make([]byte, pendingLimit)}, nil))
	require.NoError(t, q.postUrgent(&message{Op: opPing}))
	msgs := takeMessages(t, q)
	require.Equal(t, []op{opPing, opRequest}, []op{msgs[0].Op, msgs[1].Op})
	require.Zero(t, msgs[0].Flags&flagCRC, "section 2: connection pings carry no checksum")
	require.NotZero(t, msgs[1].Flags&flagCRC)
}

func TestOutQueueWakesItsWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newOutQueue()
		var woken int
		go func() {
			for {
				if _, err := q.wait(); err != nil {
					return
				}
				woken++
				takeMessages(t, q)
			}
		}()
		for i, wake := range []func(){
			func() { require.NoError(t, q.send(nil, &message{Op: opRequest}, nil)) },
			func() { require.NoError(t, q.post(&message{Op: opPong}, nil)) },
			func() { require.NoError(t, q.postUrgent(&message{Op: opPong})) },
			q.poke,
		} {
			synctest.Wait()
			wake()
			synctest.Wait()
			require.Equal(t, i+1, woken)
		}
		q.poke()
		q.close(errClosed)
	})
}

// After one huge message the queue is as small as before.
func TestOutQueueKeepsNoLargeBuffer(t *testing.T) {
	q := newOutQueue()
	require.NoError(t, q.send(nil, &message{Op: opRequest, Payload: make([]byte, 8<<20)}, nil))
	takeMessages(t, q)
	require.Nil(t, q.batch.buf)
	require.LessOrEqual(t, q.hint, pendingLimit)
	require.NoError(t, q.send(nil, &message{Op: opRequest}, nil))
	takeMessages(t, q)
	require.NoError(t, q.send(nil, &message{Op: opRequest}, nil))
	require.LessOrEqual(t, cap(q.batch.buf), firstBuffer)
	takeMessages(t, q)
}

func BenchmarkOutQueue(b *testing.B) {
	q := newOutQueue()
	m := message{MuxID: 1 << 20, Op: opRequest, Handler: 1, Payload: make([]byte, 512)}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if q.send(nil, &m, nil) != nil {
			b.Fatal()
		}
		if i%64 == 63 {
			_, n := q.take()
			n.release()
		}
	}
}
