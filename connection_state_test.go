package grid

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

var allStates = []State{StateUnconnected, StateConnecting, StateConnected, StateConnectionError, StateShutdown}

// documentedTransitions are those of the picture in the design document: a fenced block between two
// marks, with a line for each state.
func documentedTransitions(t *testing.T) map[string][]string {
	text, err := os.ReadFile(filepath.Join("docs", "design.md"))
	require.NoError(t, err)
	_, after, found := strings.Cut(string(text), "<!-- states -->")
	require.True(t, found, "docs/design.md has no mark <!-- states -->")
	block, _, found := strings.Cut(after, "<!-- /states -->")
	require.True(t, found, "docs/design.md has no mark <!-- /states -->")
	table := map[string][]string{}
	for line := range strings.Lines(block) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "```") {
			continue
		}
		from, to, found := strings.Cut(line, "->")
		require.True(t, found, "no arrow in %q", line)
		from = strings.TrimSpace(from)
		require.NotContains(t, table, from, "two lines for one state")
		table[from] = []string{}
		for name := range strings.SplitSeq(to, ",") {
			if name = strings.TrimSpace(name); name != "" {
				table[from] = append(table[from], name)
			}
		}
	}
	return table
}

func TestState_TransitionsAreThoseOfTheDesignDocument(t *testing.T) {
	table := map[string][]string{}
	for from, tos := range transitions {
		names := []string{}
		for _, to := range tos {
			names = append(names, to.String())
		}
		table[from.String()] = names
	}
	require.Len(t, table, len(allStates))
	require.Equal(t, table, documentedTransitions(t))
}

func TestState_OnlyLegalTransitionsAreMade(t *testing.T) {
	for _, from := range allStates {
		for _, to := range allStates {
			legal := false
			for _, s := range transitions[from] {
				legal = legal || s == to
			}
			m := stateMachine{state: from}
			require.Equal(t, legal, m.set(to, nil), "%v to %v", from, to)
			want := from
			if legal {
				want = to
			}
			require.Equal(t, want, m.get(), "%v to %v", from, to)
		}
		require.False(t, (&stateMachine{state: StateShutdown}).set(from, nil), "shutdown is the last state")
	}
}

func TestState_AllHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range allStates {
		require.NotContains(t, s.String(), "state")
		require.False(t, seen[s.String()])
		seen[s.String()] = true
	}
	require.Equal(t, "state 5", State(5).String())
	require.Equal(t, StateUnconnected, State(0), "the zero value")
}

func TestState_IsSafeToChangeAndWaitForConcurrently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m stateMachine
		var users sync.WaitGroup
		for range 4 {
			users.Go(func() {
				for range 1000 {
					m.set(StateConnecting, nil)
					m.set(StateConnectionError, nil)
					m.set(StateConnected, nil)
				}
			})
			users.Go(func() {
				for range 1000 {
					if err := m.waitConnected(t.Context()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		users.Wait()
	})
}
