package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"sync"
	"time"
)

// A request to join comes before there is a link, so it has a proof of its own that it comes from
// who knows the secret, and so has the answer. What is signed is the body of the request, which has
// both names and the time, and for the answer its own body behind that.

// signatureHeader is where a request or an answer has its signature.
const signatureHeader = "Cluster-Signature"

// maxJoinAge is how old a request to join may be, and how far ahead of this node's clock.
const maxJoinAge = time.Minute

var (
	errSignature  = errors.New("not signed with the secret of this cluster")
	errOtherNode  = errors.New("signed for another node")
	errWrongTime  = errors.New("signed too long ago, or by a clock too far ahead")
	errSignedOnce = errors.New("signature was used before")
)

// signer signs and checks with the cluster's secret.
type signer struct {
	key []byte

	mu   sync.Mutex
	used map[string]time.Time // signatures of requests that came within maxJoinAge, and when
}

// newSigner derives a key of its own from the secret, which signs other things as well.
func newSigner(secret string) *signer {
	return &signer{key: hmacOf([]byte(secret), []byte("key of requests to join a cluster")), used: make(map[string]time.Time)}
}

func hmacOf(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// request is the signature of a request.
func (s *signer) request(body []byte) string {
	return hex.EncodeToString(hmacOf(s.key, []byte("request\x00"), body))
}

// answer is the signature of the answer to a request with that signature, which is of fixed length.
func (s *signer) answer(request string, body []byte) string {
	return hex.EncodeToString(hmacOf(s.key, []byte("answer\x00"), []byte(request), body))
}

// isSigned reports whether a header has a signature.
func isSigned(h http.Header, want string) bool {
	return hmac.Equal([]byte(h.Get(signatureHeader)), []byte(want))
}

// checkFresh checks a request that is signed: that it is for this node, and has not come before.
func (s *signer) checkFresh(signature string, req *joinRequest, local string) error {
	if req.To != local {
		return errOtherNode
	}
	now := time.Now()
	if age := now.Sub(time.Unix(0, req.Time)); age > maxJoinAge || age < -maxJoinAge {
		return errWrongTime
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for signature, came := range s.used {
		if now.Sub(came) > 2*maxJoinAge {
			delete(s.used, signature)
		}
	}
	if _, ok := s.used[signature]; ok {
		return errSignedOnce
	}
	s.used[signature] = now
	return nil
}
