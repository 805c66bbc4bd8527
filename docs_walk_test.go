package grid

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The walks of docs/design.md name files, and behind each the functions that are in it.
func TestDocs_WalksNameFunctionsThatExist(t *testing.T) {
	doc, err := os.ReadFile("docs/design.md")
	require.NoError(t, err)
	walks := regexp.MustCompile(`(?s)<!-- walk -->\n(.*?)<!-- /walk -->`).FindAllSubmatch(doc, -1)
	require.Len(t, walks, 2)
	for _, walk := range walks {
		steps := regexp.MustCompile(`(?m)^\d+\. `).Split(string(walk[1]), -1)[1:]
		require.Greater(t, len(steps), 8)
		for _, step := range steps {
			names := regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(step, -1)
			require.Greater(t, len(names), 1, "%q names no function", step)
			file := names[0][1]
			require.Truef(t, strings.HasPrefix(step, "`"+file+"`: `") && strings.HasSuffix(file, ".go"), "%q does not begin with a file", step)
			for _, name := range names[1:] {
				if strings.HasSuffix(name[1], ".go") { // what follows is there
					file = name[1]
					continue
				}
				require.Contains(t, functionsOf(t, file), name[1], "in %s", file)
			}
		}
	}
}

// functionsOf are the functions of a file, as name or Type.name.
func functionsOf(t *testing.T, file string) map[string]bool {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	require.NoError(t, err)
	names := make(map[string]bool)
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		name := fn.Name.Name
		if fn.Recv != nil {
			typ := fn.Recv.List[0].Type
			if star, ok := typ.(*ast.StarExpr); ok {
				typ = star.X
			}
			switch x := typ.(type) { // without type parameters
			case *ast.IndexExpr:
				typ = x.X
			case *ast.IndexListExpr:
				typ = x.X
			}
			name = typ.(*ast.Ident).Name + "." + name
		}
		names[name] = true
	}
	return names
}
