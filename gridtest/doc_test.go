package gridtest

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGridtestDocs_ShowTheExample(t *testing.T) {
	example, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	doc, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	_, test, ok := strings.Cut(string(example), "\nfunc TestStore_OutlivesFaults")
	require.True(t, ok)
	var comment strings.Builder
	for line := range strings.Lines("func TestStore_OutlivesFaults" + test) {
		if line != "\n" {
			line = "\t" + line
		}
		comment.WriteString("//" + line)
	}
	require.Contains(t, string(doc), comment.String())
}
