// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
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
	askRunning  = 5 * time.Second
	askMarked   = 20 * time.Second
	askUnmarked = time.Second
)

// rest is the time between two calls of what is done meanwhile.
const rest = time.Second

// ErrCalledOff says that a shutdown that was under way is so no more.
var ErrCalledOff = errors.New("the shutdown was called off")

// ErrNoShutdown says that no shutdown was begun in time.
var ErrNoShutdown = errors.New("no shutdown has been begun")

// Shutdown waits for the end of what a shutdown stops.
type Shutdown struct {
	Reader *Reader
	Root   string // CgroupRoot but in tests
	// Alive is called before PID 1 is asked, which is every twenty seconds or sooner, and
	// waited for. An error of it ends the wait.
	Alive func() error
}

// Wait returns when PID 1 has reached shutdown.target on the way to a kexec, from
// which on no service runs that a shutdown stops, and its fd store does not change. It
// returns ErrNoShutdown when none is under way, or begins within that time where it is not 0,
// ErrCalledOff when one is so no more, and why ctx has ended. How long services take to stop
// is PID 1's to bound.
//
// meanwhile is called every second or so while services stop; within 0, which is when one is
// likely to be under way, also before that is known. Wait ends its context and waits for it.
func (s *Shutdown) Wait(ctx context.Context, within time.Duration, meanwhile func(ctx context.Context)) error {
	marked, stop, err := watchMark(s.Root)
	if err == nil {
		defer stop()
	}
	late, begun := within == 0, false
	look, end := repeated(ctx, meanwhile)
	defer end()
	var begins <-chan time.Time
	if late {
		look() // as PID 1 may not answer before services have stopped, and then is to have all questions
	} else {
		begins = time.After(within)
	}
	for {
		if err := s.Alive(); err != nil {
			return err
		}
		state, err := s.ask(ctx)
		if state == stopping {
			begun = true
			look()
		}
		switch {
		case errors.Is(err, ErrManager) && ctx.Err() == nil: // it may be too busy to answer
		case state == stopped || err != nil:
			return err
		case state == running && begun:
			return ErrCalledOff
		case state == running && late:
			return ErrNoShutdown
		}
		interval := askUnmarked
		switch {
		case marked == nil:
		case !begun:
			interval = askRunning
		default:
			interval = askMarked
		}
		select {
		case <-marked:
			return nil
		case <-begins:
			late = true
		case <-time.After(interval):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// repeated returns what begins to do something again and again, once, and what ends that and
// waits for its end.
func repeated(ctx context.Context, do func(ctx context.Context)) (begin, end func()) {
	ctx, stop := context.WithCancel(ctx)
	var done sync.WaitGroup
	begin = sync.OnceFunc(func() {
		done.Go(func() {
			for ctx.Err() == nil {
				do(ctx)
				select {
				case <-time.After(rest):
				case <-ctx.Done():
				}
			}
		})
	})
	return begin, func() { stop(); done.Wait() }
}

// progress is how far a shutdown has come.
type progress int

const (
	running  progress = iota // there is none
	stopping                 // services stop
	stopped                  // shutdown.target is reached
)

// ask asks PID 1.
func (s *Shutdown) ask(ctx context.Context) (progress, error) {
	var target, system string
	err := s.Reader.properties(ctx, "the shutdown", []property{
		{unitPath(shutdownTarget), unitInterface, "ActiveState", "s", func(b *bulk.Reader) { target = b.Text() }},
		{managerPath, managerInterface, "SystemState", "s", func(b *bulk.Reader) { system = b.Text() }},
	})
	switch {
	case err != nil:
		return running, err
	case target == "active":
		return stopped, nil
	case system == "stopping":
		return stopping, nil
	}
	return running, nil
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
