package rig

import (
	"runtime"
	"strings"
	"testing/synctest"

	"github.com/gridrpc/grid/internal/bytepool"
	_ "github.com/gridrpc/grid/internal/seed" // all rooms take -seed
)

// Heap is what is in use once the garbage is collected.
func Heap() int64 {
	var m runtime.MemStats
	for range 3 { // what pools hold goes with the second
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Scaled is n, or less where the race detector makes everything slow.
func Scaled(n int) int {
	if bytepool.Strict {
		return n / 5
	}
	return n
}

// BubbleGoroutines counts those of a bubble.
func BubbleGoroutines() int {
	synctest.Wait()
	buf := make([]byte, 8<<20)
	return strings.Count(string(buf[:runtime.Stack(buf, true)]), ", synctest bubble ")
}
