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
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// What the documents say is there.

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

// Every lesson of docs/lessons.md names tests, and they are there.
func TestDocs_LessonsNameTestsThatExist(t *testing.T) {
	tests := testNames(t)
	doc, err := os.ReadFile("docs/lessons.md")
	require.NoError(t, err)
	next := 1
	for _, row := range regexp.MustCompile(`(?m)^\| (\d+) \|.*\| (.*) \|$`).FindAllStringSubmatch(string(doc), -1) {
		n, err := strconv.Atoi(row[1])
		require.NoError(t, err)
		require.Equal(t, next, n)
		next++
		for name := range strings.SplitSeq(row[2], ", ") {
			require.True(t, tests[strings.Trim(name, "`")], "lesson %d names %s, which is not there", n, name)
		}
	}
	require.Equal(t, 215, next, "lessons")
}

// The tests that the attacks of docs/security.md name are there, too.
func TestDocs_AttacksNameTestsThatExist(t *testing.T) {
	tests := testNames(t)
	doc, err := os.ReadFile("docs/security.md")
	require.NoError(t, err)
	named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(doc), -1)
	require.Greater(t, len(named), 50)
	for _, m := range named {
		require.True(t, tests[m[1]], "%s is not there", m[1])
	}
}

// What CONTRIBUTING.md says to open is there, and of what it says to run each package has a test,
// and each part of a pattern matches one.
func TestDocs_ContributingNamesFilesAndTestsThatExist(t *testing.T) {
	doc, err := os.ReadFile("CONTRIBUTING.md")
	require.NoError(t, err)
	quoted := regexp.MustCompile("`([^`]+)`")
	rows := regexp.MustCompile("(?m)^\\| ([^|]+) \\| (`.*`.*) \\| `(go test [^`]*)` \\|$").FindAllStringSubmatch(string(doc), -1)
	require.Greater(t, len(rows), 15)
	for _, row := range rows {
		for _, name := range quoted.FindAllStringSubmatch(row[2], -1) {
			found, err := filepath.Glob(name[1])
			require.NoError(t, err)
			require.NotEmpty(t, found, "to change %s, open %s", row[1], name[1])
		}
		for command := range strings.SplitSeq(strings.ReplaceAll(row[3], `\|`, "|"), " && ") {
			packages, pattern, _ := strings.Cut(strings.TrimPrefix(command, "go test "), " -run ")
			parts := strings.Split(strings.Trim(pattern, "'"), "|")
			matched := make(map[string]bool)
			for p := range strings.FieldsSeq(packages) {
				tests := testNames(t, strings.Replace(strings.TrimPrefix(p, "./")+"/", ".../", "*/", 1))
				some := false
				for test := range tests {
					for _, part := range parts {
						if strings.Contains(test, part) {
							some, matched[part] = true, true
						}
					}
				}
				require.True(t, some, "%s: no test of %s", command, p)
			}
			require.Len(t, matched, len(parts), "%s: a part of the pattern matches nothing", command)
		}
	}
}

// testNames are the tests of some rooms, or of all.
func testNames(t *testing.T, rooms ...string) map[string]bool {
	t.Helper()
	if rooms == nil {
		rooms = []string{"", "internal/*/", "test/*/", "gridtest/", "gridmember/", "gridprom/", "gridraft/", "gridraft/example/"}
	}
	var files []string
	for _, room := range rooms {
		found, err := filepath.Glob(room + "*_test.go")
		require.NoError(t, err)
		require.NotEmpty(t, found, room)
		files = append(files, found...)
	}
	tests := make(map[string]bool)
	for _, f := range files {
		for _, name := range testsOf(t, f) {
			tests[name] = true
		}
	}
	return tests
}

var (
	testFunc = regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
	read     sync.Map // names of tests by their file
)

// testsOf are the tests of a file.
func testsOf(t *testing.T, file string) (names []string) {
	t.Helper()
	if known, ok := read.Load(file); ok {
		return known.([]string)
	}
	src, err := os.ReadFile(file)
	require.NoError(t, err)
	for _, m := range testFunc.FindAllSubmatch(src, -1) {
		names = append(names, string(m[1]))
	}
	read.Store(file, names)
	return names
}

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
