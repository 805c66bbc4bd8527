package gridmember

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/hashicorp/memberlist"

	"github.com/gridrpc/grid/internal/clip"
)

// Who can gossip can make up members, and each is kept and spread by memberlist, and dialled by
// grid. These are the bounds of what comes of that.
const (
	// maxMembers is how many names may be known, this host's and those of members that left lately
	// among them.
	maxMembers = 4096
	// maxName is more than the bytes of any base URL in its shortest form.
	maxName = 300

	// linesAtOnce are logged of memberlist in a minute.
	linesAtOnce = 100
)

// What is wrong with a member. It is memberlist that logs it, with the name.
var (
	errLongName = fmt.Errorf("name of more than %d bytes", maxName)
	errLongMeta = fmt.Errorf("meta data of more than %d bytes", memberlist.MetaMaxSize)
	errAddress  = errors.New("address that is none")
	errFull     = fmt.Errorf("there are %d members", maxMembers)
)

// admission decides who may be a member. It has the names that memberlist keeps, more or less,
// which does not tell how many these are: those of members, and for some time of those that are no
// more, or have never become one.
type admission struct {
	self  string
	next  memberlist.AliveDelegate // may be nil
	dead  time.Duration            // how long memberlist keeps who is dead
	probe time.Duration            // how often it probes one

	mu     sync.Mutex           // guards what follows
	names  map[string]time.Time // since when it is no member; zero for a member
	looked time.Time            // when names were last forgotten
}

func newAdmission(c *memberlist.Config) *admission {
	return &admission{
		self: c.Name, next: c.Alive, dead: c.GossipToTheDeadTime, probe: max(c.ProbeInterval, time.Second),
		names: make(map[string]time.Time),
	}
}

// NotifyAlive implements [memberlist.AliveDelegate].
func (a *admission) NotifyAlive(n *memberlist.Node) error {
	if n.Name != a.self {
		if err := a.check(n); err != nil {
			return err
		}
	}
	if a.next != nil {
		if err := a.next.NotifyAlive(n); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.names[n.Name]; !ok {
		a.names[n.Name] = time.Now() // it may become none
	}
	return nil
}

func (a *admission) check(n *memberlist.Node) error {
	switch {
	case len(n.Name) > maxName:
		return errLongName
	case len(n.Meta) > memberlist.MetaMaxSize:
		return errLongMeta
	case len(n.Addr) != 4 && len(n.Addr) != 16:
		return errAddress
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.names[n.Name]; ok || len(a.names) < maxMembers {
		return nil
	}
	if a.forget(time.Now()); len(a.names) >= maxMembers {
		return errFull
	}
	return nil
}

// forget forgets the names that memberlist has forgotten. It does so when it has probed all members
// and begins again.
func (a *admission) forget(now time.Time) {
	if now.Sub(a.looked) < time.Second {
		return // it takes a while
	}
	a.looked = now
	members := 0
	for _, since := range a.names {
		if since.IsZero() {
			members++
		}
	}
	kept := a.dead + 2*time.Duration(members+1)*a.probe
	for name, since := range a.names {
		if !since.IsZero() && now.Sub(since) > kept {
			delete(a.names, name)
		}
	}
}

func (a *admission) joined(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.names[name] = time.Time{}
}

func (a *admission) left(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.names[name] = time.Now()
}

// rationed is what memberlist logs to: whoever reaches its port can make it log, a line for each
// packet, with names that may be long.
type rationed struct {
	to func() io.Writer

	mu             sync.Mutex // guards what follows
	begin          time.Time  // of the present minute
	lines, dropped int        // in it
}

// Write implements io.Writer, for one line at a time.
func (r *rationed) Write(line []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.begin) >= time.Minute {
		if r.dropped > 0 {
			_, _ = fmt.Fprintf(r.to(), "[WARN] gridmember: %d lines of memberlist were dropped\n", r.dropped)
		}
		r.begin, r.lines, r.dropped = now, 0, 0
	}
	if r.lines == linesAtOnce {
		r.dropped++
		return len(line), nil
	}
	r.lines++
	// A name may have anything in it, also what looks like another line.
	one := strings.Map(func(c rune) rune {
		if unicode.IsControl(c) {
			return ' '
		}
		return c
	}, clip.Bytes(bytes.TrimRight(line, "\n")))
	if _, err := io.WriteString(r.to(), one+"\n"); err != nil {
		return 0, err
	}
	return len(line), nil
}
