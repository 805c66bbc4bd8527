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
func TestLessonsNameTestsThatExist(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	require.NoError(t, err)
	tests := make(map[string]bool)
	for _, f := range files {
		src, err := os.ReadFile(f)
		require.NoError(t, err)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`).FindAllSubmatch(src, -1) {
			tests[string(m[1])] = true
		}
	}
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
	require.Equal(t, 32, next, "lessons")
}
