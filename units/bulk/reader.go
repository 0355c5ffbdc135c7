// SPDX-License-Identifier: Apache-2.0

package bulk

import (
	"encoding/binary"
	"fmt"
)

// Reader reads values from the body of a message. After the first that is not
// there, all are zero; the call that is read has the error.
type Reader struct {
	data []byte
	at   int
	err  error
}

func (r *Reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: "+format, append([]any{ErrProtocol}, args...)...)
	}
}

// take returns the next n bytes, nil when there are fewer.
func (r *Reader) take(n int) []byte {
	if r.err != nil || n > len(r.data)-r.at {
		r.fail("it ends at byte %d", len(r.data))
		return nil
	}
	r.at += n
	return r.data[r.at-n : r.at]
}

func (r *Reader) align(n int) { r.take(-r.at & (n - 1)) }

func (r *Reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

// Uint32 reads a u.
func (r *Reader) Uint32() uint32 {
	r.align(4)
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// Uint64 reads a t.
func (r *Reader) Uint64() uint64 {
	r.align(8)
	if b := r.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// Text reads an s or an o.
func (r *Reader) Text() string { return r.text(int64(r.Uint32())) }

func (r *Reader) signature() string { return r.text(int64(r.byte())) }

// text reads n bytes and the NUL behind them.
func (r *Reader) text(n int64) string {
	if n >= int64(len(r.data)) {
		r.fail("a text of %d bytes", n)
		return ""
	}
	b := r.take(int(n) + 1)
	if b == nil {
		return ""
	}
	return string(b[:n])
}

// Variant reads the signature of a v; its value follows. It must be the one
// given.
func (r *Reader) Variant(signature string) {
	if s := r.signature(); s != signature {
		r.fail("a value of type %q, not %q", s, signature)
	}
}

// Structs reads an array of structs, each of which one reads.
func (r *Reader) Structs(one func()) { r.array(8, one) }

// array reads an array of elements that are aligned to n bytes.
func (r *Reader) array(n int, one func()) {
	size := int64(r.Uint32())
	r.align(n)
	end := int64(r.at) + size
	if end > int64(len(r.data)) {
		r.fail("an array of %d bytes", size)
	}
	for r.err == nil && int64(r.at) < end {
		r.align(n)
		before := r.at
		if one(); r.at == before {
			r.fail("an array of nothing")
		}
	}
	if r.err == nil && int64(r.at) != end {
		r.fail("an array ends at byte %d, not %d", r.at, end)
	}
}
