package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

// netns is a network namespace: a thread of this process that is in it, and runs there what it is
// given. It has no name that could be taken or left behind: it is gone, with its interfaces, when
// the thread is and so are the processes that the thread has started, however this process ends.
type netns struct {
	path  string // of the namespace, for ip
	tasks chan func()
	ended chan struct{}
}

func newNetns() (*netns, error) {
	n := &netns{tasks: make(chan func()), ended: make(chan struct{})}
	made := make(chan error)
	go func() {
		defer close(n.ended)
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		err := syscall.Unshare(syscall.CLONE_NEWNET)
		n.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), syscall.Gettid())
		made <- err
		for f := range n.tasks {
			f()
		}
	}()
	if err := <-made; err != nil {
		n.close()
		return nil, fmt.Errorf("no network namespace can be made, which takes root: %w", err)
	}
	return n, nil
}

func (n *netns) close() {
	close(n.tasks)
	<-n.ended
}

// do runs f in the namespace. Only what f does on its own goroutine is there: the sockets that it
// makes, the processes that it starts.
func (n *netns) do(f func() error) error {
	err := make(chan error, 1)
	n.tasks <- func() { err <- f() }
	return <-err
}

// start starts a process in the namespace, which ends with it at the latest.
func (n *netns) start(c *exec.Cmd) error {
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return n.do(c.Start)
}

// run runs commands, one a line, until one fails.
func (n *netns) run(commands string) error {
	for line := range strings.Lines(commands) {
		args := strings.Fields(line)
		if len(args) == 0 {
			continue
		}
		var out strings.Builder
		c := exec.Command(args[0], args[1:]...)
		c.Stdout, c.Stderr = &out, &out
		err := n.start(c)
		if err == nil {
			err = c.Wait()
		}
		if err != nil {
			return fmt.Errorf("%s: %w: %s", strings.TrimSpace(line), err, strings.TrimSpace(out.String()))
		}
	}
	return nil
}

// dial dials from within the namespace, to an address that needs no look-up: a resolver has
// goroutines of its own.
func (n *netns) dial(ctx context.Context, network, addr string) (c net.Conn, err error) {
	err = n.do(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}
