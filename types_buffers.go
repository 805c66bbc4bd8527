package grid

import "github.com/gridrpc/grid/internal/bytepool"

// defaultBufferCap is the capacity that [GetByteBuffer] returns.
const defaultBufferCap = 4 << 10

// GetByteBuffer returns an empty buffer with a capacity of at least 4 KiB from grid's pool. The
// caller owns it; giving it back with [PutByteBuffer] is optional. It may be called concurrently.
func GetByteBuffer() []byte { return bytepool.Get(defaultBufferCap) }

// GetByteBufferCap returns an empty buffer with a capacity of at least n bytes from grid's pool.
// The caller owns it; giving it back with [PutByteBuffer] is optional. Buffers of more than 32 MiB
// are allocated and never pooled. It may be called concurrently.
func GetByteBufferCap(n int) []byte { return bytepool.Get(n) }

// PutByteBuffer gives b back to grid's pool: from then on it is grid's, and neither b nor any other
// slice of the same array may be touched. Any buffer will do, also nil and one that grid did not
// make. It may be called concurrently.
//
// In a program that is built with the race detector the pool overwrites what it gets back, and
// panics where a buffer is put back twice or written to afterwards.
func PutByteBuffer(b []byte) { bytepool.Put(b) }
