// SPDX-License-Identifier: Apache-2.0

package generator

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/fdbridge/fdbridge/units/unitfile"
)

const (
	service   = "Service"
	preserve  = "FileDescriptorStorePreserve"
	onSuccess = "on-success"

	// maxDirUnit is the length of the longest unit name that can have a
	// drop-in directory: a file name has at most 255 bytes, ".d" is two.
	maxDirUnit = 253
)

// File is a file to be written: its path below the generator's directory, and
// what is in it, or else what it is a symlink to.
type File struct {
	Path string
	Data []byte
	Link string
}

// plan collects the files and what is wrong.
type plan struct {
	set      *unitfile.Set
	exclude  func(unit string) bool
	files    []File
	problems []error
	// dropIns leads from the real name of each unit that was looked at to its
	// drop-in, nil when it gets none.
	dropIns  map[string][]byte
	register Register
	noted    map[string]bool
}

// Plan returns the files for the services of a set, in the order in which they
// are to be written, and what is wrong with single units, one sentence each,
// which did not keep it from the others. exclude tells which units are left
// alone; a unit is when any of its names is.
//
// A service takes part when systemd would keep its fd store after it has
// stopped: FileDescriptorStoreMax= is above zero and
// FileDescriptorStorePreserve= is yes, or on-success, which systemd has from
// 262 on. A template has a drop-in for all its instances, known or not; an
// instance has its own only where it differs from its template. One with
// LUOSession= gets its sessions, too, and a store for them if it has none.
//
// Where fdbridged.service is masked, for which units would wait in vain, the only file
// is the Register, which says so.
func Plan(set *unitfile.Set, exclude func(unit string) bool) ([]File, []error) {
	p := newPlan(set, exclude)
	if p.register.Masked() {
		return []File{p.register.file()}, nil
	}
	return append(p.files, p.register.file()), p.problems
}

func newPlan(set *unitfile.Set, exclude func(unit string) bool) *plan {
	p := &plan{set: set, exclude: exclude, dropIns: map[string][]byte{}, register: Register{}, noted: map[string]bool{}}
	names := set.Services()
	slices.SortStableFunc(names, func(a, b string) int { // instances are compared with their templates
		return cmp.Compare(order(a), order(b))
	})
	var first []string
	for _, name := range names {
		if unit := p.add(name); unit != "" {
			first = append(first, unit)
		}
	}
	if len(first) > 0 {
		slices.Sort(first)
		p.files = append(p.files, File{Path: beforeName, Data: before(first)})
	}
	if _, err := set.Unit(ownUnit); errors.Is(err, unitfile.ErrMasked) {
		p.register[ownUnit] = Facts{Left: true, Masked: true}
	}
	return p
}

func order(name string) int {
	if unitfile.IsTemplate(name) {
		return 0
	}
	return 1
}

func (p *plan) problem(unit, format string, args ...any) {
	p.problems = append(p.problems, fmt.Errorf("unit %s: "+format, append([]any{unit}, args...)...))
}

// unread notes what could not be read of a unit, which names its file: that
// may be the file of other units, too, and is noted once.
func (p *plan) unread(problems []error) {
	for _, problem := range problems {
		if text := problem.Error(); !p.noted[text] {
			p.noted[text] = true
			p.problems = append(p.problems, problem)
		}
	}
}

// add makes the drop-in of the unit with this name or alias. It returns the
// unit's real name when fdbridged.service is to be before it.
func (p *plan) add(name string) string {
	template, _ := unitfile.TemplateOf(name)
	if p.dropIns[template] == nil && !p.set.Mentions(name, preserve) && !p.set.Mentions(name, luoSession) {
		return ""
	}
	u, err := p.set.Unit(name)
	switch {
	case errors.Is(err, unitfile.ErrNotFound), errors.Is(err, unitfile.ErrMasked):
		return ""
	case err != nil:
		p.unread([]error{err})
		return ""
	}
	if _, seen := p.dropIns[u.Name]; seen {
		return ""
	}
	dropIn := p.dropIn(u)
	p.dropIns[u.Name] = dropIn
	p.place(u, dropIn)
	if dropIn == nil || unitfile.IsTemplate(u.Name) {
		return ""
	}
	return u.Name
}

// dropIn returns what the unit's drop-in says; nil when it does not take part.
func (p *plan) dropIn(u *unitfile.Unit) []byte {
	if slices.ContainsFunc(u.Names, p.exclude) {
		p.register[u.Name] = Facts{Left: true} // it may be excluded by another of its names
		return nil
	}
	p.unread(u.Problems)
	settings := slices.DeleteFunc(slices.Clone(u.Settings), func(a unitfile.Assignment) bool {
		return strings.HasPrefix(path.Base(a.Path), DropInPrefix)
	})
	sessions, bad := sessionsOf(settings)
	p.unread(bad)
	if !takesPart(settings) && len(sessions.names) == 0 {
		return nil
	}
	facts, problems := factsOf(u, settings)
	p.unread(problems)
	p.register[u.Name] = facts
	if facts.Left {
		return nil
	}
	later := slices.DeleteFunc(slices.Clone(settings), func(a unitfile.Assignment) bool {
		return a.Path == u.Path || path.Base(a.Path) < DropInName
	})
	if a, ok := overrules(later); ok {
		p.problem(u.Name, "it will not get its fds back, because %s=%s in %s overrules %s",
			a.Key, a.Value, a.Path, DropInName)
	}
	if root, apart := ownRoot(settings); apart {
		p.problem(u.Name, "it will not get its fds back, because there is no fdbridge-inject in %s; set RootDirectoryStartOnly=yes", root)
	} else if setting, dir := hidden(settings); setting != "" {
		p.problem(u.Name, "it will not get its fds back, because %s hides %s; add BindReadOnlyPaths=%s", setting, dir, dir)
	}
	return dropInFor(widened(settings), sessions)
}

// widened is what NotifyAccess= must become for a unit with these settings; "" when it
// is enough as it is.
func widened(s unitfile.Settings) string {
	access, _ := s.Last(service, "NotifyAccess", isNotifyAccess)
	if access == execAccess || access == allAccess {
		return ""
	}
	return execAccess
}

// isYes tells whether a boolean setting of the service is on, which is off by default.
func isYes(s unitfile.Settings, key string) bool {
	value, _ := s.Last(service, key, func(value string) bool {
		_, ok := unitfile.ParseBool(value)
		return ok
	})
	yes, _ := unitfile.ParseBool(value)
	return yes
}

// anything is what a setting can be that systemd always can parse.
func anything(string) bool { return true }

// overrules finds, in what is applied after a unit's drop-in, what undoes it.
func overrules(later unitfile.Settings) (by unitfile.Assignment, found bool) {
	for _, a := range later {
		switch {
		case a.Section != service:
		case a.Key == "ExecStartPre" && a.Value == "":
			return a, true
		case a.Key == "NotifyAccess" && isNotifyAccess(a.Value):
			by, found = a, a.Value == "none" || a.Value == "main"
		}
	}
	return by, found
}

// takesPart tells whether a service with these settings has opted in, and can
// be helped: without ExecStart= there is no process to give fds to.
func takesPart(s unitfile.Settings) bool {
	mode, _ := s.Last(service, preserve, isPreserveMode)
	yes, _ := unitfile.ParseBool(mode)
	return storeMax(s) > 0 && (yes || mode == onSuccess) && len(s.All(service, "ExecStart")) > 0
}

// storeMax is FileDescriptorStoreMax=.
func storeMax(s unitfile.Settings) uint32 {
	size, _ := s.Last(service, "FileDescriptorStoreMax", func(value string) bool {
		_, ok := unitfile.ParseUnsigned(value)
		return ok
	})
	n, _ := unitfile.ParseUnsigned(size)
	return n
}

// isPreserveMode knows exec_preserve_mode_table in src/core/execute.c, as of
// systemd 262.
func isPreserveMode(value string) bool {
	_, ok := unitfile.ParseBool(value)
	return ok || value == "restart" || value == onSuccess
}

// isNotifyAccess knows notify_access_table in src/basic/unit-def.c, systemd 257.
func isNotifyAccess(value string) bool {
	return slices.Contains([]string{"none", "main", execAccess, allAccess}, value)
}

// place adds the file of a drop-in, unless the unit has the same one from its
// template: through the template's own directory, or, where an alias stands in
// for that, through the template's file.
func (p *plan) place(u *unitfile.Unit, dropIn []byte) {
	dir, aliased := aliasFor(u.Name)
	template, _ := unitfile.TemplateOf(u.Name)
	var inherited []byte
	if !aliased || path.Base(u.Path) == template {
		inherited = p.dropIns[template]
	}
	if bytes.Equal(dropIn, inherited) {
		return
	}
	if dropIn == nil {
		dropIn = leftOut(u.Name)
	}
	if len(dir) > maxDirUnit {
		p.problem(u.Name, "its name is too long for a drop-in of its own")
		return
	}
	if aliased {
		p.files = append(p.files, File{Path: dir, Link: u.Path})
	}
	p.files = append(p.files, File{Path: dir + ".d/" + DropInName, Data: dropIn})
}

// aliasFor returns the name that a unit's drop-in directory is named after:
// its own, or, when that cannot be, an alias, whose drop-ins are the unit's,
// too. It cannot be when the directory's name would be too long, or when the
// name ends in a dash: then it is the directory of all units that begin so.
func aliasFor(name string) (dir string, aliased bool) {
	end := strings.IndexByte(name, '@')
	if end < 0 {
		end = len(name) - len(".service")
	}
	if len(name) <= maxDirUnit && name[end-1] != '-' {
		return name, false
	}
	hash := sha256.Sum256([]byte(name[:end]))
	return fmt.Sprintf("fdbridge.%x%s", hash[:8], name[end:]), true
}
