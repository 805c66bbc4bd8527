package main

import (
	"context"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
)

// walk calls f with every entry below dir, dir itself left out. Paths are relative to dir.
func walk(ctx context.Context, dir string, f func(e *entry) error) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == dir {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		e := walks.NewResponse()
		e.Path, e.Dir = rel, d.IsDir()
		if !e.Dir {
			info, err := d.Info()
			if err != nil {
				return err
			}
			e.Size = info.Size()
		}
		return f(e)
	})
}

// count walks dir here.
func count(ctx context.Context, dir string) (*tally, error) {
	t := new(tally)
	err := walk(ctx, dir, func(e *entry) error {
		t.add(e)
		walks.PutResponse(e)
		return nil
	})
	return t, err
}

// goSource is the source of the Go installation: a tree of real files that whoever runs this has.
// It is empty if there is none.
func goSource() string {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	root := strings.TrimSpace(string(out))
	if err != nil || root == "" {
		return ""
	}
	return filepath.Join(root, "src")
}
