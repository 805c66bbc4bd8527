package grid

import (
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tinylib/msgp/msgp"
)

// countingElem is a payload that counts how often it was recycled.
type countingElem struct {
	NoPayload
	times int
}

func (r *countingElem) UnmarshalMsg(b []byte) ([]byte, error) { return msgp.ReadNilBytes(b) }

func (r *countingElem) MarshalMsg(b []byte) ([]byte, error) { return msgp.AppendNil(b), nil }

func (r *countingElem) Msgsize() int { return msgp.NilSize }

func (r *countingElem) Recycle() { r.times++ }

func TestArray_RecyclesItsElementsOnce(t *testing.T) {
	var made []*countingElem
	arrays := NewArrayOf(func() *countingElem {
		made = append(made, new(countingElem))
		return made[len(made)-1]
	})
	own := []*countingElem{{}, {}, {}}
	backing := slices.Clone(own)
	a := arrays.NewWith(backing[:2])
	require.Equal(t, own[:2], a.Value())
	a.Append(&countingElem{})
	require.Same(t, own[2], backing[2], "what lies past the slice is not the array's")
	a.Recycle()
	require.Equal(t, []*countingElem{{times: 1}, {times: 1}, {}}, own)

	a = arrays.New()
	mustUnmarshal(t, a, []byte("\x92\xc0\xc0"))
	a.Recycle()
	require.Equal(t, []*countingElem{{times: 1}, {times: 1}}, made)

	made = nil
	_, err := arrays.New().UnmarshalMsg([]byte("\x93\xc0\xc0\x01"))
	require.Error(t, err)
	require.ErrorContains(t, err, "element 2 of 3")
	require.Equal(t, []*countingElem{{times: 1}, {times: 1}, {times: 1}}, made, "those of a failed decoding")

	// Old elements may be in somebody's hands when the array is used again.
	a = arrays.NewWith([]*countingElem{{}})
	old := a.Value()[0]
	mustUnmarshal(t, a, []byte("\x91\xc0"))
	require.Zero(t, old.times)
}

func TestArray_ReusesItsSlice(t *testing.T) {
	a := mssArrays.New()
	mustUnmarshal(t, a, []byte("\x92\x80\x80"))
	first, val := &a.Value()[0], a.Value()
	mustUnmarshal(t, a, []byte("\x91\xc0"))
	require.Same(t, first, &a.Value()[0])
	require.Nil(t, val[1], "old elements are let go")

	val = a.Value()
	kept := val[0]
	a.Set(nil)
	a.Append(NewMSS())
	require.Same(t, kept, val[0], "no longer the array's after Set")
}

func TestArray_OfPlainElementsLeavesThemAlone(t *testing.T) {
	arrays := NewArrayOf(func() *plainElem { return new(plainElem) })
	v := plainElem("kept")
	a := arrays.New().Append(&v)
	b := mustMarshal(t, a)
	a.Recycle()
	require.Equal(t, plainElem("kept"), v)
	a = arrays.New()
	mustUnmarshal(t, a, b)
	require.Equal(t, []*plainElem{&v}, a.Value())
}

// plainElem is a payload without Recycle.
type plainElem string

func (p *plainElem) MarshalMsg(b []byte) ([]byte, error) {
	if *p == "bad" {
		return b, os.ErrInvalid
	}
	return msgp.AppendString(b, string(*p)), nil
}

func (p *plainElem) UnmarshalMsg(b []byte) ([]byte, error) {
	s, o, err := msgp.ReadStringBytes(b)
	*p = plainElem(s)
	return o, err
}

func (p *plainElem) Msgsize() int { return msgp.StringPrefixSize + len(*p) }

func TestArray_Errors(t *testing.T) {
	good, bad := plainElem("good"), plainElem("bad")
	a := NewArrayOf(func() *plainElem { return new(plainElem) }).New().Append(&good, &bad)
	b, err := a.MarshalMsg([]byte("before"))
	require.ErrorIs(t, err, os.ErrInvalid)
	require.ErrorContains(t, err, "element 1 of 2")
	require.Equal(t, "before", string(b))

	_, err = new(Array[*MSS]).UnmarshalMsg([]byte{0x90})
	require.ErrorContains(t, err, "was not made by ArrayOf")
	require.Panics(t, func() { NewArrayOf[*MSS](nil) })

	// Elements of no bytes cannot be told from a claim.
	_, err = NewArrayOf(NewNoPayload).New().UnmarshalMsg([]byte{0xdd, 0xff, 0xff, 0xff, 0xff})
	require.ErrorIs(t, err, msgp.ErrShortBytes)
}
