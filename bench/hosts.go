package main

import (
	"fmt"
	"syscall"
	"time"
)

// hosts measures meshes of more and more hosts that only stay connected.
func (r *run) hosts() error {
	if !r.has("grid") {
		return nil
	}
	sizes, idle := []int{8, 32, 64, 96}, 5*time.Second
	if r.quick {
		sizes, idle = sizes[:2], time.Second
	}
	for _, n := range sizes {
		r.progress("hosts: %d", n)
		if err := r.hostsOf(n, idle); err != nil {
			return fmt.Errorf("%d hosts: %w", n, err)
		}
	}
	return nil
}

func (r *run) hostsOf(n int, idle time.Duration) error {
	before, cpu := takeUse(), cpuTime()
	m, err := newGridMesh(n, config{})
	if err != nil {
		return err
	}
	defer m.close()
	ends := float64(n * (n - 1))
	r.figure(float64((cpuTime()-cpu).Microseconds())/ends, "µs", "hosts/%d-connect-cpu/grid", n)
	r.figure(takeUse().since(before).bytes/ends, "bytes", "hosts/%d-heap/grid", n)
	cpu = cpuTime()
	time.Sleep(idle)
	r.figure(float64((cpuTime()-cpu).Microseconds())/ends/idle.Seconds(), "µs/s", "hosts/%d-idle-cpu/grid", n)
	return nil
}

// cpuTime is what this process has used so far.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
