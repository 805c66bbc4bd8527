package grid_test

//go:generate go -C tools tool msgp -unexported -file ../rpctypes_test.go -o ../rpctypes_gen_test.go -tests=false -io=false

// rpcRequest is a small typed request.
type rpcRequest struct {
	Num    int
	String string
}

// rpcResponse answers it with its fields and itself.
type rpcResponse struct {
	OrgNum    int
	OrgString string
	Embedded  rpcRequest
}
