// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/fdbridge/fdbridge/units/bulk"
)

// Ahead is a Reader that looks at the stores of services that have stopped while others
// still stop, and duplicates what is in those that have nothing but regular files, as
// memfds are, so that little is left to do when all have.
type Ahead struct {
	*Reader
	// Open opens the Duplicator of PID 1.
	Open func() (*Duplicator, error)
	// Excluded tells of units for whose stores Files will not be asked.
	Excluded func(unit string) bool
	// Seen, unless it is nil, is called by Look with each store whose files were duplicated,
	// which stay the Ahead's.
	Seen func(s *Store, files []*File)

	mu     sync.Mutex
	seen   map[string]*sighting // by unit
	loaded uint64               // when PID 1 had loaded its units that were seen, as version.since
	// carries is what Carries returns, nil until it is known.
	carries *bool
}

// sighting is a store of a service that has stopped, and of which no process was left, as
// it was in one version. As long as it has that, nothing of the service has run that could
// change it: it gets no process before its state changes, so that its cgroup need not be
// looked at again.
type sighting struct {
	store   *Store
	version version
	files   []*File // those of the entries, nil when they are not duplicated
	taken   bool    // by Files
}

// version is what changes with a store.
type version struct {
	since  uint64 // when its unit's state has changed last, by CLOCK_MONOTONIC in microseconds
	stored uint32 // how many fds there are in it: PID 1 drops those that hang up, and all when it is cleaned
}

// version asks for a store's version.
func (q *questions) version(s *Store) *version {
	v := &version{}
	q.property(s, unitInterface, "StateChangeTimestampMonotonic", &v.since)
	q.property(s, serviceInterface, "NFileDescriptorStore", &v.stored)
	return v
}

// Look looks at the stores of services that have stopped and that it has not seen yet.
// What it has seen when there is an error is of use nevertheless.
func (a *Ahead) Look(ctx context.Context) error {
	return a.connected(ctx, func(ctx context.Context, asker asker) error {
		services, err := asker.services(ctx, []string{"*.service"})
		if err != nil {
			return err
		}
		if err := a.still(ctx, asker); err != nil {
			return err
		}
		seen := a.sightings()
		var q questions
		versions, cgroups := map[*Store]*version{}, map[*Store]*string{}
		for _, service := range services {
			old, kept := seen[service.name], service.stopped() && !service.dead()
			switch {
			case old != nil && kept:
				delete(seen, service.name)
			case old == nil && kept:
				s := &Store{Unit: service.name, Kept: true}
				versions[s], cgroups[s] = q.version(s), new(string) // before the rest: what changes meanwhile is seen later
				q.property(s, serviceInterface, "ControlGroup", cgroups[s])
				q.all(s, a.Known)
			}
		}
		for _, old := range seen { // they are not what they were any more
			a.forget(old)
		}
		found := make(chan *sighting, len(versions))
		var work sync.WaitGroup
		defer work.Wait()
		defer close(found)
		work.Go(func() { a.duplicate(ctx, found) })
		return q.ask(ctx, asker, func(s *Store) {
			if !q.failed[s] && *cgroups[s] == "" { // then no process belongs to it
				found <- a.add(&sighting{store: s, version: *versions[s]})
			}
		})
	})
}

// What EachStore has told of before it was known whether it is so still.
var (
	// ErrStale says that a store is not as it was seen ahead, or that PID 1 cannot say it.
	// Nothing that EachStore has told is to be relied upon; the next one reads what has
	// changed.
	ErrStale = errors.New("the store has changed after it was seen")
	// ErrUnsure says that PID 1 has not said of all of them that they are, and of none that
	// it is not.
	ErrUnsure = errors.New("it is not known whether the stores that were seen are still as they were")
)

// EachStore is that of Reader, but that those stores come first whose files are
// duplicated, as they were seen and before PID 1 is asked for anything. That each is so
// still is known when there is no error, or one that is neither ErrStale nor ErrUnsure. Each
// call has its own Files.
func (a *Ahead) EachStore(ctx context.Context, each func(s *Store)) error {
	foretold := a.foretold()
	for _, s := range foretold {
		each(s.store)
	}
	sure := len(foretold) == 0
	err := a.connected(ctx, func(ctx context.Context, asker asker) error {
		if err := a.still(ctx, asker); err != nil {
			return err
		}
		same, err := a.same(ctx, asker, foretold, each)
		if err != nil {
			return err
		}
		sure = true
		services, err := asker.services(ctx, []string{"*.service"})
		if err != nil {
			return err
		}
		rest := slices.DeleteFunc(services, func(s loaded) bool { return same[s.name] })
		return a.tell(ctx, asker, rest, each)
	})
	if !sure && errors.Is(err, ErrManager) && !errors.Is(err, ErrStale) {
		err = fmt.Errorf("%w: %w", ErrUnsure, err)
	}
	return err
}

// foretold returns the sightings whose files are duplicated, in the order of their units'
// names, and forgets those whose files were taken.
func (a *Ahead) foretold() (found []*sighting) {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.seen, func(_ string, s *sighting) bool { return s.taken })
	for _, unit := range slices.Sorted(maps.Keys(a.seen)) {
		if s := a.seen[unit]; s.files != nil {
			found = append(found, s)
		}
	}
	return found
}

// same looks whether the stores are as they were seen, and forgets those that are not;
// that is ErrStale if any was foretold. It tells of the others when it is known of all: a
// Duplicator that is opened then leaves what it has to leave, and nothing else.
func (a *Ahead) same(ctx context.Context, asker asker, foretold []*sighting, each func(s *Store)) (same map[string]bool, err error) {
	seen := a.sightings()
	same = map[string]bool{}
	var q questions
	versions := map[*Store]*version{}
	for _, unit := range slices.Sorted(maps.Keys(seen)) {
		s := &Store{Unit: unit}
		versions[s] = q.version(s)
	}
	err = q.ask(ctx, asker, func(s *Store) {
		old := seen[s.Unit]
		if same[s.Unit] = !q.failed[s] && *versions[s] == old.version; !same[s.Unit] {
			a.forget(old)
		}
	})
	now := a.sightings()
	var stale error
	for _, s := range foretold {
		if unit := s.store.Unit; now[unit] != s && stale == nil {
			stale = fmt.Errorf("%s: %w", unit, ErrStale)
		}
		delete(now, s.store.Unit)
	}
	if stale != nil || errors.Is(err, ErrManager) {
		return nil, errors.Join(stale, err)
	}
	for _, unit := range slices.Sorted(maps.Keys(now)) {
		if old := now[unit]; len(old.store.Entries) > 0 {
			each(old.store)
		}
	}
	return same, nil // of what could not be told the stores are read again
}

// sightings returns the sightings, by their units' names.
func (a *Ahead) sightings() map[string]*sighting {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.seen)
}

// still forgets all sightings when PID 1 has loaded its units anew: that turns stores
// round, its fds may have other numbers, and units another User=.
func (a *Ahead) still(ctx context.Context, asker asker) error {
	var loaded uint64
	calls := []bulk.Call{getProperty(managerPath, managerInterface, "UnitsLoadTimestampMonotonic", func(b *bulk.Reader) { readValue(b, &loaded) })}
	if err := asker.calls(ctx, calls, nil); err != nil {
		return fmt.Errorf("read when the units were loaded: %w", err)
	}
	if unknown := calls[0].Err != nil; unknown || loaded != a.loaded {
		a.Close() // if it is not known, all is read in the end
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.loaded = loaded
	return nil
}

// duplicate duplicates what is in the stores that come, and does not begin when ctx has
// ended: up to then PID 1's fds are looked at once for all, after it once more for those
// that are left. What is no regular file, or one of several that are the same, is left to
// a Duplicator that all stores are known to.
func (a *Ahead) duplicate(ctx context.Context, found <-chan *sighting) {
	var d *Duplicator
	var err error
	for s := range found {
		entries := s.store.Entries
		if len(entries) == 0 || slices.ContainsFunc(entries, func(e Entry) bool { return !e.regular() }) || a.Excluded(s.store.Unit) {
			continue
		}
		if d == nil && ctx.Err() != nil || err != nil {
			continue
		}
		if d == nil {
			if d, err = a.OpenDuplicator(); err != nil {
				continue
			}
			defer func() { _ = d.Close() }() // it was only read from
		}
		files := d.certain(entries)
		a.mu.Lock()
		s.files = files
		a.mu.Unlock()
		if files != nil && a.Seen != nil && ctx.Err() == nil {
			a.Seen(s.store, files)
		}
	}
}

// OpenDuplicator opens a Duplicator that gives out nothing of what Files gives.
func (a *Ahead) OpenDuplicator() (*Duplicator, error) {
	d, err := a.Open()
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.seen {
		for _, f := range s.files {
			d.leave(f)
		}
	}
	return d, nil
}

// Carries is that of Reader, and asks once.
func (a *Ahead) Carries(ctx context.Context) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.carries == nil {
		carries, err := a.Reader.Carries(ctx)
		if err != nil {
			return false, err
		}
		a.carries = &carries
	}
	return *a.carries, nil
}

// Files returns what was duplicated of a store that EachStore has told of: a File for each
// entry, as it was then, see File.Renew; nil when that was not done. The caller owns them.
func (a *Ahead) Files(store *Store) []*File {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.seen[store.Unit]
	if s == nil || s.store != store || s.taken {
		return nil
	}
	s.taken = true
	return slices.Clone(s.files)
}

// Close closes what Files has not given, and forgets it.
func (a *Ahead) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.seen {
		s.close()
	}
	a.seen = nil
}

func (s *sighting) close() {
	if s.taken {
		return
	}
	for _, f := range s.files {
		_ = f.FD.Close() // PID 1 has it, too
	}
}

func (a *Ahead) add(s *sighting) *sighting {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.seen == nil {
		a.seen = map[string]*sighting{}
	}
	a.seen[s.store.Unit] = s
	return s
}

// forget forgets a sighting of what has changed.
func (a *Ahead) forget(s *sighting) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.close()
	delete(a.seen, s.store.Unit)
}
