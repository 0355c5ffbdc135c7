// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/units/bulk"
)

// Reader asks PID 1 about units and their stores. It connects anew each time
// and keeps no connection: see Manager. Its methods may be called from several
// goroutines; each is bounded by CallTimeout besides its context, and has an
// error that answers errors.Is for ErrManager when PID 1 did not answer.
type Reader struct {
	// Socket is PrivateSocket but in tests.
	Socket string
	// Known fills in FragmentPath, User and Group of a store when it knows
	// them; PID 1 is asked otherwise. nil knows none.
	Known func(s *Store) bool
}

// asker asks over one connection.
type asker struct{ conn *bulk.Conn }

// connected lets ask put questions over one connection.
func (r *Reader) connected(ctx context.Context, ask func(ctx context.Context, a asker) error) error {
	ctx, stop := context.WithTimeout(ctx, CallTimeout)
	defer stop()
	conn, err := bulk.Dial(ctx, r.Socket)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrManager, err)
	}
	defer func() { _ = conn.Close() }() // all that was to come has come
	return ask(ctx, asker{conn})
}

// calls makes calls, some at a time.
func (a asker) calls(ctx context.Context, calls []bulk.Call, answered func(i int)) error {
	if err := a.conn.Do(ctx, calls, answered); err != nil {
		return fmt.Errorf("%w: %w", ErrManager, err)
	}
	return nil
}

// EachStore calls each with the stores of all loaded services that hold at
// least one fd, in the order of their names, while PID 1 still answers about
// the next ones.
//
// A store that could not be read is left out, and a property that could not be
// is empty; both are part of the error. With ErrManager there were more stores
// than those that each was called with.
func (r *Reader) EachStore(ctx context.Context, each func(s *Store)) error {
	return r.connected(ctx, func(ctx context.Context, a asker) error {
		services, err := a.services(ctx, []string{"*.service"})
		if err != nil {
			return err
		}
		return r.tell(ctx, a, services, each)
	})
}

// tell is EachStore for services that are known to be loaded.
func (r *Reader) tell(ctx context.Context, a asker, services []loaded, each func(s *Store)) error {
	var q questions
	for _, service := range services {
		if !service.dead() {
			q.all(&Store{Unit: service.name, Kept: service.stopped()}, r.Known)
		}
	}
	return q.ask(ctx, a, func(s *Store) {
		if len(s.Entries) > 0 {
			each(s)
		}
	})
}

// Stores returns what EachStore calls its function with; nothing with
// ErrManager.
func (r *Reader) Stores(ctx context.Context) ([]Store, error) {
	var stores []Store
	err := r.EachStore(ctx, func(s *Store) { stores = append(stores, *s) })
	if errors.Is(err, ErrManager) {
		return nil, err
	}
	return stores, err
}

// Entries returns what is in one unit's store now.
func (r *Reader) Entries(ctx context.Context, unit string) ([]Entry, error) {
	var entries []Entry
	err := r.dumps(ctx, []string{unit}, func(s *Store) { entries = s.Entries })
	return entries, err
}

// Stored returns how many fds the units have in each of their stores now,
// without those that have none. Sessions do not count: systemd 262 makes those
// of LUOSession= before a unit runs, and 261 and later bring back what was stored.
func (r *Reader) Stored(ctx context.Context, units []string) (map[string]int, error) {
	stored := map[string]int{}
	err := r.dumps(ctx, units, func(s *Store) {
		for i := range s.Entries {
			if !s.Entries[i].Session() {
				stored[s.Unit]++
			}
		}
	})
	if errors.Is(err, ErrManager) {
		return nil, err
	}
	return stored, err
}

// dumps reads the stores of units.
func (r *Reader) dumps(ctx context.Context, units []string, each func(s *Store)) error {
	if len(units) == 0 {
		return nil
	}
	return r.connected(ctx, func(ctx context.Context, a asker) error {
		var q questions
		for _, unit := range units {
			q.dump(&Store{Unit: unit})
		}
		return q.ask(ctx, a, each)
	})
}

// OptedIn returns those among units that are loaded services and have opted in,
// of all loaded services when units is nil, sorted by name. Only their names and
// directives are filled in.
//
// A unit that is not loaded is not asked about: that would load it, for as
// long as nothing refers to it.
func (r *Reader) OptedIn(ctx context.Context, units []string) ([]Store, error) {
	patterns := []string{"*.service"}
	if units != nil {
		patterns = units // no name has what means more in a pattern
	}
	var stores []Store
	err := r.connected(ctx, func(ctx context.Context, a asker) error {
		services, err := a.services(ctx, patterns)
		if err != nil {
			return err
		}
		var q questions
		for _, service := range services {
			s := &Store{Unit: service.name}
			q.property(s, serviceInterface, "FileDescriptorStorePreserve", &s.Preserve)
			q.property(s, serviceInterface, "FileDescriptorStoreMax", &s.Max)
		}
		return q.ask(ctx, a, func(s *Store) {
			if s.OptedIn() {
				stores = append(stores, *s)
			}
		})
	})
	if errors.Is(err, ErrManager) {
		return nil, err
	}
	return stores, err
}

// loaded is a service that PID 1 knows and may have a store, its state, and the type of the
// job that it has, if any.
type loaded struct{ name, active, sub, job string }

// stopped tells whether nothing of the service runs.
func (s *loaded) stopped() bool { return s.active == "inactive" || s.active == "failed" }

// dead tells whether the service has stopped and PID 1 has let go of all that
// it kept for it, its store too: otherwise its state is dead-resources-pinned
// (service_determine_dead_state in src/core/service.c, systemd 254).
func (s *loaded) dead() bool { return s.active == "inactive" && s.sub == "dead" }

// rests tells whether the service has stopped and still has a store, or what else PID 1
// keeps for it, and no job that would start it.
func (s *loaded) rests() bool {
	return s.stopped() && !s.dead() && (s.job == "" || s.job == "stop")
}

// services lists the loaded services whose names match one of patterns, sorted.
func (a asker) services(ctx context.Context, patterns []string) ([]loaded, error) {
	var list []loaded
	calls := []bulk.Call{listServices(patterns, &list)}
	if err := errors.Join(a.calls(ctx, calls, nil), calls[0].Err); err != nil {
		return nil, fmt.Errorf("list the services: %w", err)
	}
	return list, nil
}

// listServices is the call that lists the loaded services whose names match one of
// patterns, sorted, in which a backslash stands for itself (FNM_NOESCAPE, unit_passes_filter in
// src/core/unit.c, systemd 257).
func listServices(patterns []string, list *[]loaded) bulk.Call {
	return bulk.Call{
		Path: managerPath, Interface: managerInterface, Member: "ListUnitsByPatterns",
		Args: []any{[]string(nil), patterns}, Signature: "a(ssssssouso)",
		Read: func(b *bulk.Reader) {
			b.Structs(func() {
				s := loaded{name: b.Text()}
				b.Text() // description
				load := b.Text()
				s.active, s.sub = b.Text(), b.Text()
				b.Text()   // following
				b.Text()   // path
				b.Uint32() // job: id, type, path
				s.job = b.Text()
				b.Text()
				// One whose file cannot be loaded any more may have its store all the same.
				if load == "loaded" || s.stopped() && !s.dead() {
					*list = append(*list, s)
				}
			})
			slices.SortFunc(*list, func(a, b loaded) int { return strings.Compare(a.name, b.name) })
		},
	}
}

const (
	errStoreDisabled = busName + ".FileDescriptorStoreDisabled"
	errNoSuchUnit    = busName + ".NoSuchUnit"
	errUnknownObject = "org.freedesktop.DBus.Error.UnknownObject"
)

// questions are what is to be asked about stores. Those about one store stand
// one after the other.
type questions struct {
	calls  []bulk.Call
	about  []about
	failed map[*Store]bool // those of which something could not be read
}

// about says what a call is about, and which of its errors are answers too. A
// failed call's undo takes back what was read before it failed.
type about struct {
	store *Store
	what  string
	fine  []string
	undo  func()
}

// all asks what EachStore tells of a store.
func (q *questions) all(s *Store, known func(s *Store) bool) {
	q.dump(s)
	if !s.Kept {
		q.property(s, serviceInterface, "FileDescriptorStorePreserve", &s.Preserve)
	}
	if known == nil || !known(s) {
		q.property(s, serviceInterface, "User", &s.User)
		q.property(s, serviceInterface, "Group", &s.Group)
		q.property(s, unitInterface, "FragmentPath", &s.FragmentPath)
	}
}

// dump asks what is in a store; nothing is where there is none.
func (q *questions) dump(s *Store) {
	q.calls = append(q.calls, bulk.Call{
		Path: managerPath, Interface: managerInterface, Member: "DumpUnitFileDescriptorStore",
		Args: []any{s.Unit}, Signature: "a(suuutuusu)",
		Read: func(b *bulk.Reader) {
			b.Structs(func() { s.Entries = append(s.Entries, readEntry(b)) })
		},
	})
	q.about = append(q.about, about{
		store: s, what: "fd store", fine: []string{errStoreDisabled, errNoSuchUnit},
		undo: func() { s.Entries = nil },
	})
}

// property asks for a property of a store's unit, which is a string or a
// number as dest is, and stays empty where the unit is gone.
func (q *questions) property(s *Store, iface, name string, dest any) {
	q.calls = append(q.calls, getProperty(unitPath(s.Unit), iface, name, func(b *bulk.Reader) { readValue(b, dest) }))
	q.about = append(q.about, about{store: s, what: "property " + name, fine: []string{errUnknownObject}, undo: func() {}})
}

// managerProperty is a call for a property of PID 1 itself, as property is for a unit's.
func managerProperty(name string, dest any) bulk.Call {
	return getProperty(managerPath, managerInterface, name, func(b *bulk.Reader) { readValue(b, dest) })
}

// getProperty is a call for a property, which read reads as a variant.
func getProperty(path, iface, name string, read func(b *bulk.Reader)) bulk.Call {
	return bulk.Call{
		Path: path, Interface: "org.freedesktop.DBus.Properties", Member: "Get",
		Args: []any{iface, name}, Signature: "v", Read: read,
	}
}

// ask puts the questions, and calls each with every store as soon as all has
// been answered about it. What could not be read is empty, and in the error.
func (q *questions) ask(ctx context.Context, a asker, each func(s *Store)) error {
	left := map[*Store]int{}
	q.failed = map[*Store]bool{}
	for i := range q.about {
		left[q.about[i].store]++
	}
	var failed []error
	err := a.calls(ctx, q.calls, func(i int) {
		about := &q.about[i]
		if err := q.calls[i].Err; err != nil && !isAnswer(err, about.fine...) {
			failed = append(failed, fmt.Errorf("read the %s of %s: %w", about.what, about.store.Unit, err))
			about.undo()
			q.failed[about.store] = true
		}
		left[about.store]--
		if left[about.store] == 0 {
			each(about.store)
		}
	})
	return errors.Join(append(failed, err)...)
}

// readEntry reads one element of what DumpUnitFileDescriptorStore returns
// (src/core/dbus-service.c, systemd 254 and later).
func readEntry(b *bulk.Reader) Entry {
	e := Entry{Name: b.Text(), Mode: b.Uint32()}
	major, minor := b.Uint32(), b.Uint32()
	e.Dev, e.Ino = unix.Mkdev(major, minor), b.Uint64()
	major, minor = b.Uint32(), b.Uint32()
	e.Rdev, e.Path, e.Flags = unix.Mkdev(major, minor), b.Text(), int(b.Uint32())
	return e
}

func readValue(b *bulk.Reader, dest any) {
	switch dest := dest.(type) {
	case *string:
		b.Variant("s")
		*dest = b.Text()
	case *uint32:
		b.Variant("u")
		*dest = b.Uint32()
	case *uint64:
		b.Variant("t")
		*dest = b.Uint64()
	case *[]string:
		b.Variant("as")
		*dest = b.Texts()
	}
}

// isAnswer tells whether err is one of the named errors of PID 1.
func isAnswer(err error, names ...string) bool {
	var answer *bulk.Error
	return errors.As(err, &answer) && slices.Contains(names, answer.Name)
}

// unitPath is the object path of a unit, whether it is loaded or not
// (unit_dbus_path_from_name in src/basic/unit-def.c).
func unitPath(unit string) string {
	var b strings.Builder
	b.WriteString(managerPath + "/unit/")
	for i := range len(unit) {
		c := unit[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if letter || i > 0 && c >= '0' && c <= '9' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "_%02x", c)
		}
	}
	return b.String()
}
