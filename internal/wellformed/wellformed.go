// Package wellformed looks through MessagePack before anything is decoded: code that is generated
// for it believes the headers that it reads.
package wellformed

import (
	"encoding/binary"
	"fmt"
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
	var some [32]uint32
	wanted := some[:0] // values that the arrays and maps around are still to have, the innermost last
	owed := uint64(0)  // their sum
	for i := 0; i < len(b) || owed > 0; {
		if i == len(b) {
			return fmt.Errorf("at byte %d: %d values more were claimed", i, owed)
		}
		for len(wanted) > 0 && wanted[len(wanted)-1] == 0 {
			wanted = wanted[:len(wanted)-1]
		}
		if len(wanted) > 0 {
			wanted[len(wanted)-1]--
			owed--
		}
		// A value is a head and, behind it, size bytes or count values.
		head, size, count, isNested := 1, uint64(0), uint64(0), false
		lead := b[i]
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
				return fmt.Errorf("at byte %d: no value begins with %#02x", i, lead)
			}
			head += int(k.length)
			if len(b)-i < head {
				return fmt.Errorf("at byte %d: %s is cut short", i, k.what)
			}
			n := uint64(k.size)
			switch k.length {
			case 1:
				n += uint64(b[i+1])
			case 2:
				n += uint64(binary.BigEndian.Uint16(b[i+1:]))
			case 4:
				n += uint64(binary.BigEndian.Uint32(b[i+1:]))
			}
			if k.values == 0 {
				size = n
			} else {
				count, isNested = n*uint64(k.values), true
			}
		}
		left := uint64(len(b) - i - head)
		if size > left {
			return fmt.Errorf("at byte %d: %s of %d bytes, there are %d", i, name(lead), size, left)
		}
		if isNested {
			if owed+count > left {
				return fmt.Errorf("at byte %d: %s of %d values, with %d around it, in %d bytes", i, name(lead), count, owed, left)
			}
			if len(wanted) >= maxDepth {
				return fmt.Errorf("at byte %d: nested deeper than %d", i, maxDepth)
			}
			wanted = append(wanted, uint32(count)) // at most len(b)
			owed += count
		}
		i += head + int(size)
	}
	return nil
}

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
