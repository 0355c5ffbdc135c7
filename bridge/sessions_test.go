// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
)

// services returns where the daemon listens for services, from now on.
func (d *daemon) services() string {
	d.w.t.Helper()
	path := filepath.Join(d.w.t.TempDir(), "sessions")
	listener, err := wire.ListenToAll(path)
	if err != nil {
		d.w.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- d.server.ServeSessions(d.w.t.Context(), listener) }()
	d.w.t.Cleanup(func() {
		_ = listener.Close()
		if err := <-done; err != nil {
			d.w.t.Errorf("ServeSessions: %v", err)
		}
	})
	return path
}

// daemon starts an fdbridged, when the one before has ended.
func (w *world) daemon() *daemon {
	w.t.Helper()
	if w.last != nil {
		w.last.stop()
	}
	w.last = w.start(w.t.Context(), filepath.Join(w.t.TempDir(), "socket"), keeper{m: w.manager, unit: bridge.OwnUnit})
	return w.last
}

// asks makes a request as a process of a unit, and returns the answer and the
// session with it, nil when there is none.
func (w *world) asks(path, unit, op, name string) (wire.Session, *session.Session) {
	w.t.Helper()
	w.setPeer(unit)
	conn, err := wire.Dial(path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	var answer wire.Session
	var f *fd.FD
	if err = conn.Send(wire.Request{Op: op, Name: name}, nil); err == nil {
		f, err = conn.Receive(&answer)
	}
	if err != nil {
		w.t.Fatalf("%s %q as %s: %v", op, name, unit, err)
	}
	if f == nil {
		return answer, nil
	}
	s := session.Adopt(w.kernel, f)
	w.t.Cleanup(func() { _ = s.Close() })
	return answer, s
}

// gets is asks for who is to get a session.
func (w *world) gets(path, unit, op, name string) *session.Session {
	w.t.Helper()
	answer, s := w.asks(path, unit, op, name)
	want := wire.Session{Unit: unit, Session: kho.ServiceSession(unit, name)}
	if answer.Came = false; answer != want || s == nil {
		w.t.Fatalf("%s %q as %s: %+v, session %v", op, name, unit, answer, s)
	}
	return s
}

// notServed is asks for who is to be told why not.
func (w *world) notServed(path, unit, op, name, why string) {
	w.t.Helper()
	answer, s := w.asks(path, unit, op, name)
	if s != nil || !strings.Contains(answer.Error, why) || strings.Contains(answer.Error, "\n") {
		w.t.Errorf("%s %q as %s: %+v, session %v; want an error that says %q", op, name, unit, answer, s, why)
	}
}

func memfdWith(t testing.TB, text string) *fd.FD {
	t.Helper()
	raw, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := fd.New(raw)
	t.Cleanup(func() { _ = f.Close() })
	if _, err := unix.Write(raw, []byte(text)); err != nil {
		t.Fatal(err)
	}
	return f
}

// holds checks that a session has a file with this text under a token.
func holds(t *testing.T, s *session.Session, token uint64, want string) {
	t.Helper()
	f, err := s.RetrieveFD(token)
	if err != nil {
		t.Errorf("token %d: %v", token, err)
		return
	}
	defer f.Close()
	buffer := make([]byte, 100)
	_ = f.Do(func(raw int) error {
		if n, err := unix.Pread(raw, buffer, 0); string(buffer[:max(n, 0)]) != want {
			t.Errorf("token %d has %q, %v; want %q", token, buffer[:max(n, 0)], err, want)
		}
		return nil
	})
}

// vm is a world in which vm.service has opened a session with a file in it.
func vm(t *testing.T) *world {
	w := newWorld(t)
	for _, unit := range []string{"vm.service", "other.service", "required.service"} {
		w.add(unit, "yes")
	}
	s := w.gets(w.daemon().services(), "vm.service", wire.OpOpenSession, "guest")
	if err := s.Preserve(memfdWith(t, "memory"), 77); err != nil {
		t.Fatal(err)
	}
	_ = s.Close() // as when the service stops
	return w
}

func TestAServiceRegainsWhatItHasPreservedItself(t *testing.T) {
	w := vm(t)
	preserved := w.preserve()
	want := []kho.Service{kho.NewService("vm.service", "guest", kho.Identity{Fragment: "/etc/systemd/system/vm.service", User: "nobody"})}
	if diff := cmp.Diff(want, preserved.Index.Services); diff != "" || len(preserved.Index.Units) > 0 {
		t.Errorf("index: units %+v, services (-want +got):\n%s", preserved.Index.Units, diff)
	}
	w.kexec(preserved)
	d := w.daemon()
	path := d.services()
	for unit, name := range map[string]string{"other.service": "guest", "vm.service": "gues"} {
		if answer, s := w.asks(path, unit, wire.OpClaimSession, name); s != nil || answer != (wire.Session{Unit: unit}) {
			t.Errorf("%s claims %q: %+v, %v", unit, name, answer, s)
		}
	}
	for range 2 { // the service crashes in between
		s := w.gets(path, "vm.service", wire.OpClaimSession, "guest")
		holds(t, s, 77, "memory")
		_ = s.Close()
	}
	w.notServed(path, "vm.service", wire.OpOpenSession, "guest", "done with")
	w.asks(path, "other.service", wire.OpDoneSession, "guest")
	s := w.gets(path, "vm.service", wire.OpClaimSession, "guest")
	if err := s.Finish(); err != nil {
		t.Error(err)
	}
	if answer, _ := w.asks(path, "vm.service", wire.OpDoneSession, "guest"); answer.Error != "" {
		t.Errorf("done: %+v", answer)
	}
	_ = s.Close()
	if answer, s := w.asks(path, "vm.service", wire.OpClaimSession, "guest"); s != nil || answer.Session != "" {
		t.Errorf("after it is done: %+v, %v", answer, s)
	}
	if err := w.gets(path, "vm.service", wire.OpOpenSession, "guest").Preserve(memfdWith(t, "again"), 1); err != nil {
		t.Error(err)
	}
	w.kexec(w.preserve())
	d = w.daemon()
	holds(t, w.gets(d.services(), "vm.service", wire.OpClaimSession, "guest"), 1, "again")
	if p := d.holder.Problems(); len(p) > 0 {
		t.Errorf("problems: %q", p)
	}
}

func TestASessionIsTheSameUntilItIsDoneWith(t *testing.T) {
	w := vm(t)
	path := w.daemon().services() // the one before has crashed
	s := w.gets(path, "vm.service", wire.OpOpenSession, "guest")
	if err := s.Preserve(memfdWith(t, "x"), 77); !errors.Is(err, session.ErrTokenUsed) {
		t.Errorf("preserve under a token that was used: %v", err)
	}
	other := w.gets(path, "other.service", wire.OpOpenSession, "guest")
	if err := other.Preserve(memfdWith(t, "x"), 77); err != nil {
		t.Errorf("preserve in another unit's session of that name: %v", err)
	}
	_ = s.Close()
	w.asks(path, "vm.service", wire.OpDoneSession, "guest")
	s = w.gets(w.daemon().services(), "vm.service", wire.OpOpenSession, "guest")
	if err := s.Preserve(memfdWith(t, "x"), 77); err != nil {
		t.Errorf("preserve in a new session: %v", err)
	}
	if diff := cmp.Diff(2, strings.Count(strings.Join(w.names(bridge.OwnUnit), " "), "o-")); diff != "" {
		t.Errorf("fdbridged's store has %q", w.names(bridge.OwnUnit))
	}
}

func TestAServiceIsToldWhyItGetsNoSession(t *testing.T) {
	w := newWorld(t)
	for unit, preserve := range map[string]string{"in.service": "yes", "out.service": "restart", "excluded.service": "yes", "none.service": "yes"} {
		w.add(unit, preserve)
	}
	w.setMax("none.service", 0)
	d := w.daemon()
	d.server.Excluded = func(unit string) bool { return unit == "excluded.service" }
	path := d.services()
	for _, unit := range []string{"out.service", "none.service"} {
		w.notServed(path, unit, wire.OpOpenSession, "a", unit+" has not opted in")
	}
	w.notServed(path, "excluded.service", wire.OpOpenSession, "a", "left alone")
	for _, op := range []string{wire.OpOpenSession, wire.OpClaimSession, wire.OpDoneSession} {
		for _, name := range []string{"", "a b", "a:b", strings.Repeat("x", 256)} {
			w.notServed(path, "in.service", op, name, "1 to 255 printable ASCII characters")
		}
	}
	for _, op := range []string{wire.OpDrop, wire.OpDeliver, wire.OpList, wire.OpStatus, wire.OpLUOSession, ""} {
		w.notServed(path, "in.service", op, "a", "there is no operation")
	}
	for i := range wire.MaxSessions {
		_ = w.gets(path, "in.service", wire.OpOpenSession, fmt.Sprint(i)).Close()
	}
	w.notServed(path, "in.service", wire.OpOpenSession, "one-more", "no unit may have more")
	_ = w.gets(path, "in.service", wire.OpOpenSession, "3").Close()
	w.asks(path, "in.service", wire.OpDoneSession, "3")
	_ = w.gets(path, "in.service", wire.OpOpenSession, "one-more").Close()
	w.kernel.OpenErr = unix.ENOENT
	w.notServed(path, "in.service", wire.OpClaimSession, "a:b", "colon")
	w.asks(path, "in.service", wire.OpDoneSession, "4")
	w.notServed(path, "in.service", wire.OpOpenSession, "4", "this kernel offers no live update")
	if !strings.Contains(w.logged(), `in.service: open-session of the session "one-more" is refused`) {
		t.Errorf("refusals are not logged:\n%s", w.logged())
	}
}

func TestASessionIsForTheUserThatLeftIt(t *testing.T) {
	w := vm(t)
	w.kexec(w.preserve())
	w.setUser("vm.service", "mallory")
	path := w.daemon().services()
	w.notServed(path, "vm.service", wire.OpClaimSession, "guest", `its user was "nobody" and is "mallory"`)
	w.setUser("vm.service", "nobody")
	holds(t, w.gets(path, "vm.service", wire.OpClaimSession, "guest"), 77, "memory")
}

func TestAnUpdateThatIsCalledOffLeavesSessionsOpen(t *testing.T) {
	w := vm(t)
	if err := w.preserve().Close(); err != nil {
		t.Error(err)
	}
	s := w.gets(w.daemon().services(), "vm.service", wire.OpOpenSession, "guest")
	if err := s.Preserve(memfdWith(t, "x"), 77); !errors.Is(err, session.ErrTokenUsed) {
		t.Errorf("preserve under the token of before: %v", err)
	}
}

func TestWhatAServiceIsNotDoneWithIsNamedAsLost(t *testing.T) {
	w := vm(t)
	path := w.daemon().services()
	s := w.gets(path, "required.service", wire.OpOpenSession, "r")
	if err := s.Preserve(memfdWith(t, "r"), 1); err != nil {
		t.Fatal(err)
	}
	w.kexec(w.preserve())
	d := w.daemon()
	path = d.services()
	if _, err := w.preserver().Run(t.Context()); !errors.Is(err, bridge.ErrRequired) || !strings.Contains(fmt.Sprint(err), "required.service: 1 of its fds") {
		t.Errorf("preserve: %v", err)
	}
	holds(t, w.gets(path, "required.service", wire.OpClaimSession, "r"), 1, "r")
	w.asks(path, "required.service", wire.OpDoneSession, "r")
	preserved := w.preserve()
	var lost []string
	for _, u := range preserved.Index.Units {
		for _, l := range u.Lost {
			lost = append(lost, u.Unit+" "+l.Name+" "+l.Type)
		}
	}
	if diff := cmp.Diff([]string{"vm.service guest luo_session"}, lost); diff != "" || len(preserved.Index.Services) > 0 {
		t.Errorf("lost (-want +got):\n%s; carried: %+v", diff, preserved.Index.Services)
	}
	if !strings.Contains(w.logged(), `vm.service: The fd "guest" (luo_session) will be lost: it has come through the last live update`) {
		t.Errorf("it is not logged:\n%s", w.logged())
	}
}

// A PID 1 that carries stores is left no session of fdbridged's.
func TestSessionsAreCarriedBesideAPID1ThatCarriesStores(t *testing.T) {
	w := vm(t)
	w.carries = true
	preserved := w.preserve()
	if !slices.Contains(w.emptied, bridge.OwnUnit) {
		t.Errorf("emptied: %v", w.emptied)
	}
	w.kexec(preserved)
	holds(t, w.gets(w.daemon().services(), "vm.service", wire.OpClaimSession, "guest"), 77, "memory")
}

func TestDroppingAUnitDropsItsSessions(t *testing.T) {
	w := vm(t)
	w.kexec(w.preserve())
	d := w.daemon()
	if err := wire.Drop(d.socket, "vm.service"); err != nil {
		t.Errorf("drop: %v", err)
	}
	if err := wire.Drop(d.socket, "vm.service"); !errors.Is(err, wire.ErrRefused) {
		t.Errorf("drop again: %v", err)
	}
	if answer, s := w.asks(d.services(), "vm.service", wire.OpClaimSession, "guest"); s != nil || answer.Session != "" {
		t.Errorf("claim: %+v, %v", answer, s)
	}
}

func TestASessionThatDidNotComeIsAProblemAndSaidToItsUnit(t *testing.T) {
	w := vm(t)
	w.kexec(w.preserve())
	w.kernel.Fail = func(req uint, name string, _ uint64) error {
		if req == session.ReqRetrieveSession && name == "fdbridge/vm.service/guest" {
			return unix.ENOMEM
		}
		return nil
	}
	d := w.daemon()
	path := d.services()
	if p := d.holder.Problems(); len(p) != 1 || !strings.Contains(p[0], `vm.service: Its session "guest" cannot be restored`) {
		t.Errorf("problems: %q", p)
	}
	w.notServed(path, "vm.service", wire.OpClaimSession, "guest", "cannot allocate memory")
	_ = w.gets(path, "vm.service", wire.OpOpenSession, "guest").Close()
}

func TestOneUnitLeavesRoomForTheOthers(t *testing.T) {
	w := vm(t)
	path := w.daemon().services()
	w.setPeer("other.service")
	for range 300 { // which say nothing
		conn, err := wire.Dial(path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	closed := 0
	conn, err := wire.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Receive(&wire.Session{}); err != nil {
		closed++
	}
	if closed != 1 {
		t.Errorf("one more than there may be is not closed")
	}
	_ = w.gets(path, "vm.service", wire.OpOpenSession, "guest").Close()
}

// fdbridged ends before each of its steps until a service has opened its session, and
// the service asks the next one.
func TestFdbridgedIsKilledWhileASessionIsOpened(t *testing.T) {
	for steps := 0; ; steps++ {
		w := newWorld(t)
		w.add("vm.service", "yes")
		end := newFate(1000)
		d := w.start(t.Context(), filepath.Join(t.TempDir(), "socket"), stepping{keeper{m: w.manager, unit: bridge.OwnUnit}, end.step})
		end.in(steps)
		answer, s := w.asks(d.services(), "vm.service", wire.OpOpenSession, "a")
		if answer.Error == "" {
			if err := s.Preserve(memfdWith(t, "A"), 1); err != nil {
				t.Fatal(err)
			}
		}
		d.stop()
		s2 := w.gets(w.daemon().services(), "vm.service", wire.OpOpenSession, "a")
		err := s2.Preserve(memfdWith(t, "A"), 1)
		if answer.Error == "" && !errors.Is(err, session.ErrTokenUsed) {
			t.Errorf("step %d: the session that was answered with is another one: %v", steps, err)
		}
		w.kexec(w.preserve())
		holds(t, w.gets(w.daemon().services(), "vm.service", wire.OpClaimSession, "a"), 1, "A")
		if end.step() {
			return // it came to its end
		}
	}
}

// luo starts a unit's fdbridge-inject, with the names in its LUOSession=.
func (w *world) luo(socket, unit string, names ...string) error {
	w.t.Helper()
	d := w.inject(socket, unit, keeper{m: w.manager, unit: unit})
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
	if err := w.storedSession("luo.service", "first").Preserve(memfdWith(t, "F"), 1); err != nil {
		t.Fatal(err)
	}
	preserved := w.preserve()
	who := kho.Identity{User: "nobody"}
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

func TestFdbridgeInjectIsKilledWhileItDeliversSessions(t *testing.T) {
	for steps := 0; ; steps++ {
		w := newWorld(t)
		w.add("luo.service", "yes")
		d := w.daemon()
		if err := w.luo(d.socket, "luo.service", "a"); err != nil {
			t.Fatal(err)
		}
		if err := w.storedSession("luo.service", "a").Preserve(memfdWith(t, "A"), 1); err != nil {
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
