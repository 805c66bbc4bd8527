//go:build linux || darwin || freebsd

package main

import "syscall"

// readDisk asks the operating system for the disk that dir is on.
func readDisk(dir string) (*diskInfo, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return nil, err
	}
	size := uint64(st.Bsize)
	return &diskInfo{Dir: dir, Total: uint64(st.Blocks) * size, Free: uint64(st.Bavail) * size}, nil
}
