// SPDX-License-Identifier: Apache-2.0

package bulk

// Texts reads an as.
func (r *Reader) Texts() []string {
	size := int64(r.Uint32())
	end := int64(r.at) + size
	if end > int64(len(r.data)) {
		r.fail("an array of %d bytes", size)
	}
	var texts []string
	for r.err == nil && int64(r.at) < end {
		texts = append(texts, r.Text())
	}
	if r.err == nil && int64(r.at) != end {
		r.fail("an array ends at byte %d, not %d", r.at, end)
	}
	if r.err != nil {
		return nil
	}
	return texts
}
