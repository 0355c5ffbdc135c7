// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"maps"
	"sync"
)

// Ahead is a Reader that looks at the stores of services that have stopped while others
// still stop, so that little is left to be asked when all have.
type Ahead struct {
	*Reader
	mu   sync.Mutex
	seen map[string]*sighting // by unit
}

// sighting is a store of a service that has stopped, in one version. As
// long as it has that, nothing of the service has run that could change it.
type sighting struct {
	store   *Store
	version version
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
		return q.ask(ctx, asker, func(s *Store) {
			if !q.failed[s] {
				a.add(&sighting{s, *versions[s]})
			}
		})
	})
}

// EachStore is that of Reader, but that stores which are to be looked at again come last.
func (a *Ahead) EachStore(ctx context.Context, each func(s *Store)) error {
	return a.eachStore(ctx, a.sightings(), each)
}

func (a *Ahead) add(s *sighting) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.seen == nil {
		a.seen = map[string]*sighting{}
	}
	a.seen[s.store.Unit] = s
}

func (a *Ahead) sightings() map[string]*sighting {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.seen)
}
