package grid

import (
	"bytes"
	"flag"
	"go/ast"
	"go/doc"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var updateAPI = flag.Bool("update-api", false, "write testdata/api.txt")

// What users can name does not change unnoticed: testdata/api.txt lists it. A change that is meant
// is written there with
//
//	go test -run TestAPI_IsAsListed . -update-api
//
// and what is taken away or changes its type is in CHANGELOG.md.
func TestAPI_IsAsListed(t *testing.T) {
	var list bytes.Buffer
	for _, dir := range []string{".", "gridtest", "gridstatus", "gridprom", "gridotel", "gridmember", "gridraft"} {
		listAPI(t, &list, dir)
	}
	const file = "testdata/api.txt"
	if *updateAPI {
		require.NoError(t, os.WriteFile(file, list.Bytes(), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), list.String(), "see the comment on this test")
}

// listAPI writes the exported declarations of a package, without comments and bodies.
func listAPI(t *testing.T, w *bytes.Buffer, dir string) {
	t.Helper()
	set := token.NewFileSet()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	require.NoError(t, err)
	names = slices.DeleteFunc(names, func(name string) bool { return strings.HasSuffix(name, "_test.go") })
	require.NotEmpty(t, names)
	var files []*ast.File
	for _, name := range names {
		file, err := parser.ParseFile(set, name, nil, 0)
		require.NoError(t, err)
		files = append(files, file)
	}
	pkg, err := doc.NewFromFiles(set, files, dir)
	require.NoError(t, err)
	var all []string
	add := func(decl ast.Decl) {
		var text bytes.Buffer
		require.NoError(t, format.Node(&text, set, decl))
		all = append(all, text.String())
	}
	addValues := func(values []*doc.Value) {
		for _, v := range values {
			add(v.Decl)
		}
	}
	addFuncs := func(funcs []*doc.Func) {
		for _, f := range funcs {
			f.Decl.Body = nil
			add(f.Decl)
		}
	}
	addValues(pkg.Consts)
	addValues(pkg.Vars)
	addFuncs(pkg.Funcs)
	for _, typ := range pkg.Types {
		add(typ.Decl)
		addValues(typ.Consts)
		addValues(typ.Vars)
		addFuncs(typ.Funcs)
		addFuncs(typ.Methods)
	}
	slices.Sort(all)
	w.WriteString("package " + pkg.Name + "\n\n" + strings.Join(all, "\n") + "\n\n")
}
