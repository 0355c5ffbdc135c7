// SPDX-License-Identifier: Apache-2.0

package unitfile

import (
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// loader fills a Set. It is unit_file_build_name_map() of systemd's
// src/shared/unit-file.c, and reads the files as well.
type loader struct {
	*Set
	root     rootDir
	resolved []string // the search path, and what its directories are symlinks to
	seen     map[string]bool
	problems []error
}

// Load reads the service units below root that the search path leads to; see
// SearchPath. It returns what it could read, and the directories that it could
// not; what is wrong with a single unit is reported by Unit.
func Load(root string, searchPath []string) (*Set, []error) {
	l := &loader{
		Set: &Set{
			ids:     map[string]string{},
			aliases: map[string][]string{},
			files:   map[string]*file{},
			dropIns: map[string][][]*file{},
			wanted:  map[string]bool{},
			depth:   len(searchPath),
		},
		root: rootDir(root),
		seen: map[string]bool{},
	}
	if _, err := os.Stat(root); err != nil {
		return l.Set, []error{err}
	}
	l.resolve(searchPath)
	for level, dir := range searchPath {
		l.searchDir(level, dir)
	}
	l.mapAliases()
	return l.Set, l.problems
}

func (l *loader) resolve(searchPath []string) {
	l.resolved = slices.Clone(searchPath)
	for _, dir := range searchPath {
		if resolved, err := l.root.chase(dir, true); err == nil {
			l.resolved = append(l.resolved, resolved)
		}
	}
}

// list lists a directory and notes why it cannot.
func (l *loader) list(dir string) listing {
	listed, err := l.root.list(dir)
	if err != nil {
		l.problems = append(l.problems, err)
	}
	return listed
}

// searchDir takes in one directory of the search path. Those with a higher
// priority come first, so a name that is known already is not looked at again.
func (l *loader) searchDir(level int, dir string) {
	listed := l.list(dir)
	for _, e := range listed.entries {
		name, link := e.Name(), e.Type()&fs.ModeSymlink != 0
		switch {
		case ValidName(name) && (link || e.Type().IsRegular()):
			if l.ids[name] == "" {
				l.unitFile(listed, e)
			}
		case !link && !e.IsDir():
		case isDropInDir(name):
			l.dropInDir(level, name, path.Join(dir, name))
		case isDependencyDir(name):
			l.dependencyDir(path.Join(dir, name))
		}
	}
}

func isDropInDir(name string) bool {
	of, ok := strings.CutSuffix(name, ".d")
	return ok && (of == "service" || ValidName(of))
}

func isDependencyDir(name string) bool {
	ext := path.Ext(name)
	return ext == ".wants" || ext == ".requires" || ext == ".upholds"
}

// unitFile takes in a file or symlink with the name of a unit.
func (l *loader) unitFile(in listing, e fs.DirEntry) {
	name := path.Join(in.name, e.Name())
	if !e.Type().IsRegular() {
		alias, err := l.aliasTarget(name)
		switch {
		case err != nil:
			l.problems = append(l.problems, err)
			return
		case alias != "":
			if aliasAllowed(e.Name(), alias) {
				l.ids[e.Name()] = alias
			}
			return
		}
	}
	l.ids[e.Name()] = name
	l.files[name] = in.read(e)
}

// aliasTarget returns the unit name that a symlink is an alias of, which is
// the one whose target is in the search path. It returns "" for one that leads
// to a unit file, or a mask, that lies elsewhere. See
// unit_file_resolve_symlink() there.
func (l *loader) aliasTarget(name string) (string, error) {
	target, err := os.Readlink(l.root.host(name))
	if err != nil {
		return "", err
	}
	if !path.IsAbs(target) {
		target = path.Dir(name) + "/" + target
	}
	if target, err = l.root.chase(target, false); err != nil {
		return "", err
	}
	for _, dir := range l.resolved {
		if strings.HasPrefix(target, dir+"/") {
			return path.Base(target), nil
		}
	}
	return "", nil
}

// aliasAllowed is unit_validate_alias_symlink_or_warn() there: an alias is of
// the same kind as what it leads to, an instance may also lead to a template.
func aliasAllowed(alias, target string) bool {
	a, _ := parseName(alias)
	t, ok := parseName(target)
	switch {
	case !ok || a == t:
		return false
	case a.isInstance():
		return t.at && (t.isTemplate() || t.instance == a.instance)
	default:
		return a.at == t.at && !t.isInstance()
	}
}

// mapAliases fills aliases from ids.
func (l *loader) mapAliases() {
	for name := range l.ids {
		fragment := l.follow(name)
		if f := l.files[fragment]; f == nil || len(f.data) == 0 {
			continue
		}
		id := path.Base(fragment)
		if n, _ := parseName(name); n.isInstance() && IsTemplate(id) {
			t, _ := parseName(id)
			id = t.with(n.instance).String()
		}
		l.aliases[id] = append(l.aliases[id], name)
	}
	for _, names := range l.aliases {
		slices.Sort(names)
	}
}

func (l *loader) dropInDir(level int, name, dir string) {
	if l.dropIns[name] == nil {
		l.dropIns[name] = make([][]*file, l.depth)
	}
	l.dropIns[name][level] = l.list(dir).readConf()
}

// dependencyDir notes the instances that a directory such as x.target.wants
// pulls in. An entry that is /dev/null, or empty, masks those of its name in
// directories of the same name further down the search path; see
// process_deps() in systemd's src/core/load-dropin.c.
func (l *loader) dependencyDir(dir string) {
	for _, e := range l.list(dir).entries {
		id := path.Join(path.Base(dir), e.Name())
		if !isInstance(e.Name()) || l.seen[id] {
			continue
		}
		l.seen[id] = true
		if target, err := os.Readlink(l.root.host(path.Join(dir, e.Name()))); err == nil && target != devNull {
			l.wanted[e.Name()] = true
		}
	}
}
