package grid

import (
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/gridrpc/grid/internal/token"
)

// SharedSecret returns an AuthFn and an AuthToken for [ManagerOptions] by which hosts show each
// other that they know a secret key, without sending it. A token is an HMAC-SHA-256 over the time
// and a nonce. It is good for 5 minutes, by clocks that are no further apart than that, and only
// once at each Manager; for that up to 131072 used ones are remembered, in about 6 MB, and beyond
// that number within 10 minutes all are refused.
//
// A host whose clock is off is refused with its token, 403, before the handshake can say that
// clocks differ.
//
// The first key signs; those signed with any of them are accepted. To change the key without
// downtime, go through three configurations on all hosts: (old, new), then (new, old), then (new).
//
// A key has 16 bytes or more, from a good source of randomness; the slices are copied. With a
// shorter key, or without any, all tokens are refused, and the error says which key it was.
//
// A token says that its sender knows the key, not which of the hosts it is: see
// ManagerOptions.VerifyPeer. Whoever reads a token on its way could be faster with it than its
// owner, so use https between hosts where the network can't be trusted.
//
// Both functions may be called concurrently. They belong to one Manager: another one takes its own.
func SharedSecret(keys ...[]byte) (authFn func() string, authToken ValidateTokenFn) {
	s := token.New(keys...)
	return s.Sign, func(token string) error { return s.Check(token, time.Now()) }
}

// VerifyTLSHost is a VerifyPeer for [ManagerOptions] that takes a host only if it has shown a
// client certificate which is valid for its name: so no host can pass for another. The HTTP server
// must have asked for one and verified it, with a [crypto/tls.Config] whose ClientAuth is
// RequireAndVerifyClientCert, or VerifyClientCertIfGiven, and ClientCAs; the hosts show theirs by
// the Certificates of their ManagerOptions.TLSConfig. A certificate names its host by a DNS name or
// an IP address, and must be good for client authentication.
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
