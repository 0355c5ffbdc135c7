// SPDX-License-Identifier: Apache-2.0

package units

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
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
	dir  string
	file *os.File // an inotify descriptor, served by the runtime's poller
	raw  int
	// transient is the watch on the directory of transient units, -1 before
	// that is there.
	transient int
}

// NewWatcher watches root+"/run/systemd"; root is empty but in tests. The
// caller closes the Watcher.
func NewWatcher(root string) (*Watcher, error) {
	raw, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch for new units: %w", err)
	}
	w := &Watcher{dir: root + stateDir, raw: raw, file: os.NewFile(uintptr(raw), "inotify"), transient: -1}
	if _, err = unix.InotifyAddWatch(raw, w.dir, unix.IN_CREATE|unix.IN_MOVED_TO); err == nil {
		err = w.watchTransient()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s for new units: %w", w.dir, err), w.Close())
	}
	return w, nil
}

// Close ends the Watcher, and a Next that waits.
func (w *Watcher) Close() error { return w.file.Close() }

func (w *Watcher) watchTransient() (err error) {
	w.transient, err = unix.InotifyAddWatch(w.raw, filepath.Join(w.dir, transientDir), unix.IN_CREATE|unix.IN_MOVED_TO)
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
	buffer := make([]byte, 64<<10)
	for len(services) == 0 && !all {
		n, err := w.file.Read(buffer)
		if err != nil {
			return nil, false, fmt.Errorf("watch for new units: %w", err)
		}
		for events := buffer[:n]; len(events) >= unix.SizeofInotifyEvent; {
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[12:]))
			service, everything, err := w.event(events[:size])
			if err != nil {
				return nil, false, err
			}
			if service != "" {
				services = append(services, service)
			}
			all = all || everything
			events = events[size:]
		}
	}
	return services, all, nil
}

// event looks at one event, struct inotify_event with the name behind it.
func (w *Watcher) event(data []byte) (service string, all bool, err error) {
	watch := int(int32(binary.NativeEndian.Uint32(data)))
	mask := binary.NativeEndian.Uint32(data[4:])
	name, _, _ := bytes.Cut(data[unix.SizeofInotifyEvent:], []byte{0})
	switch {
	case mask&unix.IN_Q_OVERFLOW != 0:
		return "", true, nil
	case watch == w.transient:
		if strings.HasSuffix(string(name), ".service") {
			return string(name), false, nil
		}
	case string(name) == generatorName:
		return "", true, nil
	case string(name) == transientDir: // what is in it already is seen by looking at all
		return "", true, w.watchTransient()
	}
	return "", false, nil
}
