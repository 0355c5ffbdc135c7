// SPDX-License-Identifier: Apache-2.0

package units

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// stateDir is where PID 1 and its generators write the units of this boot.
	stateDir      = "/run/systemd"
	transientDir  = "transient"
	generatorName = "generator"
)

// Watcher tells of what PID 1 loads that no unit file on disk tells of, and of
// its reloads, by the files that it writes for them: below stateDir, a file in
// "transient" for each transient unit, and "generator" anew for each reload
// (lookup_paths_mkdir_generator in src/libsystemd/sd-path/path-lookup.c,
// systemd 257). PID 1 need not be connected to for this.
type Watcher struct {
	dir   string
	watch *inotify
	// transient is the watch on the directory of transient units, -1 before
	// that is there.
	transient int
}

// NewWatcher watches root+"/run/systemd"; root is empty but in tests. The
// caller closes the Watcher.
func NewWatcher(root string) (*Watcher, error) {
	watch, err := newInotify()
	if err != nil {
		return nil, fmt.Errorf("watch for new units: %w", err)
	}
	w := &Watcher{dir: root + stateDir, watch: watch, transient: -1}
	if _, err = watch.add(w.dir, unix.IN_CREATE|unix.IN_MOVED_TO); err == nil {
		err = w.watchTransient()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s for new units: %w", w.dir, err), w.Close())
	}
	return w, nil
}

// Close ends the Watcher, and a Next that waits.
func (w *Watcher) Close() error { return w.watch.Close() }

func (w *Watcher) watchTransient() (err error) {
	w.transient, err = w.watch.add(filepath.Join(w.dir, transientDir), unix.IN_CREATE|unix.IN_MOVED_TO)
	if errors.Is(err, fs.ErrNotExist) {
		w.transient, err = -1, nil
	}
	return err
}

// Next waits for news: the names of transient services, or that everything has
// to be looked at again, as after a reload. PID 1 may not have loaded the units
// yet, but has by the time that it answers a question asked now. It returns an
// error that answers errors.Is for os.ErrClosed after Close.
func (w *Watcher) Next() (services []string, all bool, err error) {
	for len(services) == 0 && !all {
		var failed error
		err := w.watch.next(func(e inotifyEvent) {
			service, everything, err := w.event(e)
			if service != "" {
				services = append(services, service)
			}
			all, failed = all || everything, errors.Join(failed, err)
		})
		if err = errors.Join(err, failed); err != nil {
			return nil, false, fmt.Errorf("watch for new units: %w", err)
		}
	}
	return services, all, nil
}

func (w *Watcher) event(e inotifyEvent) (service string, all bool, err error) {
	switch {
	case e.mask&unix.IN_Q_OVERFLOW != 0:
		return "", true, nil
	case e.watch == w.transient:
		if strings.HasSuffix(e.name, ".service") {
			return e.name, false, nil
		}
	case e.name == generatorName:
		return "", true, nil
	case e.name == transientDir: // what is in it already is seen by looking at all
		return "", true, w.watchTransient()
	}
	return "", false, nil
}
