package wsconn

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"time"
)

// pipeTimeout bounds the handshake of a pipe, which takes no time.
const pipeTimeout = 10 * time.Second

// Pipe makes a websocket within the process, and returns its ends. limit is as in [DialOptions].
func Pipe(limit int64) (client, server *Conn, err error) {
	near, far := net.Pipe()
	ctx, cancel := context.WithTimeout(context.Background(), pipeTimeout)
	defer cancel()
	accepted := make(chan error, 1)
	go func() {
		in := bufio.NewReader(far)
		r, err := http.ReadRequest(in)
		if err == nil {
			deadline, _ := ctx.Deadline()
			server, err = Upgrade(&pipeResponse{far, in}, r, nil, limit, deadline, Counters{})
		}
		if err != nil {
			far.Close()
		}
		accepted <- err
	}()
	client, _, err = Dial(ctx, "ws://pipe", DialOptions{
		Dial:  func(context.Context, string, string) (net.Conn, error) { return near, nil },
		Limit: limit,
	})
	if aerr := <-accepted; err == nil {
		err = aerr
	}
	if err != nil {
		near.Close()
		far.Close()
		return nil, nil, err
	}
	return client, server, nil
}

// pipeResponse is the ResponseWriter of a request that is upgraded at once.
type pipeResponse struct {
	net.Conn
	in *bufio.Reader
}

func (p *pipeResponse) Header() http.Header { return http.Header{} }
func (p *pipeResponse) WriteHeader(int)     {}

// Hijack implements [http.Hijacker].
func (p *pipeResponse) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return p.Conn, bufio.NewReadWriter(p.in, bufio.NewWriter(p.Conn)), nil
}
