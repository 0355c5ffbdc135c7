// SPDX-License-Identifier: Apache-2.0

package bulk

// Texts reads an as.
func (r *Reader) Texts() []string {
	var texts []string
	r.array(4, func() { texts = append(texts, r.Text()) })
	if r.err != nil {
		return nil
	}
	return texts
}
