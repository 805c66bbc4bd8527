package grid

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/gridrpc/grid/internal/clip"
	"github.com/gridrpc/grid/internal/httpbody"
)

// ServeOptions are the options of [Manager.Serve] and [Manager.ListenAndServe]. The zero value
// serves the grid alone.
type ServeOptions struct {
	// Handler answers what does not go to RoutePath. By default, that is answered 404. How long it
	// takes is not bounded, and neither is the whole body of a request; but a read of that which
	// gets nothing for 2 minutes fails, with [os.ErrDeadlineExceeded], and what it has not read when
	// it returns has a second to come. It may set the deadlines of [http.ResponseController]; each
	// read of the body sets that of reading anew.
	Handler http.Handler

	// Authorize are the functions of [Manager.Handler].
	Authorize []func(r *http.Request) error

	// CertFile and KeyFile are those of [http.Server.ServeTLS]: the certificate of this host with what
	// vouches for it, and its key, in PEM. They go before the Certificates of TLSConfig. As in package
	// http, what its GetCertificate and GetConfigForClient return goes before both.
	CertFile, KeyFile string

	// TLSConfig is used where Local is https. The default has what concerns a server of
	// ManagerOptions.TLSConfig: Certificates, GetCertificate, ClientAuth, ClientCAs and the versions
	// and ciphers. So a host that shows the same certificate in both directions gives it there, and
	// for [VerifyTLSHost] ClientAuth and ClientCAs as well. It is copied.
	TLSConfig *tls.Config

	// ShutdownTimeout is how long what is under way may go on once ctx has ended: calls and streams
	// (see [Manager.Shutdown]), and then requests of Handler. Beyond it all is cut off. The default is
	// 30 s.
	ShutdownTimeout time.Duration
}

// ListenAndServe listens at a TCP address, and serves as [Manager.Serve] does. An empty addr is the
// port of Local, on all interfaces.
func (m *Manager) ListenAndServe(ctx context.Context, addr string, o ServeOptions) error {
	if addr == "" {
		addr = m.opts.defaultAddr()
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("grid: %w", err)
	}
	return m.Serve(ctx, l, o)
}

// Serve serves the grid, and what else there is in o, at a listener, with TLS if Local is https. It
// is for those who have no HTTP server of their own; others mount [Manager.Handler]. It may be
// called for several listeners.
//
// The server bounds the time for the header of a request by HandshakeTimeout, its size by 128 KiB,
// and the time of an idle connection by 2 minutes. A body that no handler reads has a second to come,
// and each part of one that Handler reads 2 minutes. Nothing else is bounded, since requests of
// Handler may take long; links last as long as they are good.
//
// When ctx ends Serve shuts down the Manager, while other requests are still answered, then the
// server, and returns: nil, if all of it had ended within ShutdownTimeout, else an error that wraps
// [context.DeadlineExceeded]. So ctx must not be that of [NewManager], whose end closes the Manager
// at once. Serve also returns when the Manager is closed otherwise.
//
// An error of the options or of the listener is returned at once. Then the Manager goes on, and is
// the caller's to close; one that is closed already is [ErrDisconnected]. The listener is closed in
// any case.
func (m *Manager) Serve(ctx context.Context, l net.Listener, o ServeOptions) error {
	defer l.Close()
	if m.ctx.Err() != nil {
		return disconnected("", errClosed)
	}
	timeout := cmp.Or(o.ShutdownTimeout, 30*time.Second)
	if timeout < 0 {
		return fmt.Errorf("grid: ServeOptions.ShutdownTimeout is %v, must not be negative", timeout)
	}
	config, err := m.opts.serverTLS(&o)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           m.route(&o),
		ReadHeaderTimeout: m.opts.HandshakeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		TLSConfig:         config,
		ErrorLog:          log.New(serverLog{m.opts.Logger}, "", 0),
	}
	ended := make(chan error, 1)
	go func() {
		if config != nil {
			ended <- server.ServeTLS(l, "", "")
		} else {
			ended <- server.Serve(l)
		}
	}()
	select {
	case err := <-ended:
		server.Close()
		return fmt.Errorf("grid: %w", err)
	case <-ctx.Done():
	case <-m.closing:
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	err = m.Shutdown(last)
	err = cmp.Or(err, server.Shutdown(last))
	server.Close()
	<-ended
	if err != nil {
		return fmt.Errorf("grid: not all had ended after %v (ShutdownTimeout): %w", timeout, err)
	}
	return nil
}

const (
	idleTimeout = 2 * time.Minute
	bodyPause   = 2 * time.Minute
	// maxHeader is more than two tokens and the headers of UpgradeHeader may take.
	maxHeader = 128 << 10
)

// route serves the grid at its path, and all else by Handler.
func (m *Manager) route(o *ServeOptions) http.Handler {
	links := m.Handler(o.Authorize...)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == m.opts.RoutePath:
			links(w, r)
		case o.Handler != nil:
			httpbody.Serve(o.Handler, w, r, bodyPause)
		default:
			httpbody.Unread(w, r)
			http.NotFound(w, r)
		}
	})
}

// serverTLS is the configuration of a server; nil without TLS.
func (o *ManagerOptions) serverTLS(s *ServeOptions) (*tls.Config, error) {
	files := s.CertFile != "" || s.KeyFile != ""
	if !isSecure(o.Local) {
		if files || s.TLSConfig != nil {
			return nil, fmt.Errorf("grid: ServeOptions has a certificate or a TLSConfig, and Local %q is http", o.Local)
		}
		return nil, nil
	}
	var c *tls.Config
	switch {
	case s.TLSConfig != nil:
		c = s.TLSConfig.Clone()
	case o.TLSConfig != nil:
		// What is left out is about the servers that are dialled, such as ServerName and
		// VerifyConnection.
		c = &tls.Config{
			Rand: o.TLSConfig.Rand, Time: o.TLSConfig.Time, KeyLogWriter: o.TLSConfig.KeyLogWriter,
			Certificates: o.TLSConfig.Certificates, GetCertificate: o.TLSConfig.GetCertificate,
			ClientAuth: o.TLSConfig.ClientAuth, ClientCAs: o.TLSConfig.ClientCAs,
			MinVersion: o.TLSConfig.MinVersion, MaxVersion: o.TLSConfig.MaxVersion,
			CipherSuites: o.TLSConfig.CipherSuites, CurvePreferences: o.TLSConfig.CurvePreferences,
		}
	default:
		c = new(tls.Config)
	}
	if files {
		cert, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("grid: CertFile and KeyFile: %w", err)
		}
		c.Certificates = append([]tls.Certificate{cert}, c.Certificates...)
	}
	if len(c.Certificates) == 0 && c.GetCertificate == nil && c.GetConfigForClient == nil {
		return nil, errors.New("grid: Local is https, and there is no certificate: give CertFile and KeyFile, or a TLSConfig")
	}
	return c, nil
}

// defaultAddr is where a host listens by its name.
func (o *ManagerOptions) defaultAddr() string {
	port := "80"
	if isSecure(o.Local) {
		port = "443"
	}
	if u, err := url.Parse(o.Local); err == nil {
		port = cmp.Or(u.Port(), port)
	}
	return ":" + port
}

// serverLog takes the lines of an HTTP server.
type serverLog struct{ log *slog.Logger }

// byStrangers are how those lines begin that whoever reaches the port can have the server write, one
// for each connection: of failed handshakes of TLS, and of what breaks the rules of HTTP/2.
var byStrangers = [][]byte{
	[]byte("http: TLS handshake error"),
	[]byte("http2: server"),
	[]byte("http2: received GOAWAY"),
	[]byte("timeout waiting for "),
}

// Write implements io.Writer, for one line at a time.
func (s serverLog) Write(line []byte) (int, error) {
	level := slog.LevelWarn
	for _, begin := range byStrangers {
		if bytes.HasPrefix(line, begin) {
			level = slog.LevelDebug
		}
	}
	s.log.Log(context.Background(), level, "grid: HTTP server", "error", clip.Bytes(bytes.TrimSpace(line)))
	return len(line), nil
}
