// SPDX-License-Identifier: Apache-2.0

package contents

import "testing"

func TestNoTwoPagesAndFilesAreAlike(t *testing.T) {
	seen := map[string]string{}
	for _, unit := range []string{"a", "b", "ab"} {
		for _, name := range []string{"", "a", "b"} {
			for _, offset := range []int64{0, PageSize, 2 * PageSize, 1 << 30} {
				var page [PageSize]byte
				Page(&page, unit, name, offset)
				what := unit + "/" + name
				if other, taken := seen[string(page[:])]; taken {
					t.Errorf("a page of %s is like one of %s", what, other)
				}
				seen[string(page[:])] = what
			}
		}
	}
}

func TestEveryBitCounts(t *testing.T) {
	data := make([]byte, 21)
	sums := map[uint64]bool{Hash(0, data): true, Hash(0, data[:20]): true}
	for i := range data {
		for bit := range 8 {
			data[i] ^= 1 << bit
			sums[Hash(0, data)] = true
			data[i] ^= 1 << bit
		}
	}
	if want := 2 + 8*len(data); len(sums) != want {
		t.Errorf("%d different sums, want %d", len(sums), want)
	}
	if Hash(Hash(0, data[:8]), data[8:]) != Hash(0, data) {
		t.Error("a hash in two parts is another")
	}
}
