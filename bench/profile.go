package main

import (
	"errors"
	"flag"
	"os"
	"runtime"
	"runtime/pprof"
	"runtime/trace"
)

// profiles are the files to write while measuring, by what they are of. Each costs time, so a run
// with one is not to be compared with a run without.
type profiles struct{ cpu, mutex, block, mem, trace *string }

func profileFlags() profiles {
	file := func(name, what string) *string { return flag.String(name, "", "file for "+what) }
	return profiles{
		cpu:   file("cpuprofile", "a CPU profile of the measurements"),
		mutex: file("mutexprofile", "a profile of contended locks"),
		block: file("blockprofile", "a profile of blocked goroutines"),
		mem:   file("memprofile", "a profile of all allocations"),
		trace: file("trace", "an execution trace; keep the run short"),
	}
}

// start begins to profile. stop writes what was asked for.
func (p profiles) start() (stop func() error, err error) {
	var ends []func() error
	// begin opens a file, and closes it at the end, after end.
	begin := func(name string, start func(f *os.File) error, end func(f *os.File) error) {
		if name == "" || err != nil {
			return
		}
		var f *os.File
		if f, err = os.Create(name); err != nil {
			return
		}
		err = start(f)
		ends = append(ends, func() error { return errors.Join(end(f), f.Close()) })
	}
	lookup := func(name string) func(f *os.File) error {
		return func(f *os.File) error { return pprof.Lookup(name).WriteTo(f, 0) }
	}
	begin(*p.cpu, func(f *os.File) error { return pprof.StartCPUProfile(f) },
		func(*os.File) error { pprof.StopCPUProfile(); return nil })
	begin(*p.mutex, func(*os.File) error { runtime.SetMutexProfileFraction(10); return nil }, lookup("mutex"))
	begin(*p.block, func(*os.File) error { runtime.SetBlockProfileRate(1000); return nil }, lookup("block"))
	begin(*p.mem, func(*os.File) error { runtime.MemProfileRate = 512; return nil }, lookup("allocs"))
	begin(*p.trace, func(f *os.File) error { return trace.Start(f) },
		func(*os.File) error { trace.Stop(); return nil })
	return func() error {
		var errs []error
		for _, end := range ends {
			errs = append(errs, end())
		}
		return errors.Join(errs...)
	}, err
}
