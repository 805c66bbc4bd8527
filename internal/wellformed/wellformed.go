// Package wellformed looks through MessagePack before anything is decoded: code that is generated
// for it believes the headers that it reads.
package wellformed

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Check walks once through b, which is one value of MessagePack after the other, without allocating
// for what it claims. It returns what is wrong, and where:
//
//   - a value that is cut short, or begins with a byte that none begins with;
//   - an array or a map that claims more values than there can be in the bytes that are left, those
//     counted that others around it still want;
//   - arrays and maps that are nested deeper than maxDepth.
//
// What it accepts has no length that is larger than b.
func Check(b []byte, maxDepth int) error {
	const unbounded = math.MaxUint32 // more than there can be
	var some [32]uint32
	around := some[:0] // values that those around the present array or map still want, the innermost last
	want := uint32(unbounded)
	owed := uint64(0) // the sum of around, without what is in none
	for i, last := 0, 0; ; {
		// Most values are short, and the first byte tells how short.
		for want > 0 && i < len(b) {
			n := int(plain[b[i]])
			if n == 0 {
				break
			}
			last, i = i, i+n
			want--
		}
		switch {
		case i > len(b):
			_, _, _, err := parse(b[last:])
			return fmt.Errorf("at byte %d: %w", last, err)
		case want == 0 && len(around) == 0:
			want = unbounded
			continue
		case want == 0:
			inner := len(around) - 1
			want, around = around[inner], around[:inner]
			if inner > 0 {
				owed -= uint64(want)
			}
			continue
		case i == len(b) && len(around) > 0:
			return fmt.Errorf("at byte %d: %d values more were claimed", i, owed+uint64(want))
		case i == len(b):
			return nil
		}
		n, count, isNested, err := parse(b[i:])
		want--
		if err == nil && isNested {
			others := owed
			if len(around) > 0 {
				others += uint64(want)
			}
			switch left := uint64(len(b) - i - n); {
			case others+count > left:
				err = fmt.Errorf("%s of %d values, with %d around it, in %d bytes", name(b[i]), count, others, left)
			case len(around) >= maxDepth:
				err = fmt.Errorf("nested deeper than %d", maxDepth)
			}
		}
		if err != nil {
			return fmt.Errorf("at byte %d: %w", i, err)
		}
		i += n
		if count > 0 {
			if len(around) > 0 {
				owed += uint64(want)
			}
			around, want = append(around, want), uint32(count) // at most len(b)
		}
	}
}

// parse takes apart what b begins with: n bytes, and behind them count values where it is an array
// or a map.
func parse(b []byte) (n int, count uint64, isNested bool, err error) {
	head, size := 1, uint64(0)
	lead := b[0]
	switch {
	case lead < 0x80 || lead >= 0xe0: // small integer
	case lead < 0x90:
		count, isNested = 2*uint64(lead&0x0f), true
	case lead < 0xa0:
		count, isNested = uint64(lead&0x0f), true
	case lead < 0xc0:
		size = uint64(lead & 0x1f)
	default:
		k := &kinds[lead-0xc0]
		if k.what == "" {
			return 0, 0, false, fmt.Errorf("no value begins with %#02x", lead)
		}
		head += int(k.length)
		if len(b) < head {
			return 0, 0, false, fmt.Errorf("%s is cut short", k.what)
		}
		length := uint64(k.size)
		switch k.length {
		case 1:
			length += uint64(b[1])
		case 2:
			length += uint64(binary.BigEndian.Uint16(b[1:]))
		case 4:
			length += uint64(binary.BigEndian.Uint32(b[1:]))
		}
		if k.values == 0 {
			size = length
		} else {
			count, isNested = length*uint64(k.values), true
		}
	}
	if left := uint64(len(b) - head); size > left {
		return 0, 0, false, fmt.Errorf("%s of %d bytes, there are %d", name(lead), size, left)
	}
	return head + int(size), count, isNested, nil
}

// plain is how many bytes a value has, by its lead byte; 0 where that does not tell.
var plain = func() (sizes [256]uint8) {
	for lead := range sizes {
		switch {
		case lead < 0x80 || lead >= 0xe0:
			sizes[lead] = 1
		case lead < 0xa0: // a map or an array
		case lead < 0xc0:
			sizes[lead] = 1 + uint8(lead&0x1f)
		default:
			if k := kinds[lead-0xc0]; k.what != "" && k.length == 0 {
				sizes[lead] = 1 + k.size
			}
		}
	}
	return sizes
}()

// kind is what a lead byte from 0xc0 on begins.
type kind struct {
	what   string
	length uint8 // bytes of the length that follows the lead byte
	size   uint8 // bytes besides those that it says
	values uint8 // values for each that the length counts; 0 if it counts bytes
}

var kinds = [32]kind{
	{what: "nil"}, {}, {what: "bool"}, {what: "bool"},
	{"bin", 1, 0, 0}, {"bin", 2, 0, 0}, {"bin", 4, 0, 0},
	{"extension", 1, 1, 0}, {"extension", 2, 1, 0}, {"extension", 4, 1, 0},
	{what: "float", size: 4}, {what: "float", size: 8},
	{what: "uint", size: 1}, {what: "uint", size: 2}, {what: "uint", size: 4}, {what: "uint", size: 8},
	{what: "int", size: 1}, {what: "int", size: 2}, {what: "int", size: 4}, {what: "int", size: 8},
	{what: "extension", size: 2}, {what: "extension", size: 3}, {what: "extension", size: 5}, {what: "extension", size: 9}, {what: "extension", size: 17},
	{"string", 1, 0, 0}, {"string", 2, 0, 0}, {"string", 4, 0, 0},
	{"array", 2, 0, 1}, {"array", 4, 0, 1},
	{"map", 2, 0, 2}, {"map", 4, 0, 2},
}

func name(lead byte) string {
	switch {
	case lead >= 0xc0:
		return kinds[lead-0xc0].what
	case lead >= 0xa0:
		return "string"
	case lead >= 0x90:
		return "array"
	}
	return "map"
}
