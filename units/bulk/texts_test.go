// SPDX-License-Identifier: Apache-2.0

package bulk

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTexts(t *testing.T) {
	for name, test := range map[string]struct {
		data string
		want []string
		bad  bool
	}{
		"none":                  {"\x00\x00\x00\x00", nil, false},
		"two, one aligned":      {"\x0e\x00\x00\x00\x01\x00\x00\x00a\x00\x00\x00\x01\x00\x00\x00b\x00", []string{"a", "b"}, false},
		"an array past the end": {"\x0f\x00\x00\x00\x01\x00\x00\x00a\x00", nil, true},
		"a text past the end":   {"\x06\x00\x00\x00\x09\x00\x00\x00a\x00", nil, true},
		"a text past the array": {"\x05\x00\x00\x00\x01\x00\x00\x00a\x00", nil, true},
		"nothing":               {"", nil, true},
	} {
		r := &Reader{data: []byte(test.data)}
		got := r.Texts()
		if diff := cmp.Diff(test.want, got); diff != "" || errors.Is(r.err, ErrProtocol) != test.bad {
			t.Errorf("%s: %v (-want +got):\n%s", name, r.err, diff)
		}
	}
}
