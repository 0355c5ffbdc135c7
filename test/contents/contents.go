// SPDX-License-Identifier: Apache-2.0

// Package contents has what the scenarios' files contain, so that a test can
// tell what a service has to find. All of it is quick on an emulated processor,
// where a cryptographic hash of some hundred megabytes takes half a minute.
package contents

import (
	"encoding/binary"
	"fmt"
)

// PageSize is the granularity of contents.
const PageSize = 4096

// Page fills page with what the file called name of a unit has at offset, a
// multiple of PageSize: no two files and no two pages are alike.
func Page(page *[PageSize]byte, unit, name string, offset int64) {
	seed := Hash(0, []byte(unit+"\x00"+name))
	binary.LittleEndian.PutUint64(page[0:], seed)
	binary.LittleEndian.PutUint64(page[8:], seed*uint64(offset+1))
	for filled := 16; filled < PageSize; filled *= 2 {
		copy(page[filled:], page[:filled])
	}
}

// Hash returns the hash of what has the hash h, 0 for nothing, with data behind
// it. Data must be whole words of 8 bytes but for the last call.
func Hash(h uint64, data []byte) uint64 {
	for ; len(data) >= 8; data = data[8:] {
		h = mix(h, binary.LittleEndian.Uint64(data))
	}
	for _, c := range data {
		h = mix(h, uint64(c)+1<<8)
	}
	return h
}

// mix is a step of multiplication and shift, which loses nothing of either.
func mix(h, word uint64) uint64 {
	const odd = 0x9e3779b97f4a7c15
	h = (h ^ word + odd) * odd
	return h ^ h>>32
}

// Sum is a hash as a report has it.
func Sum(h uint64) string { return fmt.Sprintf("%016x", h) }

// Of returns the sum of the file called name of a unit with size bytes.
func Of(unit, name string, size int64) string {
	h := uint64(0)
	var page [PageSize]byte
	for offset := int64(0); offset < size; offset += PageSize {
		Page(&page, unit, name, offset)
		h = Hash(h, page[:min(PageSize, size-offset)])
	}
	return Sum(h)
}
