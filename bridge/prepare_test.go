// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
)

// Of a memfd with settled the size cannot change any more, nor the seals.
const (
	fixedSize = unix.F_SEAL_GROW | unix.F_SEAL_SHRINK
	settled   = fixedSize | unix.F_SEAL_SEAL
)

// seal seals what is in a unit's store under a name.
func (w *world) seal(unit, name string, seals int) {
	w.t.Helper()
	for _, p := range w.passed(unit) {
		if p.Name == name {
			err := p.FD.Do(func(raw int) error {
				_, err := unix.FcntlInt(uintptr(raw), unix.F_ADD_SEALS, seals)
				return err
			})
			if err != nil {
				w.t.Fatal(err)
			}
		}
		_ = p.FD.Close()
	}
}

// file returns a duplicate of what is in a unit's store under a name.
func (w *world) file(unit, name string) (found *fd.FD) {
	w.t.Helper()
	for _, p := range w.passed(unit) {
		if p.Name == name && found == nil {
			found = p.FD
		} else {
			_ = p.FD.Close()
		}
	}
	if found == nil {
		w.t.Fatalf("%s has no %s", unit, name)
	}
	w.t.Cleanup(func() { _ = found.Close() })
	return found
}

// counted counts the files that are preserved from now on, by session.
func (w *world) counted() map[string]int {
	counts := map[string]int{}
	w.kernel.Fail = func(request uint, name string, _ uint64) error {
		if request == session.ReqPreserveFD {
			counts[name]++
		}
		return nil
	}
	return counts
}

// free tells whether a file is preserved in no session.
func (w *world) free(f *fd.FD) bool {
	w.t.Helper()
	device, err := session.Open(w.kernel, session.Path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer device.Close()
	s, err := device.Create("test")
	if err != nil {
		w.t.Fatal(err)
	}
	defer s.Close()
	err = s.Preserve(f, 1)
	if err != nil && !errors.Is(err, session.ErrPreserved) {
		w.t.Fatal(err)
	}
	return err == nil
}

// preparable is a world with units of which something can be preserved ahead.
func preparable(t *testing.T) *world {
	w := newWorld(t)
	for _, unit := range []string{"a.service", "early.service", "never.service"} {
		w.add(unit, "yes")
		w.put(unit, "sealed", unit)
		w.seal(unit, "sealed", settled)
		w.put(unit, "grows", unit)
		w.put(unit, "other", unit)
		w.seal(unit, "other", fixedSize)
		w.putPipe(unit, "pipe")
	}
	w.add("none.service", "yes")
	w.put("none.service", "grows", "x")
	for unit, preserve := range map[string]string{"restart.service": "restart", "excluded.service": "yes"} {
		w.add(unit, preserve)
		w.put(unit, "sealed", "x")
		w.seal(unit, "sealed", settled)
	}
	return w
}

// prepared is a preserver that has prepared.
func (w *world) prepared() *bridge.Preserver {
	w.t.Helper()
	p := w.preserver()
	if _, err := p.Prepare(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return p
}

// then does the rest, and returns the contents of the units that are carried.
func (w *world) then(p *bridge.Preserver, units ...string) (want map[string][]string) {
	w.t.Helper()
	return w.thenWith(p, func() {}, units...)
}

// thenWith is then, with something to look at before the kexec.
func (w *world) thenWith(p *bridge.Preserver, look func(), units ...string) (want map[string][]string) {
	w.t.Helper()
	want = map[string][]string{}
	for _, unit := range units {
		want[unit] = slices.DeleteFunc(w.contents(unit), func(s string) bool { return strings.HasPrefix(s, "pipe=") })
	}
	preserved, err := p.Run(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = preserved.Close() })
	look()
	w.kexec(preserved)
	_, socket, _ := w.serve()
	for unit, contents := range want {
		if n, err := w.deliver(socket, unit); n != len(contents) || err != nil {
			w.t.Errorf("deliver to %s: %d, %v", unit, n, err)
		}
	}
	w.check(want)
	return want
}

// contents of what has no contents, as pipes, would fail.
var withPipes = []string{"a.service", "early.service", "never.service"}

func (w *world) withoutPipes() {
	for _, unit := range withPipes {
		_ = keeper{m: w.manager, unit: unit}.Remove("pipe")
	}
}

func TestPreparePreservesWhatEarlyAllows(t *testing.T) {
	w := preparable(t)
	counts := w.counted()
	p := w.preserver()
	prepared, err := p.Prepare(t.Context())
	if want := (bridge.Prepared{Units: 2, FDs: 4, Bytes: int64(len("a.service") + 3*len("early.service"))}); prepared != want || err != nil {
		t.Errorf("Prepare: %+v, %v, want %+v", prepared, err, want)
	}
	if diff := cmp.Diff(map[string]int{"fdbridge.a.service": 1, "fdbridge.early.service": 3}, counts); diff != "" {
		t.Errorf("preserved ahead (-want +got):\n%s", diff)
	}
	w.withoutPipes()
	counts = w.counted()
	w.then(p, append(withPipes, "none.service")...)
	want := map[string]int{ // with the manifests
		"fdbridge": 1, "fdbridge.a.service": 3, "fdbridge.early.service": 1, "fdbridge.never.service": 4, "fdbridge.none.service": 2,
	}
	if diff := cmp.Diff(want, counts); diff != "" {
		t.Errorf("preserved at the end (-want +got):\n%s", diff)
	}
}

func TestNothingIsPreparedOnAKernelThatWouldLoseIt(t *testing.T) {
	w := preparable(t)
	counts := w.counted()
	p := w.preserver()
	p.Origin.Kernel = "6.19.8-1-amd64"
	prepared, err := p.Prepare(t.Context())
	if prepared != (bridge.Prepared{}) || len(counts) > 0 || err != nil {
		t.Errorf("Prepare: %+v, %v, preserved %v", prepared, err, counts)
	}
	w.withoutPipes()
	w.then(p, append(withPipes, "none.service")...)
}

func TestWhatChangesAfterPreparingIsCarriedAsItIs(t *testing.T) {
	w := preparable(t)
	w.withoutPipes()
	p := w.prepared()
	gone := w.file("early.service", "grows")
	_ = keeper{m: w.manager, unit: "early.service"}.Remove("grows")
	w.put("early.service", "new", "NEW")
	// Moved to another unit, opened anew at another position, and written to.
	w.lend("a.service", "sealed", "never.service", "moved", -1)
	_ = keeper{m: w.manager, unit: "a.service"}.Remove("sealed")
	w.lend("early.service", "other", "early.service", "anew", 2)
	_ = keeper{m: w.manager, unit: "early.service"}.Remove("other")
	_ = w.file("early.service", "sealed").Do(func(raw int) error {
		_, err := unix.Pwrite(raw, []byte("EARLY"), 0)
		return err
	})
	w.thenWith(p, func() {
		if !w.free(gone) {
			t.Error("what was taken out of the store is preserved still")
		}
	}, withPipes...)
}

// Of all units that had something, one has nothing left.
func TestAStoreThatIsEmptyAfterPreparingLeavesNoSession(t *testing.T) {
	w := preparable(t)
	w.withoutPipes()
	p := w.prepared()
	w.empty("a.service")
	w.then(p, "early.service")
	device, err := session.Open(w.kernel, session.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	if _, err := device.Retrieve("fdbridge.a.service"); !errors.Is(err, session.ErrNoSession) {
		t.Errorf("retrieve the session of nothing: %v, want %v", err, session.ErrNoSession)
	}
	if u := w.recorded.Units; slices.ContainsFunc(u, func(u kho.IndexUnit) bool { return u.Unit == "a.service" }) {
		t.Errorf("the index has %+v", u)
	}
}

func TestAbandonLeavesNoTrace(t *testing.T) {
	w := preparable(t)
	sealed := w.file("a.service", "sealed")
	p := w.prepared()
	if w.free(sealed) {
		t.Error("what was prepared is not preserved")
	}
	for range 2 {
		if err := p.Abandon(); err != nil {
			t.Error(err)
		}
	}
	if !w.free(sealed) {
		t.Error("what was abandoned is preserved still")
	}
	w.withoutPipes()
	w.then(p, withPipes...)
}

// Whatever goes wrong in preparing costs no more than what was prepared.
func TestFaultsOfPreparingCostNothing(t *testing.T) {
	const early = "fdbridge.early.service"
	for name, fault := range map[string]struct {
		prepare, run func(request uint, session string, token uint64, times int) bool
	}{
		"a file is refused": {prepare: func(r uint, s string, token uint64, _ int) bool {
			return r == session.ReqPreserveFD && s == early && token == 2
		}},
		"a session cannot be made": {prepare: func(r uint, s string, _ uint64, _ int) bool { return r == session.ReqCreateSession && s == early }},
		"a session cannot be made anew": {run: func(r uint, s string, _ uint64, n int) bool {
			return r == session.ReqCreateSession && s == early && n == 1
		}},
		"a file cannot be put into the new one": {run: func(r uint, s string, token uint64, n int) bool {
			return r == session.ReqPreserveFD && s == early && token == 2 && n == 1
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := preparable(t)
			w.withoutPipes()
			arm := func(fails func(uint, string, uint64, int) bool) {
				times := 0
				w.kernel.Fail = func(r uint, s string, token uint64) error {
					if fails != nil && fails(r, s, token, times+1) {
						times++
						return unix.EIO
					}
					return nil
				}
			}
			arm(fault.prepare)
			p := w.preserver()
			_, err := p.Prepare(t.Context())
			if refused := name == "a session cannot be made"; refused != errors.Is(err, unix.EIO) {
				t.Errorf("Prepare: %v", err)
			}
			arm(fault.run)
			_ = keeper{m: w.manager, unit: "early.service"}.Remove("other")
			w.then(p, withPipes...)
			if again := strings.Contains(w.logged(), "preserved anew"); again != (fault.run != nil) {
				t.Errorf("the log says:\n%s", w.logged())
			}
		})
	}
}

// A file that a held session still has is left to the end.
func TestWhatIsHeldIsNotPrepared(t *testing.T) {
	w := preparable(t)
	w.withoutPipes()
	w.add("b.service", "yes")
	w.lend("a.service", "sealed", "b.service", "lent", -1)
	want := w.then(w.preserver(), "a.service")
	p := w.prepared()
	if diff := cmp.Diff(want["a.service"], w.contents("a.service")); diff != "" {
		t.Error(diff)
	}
	w.then(p, "a.service")
}

func TestPreparingWithoutPID1OrTheDeviceIsAnError(t *testing.T) {
	w := preparable(t)
	w.err = fmt.Errorf("it is busy: %w", units.ErrManager)
	if _, err := w.preserver().Prepare(t.Context()); !errors.Is(err, units.ErrManager) {
		t.Errorf("Prepare: %v, want %v", err, w.err)
	}
	w.err = nil
	w.blind = errors.New("it is blind")
	if _, err := w.preserver().Prepare(t.Context()); !errors.Is(err, w.blind) {
		t.Errorf("Prepare: %v, want %v", err, w.blind)
	}
	w.blind = nil
	w.kernel.OpenErr = unix.EIO
	if _, err := w.preserver().Prepare(t.Context()); !errors.Is(err, session.ErrBroken) {
		t.Errorf("Prepare: %v, want %v", err, session.ErrBroken)
	}
}

// A session of which something is taken out again has room for the rest, as it had before.
func TestASessionThatIsFullIsMadeAnewWithWhatItHad(t *testing.T) {
	w := newWorld(t)
	w.kernel.MaxFiles = 2
	w.add("early.service", "yes")
	for _, name := range []string{"a", "b", "c"} {
		w.put("early.service", name, name)
		w.seal("early.service", name, settled)
	}
	p := w.prepared()
	if err := (keeper{m: w.manager, unit: "early.service"}).Remove("c"); err != nil {
		t.Fatal(err)
	}
	w.then(p, "early.service")
	if strings.Contains(w.logged(), "anew") {
		t.Errorf("what was prepared is thrown away:\n%s", w.logged())
	}
}

// Linux 6.19 to 7.1 have room for some 819 sessions.
func TestPreparingThatLeavesNoSessionForTheIndexIsDoneAnew(t *testing.T) {
	w := newWorld(t)
	w.kernel.MaxSessions = 2
	for _, unit := range []string{"a.service", "early.service"} {
		w.add(unit, "yes")
		w.put(unit, "x", unit)
		w.seal(unit, "x", settled)
	}
	w.then(w.prepared(), "a.service", "early.service")
	if !strings.Contains(w.logged(), "preserved anew") {
		t.Errorf("the log does not say so:\n%s", w.logged())
	}
}

// Somebody wants it undone before it is done, and memory takes its time.
func TestPreparingEndsWhenItIsInterrupted(t *testing.T) {
	w := preparable(t)
	ctx, stop := context.WithCancel(t.Context())
	counts := map[string]int{}
	w.kernel.Fail = func(request uint, name string, _ uint64) error {
		if request == session.ReqPreserveFD {
			stop()
			counts[name]++
		}
		return nil
	}
	if _, err := w.preserver().Prepare(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Prepare: %v", err)
	}
	if counts["fdbridge.early.service"] > 1 {
		t.Errorf("it has gone on: %v", counts)
	}
	w.kernel.Fail = nil
	if !w.free(w.file("early.service", "sealed")) {
		t.Error("it is not undone")
	}
}
