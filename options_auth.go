package grid

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/gridrpc/grid/internal/token"
	"github.com/gridrpc/grid/internal/wsconn"
)

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

// SetSharedSecret replaces the keys of ManagerOptions.SharedSecret for all handshakes that are to
// come. Connections that there are go on. It is an error to give none or an unusable one, and where
// the Manager was made without SharedSecret; then nothing has changed.
func (m *Manager) SetSharedSecret(keys ...[]byte) error {
	if m.secret.Load() == nil {
		return errors.New("grid: SetSharedSecret: the Manager was made without SharedSecret")
	}
	return m.setSecret(keys)
}

func (m *Manager) setSecret(keys [][]byte) error {
	s, err := token.New(keys...)
	if err != nil {
		return fmt.Errorf("grid: SharedSecret: %w", err)
	}
	m.secret.Store(s)
	return nil
}

// bearer makes a bearer token; empty without AuthFn.
func (o *ManagerOptions) bearer() (string, error) {
	if o.AuthFn == nil {
		return "", nil
	}
	t := o.AuthFn()
	if err := wsconn.CheckToken(t); err != nil {
		return "", fmt.Errorf("AuthFn: %w", err)
	}
	return t, nil
}

func (o *ManagerOptions) validate(token string) error {
	if o.AuthToken == nil {
		return nil
	}
	return o.AuthToken(token)
}

// upgradeHeader makes what goes with the upgrade request to a host; empty without UpgradeHeader.
func (o *ManagerOptions) upgradeHeader(host string) (http.Header, error) {
	if o.UpgradeHeader == nil {
		return nil, nil
	}
	h, err := wsconn.CheckHeader(o.UpgradeHeader(host))
	if err != nil {
		return nil, fmt.Errorf("UpgradeHeader: %w", err)
	}
	return h, nil
}
