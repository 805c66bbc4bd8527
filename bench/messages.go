package main

import "time"

//go:generate go -C ../tools tool msgp -unexported -file ../bench/messages.go -o ../bench/messages_gen.go -tests=false -io=false

//msgp:tuple gridSample

// gridSample is a sample in grid's encoding.
type gridSample struct {
	ID    uint64
	Name  string
	Size  int64
	Time  time.Time
	Flags uint32
}
