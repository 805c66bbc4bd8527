package calls

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rawpeer"
	"github.com/gridrpc/grid/internal/rig"
)

// noise is n bytes that are not like each other.
func noise(n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = rng.Read(b)
	return b
}

// copyBack is a handler that sends back its input.
func copyBack(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
	_, err := io.Copy(s.Writer(ctx), s.Reader())
	return grid.NewRemoteErr(err)
}

// only hides what else a reader can do.
type only struct{ io.Reader }

func copyAll(t testing.TB, s *grid.Stream, src io.Reader) []byte {
	t.Helper()
	wrote := rig.InBackground(func() error {
		w := s.Writer(t.Context())
		_, err := io.Copy(w, src)
		return w.CloseWithError(err)
	})
	got, err := io.ReadAll(s.Reader())
	require.NoError(t, err)
	require.NoError(t, <-wrote)
	require.NoError(t, s.Finish(t.Context()))
	return got
}

func TestIO_CopiesInBothDirections(t *testing.T) {
	t.Parallel()
	sources := map[string]func(b []byte) io.Reader{
		"WriterTo":   func(b []byte) io.Reader { return bytes.NewReader(b) },
		"ReaderFrom": func(b []byte) io.Reader { return only{bytes.NewReader(b)} },
		"data with the end": func(b []byte) io.Reader {
			return iotest.DataErrReader(only{bytes.NewReader(b)})
		},
		"halves": func(b []byte) io.Reader { return iotest.HalfReader(bytes.NewReader(b)) },
		"bufio":  func(b []byte) io.Reader { return bufio.NewReader(bytes.NewReader(b)) },
	}
	for name, source := range sources {
		t.Run(name, func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				serve(g, 4, 4, copyBack)
				for _, n := range []int{0, 1, 1000, rig.WholeSize - 1, rig.WholeSize, rig.WholeSize + 1, 700_000} {
					want := noise(n)
					require.True(t, bytes.Equal(want, copyAll(t, rig.OpenStream(t, t.Context(), c), source(want))), n)
				}
				synctest.Wait()
				require.Zero(t, g.Conn(1, 0).Stats().Handlers)
				require.Zero(t, g.Conn(1, 0).Stats().KeptBytes)
				require.Zero(t, c.Stats().KeptBytes)
			})
		})
	}
}

func TestIO_CopiesOverTCP(t *testing.T) {
	g := rig.NewTCP(t, 2, nil)
	serve(g, 4, 4, copyBack)
	want := noise(8 << 20)
	for _, src := range []io.Reader{bytes.NewReader(want), only{bytes.NewReader(want)}} {
		got := copyAll(t, rig.OpenStream(t, t.Context(), g.Conn(0, 1)), src)
		require.True(t, bytes.Equal(want, got))
	}
}

// The parts are no larger than the other side takes, and the larger ones go out whole.
func TestIO_PartsFitTheOtherSide(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1, 1000, rig.WholeSize + 1} {
		edit := func(i int, o *grid.ManagerOptions) {
			if i == 1 {
				o.MaxMessageSize = limit
			}
		}
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			rig.InPair(t, edit, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				var sizes []int
				serve(g, 1, 1, func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
					w := s.Writer(ctx)
					for b, err := range s.All() {
						sizes = append(sizes, len(b))
						if err == nil {
							_, err = w.Write(b)
						}
						if err != nil {
							return grid.NewRemoteErr(err)
						}
					}
					return grid.NewRemoteErr(w.Close())
				})
				most := min(limit, rig.WholeSize)
				want := noise(2*most + 1)
				for _, src := range []io.Reader{bytes.NewReader(want), only{bytes.NewReader(want)}} {
					sizes = nil
					require.Equal(t, want, copyAll(t, rig.OpenStream(t, t.Context(), c), src))
					require.Len(t, sizes, (len(want)+most-1)/most)
					require.Equal(t, most, sizes[0])
				}
			})
		})
	}
}

var errSource = errors.New("the source has failed")

// failingSource fails after some of its data.
func failingSource() io.Reader {
	return io.MultiReader(strings.NewReader("half of"), iotest.ErrReader(errSource))
}

// requireCutShort requires that a reader has not come to the good end, and tells why.
func requireCutShort(t testing.TB, err error, cause error) {
	t.Helper()
	require.Error(t, err)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.NotErrorIs(t, err, io.EOF)
	if cause != nil {
		require.ErrorIs(t, err, cause)
	}
}

// Whatever happens to a client, its handler does not take half a file for a whole one.
func TestIO_HalfAnInputIsNotTakenForAWholeOne(t *testing.T) {
	t.Parallel()
	type client struct {
		g      *rig.Grid
		s      *grid.Stream
		w      *grid.StreamWriter
		cancel context.CancelFunc
	}
	for name, test := range map[string]struct {
		end   func(t *testing.T, c client)
		cause error
	}{
		"cut":      {func(_ *testing.T, c client) { c.g.Cut(0, 1) }, grid.ErrDisconnected},
		"closed":   {func(_ *testing.T, c client) { c.g.Stop(0) }, grid.ErrDisconnected},
		"deadline": {func(*testing.T, client) { time.Sleep(time.Hour) }, context.DeadlineExceeded},
		// A writer that is dropped without Close.
		"cancelled": {func(_ *testing.T, c client) { c.cancel() }, context.Canceled},
		"cancelled, then closed": {func(t *testing.T, c client) {
			c.cancel()
			require.ErrorIs(t, c.w.Close(), context.Canceled)
		}, context.Canceled},
		"a source that fails": {func(t *testing.T, c client) {
			_, err := io.Copy(c.w, failingSource())
			require.ErrorIs(t, err, errSource)
		}, context.Canceled},
		"a source that fails, then Close": {func(t *testing.T, c client) {
			_, err := c.w.ReadFrom(failingSource())
			require.ErrorIs(t, err, errSource)
			_, err = c.w.Write([]byte("the rest"))
			require.ErrorIs(t, err, errSource)
			_, err = c.w.ReadFrom(strings.NewReader("the rest"))
			require.ErrorIs(t, err, errSource)
			require.ErrorIs(t, c.w.Close(), errSource)
			require.ErrorIs(t, c.s.Err(), errSource)
		}, context.Canceled},
		"a source that fails, then CloseSend": {func(t *testing.T, c client) {
			_, _ = c.w.ReadFrom(failingSource())
			c.s.CloseSend()
		}, context.Canceled},
		"CloseWithError": {func(t *testing.T, c client) {
			require.Equal(t, errSource, c.w.CloseWithError(errSource))
			require.NoError(t, c.w.Close(), "is closed")
			require.ErrorIs(t, c.s.Err(), errSource)
		}, context.Canceled},
		"its context has ended": {func(t *testing.T, c client) {
			ctx, cancel := context.WithCancelCause(context.Background())
			w := c.s.Writer(ctx)
			cancel(io.EOF)
			require.ErrorIs(t, w.Close(), context.Canceled)
		}, context.Canceled},
		"a write that its context has ended": {func(t *testing.T, c client) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			w := c.s.Writer(ctx)
			n, err := w.Write(noise(20 * rig.WholeSize)) // the handler reads no more
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Positive(t, n)
			require.Zero(t, n%rig.WholeSize)
			require.ErrorIs(t, w.Close(), context.DeadlineExceeded)
		}, context.Canceled},
		"a stream that it was copied from is cut short": {func(t *testing.T, c client) {
			ctx, cancel := context.WithCancel(context.Background())
			src, err := c.g.Conn(0, 1).NewStream(ctx, rig.Block, nil)
			require.NoError(t, err)
			go func() { synctest.Wait(); cancel() }()
			_, err = io.Copy(c.w, src.Reader())
			requireCutShort(t, err, context.Canceled)
			requireCutShort(t, c.w.Close(), context.Canceled)
		}, context.Canceled},
		"its reader is closed": {func(t *testing.T, c client) {
			r := c.s.Reader()
			require.NoError(t, r.Close())
			_, err := r.Read(make([]byte, 1))
			require.ErrorIs(t, err, io.ErrClosedPipe)
		}, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				type end struct {
					got string
					err error
				}
				ends, goOn := make(chan end, 1), make(chan struct{})
				serve(g, 1, 1, func(_ context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
					r := s.Reader()
					first := make([]byte, 4)
					_, err := io.ReadFull(r, first)
					if err != nil {
						t.Error(err)
					}
					<-goOn
					got, err := io.ReadAll(r)
					_, again := r.Read(first)
					if again != err {
						t.Errorf("first %v, then %v", err, again)
					}
					if _, again = r.WriteTo(io.Discard); again != err {
						t.Errorf("first %v, then %v", err, again)
					}
					ends <- end{string(first) + string(got), err}
					return nil
				})
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				s := rig.OpenStream(t, ctx, c)
				w := s.Writer(ctx)
				n, err := io.WriteString(w, "half of it")
				require.NoError(t, err)
				require.Equal(t, 10, n)
				synctest.Wait()
				test.end(t, client{g, s, w, cancel})
				synctest.Wait()
				close(goOn)
				e := <-ends
				requireCutShort(t, e.err, test.cause)
				require.True(t, strings.HasPrefix(e.got, "half"), "%.20q", e.got)
			})
		})
	}
}

// Nor does a client, whatever happens to its handler.
func TestIO_HalfAnAnswerIsNotTakenForAWholeOne(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		end    func(g *rig.Grid, cancel context.CancelCauseFunc)
		handle func(ctx context.Context, w *grid.StreamWriter) *grid.RemoteErr
		cause  error
		text   string
	}{
		"cut":           {end: func(g *rig.Grid, _ context.CancelCauseFunc) { g.Cut(0, 1) }, cause: grid.ErrDisconnected},
		"server closed": {end: func(g *rig.Grid, _ context.CancelCauseFunc) { g.Stop(1) }, cause: grid.ErrDisconnected},
		"client closed": {end: func(g *rig.Grid, _ context.CancelCauseFunc) { g.Stop(0) }, cause: grid.ErrDisconnected},
		"cancelled":     {end: func(_ *rig.Grid, cancel context.CancelCauseFunc) { cancel(io.EOF) }, cause: context.Canceled},
		"the handler's error": {handle: func(context.Context, *grid.StreamWriter) *grid.RemoteErr {
			return grid.NewRemoteErr(io.EOF)
		}, text: "EOF"},
		"a panic": {handle: func(context.Context, *grid.StreamWriter) *grid.RemoteErr { panic("no more") }, text: "no more"},
		"a source that fails, and a handler that ignores it": {handle: func(_ context.Context, w *grid.StreamWriter) *grid.RemoteErr {
			_, _ = w.ReadFrom(failingSource())
			return nil
		}, text: errSource.Error()},
		"CloseWithError": {handle: func(_ context.Context, w *grid.StreamWriter) *grid.RemoteErr {
			_ = w.CloseWithError(errSource)
			return nil
		}, text: errSource.Error()},
		"a write that its context has ended": {handle: func(ctx context.Context, w *grid.StreamWriter) *grid.RemoteErr {
			_, _ = w.Write(noise(20 * rig.WholeSize))
			_ = w.Close()
			return nil
		}, text: "deadline"},
		"an error of its own goes before": {handle: func(_ context.Context, w *grid.StreamWriter) *grid.RemoteErr {
			_ = w.CloseWithError(errSource)
			return grid.NewRemoteErrString("its own")
		}, text: "its own"},
	} {
		t.Run(name, func(t *testing.T) {
			rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
				serve(g, 1, 0, func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
					short, cancel := context.WithTimeout(ctx, time.Second)
					defer cancel()
					w := s.Writer(short)
					if _, err := io.WriteString(w, "half of it"); err != nil {
						t.Error(err)
					}
					if test.handle == nil {
						<-ctx.Done()
						return nil
					}
					return test.handle(ctx, w)
				})
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				s := rig.OpenStream(t, ctx, c)
				r := s.Reader()
				b := make([]byte, 4)
				_, err := io.ReadFull(r, b)
				require.NoError(t, err)
				require.Equal(t, "half", string(b))
				if test.end != nil {
					test.end(g, cancel)
				} else {
					time.Sleep(time.Minute)
				}
				got, err := io.ReadAll(r)
				requireCutShort(t, err, test.cause)
				require.ErrorContains(t, err, test.text)
				require.True(t, strings.HasPrefix(string(got), " of it"))
				if test.text != "" {
					require.True(t, grid.IsRemoteErr(err), err)
				}
				_, again := r.Read(b)
				require.Equal(t, err, again)
			})
		})
	}
}

// A peer that speaks the protocol, and lies.
func TestIO_PeerCantMakeHalfAnAnswerLookWhole(t *testing.T) {
	t.Parallel()
	gone := func(id uint64, reason string) rawpeer.Msg {
		m := rawpeer.Msg{Op: rawpeer.OpDisconnectClientMux, MuxID: id}
		if reason != "" {
			m.Flags, m.Payload = rawpeer.FlagPayloadIsErr, []byte(reason)
		}
		return m
	}
	for name, then := range map[string]func(id uint64) []rawpeer.Msg{
		"drops it":          func(id uint64) []rawpeer.Msg { return []rawpeer.Msg{gone(id, "")} },
		"drops it with EOF": func(id uint64) []rawpeer.Msg { return []rawpeer.Msg{gone(id, "EOF")} },
		"an error named EOF": func(id uint64) []rawpeer.Msg {
			return []rawpeer.Msg{{Op: rawpeer.OpMuxServerMsg, MuxID: id, Seq: 2, Flags: rawpeer.FlagEOF | rawpeer.FlagPayloadIsErr, Payload: []byte("EOF")}}
		},
		"an error of no text": func(id uint64) []rawpeer.Msg {
			return []rawpeer.Msg{{Op: rawpeer.OpMuxServerMsg, MuxID: id, Seq: 2, Flags: rawpeer.FlagEOF | rawpeer.FlagPayloadIsErr}}
		},
		"the end out of turn": func(id uint64) []rawpeer.Msg {
			return []rawpeer.Msg{{Op: rawpeer.OpMuxServerMsg, MuxID: id, Seq: 3, Flags: rawpeer.FlagEOF}}
		},
		"the end in the middle of a message": func(id uint64) []rawpeer.Msg {
			return []rawpeer.Msg{
				{Op: rawpeer.OpMuxServerMsg, MuxID: id, Seq: 2, Flags: rawpeer.FlagMore, Payload: []byte(" of")},
				{Op: rawpeer.OpMuxServerMsg, MuxID: id, Seq: 3, Flags: rawpeer.FlagEOF},
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			withPeer(t, rawpeer.Config{Caps: rawpeer.CapWideCredits | rawpeer.CapFragments}, func(t *testing.T, g *rig.Grid, c *grid.Connection, peer *rawpeer.Peer) {
				s, id := openToPeer(t, t.Context(), c, peer, 2)
				peer.SendMerged(append([]rawpeer.Msg{{Op: rawpeer.OpMuxServerMsg, MuxID: id, Seq: 1, Payload: []byte("half")}}, then(id)...)...)
				got, err := io.ReadAll(s.Reader())
				require.Equal(t, "half", string(got))
				requireCutShort(t, err, nil)
				s.CloseSend()
			})
		})
	}
}

func TestIO_PeerCantMakeHalfAnInputLookWhole(t *testing.T) {
	t.Parallel()
	msg := func(seq uint32, flags uint8, text string) rawpeer.Msg {
		return rawpeer.Msg{Op: rawpeer.OpMuxClientMsg, MuxID: 1, Seq: seq, Flags: flags, Payload: []byte(text)}
	}
	for name, then := range map[string][]rawpeer.Msg{
		"cancels":                            {{Op: rawpeer.OpDisconnectServerMux, MuxID: 1}},
		"cancels with EOF":                   {{Op: rawpeer.OpDisconnectServerMux, MuxID: 1, Flags: rawpeer.FlagPayloadIsErr, Payload: []byte("EOF")}},
		"the end out of turn":                {msg(3, rawpeer.FlagEOF, "")},
		"the end in the middle of a message": {msg(2, rawpeer.FlagMore, " of"), msg(3, rawpeer.FlagEOF, "")},
		"the end after a message too many":   {msg(2, 0, "a"), msg(3, 0, "b"), msg(4, 0, "c"), msg(5, rawpeer.FlagEOF, "")},
	} {
		t.Run(name, func(t *testing.T) {
			withPeer(t, rawpeer.Config{Caps: rawpeer.CapWideCredits | rawpeer.CapFragments}, func(t *testing.T, g *rig.Grid, c *grid.Connection, peer *rawpeer.Peer) {
				ends, goOn := make(chan error, 1), make(chan struct{})
				require.NoError(t, g.Manager(0).RegisterStreamingHandler(rig.Handler, grid.StreamHandler{
					InCapacity: 2,
					Serve: func(_ context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
						<-goOn
						_, err := io.ReadAll(s.Reader())
						ends <- err
						return nil
					},
				}))
				peer.Send(rawpeer.Msg{Op: rawpeer.OpConnectMux, MuxID: 1, Handler: uint8(rig.Handler)})
				peer.Expect(rawpeer.OpAckMux)
				peer.SendMerged(append([]rawpeer.Msg{msg(1, 0, "half")}, then...)...)
				synctest.Wait()
				close(goOn)
				requireCutShort(t, <-ends, nil)
			})
		})
	}
}

// A writer without Close is no end: the handler waits for more, for as long as the stream's context
// lets it, and then hears that it was given up.
func TestIO_WriterThatIsDroppedIsNoEnd(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		ends := make(chan error, 1)
		serve(g, 1, 1, func(_ context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			_, err := io.ReadAll(s.Reader())
			ends <- err
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		s := rig.OpenStream(t, ctx, c)
		_, err := io.WriteString(s.Writer(ctx), "half of it")
		require.NoError(t, err)
		time.Sleep(time.Hour)
		require.Empty(t, ends)
		require.NoError(t, s.Err())
		cancel()
		requireCutShort(t, <-ends, context.Canceled)
	})
}

func TestIO_ReaderTakesMessagesApart(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		messages := []string{"", "one", "", "", "two and more", "three", ""}
		serve(g, 10, 0, func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			for _, m := range messages {
				if err := s.Send(ctx, []byte(m)); err != nil {
					return grid.NewRemoteErr(err)
				}
			}
			return nil
		})
		whole := strings.Join(messages, "")
		require.NoError(t, iotest.TestReader(rig.OpenStream(t, t.Context(), c).Reader(), []byte(whole)))

		r := rig.OpenStream(t, t.Context(), c).Reader()
		n, err := r.Read(nil)
		require.NoError(t, err)
		require.Zero(t, n)
		b := make([]byte, 5)
		var got []string
		for {
			n, err := r.Read(b)
			if err != nil {
				require.Equal(t, io.EOF, err)
				break
			}
			got = append(got, string(b[:n]))
		}
		require.Equal(t, []string{"one", "two a", "nd mo", "re", "three"}, got)
		require.NoError(t, r.Close(), "behind the end it does nothing")
		_, err = r.Read(b)
		require.Equal(t, io.EOF, err)

		// What a writer does not take stays.
		for name, bad := range map[string]*fewWriter{
			"short": {4, io.ErrShortWrite}, "error": {4, rig.ErrCause}, "lies": {-1, nil}, "lies greatly": {100, nil},
		} {
			s := rig.OpenStream(t, t.Context(), c)
			r = s.Reader()
			n, err := io.Copy(bad, r)
			rest, restErr := io.ReadAll(r)
			require.NoError(t, restErr)
			require.Equal(t, whole[n:], string(rest), name)
			if bad.err == nil {
				require.ErrorContains(t, err, "invalid count")
			} else {
				require.ErrorIs(t, err, bad.err)
				require.EqualValues(t, 4, n)
			}
		}

		// Bytes first, messages then.
		s := rig.OpenStream(t, t.Context(), c)
		_, err = io.ReadFull(s.Reader(), b[:3])
		require.NoError(t, err)
		rest, err := rig.Collect(s, 0)
		require.NoError(t, err)
		require.Equal(t, messages[2:], rest)
	})
}

// fewWriter takes so many bytes.
type fewWriter struct {
	n   int
	err error
}

func (w *fewWriter) Write(p []byte) (int, error) {
	if w.n < 0 || w.n > len(p) {
		if w.err == nil {
			return w.n, nil
		}
		w.n -= len(p)
		return len(p), nil
	}
	if w.err == io.ErrShortWrite {
		return w.n, nil
	}
	return w.n, w.err
}

// A reader that is closed before the end ends the stream of a client, and nothing of a handler's.
func TestIO_ReaderThatIsClosed(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		causes := make(chan error, 1)
		serve(g, 1, 2, func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			r := s.Reader()
			b := make([]byte, 1)
			_, err := r.Read(b)
			if err := errors.Join(err, r.Close(), r.Close()); err != nil {
				t.Error(err)
			}
			if _, err := r.Read(b); !errors.Is(err, io.ErrClosedPipe) {
				t.Error(err)
			}
			if b, err := s.Recv(); err != nil || string(b) != "next" {
				t.Error(string(b), err)
			}
			if err := s.Send(ctx, []byte("answer")); err != nil {
				t.Error(err)
			}
			<-ctx.Done()
			causes <- context.Cause(ctx)
			return nil
		})
		s := rig.OpenStream(t, t.Context(), c)
		require.NoError(t, s.Send([]byte("first")))
		require.NoError(t, s.Send([]byte("next")))
		r := s.Reader()
		_, err := r.Read(make([]byte, 2))
		require.NoError(t, err)
		require.NoError(t, r.Close())
		require.Equal(t, context.Canceled, <-causes)
		require.ErrorContains(t, s.Err(), "closed")
		_, err = r.Read(make([]byte, 2))
		require.ErrorIs(t, err, io.ErrClosedPipe)

		s, err = c.NewStream(t.Context(), rig.Stream, make([]byte, 30))
		require.NoError(t, err)
		require.NoError(t, s.Finish(t.Context()))
		_, err = s.Reader().Read(make([]byte, 2))
		requireCutShort(t, err, nil)
	})
}

func TestIO_WriterEnds(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		var kept *grid.StreamWriter
		serve(g, 1, 4, func(ctx context.Context, payload []byte, s *grid.ServerStream) *grid.RemoteErr {
			kept = s.Writer(ctx)
			if len(payload) > 0 {
				_, err := s.Recv()
				return grid.NewRemoteErr(err)
			}
			if err := kept.Close(); err != nil {
				t.Error(err)
			}
			if _, err := kept.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
				t.Error(err)
			}
			if _, err := io.Copy(io.Discard, s.Reader()); err != nil {
				return grid.NewRemoteErr(err)
			}
			return nil
		})
		s := rig.OpenStream(t, t.Context(), c)
		w := s.Writer(t.Context())
		n, err := w.Write(nil)
		require.NoError(t, err)
		require.Zero(t, n)
		require.NoError(t, w.CloseWithError(io.EOF), "which is how sources end")
		require.NoError(t, w.Close())
		require.NoError(t, w.CloseWithError(rig.ErrCause), "is closed")
		_, err = w.Write(nil)
		require.ErrorIs(t, err, io.ErrClosedPipe)
		_, err = w.ReadFrom(strings.NewReader("x"))
		require.ErrorIs(t, err, io.ErrClosedPipe)
		require.NoError(t, s.Finish(t.Context()), "a write to a writer that is closed breaks nothing")

		// A handler that has enough is no error, unless more is written.
		s = rig.OpenStream(t, t.Context(), c, 1)
		w = s.Writer(t.Context())
		_, err = io.WriteString(w, "enough")
		require.NoError(t, err)
		<-s.Done()
		require.NoError(t, s.Writer(t.Context()).Close())
		_, err = io.WriteString(w, "more")
		require.ErrorIs(t, err, io.ErrClosedPipe)
		require.NotErrorIs(t, err, io.EOF)
		require.Equal(t, err, w.Close())
		require.NoError(t, s.Finish(t.Context()))
		_, err = kept.Write([]byte("late"))
		require.ErrorContains(t, err, "handler has returned")

		s = rig.OpenStream(t, t.Context(), c)
		synctest.Wait()
		g.Cut(0, 1)
		<-s.Done()
		require.ErrorIs(t, s.Writer(t.Context()).Close(), grid.ErrDisconnected)
	})
}

// A stream whose handler takes no input has nothing to write to.
func TestIO_WriterWithoutInput(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		s, err := c.NewStream(t.Context(), rig.Stream, make([]byte, 9))
		require.NoError(t, err)
		_, err = io.WriteString(s.Writer(t.Context()), "x")
		require.ErrorContains(t, err, "takes no input")
		require.ErrorContains(t, s.Finish(t.Context()), "takes no input", "it has failed to write")
	})
}

func TestWriterToChannel_CopiesInBothDirections(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		g.Stream(4, 4, func(ctx context.Context, _ []byte, in <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			w := grid.WriterToChannel(ctx, out)
			for b := range in {
				if _, err := w.Write(b); err != nil {
					return grid.NewRemoteErr(err)
				}
				clear(b) // it stays ours
				grid.PutByteBuffer(b)
			}
			return grid.NewRemoteErr(context.Cause(ctx))
		})
		for _, n := range []int{0, 1, rig.WholeSize, rig.WholeSize + 1, 300_000} {
			want := noise(n)
			for _, src := range []io.Reader{bytes.NewReader(want), only{bytes.NewReader(want)}, iotest.HalfReader(bytes.NewReader(want))} {
				s := rig.OpenStream(t, t.Context(), c)
				wrote := rig.InBackground(func() error {
					defer close(s.Requests)
					_, err := io.Copy(grid.WriterToChannel(t.Context(), s.Requests), src)
					return err
				})
				got, err := io.ReadAll(s.Reader())
				require.NoError(t, err)
				require.NoError(t, <-wrote)
				require.True(t, bytes.Equal(want, got), n)
			}
		}
	})
}

func TestWriterToChannel_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		type end struct{ write, again, copied error }
		ends := make(chan end, 1)
		g.Stream(1, 0, func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			w := grid.WriterToChannel(ctx, out)
			var e end
			for e.write == nil {
				_, e.write = io.WriteString(w, "text")
			}
			_, e.again = io.WriteString(w, "text")
			_, e.copied = io.Copy(w, only{strings.NewReader("text")})
			ends <- e
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		rig.OpenStream(t, ctx, c)
		synctest.Wait()
		cancel()
		require.Equal(t, end{context.Canceled, context.Canceled, context.Canceled}, <-ends)
		rig.OpenStream(t, t.Context(), c)
		synctest.Wait()
		g.Cut(0, 1)
		require.ErrorIs(t, (<-ends).copied, grid.ErrDisconnected)
	})
	out := make(chan []byte, 10)
	n, err := io.Copy(grid.WriterToChannel(t.Context(), out), only{failingSource()})
	require.ErrorIs(t, err, errSource)
	require.EqualValues(t, len("half of"), n)
	require.Equal(t, "half of", string(<-out))
	require.Empty(t, out)
}

// Several writers of one stream may be in use, each by its own goroutine.
func TestIO_WritersBesideEachOther(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		serve(g, 4, 4, copyBack)
		s := rig.OpenStream(t, t.Context(), c)
		var writers sync.WaitGroup
		for i := range 4 {
			writers.Go(func() {
				w := s.Writer(t.Context())
				for range 100 {
					if _, err := w.Write([]byte{byte(i)}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		go func() {
			writers.Wait()
			_ = s.Writer(t.Context()).Close()
		}()
		got, err := io.ReadAll(s.Reader())
		require.NoError(t, err)
		for i := range 4 {
			require.Equal(t, 100, bytes.Count(got, []byte{byte(i)}))
		}
	})
}

// Close may be called while another goroutine reads, which gets an error.
func TestIO_ReaderThatIsClosedBesideARead(t *testing.T) {
	t.Parallel()
	rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
		serve(g, 1, 8, func(ctx context.Context, payload []byte, s *grid.ServerStream) *grid.RemoteErr {
			r := s.Reader()
			go func() { _ = r.Close() }()
			_, err := io.Copy(io.Discard, r)
			if !errors.Is(err, io.ErrClosedPipe) && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			for w := s.Writer(ctx); len(payload) == 0; {
				if _, err := w.Write(make([]byte, 1000)); err != nil {
					break
				}
			}
			<-ctx.Done()
			return nil
		})
		for i := range 100 {
			payload := make([]byte, i%2) // it sends nothing
			s, err := c.NewStream(t.Context(), rig.Handler, payload)
			require.NoError(t, err)
			_ = s.Send([]byte("x"))
			r := s.Reader()
			read := rig.InBackground(func() error {
				_, err := io.Copy(io.Discard, r)
				return err
			})
			if i%4 == 1 { // it waits for what does not come
				synctest.Wait()
			}
			require.NoError(t, r.Close())
			require.ErrorIs(t, <-read, io.ErrClosedPipe)
			_, err = r.Read(make([]byte, 1))
			require.ErrorIs(t, err, io.ErrClosedPipe)
			<-s.Done()
		}
	})
}

// The input is the stream's: what one writer has ended is over for the others, and goes on to its
// good end.
func TestIO_WriteAfterTheInputHasEndedBreaksNothing(t *testing.T) {
	t.Parallel()
	ends := map[string]func(s *grid.Stream) error{
		"another writer": func(s *grid.Stream) error { return s.Writer(context.Background()).Close() },
		"CloseSend":      func(s *grid.Stream) error { s.CloseSend(); return nil },
	}
	writes := map[string]func(w *grid.StreamWriter) error{
		"Write":    func(w *grid.StreamWriter) error { _, err := io.WriteString(w, "late"); return err },
		"ReadFrom": func(w *grid.StreamWriter) error { _, err := w.ReadFrom(strings.NewReader("late")); return err },
	}
	for end, endInput := range ends {
		for write, late := range writes {
			t.Run(end+", "+write, func(t *testing.T) {
				rig.InPair(t, nil, func(t *testing.T, g *rig.Grid, c *grid.Connection) {
					release, let := rig.Gate(t)
					serve(g, 4, 4, func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
						got, err := io.ReadAll(s.Reader())
						<-release
						if err != nil || string(got) != "the whole" {
							return grid.NewRemoteErrf("%s: %v", got, err)
						}
						return grid.NewRemoteErr(context.Cause(ctx))
					})
					s := rig.OpenStream(t, t.Context(), c)
					w := s.Writer(t.Context())
					_, err := io.WriteString(w, "the whole")
					require.NoError(t, err)
					require.NoError(t, endInput(s))
					err = late(w)
					require.ErrorIs(t, err, io.ErrClosedPipe)
					require.Equal(t, err, w.Close())
					synctest.Wait()
					require.NoError(t, s.Err())
					let()
					require.NoError(t, s.Finish(t.Context()))
				})
			})
		}
	}
}
