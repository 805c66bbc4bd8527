package gridraft_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridraft"
)

// The transports that are compared, each over TCP on the loopback interface, with the same codec.
var transports = []struct {
	name string
	make func(t testing.TB, n int) []raft.Transport
}{
	{"grid", gridTransports},
	{"net", netTransports},
}

// withMemory are those and raft's own without a network: what is left of the time is not the
// transport's.
var withMemory = append(slices.Clone(transports), struct {
	name string
	make func(t testing.TB, n int) []raft.Transport
}{"memory", memoryTransports})

func memoryTransports(_ testing.TB, n int) (all []raft.Transport) {
	for range n {
		_, t := raft.NewInmemTransport("")
		for _, other := range all {
			t.Connect(other.LocalAddr(), other)
			other.(*raft.InmemTransport).Connect(t.LocalAddr(), t)
		}
		all = append(all, t)
	}
	return all
}

// gridTransports are hosts like those of a program: a manager and an HTTP server each.
func gridTransports(t testing.TB, n int) (all []raft.Transport) {
	listeners, hosts := make([]net.Listener, n), make([]string, n)
	for i := range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		listeners[i], hosts[i] = l, "http://"+l.Addr().String()
	}
	var managers []*grid.Manager
	for i, l := range listeners {
		m, err := grid.NewManager(context.Background(), grid.ManagerOptions{
			Local: hosts[i], Hosts: hosts, Insecure: true, Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		managers = append(managers, m)
		tr, err := gridraft.New(m, gridraft.Options{FirstID: 1})
		require.NoError(t, err)
		all = append(all, tr)
		mux := http.NewServeMux()
		mux.Handle(grid.RoutePath, m.Handler())
		s := &http.Server{Handler: mux}
		go func() { _ = s.Serve(l) }()
		t.Cleanup(func() { tr.Close(); m.Close(); s.Close() })
	}
	for _, m := range managers {
		for _, host := range m.Targets() {
			require.NoError(t, m.Connection(host).WaitForConnect(t.Context()))
		}
	}
	return all
}

// tcpLayer is the plainest stream layer: that of raft.NewTCPTransport is not exported.
type tcpLayer struct{ net.Listener }

func (tcpLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", string(addr), timeout)
}

func netTransports(t testing.TB, n int) (all []raft.Transport) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		tr := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: tcpLayer{l}, MaxPool: 3, Timeout: 10 * time.Second, Logger: hclog.NewNullLogger(), MsgpackUseNewTimeFormat: true,
		})
		t.Cleanup(func() { tr.CloseStreams(); tr.Close() })
		all = append(all, tr)
	}
	return all
}

// nothing is a state machine that has no state.
type nothing struct{}

func (nothing) Apply(*raft.Log) any                 { return nil }
func (nothing) Snapshot() (raft.FSMSnapshot, error) { return nothing{}, nil }
func (nothing) Restore(r io.ReadCloser) error       { return r.Close() }
func (nothing) Persist(s raft.SnapshotSink) error   { return s.Close() }
func (nothing) Release()                            {}

// startServers makes a cluster of them, and returns its leader.
func startServers(b *testing.B, trans []raft.Transport) *raft.Raft {
	var conf raft.Configuration
	for i, t := range trans {
		conf.Servers = append(conf.Servers, raft.Server{ID: raft.ServerID(fmt.Sprint(i)), Address: t.LocalAddr()})
	}
	var servers []*raft.Raft
	for i, t := range trans {
		c := raft.DefaultConfig()
		c.LocalID, c.Logger = conf.Servers[i].ID, hclog.NewNullLogger()
		store := raft.NewInmemStore()
		require.NoError(b, raft.BootstrapCluster(c, store, store, raft.NewInmemSnapshotStore(), t, conf))
		r, err := raft.NewRaft(c, nothing{}, store, store, raft.NewInmemSnapshotStore(), t)
		require.NoError(b, err)
		b.Cleanup(func() { _ = r.Shutdown().Error() })
		servers = append(servers, r)
	}
	for {
		for _, r := range servers {
			if r.State() == raft.Leader && r.Barrier(time.Minute).Error() == nil {
				return r
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// BenchmarkApply is the time of a command of 256 bytes in a cluster of three, whose logs are in
// memory.
func BenchmarkApply(b *testing.B) {
	for _, writers := range []int{1, 8, 64} {
		for _, tr := range withMemory {
			b.Run(fmt.Sprintf("writers=%d/%s", writers, tr.name), func(b *testing.B) {
				leader := startServers(b, tr.make(b, 3))
				command := bytes.Repeat([]byte("x"), 256)
				inParallel(b, writers, func() error { return leader.Apply(command, time.Minute).Error() })
			})
		}
	}
}

// BenchmarkAppend is the time of a request with one entry that is answered at once, without a
// pipeline.
func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 8, 64} {
		for _, tr := range transports {
			b.Run(fmt.Sprintf("writers=%d/%s", writers, tr.name), func(b *testing.B) {
				all := tr.make(b, 2)
				answerAll(b, all[1], nil)
				inParallel(b, writers, func() error {
					var resp raft.AppendEntriesResponse
					return all[0].AppendEntries("1", all[1].LocalAddr(), appendRequest(256), &resp)
				})
			})
		}
	}
}

// BenchmarkPipelineTurn is the time of a request with one entry, sent when the one before was answered.
func BenchmarkPipelineTurn(b *testing.B) {
	for _, tr := range transports {
		b.Run(tr.name, func(b *testing.B) {
			all := tr.make(b, 2)
			answerAll(b, all[1], nil)
			p, err := all[0].AppendEntriesPipeline("1", all[1].LocalAddr())
			require.NoError(b, err)
			defer p.Close()
			b.ReportAllocs()
			for b.Loop() {
				_, err := p.AppendEntries(appendRequest(256), new(raft.AppendEntriesResponse))
				require.NoError(b, err)
				require.NoError(b, (<-p.Consumer()).Error())
			}
		})
	}
}

// BenchmarkPipeline is the time of a request with 64 entries of 256 bytes, of which two are under
// way at a time.
func BenchmarkPipeline(b *testing.B) {
	for _, tr := range transports {
		b.Run(tr.name, func(b *testing.B) {
			all := tr.make(b, 2)
			answerAll(b, all[1], nil)
			p, err := all[0].AppendEntriesPipeline("1", all[1].LocalAddr())
			require.NoError(b, err)
			defer p.Close()
			req := appendRequest(256)
			for len(req.Entries) < 64 {
				next := *req.Entries[0]
				next.Index += uint64(len(req.Entries))
				req.Entries = append(req.Entries, &next)
			}
			b.ReportAllocs()
			b.ResetTimer()
			var sender sync.WaitGroup
			sender.Go(func() {
				for range b.N {
					if _, err := p.AppendEntries(req, new(raft.AppendEntriesResponse)); err != nil {
						b.Error(err)
					}
				}
			})
			for range b.N {
				require.NoError(b, (<-p.Consumer()).Error())
			}
			sender.Wait()
		})
	}
}

func inParallel(b *testing.B, writers int, f func() error) {
	var (
		left atomic.Int64
		wg   sync.WaitGroup
	)
	left.Store(int64(b.N))
	b.ReportAllocs()
	b.ResetTimer()
	for range writers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := f(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func appendRequest(size int) *raft.AppendEntriesRequest {
	return &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte("0"), Addr: []byte("http://127.0.0.1:9000")},
		Term:      7, PrevLogEntry: 99, PrevLogTerm: 7, LeaderCommitIndex: 90,
		Entries: []*raft.Log{{Index: 100, Term: 7, Data: bytes.Repeat([]byte("x"), size), AppendedAt: time.Now()}},
	}
}

// answerAll answers what comes to a transport. The snapshots go to sink, if it is given.
func answerAll(b testing.TB, tr raft.Transport, sink io.Writer) {
	stop := make(chan struct{})
	b.Cleanup(func() { close(stop) })
	go func() {
		for {
			select {
			case rpc := <-tr.Consumer():
				switch rpc.Command.(type) {
				case *raft.AppendEntriesRequest:
					rpc.Respond(&raft.AppendEntriesResponse{Term: 7, LastLog: 100, Success: true}, nil)
				case *raft.InstallSnapshotRequest:
					_, err := io.Copy(sink, rpc.Reader)
					rpc.Respond(&raft.InstallSnapshotResponse{Term: 7, Success: true}, err)
				}
			case <-stop:
				return
			}
		}
	}()
}

// plainWriter hides io.Discard's ReadFrom: that has a buffer of another size than io.Copy, which is
// what raft uses.
type plainWriter struct{ n int64 }

func (w *plainWriter) Write(b []byte) (int, error) { w.n += int64(len(b)); return len(b), nil }

const snapshotSize = 64 << 20

func sendSnapshot(b *testing.B, all []raft.Transport, data []byte) {
	var resp raft.InstallSnapshotResponse
	args := &raft.InstallSnapshotRequest{SnapshotVersion: 1, Term: 7, Size: int64(len(data)), Configuration: raft.EncodeConfiguration(raft.Configuration{})}
	require.NoError(b, all[0].InstallSnapshot("1", all[1].LocalAddr(), args, &resp, struct{ io.Reader }{bytes.NewReader(data)}))
}

// BenchmarkSnapshot is the time of a snapshot of 64 MiB.
func BenchmarkSnapshot(b *testing.B) {
	for _, tr := range transports {
		b.Run(tr.name, func(b *testing.B) {
			all := tr.make(b, 2)
			sink := new(plainWriter)
			answerAll(b, all[1], sink)
			data := make([]byte, snapshotSize)
			b.SetBytes(snapshotSize)
			b.ReportAllocs()
			for b.Loop() {
				sendSnapshot(b, all, data)
			}
			if sink.n%snapshotSize != 0 {
				b.Fatal("not whole")
			}
		})
	}
}

// BenchmarkHeartbeat is the time of heartbeats while snapshots are sent to the same server.
func BenchmarkHeartbeat(b *testing.B) {
	for _, tr := range transports {
		b.Run(tr.name, func(b *testing.B) {
			all := tr.make(b, 2)
			answerAll(b, all[1], new(plainWriter))
			all[1].SetHeartbeatHandler(func(rpc raft.RPC) { rpc.Respond(&raft.AppendEntriesResponse{Term: 7, Success: true}, nil) })
			data := make([]byte, snapshotSize)
			var stop atomic.Bool
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				for !stop.Load() {
					sendSnapshot(b, all, data)
				}
			}()
			var took []time.Duration
			for b.Loop() {
				req := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{Addr: []byte("a")}, Term: 7}
				start := time.Now()
				require.NoError(b, all[0].AppendEntries("1", all[1].LocalAddr(), req, new(raft.AppendEntriesResponse)))
				took = append(took, time.Since(start))
				time.Sleep(time.Millisecond)
			}
			stop.Store(true)
			<-sent
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}
