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
		start: func(c config) (pair, error) {
			p, err := newHTTP1Pair(c)
			if err != nil {
				return nil, fmt.Errorf("http1: %w", err)
			}
			return p, nil
		},
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

// http1Pair is a server with one client, whose transport keeps connections.
type http1Pair struct {
	server    *http.Server
	served    chan error
	transport *http.Transport
	http1Caller
}

func newHTTP1Pair(c config) (*http1Pair, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	// Over TLS both would choose HTTP/2 if they could.
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	p := &http1Pair{
		server:    &http.Server{Handler: http1Mux(), Protocols: protocols, TLSConfig: c.serverTLS},
		served:    make(chan error, 1),
		transport: &http.Transport{MaxIdleConnsPerHost: c.callers, Protocols: protocols, TLSClientConfig: c.clientTLS},
	}
	p.http1Caller = http1Caller{client: &http.Client{Transport: p.transport}, url: "http://" + l.Addr().String()}
	serve := func() error { return p.server.Serve(l) }
	if c.serverTLS != nil {
		p.url = "https://" + l.Addr().String()
		serve = func() error { return p.server.ServeTLS(l, "", "") }
	}
	go func() { p.served <- serve() }()
	return p, nil
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

func (p *http1Pair) caller(int) (caller, error) { return p.http1Caller, nil }

func (p *http1Pair) close() error {
	p.transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), http1Grace)
	defer cancel()
	err := p.server.Shutdown(ctx) // unlike Close it waits
	if err != nil {
		err = errors.Join(err, p.server.Close())
	}
	if served := <-p.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	if err != nil {
		return fmt.Errorf("http1: close: %w", err)
	}
	return nil
}

// http1Caller calls through the one client.
type http1Caller struct {
	client *http.Client
	url    string
}

// call names the path in an error.
func (c http1Caller) call(path, contentType string, payload []byte) ([]byte, error) {
	b, err := c.post(path, contentType, payload)
	if err != nil {
		return nil, fmt.Errorf("http1: %s: %w", path, err)
	}
	return b, nil
}

func (c http1Caller) post(path, contentType string, payload []byte) ([]byte, error) {
	resp, err := c.client.Post(c.url+path, contentType, bytes.NewReader(payload))
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
	b, err := c.call(http1Echo, http1Octets, payload)
	if err != nil {
		return err
	}
	return checkEcho(len(b), len(payload))
}

func (c http1Caller) upload(payload []byte) error {
	_, err := c.call(http1Upload, http1Octets, payload)
	return err
}

func (c http1Caller) typed(v sample) error {
	return plainTyped(v, func(b []byte) ([]byte, error) { return c.call(http1Typed, http1JSON, b) })
}
