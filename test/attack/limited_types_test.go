package attack

//go:generate go -C ../../tools tool msgp -unexported -file ../test/attack/limited_types_test.go -o ../test/attack/limited_types_gen_test.go -tests=false -io=false

//msgp:limit arrays:1000 maps:100

// listing has as much of everything as the line above says, and no more.
type listing struct {
	Names []string
	Sizes map[string]int64
}
