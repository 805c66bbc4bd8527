// Package callbacks has the tests of what functions of the application's may do to what calls them:
// one table, of the functions by what they do.
package callbacks

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
