package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/clockstep"
	"github.com/gridrpc/grid/internal/seed"
)

// fault is one thing that goes wrong.
type fault struct {
	at   time.Duration // after the start
	kind kind
	a, b int           // the link, or the host
	life time.Duration // 0 where it is over at once
	much int           // how bad it is, by kind
	seed uint64        // for what else is random
	side []int         // of a split
}

type kind int

const (
	cut        kind = iota
	loss            // all that a sends to b is held back, then thrown away by a cut
	partition       // between a and b
	split           // between side and the other hosts
	stall           // of what a sends to b
	slow            // the same, to much bytes per second
	late            // the same, by much milliseconds
	corrupt         // the same, a bit in one of much bytes
	halfOpen        // a loses its connections to b, which is not told
	remove          // of b from the hosts of a, which has it again after life
	restart         // of a, down for life, gracefully if much is not 0
	limit           // the same, and then a has other limits
	block           // a callback of a, number much, for life
	panics          // the same: it panics
	move            // of the address of a to b, for life
	unregister      // of handler number much from a, which has it again after life
	step            // of the clock that all hosts share, by steps[much], which is set right after life
	kinds
)

var kindNames = [kinds]string{"cut", "loss", "partition", "split", "stall", "slow", "late", "corrupt", "half-open", "remove", "restart",
	"limit", "block", "panic", "move", "unregister", "step"}

// weights say how often each comes.
var weights = [kinds]int{cut: 60, loss: 14, partition: 3, split: 1, stall: 5, slow: 4, late: 4, corrupt: 4, halfOpen: 3, remove: 3, restart: 6,
	limit: 4, block: 6, panics: 6, move: 3, unregister: 6, step: 12}

// weight is that of a kind that is possible, and was asked for.
func (k kind) weight() int {
	if k == step && !clockstep.Possible || *faultsFlag != "" && !slices.Contains(strings.Split(*faultsFlag, ","), kindNames[k]) {
		return 0
	}
	return weights[k]
}

// steps are how far the clock is stepped.
var steps = [...]time.Duration{time.Minute, -time.Minute, time.Hour, -time.Hour, 24 * time.Hour, -24 * time.Hour}

// lasts reports whether f is a fault of a link that has an end.
func (f fault) lasts() bool {
	switch f.kind {
	case loss, partition, stall, slow, late, corrupt, remove:
		return true
	}
	return false
}

func (f fault) String() string {
	s := fmt.Sprintf("%8v %-9s", f.at.Round(time.Millisecond), kindNames[f.kind])
	switch f.kind {
	case split:
		s += fmt.Sprintf(" %v", f.side)
	case restart, limit, unregister:
		s += fmt.Sprintf(" %d", f.a)
	case block, panics:
		s += fmt.Sprintf(" %v of %d", callback(f.much), f.a)
	case step:
		s += fmt.Sprintf(" %v", steps[f.much])
	default:
		s += fmt.Sprintf(" %d %d", f.a, f.b)
	}
	if f.life > 0 {
		s += fmt.Sprintf(" for %v", f.life)
	}
	if f.much > 0 {
		s += fmt.Sprintf(" (%d)", f.much)
	}
	return s
}

const (
	// faultPause is the mean time between two faults.
	faultPause = 12 * time.Millisecond
	// rest is how long a link is left without another outage after one, at least: the longer a host
	// can't be reached, the longer its peers pause before they dial it again. It is also what an
	// end may take.
	rest = 100 * time.Millisecond
	// recovery is the last part of a round, without outages.
	recovery = time.Second
	// maxGrace is how long a graceful end may take: until all is done, then until the peers have
	// hung up, for which a manager gives them a second.
	grace    = 200 * time.Millisecond
	maxGrace = grace + time.Second
)

// drawFaults makes the schedule of one round, which is a matter of rng alone, pause apart on
// average. At any time there is one lasting fault for each link, one split, one host that is down,
// can't be reached for another reason, or lacks a handler, and one step of the clock.
func drawFaults(rng *rand.Rand, round, pause time.Duration) (all []fault) {
	total := 0
	for k := range kinds {
		total += k.weight()
	}
	if total == 0 { // none is possible
		return nil
	}
	busy := make(map[[2]int]*time.Duration)
	var splitUntil, hostUntil, stepUntil time.Duration
	callbackUntil := make(map[[2]int]*time.Duration)
	for at := time.Duration(0); at < round; {
		at += time.Duration(rng.Int64N(int64(2 * pause)))
		f := fault{at: at, seed: rng.Uint64()}
		for p := rng.IntN(total); p >= f.kind.weight(); f.kind++ {
			p -= f.kind.weight()
		}
		f.a = rng.IntN(hosts)
		f.b = (f.a + 1 + rng.IntN(hosts-1)) % hosts
		f.side = rng.Perm(hosts)[:1+rng.IntN(hosts/2)]
		ms := func(least, most int) time.Duration {
			return time.Duration(least+rng.IntN(most-least)) * time.Millisecond
		}
		switch f.kind {
		case loss:
			f.life = ms(20, 250)
		case partition:
			f.life = ms(50, 700)
		case split:
			f.life = ms(100, 600)
		case stall:
			f.life = ms(20, 700)
		case slow:
			f.life, f.much = ms(200, 1500), 32<<10+rng.IntN(512<<10)
		case late:
			f.life, f.much = ms(200, 1500), 1+rng.IntN(40)
		case corrupt:
			f.life, f.much = ms(100, 1000), 1000+rng.IntN(50_000)
		case remove:
			f.life = ms(1, 300)
		case restart, limit:
			f.life, f.much = ms(10, 400), rng.IntN(2)
		case block:
			f.life, f.much = ms(20, 700), int(drawFrom(rng, everyCallback))
		case panics:
			f.life, f.much = ms(20, 300), int(drawFrom(rng, everyCallback))
		case move:
			f.life = ms(50, 500)
		case unregister:
			f.life, f.much = ms(1, 300), rng.IntN(len(routes)*handlers)
		case step:
			f.life, f.much = ms(1, 1000), rng.IntN(len(steps))
		}
		end, outage := at+f.life, false
		var until *time.Duration // when what it needs is free
		switch f.kind {
		case cut, halfOpen:
		case restart, limit:
			if f.much > 0 {
				end += maxGrace
			}
			until, outage = &hostUntil, true
		case unregister:
			until = &hostUntil
		case block, panics:
			if outage = callback(f.much).connects(); outage {
				until = &hostUntil
				break
			}
			key := [2]int{f.a, f.much}
			if callbackUntil[key] == nil {
				callbackUntil[key] = new(time.Duration)
			}
			until = callbackUntil[key]
		case move:
			until, outage = &hostUntil, true
		case step:
			until = &stepUntil
		case split:
			until, outage = &splitUntil, true
		default:
			link := [2]int{min(f.a, f.b), max(f.a, f.b)}
			if busy[link] == nil {
				busy[link] = new(time.Duration)
			}
			until, outage = busy[link], f.kind == loss || f.kind == partition || f.kind == stall || f.kind == remove
		}
		last := round
		if outage {
			last -= min(recovery, round/4)
		}
		if end > last || until != nil && at < *until {
			continue
		}
		if until != nil {
			*until = end + rest
			if outage {
				*until += f.life
			}
		}
		all = append(all, f)
	}
	return all
}

func TestSchedule_IsDrawnFromTheSeed(t *testing.T) {
	draw := func(seed uint64) []fault { return drawFaults(rand.New(rand.NewPCG(seed, 0)), maxRound, faultPause) }
	all := draw(1)
	require.Equal(t, all, draw(1))
	require.NotEqual(t, all, draw(2))

	for seed := range uint64(10) {
		all = append(all, draw(3+seed)...) // some kinds are rare
	}
	var seen [kinds]int
	for _, f := range all {
		seen[f.kind]++
		require.LessOrEqual(t, f.at+f.life, maxRound)
		require.NotEqual(t, f.a, f.b)
	}
	for k, n := range seen {
		require.Equal(t, kind(k).weight() > 0, n > 0, kindNames[k])
	}
}

// What a loss throws away must not get through because another fault of the same link has ended.
func TestSchedule_LastingFaultsOfALinkDoNotOverlap(t *testing.T) {
	random := seed.Rand(t)
	for range 20 {
		until := make(map[[2]int]time.Duration)
		for _, f := range drawFaults(random, maxRound, faultPause) {
			if !f.lasts() {
				continue
			}
			link := [2]int{min(f.a, f.b), max(f.a, f.b)}
			require.GreaterOrEqual(t, f.at, until[link])
			until[link] = f.at + f.life + rest
		}
	}
}
