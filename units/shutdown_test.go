// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/fdbridge/fdbridge/units/bulk/bulktest"
)

// shuttingDown is a PID 1 in several states one after the other, of which the last
// remains.
func shuttingDown(t *testing.T, states ...[2]string) *Reader {
	t.Helper()
	var mu sync.Mutex
	return &Reader{Socket: bulktest.Serve(t, func(p *bulktest.Peer) {
		mu.Lock()
		state := states[0]
		if len(states) > 1 {
			states = states[1:]
		}
		mu.Unlock()
		pid1{
			shutdownTarget: {properties: map[string]any{unitInterface + ".ActiveState": state[0]}},
			managerItself:  {properties: map[string]any{managerInterface + ".SystemState": state[1]}},
		}.serve(p)
	})}
}

func nothing(context.Context) {}

func isAlive() error { return nil }

var (
	runs    = [2]string{"inactive", "running"}
	stops   = [2]string{"inactive", "stopping"}
	reached = [2]string{"active", "stopping"}
)

func TestShutdownWaitsForTheMark(t *testing.T) {
	root := t.TempDir()
	times := 0
	s := Shutdown{Reader: shuttingDown(t, stops), Root: root, Alive: func() error {
		times++
		return errors.Join(os.Mkdir(filepath.Join(root, "other.slice"), 0o700), os.Mkdir(filepath.Join(root, stoppedSlice), 0o700))
	}}
	err := s.Wait(t.Context(), 0, nothing)
	if err != nil || times != 1 {
		t.Errorf("Wait: %v, called %d times", err, times)
	}
}

func TestAMarkIsNoOtherCgroup(t *testing.T) {
	root := t.TempDir()
	marked, stop, err := watchMark(root)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if err := os.Mkdir(filepath.Join(root, "other.slice"), 0o700); err != nil {
		t.Fatal(err)
	}
	select {
	case <-marked:
		t.Error("another cgroup is taken for the mark")
	case <-time.After(20 * time.Millisecond): // correct code passes however slow it is
	}
}

// A mark from before says nothing, and there is none where cgroups are of the first
// version.
func TestShutdownAsksWhereThereIsNoMark(t *testing.T) {
	old := t.TempDir()
	if err := os.Mkdir(filepath.Join(old, stoppedSlice), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{old, filepath.Join(old, "none")} {
		times := 0
		s := Shutdown{Reader: shuttingDown(t, stops, reached), Root: root, Alive: func() error { times++; return nil }}
		if err := s.Wait(t.Context(), 0, nothing); err != nil || times != 2 {
			t.Errorf("Wait: %v, called %d times, want before each question", err, times)
		}
	}
	s := Shutdown{Reader: shuttingDown(t, reached), Root: old, Alive: isAlive}
	if err := s.Wait(t.Context(), 0, nothing); err != nil {
		t.Errorf("when all has stopped already: %v", err)
	}
}

func TestShutdownThatIsNone(t *testing.T) {
	for name, c := range map[string]struct {
		states [][2]string
		within time.Duration
		want   error
	}{
		"none":            {[][2]string{runs}, 0, ErrNoShutdown},
		"none in time":    {[][2]string{runs}, 10 * time.Millisecond, ErrNoShutdown},
		"one that begins": {[][2]string{runs, stops, reached}, time.Hour, nil},
		"one called off":  {[][2]string{stops, runs}, 0, ErrCalledOff},
	} {
		s := Shutdown{Reader: shuttingDown(t, c.states...), Root: "/nowhere", Alive: isAlive}
		if err := s.Wait(t.Context(), c.within, nothing); !errors.Is(err, c.want) {
			t.Errorf("%s: Wait: %v, want %v", name, err, c.want)
		}
	}
	called := errors.New("called")
	s := Shutdown{Reader: shuttingDown(t, stops), Root: t.TempDir(), Alive: func() error { return called }}
	if err := s.Wait(t.Context(), 0, nothing); !errors.Is(err, called) {
		t.Errorf("Wait: %v, want what it was told", err)
	}
}

func TestShutdownIsWaitedForAsLongAsAllowed(t *testing.T) {
	why := errors.New("it is told to end")
	ctx, stop := context.WithCancelCause(t.Context())
	s := Shutdown{Reader: shuttingDown(t, stops), Root: t.TempDir(), Alive: func() error { stop(why); return nil }}
	if err := s.Wait(ctx, 0, nothing); !errors.Is(err, why) {
		t.Errorf("Wait: %v, want %v", err, why)
	}
	// PID 1 is too busy to answer, but is to know that the service is alive when it goes on,
	// and sets its mark nevertheless.
	root := t.TempDir()
	hangsUp := bulktest.Serve(t, func(*bulktest.Peer) { _ = os.Mkdir(filepath.Join(root, stoppedSlice), 0o700) })
	times := 0
	s = Shutdown{Reader: &Reader{Socket: hangsUp}, Root: root, Alive: func() error { times++; return nil }}
	if err := s.Wait(t.Context(), 0, nothing); err != nil || times == 0 {
		t.Errorf("Wait without an answer: %v, called %d times", err, times)
	}
}

// PID 1 may answer nothing before services have stopped, not that they do either.
func TestNoAnswerIsWaitedForToDoSomethingMeanwhile(t *testing.T) {
	begun := make(chan struct{})
	root := t.TempDir()
	silent := bulktest.Serve(t, func(*bulktest.Peer) {
		<-begun
		_ = os.Mkdir(filepath.Join(root, stoppedSlice), 0o700)
	})
	s := Shutdown{Reader: &Reader{Socket: silent}, Root: root, Alive: isAlive}
	if err := s.Wait(t.Context(), 0, func(ctx context.Context) {
		close(begun)
		<-ctx.Done()
	}); err != nil {
		t.Errorf("Wait: %v", err)
	}
}

// It begins when services stop, and has ended when Wait has.
func TestSomethingIsDoneWhileServicesStop(t *testing.T) {
	root := t.TempDir()
	times, ended := 0, false
	s := Shutdown{Reader: shuttingDown(t, runs, stops), Root: root, Alive: isAlive}
	err := s.Wait(t.Context(), time.Hour, func(ctx context.Context) {
		if times++; times > 1 {
			_ = os.Mkdir(filepath.Join(root, stoppedSlice), 0o700)
			<-ctx.Done()
			ended = true
		}
	})
	if err != nil || times != 2 || !ended {
		t.Errorf("Wait: %v, done %d times, ended %v", err, times, ended)
	}
	s = Shutdown{Reader: shuttingDown(t, runs), Root: t.TempDir(), Alive: isAlive}
	err = s.Wait(t.Context(), 10*time.Millisecond, func(context.Context) { t.Error("done though nothing stops") })
	if !errors.Is(err, ErrNoShutdown) {
		t.Errorf("Wait on a machine that runs: %v", err)
	}
}
