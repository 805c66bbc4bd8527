package chaos

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/clockstep"
	"github.com/gridrpc/grid/internal/seed"
)

var (
	durationFlag = flag.Duration("duration", 10*time.Second, "how long faults are made")
	tcpFlag      = flag.Bool("tcp", false, "over loopback sockets in place of memory")
	faultsFlag   = flag.String("faults", "", "the kinds of faults that are made, with commas; all if empty")
)

func TestMain(m *testing.M) {
	flag.Parse()
	timeout := flag.Lookup("test.timeout").Value.(flag.Getter).Get().(time.Duration)
	if need := *durationFlag + time.Minute; timeout > 0 && timeout < need {
		fmt.Fprintf(os.Stderr, "-duration %v needs a -timeout of %v, or 0\n", *durationFlag, need)
		os.Exit(2)
	}
	if *faultsFlag != "" {
		for _, name := range strings.Split(*faultsFlag, ",") {
			if !slices.Contains(kindNames[:], name) {
				fmt.Fprintf(os.Stderr, "-faults: %q is none of %v\n", name, kindNames)
				os.Exit(2)
			}
		}
	}
	goleak.VerifyTestMain(m)
}

func TestChaos_EveryCallHasItsEnd(t *testing.T) {
	duration := *durationFlag
	if testing.Short() {
		duration = min(duration, 3*time.Second)
	}
	run(t, duration, nil)
}

// The same with a clock that is stepped, which takes a program that is built for it.
func TestChaos_EveryCallHasItsEndThoughTheClockIsStepped(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: make test-long runs it")
	}
	clockstep.Run(t, ".", "-v", "-run", "^TestChaos_EveryCallHasItsEnd$", "-timeout", "0", "-args",
		fmt.Sprint("-duration=", *durationFlag), fmt.Sprint("-tcp=", *tcpFlag), "-faults="+*faultsFlag, fmt.Sprint("-seed=", seed.Of(t)))
}

// A round ends with a heal, after which everything must work.
const maxRound = 10 * time.Second

// pace is what the machine makes of it: the race detector, and a pool that looks at every byte, are
// slow.
type pace struct {
	clients  int           // for each ordered pair of hosts
	pause    time.Duration // between faults, on average
	healTime time.Duration // until everything works after a heal
}

func thePace() pace {
	if bytepool.Strict {
		return pace{clients: 2, pause: 3 * faultPause, healTime: 10 * time.Second}
	}
	return pace{clients: 5, pause: faultPause, healTime: 2 * time.Second}
}

// run makes chaos for some time and fails the test where the model was violated. watch, if not nil,
// runs meanwhile, until its context ends.
func run(t *testing.T, duration time.Duration, watch func(ctx context.Context)) {
	seed := seed.Of(t)
	m := &model{ledger: newLedger()}
	f, err := newFabric(seed)
	require.NoError(t, err)
	c := startCluster(t, f, m)
	var faults trace
	chaos(c, seed, duration, &faults, watch)
	if n, _ := m.violations(); n == 0 {
		c.requireBuffersBack(seed)
	}
	c.stop()
	c.requireClean()

	n, told := m.violations()
	fmt.Printf("chaos: seed %d, %d calls, %d streams, %d cuts, %d restarts, violations %d\n",
		seed, m.tally.calls.Load(), m.tally.streams.Load(), m.tally.cuts.Load(), m.tally.restarts.Load(), n)
	t.Logf("%v; all worked again at most %v after a heal", &m.tally, time.Duration(m.tally.slowest.Load()).Round(time.Millisecond))
	if n > 0 {
		t.Errorf("%d violations, replay with -seed %d:\n%s\nThe last faults:\n%v", n, seed, strings.Join(told, "\n"), &faults)
	}
}

func newFabric(seed uint64) (fabric, error) {
	if *tcpFlag {
		return newTCP()
	}
	rng := rand.New(rand.NewPCG(seed, 1<<40))
	return newMemory(func() int { return 1 << (10 + 2*rng.IntN(5)) }), nil
}

// chaos calls and makes faults for some time, and waits until all calls have ended.
func chaos(c *cluster, seed uint64, duration time.Duration, faults *trace, watch func(ctx context.Context)) {
	p := thePace()
	c.requireWorks(p.healTime) // at first
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var background sync.WaitGroup
	background.Go(func() {
		for sleep(ctx, time.Second) {
			c.model.tick()
		}
	})
	if watch != nil {
		background.Go(func() { watch(ctx) })
	}
	clients := c.startClients(ctx, seed, p.clients)

	round := min(maxRound, duration/2)
	for began, n := time.Now(), uint64(0); ; n++ {
		left := duration - time.Since(began)
		if left < round/4 {
			break
		}
		rng := rand.New(rand.NewPCG(seed, n))
		c.inject(drawFaults(rng, min(round, left), p.pause), faults)
		c.fabric.healAll()
		unblock := c.nodes[rng.IntN(hosts)].hooks.begin(drawFrom(rng, harmless), false)
		c.requireWorks(p.healTime)
		c.deafen(int(n % hosts))
		c.requireWorks(p.healTime)
		unblock()
	}

	stop()
	select {
	case <-clients:
	case <-time.After(2 * tooLong):
		c.model.violation("calls are still under way:\n%s", stacks())
	}
	background.Wait()
	c.requireIdle()
}

// startClients starts all callers. The channel is closed when they have ended.
func (c *cluster) startClients(ctx context.Context, seed uint64, each int) <-chan struct{} {
	var all sync.WaitGroup
	for from := range hosts {
		for to := range hosts {
			if from == to {
				continue
			}
			for i := range each {
				rng := rand.New(rand.NewPCG(seed, 1<<32+uint64(from<<16+to<<8+i)))
				all.Go(func() { (&client{cluster: c, from: from, to: to, rng: rng}).run(ctx) })
			}
		}
	}
	done := make(chan struct{})
	go func() {
		all.Wait()
		close(done)
	}()
	return done
}

// requireIdle checks that nothing is left of calls that have ended.
func (c *cluster) requireIdle() {
	if !eventually(func() bool { return len(c.busy()) == 0 }) {
		c.model.violation("nobody calls, but under way are: %s", strings.Join(c.busy(), "; "))
	}
}

// requireBuffersBack checks that the pool gets back all buffers of calls that end well. Those of
// others it may lose to the garbage collector: what a handler that panics was given, and what is
// sent to a stream that has ended.
func (c *cluster) requireBuffersBack(seed uint64) {
	for try := range uint64(5) {
		before, bad := bytepool.Out(), c.model.tally.notGood()
		c.eachPair(func(from, to int) {
			rng := rand.New(rand.NewPCG(seed, 1<<50+try<<16+uint64(from<<8+to)))
			for range 50 {
				_ = (&client{cluster: c, from: from, to: to, rng: rng, calm: true}).callAnything()
			}
		})
		c.requireIdle()
		if c.model.tally.notGood() > bad {
			continue // a link was lost, as it may be where others use the machine
		}
		if !eventually(func() bool { return bytepool.Out() <= before }) {
			c.model.violation("%d buffers are left of calls that all ended well", bytepool.Out()-before)
		}
		return
	}
}

// requireClean checks that nothing is left of a cluster that has stopped.
func (c *cluster) requireClean() {
	if !eventually(func() bool { return c.fabric.open() == 0 }) {
		c.model.violation("%d sockets are left", c.fabric.open())
	}
	if err := goleak.Find(); err != nil {
		c.model.violation("goroutines are left: %.3000v", err)
	}
}

func eventually(ok func() bool) bool {
	for began := time.Now(); time.Since(began) < tooLong; time.Sleep(20 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	return ok()
}

func stacks() string {
	b := make([]byte, 1<<20)
	b = b[:runtime.Stack(b, true)]
	return string(b[:min(len(b), 20_000)])
}
