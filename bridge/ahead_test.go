// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
)

// What was duplicated ahead is carried as it is in the end, and is not looked for in
// PID 1 again.
func TestWhatWasDuplicatedAheadIsCarriedAsItIs(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "before")
	w.put("a.service", "y", "other")
	w.look("a.service")
	w.blind = errors.New("not to be asked")
	err := w.file("a.service", "x").Do(func(raw int) error {
		_, err := unix.Pwrite(raw, []byte("what others write later"), 0)
		_, failed := unix.Seek(raw, 4, unix.SEEK_SET)
		return errors.Join(err, failed)
	})
	if err != nil {
		t.Fatal(err)
	}
	want := w.contents("a.service")
	preserved := w.preserve()
	if bytes := preserved.Index.Units[0].Bytes; bytes != int64(len("what others write later")+len("other")) {
		t.Errorf("%d bytes are carried", bytes)
	}
	w.blind = nil
	w.kexec(preserved)
	_, socket, _ := w.serve()
	if _, err := w.deliver(socket, "a.service"); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(want, w.contents("a.service")); diff != "" {
		t.Errorf("the store (-want +got):\n%s", diff)
	}
}

// manifests counts the manifests that are open.
func manifests(t *testing.T) (n int) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		link, _ := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if strings.HasPrefix(link, "/memfd:fdbridge.manifest") {
			n++
		}
	}
	return n
}

// A manifest that was written ahead is carried if it says what is carried, and one that is
// written anew otherwise.
func TestWhatWasDraftedIsCarriedIfItIsTrue(t *testing.T) {
	for name, test := range map[string]struct {
		then    func(t *testing.T, w *world)
		written int // at the end; -1 when that depends on which unit comes first
	}{
		"nothing changes": {func(*testing.T, *world) {}, 0},
		"a file grows": {func(t *testing.T, w *world) {
			if err := w.file("b.service", "y").Do(func(raw int) error { return unix.Ftruncate(raw, 100) }); err != nil {
				t.Fatal(err)
			}
		}, 1},
		"a file gets another mode": {func(t *testing.T, w *world) {
			if err := w.file("b.service", "y").Do(func(raw int) error { return unix.Fchmod(raw, 0o640) }); err != nil {
				t.Fatal(err)
			}
		}, 1},
		"another unit has a file, too": {func(_ *testing.T, w *world) {
			w.add("a.service", "yes")
			w.lend("b.service", "y", "a.service", "z", -1)
		}, -1},
		"the unit is another":                  {func(_ *testing.T, w *world) { w.units["b.service"].identity.User = "somebody" }, 1},
		"the kernel takes less into a session": {func(_ *testing.T, w *world) { w.kernel.MaxFiles = 2 }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.add("b.service", "yes")
			w.put("b.service", "x", "X")
			w.put("b.service", "y", "Y")
			p := w.preserver()
			p.Draft(w.look("b.service"))
			test.then(t, w)
			written := 0
			w.kernel.Fail = func(request uint, name string, token uint64) error {
				if request == session.ReqPreserveFD && token == kho.ManifestToken && strings.HasPrefix(name, "fdbridge.b.service") {
					written = manifests(t) - 1
				}
				return nil
			}
			w.then(p, "b.service")
			if test.written >= 0 && written != test.written {
				t.Errorf("%d manifests were written at the end, want %d", written, test.written)
			}
		})
	}
}

// What was drafted and is not needed is closed, which TestMain looks at.
func TestWhatWasDraftedInVainIsClosed(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "X")
	p := w.preserver()
	p.Draft(w.look("a.service"))
	for _, f := range w.ahead["a.service"] { // it was forgotten
		_ = f.FD.Close()
	}
	p.Draft(w.look("a.service")) // and seen again
	if n := manifests(t); n != 1 {
		t.Errorf("%d manifests are open", n)
	}
	for _, f := range w.ahead["a.service"] {
		_ = f.FD.Close()
	}
	if err := p.Abandon(); err != nil {
		t.Error(err)
	}
}

// What was drafted before something is prepared may change until the shutdown.
func TestWhatWasDraftedIsClosedWhenSomethingIsPrepared(t *testing.T) {
	w := newWorld(t)
	w.add("early.service", "yes")
	w.put("early.service", "x", "X")
	p := w.preserver()
	_, files := w.look("early.service")
	p.Draft(w.look("early.service"))
	for _, f := range files {
		_ = f.FD.Close()
	}
	if _, err := p.Prepare(t.Context()); err != nil || manifests(t) != 0 {
		t.Errorf("Prepare: %v; %d manifests are left", err, manifests(t))
	}
	w.then(p, "early.service")
}

// A manifest is the first file of its own unit's session alone, though that of another may
// have the same tokens.
func TestWhatWasDraftedIsNotTheManifestOfAnothersSession(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // one unit after the other
	w := newWorld(t)
	w.kernel.MaxSessions = 2
	w.add("a.service", "yes")
	w.putPipe("a.service", "pipe")
	w.add("b.service", "yes")
	w.put("b.service", "x", "X")
	p := w.preserver()
	p.Draft(w.look("b.service"))
	w.kernel.Fail = func(request uint, name string, token uint64) error {
		if request == session.ReqPreserveFD && name == "fdbridge.a.service" && token == kho.ManifestToken {
			t.Error("the manifest is that of another session")
		}
		return nil
	}
	w.then(p, "b.service")
}

// Of a unit that something is prepared of nothing is drafted, as tokens are given already.
func TestNothingIsDraftedOfWhatIsPrepared(t *testing.T) {
	w := newWorld(t)
	w.add("early.service", "yes")
	w.put("early.service", "x", "X")
	p := w.prepared()
	p.Draft(w.look("early.service"))
	if n := manifests(t); n != 0 {
		t.Errorf("%d manifests are drafted", n)
	}
	w.then(p, "early.service")
}

// What was preserved before it is known that a store has changed is not carried, nor what
// was prepared then.
func TestWhatHasChangedSinceItWasSeenIsPreservedAnew(t *testing.T) {
	for _, prepared := range []bool{false, true} {
		w := newWorld(t)
		w.add("early.service", "yes")
		w.put("early.service", "x", "old")
		seen, err := w.store("early.service")
		if err != nil {
			t.Fatal(err)
		}
		p := w.preserver()
		p.Partly = true // which is no reason to carry it
		if prepared {
			if prepared, err := p.Prepare(t.Context()); prepared.FDs != 1 || err != nil {
				t.Fatalf("prepared: %+v, %v", prepared, err)
			}
		}
		w.look("early.service")
		w.stale = []*units.Store{&seen}
		w.empty("early.service")
		w.put("early.service", "y", "new")
		want := w.contents("early.service")
		preserved, err := p.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w.kexec(preserved)
		_, socket, _ := w.serve()
		if _, err := w.deliver(socket, "early.service"); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(want, w.contents("early.service")); diff != "" {
			t.Errorf("prepared: %v; the store (-want +got):\n%s", prepared, diff)
		}
		if !strings.Contains(w.logged(), "early.service: the store has changed") {
			t.Errorf("prepared: %v; logged: %s", prepared, w.logged())
		}
	}
}

// When PID 1 does not say whether a store is as it was seen, that is carried, and PID 1,
// which may have more, is left what it has.
func TestWhatMayHaveChangedSinceItWasSeenIsCarriedAndLeft(t *testing.T) {
	for _, err := range []error{nil, units.ErrUnsure} {
		w := newWorld(t)
		w.carries = true
		w.add("a.service", "yes")
		w.put("a.service", "x", "X")
		w.look("a.service")
		w.unsure = err
		p := w.preserver()
		p.Partly = true
		preserved, failed := p.Run(t.Context())
		if failed != nil {
			t.Fatal(failed)
		}
		if n := preserved.Index.Units[0].Entries; n != 1 {
			t.Errorf("%v: %d fds are carried", err, n)
		}
		if w.busy() != (err == nil) || slices.Contains(w.emptied, "a.service") {
			t.Errorf("%v: busy: %v, emptied: %v", err, w.busy(), w.emptied)
		}
		if told := strings.Contains(w.logged(), units.ErrUnsure.Error()); told != (err != nil) {
			t.Errorf("%v: logged: %s", err, w.logged())
		}
		_ = preserved.Close()
	}
}

// The descriptors of what is not carried are closed, which TestMain looks at.
func TestWhatWasDuplicatedAheadInVainIsClosed(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "X")
	w.look("a.service")
	ctx, stop := context.WithCancel(t.Context())
	stop()
	preserved, err := w.preserver().Run(ctx)
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Run when its time is over: %v", err)
	}
	if preserved != nil {
		_ = preserved.Close()
	}
}
