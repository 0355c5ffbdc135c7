// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
)

// luo starts a unit's fdbridge-inject, with the names in its LUOSession=.
func (w *world) luo(socket, unit string, names ...string) error {
	w.t.Helper()
	store := &queue{keeper: keeper{m: w.manager, unit: unit}}
	defer store.drop()
	d := w.inject(socket, unit, store)
	came, failed := d.Sessions(w.t.Context(), names)
	_, err := d.Run(w.t.Context())
	return errors.Join(failed, err, d.Done(w.t.Context(), came))
}

// stored returns the session that a unit has in its store.
func (w *world) storedSession(unit, name string) *session.Session {
	w.t.Helper()
	for _, p := range w.passed(unit) {
		if p.Name == name {
			s := session.Adopt(w.kernel, p.FD)
			w.t.Cleanup(func() { _ = s.Close() })
			return s
		}
		_ = p.FD.Close()
	}
	w.t.Fatalf("%s has no session %q in its store", unit, name)
	return nil
}

func TestLUOSessionIsInTheStoreBeforeAndAfterAnUpdate(t *testing.T) {
	w := newWorld(t)
	w.add("luo.service", "yes")
	d := w.daemon()
	for range 2 { // the second time nothing is new
		if err := w.luo(d.socket, "luo.service", "first", "second"); err != nil {
			t.Fatal(err)
		}
	}
	w.put("luo.service", "m", "M")
	order := []string{"m", "second", "first"}
	if diff := cmp.Diff(order, w.names("luo.service")); diff != "" {
		t.Errorf("store (-want +got):\n%s", diff)
	}
	if err := w.storedSession("luo.service", "first").Preserve(fdtest.MemfdWith(t, "F"), 1); err != nil {
		t.Fatal(err)
	}
	preserved := w.preserve()
	who := kho.Identity{Fragment: "/etc/systemd/system/luo.service", User: "nobody"}
	want := []kho.Service{kho.NewService("luo.service", "second", who), kho.NewService("luo.service", "first", who)}
	if diff := cmp.Diff(want, preserved.Index.Services); diff != "" {
		t.Errorf("carried (-want +got):\n%s", diff)
	}
	units := []kho.IndexUnit{{Unit: "luo.service", Sessions: []string{"fdbridge.luo.service"}, Entries: 1, Bytes: 1}}
	if diff := cmp.Diff(units, preserved.Index.Units); diff != "" {
		t.Errorf("index (-want +got):\n%s", diff)
	}
	w.kexec(preserved)
	d = w.daemon()
	if err := w.luo(d.socket, "luo.service", "first", "second", "third"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"m", "third", "second", "first"}, w.names("luo.service")); diff != "" {
		t.Errorf("store after the update (-want +got):\n%s", diff)
	}
	s := w.storedSession("luo.service", "first")
	holds(t, s, 1, "F")
	if slices.ContainsFunc(w.names(bridge.OwnUnit), func(name string) bool { return strings.HasPrefix(name, "s-") }) {
		t.Errorf("fdbridged holds on what is in the unit's store: %q", w.names(bridge.OwnUnit))
	}
	// What came and is not taken out of the store is lost with the next update.
	if err := s.Finish(); err != nil {
		t.Error(err)
	}
	if err := (keeper{m: w.manager, unit: "luo.service"}).Remove("first"); err != nil {
		t.Error(err)
	}
	_ = s.Close()
	if err := w.luo(d.socket, "luo.service", "first", "second", "third"); err != nil {
		t.Fatal(err)
	}
	index := w.preserve().Index
	if len(index.Services) != 2 || len(index.Units) != 1 || len(index.Units[0].Lost) != 1 || index.Units[0].Lost[0].Name != "second" ||
		!strings.Contains(index.Units[0].Lost[0].Reason, "not done with it") {
		t.Errorf("carried: %+v, units: %+v", index.Services, index.Units)
	}
}

// A session that fdbridge did not make for the unit is no more carried than before.
func TestAStrangeSessionInAStoreIsLost(t *testing.T) {
	w := newWorld(t)
	for _, unit := range []string{"a.service", "b.service"} {
		w.add(unit, "yes")
	}
	d := w.daemon()
	if err := w.luo(d.socket, "a.service", "x"); err != nil {
		t.Fatal(err)
	}
	s := w.storedSession("a.service", "x")
	if err := (keeper{m: w.manager, unit: "b.service"}).Store("x", s.FD()); err != nil {
		t.Fatal(err)
	}
	index := w.preserve().Index
	if len(index.Services) != 1 || index.Services[0].Unit != "a.service" || len(index.Units) != 1 ||
		index.Units[0].Unit != "b.service" || len(index.Units[0].Lost) != 1 {
		t.Errorf("carried: %+v, units: %+v", index.Services, index.Units)
	}
}

// An entry's name is the unit's own choice: two can have one.
func TestAStrangeSessionUnderTheNameOfOnesOwnIsLost(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	for unit, name := range map[string]string{"a.service": "x", "b.service": "y"} {
		w.add(unit, "yes")
		if err := w.luo(d.socket, unit, name); err != nil {
			t.Fatal(err)
		}
	}
	s := w.storedSession("b.service", "y")
	if err := (keeper{m: w.manager, unit: "a.service"}).Store("x", s.FD()); err != nil {
		t.Fatal(err)
	}
	index := w.preserve().Index
	if len(index.Services) != 2 || len(index.Units) != 1 || index.Units[0].Unit != "a.service" || len(index.Units[0].Lost) != 1 {
		t.Errorf("carried: %+v, units: %+v", index.Services, index.Units)
	}
}

// What is given back is removed by its name, and another entry may have the same.
func TestASessionIsHeldWhenAFileOfItsNameIsGivenBack(t *testing.T) {
	const unit = "luo.service"
	w := newWorld(t)
	w.add(unit, "yes")
	if err := w.luo(w.daemon().socket, unit, "same"); err != nil {
		t.Fatal(err)
	}
	if err := w.storedSession(unit, "same").Preserve(fdtest.MemfdWith(t, "A"), 1); err != nil {
		t.Fatal(err)
	}
	w.put(unit, "same", "X") // and is stored first again
	w.put(unit, "other", "Y")
	w.kexec(w.preserve())
	d := w.daemon()
	inject := w.inject(d.socket, unit, &refusing{keeper: keeper{m: w.manager, unit: unit}, left: 2})
	came, err := inject.Sessions(t.Context(), []string{"same"})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := inject.Run(t.Context()); n != 0 || err == nil {
		t.Errorf("delivered: %d, %v", n, err)
	}
	if err := inject.Done(t.Context(), came); err != nil {
		t.Error(err)
	}
	w.empty(unit)
	came, err = w.inject(d.socket, unit, keeper{m: w.manager, unit: unit}).Sessions(t.Context(), []string{"same"})
	if diff := cmp.Diff([]string{"same"}, came); diff != "" || err != nil {
		t.Fatalf("came: %v (-want +got):\n%s", err, diff)
	}
	holds(t, w.storedSession(unit, "same"), 1, "A")
}

func TestFdbridgeInjectIsKilledWhileItDeliversSessions(t *testing.T) {
	for steps := 0; ; steps++ {
		w := newWorld(t)
		w.add("luo.service", "yes")
		d := w.daemon()
		if err := w.luo(d.socket, "luo.service", "a"); err != nil {
			t.Fatal(err)
		}
		if err := w.storedSession("luo.service", "a").Preserve(fdtest.MemfdWith(t, "A"), 1); err != nil {
			t.Fatal(err)
		}
		w.kexec(w.preserve())
		d = w.daemon()
		end := newFate(steps)
		inject := w.inject(d.socket, "luo.service", stepping{keeper{m: w.manager, unit: "luo.service"}, end.step})
		if came, err := inject.Sessions(t.Context(), []string{"a"}); err == nil {
			err = inject.Done(t.Context(), came)
			if err != nil && !errors.Is(err, errDead) {
				t.Fatal(err)
			}
		}
		d = w.daemon()
		if err := w.luo(d.socket, "luo.service", "a"); err != nil {
			t.Fatal(err)
		}
		holds(t, w.storedSession("luo.service", "a"), 1, "A")
		if end.step() {
			return
		}
	}
}

// PID 1 answers nobody while it starts all the units of a boot.
func TestLUOSessionIsThereWhenPID1HasAnswered(t *testing.T) {
	w := newWorld(t)
	w.add("luo.service", "yes")
	w.waitInterval = time.Millisecond
	d := w.daemon()
	w.setPeer("luo.service")
	conn := dial(t, d)
	w.fail(units.ErrManager)
	if err := conn.Send(wire.Request{Op: wire.OpLUOSession, Name: "a"}, nil); err != nil {
		t.Fatal(err)
	}
	answer := wire.Session{}
	for told := 0; told < 3 || answer.Wait; told++ {
		answer = wire.Session{}
		f, err := conn.Receive(&answer)
		if err != nil || told < 3 && !answer.Wait {
			t.Fatalf("answered %+v, %v; want to be told to wait", answer, err)
		}
		_ = f.Close()
		w.fail(nil)
	}
	if answer.Session == "" || answer.Error != "" {
		t.Errorf("answered %+v", answer)
	}
}

func TestLUOSessionOfWhatIsLostIsNew(t *testing.T) {
	w := newWorld(t)
	w.add("luo.service", "yes")
	d := w.daemon()
	if err := w.luo(d.socket, "luo.service", "a"); err != nil {
		t.Fatal(err)
	}
	w.kexec(w.preserve())
	w.kernel.Fail = func(req uint, name string, _ uint64) error {
		if req == session.ReqRetrieveSession && name == "fdbridge/luo.service/a" {
			return unix.ENOMEM
		}
		return nil
	}
	d = w.daemon()
	if err := w.luo(d.socket, "luo.service", "a"); err != nil {
		t.Error(err)
	}
	if out, err := w.storedSession("luo.service", "a").Outgoing(); !out || err != nil {
		t.Errorf("outgoing %v, %v", out, err)
	}
	if p := d.holder.Problems(); len(p) != 1 {
		t.Errorf("problems: %q", p)
	}
}

func TestSessionsTakeRoomInTheStore(t *testing.T) {
	w := newWorld(t)
	w.add("luo.service", "yes")
	for _, name := range []string{"a", "b", "c"} {
		w.put("luo.service", name, name)
	}
	w.kexec(w.preserve())
	w.setMax("luo.service", 3)
	d := w.daemon()
	if err := w.luo(d.socket, "luo.service", "s"); err == nil || !strings.Contains(err.Error(), "room for 3 fds only, and 4 are needed") {
		t.Errorf("delivered into a store without room: %v", err)
	}
	if diff := cmp.Diff([]string{"s"}, w.names("luo.service")); diff != "" {
		t.Errorf("store (-want +got):\n%s", diff)
	}
	if !slices.Contains(d.holder.Units(), "luo.service") {
		t.Error("what is held is held no more")
	}
}

// What has put a session into the store was cut off before it said so.
func TestASessionThatIsInTheStoreAlreadyIsHeldNoLonger(t *testing.T) {
	w := newWorld(t)
	w.add("luo.service", "yes")
	d := w.daemon()
	if err := w.luo(d.socket, "luo.service", "s"); err != nil {
		t.Fatal(err)
	}
	w.kexec(w.preserve())
	d = w.daemon()
	inject := w.inject(d.socket, "luo.service", keeper{m: w.manager, unit: "luo.service"})
	if came, err := inject.Sessions(t.Context(), []string{"s"}); len(came) != 1 || err != nil {
		t.Fatalf("came: %q, %v", came, err)
	}
	if err := w.luo(d.socket, "luo.service", "s"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"s"}, w.names("luo.service")); diff != "" {
		t.Errorf("store (-want +got):\n%s", diff)
	}
	if slices.ContainsFunc(w.names(bridge.OwnUnit), func(name string) bool { return strings.HasPrefix(name, "s-") }) {
		t.Errorf("fdbridged holds it on: %q", w.names(bridge.OwnUnit))
	}
}

// The kernel was replaced together with the systemd that made none yet.
// Sessions of a directive that was another, which systemd 261 and later bring back, take room.
func TestSessionsThatAreInTheStoreTakeRoom(t *testing.T) {
	const unit = "luo.service"
	w := newWorld(t)
	w.add(unit, "yes")
	for _, name := range []string{"a", "b"} {
		w.put(unit, name, name)
	}
	w.kexec(w.preserve())
	for _, name := range []string{"old", "older"} {
		s := w.forge(name, &kho.Index{})
		if err := errors.Join(keeper{m: w.manager, unit: unit}.Store(name, s.FD()), s.Close()); err != nil {
			t.Fatal(err)
		}
	}
	d := w.daemon()
	w.setMax(unit, 4)
	if err := w.luo(d.socket, unit, "s"); err == nil || !strings.Contains(err.Error(), "room for 4 fds only, and 5 are needed") {
		t.Errorf("deliver: %v, want that there is no room", err)
	}
	w.setMax(unit, 5)
	if err := w.luo(d.socket, unit, "s"); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"b", "a", "s", "older", "old"}, w.names(unit)); diff != "" {
		t.Errorf("store (-want +got):\n%s", diff)
	}
}

// Links tell the names of sessions up to 38 bytes.
func TestASessionThatCameReplacesOneThatSystemdHasMade(t *testing.T) {
	for _, of := range []string{"luo.service", "luo-with-a-long-name.service"} {
		t.Run(of, func(t *testing.T) { replacesMade(t, of) })
	}
}

func replacesMade(t *testing.T, of string) {
	w := newWorld(t)
	w.add(of, "yes")
	d := w.daemon()
	if err := w.luo(d.socket, of, "s"); err != nil {
		t.Fatal(err)
	}
	if err := w.storedSession(of, "s").Preserve(fdtest.MemfdWith(t, "S"), 1); err != nil {
		t.Fatal(err)
	}
	w.kexec(w.preserve())
	d = w.daemon()
	// Systemd 262 calls it by the unit's name and 24 hexadecimal digits.
	made := w.forge(of+"-0123456789abcdef01234567", &kho.Index{})
	defer made.Close()
	if err := (keeper{m: w.manager, unit: of}).Store("s", made.FD()); err != nil {
		t.Fatal(err)
	}
	if err := w.luo(d.socket, of, "s"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"s"}, w.names(of)); diff != "" {
		t.Errorf("store (-want +got):\n%s", diff)
	}
	holds(t, w.storedSession(of, "s"), 1, "S")
}
