package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

func http1Peer() peer {
	return peer{
		name:  "http1",
		about: "net/http: POST over HTTP/1.1 with keep-alive, a connection for each caller",
		serve: http1Serve,
		dial:  http1Dial,
	}
}

const (
	http1Echo   = "/echo"
	http1Upload = "/upload"
	http1Typed  = "/typed"

	http1Octets = "application/octet-stream"
	http1JSON   = "application/json"

	// http1Grace is how long close waits for the server's connections.
	http1Grace = 5 * time.Second
)

type http1Server struct {
	*http.Server
	listener net.Listener
	served   chan error
}

// http1Protocols are those of both ends. Over TLS they would choose HTTP/2 if they could.
func http1Protocols() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	return p
}

func http1Serve(c config) (server, error) {
	l, err := net.Listen("tcp", loopback)
	if err != nil {
		return nil, err
	}
	s := &http1Server{
		Server:   &http.Server{Handler: http1Mux(), Protocols: http1Protocols(), TLSConfig: c.serverTLS},
		listener: l,
		served:   make(chan error, 1),
	}
	go func() {
		if c.serverTLS != nil {
			s.served <- s.ServeTLS(l, "", "")
		} else {
			s.served <- s.Serve(l)
		}
	}()
	return s, nil
}

func (s *http1Server) addr() string { return s.listener.Addr().String() }

func (s *http1Server) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), http1Grace)
	defer cancel()
	err := s.Shutdown(ctx) // unlike Close it waits
	if err != nil {
		err = errors.Join(err, s.Close())
	}
	if served := <-s.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

func http1Mux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+http1Echo, func(w http.ResponseWriter, r *http.Request) {
		b, err := http1Read(r.Body, r.ContentLength)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		http1Answer(w, http1Octets, b)
	})
	mux.HandleFunc("POST "+http1Upload, func(w http.ResponseWriter, r *http.Request) {
		if _, err := http1Read(r.Body, r.ContentLength); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST "+http1Typed, func(w http.ResponseWriter, r *http.Request) {
		b, err := http1Read(r.Body, r.ContentLength)
		if err == nil {
			b, err = plainAnswer(b)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		http1Answer(w, http1JSON, b)
	})
	return mux
}

// http1Read reads a body whose length was announced.
func http1Read(body io.Reader, length int64) ([]byte, error) {
	if length < 0 || length > maxMessage {
		return nil, fmt.Errorf("body of length %d", length)
	}
	b := make([]byte, length)
	_, err := io.ReadFull(body, b)
	return b, err
}

// http1Answer sends b whole: without a length a longer one would go in chunks. A caller misses an
// answer that cannot be sent.
func http1Answer(w http.ResponseWriter, contentType string, b []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.Write(b)
}

// http1Client is one client for all callers, whose transport keeps connections.
type http1Client struct {
	transport *http.Transport
	http1Caller
}

func http1Dial(c config, addr string) (client, error) {
	t := &http.Transport{MaxIdleConnsPerHost: c.callers, Protocols: http1Protocols(), TLSClientConfig: c.clientTLS}
	url := "http://" + addr
	if c.clientTLS != nil {
		url = "https://" + addr
	}
	return &http1Client{t, http1Caller{client: &http.Client{Transport: t}, url: url}}, nil
}

func (c *http1Client) caller(int) (caller, error) { return c.http1Caller, nil }

func (c *http1Client) close() error {
	c.transport.CloseIdleConnections()
	return nil
}

// http1Caller calls through the one client.
type http1Caller struct {
	client *http.Client
	url    string
}

// call names the path in an error.
func (c http1Caller) call(ctx context.Context, path, contentType string, payload []byte) ([]byte, error) {
	b, err := c.post(ctx, path, contentType, payload)
	if err != nil {
		return nil, fmt.Errorf("http1: %s: %w", path, err)
	}
	return b, nil
}

func (c http1Caller) post(ctx context.Context, path, contentType string, payload []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+path, bytes.NewReader(payload))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		return http1Read(resp.Body, resp.ContentLength)
	case http.StatusNoContent:
		return nil, nil
	default:
		return nil, errors.New(resp.Status)
	}
}

func (c http1Caller) echo(payload []byte) error {
	return c.echoContext(context.Background(), payload)
}

func (c http1Caller) echoContext(ctx context.Context, payload []byte) error {
	b, err := c.call(ctx, http1Echo, http1Octets, payload)
	if err != nil {
		return err
	}
	return checkEcho(len(b), len(payload))
}

func (c http1Caller) upload(payload []byte) error {
	_, err := c.call(context.Background(), http1Upload, http1Octets, payload)
	return err
}

func (c http1Caller) typed(v sample) error {
	return plainTyped(v, func(b []byte) ([]byte, error) { return c.call(context.Background(), http1Typed, http1JSON, b) })
}
