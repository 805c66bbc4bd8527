package main

import (
	"fmt"
	"os"
	"slices"
	"testing"
)

// TestMain is also the server of a peer, for tests with an end in each process, and those of a star.
func TestMain(m *testing.M) {
	if starMain() {
		return
	}
	if slices.Equal(os.Args[1:], []string{serveCommand}) {
		if err := serveOrder(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}
