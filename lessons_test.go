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

// testNames are the tests of all rooms.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	var files []string
	for _, room := range []string{"", "internal/*/", "test/*/", "gridtest/"} {
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
