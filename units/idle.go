// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// StartsDir is where PID 1 leaves a link for each unit that it starts, before
	// the first process of that, with the ID of the invocation for its target
	// (unit_export_invocation_id in src/core/unit.c, systemd 254).
	StartsDir   = "/run/systemd/units"
	startPrefix = "invocation:"
)

// Idle are units that were idle, as Reader.Idle says, and how often each was started
// since. A nil one has none.
type Idle struct {
	dir string

	mu     sync.Mutex
	watch  *inotify       // nil when no unit is left
	starts map[string]int // by unit, of those that are left
}

// WatchIdle returns the units that find finds idle, nil without any; dir is StartsDir but in tests.
// find is called when starts are counted already, so that none is missed. The
// error is that of find, or says why dir cannot be watched. The caller closes it.
func WatchIdle(dir string, find func() (map[string]bool, error)) (idle *Idle, err error) {
	i := &Idle{dir: dir, starts: map[string]int{}}
	if i.watch, err = newInotify(); err != nil {
		return nil, fmt.Errorf("count the starts of units: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, i.Close())
		}
	}()
	if _, err := i.watch.add(dir, unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		return nil, fmt.Errorf("count the starts of units in %s: %w", dir, err)
	}
	found, err := find()
	if err != nil {
		return nil, err
	}
	for unit, is := range found {
		if is {
			i.starts[unit] = 0
		}
	}
	if len(i.starts) == 0 {
		return nil, i.Close()
	}
	return i, nil
}

// Close has First say no from then on.
func (i *Idle) Close() error {
	if i == nil {
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.close()
}

func (i *Idle) close() error {
	if i.watch == nil {
		return nil
	}
	err := i.watch.Close()
	i.watch, i.starts = nil, nil
	return err
}

// First tells whether a unit that has been started in this invocation was idle until
// then; it says so once. After an error it says no.
//
// A restart with RestartMode=direct leaves the link as it is, so that neither their
// number nor what the link says is enough.
func (i *Idle) First(unit, invocation string) (first bool, err error) {
	if i == nil {
		return false, nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, left := i.starts[unit]; !left {
		return false, nil
	}
	if err := i.count(); err != nil {
		return false, errors.Join(fmt.Errorf("count the starts of units in %s: %w", i.dir, err), i.close())
	}
	starts := i.starts[unit]
	delete(i.starts, unit)
	if len(i.starts) == 0 {
		err = i.close()
	}
	if starts != 1 {
		return false, err
	}
	started, failed := os.Readlink(filepath.Join(i.dir, startPrefix+unit))
	if errors.Is(failed, fs.ErrNotExist) { // it has been stopped
		failed = nil
	}
	return started == invocation && started != "", errors.Join(err, failed)
}

// count takes note of what has been started until now.
func (i *Idle) count() error {
	return i.watch.drain(func(e inotifyEvent) {
		if e.name == "" { // events were lost, or the directory
			clear(i.starts)
		}
		unit, is := strings.CutPrefix(e.name, startPrefix)
		if n, left := i.starts[unit]; is && left {
			i.starts[unit] = n + 1
		}
	})
}

// Idle returns those among units that are stopped and have nothing in their
// stores, which is then so until they are started. A unit that is not loaded is
// idle, too. The error is ErrManager when PID 1 does not answer.
//
// One question is enough: a service that is stopped and has something in its
// store is in another state than one that has not (service_determine_dead_state
// in src/core/service.c, systemd 254).
func (r *Reader) Idle(ctx context.Context, units []string) (map[string]bool, error) {
	idle := map[string]bool{}
	if len(units) == 0 {
		return idle, nil
	}
	for _, unit := range units {
		idle[unit] = true
	}
	err := r.connected(ctx, func(ctx context.Context, a asker) error {
		// All: PID 1 would compare each of its units with each name.
		services, err := a.services(ctx, []string{"*.service"})
		for _, service := range services {
			if !service.dead() {
				delete(idle, service.name)
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return idle, nil
}
