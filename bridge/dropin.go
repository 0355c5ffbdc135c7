// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// AddDropIns writes below dir, units.RuntimeDir, the drop-ins, by unit, that let
// units have what is held for them and that the generator could not write:
// generator.ForHeld. It returns how many it wrote; PID 1 is to be told of them. The
// error is about some of the units; the others have theirs.
func AddDropIns(dir string, dropIns map[string][]byte) (added int, err error) {
	for _, unit := range slices.Sorted(maps.Keys(dropIns)) {
		path := filepath.Join(dir, unit+".d", "zz-fdbridge-held.conf")
		failed := os.MkdirAll(filepath.Dir(path), 0o755)
		if failed == nil {
			failed = os.WriteFile(path, dropIns[unit], 0o644)
		}
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("give %s the drop-in with which it gets its fds: %w", unit, failed))
			continue
		}
		added++
	}
	return added, err
}
