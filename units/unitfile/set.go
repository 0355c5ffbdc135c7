// SPDX-License-Identifier: Apache-2.0

package unitfile

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"path"
	"slices"
)

var (
	// ErrNotFound is returned for a unit of which there is no file.
	ErrNotFound = errors.New("there is no unit file")
	// ErrMasked is returned for a unit whose file is empty or /dev/null.
	ErrMasked = errors.New("the unit is masked")
)

// maxAliases is how many aliases may lead to a unit file, FOLLOW_MAX in
// systemd's src/shared/unit-file.c.
const maxAliases = 8

// Set is what a machine has on disk of service units. It is read once and does
// not change; it may be used by several goroutines.
type Set struct {
	// ids leads from a unit name to the path of its file, or to the name it
	// is an alias of. aliases leads back from the name of a file to all names
	// that lead to it.
	ids     map[string]string
	aliases map[string][]string
	// files are the unit files that ids leads to, and all drop-ins.
	files map[string]*file
	// dropIns leads from a drop-in directory, "x.service.d", to the drop-ins
	// in the directories of that name, one list per directory of the search
	// path. It has an entry only where there is such a directory.
	dropIns map[string][][]*file
	// wanted are the instances that some .wants/ or the like refers to.
	wanted map[string]bool
	depth  int // the length of the search path
}

// Unit is a service as its files describe it.
type Unit struct {
	// Name is the unit's real name, whatever alias it was asked for by. It
	// may be a template; then the rest is what its instances have in common.
	Name string
	// Names are all names of the unit, sorted. They include Name.
	Names []string
	// Path is the unit's own file, below the root.
	Path string
	// Settings are those of that file and of all drop-ins.
	Settings Settings
	// Problems are the drop-ins and lines that systemd ignores because they
	// cannot be read. systemd names them in its log, too.
	Problems []error
}

// Services returns the names of all services and service templates that have a
// file or an alias, and of the instances that a .wants/, .requires/ or
// .upholds/ directory or a drop-in directory names, sorted. Which instances a
// template will have besides these is nowhere on disk.
func (s *Set) Services() []string {
	names := maps.Clone(s.wanted)
	for name := range s.ids {
		names[name] = true
	}
	for dir := range s.dropIns {
		if name := dir[:len(dir)-len(".d")]; isInstance(name) {
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func isInstance(name string) bool {
	n, ok := parseName(name)
	return ok && n.isInstance()
}

// Mentions reports whether text is anywhere in the files of a unit, or may be,
// because one of them cannot be read. It is much faster than Unit, and tells
// which units are worth it.
func (s *Set) Mentions(name, text string) bool {
	fragment, names := s.find(name)
	files := s.dropInFiles(names)
	if f := s.files[fragment]; f != nil {
		files = append(files, f)
	}
	return slices.ContainsFunc(files, func(f *file) bool {
		unread := f.err != nil && !errors.Is(f.err, fs.ErrNotExist)
		return unread || bytes.Contains(f.data, []byte(text))
	})
}

// Unit reads a unit, by its name or an alias of it. It returns ErrNotFound or
// ErrMasked when there is none, and fails where systemd refuses to load the
// unit because its own file cannot be read.
func (s *Set) Unit(name string) (*Unit, error) {
	fragment, names := s.find(name)
	f := s.files[fragment]
	switch {
	case f == nil || errors.Is(f.err, fs.ErrNotExist): // a symlink that dangles
		return nil, ErrNotFound
	case f.err != nil:
		return nil, f.err
	case len(f.data) == 0:
		return nil, ErrMasked
	}
	settings, problems, err := parse(f.path, f.data)
	if err != nil {
		return nil, err
	}
	u := &Unit{Name: names[0], Path: fragment, Settings: settings, Problems: problems}
	for _, f := range sortedFiles(s.dropInFiles(names)) {
		u.addDropIn(f)
	}
	u.Names = slices.Compact(slices.Sorted(slices.Values(names)))
	return u, nil
}

// addDropIn applies a drop-in: as far as it can be read, as systemd does.
func (u *Unit) addDropIn(f *file) {
	settings, problems, err := parse(f.path, f.data)
	u.Settings = append(u.Settings, settings...)
	u.Problems = append(u.Problems, problems...)
	if err = errors.Join(f.err, err); err != nil {
		u.Problems = append(u.Problems, err)
	}
}

// sortedFiles returns the files in the order in which they are applied: by
// name, of each name only the first. See conf_files_list_strv() in systemd's
// src/basic/conf-files.c.
func sortedFiles(files []*file) []*file {
	byName := map[string]*file{}
	for _, f := range files {
		if name := path.Base(f.path); byName[name] == nil {
			byName[name] = f
		}
	}
	sorted := make([]*file, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		sorted = append(sorted, byName[name])
	}
	return sorted
}
