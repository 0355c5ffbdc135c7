// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// AddDropIns writes below dir, units.RuntimeDir, the drop-in that lets a unit have
// its fds for each of the units named, which sessions are held for. It is for
// those that no file on disk tells of, as systemd-run makes them, so that the
// generator cannot know them. It returns how many it wrote; PID 1 is to be told
// of them. The error is about some of the units; the others have theirs.
func AddDropIns(dir string, names []string, dropIn []byte) (added int, err error) {
	for _, unit := range names {
		path := filepath.Join(dir, unit+".d", "zz-fdbridge-held.conf")
		failed := os.MkdirAll(filepath.Dir(path), 0o755)
		if failed == nil {
			failed = os.WriteFile(path, dropIn, 0o644)
		}
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("give %s the drop-in with which it gets its fds: %w", unit, failed))
			continue
		}
		added++
	}
	return added, err
}
