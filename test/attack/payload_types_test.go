package attack

//go:generate go -C ../../tools tool msgp -unexported -file ../test/attack/payload_types_test.go -o ../test/attack/payload_types_gen_test.go -tests=false -io=false

// payloads has a field of every kind for which generated code makes room before it has read it.
type payloads struct {
	Numbers []int64
	Texts   []string
	ByName  map[string]int64
	Inner   []payload
}

type payload struct{ A, B, C, D int64 }

// tree is nested in itself.
type tree struct {
	Children []tree
	Named    map[string]tree
}
