package grid

import (
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/monotime"
	"github.com/gridrpc/grid/internal/seed"
	"github.com/gridrpc/grid/internal/wsconn"
)

func newOutQueue() *outQueue {
	q := new(outQueue)
	q.init(flagCRC, pendingLimit)
	return q
}

// takeMessages decodes what is queued, the urgent first.
func takeMessages(t *testing.T, q *outQueue) (msgs []message) {
	t.Helper()
	for more := true; more; {
		q.mu.Lock()
		more = len(q.full) > 0
		q.mu.Unlock()
		urgent, normal := q.swap()
		msgs = append(append(msgs, takeBatch(t, urgent)...), takeBatch(t, normal)...)
	}
	return msgs
}

// takeBatch decodes a batch, and gives it back.
func takeBatch(t *testing.T, b batch) (msgs []message) {
	t.Helper()
	if b.count > 0 {
		var m message
		rest, err := m.parse(append([]byte(nil), b.frame(false)[wsconn.HeaderRoom:]...))
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
func TestOutQueue_TakesNothingAfterADisconnect(t *testing.T) {
	q := newOutQueue()
	var seq sequence
	require.NoError(t, q.send(nil, &message{Op: opMuxServerMsg}, &seq))
	require.NoError(t, q.post(&message{Op: opDisconnectClientMux}, &seq))
	require.Equal(t, errSendCancelled, q.send(nil, &message{Op: opMuxServerMsg}, &seq))
	large := turn{size: 1}
	require.NoError(t, q.await(&q.large, &large, nil))
	require.Equal(t, errSendCancelled, q.sendInTurn(&large, &message{Op: opMuxServerMsg}, &seq))
	require.NoError(t, q.post(&message{Op: opPing}, &seq), "dropped")
	msgs := takeMessages(t, q)
	require.Len(t, msgs, 2)
	require.Equal(t, opDisconnectClientMux, msgs[1].Op)
	require.Zero(t, msgs[1].Seq)
}

// The order of sequence numbers is the order on the wire, whoever sends.
func TestOutQueue_NumbersInTheOrderSent(t *testing.T) {
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

func TestOutQueue_IsBoundedAndWaitsForRoom(t *testing.T) {
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

		// What must be answered is taken all the same, and the end of the queue ends the wait.
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

// Senders get room in the order in which they came, and those that arrive later, or are small,
// don't overtake them.
func TestOutQueue_ServesThoseThatWaitInTurn(t *testing.T) {
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
		require.Zero(t, q.small.taken+q.small.promised)
		require.False(t, q.small.waits())
	})
}

// Where streams wait for room, each sends several messages when it is its turn, but not more than
// its share, nor in a later batch: so the others have theirs.
func TestOutQueue_StreamSendsOnInItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newOutQueue()
		const size, streams = 500, 100
		m := message{Op: opMuxServerMsg, Payload: make([]byte, size)}
		stopped := make(chan struct{})
		require.NoError(t, q.send(nil, &message{Payload: make([]byte, pendingLimit)}, nil))
		for i := range streams {
			go func() {
				var seq sequence
				m := m
				m.MuxID = uint64(i + 1)
				for q.send(stopped, &m, &seq) == nil {
				}
			}()
		}
		synctest.Wait()
		require.Len(t, takeMessages(t, q), 1)
		turns := 0
		for range 20 {
			synctest.Wait()
			require.LessOrEqual(t, q.small.taken+q.small.promised+q.small.ahead, pendingLimit)
			each := map[uint64]int{}
			var last uint64
			for _, m := range takeMessages(t, q) {
				if m.MuxID != last {
					turns++
					last = m.MuxID
				}
				each[m.MuxID]++
			}
			require.Greater(t, len(each), 10)
			for id, n := range each {
				require.Greater(t, n, 10, "stream %d", id)
				require.LessOrEqual(t, n*m.Msgsize(), pendingLimit/aheadShare+m.Msgsize(), "stream %d", id)
			}
		}
		require.Greater(t, turns, 3*streams)
		close(stopped)
		synctest.Wait()
		takeMessages(t, q)
		require.Zero(t, q.small.taken+q.small.promised+q.small.ahead)
	})
}

// A call does not wait for all that the streams in front of it have room for, and a flood of calls
// keeps no stream from its turn.
func TestOutQueue_CallsAndStreamsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newOutQueue()
		stopped := make(chan struct{})
		flood := func(op op, n int) {
			for i := range n {
				go func() {
					seq := new(sequence)
					if op == opRequest {
						seq = nil
					}
					for q.send(stopped, &message{Op: op, MuxID: uint64(i + 1), Payload: make([]byte, 100)}, seq) == nil {
					}
				}()
			}
		}
		flood(opMuxClientMsg, 500)
		for range 10 {
			synctest.Wait()
			takeMessages(t, q)
		}
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			require.NoError(t, q.send(nil, &message{Op: opRequest, Payload: make([]byte, 100)}, nil))
		}()
		synctest.Wait()
		takeMessages(t, q)
		synctest.Wait()
		select {
		case <-sent:
		default:
			t.Error("behind one batch, the request still waits")
		}
		flood(opRequest, 2000)
		count := map[op]int{}
		for i := range 40 {
			synctest.Wait()
			for _, m := range takeMessages(t, q) {
				if i >= 10 {
					count[m.Op]++
				}
			}
		}
		require.Greater(t, 3*count[opMuxClientMsg], count[opRequest])
		require.Greater(t, 3*count[opRequest], count[opMuxClientMsg])
		close(stopped)
		synctest.Wait()
		takeMessages(t, q)
		require.Zero(t, q.small.taken+q.small.promised+q.small.ahead+q.small.waiting())
	})
}

// A call that has waited for an eighth of its time when it is first in line goes behind all others;
// of several such, the one that came last is first.
func TestOutQueue_PassesOverThoseThatAreLate(t *testing.T) {
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
		enter := func(id uint64, late monotime.Time) {
			go func() {
				turn := turn{size: message(0).Msgsize(), late: late}
				err := q.await(&q.small, &turn, nil)
				if err == nil {
					err = q.sendInTurn(&turn, message(id), nil)
				}
				require.NoError(t, err)
			}()
			synctest.Wait()
		}
		in := func(d time.Duration) monotime.Time { return lateAfter(time.Now(), time.Now().Add(d)) }
		require.NoError(t, q.send(nil, message(0), nil))
		enter(1, in(time.Second))
		enter(2, in(time.Second))
		enter(3, in(time.Second))
		enter(4, monotime.Never) // a stream's
		enter(5, in(time.Minute))
		enter(6, in(time.Second))
		next(0)
		time.Sleep(time.Second/8 + 1)
		enter(7, in(time.Second))
		next(1) // had its room already
		next(4)
		next(5)
		next(7)
		next(6)
		next(3)
		next(2)
		next()
		require.False(t, q.small.waits())
	})
}

// Room that was granted to a sender which does not need it any more goes to the next.
func TestOutQueue_PassesOnWhatIsNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newOutQueue()
		first := turn{size: pendingLimit}
		require.NoError(t, q.await(&q.small, &first, nil))
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
		q.endTurn(&first)
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
		require.Zero(t, q.small.taken+q.small.promised)
		require.False(t, q.small.waits())
	})
}

// largeSender sends payloads of so many fragments, each under its number.
func largeSender(s *session) func(id uint64, fragments int) {
	return func(id uint64, fragments int) {
		m := message{MuxID: id, Op: opRequest, Payload: make([]byte, fragments*fragmentSize)}
		started, err := s.sender.sendFragments(nil, &m, nil, time.Time{}, nil)
		if !started || err != nil {
			panic(err)
		}
	}
}

// Large payloads go beside everything else. Of those of one size, one is sent to its end before the
// next; a short one passes a long one.
func TestOutQueue_SendsTheShortestPayloadFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(session)
		q := &s.sender.out
		q.init(flagCRC, pendingLimit)
		send := largeSender(s)
		var ended []uint64
		for id, fragments := range []int{20, 4, 4, 2, 1} {
			go func() {
				send(uint64(id), fragments)
				ended = append(ended, uint64(id))
			}()
			synctest.Wait()
		}
		require.NoError(t, q.send(nil, &message{MuxID: 9, Op: opRequest}, nil))
		for batch := 0; len(ended) < 5; batch++ {
			msgs := takeMessages(t, q)
			require.NotEmpty(t, msgs)
			if batch == 0 {
				require.EqualValues(t, 9, msgs[len(msgs)-1].MuxID)
			}
			synctest.Wait()
		}
		require.Equal(t, []uint64{4, 3, 1, 2, 0}, ended)
		require.NotEmpty(t, takeMessages(t, q))
		require.Zero(t, q.large.taken+q.large.promised)
	})
}

// However many short ones come, no more than twice its own size passes a long one.
func TestOutQueue_DoesNotStarveALongPayload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(session)
		q := &s.sender.out
		q.init(flagCRC, pendingLimit)
		send := largeSender(s)
		const long = 30
		var done atomic.Bool
		passed := 0
		go func() { send(0, long); done.Store(true) }()
		synctest.Wait()
		var short sync.WaitGroup
		for range 3 {
			short.Go(func() {
				for !done.Load() {
					send(1, 2)
				}
			})
		}
		synctest.Wait()
		for !done.Load() {
			for _, m := range takeMessages(t, q) {
				if m.MuxID == 1 {
					passed++
				}
			}
			synctest.Wait()
		}
		require.LessOrEqual(t, passed, 2*long)
		for q.batch.count > 0 {
			takeMessages(t, q)
			synctest.Wait()
		}
		short.Wait()
	})
}

// A peer that floods us with what must be answered, and reads nothing, can't make the queue grow
// without end.
func TestOutQueue_RefusesAFloodOfAnswers(t *testing.T) {
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
	kept := cap(q.batch.buf) + cap(q.urgent.buf)
	for _, b := range q.full {
		kept += cap(b.buf)
	}
	require.Less(t, kept, 4*postedLimit)
	takeMessages(t, q)
	require.NoError(t, q.post(&message{Op: opPong}, nil), "once it was written there is room again")
	q.close(errClosed)
}

// What may be left unsaid never ends a session, and leaves room for what is owed.
func TestOutQueue_OffersFillNoMoreThanTheirShare(t *testing.T) {
	q := new(outQueue)
	q.init(0, pendingLimit)
	n := 0
	for posted := -1; posted < q.posted; n++ {
		posted = q.posted
		q.offer(&message{MuxID: 1 << 40, Op: opDisconnectServerMux})
	}
	require.Greater(t, n, 10_000, "honest hosts cancel as many at once")
	require.Less(t, q.posted, offeredLimit+100)
	require.NoError(t, q.post(&message{Op: opPong}, nil))
	require.Len(t, takeMessages(t, q), n)
	q.offer(&message{MuxID: 1, Op: opDisconnectServerMux})
	require.Len(t, takeMessages(t, q), 1, "once it was written there is room again")
	q.close(errClosed)
	q.offer(&message{MuxID: 1, Op: opDisconnectServerMux})
}

// However much may wait, it goes in batches that every peer reads, and each of them makes room for
// what was counted in it, and no more. A ping goes between them.
func TestOutQueue_GoesInBatchesThatEveryPeerReads(t *testing.T) {
	out := bytepool.Out()
	q := new(outQueue)
	q.init(flagCRC, math.MaxInt)
	q.large.limit = math.MaxInt
	random := seed.Rand(t)
	const messages = 3000
	var sent []int
	add := func(n int) {
		payload := make([]byte, n)
		var err error
		switch random.IntN(3) {
		case 0:
			err = q.post(&message{Op: opPong, Payload: payload[:min(n, 1000)]}, nil)
			n = min(n, 1000)
		case 1:
			large := turn{size: n}
			require.NoError(t, q.await(&q.large, &large, nil))
			err = q.sendInTurn(&large, &message{Op: opRequest, Payload: payload}, nil)
		default:
			err = q.send(nil, &message{Op: opRequest, Payload: payload}, nil)
		}
		require.NoError(t, err)
		sent = append(sent, n)
	}
	for range messages {
		add(random.IntN(4 << 10))
	}
	add(3 << 20) // alone
	require.NoError(t, q.send(nil, &message{Op: opRequest, Payload: make([]byte, 5<<20)}, nil))
	sent = append(sent, 5<<20)
	batches := 0
	for len(q.full) > 0 || q.batch.count > 0 {
		waiting, _ := q.size()
		before := [...]int{q.posted, q.small.taken, q.large.taken}
		require.NoError(t, q.postUrgent(&message{Op: opPing}))
		urgent, normal := q.swap()
		require.EqualValues(t, 1, urgent.count)
		urgent.release()
		after, _ := q.size()
		require.Equal(t, waiting, after+len(normal.buf))
		require.Equal(t, before, [...]int{q.posted + normal.posted, q.small.taken + normal.small, q.large.taken + normal.large})
		require.Equal(t, len(normal.buf), normal.posted+normal.small+normal.large)
		if normal.count > 1 {
			require.LessOrEqual(t, len(normal.frame(false)[wsconn.HeaderRoom:]), maxBatch)
		}
		for _, m := range takeBatch(t, normal) {
			require.Len(t, m.Payload, sent[0])
			sent = sent[1:]
		}
		batches++
	}
	require.Empty(t, sent)
	require.Greater(t, batches, 4)
	require.Zero(t, q.posted+q.small.taken+q.large.taken)
	require.Equal(t, out, bytepool.Out(), "buffers are missing")
}

func TestOutQueue_PingsOvertakeData(t *testing.T) {
	q := newOutQueue()
	require.NoError(t, q.send(nil, &message{Op: opRequest, Payload: make([]byte, pendingLimit)}, nil))
	require.NoError(t, q.postUrgent(&message{Op: opPing}))
	msgs := takeMessages(t, q)
	require.Equal(t, []op{opPing, opRequest}, []op{msgs[0].Op, msgs[1].Op})
	require.Zero(t, msgs[0].Flags&flagCRC, "section 2: connection pings carry no checksum")
	require.NotZero(t, msgs[1].Flags&flagCRC)
}

func TestOutQueue_WakesItsWriter(t *testing.T) {
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
func TestOutQueue_KeepsNoLargeBuffer(t *testing.T) {
	q := newOutQueue()
	require.NoError(t, q.send(nil, &message{Op: opRequest, Payload: make([]byte, 8<<20)}, nil))
	takeMessages(t, q)
	require.Nil(t, q.batch.buf)
	require.LessOrEqual(t, q.hint, pendingLimit)
	require.NoError(t, q.send(nil, &message{Op: opRequest}, nil))
	takeMessages(t, q)
	require.NoError(t, q.send(nil, &message{Op: opRequest}, nil))
	require.Less(t, cap(q.batch.buf), 2*firstBuffer, "a buffer of the pool may be a little larger than was asked for")
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
			_, n := q.swap()
			n.release()
		}
	}
}

// A message that is queued at once is not allocated.
func TestResources_SendingAllocatesNoMessage(t *testing.T) {
	if bytepool.Strict {
		t.Skip("the strict pool allocates")
	}
	s := &session{caps: ourCaps}
	s.sender.s = s
	s.sender.out.init(flagCRC, pendingLimit)
	var seq sequence
	payload := make([]byte, 10)
	allocs := testing.AllocsPerRun(100, func() {
		if err := s.send(nil, message{Op: opMuxServerMsg, Payload: payload}, &seq); err != nil {
			t.Error(err)
		}
		s.sender.out.batch.release()
	})
	require.Less(t, allocs, 1.0)
}

// loneQueue returns a queue whose senders have been alone for long enough, and what waits for its
// writer.
func loneQueue(t *testing.T) (q *outQueue, woken <-chan error) {
	q = newOutQueue()
	for range lonely {
		require.NoError(t, q.send(nil, &message{Op: opRequest}, nil))
		takeMessages(t, q)
	}
	wait := make(chan error, 1)
	go func() {
		_, err := q.wait()
		wait <- err
	}()
	synctest.Wait()
	require.Nil(t, q.untilIdle())
	return q, wait
}

// While a lone sender writes nothing else does, and the queue is not idle. The writer looks
// afterwards if, and only if, there is something for it.
func TestOutQueue_LoneSenderIsTheWriter(t *testing.T) {
	gone := errors.New("gone")
	for name, c := range map[string]struct {
		meanwhile func(q *outQueue)
		rest      bool
		err       error
		wakes     bool
	}{
		"nothing":  {meanwhile: func(*outQueue) {}},
		"its rest": {meanwhile: func(*outQueue) {}, rest: true, wakes: true},
		"sent": {wakes: true, meanwhile: func(q *outQueue) {
			lone, full, err := q.trySendLone(&message{Op: opRequest}, nil, 0)
			require.Zero(t, lone)
			require.False(t, full)
			require.NoError(t, err)
		}},
		"posted": {wakes: true, meanwhile: func(q *outQueue) { require.NoError(t, q.post(&message{Op: opPong}, nil)) }},
		"urgent": {wakes: true, meanwhile: func(q *outQueue) { require.NoError(t, q.postUrgent(&message{Op: opPong})) }},
		"poked":  {wakes: true, meanwhile: func(q *outQueue) { q.poke() }},
		"closed": {wakes: true, err: gone, meanwhile: func(q *outQueue) { q.close(gone) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				out := bytepool.Out()
				q, woken := loneQueue(t)
				lone, full, err := q.trySendLone(&message{Op: opRequest, Payload: make([]byte, 10*pendingLimit)}, nil, 0)
				require.NoError(t, err)
				require.False(t, full)
				require.EqualValues(t, 1, lone.count)
				require.Zero(t, q.small.taken, "its room is free again")
				busy := q.untilIdle()
				require.NotNil(t, busy)
				c.meanwhile(q)
				synctest.Wait()
				require.Empty(t, woken)
				lone.release()
				q.endLone(c.rest)
				synctest.Wait()
				if !c.wakes {
					require.Empty(t, woken)
					<-busy
					require.Nil(t, q.untilIdle())
					q.poke()
				} else if c.err == nil {
					require.NotNil(t, q.untilIdle())
				}
				require.Equal(t, c.err, <-woken)
				takeMessages(t, q)
				require.Equal(t, out, bytepool.Out(), "buffers are missing")
			})
		})
	}
}

// A stream may go on at once: only where something has arrived since its last message was alone is
// the next one taken to be.
func TestOutQueue_StreamIsAloneOnlyInItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, woken := loneQueue(t)
		var seq sequence
		send := func(seq *sequence, heard int64) (alone bool) {
			lone, full, err := q.trySendLone(&message{Op: opMuxClientMsg}, seq, heard)
			require.NoError(t, err)
			require.False(t, full)
			if alone = lone.count > 0; alone {
				lone.release()
				q.endLone(false)
			}
			return alone
		}
		require.True(t, send(&seq, 1))
		require.True(t, send(&seq, 2))
		require.True(t, send(nil, 2), "a request waits for its answer")
		require.True(t, send(&seq, 3))
		require.False(t, send(&seq, 3))
		require.NoError(t, <-woken)
		takeMessages(t, q)
		require.EqualValues(t, 4, seq.next)

		seq.ended = true
		q, _ = loneQueue(t)
		_, _, err := q.trySendLone(&message{Op: opMuxClientMsg}, &seq, 1)
		require.Equal(t, errSendCancelled, err)
		require.True(t, send(nil, 1), "nobody is the writer")
		q.poke()
	})
}

// Where the session ends while a lone sender writes, what that has left is nobody's but the writer's.
func TestSender_GivesBackWhatALoneOneHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := bytepool.Out()
		snd := sender{stopped: make(chan struct{})}
		snd.out.init(0, pendingLimit)
		snd.out.lone = lonely
		go snd.run()
		synctest.Wait()
		lone, _, err := snd.out.trySendLone(&message{Op: opRequest}, nil, 0)
		require.NoError(t, err)
		require.EqualValues(t, 1, lone.count)
		snd.out.close(errors.New("gone"))
		snd.rest = lone
		snd.out.endLone(true)
		<-snd.stopped
		require.Equal(t, out, bytepool.Out(), "buffers are missing")
	})
}
