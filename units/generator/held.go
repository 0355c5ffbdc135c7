// SPDX-License-Identifier: Apache-2.0

package generator

import (
	"errors"
	"slices"
	"strings"

	"github.com/fdbridge/fdbridge/units/unitfile"
)

// transientDir is where the files of transient units are, which are made anew with each.
const transientDir = "/run/systemd/transient/"

// ForHeld returns, by unit, the drop-ins of those units that fds are held for which
// Run could not give one: the files of a unit may be another generator's, it may have
// none yet, as when systemd-run makes it, or Run has not run. A unit that has files
// gets what Run would give it, nothing if it does not take part any more. Path is to
// be unitfile.LoadedPath, and the service manager to have loaded its units.
//
// NotifyAccess= of a unit without files is not known, and must not be less than it
// has: it becomes all. Problems are as Run has them.
func ForHeld(o Options, held []string) (dropIns map[string][]byte, problems []error) {
	covered, err := Covered(o.Dir)
	if err != nil {
		problems = append(problems, err)
	}
	missing := slices.DeleteFunc(slices.Clone(held), func(unit string) bool {
		return covered[unit] || hasDropIn(o.Dir, unit)
	})
	if len(missing) == 0 {
		return nil, problems
	}
	exclude, bad := o.Exclude()
	set, unread := unitfile.Load(o.Root, o.Path)
	p := &plan{set: set, exclude: exclude, register: Register{}, noted: map[string]bool{}}
	dropIns = map[string][]byte{}
	for _, unit := range missing {
		dropIn := p.forHeld(unit)
		if dropIn == nil {
			continue
		}
		if _, aliased := aliasFor(unit); aliased {
			p.problem(unit, "it will not get its fds back, because its name leaves no drop-in of its own")
			continue
		}
		dropIns[unit] = dropIn
	}
	return dropIns, append(append(append(problems, bad...), unread...), p.problems...)
}

// forHeld returns the drop-in of one unit; nil when it does not take part.
func (p *plan) forHeld(unit string) []byte {
	u, err := p.set.Unit(unit)
	transient := err == nil && strings.HasPrefix(u.Path, transientDir)
	switch {
	case err == nil && !transient:
		return p.dropIn(u)
	case transient || errors.Is(err, unitfile.ErrNotFound):
		if !p.exclude(unit) {
			return dropInFor(allAccess, sessions{})
		}
	case !errors.Is(err, unitfile.ErrMasked):
		p.unread([]error{err})
	}
	return nil
}
