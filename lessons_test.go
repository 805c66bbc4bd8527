package grid

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

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
	require.Equal(t, 48, next, "lessons")
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
		rooms = []string{"", "internal/*/", "test/*/", "gridtest/"}
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
		src, err := os.ReadFile(f)
		require.NoError(t, err)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`).FindAllSubmatch(src, -1) {
			tests[string(m[1])] = true
		}
	}
	return tests
}
