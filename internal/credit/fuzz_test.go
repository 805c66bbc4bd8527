package credit

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// FuzzCredits reserves from several goroutines at a time, adds, cancels and closes: no credit is
// lost or given twice, and nobody waits while there is one.
func FuzzCredits(f *testing.F) {
	for _, steps := range []string{
		"", "\x02\x03\x00\x00\x00\x01\x02", "\x00\x05\x00\x00\x00\x01\x01\x01\x01\x02\x01", "\x01\x01\x01\x01\x00\x00\x03",
		"\x00\x04\x00\x00\x02\x00\x01\x01\x02\x01", "\x00\x00\x00\x01\x01\x03\x00\x01\x02", "\x00\x04\x00\x00\x04\x02\x03\x01\x01", "\x00\xff\x00\x05\x00\x01\xff\x05\x00",
		"\x00\x05\x02\x09\x02\x08\x02\x04", strings.Repeat("\x00\x00\x03\x00\x02\x04", 40),
	} {
		f.Add([]byte(steps))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 400 {
			return
		}
		next := func() (c int) {
			if len(data) > 0 {
				c, data = int(data[0]), data[1:]
			}
			return c
		}
		synctest.Test(t, func(t *testing.T) {
			avail := next() % 8
			limit := avail + next()%200
			c := newCredits(avail, limit)
			gone, why := errors.New("gone"), errors.New("why")
			closed := false
			defer c.Close(gone)
			type waiter struct {
				cancel context.CancelCauseFunc
				result chan error
			}
			var waiting []waiter
			// settle takes those out that wait no more, and holds them against the model.
			settle := func(cancelled bool) {
				synctest.Wait()
				left := waiting[:0]
				for _, w := range waiting {
					select {
					case err := <-w.result:
						w.cancel(nil)
						switch {
						case closed:
							require.Equal(t, gone, err)
						case err == nil:
							avail--
						default:
							require.True(t, cancelled)
							require.Equal(t, why, err)
						}
					default:
						left = append(left, w)
					}
				}
				waiting = left
				require.GreaterOrEqual(t, avail, 0, "a credit was given twice")
				require.False(t, len(waiting) > 0 && (closed || avail > 0), "%d wait, and there are %d credits", len(waiting), avail)
			}
			for len(data) > 0 {
				switch next() % 6 {
				case 0, 1:
					if len(waiting) == 20 {
						continue
					}
					ctx, cancel := context.WithCancelCause(t.Context())
					w := waiter{cancel, make(chan error, 1)}
					waiting = append(waiting, w)
					go func() { w.result <- c.Reserve(ctx) }()
					settle(false)
				case 2:
					n := next() - 3
					err := c.Add(n)
					if n < 0 || avail+n > limit {
						require.Equal(t, ErrOverflow, err)
						continue
					}
					require.NoError(t, err)
					avail += n
					settle(false)
				case 3: // a credit and a cancellation at once
					if len(waiting) == 0 {
						continue
					}
					w := waiting[next()%len(waiting)]
					go w.cancel(why)
					if avail < limit {
						avail++
						go c.Add(1)
					}
					settle(true)
				case 4:
					if next()%8 == 0 {
						c.Close(gone)
						closed = true
						settle(false)
					}
				case 5:
					if len(waiting) == 0 { // only one may be at it
						require.Equal(t, closed || avail > 0, c.Ready() == nil)
					}
				}
			}
			for len(waiting) > 0 {
				n := limit - avail
				if closed || n == 0 {
					break
				}
				require.NoError(t, c.Add(n))
				avail += n
				settle(false)
			}
			if closed = true; len(waiting) > 0 {
				c.Close(gone)
				settle(false)
			}
		})
	})
}
