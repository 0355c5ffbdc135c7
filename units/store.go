// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Store is one service as far as its fd store is concerned, as PID 1 tells it.
type Store struct {
	Unit string
	// Preserve is FileDescriptorStorePreserve=: "no", "restart", "yes", and
	// "on-success" from systemd 262. Max is FileDescriptorStoreMax=, which is
	// not asked for when there are Entries, as there are none without it.
	Preserve string
	Max      uint32
	// FragmentPath, User and Group say who the unit is; each can be empty.
	FragmentPath, User, Group string
	// Entries are in the order of the store, which is the order of
	// $LISTEN_FDS: the entry stored last stands first.
	Entries []Entry
}

// OptedIn tells whether the unit's store is to survive, by systemd's own
// directives.
func (s *Store) OptedIn() bool {
	return (s.Max > 0 || len(s.Entries) > 0) && (s.Preserve == "yes" || s.Preserve == "on-success")
}

// Entry is what PID 1 tells of one fd in a store: facts, not the fd.
type Entry struct {
	Name  string // FDNAME=, "stored" where the service gave none
	Mode  uint32 // st_mode
	Dev   uint64 // st_dev
	Ino   uint64 // st_ino
	Rdev  uint64 // st_rdev
	Path  string // where /proc/1/fd points: a path or the kind of an anonymous inode
	Flags int    // open flags, without O_LARGEFILE
}

const anonInode = "anon_inode:"

// Anonymous tells whether the entry shares its inode with all others of its
// kind, as eventfds and timerfds do, so that the inode does not identify it.
func (e *Entry) Anonymous() bool { return strings.HasPrefix(e.Path, anonInode) }

// Type says in a word or two what kind of file the entry is, such as
// "memfd", "pipe", "socket" or "eventfd".
func (e *Entry) Type() string {
	if e.Anonymous() {
		kind, _, _ := strings.Cut(strings.TrimPrefix(e.Path, anonInode), " ")
		return strings.Trim(kind, "[]")
	}
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		// A memfd that came through a live update has lost its name.
		if strings.HasPrefix(e.Path, "/memfd:") || e.Path == "/ (deleted)" {
			return "memfd"
		}
		return "file"
	case unix.S_IFIFO:
		return "pipe"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	}
	return "unknown"
}

// Stores returns, sorted by name, the stores of all loaded services that hold
// at least one fd. It asks PID 1 in three batches, whatever their number.
//
// A store that could not be read is left out and is part of the error, which
// can come together with stores; an error that answers errors.Is for
// ErrManager means that PID 1 did not answer and there are none.
func (m *Manager) Stores(ctx context.Context) ([]Store, error) {
	services, err := m.services(ctx, []string{"*.service"})
	if err != nil {
		return nil, err
	}
	stores, err := m.dump(ctx, services)
	if errors.Is(err, ErrManager) {
		return nil, err
	}
	return stores, errors.Join(err, m.describe(ctx, stores))
}

// Entries returns what is in one unit's store now, with one question to PID 1.
func (m *Manager) Entries(ctx context.Context, unit string) ([]Entry, error) {
	stores, err := m.dump(ctx, []string{unit})
	if err != nil || len(stores) == 0 {
		return nil, err
	}
	return stores[0].Entries, nil
}

// Stored returns how many fds are in each of the stores of units now, with one
// batch of questions to PID 1.
func (m *Manager) Stored(ctx context.Context, units []string) (map[string]int, error) {
	stores, err := m.dump(ctx, units)
	stored := map[string]int{}
	for _, s := range stores {
		stored[s.Unit] = len(s.Entries)
	}
	return stored, err
}

// OptedIn returns those among units that are loaded services and have opted in,
// of all loaded services when units is nil, sorted by name. Only their names and
// directives are filled in.
//
// A unit that is not loaded is not asked about: that would load it, for as
// long as nothing refers to it.
func (m *Manager) OptedIn(ctx context.Context, units []string) ([]Store, error) {
	patterns := []string{"*.service"}
	if units != nil {
		patterns = nil
		for _, unit := range units { // fnmatch(3) takes a backslash for its own
			patterns = append(patterns, strings.ReplaceAll(unit, `\`, `\\`))
		}
	}
	loaded, err := m.services(ctx, patterns)
	if err != nil {
		return nil, err
	}
	stores := make([]Store, len(loaded))
	for i, unit := range loaded {
		stores[i].Unit = unit
	}
	err = m.properties(ctx, stores, func(s *Store, get func(iface, name string, dest any)) {
		get(serviceInterface, "FileDescriptorStorePreserve", &s.Preserve)
		get(serviceInterface, "FileDescriptorStoreMax", &s.Max)
	})
	stores = slices.DeleteFunc(stores, func(s Store) bool { return !s.OptedIn() })
	return stores, err
}

// services lists the names of the loaded services that match one of patterns.
func (m *Manager) services(ctx context.Context, patterns []string) ([]string, error) {
	ctx, stop := context.WithTimeout(ctx, CallTimeout)
	defer stop()
	list, err := m.sd.ListUnitsByPatternsContext(ctx, nil, patterns)
	if err != nil {
		return nil, fmt.Errorf("list the services: %w: %w", ErrManager, err)
	}
	var names []string
	for _, u := range list {
		if u.LoadState == "loaded" {
			names = append(names, u.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// dumped is one element of what DumpUnitFileDescriptorStore returns,
// a(suuutuusu), systemd 254 and later (src/core/dbus-service.c).
type dumped struct {
	Name                 string
	Mode                 uint32
	DevMajor, DevMinor   uint32
	Ino                  uint64
	RdevMajor, RdevMinor uint32
	Path                 string
	Flags                uint32
}

func (d *dumped) entry() Entry {
	return Entry{
		Name: d.Name, Mode: d.Mode, Ino: d.Ino, Path: d.Path, Flags: int(d.Flags),
		Dev:  unix.Mkdev(d.DevMajor, d.DevMinor),
		Rdev: unix.Mkdev(d.RdevMajor, d.RdevMinor),
	}
}

const (
	errStoreDisabled = busName + ".FileDescriptorStoreDisabled"
	errNoSuchUnit    = busName + ".NoSuchUnit"
	errUnknownObject = "org.freedesktop.DBus.Error.UnknownObject"
)

// dump reads the stores of units, and returns those that are not empty.
func (m *Manager) dump(ctx context.Context, units []string) ([]Store, error) {
	calls := make([]call, len(units))
	lists := make([][]dumped, len(units))
	for i, unit := range units {
		calls[i] = call{path: managerPath, method: managerInterface + ".DumpUnitFileDescriptorStore",
			args: []any{unit}, reply: []any{&lists[i]}}
	}
	if err := m.batch(ctx, calls); err != nil {
		return nil, fmt.Errorf("read the fd stores: %w", err)
	}
	var stores []Store
	var failed []error
	for i, unit := range units {
		if err := calls[i].err; err != nil && !isAnswer(err, errStoreDisabled, errNoSuchUnit) {
			failed = append(failed, fmt.Errorf("read the fd store of %s: %w", unit, err))
		}
		if len(lists[i]) == 0 {
			continue
		}
		store := Store{Unit: unit, Entries: make([]Entry, len(lists[i]))}
		for j := range lists[i] {
			store.Entries[j] = lists[i][j].entry()
		}
		stores = append(stores, store)
	}
	return stores, errors.Join(failed...)
}

// describe fills in who the stores' units are and what they say of the store.
func (m *Manager) describe(ctx context.Context, stores []Store) error {
	return m.properties(ctx, stores, func(s *Store, get func(iface, name string, dest any)) {
		get(serviceInterface, "FileDescriptorStorePreserve", &s.Preserve)
		get(serviceInterface, "User", &s.User)
		get(serviceInterface, "Group", &s.Group)
		get(unitInterface, "FragmentPath", &s.FragmentPath)
	})
}

// properties reads properties of the stores' units in one batch.
func (m *Manager) properties(ctx context.Context, stores []Store, want func(s *Store, get func(iface, name string, dest any))) error {
	var calls []call
	var units []string
	for i := range stores {
		path := unitPath(stores[i].Unit)
		want(&stores[i], func(iface, name string, dest any) {
			calls = append(calls, call{path: path, method: getProperty, args: []any{iface, name}, reply: []any{dest}})
			units = append(units, stores[i].Unit)
		})
	}
	if err := m.batch(ctx, calls); err != nil {
		return fmt.Errorf("read the properties of units: %w", err)
	}
	var failed []error
	for i := range calls {
		if err := calls[i].err; err != nil && !isAnswer(err, errUnknownObject) {
			failed = append(failed, fmt.Errorf("read the property %s of %s: %w", calls[i].args[1], units[i], err))
		}
	}
	return errors.Join(failed...)
}

// isAnswer tells whether err is one of the named errors of PID 1.
func isAnswer(err error, names ...string) bool {
	var answer dbus.Error
	return errors.As(err, &answer) && slices.Contains(names, answer.Name)
}

// unitPath is the object path of a unit, whether it is loaded or not
// (unit_dbus_path_from_name in src/basic/unit-name.c).
func unitPath(unit string) dbus.ObjectPath {
	const prefix = managerPath + "/unit/"
	var b strings.Builder
	b.WriteString(string(prefix))
	for i := range len(unit) {
		c := unit[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if letter || i > 0 && c >= '0' && c <= '9' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "_%02x", c)
		}
	}
	return dbus.ObjectPath(b.String())
}
