package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/gridrpc/grid"
)

const (
	joinPath = "/cluster/join"

	maxJoinRequest = 4 << 10
	maxJoinAnswer  = 1 << 20
	// maxHosts is how many hosts a node may hear of: who answers is believed that much.
	maxHosts = 1000
	// learnedTime is for how long a host that only others know is asked.
	learnedTime = time.Minute

	// joinTime bounds one attempt.
	joinTime     = 5 * time.Second
	minJoinPause = 100 * time.Millisecond
	maxJoinPause = 5 * time.Second
)

// joinRequest asks a node to make a host one of its own. The answer is all of its hosts. Both are
// signed.
type joinRequest struct {
	Host string // who asks
	To   string // who is asked
	Time int64  // in nanoseconds since 1970, so that no two requests are alike
}

var errLeaving = errors.New("this node leaves")

// errRefused is wrapped by an answer that would be the same if asked again.
var errRefused = errors.New("refused")

// serveJoin adds the host that asks, and answers with all.
func (d *dynamic) serveJoin(w http.ResponseWriter, r *http.Request) {
	http.NewResponseController(w).SetReadDeadline(time.Now().Add(joinTime))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxJoinRequest))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	signature := d.signer.request(body)
	if !isSigned(r.Header, signature) {
		http.Error(w, errSignature.Error(), http.StatusUnauthorized)
		return
	}
	var req joinRequest
	if err := json.Unmarshal(body, &req); err != nil {
		http.Error(w, "body is no request to join: "+err.Error(), http.StatusBadRequest)
		return
	}
	if err := d.signer.checkFresh(signature, &req, d.HostName()); err != nil {
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	switch err := d.admit(req.Host); {
	case errors.Is(err, errLeaving):
		http.Error(w, err.Error(), http.StatusGone)
	case errors.Is(err, grid.ErrDisconnected):
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	default:
		// Listed after it was added: of two that join at a time, one hears of the other.
		answer, err := json.Marshal(d.staying())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set(signatureHeader, d.signer.answer(signature, answer))
		w.Header().Set("Content-Type", "application/json")
		w.Write(answer)
	}
}

// admit adds a host that has asked for it.
func (d *dynamic) admit(host string) error {
	if err := checkHost(host); err != nil {
		return err
	}
	if host == d.HostName() {
		return fmt.Errorf("host %q is the node that was asked", host)
	}
	return d.add(host)
}

// checkHost checks the URL of a host, which is asked to join before grid sees it.
func checkHost(host string) error {
	u, err := url.Parse(host)
	if err != nil {
		return err
	}
	if host != "http://"+u.Host || u.Hostname() == "" {
		return fmt.Errorf("host %q is not http:// with a host and a port, and nothing else", host)
	}
	return nil
}

// join asks nodes, and all others that it hears of from them, to make this one their host, and
// makes them its own. It goes on until ctx ends: some may not be up. It returns an error if one of
// the nodes to join through refuses.
func (d *dynamic) join(ctx context.Context, through []string) error {
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	type answer struct {
		from  string
		hosts []string
		err   error
	}
	answers := make(chan answer)
	asked := map[string]bool{d.HostName(): true}
	hosts := through
	for {
		for _, host := range hosts {
			if asked[host] || len(asked) > maxHosts {
				continue
			}
			asked[host] = true
			patience := learnedTime
			if slices.Contains(through, host) {
				patience = math.MaxInt64
			}
			asking.Go(func() {
				hosts, err := d.joinThrough(ctx, host, patience)
				select {
				case answers <- answer{host, hosts, err}:
				case <-ctx.Done():
				}
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case a := <-answers:
			hosts = a.hosts
			switch {
			case a.err == nil, ctx.Err() != nil:
			case slices.Contains(through, a.from):
				return fmt.Errorf("joining through %s: %w", a.from, a.err)
			default:
				d.log.Warn("a node that others know refuses this one", "host", a.from, "error", a.err)
			}
		}
	}
}

// joinThrough asks a node until it answers, or for so long, and adds it. It returns the hosts that
// the node knows.
func (d *dynamic) joinThrough(ctx context.Context, host string, patience time.Duration) ([]string, error) {
	if err := checkHost(host); err != nil {
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	begin := time.Now()
	hosts, err := d.askToJoin(ctx, host)
	if ctx.Err() != nil || errors.Is(err, errRefused) {
		return nil, err
	}
	// Not before it was asked, since it refuses hosts that it does not know. One that is not up is
	// a host of the cluster nevertheless.
	if err := d.add(host); err != nil {
		return nil, err
	}
	if err != nil {
		d.log.Warn("joining: a node does not answer, asking it again", "host", host, "error", err)
	}
	for pause := minJoinPause; err != nil && !errors.Is(err, errRefused); pause = min(2*pause, maxJoinPause) {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause/2 + rand.N(pause/2)): // not all at once
		}
		conn := d.Connection(host)
		if conn == nil {
			return nil, nil // it has joined by itself meanwhile, and left
		}
		if time.Since(begin) > patience {
			if conn.State() == grid.StateConnected {
				return nil, nil // it has joined by itself, and stays
			}
			return nil, errors.Join(err, d.RemoveHost(host)) // if it comes back it joins anew
		}
		hosts, err = d.askToJoin(ctx, host)
	}
	return hosts, err
}

// askToJoin asks a node once.
func (d *dynamic) askToJoin(ctx context.Context, host string) ([]string, error) {
	body, err := json.Marshal(joinRequest{d.HostName(), host, time.Now().UnixNano()})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, host+joinPath, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	signature := d.signer.request(body)
	req.Header.Set(signatureHeader, signature)
	req.Header.Set("Content-Type", "application/json")
	// A connection each: there is one request to a node.
	client := &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true}, Timeout: joinTime,
		// The request is for this host.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	limited := http.MaxBytesReader(nil, resp.Body, maxJoinAnswer)
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(limited, 1<<10))
		err := fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(text))
		if resp.StatusCode < http.StatusInternalServerError {
			err = fmt.Errorf("%w: %w", errRefused, err)
		}
		return nil, err
	}
	answer, err := io.ReadAll(limited)
	if err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	if !isSigned(resp.Header, d.signer.answer(signature, answer)) {
		return nil, fmt.Errorf("%w: answer: %w", errRefused, errSignature)
	}
	var hosts []string
	if err := json.Unmarshal(answer, &hosts); err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	if len(hosts) > maxHosts {
		return nil, fmt.Errorf("%w: the answer has %d hosts, the limit is %d", errRefused, len(hosts), maxHosts)
	}
	return hosts, nil
}
