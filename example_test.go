package grid_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing/iotest"
	"time"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridstatus"
)

// README.md and docs/guide.md show these examples; a test keeps them the same.

func Example() {
	// Two hosts of one cluster, in one process for once. Each is named by its
	// base URL, and knows those of all.
	listenA, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	listenB, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	hostA, hostB := "http://"+listenA.Addr().String(), "http://"+listenB.Addr().String()

	// start is what each host does: make its manager, which registers its
	// handlers before anything connects, and serve it.
	secret := []byte("16 bytes or more that all hosts share, from a file")
	const greet grid.HandlerID = 1
	start := func(local string, l net.Listener) *grid.Manager {
		m, err := grid.NewManager(context.Background(), grid.ManagerOptions{
			Local:        local,
			Hosts:        []string{hostA, hostB},
			SharedSecret: [][]byte{secret},
			Register: func(m *grid.Manager) error {
				return m.RegisterSingleHandler(greet, func(payload []byte) ([]byte, *grid.RemoteErr) {
					return append([]byte("hello "), payload...), nil
				})
			},
		})
		if err != nil {
			log.Fatal(err)
		}
		go m.Serve(context.Background(), l, grid.ServeOptions{}) // until m is closed
		return m
	}
	a, b := start(hostA, listenA), start(hostB, listenB)
	defer a.Close()
	defer b.Close()

	// A waits for the link to B, and asks.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn := a.Connection(hostB)
	if err := conn.WaitForConnect(ctx); err != nil {
		log.Fatal(err)
	}
	answer, err := conn.SingleRequest(ctx, greet, []byte("world"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(answer))
	// Output: hello world
}

// pair does the same for the other examples. server is one host, conn the
// connection of another host to it.
func pair() (server *grid.Manager, conn *grid.Connection, stop func()) { return pairWith(0) }

// pairWith is pair with hosts that run so many handlers, 0 for the default.
func pairWith(maxHandlers int) (server *grid.Manager, conn *grid.Connection, stop func()) {
	hosts, stop := several(2, func(o *grid.ManagerOptions) { o.MaxHandlers = maxHandlers })
	return hosts[0], hosts[1].Connection(hosts[0].HostName()), stop
}

// several starts so many hosts, which are connected to each other.
func several(n int, edit func(o *grid.ManagerOptions)) (managers []*grid.Manager, stop func()) {
	var hosts []string
	var listeners []net.Listener
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			log.Fatal(err)
		}
		listeners = append(listeners, l)
		hosts = append(hosts, "http://"+l.Addr().String())
	}
	for i, l := range listeners {
		o := grid.ManagerOptions{
			Local:    hosts[i],
			Hosts:    hosts,
			Insecure: true,
			Logger:   slog.New(slog.DiscardHandler),
		}
		edit(&o)
		m, err := grid.NewManager(context.Background(), o)
		if err != nil {
			log.Fatal(err)
		}
		mux := http.NewServeMux()
		mux.Handle(grid.RoutePath, m.Handler())
		go http.Serve(l, mux)
		managers = append(managers, m)
	}
	for _, m := range managers {
		for _, host := range m.Targets() {
			if err := m.Connection(host).WaitForConnect(context.Background()); err != nil {
				log.Fatal(err)
			}
		}
	}
	return managers, func() {
		for i, l := range listeners {
			l.Close()
			managers[i].Close()
		}
	}
}

func ExampleConnection_SingleRequest() {
	server, conn, stop := pair()
	defer stop()
	ctx := context.Background()

	const reverse grid.HandlerID = 1

	// On one host:
	err := server.RegisterSingleHandler(reverse, func(payload []byte) ([]byte, *grid.RemoteErr) {
		if len(payload) == 0 {
			return nil, grid.NewRemoteErrString("nothing to reverse")
		}
		slices.Reverse(payload)
		return payload, nil
	})
	if err != nil {
		log.Fatal(err)
	}

	// On any other:
	answer, err := conn.SingleRequest(ctx, reverse, []byte("stressed"))
	fmt.Println(string(answer), err)
	_, err = conn.SingleRequest(ctx, reverse, nil)
	fmt.Println(err)
	// Output:
	// desserts <nil>
	// nothing to reverse
}

func ExampleNewSingleHandler() {
	server, conn, stop := pair()
	defer stop()
	ctx := context.Background()

	type disk struct {
		Path string
		Free uint64
	}
	disks := grid.NewJSONPool[disk]()

	// Both hosts share this, usually as a package variable: the ID, and how to
	// make a request and a response.
	diskInfo := grid.NewSingleHandler(2, grid.NewMSS, disks.NewJSON)

	// On one host:
	err := diskInfo.Register(server, func(req *grid.MSS) (*grid.JSON[disk], *grid.RemoteErr) {
		return disks.NewJSONWith(&disk{Path: req.Get("path"), Free: 42 << 30}), nil
	})
	if err != nil {
		log.Fatal(err)
	}

	// On any other:
	resp, err := diskInfo.Call(ctx, conn, grid.NewMSSWith(map[string]string{"path": "/data"}))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.Value().Path, resp.Value().Free)
	diskInfo.PutResponse(resp) // optional: resp can be reused
	// Output: /data 45097156608
}

func ExampleConnection_NewStream() {
	server, conn, stop := pair()
	defer stop()
	ctx := context.Background()

	const upper grid.HandlerID = 3

	// On one host:
	err := server.RegisterStreamingHandler(upper, grid.StreamHandler{
		Serve: func(ctx context.Context, payload []byte, s *grid.ServerStream) *grid.RemoteErr {
			for word, err := range s.All() {
				if err != nil { // given up, not at its end
					return grid.NewRemoteErr(err)
				}
				if err := s.Send(ctx, bytes.ToUpper(word)); err != nil {
					return grid.NewRemoteErr(err)
				}
			}
			return nil
		},
		InCapacity:  8, // how far a sender may be ahead at first
		OutCapacity: 8,
	})
	if err != nil {
		log.Fatal(err)
	}

	// On any other:
	stream, err := conn.NewStream(ctx, upper, nil)
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		defer stream.CloseSend()
		for _, word := range []string{"one", "two", "three"} {
			if err := stream.Send([]byte(word)); err != nil {
				return // Results tells why
			}
		}
	}()
	err = stream.Results(func(word []byte) error {
		fmt.Println(string(word))
		return nil
	})
	fmt.Println("end:", err)
	// Output:
	// ONE
	// TWO
	// THREE
	// end: <nil>
}

func ExampleStream_Finish() {
	server, conn, stop := pair()
	defer stop()
	ctx := context.Background()

	const store grid.HandlerID = 3

	// On one host:
	stored := make(chan []string, 1)
	err := server.RegisterStreamingHandler(store, grid.StreamHandler{
		Serve: func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			var lines []string
			for line, err := range s.All() {
				if err != nil { // given up: this is a part of it
					return grid.NewRemoteErr(err)
				}
				lines = append(lines, string(line))
			}
			stored <- lines
			return nil
		},
		InCapacity: 8,
	})
	if err != nil {
		log.Fatal(err)
	}

	// On any other:
	stream, err := conn.NewStream(ctx, store, nil)
	if err != nil {
		log.Fatal(err)
	}
	within, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, line := range []string{"one", "two", "three"} {
		if err := stream.SendContext(within, []byte(line)); err != nil {
			log.Fatal(err)
		}
	}
	err = stream.Finish(within) // what the handler makes of all that was sent
	fmt.Println("stored:", <-stored)
	fmt.Println("end:", err)
	// Output:
	// stored: [one two three]
	// end: <nil>
}

func ExampleStream_Writer() {
	server, conn, stop := pair()
	defer stop()
	ctx := context.Background()

	const upload grid.HandlerID = 5

	// On one host:
	uploads := make(chan string, 1)
	err := server.RegisterStreamingHandler(upload, grid.StreamHandler{
		Serve: func(ctx context.Context, name []byte, s *grid.ServerStream) *grid.RemoteErr {
			var file bytes.Buffer
			n, err := io.Copy(&file, s.Reader())
			uploads <- fmt.Sprintf("%s: %d bytes, %v", name, n, err)
			return grid.NewRemoteErr(err) // nil only where the whole file has come
		},
		InCapacity: 8,
	})
	if err != nil {
		log.Fatal(err)
	}

	// On any other:
	send := func(name string, file io.Reader) error {
		stream, err := conn.NewStream(ctx, upload, []byte(name))
		if err != nil {
			return err
		}
		w := stream.Writer(ctx)
		_, err = io.Copy(w, file)
		w.CloseWithError(err) // the end if err is nil, else that there is none
		return stream.Finish(ctx)
	}
	err = send("good", strings.NewReader(strings.Repeat("x", 100_000)))
	fmt.Println(<-uploads)
	fmt.Println("end:", err)
	bad := io.MultiReader(strings.NewReader("half of it"), iotest.ErrReader(errors.New("disk error")))
	err = send("bad", bad)
	fmt.Println(strings.HasSuffix(<-uploads, "context canceled"))
	fmt.Println("end:", err)
	// Output:
	// good: 100000 bytes, <nil>
	// end: <nil>
	// true
	// end: disk error
}

func ExampleWriterToChannel() {
	server, conn, stop := pair()
	defer stop()
	ctx := context.Background()

	const report grid.HandlerID = 6

	// On one host:
	err := server.RegisterStreamingHandler(report, grid.StreamHandler{
		Handle: func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
			w := bufio.NewWriter(grid.WriterToChannel(ctx, out))
			for i := range 3 {
				fmt.Fprintln(w, "line", i)
			}
			return grid.NewRemoteErr(w.Flush())
		},
	})
	if err != nil {
		log.Fatal(err)
	}

	// On any other:
	stream, err := conn.NewStream(ctx, report, nil)
	if err != nil {
		log.Fatal(err)
	}
	lines := bufio.NewScanner(stream.Reader())
	for lines.Scan() {
		fmt.Println(lines.Text())
	}
	fmt.Println("end:", lines.Err())
	// Output:
	// line 0
	// line 1
	// line 2
	// end: <nil>
}

func ExampleNewStream() {
	server, conn, stop := pair()
	defer stop()
	ctx := context.Background()

	type entry struct {
		Name string
		Size int64
	}
	entries := grid.NewJSONPool[entry]()

	// A request with a payload, no messages from the client, and any number of
	// entries as the answer.
	list := grid.NewStream[*grid.MSS, grid.NoPayload, *grid.JSON[entry]](1, grid.NewMSS, nil, entries.NewJSON)

	// On one host:
	err := list.RegisterServe(server, func(ctx context.Context, req *grid.MSS, s *grid.TypedServerStream[grid.NoPayload, *grid.JSON[entry]]) *grid.RemoteErr {
		for i := range 3 {
			e := entries.NewJSONWith(&entry{Name: fmt.Sprint(req.Get("dir"), "/", i), Size: int64(i) << 10})
			if err := s.Send(ctx, e); err != nil {
				return grid.NewRemoteErr(err)
			}
			list.PutResponse(e)
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}

	// On any other:
	stream, err := list.Call(ctx, conn, grid.NewMSSWith(map[string]string{"dir": "/data"}))
	if err != nil {
		log.Fatal(err)
	}
	for e, err := range stream.All() {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(e.Value().Name, e.Value().Size)
		list.PutResponse(e)
	}
	// Output:
	// /data/0 0
	// /data/1 1024
	// /data/2 2048
}

func ExampleConnection_Subroute() {
	server, conn, stop := pair()
	defer stop()
	ctx := context.Background()

	const status grid.HandlerID = 1

	for _, disk := range []string{"disk1", "disk2"} {
		err := server.RegisterSingleHandler(status, func([]byte) ([]byte, *grid.RemoteErr) {
			return []byte(disk + " is well"), nil
		}, "pool1", disk)
		if err != nil {
			log.Fatal(err)
		}
	}

	pool := conn.Subroute("pool1")
	answer, err := pool.Subroute("disk2").SingleRequest(ctx, status, nil)
	fmt.Println(string(answer), err)
	answer, err = conn.Subroute("pool1/disk1").SingleRequest(ctx, status, nil) // the same, in one
	fmt.Println(string(answer), err)
	// Output:
	// disk2 is well <nil>
	// disk1 is well <nil>
}

func ExampleGetByteBuffer() {
	server, conn, stop := pair()
	defer stop()
	ctx := context.Background()

	const shout grid.HandlerID = 6
	err := server.RegisterSingleHandler(shout, func(payload []byte) ([]byte, *grid.RemoteErr) {
		answer := append(grid.GetByteBufferCap(len(payload)), bytes.ToUpper(payload)...)
		grid.PutByteBuffer(payload) // a handler owns its payload
		return answer, nil          // and gives away what it returns
	})
	if err != nil {
		log.Fatal(err)
	}

	request := append(grid.GetByteBuffer(), "abc"...)
	answer, err := conn.SingleRequest(ctx, shout, request)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(answer))
	grid.PutByteBuffer(request) // stayed the caller's
	grid.PutByteBuffer(answer)  // is the caller's
	// Output: ABC
}

func ExampleRemoteErr() {
	server, conn, stop := pair()
	defer stop()
	ctx := context.Background()

	errNotFound := errors.New("file not found") // both hosts know it

	const read, missing grid.HandlerID = 1, 2
	err := server.RegisterSingleHandler(read, func(name []byte) ([]byte, *grid.RemoteErr) {
		return nil, grid.NewRemoteErrCode("no_file", fmt.Errorf("reading %s: %w", name, errNotFound))
	})
	if err != nil {
		log.Fatal(err)
	}

	tell := func(err error) {
		var remote *grid.RemoteErr
		switch {
		case errors.Is(err, errNotFound):
			fmt.Println("the handler's own error:", err, "- code:", grid.ErrorCode(err))
		case errors.Is(err, grid.ErrNoHandler):
			fmt.Println("no such handler there; can be asked elsewhere:", grid.CanRetry(err))
		case errors.As(err, &remote):
			fmt.Println("another error from the remote host:", remote)
		case errors.Is(err, grid.ErrDisconnected):
			fmt.Println("the remote host can't be reached:", err)
		default:
			fmt.Println("something on this side, a message too large:", errors.Is(err, grid.ErrMessageTooLarge))
		}
	}
	_, err = conn.SingleRequest(ctx, read, []byte("a.txt"))
	tell(err)
	_, err = conn.SingleRequest(ctx, missing, nil)
	tell(err)
	_, err = server.Connection("http://unknown").SingleRequest(ctx, read, nil)
	tell(err)
	_, err = conn.SingleRequest(ctx, read, make([]byte, 33<<20))
	tell(err)
	// Output:
	// the handler's own error: reading a.txt: file not found - code: no_file
	// no such handler there; can be asked elsewhere: true
	// the remote host can't be reached: grid: disconnected: nil Connection: its host was not among the Manager's hosts, or is the local one
	// something on this side, a message too large: true
}

func ExampleConnection_SingleRequest_deadline() {
	server, conn, stop := pair()
	defer stop()
	ctx := context.Background()

	const sleep, ticks grid.HandlerID = 1, 2

	// A deadline travels with the call. This handler takes longer.
	release := make(chan struct{})
	defer close(release)
	err := server.RegisterSingleHandler(sleep, func([]byte) ([]byte, *grid.RemoteErr) {
		<-release
		return nil, nil
	})
	if err != nil {
		log.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err = conn.SingleRequest(short, sleep, nil)
	fmt.Println(errors.Is(err, context.DeadlineExceeded))

	// The handler of a stream has a context, which ends with the caller's.
	stopped := make(chan error, 1)
	err = server.RegisterStreamingHandler(ticks, grid.StreamHandler{
		Serve: func(ctx context.Context, _ []byte, s *grid.ServerStream) *grid.RemoteErr {
			var err error
			for i := 0; err == nil; i++ {
				err = s.Send(ctx, fmt.Append(nil, "tick ", i)) // waits no more once ctx has ended
			}
			stopped <- err
			return nil
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	enough := errors.New("seen enough")
	watching, giveUp := context.WithCancelCause(ctx)
	stream, err := conn.NewStream(watching, ticks, nil)
	if err != nil {
		log.Fatal(err)
	}
	err = stream.Results(func(tick []byte) error {
		fmt.Println(string(tick))
		if string(tick) == "tick 1" {
			giveUp(enough)
		}
		return nil
	})
	fmt.Println("here:", errors.Is(err, context.Canceled), errors.Is(err, enough))
	fmt.Println("there:", <-stopped)
	// Output:
	// true
	// tick 0
	// tick 1
	// here: true true
	// there: context canceled
}

func ExampleConnection_WithTimeout() {
	server, conn, stop := pair()
	defer stop()
	ctx := context.Background()

	const lookup, sleep grid.HandlerID = 1, 2
	release := make(chan struct{})
	defer close(release)
	err := errors.Join(
		server.RegisterSingleHandler(lookup, func(key []byte) ([]byte, *grid.RemoteErr) { return key, nil }),
		server.RegisterSingleHandler(sleep, func([]byte) ([]byte, *grid.RemoteErr) {
			<-release
			return nil, nil
		}))
	if err != nil {
		log.Fatal(err)
	}
	quick := conn.WithTimeout(500 * time.Millisecond) // to be kept
	answer, err := quick.SingleRequest(ctx, lookup, []byte("a key"))
	fmt.Println(string(answer), err)
	_, err = quick.SingleRequest(ctx, sleep, nil)
	fmt.Println(errors.Is(err, context.DeadlineExceeded))
	// Output:
	// a key <nil>
	// true
}

func ExampleConnection_With() {
	server, conn, stop := pair()
	defer stop()
	ctx := context.Background()

	const lookup grid.HandlerID = 1
	err := server.RegisterSingleHandler(lookup, func(key []byte) ([]byte, *grid.RemoteErr) { return key, nil })
	if err != nil {
		log.Fatal(err)
	}
	// Where there is no link, calls wait for one, up to five seconds in all.
	patient := conn.With(grid.CallOptions{WaitForLink: true, Timeout: 5 * time.Second}) // to be kept
	answer, err := patient.SingleRequest(ctx, lookup, []byte("a key"))
	fmt.Println(string(answer), err)
	// Output: a key <nil>
}

func ExampleMetadata() {
	server, conn, stop := pair()
	defer stop()
	ctx := context.Background()

	const quota grid.HandlerID = 1
	// On one host:
	err := server.RegisterSingleHandlerContext(quota, func(ctx context.Context, disk []byte) ([]byte, *grid.RemoteErr) {
		return fmt.Appendf(nil, "quota of %s on %s", grid.Metadata(ctx)["tenant"], disk), nil
	})
	if err != nil {
		log.Fatal(err)
	}

	// On any other:
	for _, tenant := range []string{"blue", "red"} {
		to := conn.With(grid.CallOptions{Metadata: map[string]string{"tenant": tenant}})
		answer, err := to.SingleRequest(ctx, quota, []byte("/data"))
		fmt.Println(string(answer), err)
	}
	// Output:
	// quota of blue on /data <nil>
	// quota of red on /data <nil>
}

func ExampleSingleHandler_CallEach() {
	hosts, stop := several(4, func(*grid.ManagerOptions) {})
	defer stop()
	ctx := context.Background()

	// How much room each host has; the last one does not know.
	free := grid.NewSingleHandler(1, grid.NewNoPayload, grid.NewMSS)
	for i, m := range hosts {
		err := free.Register(m, func(grid.NoPayload) (*grid.MSS, *grid.RemoteErr) {
			if i == 3 {
				return nil, grid.NewRemoteErrString("disk is gone")
			}
			return grid.NewMSSWith(map[string]string{"GiB": strconv.Itoa(10 * i)}), nil
		})
		if err != nil {
			log.Fatal(err)
		}
	}

	// The first host asks the others.
	others, sum := hosts[0].Requesters(hosts[0].Targets()...), 0
	for answer := range free.CallEach(ctx, others, grid.NoPayload{}) {
		if answer.Err != nil { // of answer.Conn
			fmt.Println(answer.Err)
			continue
		}
		n, _ := strconv.Atoi(answer.Value.Get("GiB"))
		sum += n
	}
	fmt.Println("free:", sum, "GiB")

	// Two of them will do; the third need not answer any more.
	most, err := free.CallQuorum(ctx, 2, others, grid.NoPayload{})
	fmt.Println(len(most), err)

	_, err = free.CallAll(ctx, others, grid.NoPayload{})
	var failed *grid.QuorumError
	fmt.Println(errors.As(err, &failed), failed.Need, len(failed.Errs))
	// Unordered output:
	// disk is gone
	// free: 30 GiB
	// 2 <nil>
	// true 3 1
}

func ExampleNewRetrier() {
	hosts, stop := several(3, func(o *grid.ManagerOptions) {
		// One call at a time, so that a host is overloaded soon.
		o.HandlerOptions = map[grid.HandlerKey]grid.HandlerOptions{{ID: 1}: {MaxRunning: 1}}
	})
	defer stop()
	ctx := context.Background()
	const work grid.HandlerID = 1
	began, finish := make(chan bool), make(chan bool)
	err := errors.Join(
		hosts[1].RegisterSingleHandler(work, func([]byte) ([]byte, *grid.RemoteErr) {
			began <- true
			<-finish
			return []byte("from the first"), nil
		}),
		hosts[2].RegisterSingleHandler(work, func([]byte) ([]byte, *grid.RemoteErr) {
			return []byte("from the second"), nil
		}))
	if err != nil {
		log.Fatal(err)
	}
	first, second := hosts[0].Connection(hosts[1].HostName()), hosts[0].Connection(hosts[2].HostName())

	// To be kept, as its calls share a budget of retries.
	either, err := grid.NewRetrier(grid.RetryOptions{}, first, second)
	if err != nil {
		log.Fatal(err)
	}
	slow := make(chan string)
	go func() {
		answer, _ := either.SingleRequest(ctx, work, nil)
		slow <- string(answer)
	}()
	<-began
	answer, err := either.SingleRequest(ctx, work, nil) // the first host refuses it
	fmt.Println(string(answer), err)
	close(finish)
	fmt.Println(<-slow)
	// Output:
	// from the second <nil>
	// from the first
}

func ExampleNewRetrierFunc() {
	hosts, stop := several(3, func(*grid.ManagerOptions) {})
	defer stop()
	ctx := context.Background()
	const work grid.HandlerID = 1
	for i, m := range hosts[1:] {
		err := m.RegisterSingleHandler(work, func([]byte) ([]byte, *grid.RemoteErr) {
			return fmt.Appendf(nil, "from host %d", i+1), nil
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	m := hosts[0]

	either, err := grid.NewRetrierFunc(grid.RetryOptions{}, func() []grid.Requester {
		return m.Requesters(m.Targets()...)
	})
	if err != nil {
		log.Fatal(err)
	}

	// It goes on with those that are left.
	if err := m.RemoveHost(hosts[1].HostName()); err != nil {
		log.Fatal(err)
	}
	answer, err := either.SingleRequest(ctx, work, nil)
	fmt.Println(string(answer), err)
	// Output:
	// from host 2 <nil>
}

func ExampleCodecOf() {
	server, conn, stop := pair()
	defer stop()
	ctx := context.Background()

	// Both hosts share this, usually as package variables. For a message of protobuf
	// the functions are
	//	func(m *pb.Message) ([]byte, error) { return proto.Marshal(m) }
	//	func(m *pb.Message, b []byte) error { return proto.Unmarshal(b, m) }
	moments := grid.CodecOf((*time.Time).MarshalBinary, (*time.Time).UnmarshalBinary)
	nextDay := grid.NewSingleHandler(1, moments.New, moments.New)

	// On one host:
	err := nextDay.Register(server, func(req *grid.Coded[time.Time]) (*grid.Coded[time.Time], *grid.RemoteErr) {
		day := req.Value().AddDate(0, 0, 1)
		return moments.NewWith(&day), nil
	})
	if err != nil {
		log.Fatal(err)
	}

	// On any other:
	day := time.Date(2024, 2, 28, 0, 0, 0, 0, time.UTC)
	resp, err := nextDay.Call(ctx, conn, moments.NewWith(&day))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.Value().Format(time.DateOnly))
	// Output: 2024-02-29
}

func ExampleManagerOptions_handlers() {
	const local = "http://localhost:9000"
	m, err := grid.NewManager(context.Background(), grid.ManagerOptions{
		Local:      local,
		Hosts:      []string{local},
		LocalCalls: true,
		Insecure:   true,
		HandlerOptions: map[grid.HandlerKey]grid.HandlerOptions{
			{ID: 1}:                   {Name: "scan", MaxRunning: 8, Timeout: time.Minute},
			{ID: 1, Subroute: "disk"}: {Name: "scan-disk"}, // with the limits above
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	scan := func(context.Context, []byte) ([]byte, *grid.RemoteErr) { return nil, nil }
	err = errors.Join(
		m.RegisterSingleHandlerContext(1, scan),
		m.RegisterSingleHandlerContext(1, scan, "disk", "1"),
	)
	if err != nil {
		log.Fatal(err)
	}
	_, err = m.Connection(local).Subroute("disk/1").SingleRequest(context.Background(), 1, nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, st := range m.HandlerStats() {
		fmt.Printf("%s %q: %d calls, %d refused\n", st.Name, st.Subroute, st.Calls, st.Refused)
	}
	// Output:
	// scan "": 0 calls, 0 refused
	// scan-disk "disk/1": 1 calls, 0 refused
}

func ExampleManagerOptions_tls() {
	// Two HTTPS servers, and the authority for their certificates.
	muxA, muxB := http.NewServeMux(), http.NewServeMux()
	serverA, serverB := httptest.NewTLSServer(muxA), httptest.NewTLSServer(muxB)
	defer serverA.Close()
	defer serverB.Close()
	roots := x509.NewCertPool()
	roots.AddCert(serverA.Certificate())
	roots.AddCert(serverB.Certificate())
	secret := []byte("16 bytes or more that all hosts share, from a file")

	start := func(local string, mux *http.ServeMux) *grid.Manager {
		m, err := grid.NewManager(context.Background(), grid.ManagerOptions{
			Local:        local,
			Hosts:        []string{serverA.URL, serverB.URL}, // https://...
			TLSConfig:    &tls.Config{RootCAs: roots},
			SharedSecret: [][]byte{secret},
		})
		if err != nil {
			log.Fatal(err)
		}
		mux.Handle(grid.RoutePath, m.Handler())
		return m
	}
	a, b := start(serverA.URL, muxA), start(serverB.URL, muxB)
	defer a.Close()
	defer b.Close()
	conn := a.Connection(serverB.URL)
	if err := conn.WaitForConnect(context.Background()); err != nil {
		log.Fatal(err)
	}
	fmt.Println(conn.State())
	// Output: connected
}

func ExampleManagerOptions_version1() {
	// A peer of version 1, as far as its upgrade goes: it asks for the time.
	paths := make(chan string, 1)
	peer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ns, err := strconv.ParseInt(r.Header.Get("X-Minio-Time"), 10, 64)
		if err != nil || time.Since(time.Unix(0, ns)).Abs() > time.Minute {
			http.Error(w, "clocks differ", http.StatusForbidden)
			return
		}
		select {
		case paths <- r.URL.Path:
		default: // dialled again
		}
	}))
	defer peer.Close()
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, peer.Listener.Addr().String())
	}

	options := grid.ManagerOptions{
		Local:     "http://node2:9000",
		Hosts:     []string{"http://node1:9000", "http://node2:9000"},
		RoutePath: "/minio/grid/v1",
		// The time in nanoseconds since 1970, in decimal.
		UpgradeHeader: func(target string) http.Header {
			now := strconv.FormatInt(time.Now().UnixNano(), 10)
			return http.Header{"X-Minio-Time": {now}}
		},
		AuthFn:    func() string { return "a token that the peer takes" },
		AuthToken: func(token string) error { return errors.New("not one of the peer's") },
	}
	options.Dialer = dial // for the example alone
	m, err := grid.NewManager(context.Background(), options)
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	fmt.Println("dialled with the time at", <-paths)
	// Output: dialled with the time at /minio/grid/v1
}

func ExampleErrOverloaded() {
	server, conn, stop := pairWith(1)
	defer stop()
	ctx := context.Background()
	const work grid.HandlerID = 1
	began, finish := make(chan bool), make(chan bool)

	// On one host, with MaxHandlers: 1:
	err := server.RegisterSingleHandler(work, func([]byte) ([]byte, *grid.RemoteErr) {
		began <- true
		<-finish
		return nil, nil
	})
	if err != nil {
		log.Fatal(err)
	}

	// On any other:
	first := make(chan error)
	go func() {
		_, err := conn.SingleRequest(ctx, work, nil)
		first <- err
	}()
	<-began
	_, err = conn.SingleRequest(ctx, work, nil)
	fmt.Println(errors.Is(err, grid.ErrOverloaded), grid.CanRetry(err))
	close(finish)
	fmt.Println(<-first)
	// Output:
	// true true
	// <nil>
}

func ExampleStream_goOn() {
	server, conn, stop := pair()
	defer stop()
	ctx := context.Background()

	const count grid.HandlerID = 1
	errComeAgain := errors.New("come again") // both hosts know it

	// On one host: numbers from a position on. Now and then it asks its clients to
	// come again, as a handler does that is told by Draining.
	err := server.RegisterStreamingHandler(count, grid.StreamHandler{
		Serve: func(ctx context.Context, from []byte, s *grid.ServerStream) *grid.RemoteErr {
			at, err := strconv.Atoi(string(from))
			if err != nil {
				return grid.NewRemoteErr(err)
			}
			for i := range 2 {
				if at+i == 5 {
					return nil // there is no more
				}
				if err := s.Send(ctx, strconv.AppendInt(nil, int64(at+i), 10)); err != nil {
					return grid.NewRemoteErr(err)
				}
			}
			return grid.NewRemoteErr(errComeAgain)
		},
	})
	if err != nil {
		log.Fatal(err)
	}

	// On any other. again says whether another stream may bring what is missing.
	again := func(err error) bool {
		switch {
		case errors.Is(err, grid.ErrShutdown): // it is this host that ends
			return false
		case errors.Is(err, grid.ErrDisconnected): // the link was lost, or the other host ends
			return true
		}
		return errors.Is(err, errComeAgain) || grid.CanRetry(err)
	}
	follow := func(ctx context.Context, at int, take func(n string)) error {
		const least, most = 10 * time.Millisecond, time.Second
		for pause := least; ; pause = min(2*pause, most) {
			// An error here is final: ctx has ended, the host was removed, or this host ends.
			if err := conn.WaitForConnect(ctx); err != nil {
				return err
			}
			stream, err := conn.NewStream(ctx, count, []byte(strconv.Itoa(at)))
			if err == nil {
				err = stream.Results(func(n []byte) error {
					take(string(n))
					at++ // behind what was taken, and no sooner
					pause = least
					return nil
				})
			}
			if err == nil || ctx.Err() != nil || !again(err) {
				return err
			}
			select { // not all clients at once, and a host in trouble less and less often
			case <-time.After(pause/2 + rand.N(pause)):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	err = follow(ctx, 0, func(n string) { fmt.Println(n) })
	fmt.Println("end:", err)
	// Output:
	// 0
	// 1
	// 2
	// 3
	// 4
	// end: <nil>
}

// A page for operators.
func Example_status() {
	m, _, stop := pair()
	defer stop()
	adminMux := http.NewServeMux()
	const statusID grid.HandlerID = 200
	status, err := gridstatus.New(m, statusID, gridstatus.Options{}) // on every host, with one ID
	if err != nil {
		log.Fatal(err)
	}
	adminMux.Handle("/grid", status) // where operators can reach it, and nobody else

	// The other host was not given one.
	mesh, err := status.Mesh(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	for _, n := range mesh.Nodes {
		fmt.Printf("answers: %v %q\n", n.View != nil, n.Err)
	}
	// Unordered output:
	// answers: true ""
	// answers: false "grid: no request handler with ID 200"
}

// timing is an interceptor, for both sides.
type timing struct{}

func (timing) InterceptCall(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	info.AddMetadata("user", "ann") // goes along, to hosts of this implementation
	return ctx, func(r grid.CallResult) { fmt.Println("called", info.Name, r.Status(), r.Duration > 0) }, nil
}

func (timing) InterceptServe(ctx context.Context, info *grid.CallInfo) (context.Context, func(grid.CallResult), error) {
	if info.Metadata["user"] == "" {
		return ctx, nil, errors.New("who are you?") // the handler does not run
	}
	return ctx, nil, nil
}

func ExampleCallInterceptor() {
	local := "http://localhost:9000"

	m, err := grid.NewManager(context.Background(), grid.ManagerOptions{
		Local:             local,
		Hosts:             []string{local},
		LocalCalls:        true, // m.Connection(local) calls the handlers of m, without a socket
		Insecure:          true,
		HandlerNames:      map[grid.HandlerID]string{1: "greet"},
		CallInterceptors:  []grid.CallInterceptor{timing{}},
		ServeInterceptors: []grid.ServeInterceptor{timing{}},
		OnStateChange:     func(c grid.StateChange) {}, // c.Host is c.To now, because of c.Err
	})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	greet := func(ctx context.Context, payload []byte) ([]byte, *grid.RemoteErr) {
		// ctx ends at the caller's deadline, and with the link.
		return fmt.Appendf(nil, "hello %s from %s", payload, grid.GetCaller(ctx).Name), nil
	}
	if err := m.RegisterSingleHandlerContext(1, greet); err != nil {
		log.Fatal(err)
	}
	answer, err := m.Connection(local).SingleRequest(context.Background(), 1, []byte("you"))
	fmt.Println(string(answer), err)
	// Output:
	// called greet ok true
	// hello you from http://localhost:9000 <nil>
}

func ExampleManager_AddHost() {
	m, _, stop := pair()
	defer stop()
	newHost := "http://node7:9000"

	err := m.AddHost(newHost) // on every host, the new one included
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(m.Connection(newHost) != nil, len(m.Targets()))
	err = m.RemoveHost(newHost) // what is under way with it ends with ErrDisconnected
	fmt.Println(m.Connection(newHost) != nil, len(m.Targets()), err)
	// Output:
	// true 2
	// false 1 <nil>
}

func ExampleManagerOptions_acceptHost() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	listenerB, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	local, newHost := "http://"+listener.Addr().String(), "http://"+listenerB.Addr().String()
	secret := []byte("16 bytes or more that all hosts share, from a file")

	m, err := grid.NewManager(context.Background(), grid.ManagerOptions{
		Local:        local,
		Hosts:        []string{local}, // it knows itself alone
		SharedSecret: [][]byte{secret},
		AcceptHost: func(ctx context.Context, host string, r *http.Request) error {
			if !strings.HasPrefix(host, "http://127.0.0.1:") {
				return errors.New("only hosts of this machine are taken in")
			}
			return nil // it is added, as by AddHost
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	go m.Serve(context.Background(), listener, grid.ServeOptions{})

	b, err := grid.NewManager(context.Background(), grid.ManagerOptions{
		Local: newHost, Hosts: []string{newHost}, SharedSecret: [][]byte{secret},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	go b.Serve(context.Background(), listenerB, grid.ServeOptions{})

	if err := b.AddHost(local); err != nil { // on the new host alone
		log.Fatal(err)
	}
	if err := b.Connection(local).WaitForConnect(context.Background()); err != nil {
		log.Fatal(err) // errors.Is(err, grid.ErrNotAccepted) where AcceptHost says no
	}
	fmt.Println(m.Connection(newHost) != nil, len(m.Targets()))
	// Output: true 1
}

func ExampleManager_Serve() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	local := "http://" + listener.Addr().String()
	options := grid.ManagerOptions{Local: local, Hosts: []string{local}, Insecure: true}
	terminated, stop := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer stop()

	m, err := grid.NewManager(context.Background(), options)
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /ready", m.Ready(nil)) // for a probe
	// terminated is a context of signal.NotifyContext.
	err = m.Serve(terminated, listener, grid.ServeOptions{Handler: mux})
	fmt.Println("end:", err)
	// Output: end: <nil>
}

func ExampleDraining() {
	server, conn, stop := pair()
	defer stop()
	const news grid.HandlerID = 4
	lines := make(chan []byte, 1)
	lines <- []byte("first line")

	// It would go on for as long as the caller wants.
	follow := func(ctx context.Context, _ []byte, _ <-chan []byte, out chan<- []byte) *grid.RemoteErr {
		for {
			select {
			case line := <-lines:
				out <- line
			case <-grid.Draining(ctx):
				return grid.NewRemoteErrString("come again")
			case <-ctx.Done():
				return nil
			}
		}
	}
	if err := server.RegisterStreamingHandler(news, grid.StreamHandler{Handle: follow, OutCapacity: 8}); err != nil {
		log.Fatal(err)
	}

	stream, err := conn.NewStream(context.Background(), news, nil)
	if err != nil {
		log.Fatal(err)
	}
	down := make(chan error, 1)
	err = stream.Results(func(line []byte) error {
		fmt.Println(string(line))
		go func() { down <- server.Shutdown(context.Background()) }()
		return nil
	})
	fmt.Println("end:", err)
	fmt.Println("shutdown:", <-down)
	// Output:
	// first line
	// end: come again
	// shutdown: <nil>
}
