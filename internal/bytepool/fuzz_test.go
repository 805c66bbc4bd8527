package bytepool

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzBuffers takes buffers, writes to all of them, grows them and puts them back: none is smaller
// than what was asked for, and no two share an array.
func FuzzBuffers(f *testing.F) {
	f.Add([]byte{0, 1, 0, 2, 0, 1, 2, 1, 2, 0, 0, 3})
	f.Add([]byte{0, 20, 1, 200, 10, 0, 20, 2, 0, 0, 21, 3, 9, 3, 8})
	f.Add([]byte{3, 7, 3, 1, 0, 7, 0, 8, 0, 9, 0, 127, 0, 128, 0, 129})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 200 {
			return
		}
		next := func() (c int) {
			if len(data) > 0 {
				c, data = int(data[0]), data[1:]
			}
			return c
		}
		// size is about a power of two, small mostly.
		size := func() int { return max(0, 1<<(next()%16)+next()%5-2) }
		var held [][]byte
		var marks []byte // what each is filled with
		filled := 0
		add := func(b []byte, n int) {
			require.GreaterOrEqual(t, cap(b), n)
			filled++
			mark := byte(1 + filled%251)
			held, marks = append(held, b[:n]), append(marks, mark)
			for i := range held[len(held)-1] {
				held[len(held)-1][i] = mark
			}
		}
		remove := func(i int) (b []byte) {
			b = held[i]
			require.Equal(t, len(b), bytes.Count(b, marks[i:i+1]), "somebody else has written to a buffer")
			held = append(held[:i], held[i+1:]...)
			marks = append(marks[:i], marks[i+1:]...)
			return b
		}
		for len(data) > 0 {
			switch op := next() % 4; {
			case op == 0 && len(held) < 20:
				n := size()
				b := Get(n)
				require.Empty(t, b)
				add(b, n)
			case op == 1 && len(held) > 0:
				b := remove(next() % len(held))
				mark, n, more := byte(0), len(b), size()
				if n > 0 {
					mark = b[0]
				}
				b = Grow(b, more)
				require.GreaterOrEqual(t, cap(b)-len(b), more)
				require.Equal(t, n, bytes.Count(b, []byte{mark}))
				add(b, n+more)
			case op == 2 && len(held) > 0:
				Put(remove(next() % len(held)))
			case op == 3:
				Put(make([]byte, size())) // a stranger
			}
		}
		for len(held) > 0 {
			Put(remove(0))
		}
	})
}
