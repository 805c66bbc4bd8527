package rawpeer

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"time"
)

// What hosts with a shared secret show each other, made as section 3 of the protocol says.

// ChallengeHeader is where the answer to an upgrade request has the acceptor's challenge.
const ChallengeHeader = "Grid-Challenge"

// Nonce is a number that is used once: 16 bytes.
func Nonce() []byte {
	b := make([]byte, 16)
	rand.Read(b)
	return b
}

// NonceText is how a nonce, and all else but a proof, is written.
func NonceText(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// ParseNonce is nil for what is no nonce.
func ParseNonce(text string) []byte {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) != 16 {
		return nil
	}
	return b
}

func sum(key []byte, label string, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(label + "\x00"))
	for _, p := range parts {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(p))))
		h.Write(p)
	}
	return h.Sum(nil)
}

// Pass is the bearer token of the upgrade request.
func Pass(key []byte, dialler, acceptor string, at time.Time) string {
	return pass(key, "grid pass 2", dialler, acceptor, at)
}

func pass(key []byte, label, from, to string, at time.Time) string {
	head := binary.BigEndian.AppendUint64(nil, uint64(at.Unix()))
	head = append(append(head, Nonce()...), from...)
	return NonceText(append(bytes.Clone(head), sum(key, label, head, []byte(to))...))
}

// Meeting is what a response and a proof are for.
type Meeting struct {
	Dialler, Acceptor                string
	Challenge, DiallerID, AcceptorID []byte
}

// Response is the token of a Connect.
func (m Meeting) Response(key []byte) string {
	nonce := Nonce()
	return NonceText(append(bytes.Clone(nonce), sum(key, "grid response 2",
		m.Challenge, nonce, []byte(m.Dialler), []byte(m.Acceptor), m.DiallerID)...))
}

// Proof is that of a ConnectResponse.
func (m Meeting) Proof(key []byte, response string) []byte {
	return sum(key, "grid proof 2", m.Challenge, []byte(response), []byte(m.Dialler), []byte(m.Acceptor), m.DiallerID, m.AcceptorID)
}

// KnockPass is the bearer token of a request to be dialled.
func KnockPass(key []byte, from, to string, at time.Time) string {
	return pass(key, "grid knock 1", from, to, at)
}
