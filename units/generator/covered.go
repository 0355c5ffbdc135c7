// SPDX-License-Identifier: Apache-2.0

package generator

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/fdbridge/fdbridge/units/unitfile"
)

// Dir is the directory that systemd gives the generator, its first argument.
const Dir = "/run/systemd/generator"

// Covered returns the units that the generator has put fdbridged.service before
// when it last wrote to dir: these have their drop-in, and are not forgotten
// when they stop. What PID 1 says of the order is not the same: it has the
// units there, too, that are themselves after fdbridged.service, which is no
// reference to them. It returns ErrNotRun, and no units, when the generator has
// written nothing at all.
func Covered(dir string) (map[string]bool, error) {
	data, err := os.ReadFile(filepath.Join(dir, beforeName))
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Stat(filepath.Join(dir, registerName)) // without units it has written that alone
		if errors.Is(err, fs.ErrNotExist) {
			return nil, ErrNotRun
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read which units the generator has covered: %w", err)
	}
	covered := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		if units, ok := strings.CutPrefix(line, "Before="); ok {
			for _, unit := range strings.Fields(units) {
				covered[unit] = true
			}
		}
	}
	return covered, nil
}

// hasDropIn tells whether the generator has given a unit its drop-in in dir: under
// its own name or that of its template, or under the alias that stands in for one.
func hasDropIn(dir, unit string) bool {
	names := []string{unit}
	if template, ok := unitfile.TemplateOf(unit); ok {
		names = append(names, template)
	}
	for _, name := range names {
		alias, _ := aliasFor(name)
		if _, err := os.Stat(filepath.Join(dir, alias+".d", DropInName)); err == nil {
			return true
		}
	}
	return false
}
