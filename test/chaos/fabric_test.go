package chaos

import (
	"context"
	"net"
	"time"

	"github.com/gridrpc/grid/internal/faultconn"
)

// fabric joins the hosts, and breaks their links. Stalls, rates, delays and corruptions are of one
// direction.
type fabric interface {
	name(host int) string // its base URL
	listen(host int) (net.Listener, error)
	dial(host int) func(ctx context.Context, network, addr string) (net.Conn, error)

	cut(a, b int)
	halfOpen(dead, alive int)
	partition(a, b int)
	heal(a, b int) // ends a partition
	healAll()
	stall(from, to int, on bool)
	rate(from, to, bytesPerSecond int)
	delay(from, to int, d time.Duration)
	corrupt(from, to int, c faultconn.Corruption)

	// open is how many sockets nobody has closed.
	open() int
}

// memory is a fabric in memory.
type memory struct{ net *faultconn.Network }

// newMemory gives the links buffers of different sizes, also tiny ones, so that there is something
// in the queues of the managers.
func newMemory(sizes func() int) memory {
	m := memory{net: faultconn.NewNetwork()}
	for a := range hosts {
		for b := range a {
			m.net.SetLinkBuffer(m.addr(a), m.addr(b), sizes())
		}
	}
	return m
}

// Names that a flipped bit does not make another's.
var memoryNames = [hosts]string{"anna", "bert", "cleo", "dora", "emil"}

func (m memory) addr(i int) string   { return memoryNames[i] + ":9000" }
func (m memory) name(i int) string   { return "http://" + m.addr(i) }
func (m memory) open() int           { return m.net.Conns() }
func (m memory) cut(a, b int)        { m.net.Cut(m.addr(a), m.addr(b)) }
func (m memory) halfOpen(a, b int)   { m.net.HalfOpen(m.addr(a), m.addr(b)) }
func (m memory) partition(a, b int)  { m.net.Partition(m.addr(a), m.addr(b)) }
func (m memory) heal(a, b int)       { m.net.Heal(m.addr(a), m.addr(b)) }
func (m memory) healAll()            { m.net.HealAll() }
func (m memory) rate(a, b, rate int) { m.net.Rate(m.addr(a), m.addr(b), rate) }

func (m memory) listen(i int) (net.Listener, error) { return m.net.Listen(m.addr(i)) }

func (m memory) dial(i int) func(context.Context, string, string) (net.Conn, error) {
	return m.net.Dialer(m.addr(i))
}

func (m memory) stall(a, b int, on bool) { m.net.Stall(m.addr(a), m.addr(b), on) }

func (m memory) delay(a, b int, d time.Duration) { m.net.Delay(m.addr(a), m.addr(b), d) }

func (m memory) corrupt(a, b int, c faultconn.Corruption) {
	m.net.Corrupt(m.addr(a), m.addr(b), c)
}
