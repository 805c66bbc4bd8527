package grid_test

import (
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// example is an Example function of example_test.go.
type example struct {
	name   string
	lines  []string // of its body
	output []string
	used   bool // by the README
}

func readExamples(t *testing.T) []*example {
	const file = "example_test.go"
	src, err := os.ReadFile(file)
	require.NoError(t, err)
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, file, src, parser.ParseComments)
	require.NoError(t, err)
	lines := strings.Split(string(src), "\n")
	var all []*example
	for _, e := range doc.Examples(f) {
		body := e.Code.(*ast.BlockStmt)
		first, last := fset.Position(body.Lbrace).Line, fset.Position(body.Rbrace).Line
		all = append(all, &example{
			name:   "Example" + e.Name,
			lines:  lines[first : last-1],
			output: strings.Split(strings.TrimSpace(e.Output), "\n"),
		})
	}
	return all
}

var fence = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")

// The README and the guide show nothing that is not compiled and run, and together leave out no
// example.
func TestDocs_ReadmeAndGuideShowTheExamples(t *testing.T) {
	examples := readExamples(t)
	for _, file := range []string{"README.md", "docs/guide.md"} {
		requireExamples(t, file, examples)
	}
	for _, e := range examples {
		require.True(t, e.used, "neither shows anything of %s", e.name)
	}
}

func requireExamples(t *testing.T, file string, examples []*example) {
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	code, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	source := strings.Split(string(code), "\n")
	for _, block := range fence.FindAllSubmatch(text, -1) {
		lines := strings.Split(strings.TrimSuffix(string(block[2]), "\n"), "\n")
		switch lang := string(block[1]); lang {
		case "go":
			i := slices.IndexFunc(examples, func(e *example) bool { return contains(e.lines, lines) })
			if i >= 0 {
				examples[i].used = true
			} else { // what an example needs besides
				require.True(t, contains(source, lines), "no example has these lines:\n%s", block[2])
			}
		case "text":
			require.True(t, slices.ContainsFunc(examples, func(e *example) bool { return slices.Equal(e.output, lines) }),
				"no example has this output:\n%s", block[2])
		case "console": // of examples/cluster, which has tests of its own
		default:
			t.Errorf("%s has a block in %q:\n%s", file, lang, block[2])
		}
	}
}

// contains reports whether part stands in lines, at any indentation.
func contains(lines, part []string) bool {
	for i := range len(lines) - len(part) + 1 {
		if slices.Equal(dedent(lines[i:i+len(part)]), part) {
			return true
		}
	}
	return false
}

// dedent removes the indentation that all lines share.
func dedent(lines []string) []string {
	for {
		shared, out := false, make([]string, len(lines))
		for i, l := range lines {
			if l == "" {
				continue
			}
			if l[0] != '\t' {
				return lines
			}
			shared, out[i] = true, l[1:]
		}
		if !shared {
			return lines
		}
		lines = out
	}
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

func TestDocs_LinkToFilesThatExist(t *testing.T) {
	var files []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md", "examples/*/*.md", "*/README.md"} {
		found, err := filepath.Glob(pattern)
		require.NoError(t, err)
		files = append(files, found...)
	}
	require.Contains(t, files, "README.md")
	require.Contains(t, files, "docs/design.md")
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, m := range link.FindAllSubmatch(fence.ReplaceAll(text, nil), -1) {
			target, anchor, _ := strings.Cut(string(m[1]), "#")
			if strings.Contains(target, "://") {
				continue
			}
			name := file
			if target != "" {
				name = filepath.Join(filepath.Dir(file), target)
			}
			to, err := os.Stat(name)
			require.NoError(t, err, "%s links to %s", file, target)
			if anchor != "" && !to.IsDir() {
				require.Contains(t, anchorsOf(t, name), anchor, "%s links to %s", file, m[1])
			}
		}
	}
}

var (
	heading     = regexp.MustCompile(`(?m)^#+ (.*)$`)
	notInAnchor = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchorsOf are those that GitHub gives the headings of a file.
func anchorsOf(t *testing.T, file string) (all []string) {
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	for _, m := range heading.FindAllSubmatch(fence.ReplaceAll(text, nil), -1) {
		title := notInAnchor.ReplaceAllString(strings.ToLower(string(m[1])), "")
		all = append(all, strings.ReplaceAll(title, " ", "-"))
	}
	return all
}
