package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// digits writes v with n significant digits, or more where it is larger, and without an exponent.
func digits(v float64, n int) string {
	_, e, _ := strings.Cut(strconv.FormatFloat(v, 'e', n-1, 64), "e")
	exponent, _ := strconv.Atoi(e)
	return strconv.FormatFloat(v, 'f', max(0, n-1-exponent), 64)
}

func sig3(v float64) string { return digits(v, 3) }

// trimmed is sig3 without zeros at the end of a fraction.
func trimmed(v float64) string { return trimZeros(sig3(v)) }

// plain is for programs.
func plain(v float64) string { return trimZeros(digits(v, 6)) }

func trimZeros(s string) string {
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s
}

// scaled writes v in the largest of the units that is not more than v; each is step of the one
// before.
func scaled(v, step float64, units ...string) string {
	i := 0
	for ; i < len(units)-1; i++ {
		if n, _ := strconv.ParseFloat(sig3(math.Abs(v)), 64); n < step {
			break
		}
		v /= step
	}
	if v == math.Trunc(v) && i == 0 {
		return trimmed(v) + units[0]
	}
	return sig3(v) + units[i]
}

// duration writes a time in ns.
func duration(ns float64) string { return scaled(ns, 1000, " ns", " µs", " ms", " s") }

// amount writes a value with its unit.
func amount(v float64, unit string) string {
	switch unit {
	case "ns":
		return duration(v)
	case "ms":
		return duration(v * 1e6)
	case "bytes", "B":
		return scaled(v, 1024, " B", " KiB", " MiB", " GiB")
	case "ratio", "":
		return sig3(v)
	case "goroutines":
		return trimmed(v)
	case "MB/s":
		return scaled(v, 1000, " MB/s", " GB/s")
	}
	return scaled(v, 1000, " ", "k ", "M ", "G ") + unit
}

// times writes a factor: ×0.85, ×4.2, ×17.
func times(v float64) string {
	switch {
	case v < 1.995:
		return fmt.Sprintf("×%.2f", v)
	case v < 9.95:
		return fmt.Sprintf("×%.1f", v)
	}
	return fmt.Sprintf("×%.0f", v)
}
