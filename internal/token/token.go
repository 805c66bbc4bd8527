// Package token makes and checks tokens by which those who know a secret key show that they do,
// without sending it.
package token

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// MinKey is how many bytes a key must have.
	MinKey = 16
	// Life is how long a token is good, and how far ahead of the checker's clock it may be dated.
	Life = 5 * time.Minute
	// MaxUsed bounds the memory for the tokens that were used: with two for each attempt to
	// connect, and some 4.4 s between these, that is 450 hosts which are refused again and again.
	MaxUsed = 1 << 17

	nonceSize = 16
	tokenSize = 8 + nonceSize + sha256.Size
)

// label keeps what is signed here apart from whatever else the key may sign.
const label = "grid token 1\x00"

// What is wrong with a token.
var (
	ErrForm    = errors.New("malformed token")
	ErrKey     = errors.New("token signed with another key")
	ErrTime    = fmt.Errorf("token older than %v, or from a clock too far ahead", Life)
	ErrUsed    = errors.New("token was used before")
	ErrTooMany = fmt.Errorf("more than %d tokens within %v", MaxUsed, 2*Life)
)

// Secret makes and checks tokens: base64 of the time in seconds, a nonce, and the HMAC-SHA-256 of
// both. All methods may be called concurrently.
type Secret struct {
	// Set once.
	keys     [][]byte
	unusable error

	mu sync.Mutex // guards what follows
	// The nonces that were seen, by when their token was made, in units of Life.
	seen map[int64]map[[nonceSize]byte]struct{}
	n    int
	// forgotten is the latest unit that is not in seen any more.
	forgotten int64
}

// New returns a Secret that signs with the first key and accepts any of them, which are copied.
// With one that is too short, or none, it makes no token and accepts none.
func New(keys ...[]byte) *Secret {
	s := &Secret{}
	if len(keys) == 0 {
		s.unusable = errors.New("SharedSecret without a key")
	}
	for i, k := range keys {
		if len(k) < MinKey && s.unusable == nil {
			s.unusable = fmt.Errorf("key %d of SharedSecret has %d bytes, must have %d or more", i+1, len(k), MinKey)
		}
		s.keys = append(s.keys, append([]byte(nil), k...))
	}
	return s
}

func mac(key, signed []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(label))
	h.Write(signed)
	return h.Sum(nil)
}

// Sign makes a token. It is empty, which nobody accepts, where there is no usable key.
func (s *Secret) Sign() string {
	if s.unusable != nil {
		return ""
	}
	b := make([]byte, 8+nonceSize, tokenSize)
	binary.BigEndian.PutUint64(b, uint64(time.Now().Unix()))
	rand.Read(b[8:]) // never fails
	return base64.RawURLEncoding.EncodeToString(append(b, mac(s.keys[0], b)...))
}

// Check returns what is wrong with a token at a time. One that is good is so only once.
func (s *Secret) Check(token string, now time.Time) error {
	if s.unusable != nil {
		return s.unusable
	}
	if len(token) != base64.RawURLEncoding.EncodedLen(tokenSize) {
		return ErrForm
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil {
		return ErrForm
	}
	signed, sum := b[:8+nonceSize], b[8+nonceSize:]
	valid := 0
	for _, k := range s.keys { // all of them, so that the time does not tell which
		if hmac.Equal(sum, mac(k, signed)) {
			valid++
		}
	}
	if valid == 0 {
		return ErrKey
	}
	made := int64(binary.BigEndian.Uint64(signed))
	if age := now.Sub(time.Unix(made, 0)); age > Life || age < -Life {
		return ErrTime
	}
	return s.use(now, made, [nonceSize]byte(signed[8:]))
}

// use remembers a nonce for as long as its token is good.
func (s *Secret) use(now time.Time, made int64, nonce [nonceSize]byte) error {
	const unit = int64(Life / time.Second)
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
		return ErrTime // by a clock that was set back
	}
	if _, ok := s.seen[at][nonce]; ok {
		return ErrUsed
	}
	if s.n >= MaxUsed {
		return ErrTooMany
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
