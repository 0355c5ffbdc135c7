// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"maps"
	"slices"
	"sync"
)

// Ahead is a Reader that looks at the stores of services that have stopped while others
// still stop, and duplicates what is in them, so that little is left to do when all have.
type Ahead struct {
	*Reader
	// Open opens the Duplicator of PID 1.
	Open func() (*Duplicator, error)
	mu   sync.Mutex
	seen map[string]*sighting // by unit
	// carries is what Carries returns, nil until it is known.
	carries *bool
}

// sighting is a store of a service that has stopped, as it was in one version. As
// long as it has that, nothing of the service has run that could change it.
type sighting struct {
	store   *Store
	version version
	files   []*File // those of the entries, nil when they are not duplicated
	taken   bool    // by Files
}

// version is what changes with a store, for a service that has stopped.
type version struct {
	since  uint64 // when its unit's state has changed last, by CLOCK_MONOTONIC in microseconds
	stored uint32 // how many fds there are in it
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
	seen := a.sightings()
	return a.connected(ctx, func(ctx context.Context, asker asker) error {
		services, err := asker.services(ctx, []string{"*.service"})
		if err != nil {
			return err
		}
		var q questions
		versions := map[*Store]*version{}
		for _, service := range services {
			if service.dead() || !service.stopped() || seen[service.name] != nil {
				continue
			}
			s := &Store{Unit: service.name, Kept: true}
			versions[s] = q.version(s) // before the rest: what changes meanwhile is seen later
			q.all(s, a.Known)
		}
		found := make(chan *sighting, len(versions))
		var work sync.WaitGroup
		defer work.Wait()
		defer close(found)
		work.Go(func() { a.duplicate(ctx, found) })
		return q.ask(ctx, asker, func(s *Store) {
			if !q.failed[s] {
				found <- a.add(&sighting{store: s, version: *versions[s]})
			}
		})
	})
}

// duplicate duplicates what is in the stores that come, until ctx ends. What it cannot is
// left to a Duplicator that all stores are known to.
func (a *Ahead) duplicate(ctx context.Context, found <-chan *sighting) {
	var d *Duplicator
	var err error
	for s := range found {
		if ctx.Err() != nil || err != nil || len(s.store.Entries) == 0 {
			continue
		}
		if d == nil {
			if d, err = a.OpenDuplicator(); err != nil {
				continue
			}
			defer func() { _ = d.Close() }() // it was only read from
		}
		files := d.certain(s.store.Entries)
		a.mu.Lock()
		s.files = files
		a.mu.Unlock()
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

// Close closes what Files has not given.
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

// EachStore is that of Reader, but that stores which have changed since they were seen
// come last.
func (a *Ahead) EachStore(ctx context.Context, each func(s *Store)) error {
	return a.eachStore(ctx, a, each)
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

// sightings is nothing for those who have not looked ahead.
func (a *Ahead) sightings() map[string]*sighting {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.seen)
}
