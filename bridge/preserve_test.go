// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units/notify"
)

// lend stores what is in one unit's store, found by its name, in another
// unit's: the same open file, or the same file opened anew at a position, for
// reading only if for another unit, which is how the two can be told apart.
func (w *world) lend(from, name, to, as string, anew int64) {
	w.t.Helper()
	for _, p := range w.passed(from) {
		if p.Name == name {
			f := p.FD
			if anew >= 0 {
				flags := unix.O_RDWR
				if from != to {
					flags = unix.O_RDONLY
				}
				f = w.reopen(p.FD, flags, anew)
			}
			if err := (keeper{m: w.manager, unit: to}).Store(as, f); err != nil {
				w.t.Fatal(err)
			}
			_ = f.Close()
		}
		_ = p.FD.Close()
	}
}

func (w *world) reopen(f *fd.FD, flags int, position int64) *fd.FD {
	w.t.Helper()
	var raw int
	err := f.Do(func(old int) (err error) {
		raw, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", old), flags|unix.O_CLOEXEC, 0)
		return err
	})
	if err == nil {
		_, err = unix.Seek(raw, position, unix.SEEK_SET)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return fd.New(raw)
}

// same tells whether two entries are the same file, and the same open file.
func (w *world) same(unitA, a, unitB, b string) (file, open bool) {
	w.t.Helper()
	find := func(unit, name string) (found *fd.FD) {
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
		return found
	}
	f, g := find(unitA, a), find(unitB, b)
	defer f.Close()
	defer g.Close()
	open, err := f.SameOpenFile(g)
	st, err1 := f.Stat()
	other, err2 := g.Stat()
	if err := errors.Join(err, err1, err2); err != nil {
		w.t.Fatal(err)
	}
	return st.Ino == other.Ino && st.Dev == other.Dev, open
}

// update takes the units through a live update, delivers to those named, in
// that order, and stops fdbridged.
func (w *world) update(deliver ...string) (holder *bridge.Holder) {
	w.t.Helper()
	w.kexec(w.preserve())
	holder, socket, stop := w.serve()
	for _, unit := range deliver {
		if _, err := w.deliver(socket, unit); err != nil {
			w.t.Errorf("deliver to %s: %v", unit, err)
		}
	}
	stop()
	return holder
}

func (w *world) check(want map[string][]string) {
	w.t.Helper()
	for unit, contents := range want {
		if diff := cmp.Diff(contents, w.contents(unit)); diff != "" {
			w.t.Errorf("the store of %s (-want +got):\n%s", unit, diff)
		}
	}
}

func TestAFileThatIsOpenTwiceInAStoreComesBackSo(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "one", "contents")
	w.put("a.service", "other", "OTHER")
	w.lend("a.service", "one", "a.service", "two", 3)
	w.lend("a.service", "one", "a.service", "three", 5)
	want := map[string][]string{"a.service": w.contents("a.service")}
	holder := w.update("a.service")
	w.check(want)
	for _, name := range []string{"two", "three"} {
		if file, open := w.same("a.service", "one", "a.service", name); !file || open {
			t.Errorf("one and %s: same file %v, same open file %v", name, file, open)
		}
	}
	if p := holder.Problems(); len(p) > 0 || strings.Contains(w.logged(), "lost") {
		t.Errorf("problems: %q\n%s", p, w.logged())
	}
	// What only the kernel's log had is said again by the next kernel's fdbridged.
	for _, name := range []string{"one", "two", "three"} {
		says := fmt.Sprintf("Before the live update: a.service: PID 1 has several open files of what the fd %q is", name)
		if n := strings.Count(w.logged(), says); n != 1 {
			t.Errorf("%d times %q in the log:\n%s", n, says, w.logged())
		}
	}
}

func TestAFileOfSeveralUnitsIsGivenToEach(t *testing.T) {
	for _, order := range [][]string{{"a.service", "b.service", "c.service"}, {"c.service", "b.service", "a.service"}} {
		w := newWorld(t)
		for _, unit := range order {
			w.add(unit, "yes")
			w.put(unit, "own", unit)
		}
		w.put("b.service", "shared", "SHARED")
		w.lend("b.service", "shared", "a.service", "same", -1)
		w.lend("b.service", "shared", "c.service", "anew", 2)
		want := map[string][]string{}
		for _, unit := range order {
			want[unit] = w.contents(unit)
		}
		w.update(order...)
		w.check(want)
		if file, open := w.same("b.service", "shared", "a.service", "same"); !file || !open {
			t.Errorf("%v: same: same file %v, same open file %v", order, file, open)
		}
		if file, open := w.same("b.service", "shared", "c.service", "anew"); !file || open {
			t.Errorf("%v: anew: same file %v, same open file %v", order, file, open)
		}
	}
}

// Whatever was delivered in between, what is held is carried on, again and again.
func TestASharedFileIsHeldOverSeveralUpdates(t *testing.T) {
	for _, first := range []string{"a.service", "b.service"} {
		w := newWorld(t)
		want := map[string][]string{}
		for _, unit := range []string{"a.service", "b.service", "c.service"} {
			w.add(unit, "yes")
			w.put(unit, "own", unit)
		}
		w.lend("a.service", "own", "b.service", "shared", -1)
		w.lend("a.service", "own", "c.service", "shared", 1)
		for unit := range w.units {
			want[unit] = w.contents(unit)
		}
		w.update()
		w.update(first)
		w.update(first)
		holder := w.update("c.service", "b.service", "a.service")
		delete(want, bridge.OwnUnit)
		delete(want, rescueUnit)
		w.check(want)
		if file, open := w.same("a.service", "own", "b.service", "shared"); !file || !open {
			t.Errorf("%s first: same file %v, same open file %v", first, file, open)
		}
		if held := holder.Units(); len(held) > 0 {
			t.Errorf("%s first: still held: %v", first, held)
		}
		if n := len(w.units[bridge.OwnUnit].store); n != 1 {
			t.Errorf("%s first: %d fds in fdbridged's store, want the index alone", first, n)
		}
	}
}

// Linux 6.19 to 7.1 have room for 128 files in a session.
func TestAUnitThatASessionHasNoRoomForHasSeveral(t *testing.T) {
	for _, n := range []int{3, 4, 5, 8, 23} {
		w := newWorld(t)
		w.kernel.MaxFiles = 4
		w.add("a.service", "yes")
		for i := range n {
			w.put("a.service", fmt.Sprintf("f%d", i), fmt.Sprint("contents ", i))
		}
		want := map[string][]string{"a.service": w.contents("a.service")}
		w.update()
		holder := w.update("a.service")
		w.check(want)
		if p := holder.Problems(); len(p) > 0 {
			t.Errorf("%d fds: %q", n, p)
		}
	}
}

// Linux 6.19 to 7.1 have room for some 819 sessions.
func TestUnitsThatThereIsNoSessionForHaveRoomWithOthers(t *testing.T) {
	w := newWorld(t)
	w.kernel.MaxSessions, w.kernel.MaxFiles = 4, 10
	want := map[string][]string{}
	for i := range 9 {
		unit := fmt.Sprintf("u%d.service", i)
		w.add(unit, "yes")
		w.put(unit, "x", fmt.Sprint("x of ", i))
		w.put(unit, "y", fmt.Sprint("y of ", i))
		want[unit] = w.contents(unit)
	}
	w.update()
	w.update("u1.service", "u8.service")
	holder := w.update("u0.service", "u8.service", "u2.service", "u3.service", "u7.service",
		"u4.service", "u5.service", "u6.service", "u1.service")
	w.check(want)
	if held := holder.Units(); len(held) > 0 || len(holder.Problems()) > 0 {
		t.Errorf("held: %v, problems: %q", held, holder.Problems())
	}
}

func TestASessionThatOthersHaveFilledLeavesRoomElsewhere(t *testing.T) {
	for met := false; !met; { // units are preserved in any order
		w := newWorld(t)
		w.kernel.MaxSessions = 3
		for _, unit := range []string{"a.service", "b.service"} {
			w.add(unit, "yes")
			w.put(unit, "x", "of "+unit)
		}
		var other atomic.Bool // the other unit has a session
		w.kernel.Fail = func(request uint, name string, _ uint64) error {
			switch {
			case request != session.ReqPreserveFD:
			case name == kho.SessionName("a.service"):
				other.Store(true)
			case name == kho.SessionName("b.service") && other.Load():
				met = true
				return unix.ENOSPC
			}
			return nil
		}
		for _, u := range w.preserve().Index.Units {
			if u.Entries != 1 || len(u.Lost) > 0 {
				t.Errorf("%s: %d carried, lost %+v", u.Unit, u.Entries, u.Lost)
			}
		}
	}
}

func TestNoRoomAtAllIsNamed(t *testing.T) {
	w := newWorld(t)
	w.kernel.MaxSessions, w.kernel.MaxFiles = 2, 3
	for _, unit := range []string{"a.service", "b.service"} {
		w.add(unit, "yes")
		w.put(unit, "x", "X")
		w.put(unit, "y", "Y")
	}
	index := w.preserve().Index
	carried, lost := 0, 0
	for _, u := range index.Units {
		carried, lost = carried+u.Entries, lost+len(u.Lost)
	}
	if carried+lost != 4 || lost < 2 || strings.Count(w.logged(), "will be lost") != lost {
		t.Errorf("%d carried, %d lost:\n%s", carried, lost, w.logged())
	}
}

func TestALossThatMayNotBeCallsTheUpdateOff(t *testing.T) {
	w := newWorld(t)
	for _, unit := range []string{"a.service", "required.service"} {
		w.add(unit, "yes")
		w.put(unit, "x", "X")
	}
	w.putPipe("a.service", "p")
	if err := w.preserve().Close(); err != nil { // what is lost is not of a required unit
		t.Fatal(err)
	}
	w.putPipe("required.service", "p")
	_, err := w.preserver().Run(t.Context())
	if !errors.Is(err, bridge.ErrRequired) || !strings.Contains(err.Error(), "required.service") {
		t.Errorf("%v, want ErrRequired", err)
	}
	device, err := session.Open(w.kernel, session.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	s, err := device.Create(kho.SessionName("a.service")) // which is not there any more
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
}

// rolledBack is a live update that is called off after what was held has been
// taken apart.
func (w *world) rolledBack() {
	w.t.Helper()
	w.kernel.Fail = func(request uint, name string, _ uint64) error {
		if request == session.ReqPreserveFD && name == kho.IndexSession {
			return unix.EIO
		}
		return nil
	}
	if _, err := w.preserver().Run(w.t.Context()); !errors.Is(err, unix.EIO) {
		w.t.Fatalf("preserve: %v, want EIO", err)
	}
	w.kernel.Fail = nil
}

func TestWhatIsHeldSurvivesAnUpdateThatIsCalledOff(t *testing.T) {
	w := newWorld(t)
	want := map[string][]string{}
	for _, unit := range []string{"a.service", "b.service"} {
		w.add(unit, "yes")
		w.put(unit, "own", unit)
	}
	w.lend("a.service", "own", "b.service", "anew", 1)
	for _, unit := range []string{"a.service", "b.service"} {
		want[unit] = w.contents(unit)
	}
	w.update()
	w.rolledBack()
	w.rolledBack()
	holder, socket, stop := w.serve()
	if diff := cmp.Diff([]string{"a.service", "b.service"}, holder.Units()); diff != "" {
		t.Errorf("held (-want +got):\n%s", diff)
	}
	if _, err := w.deliver(socket, "b.service"); err != nil {
		t.Error(err)
	}
	stop()
	w.update("b.service", "a.service")
	w.check(want)
	if n := len(w.units[rescueUnit].store); n != 0 {
		t.Errorf("%d fds are left in the store of %s", n, rescueUnit)
	}
}

// PID 1 is busy when all services are started again.
func TestWhatAnUpdateThatWasCalledOffHasTakenApartWaitsForPID1(t *testing.T) {
	for _, again := range []bool{true, false} {
		w := newWorld(t)
		w.add("a.service", "yes")
		w.put("a.service", "own", "x")
		want := map[string][]string{"a.service": w.contents("a.service")}
		w.update()
		w.rolledBack()
		w.unheard = errors.New("no answer")
		holder, socket, stop := w.serve()
		if p := holder.Problems(); len(p) != 1 || !strings.Contains(p[0], "no answer; \"systemctl restart fdbridged.service\"") {
			t.Errorf("problems: %q", p)
		}
		if n, err := w.deliver(socket, "a.service"); n != 0 || err == nil {
			t.Errorf("delivered: %d, %v", n, err)
		}
		stop()
		w.unheard = nil
		if !again { // the next update comes before fdbridged is restarted
			w.kexec(w.preserve())
		}
		_, socket, stop = w.serve()
		if n, err := w.deliver(socket, "a.service"); n != 1 || err != nil {
			t.Errorf("delivered: %d, %v", n, err)
		}
		stop()
		w.check(want)
	}
}

func TestWhatIsHeldAndCannotBeReadIsLeftWhereItIs(t *testing.T) {
	w := newWorld(t)
	w.kernel.MaxFiles = 3 // so that one has a second session
	for _, unit := range []string{"a.service", "b.service"} {
		w.add(unit, "yes")
		w.put(unit, "own", unit)
	}
	for i := range 4 {
		w.put("a.service", fmt.Sprint("more", i), "x")
	}
	w.update()
	var finished []string
	w.kernel.Fail = func(request uint, name string, token uint64) error {
		switch {
		case request == session.ReqRetrieveFD && strings.HasPrefix(name, kho.SessionName("a.service")) && token == kho.ManifestToken:
			return unix.EIO
		case request == session.ReqFinish:
			finished = append(finished, name)
		}
		return nil
	}
	_ = w.preserve()
	if want := []string{kho.SessionName("b.service")}; !slices.Equal(finished, want) {
		t.Errorf("finished were %v, want %v:\n%s", finished, want, w.logged())
	}
}

// What is held is required, too, and another session has one of its files by then.
func TestALossOfWhatIsHeldCallsTheUpdateOff(t *testing.T) {
	w := newWorld(t)
	w.add("required.service", "yes")
	w.put("required.service", "own", "mine")
	w.update()
	w.kernel.Fail = func(request uint, name string, token uint64) error {
		if request == session.ReqPreserveFD && name == kho.SessionName("required.service") {
			return unix.EBUSY
		}
		return nil
	}
	if _, err := w.preserver().Run(t.Context()); !errors.Is(err, bridge.ErrRequired) {
		t.Errorf("%v, want ErrRequired", err)
	}
	w.kernel.Fail = nil
	_, socket, stop := w.serve()
	defer stop()
	if n, err := w.deliver(socket, "required.service"); n != 1 || err != nil {
		t.Errorf("after that %d fds were delivered, %v", n, err)
	}
}

// rescued is what fdbridged asks PID 1 after an update that was called off.
func (w *world) rescued(context.Context) ([]notify.Passed, func() error, error) {
	letGo := func() error {
		if w.unemptied == nil {
			w.empty(rescueUnit)
		}
		return w.unemptied
	}
	if w.unheard != nil {
		return nil, letGo, w.unheard
	}
	return w.passed(rescueUnit), letGo, w.unrescued
}

func TestWhatIsHeldAndNotCarriedIsNamed(t *testing.T) {
	for what, begin := range map[string]func(w *world){
		"nothing was done":           func(*world) {},
		"it was taken apart already": (*world).rolledBack,
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			for _, unit := range []string{"a.service", "b.service"} {
				w.add(unit, "yes")
				w.put(unit, "x", "X")
			}
			w.update("b.service")
			begin(w)
			w.carries = true
			w.preserver().GiveUp(t.Context(), errors.New("it is broken"))
			const by = " by fdbridge, but maybe by the service manager"
			for _, want := range []string{
				"No fd store will be carried into the next kernel" + by, "b.service: Not carried" + by + ` are the fds "x" (memfd)`,
				"a.service: Not carried are the 1 fds that are held for it",
			} {
				if !strings.Contains(w.logged(), want) {
					t.Errorf("the log does not say %q:\n%s", want, w.logged())
				}
			}
			if strings.Contains(w.logged(), "b.service: Not carried are the 1 fds that are held") {
				t.Errorf("what was delivered is not held:\n%s", w.logged())
			}
			if w.recorded != nil && w.recorded.Messages != nil {
				t.Errorf("what may be carried is recorded as lost: %+v", w.recorded)
			}
			w.carries = false
			w.preserver().GiveUp(t.Context(), errors.New("it is broken"))
			if got := w.recorded.Totals(); len(got) != 2 || got[0].Lost != 1 || got[1].Entries != 1 {
				t.Errorf("recorded are %+v, want what b.service has stored and what is held for a.service", got)
			}
			if _, err := w.recorded.Encode(); err != nil {
				t.Errorf("what is recorded: %v", err)
			}
		})
	}
}

func TestWhatALiveUpdateWithoutFdbridgeDoesNotCarryIsNamed(t *testing.T) {
	w := newWorld(t)
	for _, unit := range []string{"a.service", "excluded.service"} {
		w.add(unit, "yes")
		w.put(unit, "x", "X")
	}
	w.putPipe("a.service", "p")
	w.preserver().GiveUp(t.Context(), errors.New("it is broken"))
	for _, want := range []string{"it is broken", `a.service: Not carried are the fds "p" (pipe), "x" (memfd)`} {
		if !strings.Contains(w.logged(), want) {
			t.Errorf("the log does not say %q:\n%s", want, w.logged())
		}
	}
	if strings.Contains(w.logged(), "excluded") {
		t.Errorf("the log names a unit that is excluded:\n%s", w.logged())
	}
	// The next boot is to say it again.
	const why = "nothing could be preserved"
	want := []kho.IndexUnit{{Unit: "a.service", Lost: []kho.LostEntry{{Name: "p", Type: "pipe", Reason: why}, {Name: "x", Type: "memfd", Reason: why}}}}
	if diff := cmp.Diff(want, w.recorded.Units); diff != "" {
		t.Errorf("recorded (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"No fd store will be carried into the next kernel: it is broken"}, w.recorded.Messages); diff != "" {
		t.Errorf("recorded messages (-want +got):\n%s", diff)
	}
	w.recorded = nil
	w.empty("a.service")
	w.preserver().GiveUp(t.Context(), errors.New("it is broken"))
	if w.recorded != nil {
		t.Errorf("that nothing is lost is recorded: %+v", w.recorded)
	}
	w.err = errors.New("no answer")
	w.preserver().GiveUp(t.Context(), errors.New("it is broken"))
	if !strings.Contains(w.logged(), "no answer") {
		t.Errorf("the log does not say that there may be more:\n%s", w.logged())
	}
}

// A unit of which nothing can be carried leaves a session that is closed.
func TestWhatIsHeldHasRoomWithOthersWhenThereAreNoMoreSessions(t *testing.T) {
	w := newWorld(t)
	for _, unit := range []string{"a.service", "held.service", "too.service"} {
		w.add(unit, "yes")
		w.put(unit, "x", "of "+unit)
	}
	w.update("a.service")
	w.empty("a.service")
	w.putPipe("a.service", "p")
	w.kernel.MaxSessions = 2 // that of the index, and of one of the units
	for _, u := range w.preserve().Index.Units {
		if u.Unit != "a.service" && (u.Entries != 1 || len(u.Lost) > 0) {
			t.Errorf("%s: %d carried, lost %+v", u.Unit, u.Entries, u.Lost)
		}
	}
}

// As when PID 1 has executed itself anew since it was looked at, and has other numbers.
func TestAnIndexThatIsNotWhereItWasStoredIsNotTakenForNone(t *testing.T) {
	for _, required := range []bool{true, false} {
		w := newWorld(t)
		w.add("a.service", "yes")
		w.put("a.service", "x", "X")
		w.update()
		w.closed = true
		p := w.preserver()
		p.Partly = !required
		const says = "the index is not where it was stored"
		preserved, err := p.Run(t.Context())
		if preserved != nil {
			_ = preserved.Close()
		}
		if required != errors.Is(err, bridge.ErrRequired) || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("Run: %v", err)
		}
		if !required && !strings.Contains(w.logged(), "What is held for units will be lost: it is not known what is held for which unit: "+says) {
			t.Errorf("the log does not say it:\n%s", w.logged())
		}
	}
}
