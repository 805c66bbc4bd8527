package gridraft_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridraft"
	"github.com/gridrpc/grid/gridtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	_ raft.Transport   = (*gridraft.Transport)(nil)
	_ raft.WithPreVote = (*gridraft.Transport)(nil)
	_ raft.WithClose   = (*gridraft.Transport)(nil)
	_ raft.WithPeers   = (*gridraft.Transport)(nil)
)

const firstID grid.HandlerID = 10

// rig is a grid with a transport on each node.
type rig struct {
	*gridtest.Grid
	t *testing.T

	mu    sync.Mutex
	trans []*gridraft.Transport
}

// newRig makes one of n nodes, for the transports of which edit changes the options.
func newRig(t *testing.T, n int, edit func(node int, o *gridraft.Options), opts ...gridtest.Option) *rig {
	r := &rig{t: t, trans: make([]*gridraft.Transport, n)}
	make := gridtest.WithHandlers(func(node int, m *grid.Manager) error {
		o := gridraft.Options{FirstID: firstID}
		if edit != nil {
			edit(node, &o)
		}
		tr, err := gridraft.New(m, o)
		if err != nil {
			return err
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.trans[node] = tr
		return nil
	})
	r.Grid = gridtest.New(t, n, append(opts, make)...)
	t.Cleanup(func() {
		for i := range n {
			r.at(i).Close()
		}
	})
	return r
}

// inBoth runs a test in memory, in a bubble, and over TCP.
func inBoth(t *testing.T, edit func(node int, o *gridraft.Options), f func(t *testing.T, r *rig)) {
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { f(t, newRig(t, 2, edit)) })
	})
	t.Run("tcp", func(t *testing.T) { f(t, newRig(t, 2, edit, gridtest.TCP())) })
}

// at returns the transport of a node.
func (r *rig) at(i int) *gridraft.Transport {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.trans[i]
}

func (r *rig) addr(i int) raft.ServerAddress { return raft.ServerAddress(r.Host(i)) }

// serve has what comes to a transport answered, until the end of the test.
func serve(t *testing.T, tr *gridraft.Transport, answer func(rpc raft.RPC)) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(stop); <-stopped })
	go func() {
		defer close(stopped)
		for {
			select {
			case rpc := <-tr.Consumer():
				answer(rpc)
			case <-stop:
				return
			}
		}
	}()
}

var header = raft.RPCHeader{ProtocolVersion: 3, ID: []byte("zero"), Addr: []byte("http://zero:9000")}

// entries makes a request that tells n apart from others.
func entries(n uint64) *raft.AppendEntriesRequest {
	return &raft.AppendEntriesRequest{
		RPCHeader: header, Term: 7, PrevLogEntry: n, PrevLogTerm: 6, LeaderCommitIndex: 5,
		Entries: []*raft.Log{
			{Index: n + 1, Term: 7, Type: raft.LogCommand, Data: []byte("data"), Extensions: []byte("more"), AppendedAt: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)},
			{Index: n + 2, Term: 7, Type: raft.LogNoop},
		},
	}
}

// appended answers a request of entries.
func appended(rpc raft.RPC) {
	r := rpc.Command.(*raft.AppendEntriesRequest)
	rpc.Respond(&raft.AppendEntriesResponse{RPCHeader: header, Term: r.Term, LastLog: r.PrevLogEntry + uint64(len(r.Entries)), Success: true}, nil)
}

func TestTransport_CallsArriveAndAreAnswered(t *testing.T) {
	for _, call := range []struct {
		name       string
		args, resp any
		into       any
		call       func(tr *gridraft.Transport, to raft.ServerAddress, args, resp any) error
	}{
		{"AppendEntries", entries(100), &raft.AppendEntriesResponse{RPCHeader: header, Term: 9, LastLog: 90, NoRetryBackoff: true}, new(raft.AppendEntriesResponse),
			func(tr *gridraft.Transport, to raft.ServerAddress, args, resp any) error {
				return tr.AppendEntries("one", to, args.(*raft.AppendEntriesRequest), resp.(*raft.AppendEntriesResponse))
			}},
		{"RequestVote", &raft.RequestVoteRequest{RPCHeader: header, Term: 20, LastLogIndex: 100, LastLogTerm: 19, LeadershipTransfer: true},
			&raft.RequestVoteResponse{RPCHeader: header, Term: 100, Granted: true}, new(raft.RequestVoteResponse),
			func(tr *gridraft.Transport, to raft.ServerAddress, args, resp any) error {
				return tr.RequestVote("one", to, args.(*raft.RequestVoteRequest), resp.(*raft.RequestVoteResponse))
			}},
		{"RequestPreVote", &raft.RequestPreVoteRequest{RPCHeader: header, Term: 20, LastLogIndex: 100, LastLogTerm: 19},
			&raft.RequestPreVoteResponse{RPCHeader: header, Term: 100, Granted: true}, new(raft.RequestPreVoteResponse),
			func(tr *gridraft.Transport, to raft.ServerAddress, args, resp any) error {
				return tr.RequestPreVote("one", to, args.(*raft.RequestPreVoteRequest), resp.(*raft.RequestPreVoteResponse))
			}},
		{"TimeoutNow", &raft.TimeoutNowRequest{RPCHeader: header}, &raft.TimeoutNowResponse{RPCHeader: header}, new(raft.TimeoutNowResponse),
			func(tr *gridraft.Transport, to raft.ServerAddress, args, resp any) error {
				return tr.TimeoutNow("one", to, args.(*raft.TimeoutNowRequest), resp.(*raft.TimeoutNowResponse))
			}},
	} {
		t.Run(call.name, func(t *testing.T) {
			inBoth(t, nil, func(t *testing.T, r *rig) {
				var fail error
				serve(t, r.at(1), func(rpc raft.RPC) {
					assert.Equal(t, call.args, rpc.Command)
					assert.Nil(t, rpc.Reader)
					rpc.Respond(call.resp, fail)
				})
				for range 3 {
					require.NoError(t, call.call(r.at(0), r.addr(1), call.args, call.into))
					require.Equal(t, call.resp, call.into)
				}
				fail = fmt.Errorf("at last: %w", raft.ErrRaftShutdown)
				err := call.call(r.at(0), r.addr(1), call.args, call.into)
				require.ErrorContains(t, err, string(r.addr(1))+": "+fail.Error())
				require.ErrorIs(t, err, raft.ErrRaftShutdown)
				require.True(t, grid.IsRemoteErr(err))
			})
		})
	}
}

// What the error of the other server wraps is found, and its code.
func TestTransport_ErrorsOfTheOtherServerAreTold(t *testing.T) {
	inBoth(t, nil, func(t *testing.T, r *rig) {
		serve(t, r.at(1), func(rpc raft.RPC) {
			if rpc.Reader != nil {
				_, _ = io.Copy(io.Discard, rpc.Reader)
			}
			rpc.Respond(nil, grid.NewRemoteErrCode("down", fmt.Errorf("group 7: %w", raft.ErrRaftShutdown)))
		})
		told := func(err error) {
			t.Helper()
			require.ErrorContains(t, err, "group 7: ")
			require.ErrorIs(t, err, raft.ErrRaftShutdown)
			require.Equal(t, "down", grid.ErrorCode(err))
		}
		told(r.at(0).TimeoutNow("one", r.addr(1), new(raft.TimeoutNowRequest), new(raft.TimeoutNowResponse)))
		told(r.at(0).AppendEntries("one", r.addr(1), big(1<<20), new(raft.AppendEntriesResponse)))
		data, args := snapshot(1 << 20)
		told(r.at(0).InstallSnapshot("one", r.addr(1), args, new(raft.InstallSnapshotResponse), bytes.NewReader(data)))
		p, err := r.at(0).AppendEntriesPipeline("one", r.addr(1))
		require.NoError(t, err)
		defer p.Close()
		f, err := p.AppendEntries(entries(1), new(raft.AppendEntriesResponse))
		require.NoError(t, err)
		told(f.Error())
	})
}

func TestTransport_ManyCallsAtOnce(t *testing.T) {
	inBoth(t, nil, func(t *testing.T, r *rig) {
		serve(t, r.at(1), appended)
		var wg sync.WaitGroup
		for i := range uint64(50) {
			wg.Go(func() {
				var resp raft.AppendEntriesResponse
				if assert.NoError(t, r.at(0).AppendEntries("one", r.addr(1), entries(i), &resp)) {
					assert.Equal(t, i+2, resp.LastLog)
				}
			})
		}
		wg.Wait()
	})
}

func heartbeat() *raft.AppendEntriesRequest {
	return &raft.AppendEntriesRequest{RPCHeader: header, Term: 7}
}

func TestHeartbeat_TakesTheFastPath(t *testing.T) {
	inBoth(t, nil, func(t *testing.T, r *rig) {
		slow := make(chan raft.RPC, 1)
		serve(t, r.at(1), func(rpc raft.RPC) { slow <- rpc; appended(rpc) })
		fast := make(chan raft.RPC, 1)
		r.at(1).SetHeartbeatHandler(func(rpc raft.RPC) { fast <- rpc; appended(rpc) })
		send := func(args *raft.AppendEntriesRequest) {
			t.Helper()
			require.NoError(t, r.at(0).AppendEntries("one", r.addr(1), args, new(raft.AppendEntriesResponse)))
		}
		send(heartbeat())
		require.Equal(t, heartbeat(), (<-fast).Command)
		send(entries(1))
		<-slow
		// What is a commit index is none: raft has to look at its log.
		commit := heartbeat()
		commit.LeaderCommitIndex = 5
		send(commit)
		<-slow
		// Without a handler all goes the same way.
		r.at(1).SetHeartbeatHandler(nil)
		send(heartbeat())
		<-slow
		require.Empty(t, fast)
		require.Empty(t, slow)
	})
}

// Entries that nobody takes, a pipeline that is full, and a snapshot on its way hold up no heartbeat.
func TestHeartbeat_GetsPastAllElse(t *testing.T) {
	inBoth(t, nil, func(t *testing.T, r *rig) {
		r.at(1).SetHeartbeatHandler(appended)
		var wg sync.WaitGroup
		wg.Go(func() { _ = r.at(0).AppendEntries("one", r.addr(1), entries(1), new(raft.AppendEntriesResponse)) })
		p, err := r.at(0).AppendEntriesPipeline("one", r.addr(1))
		require.NoError(t, err)
		wg.Go(func() {
			for range 3 {
				_, _ = p.AppendEntries(entries(1), new(raft.AppendEntriesResponse))
			}
		})
		wg.Go(func() {
			args := &raft.InstallSnapshotRequest{Size: 64 << 20}
			_ = r.at(0).InstallSnapshot("one", r.addr(1), args, new(raft.InstallSnapshotResponse), zeros{})
		})
		for range 20 {
			require.NoError(t, r.at(0).AppendEntries("one", r.addr(1), heartbeat(), new(raft.AppendEntriesResponse)))
		}
		r.at(0).Close()
		wg.Wait()
		require.NoError(t, p.Close())
	})
}

// zeros has no end.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestPipeline_AnswersComeInOrder(t *testing.T) {
	for _, inFlight := range []int{2, 3, 100} {
		t.Run(fmt.Sprint(inFlight), func(t *testing.T) {
			edit := func(_ int, o *gridraft.Options) { o.MaxRPCsInFlight = inFlight }
			inBoth(t, edit, func(t *testing.T, r *rig) {
				serve(t, r.at(1), appended)
				p, err := r.at(0).AppendEntriesPipeline("one", r.addr(1))
				require.NoError(t, err)
				const n = 300
				var sender sync.WaitGroup
				sender.Go(func() {
					for i := range uint64(n) {
						_, err := p.AppendEntries(entries(i), new(raft.AppendEntriesResponse))
						assert.NoError(t, err)
					}
				})
				for i := range uint64(n) {
					f := <-p.Consumer()
					require.NoError(t, f.Error())
					require.Equal(t, entries(i), f.Request())
					require.Equal(t, i+2, f.Response().LastLog)
					require.False(t, f.Start().After(time.Now()))
				}
				sender.Wait()
				require.NoError(t, p.Close())
				require.NoError(t, p.Close())
				_, err = p.AppendEntries(entries(1), new(raft.AppendEntriesResponse))
				require.ErrorIs(t, err, raft.ErrPipelineShutdown)
			})
		})
	}
}

// A refusal is no error, and the pipeline goes on. An error ends it, with what is behind that.
func TestPipeline_GoesOnAfterARefusal(t *testing.T) {
	inBoth(t, nil, func(t *testing.T, r *rig) {
		serve(t, r.at(1), func(rpc raft.RPC) {
			switch rpc.Command.(*raft.AppendEntriesRequest).PrevLogEntry {
			case 1:
				rpc.Respond(&raft.AppendEntriesResponse{Term: 8}, nil)
			case 3:
				rpc.Respond(&raft.AppendEntriesResponse{Term: 8}, errors.New("disk is broken"))
			default:
				appended(rpc)
			}
		})
		p, err := r.at(0).AppendEntriesPipeline("one", r.addr(1))
		require.NoError(t, err)
		defer p.Close()
		for i := range uint64(4) {
			f, err := p.AppendEntries(entries(i), new(raft.AppendEntriesResponse))
			require.NoError(t, err)
			require.Equal(t, f, <-p.Consumer())
			if i < 3 {
				require.NoError(t, f.Error())
				require.Equal(t, i != 1, f.Response().Success)
			} else {
				require.ErrorContains(t, f.Error(), "disk is broken")
			}
		}
		_, err = p.AppendEntries(entries(4), new(raft.AppendEntriesResponse))
		require.ErrorContains(t, err, "disk is broken")
	})
}

func TestPipeline_BoundsWhatIsUnanswered(t *testing.T) {
	for _, inFlight := range []int{2, 5} {
		t.Run(fmt.Sprint(inFlight), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 2, func(_ int, o *gridraft.Options) { o.MaxRPCsInFlight = inFlight })
				p, err := r.at(0).AppendEntriesPipeline("one", r.addr(1))
				require.NoError(t, err)
				returned := 0
				var sender sync.WaitGroup
				sender.Go(func() {
					for i := range uint64(10) {
						if _, err := p.AppendEntries(entries(i), new(raft.AppendEntriesResponse)); err != nil {
							return
						}
						returned++
					}
				})
				// The last of them was sent, and has not returned: raft gathers meanwhile.
				synctest.Wait()
				require.Equal(t, inFlight-1, returned)
				appended(<-r.at(1).Consumer())
				synctest.Wait()
				require.Equal(t, inFlight, returned)
				require.NoError(t, p.Close())
				sender.Wait()
			})
		})
	}
	t.Run("1", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, 2, func(_ int, o *gridraft.Options) { o.MaxRPCsInFlight = 1 })
			_, err := r.at(0).AppendEntriesPipeline("one", r.addr(1))
			require.Equal(t, raft.ErrPipelineReplicationNotSupported, err)
		})
	})
}

// Raft closes a pipeline right after the last entries for a server that leaves, which must get them.
func TestPipeline_CloseEndsWhatIsUnderWayAndDropsNothing(t *testing.T) {
	edit := func(_ int, o *gridraft.Options) { o.MaxRPCsInFlight = 10 }
	inBoth(t, edit, func(t *testing.T, r *rig) {
		p, err := r.at(0).AppendEntriesPipeline("one", r.addr(1))
		require.NoError(t, err)
		var futures []raft.AppendFuture
		for i := range uint64(8) {
			f, err := p.AppendEntries(entries(i), new(raft.AppendEntriesResponse))
			require.NoError(t, err)
			futures = append(futures, f)
		}
		require.NoError(t, p.Close())
		for _, f := range futures {
			require.ErrorIs(t, f.Error(), raft.ErrPipelineShutdown)
		}
		for i := range uint64(8) {
			rpc := <-r.at(1).Consumer()
			require.Equal(t, entries(i), rpc.Command)
			appended(rpc)
		}
		// The handler ends with that.
		for r.Conn(1, 0).Stats().StreamsServed > 0 {
			time.Sleep(time.Millisecond)
		}
	})
}

// How a pipeline ends that is not closed, what is under way ends with it, and the consumer is told.
func TestPipeline_EndsWithWhatItNeeds(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(r *rig)
		want error
	}{
		{"link", func(r *rig) { r.Cut(0, 1) }, grid.ErrDisconnected},
		{"peer", func(r *rig) { r.Stop(1) }, grid.ErrDisconnected},
		{"peer's transport", func(r *rig) { r.at(1).Close() }, raft.ErrTransportShutdown},
		{"peer's streams", func(r *rig) { r.at(1).CloseStreams() }, gridraft.ErrStreamsClosed},
		{"transport", func(r *rig) { r.at(0).Close() }, raft.ErrTransportShutdown},
		{"streams", func(r *rig) { r.at(0).CloseStreams() }, gridraft.ErrStreamsClosed},
		{"disconnected", func(r *rig) { r.at(0).Disconnect(r.addr(1)) }, gridraft.ErrStreamsClosed},
		{"disconnected by peer", func(r *rig) { r.at(1).Disconnect(r.addr(0)) }, gridraft.ErrStreamsClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBoth(t, nil, func(t *testing.T, r *rig) {
				p, err := r.at(0).AppendEntriesPipeline("one", r.addr(1))
				require.NoError(t, err)
				defer p.Close()
				f, err := p.AppendEntries(entries(1), new(raft.AppendEntriesResponse))
				require.NoError(t, err)
				<-r.at(1).Consumer()
				c.end(r)
				require.Equal(t, f, <-p.Consumer())
				require.ErrorIs(t, f.Error(), c.want)
				_, err = p.AppendEntries(entries(1), new(raft.AppendEntriesResponse))
				require.ErrorIs(t, err, c.want)
			})
		})
	}
}

func TestPipeline_GivesUpAPeerThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, nil)
		p, err := r.at(0).AppendEntriesPipeline("one", r.addr(1))
		require.NoError(t, err)
		defer p.Close()
		time.Sleep(time.Hour) // idle is no fault
		start := time.Now()
		f, err := p.AppendEntries(entries(1), new(raft.AppendEntriesResponse))
		require.NoError(t, err)
		require.ErrorIs(t, f.Error(), gridraft.ErrTimeout)
		require.Equal(t, 10*time.Second, time.Since(start))
		require.Equal(t, f, <-p.Consumer())
	})
}

// A consumer that is slow is no reason to give up the peer.
func TestPipeline_WaitsForItsConsumer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, nil)
		serve(t, r.at(1), appended)
		p, err := r.at(0).AppendEntriesPipeline("one", r.addr(1))
		require.NoError(t, err)
		defer p.Close()
		var sender sync.WaitGroup
		sender.Go(func() {
			for i := range uint64(10) {
				_, err := p.AppendEntries(entries(i), new(raft.AppendEntriesResponse))
				assert.NoError(t, err)
			}
		})
		for range 10 {
			time.Sleep(time.Minute)
			require.NoError(t, (<-p.Consumer()).Error())
		}
		sender.Wait()
	})
}

// snapshot returns data and the request for it.
func snapshot(size int) ([]byte, *raft.InstallSnapshotRequest) {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	return data, &raft.InstallSnapshotRequest{
		RPCHeader: header, SnapshotVersion: 1, Term: 10, LastLogIndex: 100, LastLogTerm: 9, Size: int64(size),
		Configuration:      raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "zero", Address: "http://zero:9000"}}}),
		ConfigurationIndex: 3,
	}
}

func TestSnapshot_ArrivesWhole(t *testing.T) {
	for _, size := range []int{0, 1, 64<<10 - 1, 64 << 10, 3<<20 + 5} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			inBoth(t, nil, func(t *testing.T, r *rig) {
				data, args := snapshot(size)
				want := &raft.InstallSnapshotResponse{RPCHeader: header, Term: 10, Success: true}
				serve(t, r.at(1), func(rpc raft.RPC) {
					assert.Equal(t, args, rpc.Command)
					got, err := io.ReadAll(rpc.Reader)
					assert.NoError(t, err)
					assert.True(t, bytes.Equal(data, got))
					rpc.Respond(want, nil)
				})
				// What is behind it is not sent.
				src := bytes.NewReader(append(slices.Clip(data), "behind"...))
				var resp raft.InstallSnapshotResponse
				require.NoError(t, r.at(0).InstallSnapshot("one", r.addr(1), args, &resp, src))
				require.Equal(t, want, &resp)
			})
		})
	}
}

// Raft may answer without a look at the snapshot, or at a part of it.
func TestSnapshot_IsRefused(t *testing.T) {
	for _, read := range []int64{0, 100 << 10} {
		t.Run(fmt.Sprint(read), func(t *testing.T) {
			inBoth(t, nil, func(t *testing.T, r *rig) {
				serve(t, r.at(1), func(rpc raft.RPC) {
					_, err := io.CopyN(io.Discard, rpc.Reader, read)
					assert.NoError(t, err)
					rpc.Respond(&raft.InstallSnapshotResponse{Term: 11}, errors.New("disk is full"))
				})
				data, args := snapshot(8 << 20)
				err := r.at(0).InstallSnapshot("one", r.addr(1), args, new(raft.InstallSnapshotResponse), bytes.NewReader(data))
				require.ErrorContains(t, err, ": disk is full")
			})
		})
	}
}

// Half a snapshot is never taken for a whole one.
func TestSnapshot_IsCutOff(t *testing.T) {
	errDisk := errors.New("disk is broken")
	for _, c := range []struct {
		name string
		end  func(r *rig)
		want error
	}{
		{"link", func(r *rig) { r.Cut(0, 1) }, grid.ErrDisconnected},
		{"sender", func(r *rig) { r.at(0).Close() }, raft.ErrTransportShutdown},
		{"receiver", func(r *rig) { r.at(1).Close() }, raft.ErrTransportShutdown},
		{"sender's streams", func(r *rig) { r.at(0).CloseStreams() }, gridraft.ErrStreamsClosed},
		{"receiver's streams", func(r *rig) { r.at(1).CloseStreams() }, gridraft.ErrStreamsClosed},
		{"source", nil, errDisk},
		{"source is short", nil, io.ErrUnexpectedEOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBoth(t, nil, func(t *testing.T, r *rig) {
				begun, got := make(chan struct{}), make(chan error, 1)
				serve(t, r.at(1), func(rpc raft.RPC) {
					_, err := io.CopyN(io.Discard, rpc.Reader, 1<<20)
					assert.NoError(t, err)
					close(begun)
					_, err = io.Copy(io.Discard, rpc.Reader)
					rpc.Respond(&raft.InstallSnapshotResponse{}, err)
					got <- err
				})
				data, args := snapshot(8 << 20)
				// The source has no more than two MiB until the end was brought about.
				ended := make(chan struct{})
				src := io.MultiReader(bytes.NewReader(data[:2<<20]), untilClosed(ended))
				switch c.want {
				case errDisk:
					src = io.MultiReader(src, failing{errDisk})
				case io.ErrUnexpectedEOF:
				default:
					src = io.MultiReader(src, bytes.NewReader(data[2<<20:]))
				}
				done := make(chan error)
				go func() {
					done <- r.at(0).InstallSnapshot("one", r.addr(1), args, new(raft.InstallSnapshotResponse), src)
				}()
				<-begun
				if c.end != nil {
					c.end(r)
				}
				close(ended)
				require.ErrorIs(t, <-done, c.want)
				err := <-got
				require.Error(t, err)
				require.NotErrorIs(t, err, io.EOF)
			})
		})
	}
}

// untilClosed is a source of nothing, which ends when its channel is closed.
type untilClosed <-chan struct{}

func (u untilClosed) Read([]byte) (int, error) { <-u; return 0, io.EOF }

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// A snapshot has more time than a call, by its size.
func TestSnapshot_HasTimeByItsSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, nil)
		data, args := snapshot(1 << 20)
		start := time.Now()
		err := r.at(0).InstallSnapshot("one", r.addr(1), args, new(raft.InstallSnapshotResponse), bytes.NewReader(data))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 40*time.Second, time.Since(start))
	})
}

// big makes a request of some size.
func big(size int) *raft.AppendEntriesRequest {
	r := entries(1)
	for i := range 4 {
		data, _ := snapshot(size / 4)
		r.Entries = append(r.Entries, &raft.Log{Index: uint64(i) + 4, Term: 7, Data: data})
	}
	return r
}

func TestParts_LargeEntriesArriveInThem(t *testing.T) {
	for _, c := range []struct{ part, size int }{{1 << 10, 100 << 10}, {64<<10 - 1, 64<<10 - 1}, {64<<10 - 1, 2 << 20}, {1 << 20, 4 << 20}} {
		t.Run(fmt.Sprintf("%d of %d", c.size, c.part), func(t *testing.T) {
			edit := func(_ int, o *gridraft.Options) { o.PartSize = c.part }
			inBoth(t, edit, func(t *testing.T, r *rig) {
				want := big(c.size)
				serve(t, r.at(1), func(rpc raft.RPC) {
					assert.True(t, assert.ObjectsAreEqual(want, rpc.Command))
					appended(rpc)
				})
				var resp raft.AppendEntriesResponse
				require.NoError(t, r.at(0).AppendEntries("one", r.addr(1), want, &resp))
				require.EqualValues(t, 7, resp.LastLog)
				p, err := r.at(0).AppendEntriesPipeline("one", r.addr(1))
				require.NoError(t, err)
				defer p.Close()
				for range 2 {
					_, err := p.AppendEntries(want, new(raft.AppendEntriesResponse))
					require.NoError(t, err)
					f := <-p.Consumer()
					require.NoError(t, f.Error())
					require.EqualValues(t, 7, f.Response().LastLog)
				}
			})
		})
	}
}

// Messages are no larger than the hosts take.
func TestParts_FitSmallMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, nil, gridtest.WithOptions(func(_ int, o *grid.ManagerOptions) { o.MaxMessageSize = 1<<10 + 1 }))
		serve(t, r.at(1), appended)
		require.NoError(t, r.at(0).AppendEntries("one", r.addr(1), big(1<<20), new(raft.AppendEntriesResponse)))
		_, err := gridraft.New(r.Manager(0), gridraft.Options{FirstID: firstID, PartSize: 1<<10 + 1})
		require.ErrorContains(t, err, "MaxMessageSize, 1025")
	})
}

func TestParts_RequestsAreBounded(t *testing.T) {
	small := func(o *gridraft.Options) { o.PartSize, o.MaxRequestSize = 1<<10, 10<<10 }
	t.Run("sender", func(t *testing.T) {
		edit := func(_ int, o *gridraft.Options) { small(o) }
		inBoth(t, edit, func(t *testing.T, r *rig) { requireTooLarge(t, r) })
	})
	t.Run("receiver", func(t *testing.T) {
		edit := func(node int, o *gridraft.Options) {
			if o.PartSize = 1 << 10; node == 1 {
				small(o)
			}
		}
		inBoth(t, edit, func(t *testing.T, r *rig) { requireTooLarge(t, r) })
	})
}

func requireTooLarge(t *testing.T, r *rig) {
	serve(t, r.at(1), appended)
	err := r.at(0).AppendEntries("one", r.addr(1), big(20<<10), new(raft.AppendEntriesResponse))
	require.ErrorIs(t, err, gridraft.ErrRequestTooLarge)
	p, err := r.at(0).AppendEntriesPipeline("one", r.addr(1))
	require.NoError(t, err)
	defer p.Close()
	f, err := p.AppendEntries(big(20<<10), new(raft.AppendEntriesResponse))
	if err == nil {
		err = f.Error()
	}
	require.ErrorIs(t, err, gridraft.ErrRequestTooLarge)
	// Smaller ones go on.
	require.NoError(t, r.at(0).AppendEntries("one", r.addr(1), big(5<<10), new(raft.AppendEntriesResponse)))
}

func TestGroups_ShareAManager(t *testing.T) {
	inBoth(t, func(_ int, o *gridraft.Options) { o.Group = "a" }, func(t *testing.T, r *rig) {
		_, err := gridraft.New(r.Manager(1), gridraft.Options{FirstID: firstID, Group: "a"})
		require.ErrorIs(t, err, grid.ErrHandlerAlreadyExists)
		other := make([]*gridraft.Transport, 2)
		for i := range other {
			other[i], err = gridraft.New(r.Manager(i), gridraft.Options{FirstID: firstID, Group: "b/c"})
			require.NoError(t, err)
			defer other[i].Close()
		}
		answer := func(who string) func(rpc raft.RPC) {
			return func(rpc raft.RPC) {
				rpc.Respond(&raft.RequestVoteResponse{RPCHeader: raft.RPCHeader{ID: []byte(who)}}, nil)
			}
		}
		serve(t, r.at(1), answer("a"))
		serve(t, other[1], answer("b"))
		ask := func(tr *gridraft.Transport) (string, error) {
			var resp raft.RequestVoteResponse
			err := tr.RequestVote("one", r.addr(1), new(raft.RequestVoteRequest), &resp)
			return string(resp.ID), err
		}
		for range 3 {
			who, err := ask(r.at(0))
			require.NoError(t, err)
			require.Equal(t, "a", who)
			who, err = ask(other[0])
			require.NoError(t, err)
			require.Equal(t, "b", who)
		}
		// One ends, and is made anew; the other goes on.
		require.NoError(t, r.at(1).Close())
		_, err = ask(r.at(0))
		require.Error(t, err)
		who, err := ask(other[0])
		require.NoError(t, err)
		require.Equal(t, "b", who)
		again, err := gridraft.New(r.Manager(1), gridraft.Options{FirstID: firstID, Group: "a"})
		require.NoError(t, err)
		defer again.Close()
		serve(t, again, answer("again"))
		who, err = ask(r.at(0))
		require.NoError(t, err)
		require.Equal(t, "again", who)
	})
}

func TestTransport_Close(t *testing.T) {
	inBoth(t, nil, func(t *testing.T, r *rig) {
		tr := r.at(0)
		require.False(t, tr.IsShutdown())
		// What is under way in either direction ends.
		out, in := make(chan error, 1), make(chan error, 1)
		go func() { out <- tr.AppendEntries("one", r.addr(1), entries(1), new(raft.AppendEntriesResponse)) }()
		<-r.at(1).Consumer()
		go func() { in <- r.at(1).AppendEntries("zero", r.addr(0), entries(1), new(raft.AppendEntriesResponse)) }()
		<-tr.Consumer()
		require.NoError(t, tr.Close())
		require.NoError(t, tr.Close())
		require.True(t, tr.IsShutdown())
		require.ErrorIs(t, <-out, raft.ErrTransportShutdown)
		require.ErrorIs(t, <-in, raft.ErrTransportShutdown)
		// And nothing begins.
		require.Equal(t, raft.ErrTransportShutdown, tr.TimeoutNow("one", r.addr(1), new(raft.TimeoutNowRequest), new(raft.TimeoutNowResponse)))
		_, err := tr.AppendEntriesPipeline("one", r.addr(1))
		require.Equal(t, raft.ErrTransportShutdown, err)
		require.Equal(t, raft.ErrTransportShutdown, tr.InstallSnapshot("one", r.addr(1), new(raft.InstallSnapshotRequest), new(raft.InstallSnapshotResponse), zeros{}))
		tr.CloseStreams()
		tr.Disconnect(r.addr(1))
		tr.Connect(r.addr(1), nil)
		require.Equal(t, raft.ErrTransportShutdown, tr.TimeoutNow("one", r.addr(1), new(raft.TimeoutNowRequest), new(raft.TimeoutNowResponse)))
	})
}

func TestTransport_CloseStreamsEndsWhatIsUnderWay(t *testing.T) {
	inBoth(t, nil, func(t *testing.T, r *rig) {
		out := make(chan error, 1)
		go func() {
			out <- r.at(0).AppendEntries("one", r.addr(1), entries(1), new(raft.AppendEntriesResponse))
		}()
		rpc := <-r.at(1).Consumer()
		r.at(0).CloseStreams()
		require.ErrorIs(t, <-out, gridraft.ErrStreamsClosed)
		appended(rpc) // nobody waits for it
		serve(t, r.at(1), appended)
		require.NoError(t, r.at(0).AppendEntries("one", r.addr(1), entries(1), new(raft.AppendEntriesResponse)))
	})
}

func TestTransport_PeersAreDisconnectedAndConnected(t *testing.T) {
	inBoth(t, nil, func(t *testing.T, r *rig) {
		for i := range 2 {
			serve(t, r.at(i), appended)
		}
		ask := func(from int) error {
			return r.at(from).AppendEntries("other", r.addr(1-from), entries(1), new(raft.AppendEntriesResponse))
		}
		both := func(want error) {
			t.Helper()
			for from := range 2 {
				if err := ask(from); want == nil {
					require.NoError(t, err)
				} else {
					require.ErrorIs(t, err, want)
				}
			}
		}
		tr := r.at(0)
		both(nil)
		tr.Disconnect(r.addr(1))
		both(gridraft.ErrDisconnected)
		_, err := tr.AppendEntriesPipeline("one", r.addr(1))
		require.ErrorIs(t, err, gridraft.ErrDisconnected)
		tr.Connect(r.addr(1), nil)
		both(nil)
		tr.DisconnectAll()
		both(gridraft.ErrDisconnected)
		tr.Disconnect(r.addr(1))
		tr.Connect(r.addr(1), nil)
		both(nil)
		tr.Disconnect(r.addr(1))
		both(gridraft.ErrDisconnected)
		tr.Connect(r.addr(1), nil)
		tr.Disconnect("http://somebody:1")
		both(nil)
	})
}

type provider map[raft.ServerID]raft.ServerAddress

func (p provider) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if a, ok := p[id]; ok {
		return a, nil
	}
	return "", errors.New("never heard of it")
}

func TestTransport_Addresses(t *testing.T) {
	known := provider{}
	edit := func(_ int, o *gridraft.Options) { o.ServerAddressProvider = known }
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, edit)
		tr := r.at(0)
		require.Equal(t, r.addr(0), tr.LocalAddr())
		require.EqualValues(t, "http://a:1", tr.DecodePeer(tr.EncodePeer("a", "http://a:1")))
		known["a"] = r.addr(1)
		require.Equal(t, r.addr(1), tr.DecodePeer(tr.EncodePeer("a", "http://a:1")))
		serve(t, r.at(1), appended)
		require.NoError(t, tr.AppendEntries("a", "http://a:1", entries(1), new(raft.AppendEntriesResponse)))
		err := tr.AppendEntries("b", "http://b:1", entries(1), new(raft.AppendEntriesResponse))
		require.ErrorContains(t, err, `server b: grid: "http://b:1" is not among the hosts`)
	})
}

func TestTransport_WaitsForALink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, nil)
		serve(t, r.at(1), appended)
		r.Stop(1)
		data, args := snapshot(10)
		calls := map[string]func() error{
			"single": func() error {
				return r.at(0).AppendEntries("one", r.addr(1), entries(1), new(raft.AppendEntriesResponse))
			},
			"parts": func() error {
				return r.at(0).AppendEntries("one", r.addr(1), big(1<<20), new(raft.AppendEntriesResponse))
			},
			"snapshot": func() error {
				return r.at(0).InstallSnapshot("one", r.addr(1), args, new(raft.InstallSnapshotResponse), bytes.NewReader(data))
			},
			"pipeline": func() error {
				p, err := r.at(0).AppendEntriesPipeline("one", r.addr(1))
				if err == nil {
					p.Close()
				}
				return err
			},
		}
		for name, call := range calls {
			start := time.Now()
			require.ErrorIs(t, call(), context.DeadlineExceeded, name)
			require.InDelta(t, time.Second, time.Since(start), float64(100*time.Millisecond), name)
		}
		// A host that comes back within that is called; and a closed transport waits for none.
		done := make(chan error)
		for _, call := range calls {
			go func() { done <- call() }()
		}
		time.Sleep(100 * time.Millisecond)
		r.Start(1)
		serve(t, r.at(1), func(rpc raft.RPC) {
			if rpc.Reader != nil {
				_, _ = io.Copy(io.Discard, rpc.Reader)
				rpc.Respond(new(raft.InstallSnapshotResponse), nil)
				return
			}
			appended(rpc)
		})
		for range calls {
			require.NoError(t, <-done)
		}
		r.Stop(1)
		for _, call := range calls {
			go func() { done <- call() }()
		}
		synctest.Wait()
		r.at(0).Close()
		start := time.Now()
		for range calls {
			require.ErrorIs(t, <-done, raft.ErrTransportShutdown)
		}
		require.Zero(t, time.Since(start))
	})
}

// A host that shuts down, be it this one or the other, does not wait for its pipelines.
func TestPipeline_EndsWhereAHostShutsDown(t *testing.T) {
	for node := range 2 {
		t.Run(fmt.Sprint(node), func(t *testing.T) {
			inBoth(t, nil, func(t *testing.T, r *rig) {
				serve(t, r.at(1), appended)
				p, err := r.at(0).AppendEntriesPipeline("one", r.addr(1))
				require.NoError(t, err)
				var leader sync.WaitGroup
				leader.Go(func() { // as raft does
					defer p.Close()
					for {
						f, err := p.AppendEntries(entries(1), new(raft.AppendEntriesResponse))
						if err != nil {
							assert.ErrorIs(t, err, grid.ErrDisconnected)
							return
						}
						assert.NoError(t, f.Error())
						<-p.Consumer()
						time.Sleep(10 * time.Millisecond)
					}
				})
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				require.NoError(t, r.Manager(node).Shutdown(ctx), "within that")
				leader.Wait()
			})
		})
	}
}

func TestTransport_CallsHaveATimeout(t *testing.T) {
	edit := func(_ int, o *gridraft.Options) { o.Timeout = 3 * time.Second }
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, edit)
		for _, args := range []*raft.AppendEntriesRequest{entries(1), big(1 << 20)} {
			start := time.Now()
			err := r.at(0).AppendEntries("one", r.addr(1), args, new(raft.AppendEntriesResponse))
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.InDelta(t, 3*time.Second, time.Since(start), float64(100*time.Millisecond))
		}
	})
}

// A host that was removed and added again is another connection.
func TestTransport_HostsComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, nil)
		serve(t, r.at(1), appended)
		ask := func() error {
			return r.at(0).AppendEntries("one", r.addr(1), entries(1), new(raft.AppendEntriesResponse))
		}
		for range 3 {
			require.NoError(t, ask())
			require.NoError(t, r.Manager(0).RemoveHost(r.Host(1)))
			require.ErrorContains(t, ask(), "is not among the hosts")
			require.NoError(t, r.Manager(0).AddHost(r.Host(1)))
			r.WaitConnected()
		}
		require.NoError(t, ask())
	})
}

func TestOptions_OutOfBoundsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gridtest.New(t, 1)
		for _, o := range []gridraft.Options{
			{},
			{FirstID: 249},
			{FirstID: 1, Timeout: time.Microsecond},
			{FirstID: 1, Timeout: -1},
			{FirstID: 1, MaxRPCsInFlight: -1},
			{FirstID: 1, PartSize: 1023},
			{FirstID: 1, PartSize: 1<<30 + 1},
			{FirstID: 1, MaxRequestSize: 1 << 10},
			{FirstID: 1, MaxRequestSize: -1},
		} {
			_, err := gridraft.New(g.Manager(0), o)
			require.ErrorContains(t, err, "gridraft: ", "%+v", o)
		}
		tr, err := gridraft.New(g.Manager(0), gridraft.Options{FirstID: 248, PartSize: 32<<20 - 1})
		require.NoError(t, err)
		require.NoError(t, tr.Close())
		// One that fails leaves nothing behind.
		require.NoError(t, g.Manager(0).RegisterSingleHandler(15, func([]byte) ([]byte, *grid.RemoteErr) { return nil, nil }))
		_, err = gridraft.New(g.Manager(0), gridraft.Options{FirstID: 10})
		require.ErrorIs(t, err, grid.ErrHandlerAlreadyExists)
		require.True(t, g.Manager(0).Unregister(15), "it was another's")
		tr, err = gridraft.New(g.Manager(0), gridraft.Options{FirstID: 10})
		require.NoError(t, err)
		require.NoError(t, tr.Close())
	})
}

func TestHandlerNames_AreThoseOfTheHandlers(t *testing.T) {
	names := gridraft.HandlerNames(firstID)
	require.Len(t, names, gridraft.HandlerIDs)
	require.Equal(t, "raft heartbeat", names[firstID])
	require.Equal(t, "raft join", names[firstID+grid.HandlerID(gridraft.HandlerIDs)-1])
}

// What is no request ends where it is decoded, and raft is not told.
func TestHandlers_RefuseWhatIsNoRequest(t *testing.T) {
	var nilEntry []byte
	require.NoError(t, codec.NewEncoderBytes(&nilEntry, new(codec.MsgpackHandle)).Encode(&raft.AppendEntriesRequest{Term: 1, Entries: []*raft.Log{nil}}))
	inBoth(t, nil, func(t *testing.T, r *rig) {
		serve(t, r.at(1), func(rpc raft.RPC) {
			assert.Fail(t, "raft got a request", "%+v", rpc.Command)
			rpc.Respond(nil, nil)
		})
		c := r.Conn(0, 1)
		for _, payload := range []string{"", "\x00", "\xc1", "text", "\xdf\xff\xff\xff\xff", "\xde\xff\xff\xa4Term", "\x85"} {
			for id := firstID; id < firstID+5; id++ {
				_, err := c.SingleRequest(t.Context(), id, []byte(payload))
				require.True(t, grid.IsRemoteErr(err), "%d %q: %v", id, payload, err)
			}
			stream, err := c.NewStream(t.Context(), firstID+6, []byte(payload))
			if err == nil {
				err = stream.Results(func([]byte) error { return nil })
			}
			require.True(t, grid.IsRemoteErr(err), "snapshot %q: %v", payload, err)
			for _, end := range []string{"", "\x00", "\x01", "\x02"} {
				stream, err = c.NewStream(t.Context(), firstID+5, nil)
				require.NoError(t, err)
				_ = stream.Send([]byte(payload + end))
				stream.CloseSend()
				err = stream.Results(func([]byte) error { return nil })
				require.True(t, grid.IsRemoteErr(err), "pipeline %q: %v", payload+end, err)
			}
		}
		_, err := c.SingleRequest(t.Context(), firstID+1, nilEntry)
		require.ErrorContains(t, err, "entry 0 of 1 is nil")
	})
}
