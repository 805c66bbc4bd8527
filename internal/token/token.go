// Package token makes and checks what two hosts show each other to prove that both know a secret
// key, without sending it.
//
// The host that dials begins with a pass, which says who it is and whom it wants. The acceptor
// answers with a challenge; the dialler answers that with a response, and the acceptor the response
// with a proof. All are bound to both names by an HMAC-SHA-256, response and proof to the challenge
// as well: so none of them is of use to anybody else, at another host, or a second time. A host
// that asks to be dialled shows a pass of another kind.
package token

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	// MinKey is how many bytes a key must have.
	MinKey = 16
	// Life is how long a pass is good, and how far ahead of the checker's clock it may be dated.
	Life = 5 * time.Minute

	sumSize = sha256.Size
	// headSize is that of a pass before its name: the time in seconds, and a nonce.
	headSize = 8 + nonceSize
)

const nonceSize = 16

// Nonce is a number that is used once.
type Nonce [nonceSize]byte

// NewNonce draws a nonce.
func NewNonce() (n Nonce) {
	rand.Read(n[:]) // never fails
	return n
}

// String encodes n for an HTTP header.
func (n Nonce) String() string { return encode(n[:]) }

// ParseNonce decodes what String has encoded.
func ParseNonce(s string) (n Nonce, err error) {
	b, err := decode(s)
	if err != nil || len(b) != nonceSize {
		return n, ErrForm
	}
	return Nonce(b), nil
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// decode decodes what encode has made, and nothing else: package base64 skips line ends.
func decode(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, ErrForm
	}
	return base64.RawURLEncoding.Strict().DecodeString(s)
}

// What is wrong with what the other side shows.
var (
	ErrForm = errors.New("malformed token")
	ErrKey  = errors.New("token signed with another key, or for another host")
	ErrTime = fmt.Errorf("token older than %v, or from a clock too far ahead", Life)
	ErrUsed = errors.New("token was used before")
)

// Secret is the keys that a host knows. It is immutable, and safe for concurrent use.
type Secret struct{ keys [][]byte }

// New returns a Secret that signs with the first key and accepts any of them, which are copied.
func New(keys ...[]byte) (*Secret, error) {
	if len(keys) == 0 {
		return nil, errors.New("no key")
	}
	s := &Secret{}
	for i, k := range keys {
		if len(k) < MinKey {
			return nil, fmt.Errorf("key %d has %d bytes, must have %d or more", i+1, len(k), MinKey)
		}
		s.keys = append(s.keys, append([]byte(nil), k...))
	}
	return s, nil
}

// What is signed begins with a label, which keeps the kinds apart from each other, and from
// whatever else the key may sign.
const (
	labelPass     = "grid pass 2\x00"
	labelKnock    = "grid knock 1\x00"
	labelResponse = "grid response 2\x00"
	labelProof    = "grid proof 2\x00"
)

// sum is the HMAC of the parts, each behind its length.
func sum(key []byte, label string, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(label))
	var n [8]byte
	for _, p := range parts {
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write(p)
	}
	return h.Sum(nil)
}

// verify reports whether any of the keys gives the sum got. It asks all of them, so that the time
// does not tell which.
func (s *Secret) verify(got []byte, label string, parts ...[]byte) bool {
	valid := false
	for _, k := range s.keys {
		valid = hmac.Equal(got, sum(k, label, parts...)) || valid
	}
	return valid
}

// Pass makes the token with which dialler begins to dial acceptor.
func (s *Secret) Pass(dialler, acceptor string) string {
	return s.passAt(dialler, acceptor, time.Now())
}

func (s *Secret) passAt(dialler, acceptor string, now time.Time) string {
	return s.pass(labelPass, dialler, acceptor, now)
}

// KnockPass makes the token with which from asks to to dial it.
func (s *Secret) KnockPass(from, to string) string { return s.pass(labelKnock, from, to, time.Now()) }

func (s *Secret) pass(label, from, to string, now time.Time) string {
	b := make([]byte, headSize, headSize+len(from)+sumSize)
	binary.BigEndian.PutUint64(b, uint64(now.Unix()))
	rand.Read(b[8:])
	b = append(b, from...)
	return encode(append(b, sum(s.keys[0], label, b, []byte(to))...))
}

// CheckPass checks the pass of somebody who dials acceptor, and returns who that is, and the
// pass's nonce. It does not know whether the pass was used before; see [Used].
func (s *Secret) CheckPass(pass, acceptor string, now time.Time) (dialler string, nonce Nonce, err error) {
	return s.checkPass(labelPass, pass, acceptor, now)
}

// CheckKnockPass is CheckPass for the pass of somebody who asks to to dial.
func (s *Secret) CheckKnockPass(pass, to string, now time.Time) (from string, nonce Nonce, err error) {
	return s.checkPass(labelKnock, pass, to, now)
}

func (s *Secret) checkPass(label, pass, to string, now time.Time) (from string, nonce Nonce, err error) {
	b, err := decode(pass)
	if err != nil || len(b) < headSize+sumSize {
		return "", nonce, ErrForm
	}
	signed, got := b[:len(b)-sumSize], b[len(b)-sumSize:]
	if !s.verify(got, label, signed, []byte(to)) {
		return "", nonce, ErrKey
	}
	made := time.Unix(int64(binary.BigEndian.Uint64(signed)), 0)
	if age := now.Sub(made); age > Life || age < -Life {
		return "", nonce, ErrTime
	}
	return string(signed[headSize:]), Nonce(signed[8:headSize]), nil
}

// Meeting is what response and proof are bound to.
type Meeting struct {
	Dialler, Acceptor     string
	Challenge             Nonce // the acceptor's
	DiallerID, AcceptorID [16]byte
}

// Response makes the dialler's answer to the challenge of m, whose AcceptorID it does not know yet.
func (s *Secret) Response(m *Meeting) string {
	nonce := NewNonce()
	return encode(append(nonce[:], sum(s.keys[0], labelResponse, m.responseParts(nonce[:])...)...))
}

func (m *Meeting) responseParts(nonce []byte) [][]byte {
	return [][]byte{m.Challenge[:], nonce, []byte(m.Dialler), []byte(m.Acceptor), m.DiallerID[:]}
}

// CheckResponse checks the dialler's answer to a challenge. A challenge is for one answer, so
// nothing has to be remembered.
func (s *Secret) CheckResponse(m *Meeting, response string) error {
	b, err := decode(response)
	if err != nil || len(b) != nonceSize+sumSize {
		return ErrForm
	}
	if !s.verify(b[nonceSize:], labelResponse, m.responseParts(b[:nonceSize])...) {
		return ErrKey
	}
	return nil
}

// Proof makes the acceptor's answer to a response.
func (s *Secret) Proof(m *Meeting, response string) []byte {
	return sum(s.keys[0], labelProof, m.proofParts(response)...)
}

func (m *Meeting) proofParts(response string) [][]byte {
	return [][]byte{m.Challenge[:], []byte(response), []byte(m.Dialler), []byte(m.Acceptor), m.DiallerID[:], m.AcceptorID[:]}
}

// CheckProof checks what the acceptor has answered to a response that was made here.
func (s *Secret) CheckProof(m *Meeting, response string, proof []byte) error {
	if !s.verify(proof, labelProof, m.proofParts(response)...) {
		return ErrKey
	}
	return nil
}
