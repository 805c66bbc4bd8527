package grid

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"
)

const (
	minSecret = 16
	// tokenLife is how long a token is good, and how far ahead of this host's
	// clock it may be dated.
	tokenLife = 5 * time.Minute
	// maxNonces bounds the memory for the tokens that were used: with two for each
	// attempt, and some 4.4 s between these, that is 450 hosts which are refused again
	// and again.
	maxNonces = 1 << 17

	nonceSize = 16
	tokenSize = 8 + nonceSize + sha256.Size
)

// tokenLabel keeps what is signed here apart from whatever else the key may sign.
const tokenLabel = "grid token 1\x00"

var (
	errTokenForm     = errors.New("malformed token")
	errTokenKey      = errors.New("token signed with another key")
	errTokenTime     = fmt.Errorf("token older than %v, or from a clock too far ahead", tokenLife)
	errTokenUsed     = errors.New("token was used before")
	errTokensTooMany = fmt.Errorf("more than %d tokens within %v", maxNonces, 2*tokenLife)
)

// SharedSecret returns an AuthFn and an AuthToken for [ManagerOptions] by which hosts
// show each other that they know a secret key, without sending it. A token is an
// HMAC-SHA-256 over the time and a nonce. It is good for 5 minutes, by clocks that
// are no further apart than that, and only once at each Manager; for that up to
// 131072 used ones are remembered, in about 6 MB, and beyond that number within 10
// minutes all are refused.
//
// A host whose clock is off is refused with its token, 403, before the handshake can
// say that clocks differ.
//
// The first key signs; those signed with any of them are accepted. To change the key
// without downtime, go through three configurations on all hosts: (old, new), then
// (new, old), then (new).
//
// A key has 16 bytes or more, from a good source of randomness; the slices are
// copied. With a shorter key, or without any, all tokens are refused, and the error
// says which key it was.
//
// A token says that its sender knows the key, not which of the hosts it is: see
// ManagerOptions.VerifyPeer. Whoever reads a token on its way could be faster with it
// than its owner, so use https between hosts where the network can't be trusted.
//
// Both functions may be called concurrently. They belong to one Manager: another one
// takes its own.
func SharedSecret(keys ...[]byte) (authFn func() string, authToken ValidateTokenFn) {
	s := &secret{}
	if len(keys) == 0 {
		s.unusable = errors.New("SharedSecret without a key")
	}
	for i, k := range keys {
		if len(k) < minSecret && s.unusable == nil {
			s.unusable = fmt.Errorf("key %d of SharedSecret has %d bytes, must have %d or more", i+1, len(k), minSecret)
		}
		s.keys = append(s.keys, append([]byte(nil), k...))
	}
	return s.sign, s.validate
}

// secret makes and checks tokens: base64 of the time in seconds, a nonce, and their
// HMAC.
type secret struct {
	// Set once.
	keys     [][]byte
	unusable error

	mu sync.Mutex // guards what follows
	// The nonces that were seen, by when their token was made, in units of
	// tokenLife.
	seen map[int64]map[[nonceSize]byte]struct{}
	n    int
	// forgotten is the latest unit that is not in seen any more.
	forgotten int64
}

func (s *secret) mac(key, signed []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(tokenLabel))
	h.Write(signed)
	return h.Sum(nil)
}

// sign makes a token. It is empty, which nobody takes, where there is no usable key.
func (s *secret) sign() string {
	if s.unusable != nil {
		return ""
	}
	b := make([]byte, 8+nonceSize, tokenSize)
	binary.BigEndian.PutUint64(b, uint64(time.Now().Unix()))
	rand.Read(b[8:]) // never fails
	return base64.RawURLEncoding.EncodeToString(append(b, s.mac(s.keys[0], b)...))
}

func (s *secret) validate(token string) error { return s.check(token, time.Now()) }

func (s *secret) check(token string, now time.Time) error {
	if s.unusable != nil {
		return s.unusable
	}
	if len(token) != base64.RawURLEncoding.EncodedLen(tokenSize) {
		return errTokenForm
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil {
		return errTokenForm
	}
	signed, mac := b[:8+nonceSize], b[8+nonceSize:]
	valid := 0
	for _, k := range s.keys { // all of them, so that the time does not tell which
		if hmac.Equal(mac, s.mac(k, signed)) {
			valid++
		}
	}
	if valid == 0 {
		return errTokenKey
	}
	made := int64(binary.BigEndian.Uint64(signed))
	if age := now.Sub(time.Unix(made, 0)); age > tokenLife || age < -tokenLife {
		return errTokenTime
	}
	return s.use(now, made, [nonceSize]byte(signed[8:]))
}

// use remembers a nonce for as long as its token is good.
func (s *secret) use(now time.Time, made int64, nonce [nonceSize]byte) error {
	const unit = int64(tokenLife / time.Second)
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, nonces := range s.seen {
		if (at+2)*unit <= now.Unix() { // even its last one is too old
			s.n -= len(nonces)
			delete(s.seen, at)
			s.forgotten = max(s.forgotten, at)
		}
	}
	at := made / unit
	if at <= s.forgotten {
		return errTokenTime // by a clock that was set back
	}
	if _, ok := s.seen[at][nonce]; ok {
		return errTokenUsed
	}
	if s.n >= maxNonces {
		return errTokensTooMany
	}
	if s.seen == nil {
		s.seen = make(map[int64]map[[nonceSize]byte]struct{})
	}
	if s.seen[at] == nil {
		s.seen[at] = make(map[[nonceSize]byte]struct{})
	}
	s.seen[at][nonce] = struct{}{}
	s.n++
	return nil
}

// VerifyTLSHost is a VerifyPeer for [ManagerOptions] that takes a host only if it
// has shown a client certificate which is valid for its name: so no host can pass for
// another. The HTTP server must have asked for one and verified it, with a
// [crypto/tls.Config] whose ClientAuth is RequireAndVerifyClientCert, or
// VerifyClientCertIfGiven, and ClientCAs; the hosts show theirs by the Certificates of
// their ManagerOptions.TLSConfig. A certificate names its host by a DNS name or an IP
// address, and must be good for client authentication.
func VerifyTLSHost(host string, r *http.Request) error {
	switch {
	case r.TLS == nil:
		return errors.New("no TLS")
	case len(r.TLS.PeerCertificates) == 0:
		return errors.New("no client certificate")
	case len(r.TLS.VerifiedChains) == 0:
		return errors.New("client certificate was not verified")
	}
	u, err := url.Parse(host)
	if err != nil {
		return err
	}
	return r.TLS.PeerCertificates[0].VerifyHostname(u.Hostname())
}
