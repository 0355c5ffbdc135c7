// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

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
	loaded uint64               // when PID 1 had loaded its units that were seen, as moment.loaded
	// carries is what Carries returns, nil until it is known.
	carries *bool
}

// sighting is a store of a service that had stopped, and of which no process was left, nor
// a job that would start one. Up to the next job, or as long as its state does not change,
// it has no process that could change the store. PID 1 itself drops fds that hang up, which
// regular files never do, and changes the state when it cleans a store.
type sighting struct {
	store *Store
	at    uint64  // before PID 1 was asked for it, by CLOCK_MONOTONIC in microseconds
	jobs  uint32  // moment.jobs of then
	files []*File // those of the entries, nil when they are not duplicated
	taken bool    // by Files
}

// moment is what PID 1 says of itself and of its services.
type moment struct {
	loaded   uint64 // when it has loaded its units, by CLOCK_MONOTONIC in microseconds
	jobs     uint32 // how many jobs it has ever had, without which nothing is started; 0: not known
	services []loaded
}

// now asks for the moment, and forgets all sightings when PID 1 has loaded its units anew:
// that turns stores round, its fds may have other numbers, and units another User=.
func (a *Ahead) now(ctx context.Context, asker asker) (now moment, err error) {
	var version string
	calls := []bulk.Call{
		managerProperty("UnitsLoadTimestampMonotonic", &now.loaded),
		managerProperty("NInstalledJobs", &now.jobs),
		managerProperty("Version", &version),
		listServices([]string{"*.service"}, &now.services), // behind the jobs: one that comes meanwhile is seen later
	}
	if err := asker.calls(ctx, calls, nil); err != nil {
		return now, fmt.Errorf("read what the services are: %w", err)
	}
	if err := calls[3].Err; err != nil {
		return now, fmt.Errorf("list the services: %w", err)
	}
	if unknown := calls[0].Err != nil; unknown || now.loaded != a.loaded {
		a.Close() // if it is not known, all is read in the end
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.loaded = now.loaded
	if calls[2].Err == nil {
		carries := carries(version)
		a.carries = &carries
	}
	return now, nil
}

// Look looks at the stores of services that have stopped and that it has not seen yet.
// What it has seen when there is an error is of use nevertheless.
func (a *Ahead) Look(ctx context.Context) error {
	return a.connected(ctx, func(ctx context.Context, asker asker) error {
		now, err := a.now(ctx, asker)
		if err != nil {
			return err
		}
		at, err := monotonic()
		if err != nil {
			return err
		}
		seen := a.sightings()
		var q questions
		cgroups := map[*Store]*string{}
		for _, service := range now.services {
			if !service.rests() {
				continue
			}
			if seen[service.name] != nil {
				delete(seen, service.name)
			} else {
				s := &Store{Unit: service.name, Kept: true}
				cgroups[s] = new(string)
				q.property(s, serviceInterface, "ControlGroup", cgroups[s])
				q.all(s, a.Known)
			}
		}
		for _, old := range seen { // they are not what they were any more
			a.forget(old)
		}
		found := make(chan *sighting, len(cgroups))
		var work sync.WaitGroup
		defer work.Wait()
		defer close(found)
		work.Go(func() { a.duplicate(ctx, found) })
		return q.ask(ctx, asker, func(s *Store) {
			if !q.failed[s] && *cgroups[s] == "" { // then no process belongs to it
				found <- a.add(&sighting{store: s, at: at, jobs: now.jobs})
			}
		})
	})
}

// monotonic is the time by which PID 1 says when something has changed.
func monotonic() (microseconds uint64, err error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	return uint64(now.Nano() / 1000), nil
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
		now, err := a.now(ctx, asker)
		if err != nil {
			return err
		}
		same, err := a.same(ctx, asker, now, foretold, each)
		if err != nil {
			return err
		}
		sure = true
		rest := slices.DeleteFunc(now.services, func(s loaded) bool { return same[s.name] })
		return a.tell(ctx, asker, rest, each)
	})
	if !sure && err != nil && !errors.Is(err, ErrStale) {
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
func (a *Ahead) same(ctx context.Context, asker asker, now moment, foretold []*sighting, each func(s *Store)) (same map[string]bool, err error) {
	err = a.recheck(ctx, asker, now)
	left := a.sightings()
	same = map[string]bool{}
	for unit := range left {
		same[unit] = true
	}
	var stale error
	for _, s := range foretold {
		if unit := s.store.Unit; left[unit] != s && stale == nil {
			stale = fmt.Errorf("%s: %w", unit, ErrStale)
		}
		delete(left, s.store.Unit)
	}
	if stale != nil || errors.Is(err, ErrManager) {
		return nil, errors.Join(stale, err)
	}
	for _, unit := range slices.Sorted(maps.Keys(left)) {
		if old := left[unit]; len(old.store.Entries) > 0 {
			each(old.store)
		}
	}
	return same, nil // of what could not be told the stores are read again
}

// recheck forgets the sightings that are not known to be as they were. PID 1 is asked about
// those alone since which it has had more jobs, and those that it may have dropped fds of.
func (a *Ahead) recheck(ctx context.Context, asker asker, now moment) error {
	rests := map[string]bool{}
	for i := range now.services {
		rests[now.services[i].name] = now.services[i].rests()
	}
	var q questions
	type answer struct {
		old    *sighting
		since  uint64 // when the unit's state has changed last; 0: never since it was loaded
		stored uint32 // how many fds there are in the store
	}
	answers := map[*Store]*answer{}
	seen := a.sightings()
	for _, unit := range slices.Sorted(maps.Keys(seen)) {
		s := seen[unit]
		if !rests[unit] {
			a.forget(s)
			continue
		}
		asked := &answer{old: s, since: 1, stored: uint32(len(s.store.Entries))} // as it is when nothing has changed
		answers[s.store] = asked
		if now.jobs == 0 || now.jobs != s.jobs {
			asked.since = 0
			q.property(s.store, unitInterface, "StateChangeTimestampMonotonic", &asked.since)
		}
		if s.files == nil && asked.stored > 0 {
			q.property(s.store, serviceInterface, "NFileDescriptorStore", &asked.stored)
		}
	}
	return q.ask(ctx, asker, func(s *Store) {
		now := answers[s]
		if q.failed[s] || now.since == 0 || now.since >= now.old.at || int(now.stored) != len(s.Entries) {
			a.forget(now.old)
		}
	})
}

// sightings returns the sightings, by their units' names.
func (a *Ahead) sightings() map[string]*sighting {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.seen)
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

// Carries is that of Reader, and asks unless Look or EachStore has brought it along.
func (a *Ahead) Carries(ctx context.Context) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.carries == nil {
		found, err := a.Reader.Carries(ctx)
		if err != nil {
			return false, err
		}
		a.carries = &found
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
