package v1

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"

	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

const (
	pingInterval = 10 * time.Second
	pingTick     = time.Second
	// pingBefore is in time to spare the node its next ping.
	pingBefore = 8700 * time.Millisecond
)

var confirmingConfig = rawpeer.Config{Caps: rig.AllCaps, ManualPings: true, Timeout: time.Minute}

// answerPing answers the node's next ping after a round trip of rtt. It returns what the ping says
// of the last one.
func (r *wire) answerPing(rtt time.Duration) time.Duration {
	r.Helper()
	ping := r.Peer.Expect(rawpeer.OpPing)
	require.Zero(r, ping.MuxID)
	said, err := rawpeer.PingRTT(ping)
	require.NoError(r, err)
	time.Sleep(rtt)
	pong, err := rawpeer.Pong(ping)
	require.NoError(r, err)
	r.Peer.Send(pong)
	return said
}

// ping sends a ping of the peer's, and requires the answer and nothing else.
func (r *wire) ping(m rawpeer.Msg) {
	r.Helper()
	r.Peer.Send(m)
	synctest.Wait()
	r.Peer.Expect(rawpeer.OpPong)
	r.Quiet()
}

// Each ping says how long the last one took, if that was answered.
func TestConfirmedPing_SaysHowLongTheLastTook(t *testing.T) {
	t.Parallel()
	inWire(t, confirmingConfig, nil, func(r *wire) {
		require.Zero(r, r.answerPing(30*time.Millisecond), "the first")
		require.Equal(r, 30*time.Millisecond, r.answerPing(20*time.Millisecond))
		require.Equal(r, 20*time.Millisecond, r.answerPing(0))
		require.NotZero(r, r.answerPing(0), "one that took no time was answered all the same")
		r.Peer.Expect(rawpeer.OpPing)
		require.Zero(r, r.answerPing(time.Millisecond), "the last one was not answered")
		require.Equal(r, time.Millisecond, r.answerPing(0))
	})
}

// A peer that confirms the link is not pinged. When it ceases to, and goes on to answer, this side
// takes over; the first of its pings confirms nothing.
func TestConfirmedPing_OtherSideTakesOver(t *testing.T) {
	t.Parallel()
	inWire(t, confirmingConfig, nil, func(r *wire) {
		r.answerPing(time.Millisecond)
		var last time.Time
		for i := range 20 {
			time.Sleep(pingBefore)
			last = time.Now()
			rtt := time.Duration(i+1) * time.Millisecond
			r.ping(rawpeer.ConfirmingPing(last, rtt))
			require.Equal(r, rtt, r.Conn.Stats().RoundTrip)
		}
		require.InDelta(r, 12*time.Millisecond, r.Conn.Stats().RoundTripMean, float64(3*time.Millisecond))
		require.Zero(r, r.answerPing(0))
		require.Greater(r, time.Since(last), 9*time.Second)
		require.LessOrEqual(r, time.Since(last), pingInterval+pingTick)
		for range 10 {
			last = time.Now()
			require.NotZero(r, r.answerPing(0))
			require.LessOrEqual(r, time.Since(last), pingInterval)
		}
	})
}

// A peer that falls silent is noticed, though it was not pinged when it did.
func TestConfirmedPing_SilentPeerIsNoticed(t *testing.T) {
	t.Parallel()
	inWire(t, confirmingConfig, nil, func(r *wire) {
		r.answerPing(time.Millisecond)
		for range 50 {
			time.Sleep(pingBefore)
			r.ping(rawpeer.ConfirmingPing(time.Now(), time.Millisecond))
		}
		begin := time.Now()
		_, err := r.Peer.Drain()
		require.Error(r, err)
		require.Greater(r, time.Since(begin), 2*pingInterval)
		require.LessOrEqual(r, time.Since(begin), 3*pingInterval+pingTick)
		r.Lost("no pong")
	})
}

// A ping of this side that is not answered is neither answered nor put off by those of the peer.
func TestConfirmedPing_DoesNotStandForAPong(t *testing.T) {
	t.Parallel()
	inWire(t, confirmingConfig, nil, func(r *wire) {
		r.answerPing(time.Millisecond)
		r.Peer.Expect(rawpeer.OpPing)
		begin := time.Now()
		for r.Peer.TrySend(rawpeer.ConfirmingPing(time.Now(), time.Millisecond)) == nil {
			time.Sleep(time.Second)
			synctest.Wait()
			if r.Peer.Err() != nil {
				break
			}
		}
		require.InDelta(r, 2*pingInterval, time.Since(begin), float64(2*pingTick))
		pings := 0
		for _, m := range r.Peer.Take() {
			if m.Op == rawpeer.OpPing {
				pings++
			}
		}
		require.Equal(r, 2, pings, "in two intervals")
		r.Lost("no pong")
	})
}

// A ping that says what can't be is one that confirms nothing, or loses the link where it does not
// decode.
func TestConfirmedPing_Nonsense(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		rtt  []byte
		lost string
	}{
		"zero":                     {rtt: msgp.AppendUint64(nil, 0)},
		"longer than the link":     {rtt: msgp.AppendInt64(nil, int64(time.Hour))},
		"more than a Duration has": {rtt: msgp.AppendUint64(nil, 1<<63)},
		"the most there is":        {rtt: msgp.AppendUint64(nil, math.MaxUint64)},
		"negative":                 {rtt: msgp.AppendInt64(nil, -1), lost: "Ping"},
		"text":                     {rtt: msgp.AppendString(nil, "1ms"), lost: "Ping"},
		"float":                    {rtt: msgp.AppendFloat64(nil, 1), lost: "Ping"},
		"nil":                      {rtt: msgp.AppendNil(nil), lost: "Ping"},
		"cut off":                  {rtt: []byte{0xcf, 0, 0}, lost: "Ping"},
	} {
		t.Run(name, func(t *testing.T) {
			inWire(t, confirmingConfig, nil, func(r *wire) {
				r.answerPing(time.Millisecond)
				last := time.Now()
				time.Sleep(pingInterval / 2)
				m := rawpeer.PingWith(time.Now(), c.rtt)
				if c.lost != "" {
					r.Peer.Send(m)
					r.Lost(c.lost)
					return
				}
				r.ping(m)
				require.NotZero(r, r.answerPing(time.Millisecond))
				require.LessOrEqual(r, time.Since(last), pingInterval+time.Millisecond, "not put off")
				synctest.Wait()
				require.Equal(r, time.Millisecond, r.Conn.Stats().RoundTripMean)
				r.Alive()
			})
		})
	}
}

// Without the extension both sides ping, whatever a ping has in it.
func TestConfirmedPing_IsOnlyWhereBothHaveSaidSo(t *testing.T) {
	t.Parallel()
	for _, caps := range []uint64{0, rig.AllCaps &^ rawpeer.CapConfirmedPings} {
		c := confirmingConfig
		c.Caps = caps
		inWire(t, c, nil, func(r *wire) {
			r.answerPing(time.Millisecond)
			for range 20 {
				last := time.Now()
				r.ping(rawpeer.ConfirmingPing(last, time.Second))
				require.Zero(r, r.answerPing(time.Millisecond))
				require.LessOrEqual(r, time.Since(last), pingInterval+time.Millisecond)
				synctest.Wait()
				require.Equal(r, time.Millisecond, r.Conn.Stats().RoundTripMean)
			}
		})
	}
}
