package grid_test

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/bytepool"
	"github.com/gridrpc/grid/internal/rig"
)

func TestTyped_StreamRecyclesOnce(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprint("shared=", shared), func(t *testing.T) {
			newEmpty := func() *counted { return new(counted) }
			h := grid.NewStream(rig.Handler, newEmpty, newEmpty, newEmpty)
			if shared {
				h.WithSharedResponse()
			}
			var responses, payload, sent, given atomic.Int64
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				require.NoError(t, h.Register(g.Manager(1), func(_ context.Context, _ *counted, in <-chan *counted, out chan<- *counted) *grid.RemoteErr {
					for v := range in {
						out <- &counted{failing{Text: v.Text, times: &responses}}
						h.PutRequest(v)
					}
					return nil
				}))
				for _, through := range []string{"Send", "Requests"} {
					s, err := h.Call(t.Context(), c, &counted{failing{times: &payload}})
					require.NoError(t, err)
					go func() {
						for range 10 {
							if through == "Send" {
								if err := s.Send(&counted{failing{times: &sent}}); err != nil {
									t.Error(err)
								}
							} else {
								s.Requests <- &counted{failing{times: &given}}
							}
						}
						if through == "Send" {
							s.CloseSend()
						} else {
							close(s.Requests)
						}
					}()
					n := 0
					require.NoError(t, s.Results(func(v *counted) error { n++; h.PutResponse(v); return nil }))
					require.Equal(t, 10, n)
				}
				synctest.Wait()
				require.Zero(t, payload.Load(), "the payload stays the caller's")
				require.Zero(t, sent.Load(), "what is given to Send stays the caller's")
				require.EqualValues(t, 10, given.Load(), "what is sent to Requests does not")
				if shared {
					require.Zero(t, responses.Load())
				} else {
					require.EqualValues(t, 20, responses.Load())
				}
			})
		})
	}
}

func TestTyped_StreamsGiveEverythingBack(t *testing.T) {
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		h := grid.NewStream(rig.Handler, grid.NewBytes, grid.NewBytes, grid.NewBytes)
		require.NoError(t, h.Register(g.Manager(1), func(_ context.Context, p *grid.Bytes, in <-chan *grid.Bytes, out chan<- *grid.Bytes) *grid.RemoteErr {
			out <- p
			for v := range in {
				out <- v
			}
			return nil
		}))
		synctest.Wait()
		before := bytepool.Out()
		for i := range 100 {
			payload := grid.NewBytesWithCopyOf([]byte("payload"))
			s, err := h.Call(t.Context(), c, payload)
			require.NoError(t, err)
			payload.Recycle()
			go func() {
				for range 5 {
					b := h.NewRequest()
					*b = append(*b, fmt.Sprint("message ", i)...)
					s.Requests <- b
				}
				close(s.Requests)
			}()
			n := 0
			require.NoError(t, s.Results(func(v *grid.Bytes) error {
				if want := fmt.Sprint("message ", i); n > 0 && string(*v) != want {
					return fmt.Errorf("%q in place of %q", *v, want)
				}
				n++
				h.PutResponse(v)
				return nil
			}))
			require.Equal(t, 6, n)
		}

		// What nobody gets to see is put back as well.
		for range 20 {
			ctx, cancel := context.WithCancel(t.Context())
			s, err := h.Call(ctx, c, grid.NewBytesWith(nil))
			require.NoError(t, err)
			for range 3 {
				require.NoError(t, s.Send(grid.NewBytesWith([]byte("thrown away"))))
			}
			synctest.Wait()
			cancel()
			require.ErrorIs(t, s.Results(nil), context.Canceled)
			require.NotEqual(t, io.EOF, s.Send(grid.NewBytesWith(nil)))
		}
		synctest.Wait()
		require.LessOrEqual(t, bytepool.Out(), before, "all buffers are put back")
	})
}
