package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// newTLS makes configurations for the two ends of a connection over TLS.
func newTLS() (server, client *tls.Config, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		DNSNames:              []string{"localhost"},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	server = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	return server, &tls.Config{RootCAs: roots}, nil
}

// newReport begins the report of r.
func newReport(r *run, floors []peer) report {
	rep := report{
		Made:   time.Now(),
		Go:     runtime.Version(),
		OS:     runtime.GOOS + "/" + runtime.GOARCH,
		CPU:    cpuModel(),
		Cores:  runtime.GOMAXPROCS(0),
		Rounds: r.rounds,
		Round:  r.round,
	}
	for _, p := range r.peers {
		rep.Peers = append(rep.Peers, peerInfo{
			Name: p.name, About: p.about, Version: moduleVersion(p.module),
			Floor: slices.ContainsFunc(floors, func(f peer) bool { return f.name == p.name }),
		})
	}
	return rep
}

// moduleVersion is the version of a module in this binary.
func moduleVersion(path string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok || path == "" {
		return ""
	}
	for _, m := range info.Deps {
		if m.Path == path {
			return m.Version
		}
	}
	return ""
}

// cpuModel is what the kernel calls the processor; empty where it does not say.
func cpuModel() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// merge adds to r what the report in a folder has of other shapes than those that r has measured.
func (r *report) merge(dir string, measured []shape) error {
	b, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if err != nil {
		return err
	}
	var old report
	if err := json.Unmarshal(b, &old); err != nil {
		return err
	}
	anew := func(name string) bool {
		group, _, _ := strings.Cut(name, "/")
		return slices.ContainsFunc(measured, func(s shape) bool { return s.name == group })
	}
	if old.Later == nil {
		old.Later = make(map[string]time.Time)
	}
	for _, s := range measured {
		old.Later[s.name] = r.Made
	}
	old.Results = slices.DeleteFunc(old.Results, func(v result) bool { return anew(v.Shape) })
	old.Figures = slices.DeleteFunc(old.Figures, func(f figure) bool { return anew(f.Name) })
	old.Results = append(old.Results, r.Results...)
	old.Figures = append(old.Figures, r.Figures...)
	for _, p := range r.Peers {
		if !slices.ContainsFunc(old.Peers, func(q peerInfo) bool { return q.Name == p.Name }) {
			old.Peers = append(old.Peers, p)
		}
	}
	*r = old
	return nil
}

// writeFiles writes the report in all its forms into a folder.
func (r *report) writeFiles(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, write := range map[string]func(*os.File) error{
		"README.md":    func(f *os.File) error { return r.writeMarkdown(f) },
		"results.json": func(f *os.File) error { return r.writeJSON(f) },
	} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if err := write(f); err != nil {
			f.Close()
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return r.writeCharts(dir)
}
