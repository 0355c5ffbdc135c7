// SPDX-License-Identifier: Apache-2.0

package build

import (
	"os"
	"strings"
	"testing"
)

func TestTheLogOfAProgramThatDoesNotBuildIsThereToBeRead(t *testing.T) {
	b := newBuilder(t, &host{})
	b.run = b.Log.Run
	_, err := b.Program(t.Context(), "./none")
	if err == nil {
		t.Fatal("a program was built of nothing")
	}
	_, path, _ := strings.Cut(err.Error(), "the end of ")
	path, _, _ = strings.Cut(path, ":\n")
	if data, failed := os.ReadFile(path); failed != nil || len(data) == 0 {
		t.Errorf("the log that the error names has %q, %v: %v", data, failed, err)
	}
}
