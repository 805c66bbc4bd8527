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
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// identity is a certificate for the loopback interface, and its key, in DER.
type identity struct{ Cert, Key []byte }

func newIdentity() (*identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
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
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	return &identity{cert, der}, err
}

// addTo sets the configurations for the two ends of a connection over TLS.
func (id *identity) addTo(c *config) error {
	key, err := x509.ParseECPrivateKey(id.Key)
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(id.Cert)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	c.identity = id
	c.serverTLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{id.Cert}, PrivateKey: key}}}
	c.clientTLS = &tls.Config{RootCAs: roots}
	return nil
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
	rep.Commit, rep.Dirty = commit()
	peers := r.peers
	if r.has("grid") {
		peers = slices.Insert(slices.Clone(peers), 1, gridTimeoutPeers()...) // grid is the first
	}
	for _, p := range peers {
		rep.Peers = append(rep.Peers, peerInfo{
			Name: p.name, About: p.about, Version: moduleVersion(p.module),
			Floor: slices.ContainsFunc(floors, func(f peer) bool { return f.name == p.name }),
		})
	}
	return rep
}

// commit is that of the repository in whose tree the command runs, and whether files differ from
// it; empty where git does not say.
func commit() (id string, dirty bool) {
	b, err := exec.Command("git", "rev-parse", "HEAD").Output()
	if err != nil {
		return "", false
	}
	id = strings.TrimSpace(string(b))
	// What an earlier run has written, and what is not of the repository, changes no measurement.
	b, err = exec.Command("git", "status", "--porcelain", "--untracked-files=no", ":(top)", ":(top,exclude)docs").Output()
	return id, err != nil || len(b) > 0
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

// readReport reads the report of an earlier run.
func readReport(path string) (*report, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := new(report)
	return r, json.Unmarshal(b, r)
}

// rewrite writes the report of an earlier run into a folder.
func rewrite(path, dir string) error {
	r, err := readReport(path)
	if err != nil {
		return err
	}
	return r.writeFiles(dir)
}

// merge adds to r what the report in a folder has of other shapes than those that r has measured.
func (r *report) merge(dir string, measured []shape) error {
	old, err := readReport(filepath.Join(dir, "results.json"))
	if err != nil {
		return err
	}
	anew := func(name string) bool {
		group, _, _ := strings.Cut(name, "/")
		return slices.ContainsFunc(measured, func(s shape) bool { return s.covers(group) })
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
	*r = *old
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
