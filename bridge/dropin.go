// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	// runtimeUnits is where unit files and drop-ins of this boot are.
	runtimeUnits = "/run/systemd/system"
	// generatedUnits is where generators write.
	generatedUnits = "/run/systemd/generator"
)

// AddDropIns writes the drop-in that lets a unit have its fds for each of the
// units named, which sessions are held for, unless the generator has done so. A
// unit that no file on disk tells of, as systemd-run makes them, has it only
// from here. It returns how many it wrote; PID 1 is to be told of them. The
// error is about some of the units; the others have theirs.
func AddDropIns(root string, names []string, dropIn []byte) (added int, err error) {
	for _, unit := range names {
		if generated(root, unit) {
			continue
		}
		path := filepath.Join(root, runtimeUnits, unit+".d", "50-fdbridge-held.conf")
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

// generated tells whether the generator has given the unit its drop-in, by its
// own name or by its template's.
func generated(root, unit string) bool {
	names := []string{unit}
	if prefix, rest, ok := strings.Cut(unit, "@"); ok {
		names = append(names, prefix+"@"+filepath.Ext(rest))
	}
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(root, generatedUnits, name+".d", "50-fdbridge.conf")); err == nil {
			return true
		}
	}
	return false
}
