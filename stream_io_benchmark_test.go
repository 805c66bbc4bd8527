package grid_test

import (
	"context"
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/internal/rig"
)

// bulkSize is how much one op moves.
const bulkSize = 64 << 20

// zeros is a source and a sink of bulkSize bytes that costs little.
type zeros struct{ left int }

func (z *zeros) Read(p []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := min(len(p), z.left)
	z.left -= n
	return n, nil
}

type sink struct{ got int }

func (s *sink) Write(p []byte) (int, error) {
	s.got += len(p)
	return len(p), nil
}

// BenchmarkBulk moves 64 MiB through a stream, in either direction: as messages of several sizes,
// and by io.Copy.
func BenchmarkBulk(b *testing.B) {
	const up, down, upCopy, downCopy = rig.Handler, rig.Handler + 1, rig.Handler + 2, rig.Handler + 3
	ctx := context.Background()
	g := rig.NewTCP(b, 2, nil)
	for id, serve := range map[grid.HandlerID]grid.StreamServeFn{
		up: func(_ context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			n := 0
			for m, err := range s.All() {
				if err != nil {
					return grid.NewRemoteErr(err)
				}
				n += len(m)
				grid.PutByteBuffer(m)
			}
			return wholeBulk(n)
		},
		down: func(ctx context.Context, payload []byte, s *grid.ServerStream) *grid.RemoteErr {
			for range bulkSize / len(payload) {
				if err := s.Send(ctx, payload); err != nil {
					return grid.NewRemoteErr(err)
				}
			}
			return nil
		},
		upCopy: func(_ context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			n, err := io.Copy(new(sink), s.Reader())
			if err != nil {
				return grid.NewRemoteErr(err)
			}
			return wholeBulk(int(n))
		},
		downCopy: func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			_, err := io.Copy(s.Writer(ctx), &zeros{bulkSize})
			return grid.NewRemoteErr(err)
		},
	} {
		require.NoError(b, g.Manager(1).RegisterStreamingHandler(id, grid.StreamHandler{Serve: serve, InCapacity: 8, OutCapacity: 8}))
	}
	run := func(name string, id grid.HandlerID, payload []byte, use func(s *grid.Stream) error) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(bulkSize)
			b.ReportAllocs()
			for b.Loop() {
				s, err := g.Conn(0, 1).NewStream(ctx, id, payload)
				require.NoError(b, err)
				require.NoError(b, use(s))
			}
		})
	}
	for size := 16 << 10; size <= 256<<10; size *= 2 {
		payload := make([]byte, size)
		run(fmt.Sprint("up/messages=", size>>10), up, nil, func(s *grid.Stream) error {
			for range bulkSize / size {
				if err := s.Send(payload); err != nil {
					return err
				}
			}
			return s.Finish(ctx)
		})
		run(fmt.Sprint("down/messages=", size>>10), down, payload, func(s *grid.Stream) error {
			n := 0
			err := s.Results(func(m []byte) error { n += len(m); grid.PutByteBuffer(m); return nil })
			if err == nil && n != bulkSize {
				err = io.ErrUnexpectedEOF
			}
			return err
		})
	}
	run("up/copy", upCopy, nil, func(s *grid.Stream) error {
		w := s.Writer(ctx)
		_, err := io.Copy(w, &zeros{bulkSize})
		_ = w.CloseWithError(err)
		return s.Finish(ctx)
	})
	run("down/copy", downCopy, nil, func(s *grid.Stream) error {
		n, err := io.Copy(new(sink), s.Reader())
		if err == nil && n != bulkSize {
			err = io.ErrUnexpectedEOF
		}
		return err
	})
}

func wholeBulk(n int) *grid.RemoteErr {
	if n != bulkSize {
		return grid.NewRemoteErrf("%d bytes", n)
	}
	return nil
}
