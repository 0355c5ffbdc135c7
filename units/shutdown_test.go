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

var (
	runs    = [2]string{"inactive", "running"}
	stops   = [2]string{"inactive", "stopping"}
	reached = [2]string{"active", "stopping"}
)

func TestShutdownWaitsForTheMark(t *testing.T) {
	root := t.TempDir()
	s := Shutdown{Reader: shuttingDown(t, stops), Root: root}
	times := 0
	err := s.Wait(t.Context(), func() error {
		times++
		return errors.Join(os.Mkdir(filepath.Join(root, "other.slice"), 0o700), os.Mkdir(filepath.Join(root, stoppedSlice), 0o700))
	})
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
		s := Shutdown{Reader: shuttingDown(t, stops, reached), Root: root}
		times := 0
		if err := s.Wait(t.Context(), func() error { times++; return nil }); err != nil || times != 2 {
			t.Errorf("Wait: %v, called %d times, want before each question", err, times)
		}
	}
	s := Shutdown{Reader: shuttingDown(t, reached), Root: old}
	if err := s.Wait(t.Context(), func() error { return nil }); err != nil {
		t.Errorf("when all has stopped already: %v", err)
	}
}

func TestShutdownThatIsNone(t *testing.T) {
	called := errors.New("called")
	s := Shutdown{Reader: shuttingDown(t, runs), Root: t.TempDir()}
	if err := s.Wait(t.Context(), func() error { return nil }); !errors.Is(err, ErrNoShutdown) {
		t.Errorf("Wait on a machine that runs: %v", err)
	}
	s.Within = 10 * time.Millisecond
	if err := s.Wait(t.Context(), func() error { return nil }); !errors.Is(err, ErrNoShutdown) {
		t.Errorf("Wait for a shutdown that does not begin: %v", err)
	}
	s = Shutdown{Reader: shuttingDown(t, runs, stops, reached), Root: "/nowhere", Within: time.Hour}
	if err := s.Wait(t.Context(), func() error { return nil }); err != nil {
		t.Errorf("Wait for a shutdown that begins: %v", err)
	}
	s = Shutdown{Reader: shuttingDown(t, stops, runs), Root: "/nowhere"}
	if err := s.Wait(t.Context(), func() error { return nil }); !errors.Is(err, ErrCalledOff) {
		t.Errorf("Wait for a shutdown that is called off: %v", err)
	}
	s = Shutdown{Reader: shuttingDown(t, stops), Root: t.TempDir()}
	if err := s.Wait(t.Context(), func() error { return called }); !errors.Is(err, called) {
		t.Errorf("Wait: %v, want what it was told", err)
	}
}

func TestShutdownIsWaitedForAsLongAsAllowed(t *testing.T) {
	why := errors.New("it is told to end")
	s := Shutdown{Reader: shuttingDown(t, stops), Root: t.TempDir()}
	ctx, stop := context.WithCancelCause(t.Context())
	if err := s.Wait(ctx, func() error { stop(why); return nil }); !errors.Is(err, why) {
		t.Errorf("Wait: %v, want %v", err, why)
	}
	// PID 1 is too busy to answer, but is to know that the service is alive when it goes on,
	// and sets its mark nevertheless.
	root := t.TempDir()
	hangsUp := bulktest.Serve(t, func(*bulktest.Peer) { _ = os.Mkdir(filepath.Join(root, stoppedSlice), 0o700) })
	s = Shutdown{Reader: &Reader{Socket: hangsUp}, Root: root}
	times := 0
	if err := s.Wait(t.Context(), func() error { times++; return nil }); err != nil || times == 0 {
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
	s := Shutdown{Reader: &Reader{Socket: silent}, Root: root, Meanwhile: func(ctx context.Context) {
		close(begun)
		<-ctx.Done()
	}}
	if err := s.Wait(t.Context(), func() error { return nil }); err != nil {
		t.Errorf("Wait: %v", err)
	}
}

// Meanwhile begins when services stop, and has ended when Wait has.
func TestSomethingIsDoneWhileServicesStop(t *testing.T) {
	root := t.TempDir()
	times, ended := 0, false
	s := Shutdown{
		Reader: shuttingDown(t, runs, stops), Root: root, Within: time.Hour,
		Meanwhile: func(ctx context.Context) {
			if times++; times > 1 {
				_ = os.Mkdir(filepath.Join(root, stoppedSlice), 0o700)
				<-ctx.Done()
				ended = true
			}
		},
	}
	if err := s.Wait(t.Context(), func() error { return nil }); err != nil || times != 2 || !ended {
		t.Errorf("Wait: %v, done %d times, ended %v", err, times, ended)
	}
	s = Shutdown{
		Reader: shuttingDown(t, runs), Root: t.TempDir(), Within: 10 * time.Millisecond,
		Meanwhile: func(context.Context) { t.Error("done though nothing stops") },
	}
	if err := s.Wait(t.Context(), func() error { return nil }); !errors.Is(err, ErrNoShutdown) {
		t.Errorf("Wait on a machine that runs: %v", err)
	}
}
