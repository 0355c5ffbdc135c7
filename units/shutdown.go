// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/units/bulk"
)

const (
	// shutdownTarget is reached when all has stopped that a shutdown stops.
	shutdownTarget = "shutdown.target"
	// stoppedSlice is a unit of fdbridge's own that PID 1 starts when it has reached
	// shutdownTarget on the way to a kexec. All that it does for that is to make a
	// cgroup (slice_start in src/core/slice.c, systemd 257), which can be seen: that
	// takes no process, and no question to PID 1.
	stoppedSlice = "fdbridge_stopped.slice"
	// CgroupRoot is where the cgroup of stoppedSlice is; not where cgroups of the
	// first version are in use.
	CgroupRoot = "/sys/fs/cgroup"
)

// How often PID 1 is asked how far it has come: seldom where its mark can be seen.
const (
	askMarked   = 20 * time.Second
	askUnmarked = time.Second
)

// ErrCalledOff says that no shutdown is under way, or not any more.
var ErrCalledOff = errors.New("the shutdown was called off")

// Shutdown waits for the end of what a shutdown stops.
type Shutdown struct {
	Reader *Reader
	Root   string // CgroupRoot but in tests
}

// Wait returns when PID 1 has reached shutdown.target on the way to a kexec, from
// which on no service runs that a shutdown stops, and its fd store does not change. It
// returns ErrCalledOff when no shutdown is under way, or why ctx has ended. How long
// services take to stop is PID 1's to bound: Wait calls alive at first and every
// twenty seconds or so, as long as PID 1 says that it is about it.
func (s *Shutdown) Wait(ctx context.Context, alive func() error) error {
	interval := askMarked
	marked, stop, err := watchMark(s.Root)
	if err != nil {
		interval = askUnmarked
	} else {
		defer stop()
	}
	for {
		reached, err := s.ask(ctx)
		switch {
		case errors.Is(err, ErrManager) && ctx.Err() == nil: // it may be too busy to answer
		case reached || err != nil:
			return err
		default:
			if err := alive(); err != nil {
				return err
			}
		}
		select {
		case <-marked:
			return nil
		case <-time.After(interval):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// ask asks PID 1 whether shutdown.target is reached.
func (s *Shutdown) ask(ctx context.Context) (reached bool, err error) {
	var target, system string
	text := func(into *string) func(b *bulk.Reader) {
		return func(b *bulk.Reader) { b.Variant("s"); *into = b.Text() }
	}
	calls := []bulk.Call{
		getProperty(unitPath(shutdownTarget), unitInterface, "ActiveState", text(&target)),
		getProperty(managerPath, managerInterface, "SystemState", text(&system)),
	}
	err = s.Reader.connected(ctx, func(ctx context.Context, a asker) error { return a.calls(ctx, calls, nil) })
	for i := range calls {
		if calls[i].Err != nil {
			err = errors.Join(err, fmt.Errorf("%w: %w", ErrManager, calls[i].Err))
		}
	}
	switch {
	case err != nil:
		return false, fmt.Errorf("ask whether all services have stopped: %w", err)
	case target == "active":
		return true, nil
	case system != "stopping":
		return false, ErrCalledOff
	}
	return false, nil
}

// watchMark returns what is closed when the cgroup of stoppedSlice is made, and what
// ends the watch. It fails when the cgroup is there already, which tells nothing: it
// may be left from a shutdown that was called off.
func watchMark(root string) (marked <-chan struct{}, stop func(), err error) {
	watch, err := newInotify()
	if err != nil {
		return nil, nil, err
	}
	if _, err = watch.add(root, unix.IN_CREATE); err == nil {
		_, err = os.Lstat(filepath.Join(root, stoppedSlice))
		if err == nil {
			err = fs.ErrExist
		} else if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		_ = watch.Close() // it is not needed
		return nil, nil, err
	}
	made, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for found := false; !found; {
			err := watch.next(func(e inotifyEvent) { found = found || e.name == stoppedSlice })
			if err != nil {
				return // it was closed
			}
		}
		close(made)
	}()
	return made, func() { _ = watch.Close(); <-ended }, nil
}
