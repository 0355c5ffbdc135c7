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
// goroutines; each is bounded by CallTimeout a round besides its context, and
// has an error that answers errors.Is for ErrManager when PID 1 did not answer.
type Reader struct {
	// Socket is PrivateSocket but in tests.
	Socket string
}

// ask makes one round of calls.
func (r *Reader) ask(ctx context.Context, calls []bulk.Call) error {
	if len(calls) == 0 {
		return nil
	}
	ctx, stop := context.WithTimeout(ctx, CallTimeout)
	defer stop()
	conn, err := bulk.Dial(ctx, r.Socket)
	if err == nil {
		err = errors.Join(conn.Do(ctx, calls), conn.Close())
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrManager, err)
	}
	return nil
}

// Stores returns, sorted by name, the stores of all loaded services that hold
// at least one fd. It asks PID 1 in three rounds, whatever their number.
//
// A store that could not be read is left out, and a property that could not be
// is empty; both are part of the error, which can come together with stores.
// With ErrManager there are none.
func (r *Reader) Stores(ctx context.Context) ([]Store, error) {
	services, err := r.services(ctx, []string{"*.service"})
	if err != nil {
		return nil, err
	}
	stores, err := r.dump(ctx, services)
	if errors.Is(err, ErrManager) {
		return nil, err
	}
	failed := r.properties(ctx, stores, func(s *Store, get func(iface, name string, dest any)) {
		get(serviceInterface, "FileDescriptorStorePreserve", &s.Preserve)
		get(serviceInterface, "User", &s.User)
		get(serviceInterface, "Group", &s.Group)
		get(unitInterface, "FragmentPath", &s.FragmentPath)
	})
	if errors.Is(failed, ErrManager) {
		return nil, failed
	}
	return stores, errors.Join(err, failed)
}

// Entries returns what is in one unit's store now.
func (r *Reader) Entries(ctx context.Context, unit string) ([]Entry, error) {
	stores, err := r.dump(ctx, []string{unit})
	if err != nil || len(stores) == 0 {
		return nil, err
	}
	return stores[0].Entries, nil
}

// Stored returns how many fds are in each of the stores of units now, in one
// round.
func (r *Reader) Stored(ctx context.Context, units []string) (map[string]int, error) {
	stores, err := r.dump(ctx, units)
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
func (r *Reader) OptedIn(ctx context.Context, units []string) ([]Store, error) {
	patterns := []string{"*.service"}
	if units != nil {
		patterns = nil
		for _, unit := range units { // fnmatch(3) takes a backslash for its own
			patterns = append(patterns, strings.ReplaceAll(unit, `\`, `\\`))
		}
	}
	loaded, err := r.services(ctx, patterns)
	if err != nil {
		return nil, err
	}
	stores := make([]Store, len(loaded))
	for i, unit := range loaded {
		stores[i].Unit = unit
	}
	err = r.properties(ctx, stores, func(s *Store, get func(iface, name string, dest any)) {
		get(serviceInterface, "FileDescriptorStorePreserve", &s.Preserve)
		get(serviceInterface, "FileDescriptorStoreMax", &s.Max)
	})
	return slices.DeleteFunc(stores, func(s Store) bool { return !s.OptedIn() }), err
}

// services lists the names of the loaded services that match one of patterns.
func (r *Reader) services(ctx context.Context, patterns []string) ([]string, error) {
	var names []string
	calls := []bulk.Call{{
		Path: managerPath, Interface: managerInterface, Member: "ListUnitsByPatterns",
		Args: []any{[]string(nil), patterns}, Signature: "a(ssssssouso)",
		Read: func(b *bulk.Reader) {
			b.Structs(func() {
				name, _, load := b.Text(), b.Text(), b.Text()
				for range 4 { // active state, sub state, following, path
					b.Text()
				}
				b.Uint32() // job: id, type, path
				b.Text()
				b.Text()
				if load == "loaded" {
					names = append(names, name)
				}
			})
		},
	}}
	if err := errors.Join(r.ask(ctx, calls), calls[0].Err); err != nil {
		return nil, fmt.Errorf("list the services: %w", err)
	}
	slices.Sort(names)
	return names, nil
}

const (
	errStoreDisabled = busName + ".FileDescriptorStoreDisabled"
	errNoSuchUnit    = busName + ".NoSuchUnit"
	errUnknownObject = "org.freedesktop.DBus.Error.UnknownObject"
)

// dump reads the stores of units, and returns those that are not empty.
func (r *Reader) dump(ctx context.Context, units []string) ([]Store, error) {
	calls := make([]bulk.Call, len(units))
	read := make([]Store, len(units))
	for i, unit := range units {
		store := &read[i]
		store.Unit = unit
		calls[i] = bulk.Call{
			Path: managerPath, Interface: managerInterface, Member: "DumpUnitFileDescriptorStore",
			Args: []any{unit}, Signature: "a(suuutuusu)",
			Read: func(b *bulk.Reader) {
				b.Structs(func() { store.Entries = append(store.Entries, readEntry(b)) })
			},
		}
	}
	if err := r.ask(ctx, calls); err != nil {
		return nil, fmt.Errorf("read the fd stores: %w", err)
	}
	var failed []error
	stores := read[:0]
	for i := range calls {
		if err := calls[i].Err; err != nil && !isAnswer(err, errStoreDisabled, errNoSuchUnit) {
			failed = append(failed, fmt.Errorf("read the fd store of %s: %w", read[i].Unit, err))
		} else if len(read[i].Entries) > 0 {
			stores = append(stores, read[i])
		}
	}
	return stores, errors.Join(failed...)
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

// properties reads properties of the stores' units, strings and numbers, in one
// round.
func (r *Reader) properties(ctx context.Context, stores []Store, want func(s *Store, get func(iface, name string, dest any))) error {
	var calls []bulk.Call
	var what []string
	for i := range stores {
		path := unitPath(stores[i].Unit)
		want(&stores[i], func(iface, name string, dest any) {
			calls = append(calls, bulk.Call{
				Path: path, Interface: "org.freedesktop.DBus.Properties", Member: "Get",
				Args: []any{iface, name}, Signature: "v", Read: func(b *bulk.Reader) { readValue(b, dest) },
			})
			what = append(what, name+" of "+stores[i].Unit)
		})
	}
	if err := r.ask(ctx, calls); err != nil {
		return fmt.Errorf("read the properties of units: %w", err)
	}
	var failed []error
	for i := range calls {
		if err := calls[i].Err; err != nil && !isAnswer(err, errUnknownObject) {
			failed = append(failed, fmt.Errorf("read the property %s: %w", what[i], err))
		}
	}
	return errors.Join(failed...)
}

func readValue(b *bulk.Reader, dest any) {
	switch dest := dest.(type) {
	case *string:
		b.Variant("s")
		*dest = b.Text()
	case *uint32:
		b.Variant("u")
		*dest = b.Uint32()
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
