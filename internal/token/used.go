package token

import (
	"slices"
	"sync"
	"time"
)

// MaxUsed is how many passes of one host are remembered.
const MaxUsed = 1024

// Used remembers the passes that were used, by host: so that one that is read on its way is not
// good again. Where a host uses more than MaxUsed of them within the time that they may be good,
// the oldest are forgotten; a pass that is used again opens nothing without the key. All methods
// may be called concurrently. The zero value is empty.
type Used struct {
	mu    sync.Mutex
	hosts map[string][]usedPass // in the order in which they came
	swept time.Time
}

type usedPass struct {
	nonce Nonce
	at    time.Time // by the monotonic clock
}

// keep is how long a pass may be good, which may come as much too early as too late.
const keep = 2 * Life

// Add remembers a pass of a host. It returns [ErrUsed] if that has come before.
func (u *Used) Add(host string, nonce Nonce, now time.Time) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if now.Sub(u.swept) > keep {
		u.swept = now
		for h, passes := range u.hosts {
			if u.hosts[h] = fresh(passes, now); len(u.hosts[h]) == 0 {
				delete(u.hosts, h)
			}
		}
	}
	return u.addLocked(host, nonce, now)
}

// AddStranger is Add for somebody who is no host, and may have been or become it: all of them
// together have as much room as one host.
func (u *Used) AddStranger(name string, nonce Nonce, now time.Time) error {
	if err := u.Add("", nonce, now); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if contains(u.hosts[name], nonce) {
		return ErrUsed
	}
	return nil
}

func (u *Used) addLocked(host string, nonce Nonce, now time.Time) error {
	passes := fresh(u.hosts[host], now)
	if contains(passes, nonce) || contains(u.hosts[""], nonce) {
		return ErrUsed
	}
	if len(passes) >= MaxUsed {
		passes = passes[1:]
	}
	if u.hosts == nil {
		u.hosts = make(map[string][]usedPass)
	}
	u.hosts[host] = append(passes, usedPass{nonce, now})
	return nil
}

// fresh drops those that are not good any more.
func fresh(passes []usedPass, now time.Time) []usedPass {
	for len(passes) > 0 && now.Sub(passes[0].at) > keep {
		passes = passes[1:]
	}
	return passes
}

func contains(passes []usedPass, nonce Nonce) bool {
	return slices.ContainsFunc(passes, func(p usedPass) bool { return p.nonce == nonce })
}
