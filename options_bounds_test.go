package grid

import (
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gridrpc/grid/internal/seed"
)

// OptionBound is what an option that is a number may be, besides 0 for its default.
type OptionBound struct {
	Least, Greatest int64
	stated          string // by its documentation
}

// OptionBounds are those of all options that are numbers, where MaxMessageSize is size.
func OptionBounds(size int) map[string]OptionBound {
	interval := OptionBound{int64(time.Millisecond), int64(30 * 24 * time.Hour), "From 1 ms to 30 days"}
	return map[string]OptionBound{
		"MaxMessageSize":     {1, 1<<31 - 1 - 1<<20, "From 1 to 2146435071 bytes"},
		"MaxNesting":         {1, 100_000, "From 1 to 100000"},
		"MaxHandlers":        {1, math.MaxInt, "At least 1"},
		"MaxStreams":         {1, math.MaxInt, "At least 1"},
		"MaxHostBytes":       {int64(size), math.MaxInt, "At least MaxMessageSize"},
		"MaxStreamBytes":     {int64(size), math.MaxInt, "At least MaxMessageSize"},
		"MaxTotalBytes":      {int64(size), math.MaxInt, "At least MaxMessageSize"},
		"MaxTotalHandlers":   {1, math.MaxInt, "At least 1"},
		"MaxTotalStreams":    {1, math.MaxInt, "At least 1"},
		"MaxQueuedBytes":     {4 << 10, math.MaxInt, "At least 4 KiB"},
		"MaxHandshakes":      {1, math.MaxInt, "At least 1"},
		"MaxHosts":           {1, math.MaxInt, "At least 1"},
		"ForgetAfter":        interval,
		"MaxPings":           {2, math.MaxInt, "At least 2"},
		"RequestTimeout":     interval,
		"PingInterval":       interval,
		"StreamPingInterval": interval,
		"WriteTimeout":       interval,
		"MessageTimeout":     interval,
		"HandshakeTimeout":   interval,
		"MinBackoff":         interval,
		"MaxBackoff":         interval,
	}
}

// NumericOptions are the names of the options that are numbers, in their order. It fails for one of
// a kind that nobody has thought of.
func NumericOptions(t testing.TB) (names []string) {
	t.Helper()
	for _, f := range reflect.VisibleFields(reflect.TypeFor[ManagerOptions]()) {
		switch f.Type.Kind() {
		case reflect.Int, reflect.Int64:
			names = append(names, f.Name)
		case reflect.String, reflect.Bool, reflect.Slice, reflect.Map, reflect.Func, reflect.Chan, reflect.Pointer:
		default:
			require.Fail(t, "option of a kind that has no bounds here", "%s is a %v", f.Name, f.Type)
		}
	}
	return names
}

// SetOption sets an option that is a number.
func SetOption(o *ManagerOptions, name string, to int64) {
	reflect.ValueOf(o).Elem().FieldByName(name).SetInt(to)
}

// What is beyond the bounds of an option is refused by an error that names the option and them, as
// its documentation does.
func TestOptions_BeyondTheirBoundsAreRefused(t *testing.T) {
	docs := optionDocs(t)
	random := seed.Rand(t)
	const local = "http://node1:9000"
	for _, size := range []int{0, 1, 1 << 20, maxMaxMessageSize} {
		bounds := OptionBounds(size)
		if size == 0 {
			bounds = OptionBounds(32 << 20)
		}
		for _, name := range NumericOptions(t) {
			b, ok := bounds[name]
			require.True(t, ok, "%s has no bounds here", name)
			require.Contains(t, docs[name], b.stated)
			with := func(v int64) error {
				o := testOptions(local, []string{local})
				if o.MaxMessageSize = size; name == "MaxMessageSize" {
					o.MaxMessageSize = 0
				}
				SetOption(&o, name, v)
				m, err := NewManager(t.Context(), o)
				if err == nil {
					require.NoError(t, m.Close())
				}
				return err
			}
			isInt := reflect.ValueOf(ManagerOptions{}).FieldByName(name).Kind() == reflect.Int
			most := int64(math.MaxInt64)
			if isInt {
				most = math.MaxInt
			}
			for _, v := range []int64{0, b.Least, b.Least + random.Int64N(b.Greatest-b.Least+1), b.Greatest} {
				require.NoError(t, with(v), "%s of %d", name, v)
			}
			bad := []int64{-1, -b.Least, -1 - most, b.Least - 1, b.Least / 2}
			if b.Greatest < most {
				bad = append(bad, b.Greatest+1, b.Greatest+1+random.Int64N(most-b.Greatest), most)
			}
			for _, v := range bad {
				if v == 0 || v == b.Least {
					continue
				}
				text := fmt.Sprintf("grid: %s is %d, must be %d to %d, or 0 for the default", name, v, b.Least, b.Greatest)
				if !isInt {
					text = fmt.Sprintf("grid: %s is %v, must be 1ms to 720h0m0s, or 0 for the default", name, time.Duration(v))
				}
				require.EqualError(t, with(v), text)
			}
		}
	}
	for name := range OptionBounds(1) {
		require.Contains(t, strings.Join(NumericOptions(t), " "), name)
	}
}
