package grid

import "context"

// Metadata returns the key and value pairs that came with a call: those that its caller gave it, and
// those of interceptors, which take the place of the caller's under the same key. ctx is that of a
// handler of a stream, or of a single request that has one, or derived from it; for any other, and
// where there are none, it is nil. The map is the caller's own; it is made anew by each call.
//
// Metadata is at most 2048 bytes as it travels (protocol section 8, extension 8). A caller of version
// 1 sends none. It is what the caller's host says: no more to be trusted than the payload. Keys and
// values may be any bytes, also control characters and what is no UTF-8: quote them in logs.
func Metadata(ctx context.Context) map[string]string {
	c, ok := ctx.Value(handlerContextKey{}).(*handlerContext)
	if !ok || c.metadata == nil {
		return nil
	}
	m, _ := decodeMetadata(c.metadata) // was checked before the handler ran
	return m
}
