package grid

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"
)

func TestJSON_AcceptsOneValueOnly(t *testing.T) {
	for _, text := range []string{`{"A":1}x`, `{"A":1}{"A":2}`, `{"A":1`, ``, ` `, `{"A":"1"}`, `{"A":1}` + "\x00"} {
		j := numberedPool.NewJSONWith(&numberedJSON{7})
		_, err := j.UnmarshalMsg(msgp.AppendBytes(nil, []byte(text)))
		require.Error(t, err, "%q", text)
		require.ErrorContains(t, err, "grid: decoding JSON of *grid.numberedJSON: ")
		require.Nil(t, j.Value(), "%q", text)
	}
	var typeErr *json.UnmarshalTypeError
	_, err := numberedPool.NewJSON().UnmarshalMsg([]byte("\xc4\x09{\"A\":\"1\"}"))
	require.ErrorAs(t, err, &typeErr)
}

func TestJSON_ThatCannotBeEncoded(t *testing.T) {
	b, err := anyPool.NewJSONWith(anyOf(func() {})).MarshalMsg([]byte("before"))
	var typeErr *json.UnsupportedTypeError
	require.ErrorAs(t, err, &typeErr)
	require.Equal(t, "before", string(b))
}

func TestJSON_Value(t *testing.T) {
	v := &numberedJSON{7}
	j := numberedPool.NewJSONWith(v)
	require.Same(t, v, j.Value())
	require.Equal(t, numberedJSON{7}, j.ValueOrZero())
	j.Set(nil)
	require.Nil(t, j.Value())
	require.Zero(t, j.ValueOrZero())
	require.Nil(t, (*JSON[numberedJSON])(nil).Value())

	j.Set(v)
	b := mustMarshal(t, j)
	mustUnmarshal(t, j, b)
	got := j.Value()
	require.NotSame(t, v, got)
	j.Recycle()
	require.Equal(t, &numberedJSON{7}, got, "the value outlives its wrapper")

	// Larger than any guess.
	long := any(strings.Repeat("x", 100<<10))
	big := anyPool.NewJSON()
	mustUnmarshal(t, big, mustMarshal(t, anyPool.NewJSONWith(&long)))
	require.Equal(t, long, big.ValueOrZero())
}
