// SPDX-License-Identifier: Apache-2.0

package units

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/units/bulk/bulktest"
)

func TestOnlyStoppedUnitsWithoutAStoreAreIdle(t *testing.T) {
	list := pid1{}
	for name, state := range map[string][2]string{
		"running.service":     {"active", "running"},
		"starting.service":    {"activating", "start-pre"},
		"restarting.service":  {"activating", "auto-restart"},
		"stopped.service":     {"inactive", "dead"},
		`s\x2dtopped.service`: {"inactive", "dead"},
		`p\x2dinned.service`:  {"inactive", "dead-resources-pinned"},
		"failed.service":      {"failed", "failed"},
		"other.service":       {"inactive", "dead"},
	} {
		list[name] = fakeUnit{state: state}
	}
	reader := Reader{Socket: bulktest.Serve(t, list.serve)}
	asked := []string{"unloaded.service"}
	for name := range list {
		if name != "other.service" {
			asked = append(asked, name)
		}
	}
	got, err := reader.Idle(t.Context(), asked)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"unloaded.service": true, "stopped.service": true, `s\x2dtopped.service`: true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("idle (-want +got):\n%s", diff)
	}
}

func TestWithoutAnAnswerNothingIsIdle(t *testing.T) {
	reader := Reader{Socket: t.TempDir() + "/none"}
	if got, err := reader.Idle(t.Context(), []string{"a.service"}); got != nil || err == nil {
		t.Errorf("Idle: %v, %v", got, err)
	}
	if got, err := reader.Idle(t.Context(), nil); len(got) != 0 || err != nil {
		t.Errorf("Idle of nothing: %v, %v", got, err)
	}
}

// starts is what PID 1 leaves word of starts in.
type starts struct {
	t   *testing.T
	dir string
}

// start starts a unit, which was stopped before.
func (s starts) start(unit, invocation string) {
	s.t.Helper()
	link := filepath.Join(s.dir, "invocation:"+unit)
	if err := errors.Join(os.Symlink(invocation, link+"tmp"), os.Rename(link+"tmp", link)); err != nil {
		s.t.Fatal(err)
	}
}

func TestOnlyTheFirstStartOfAnIdleUnitIsSaidToBe(t *testing.T) {
	s := starts{t, t.TempDir()}
	s.start("before.service", "1")
	idle, err := WatchIdle(s.dir, func() (map[string]bool, error) {
		s.start("meanwhile.service", "1")
		idle := map[string]bool{}
		for _, name := range []string{"first", "again", "direct", "stopped", "unseen", "meanwhile", "before", "last"} {
			idle[name+".service"] = true
		}
		idle["busy.service"] = false
		return idle, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s.start("first.service", "a")
	s.start("busy.service", "a")
	s.start("again.service", "1")
	s.start("again.service", "a")
	s.start("direct.service", "1")
	s.start("stopped.service", "a")
	if err := os.Remove(s.dir + "/invocation:stopped.service"); err != nil {
		t.Fatal(err)
	}
	ask := func(unit, invocation string, want bool) {
		t.Helper()
		if first, err := idle.First(unit, invocation); first != want || err != nil {
			t.Errorf("First of %s: %v, %v", unit, first, err)
		}
	}
	ask("first.service", "a", true)
	ask("first.service", "a", false)
	ask("busy.service", "a", false)
	ask("again.service", "a", false)
	ask("direct.service", "a", false)
	ask("stopped.service", "a", false)
	ask("stopped.service", "", false)
	ask("unseen.service", "a", false)
	s.start("meanwhile.service", "a")
	ask("meanwhile.service", "a", false)
	ask("before.service", "1", false)
	s.start("last.service", "a") // after others have asked
	ask("last.service", "a", true)
	if idle.watch != nil {
		t.Error("starts are counted on for no unit")
	}
	ask("last.service", "a", false)
	if err := idle.Close(); err != nil {
		t.Error(err)
	}
}

func TestWhatIsNotCountedIsNotIdle(t *testing.T) {
	failed := errors.New("failed")
	if idle, err := WatchIdle(t.TempDir(), func() (map[string]bool, error) { return nil, failed }); idle != nil || !errors.Is(err, failed) {
		t.Errorf("WatchIdle: %v, %v", idle, err)
	}
	if idle, err := WatchIdle(t.TempDir()+"/none", nil); idle != nil || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("WatchIdle of what is not there: %v, %v", idle, err)
	}
	if idle, err := WatchIdle(t.TempDir(), func() (map[string]bool, error) { return map[string]bool{"busy.service": false}, nil }); idle != nil || err != nil {
		t.Errorf("WatchIdle of none: %v, %v", idle, err)
	}
	var none *Idle
	if first, err := none.First("a.service", "a"); first || err != nil {
		t.Errorf("First: %v, %v", first, err)
	}
	if err := none.Close(); err != nil {
		t.Error(err)
	}

	s := starts{t, t.TempDir()}
	find := func() (map[string]bool, error) { return map[string]bool{"a.service": true, "b.service": true}, nil }
	idle, err := WatchIdle(s.dir, find)
	if err != nil {
		t.Fatal(err)
	}
	s.start("a.service", "a")
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	if first, err := idle.First("a.service", "a"); first || err != nil {
		t.Errorf("First when the directory is gone: %v, %v", first, err)
	}
	if err := idle.Close(); err != nil {
		t.Error(err)
	}
}

func TestLostEventsLeaveNoUnitIdle(t *testing.T) {
	s := starts{t, t.TempDir()}
	idle, err := WatchIdle(s.dir, func() (map[string]bool, error) { return map[string]bool{"a.service": true, "b.service": true}, nil })
	if err != nil {
		t.Fatal(err)
	}
	s.start("a.service", "a")
	overflow := unix.InotifyEvent{Wd: -1, Mask: unix.IN_Q_OVERFLOW}
	idle.watch.File = says(t, idle.watch.File, overflow)
	if first, err := idle.First("a.service", "a"); first || err != nil {
		t.Errorf("First: %v, %v", first, err)
	}
	if err := idle.Close(); err != nil {
		t.Error(err)
	}
}

// says returns a file with what is in another, and one more event.
func says(t *testing.T, watch *os.File, event unix.InotifyEvent) *os.File {
	t.Helper()
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	r, w := os.NewFile(uintptr(pipe[0]), "read"), os.NewFile(uintptr(pipe[1]), "write")
	buffer := make([]byte, 64<<10)
	n, err := watch.Read(buffer)
	if err == nil {
		_, err = w.Write(buffer[:n])
	}
	if err = errors.Join(err, watch.Close(), binary.Write(w, binary.NativeEndian, event), w.Close()); err != nil {
		t.Fatal(err)
	}
	return r
}
