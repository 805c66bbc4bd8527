// Package clockstep lets tests step the wall clock of their own process, as NTP or an operator does
// with that of a host, while the monotonic clock goes on as if nothing had happened.
//
// Package time offers no way to do that. So a test that steps the clock is built once more, by the
// test that runs it ([Run]), with a file in place of one of package time and another in place of
// one of this package: see -overlay in "go help build". Only in that program is a step [Possible].
package clockstep

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Require skips a test where a step is not possible: it is for a program that [Run] builds.
func Require(t testing.TB) {
	t.Helper()
	if !Possible {
		t.Skip("runs where the clock can be stepped, see package clockstep")
	}
}

// Hold steps the wall clock for as long as the test runs.
func Hold(t testing.TB, d time.Duration) {
	t.Helper()
	By(d)
	t.Cleanup(func() { By(-d) })
}

// Run runs tests of the package in the working directory once more, where steps are possible. args
// are those of go test. The race detector is not among them: it would have all of the standard
// library built for it as well.
func Run(t *testing.T, args ...string) {
	t.Helper()
	if Possible {
		t.Skip("is such a program itself")
	}
	overlay := Overlay(t)
	cmd := command(t.Context(), "test", slices.Concat([]string{"-overlay", overlay, "-vet", "off", "-count", "1"}, args)...)
	out, err := cmd.CombinedOutput()
	t.Logf("%v\n%s", cmd, out)
	if err != nil {
		t.Errorf("where the clock can be stepped: %v", err)
	}
}

func command(ctx context.Context, verb string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", append([]string{verb}, args...)...)
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

//go:embed testdata/wallstep.go
var wallstep []byte // package time

//go:embed testdata/step.go
var step []byte // this package

// Overlay makes an overlay, for the flag of that name, from the source of the toolchain that is in
// use. It skips the test where there is none.
func Overlay(t testing.TB) (file string) {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs the go command: ", err)
	}
	file, err := writeOverlay(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func writeOverlay(ctx context.Context, dir string) (file string, err error) {
	out, err := command(ctx, "list", "-f", "{{.Dir}}", "time", "github.com/gridrpc/grid/internal/clockstep").Output()
	if err != nil {
		return "", fmt.Errorf("go list: %w", err)
	}
	dirs := strings.Split(strings.TrimSpace(string(out)), "\n")
	timeFile := filepath.Join(dirs[0], "time.go")
	source, err := os.ReadFile(timeFile)
	if err != nil {
		return "", err
	}
	if source, err = renameNow(source); err != nil {
		return "", fmt.Errorf("%s: %w", timeFile, err)
	}
	replace := make(map[string]string)
	for name, content := range map[string][]byte{
		timeFile:                              source,
		filepath.Join(dirs[0], "wallstep.go"): wallstep,
		filepath.Join(dirs[1], "step.go"):     step,
	} {
		replace[name] = filepath.Join(dir, filepath.Base(name))
		if err := os.WriteFile(replace[name], content, 0o644); err != nil {
			return "", err
		}
	}
	content, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	file = filepath.Join(dir, "overlay.json")
	return file, os.WriteFile(file, content, 0o644)
}

// renameNow gives the function Now of package time another name, under which that of the overlay
// calls it.
func renameNow(source []byte) ([]byte, error) {
	files := token.NewFileSet()
	f, err := parser.ParseFile(files, "time.go", source, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	for _, d := range f.Decls {
		if d, ok := d.(*ast.FuncDecl); ok && d.Recv == nil && d.Name.Name == "Now" {
			at := files.Position(d.Name.Pos()).Offset
			return slices.Concat(source[:at], []byte("unsteppedNow"), bytes.TrimPrefix(source[at:], []byte("Now"))), nil
		}
	}
	return nil, errors.New("there is no function Now")
}
