// SPDX-License-Identifier: Apache-2.0

package unitfile

import (
	"path"
	"slices"
	"strings"
)

// find returns the path of a unit's own file, "" when there is none, and the
// unit's names, its real one first. See unit_file_find_fragment() in systemd's
// src/shared/unit-file.c.
func (s *Set) find(name string) (fragment string, names []string) {
	n, ok := parseName(name)
	if !ok {
		return "", nil
	}
	fragment = s.follow(name)
	if fragment == "" && n.isInstance() {
		fragment = s.follow(n.with("").String())
	}
	if fragment == "" {
		return "", nil
	}
	base := path.Base(fragment)
	id := base
	if IsTemplate(base) && n.isInstance() {
		b, _ := parseName(base)
		if id = b.with(n.instance).String(); !ValidName(id) { // too long
			return "", nil
		}
	}
	names = []string{id}
	names = append(names, s.namesOf(name, n, base)...)
	if base != name {
		names = append(names, s.namesOf(base, n, base)...)
	}
	return fragment, names
}

// namesOf returns name and all names that lead to the same file, made
// instances where n, the unit's name, is one. See add_names() there.
func (s *Set) namesOf(name string, n unitName, fragment string) []string {
	var names []string
	for i, alias := range append([]string{name}, s.aliases[name]...) {
		a, _ := parseName(alias)
		if n.isInstance() && a.isTemplate() {
			alias = a.with(n.instance).String()
			other := s.follow(alias)
			if i > 0 && other != "" && path.Base(other) != fragment {
				continue // this instance leads somewhere else
			}
		}
		if ValidName(alias) {
			names = append(names, alias)
		}
	}
	return names
}

// follow leads from a name through aliases to the path of a unit file; "" when
// it leads nowhere. An alias of an instance may lead to a template. See
// unit_ids_map_get() there.
func (s *Set) follow(name string) string {
	for i := range maxAliases {
		next, ok := s.ids[name]
		if !ok && i > 0 {
			template, _ := TemplateOf(name)
			next, ok = s.ids[template]
		}
		if !ok {
			return ""
		}
		if path.IsAbs(next) {
			return next
		}
		name = next
	}
	return ""
}

// dropInFiles returns the drop-ins of a unit with these names. Of several with
// the same file name the first is the one that counts. See
// unit_file_find_dropin_paths() in systemd's src/shared/dropin.c.
func (s *Set) dropInFiles(names []string) []*file {
	var files []*file
	for i, name := range names {
		if n, ok := parseName(name); ok && !slices.Contains(names[:i], name) {
			files = s.appendFiles(files, dropInDirs(n))
		}
	}
	return s.appendFiles(files, []string{"service.d"}) // for all services
}

// appendFiles appends the files of drop-in directories: in each directory of
// the search path those of all of them, in the order given.
func (s *Set) appendFiles(files []*file, dirs []string) []*file {
	dirs = slices.DeleteFunc(dirs, func(dir string) bool { return s.dropIns[dir] == nil })
	for level := range s.depth {
		for _, dir := range dirs {
			files = append(files, s.dropIns[dir][level]...)
		}
	}
	return files
}

// dropInDirs returns the names of the directories that have drop-ins for a
// unit name, the most specific first: its own, its template's,
// and those of its prefixes that end in a dash. See unit_file_find_dirs()
// there. A template has those that each of its instances has.
func dropInDirs(n unitName) []string {
	var dirs []string
	if n.isInstance() || !n.at {
		dirs = append(dirs, n.String()+".d")
	}
	shorter, ok := dashPrefix(n.prefix)
	if n.at {
		dirs = append(dirs, n.with("").String()+".d")
		if ok {
			dirs = append(dirs, dropInDirs(unitName{prefix: shorter})...)
		}
	}
	if ok {
		dirs = append(dirs, dropInDirs(unitName{prefix: shorter, instance: n.instance, at: n.at})...)
	}
	return dirs
}

// dashPrefix cuts a prefix after its last dash that is neither at its start
// nor at its end: "a-b-c" and "a-b-" become "a-b-" and "a-".
func dashPrefix(prefix string) (string, bool) {
	dash := strings.LastIndexByte(prefix, '-')
	if dash > 0 && dash == len(prefix)-1 {
		dash = strings.LastIndexByte(prefix[:dash], '-')
	}
	if dash <= 0 {
		return "", false
	}
	return prefix[:dash+1], true
}
