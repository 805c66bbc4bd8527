//go:build !linux && !darwin && !freebsd

package main

import (
	"errors"
	"runtime"
)

// readDisk asks the operating system for the disk that dir is on.
func readDisk(dir string) (*diskInfo, error) {
	return nil, errors.New("reading a disk's size is not written for " + runtime.GOOS)
}
