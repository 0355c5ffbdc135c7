// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
	"github.com/fdbridge/fdbridge/units/generator"
)

func (m *manager) Identity(_ context.Context, name string) (units.Identity, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.identities++
	u := m.units[name]
	if u == nil {
		return units.Identity{Unit: name, Load: "not-found"}, m.err
	}
	id := u.identity
	id.Max, id.Preserve = u.max, u.preserve
	return id, m.err
}

// facts stands in for generator.Current.
func (m *manager) facts(name string) (generator.Facts, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u := m.units[name]
	if u == nil {
		return generator.Facts{}, false
	}
	if u.known {
		u.facts.Fragment, u.facts.User, u.facts.Group = u.identity.FragmentPath, u.identity.User, u.identity.Group
	}
	return u.facts, u.known
}

// remove removes a unit, which has nothing in its store.
func (m *manager) remove(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.units, name)
}

// change changes what a unit is.
func (m *manager) change(name string, change func(u *unit)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(m.units[name])
}

// held is a world in which two fds are held for a.service, and that unit's
// identity was changed after they were preserved.
func held(t *testing.T, change func(u *unit)) (*world, *daemon) {
	t.Helper()
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "X")
	w.put("a.service", "y", "Y")
	w.kexec(w.preserve())
	if change != nil {
		w.change("a.service", change)
	}
	return w, w.daemon()
}

// refused demands that a unit gets nothing, that all is held on for a.service,
// and that this is a problem that says what it is to, with the process in the log.
func (w *world) refused(d *daemon, unit string, says ...string) {
	w.t.Helper()
	n, err := w.deliver(d.socket, unit)
	if n != 0 || err == nil {
		w.t.Errorf("deliver to %s: %d, %v", unit, n, err)
	}
	if left := w.contents(unit); len(left) > 0 {
		w.t.Errorf("%s has got %q", unit, left)
	}
	if list := d.holder.Held("a.service"); len(list) != 1 || list[0].Entries != 2 {
		w.t.Errorf("held: %+v", list)
	}
	problems := strings.Join(d.holder.Problems(), "\n")
	for _, text := range append(says, unit+": What is held for ", "was not delivered and is held on: ") {
		if !strings.Contains(problems, text) {
			w.t.Errorf("the problems do not say %q:\n%s", text, problems)
		}
	}
	if who := fmt.Sprintf("(asked for by process %d)", os.Getpid()); !strings.Contains(w.logged(), who) || strings.Contains(problems, who) {
		w.t.Errorf("the log does not say %q, or the problems do:\n%s", who, w.logged())
	}
}

// delivered demands that a unit gets what was held for a.service.
func (w *world) delivered(d *daemon, unit string) {
	w.t.Helper()
	n, err := w.deliver(d.socket, unit)
	result{n, err}.check(w.t.(*testing.T), unit, 2)
	if diff := cmp.Diff([]string{"y=Y@1", "x=X@1"}, w.contents(unit)); diff != "" {
		w.t.Errorf("the store of %s (-want +got):\n%s", unit, diff)
	}
	if left := d.holder.Units(); len(left) > 0 {
		w.t.Errorf("still held: %v", left)
	}
	if diff := cmp.Diff([]string{"index"}, w.names(bridge.OwnUnit)); diff != "" {
		w.t.Errorf("fdbridged's store (-want +got):\n%s", diff)
	}
}

func TestAUnitThatHasBecomeAnotherGetsNothingAndIsNamed(t *testing.T) {
	user := func(u *unit) { u.identity.User = "alice" }
	identity := func(change func(*unit), words ...string) func(*unit) {
		return func(u *unit) { change(u); u.facts.Identity = words }
	}
	for name, test := range map[string]struct {
		change func(u *unit)
		says   string // what differs; empty when the unit gets its fds
	}{
		"nothing":                      {nil, ""},
		"user":                         {user, `its user was "nobody" and is "alice"`},
		"user, no more":                {func(u *unit) { u.identity.User = "" }, `its user was "nobody" and is "root"`},
		"user, which is not compared":  {identity(user, generator.ByGroup), ""},
		"user, and only that compared": {identity(user, generator.ByUser), `its user was "nobody"`},
		"group":                        {func(u *unit) { u.identity.Group = "staff" }, `its group was not set and is "staff"`},
		"both": {func(u *unit) { u.identity.User, u.identity.Group = "a", "b" },
			`its user was "nobody" and is "a", its group was not set and is "b"`},
		"unit file": {func(u *unit) { u.identity.FragmentPath = "/x" }, ""},
		"unit file, which is compared": {identity(func(u *unit) { u.identity.FragmentPath = "/x" }, generator.ByFragment),
			`its unit file was "/etc/systemd/system/a.service" and is "/x"`},
	} {
		for _, known := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, known %v", name, known), func(t *testing.T) {
				w, d := held(t, test.change)
				w.change("a.service", func(u *unit) { u.known = known })
				if test.says == "" {
					w.delivered(d, "a.service")
				} else {
					w.refused(d, "a.service", test.says, `"fdbridgectl deliver a.service --as a.service"`)
				}
				if asked := w.identities > 0; asked == known {
					t.Errorf("PID 1 was asked %d times who the unit is, which is known: %v", w.identities, known)
				}
			})
		}
	}
}

func TestRootIsRootHoweverItIsWritten(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.change("a.service", func(u *unit) { u.identity.User = "" })
	w.put("a.service", "x", "X")
	w.put("a.service", "y", "Y")
	w.kexec(w.preserve())
	w.change("a.service", func(u *unit) { u.identity.User, u.identity.Group = "root", "0" })
	w.delivered(w.daemon(), "a.service")
}

func TestPID1IsNotAskedWhoAUnitIsThatNothingIsHeldFor(t *testing.T) {
	w, d := held(t, nil)
	w.add("b.service", "yes")
	if n, err := w.deliver(d.socket, "b.service"); n != 0 || err != nil || w.identities > 0 {
		t.Errorf("deliver: %d, %v; PID 1 was asked %d times", n, err, w.identities)
	}
}

func TestWithoutPID1sAnswerNothingIsDelivered(t *testing.T) {
	w, d := held(t, nil)
	d.stop()
	w.queueTimeout = time.Second
	d = w.daemon()
	w.fail(units.ErrManager)
	w.refused(d, "a.service", units.ErrManager.Error())
}

// PID 1 answers nobody while it starts all the units of a boot.
func TestPID1sAnswerIsWaitedFor(t *testing.T) {
	w, d := held(t, nil)
	w.fail(units.ErrManager)
	done := run(t, w.inject(d.socket, "a.service", keeper{m: w.manager, unit: "a.service"}))
	for asked := 0; asked == 0; runtime.Gosched() {
		w.manager.mu.Lock()
		asked = w.identities
		w.manager.mu.Unlock()
	}
	w.fail(nil)
	(<-done).check(t, "a.service", 2)
}

// What is held over a further update belongs to whom it was preserved for.
func TestTheFirstIdentityIsCarriedOn(t *testing.T) {
	w, d := held(t, func(u *unit) { u.identity.User = "alice" })
	d.stop()
	w.kexec(w.preserve())
	d = w.daemon()
	w.refused(d, "a.service", `its user was "nobody" and is "alice"`)
	w.change("a.service", func(u *unit) { u.identity.User = "nobody" })
	w.delivered(d, "a.service")
}

// previously makes b.service say that it was called a.service before.
func (w *world) previously(name string) {
	w.add("b.service", "yes")
	w.change("b.service", func(u *unit) { u.facts.Previous, u.known = []string{name}, true })
}

func TestARenamedUnitGetsWhatIsHeldForItsPreviousName(t *testing.T) {
	for name, rename := range map[string]func(w *world){
		"gone":   func(w *world) { w.remove("a.service") },
		"masked": func(w *world) { w.change("a.service", func(u *unit) { u.identity.Load = "masked" }) },
		"alias":  func(w *world) { w.change("a.service", func(u *unit) { u.identity.Unit = "b.service" }) },
	} {
		t.Run(name, func(t *testing.T) {
			w, d := held(t, nil)
			rename(w)
			w.previously("a.service")
			w.add("c.service", "yes") // was renamed, too, and does not say so
			if n, err := w.deliver(d.socket, "c.service"); n != 0 || err != nil {
				t.Errorf("deliver to c.service: %d, %v", n, err)
			}
			w.delivered(d, "b.service")
		})
	}
}

func TestAPreviousNameIsNoWayToAnotherUnitsFds(t *testing.T) {
	for name, test := range map[string]struct {
		change func(w *world)
		says   string
	}{
		"there is a unit of that name": {func(*world) {}, "a.service is a unit of its own and alone may have what is held for it"},
		"whose file cannot be read": {func(w *world) { w.change("a.service", func(u *unit) { u.identity.Load = "bad-setting" }) },
			"a.service is a unit of its own"},
		"the user is another": {func(w *world) {
			w.remove("a.service")
			w.change("b.service", func(u *unit) { u.identity.User = "mallory" })
		}, `its user was "nobody" and is "mallory"`},
	} {
		t.Run(name, func(t *testing.T) {
			w, d := held(t, nil)
			w.previously("a.service")
			test.change(w)
			w.refused(d, "b.service", test.says, `"fdbridgectl deliver a.service --as b.service"`)
			w.setPeer("b.service")
			late := wire.Request{Op: wire.OpDelivered, Session: "fdbridge.a.service"}
			if says := ask(t, dial(t, d), late); !strings.Contains(says, test.says) {
				t.Errorf("delivered: %q, want %q", says, test.says)
			}
			if n := len(d.holder.Held("a.service")); n != 1 {
				t.Errorf("%d parcels are held", n)
			}
		})
	}
}

func TestAUnitsOwnFdsComeBeforeThoseOfItsPreviousName(t *testing.T) {
	w := newWorld(t)
	for _, unit := range []string{"a.service", "b.service"} {
		w.add(unit, "yes")
		w.put(unit, "x", unit)
	}
	w.kexec(w.preserve())
	w.remove("a.service")
	w.change("b.service", func(u *unit) { u.facts.Previous = []string{"a.service"} })
	d := w.daemon()
	for _, from := range []string{"b.service", "a.service"} {
		if n, err := w.deliver(d.socket, "b.service"); n != 1 || err != nil {
			t.Fatalf("deliver: %d, %v", n, err)
		}
		if diff := cmp.Diff([]string{"x=" + from + "@9"}, w.contents("b.service")); diff != "" {
			t.Errorf("the store (-want +got):\n%s", diff)
		}
		w.empty("b.service")
	}
}

// A process of another unit knows what is held, and asks for it.
func TestAProcessGetsWhatIsItsOwnUnitsAndNothingElse(t *testing.T) {
	w, d := held(t, nil)
	w.add("b.service", "yes")
	w.setPeer("b.service")
	for _, request := range []wire.Request{
		{Op: wire.OpDeliver, Unit: "a.service", Session: "fdbridge.a.service"},
		{Op: wire.OpFile, Unit: "a.service", Session: "fdbridge.a.service", Token: 1},
		{Op: wire.OpDelivered, Unit: "a.service", Session: "fdbridge.a.service"},
		{Op: wire.OpReturned, Unit: "a.service", Session: "fdbridge.a.service"},
		{Op: "open", Unit: "a.service"},
	} {
		conn := dial(t, d)
		if err := conn.Send(request, nil); err != nil {
			t.Fatal(err)
		}
		var grant wire.Grant
		f, err := conn.Receive(&grant)
		if f != nil || grant.Session != "" || err != nil {
			t.Errorf("%s: %v, %+v, %v", request.Op, f, grant, err)
		}
		_ = f.Close()
		_ = conn.Close()
		if list := d.holder.Held("a.service"); len(list) != 1 {
			t.Fatalf("after %s: held %v", request.Op, list)
		}
	}
	d.stop() // so that all is logged
	const who = "A request of process %d on the socket failed: "
	for _, says := range []string{"token 0 of session fdbridge.a.service is the manifest of another unit than b.service", `there is no operation "file"`} {
		if !strings.Contains(w.logged(), fmt.Sprintf(who, os.Getpid())+says) {
			t.Errorf("the log does not say %q: %s", says, w.logged())
		}
	}
}

func TestWhoseUnitIsNotKnownGetsNothing(t *testing.T) {
	w, d := held(t, nil)
	w.setPeer("")
	says := ask(t, dial(t, d), wire.Request{Op: wire.OpDeliver, Unit: "a.service"})
	if !strings.Contains(says, units.ErrNoUnit.Error()) || len(d.holder.Held("a.service")) != 1 {
		t.Errorf("deliver: %q; held %v", says, d.holder.Held("a.service"))
	}
}

// A privileged service can make sessions of any name before the update.
func TestAForgedSessionThatTheIndexDoesNotListGivesNothing(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.add("victim.service", "yes")
	w.put("a.service", "x", "X")
	preserved := w.preserve()
	manifest := kho.Manifest{Unit: "victim.service", Origin: preserved.Index.Origin,
		Entries: []kho.Entry{{Name: "evil", Kind: kho.KindLUO, Token: 1, Type: "memfd"}}}
	s := w.forgeSession("fdbridge.victim.service", &manifest)
	defer s.Close()
	w.kexec(preserved)
	d := w.daemon()
	if diff := cmp.Diff([]string{"a.service"}, d.holder.Units()); diff != "" {
		t.Errorf("held (-want +got):\n%s", diff)
	}
	if n, err := w.deliver(d.socket, "victim.service"); n != 0 || err != nil || len(w.names("victim.service")) > 0 {
		t.Errorf("deliver: %d, %v; the store has %v", n, err, w.names("victim.service"))
	}
}

// One that is there when the unit's own is to be made keeps the unit from being
// carried, which is said.
func TestAForgedSessionInTheWayIsNamed(t *testing.T) {
	w := newWorld(t)
	w.add("victim.service", "yes")
	w.put("victim.service", "x", "X")
	s := w.forgeSession("fdbridge.victim.service", &kho.Manifest{Unit: "victim.service", Origin: w.preserver().Origin})
	defer s.Close()
	w.kexec(w.preserve())
	d := w.daemon()
	if n, err := w.deliver(d.socket, "victim.service"); n != 0 || err != nil {
		t.Errorf("deliver: %d, %v", n, err)
	}
	if !strings.Contains(w.logged(), session.ErrExist.Error()) || !strings.Contains(w.logged(), `victim.service: The fd "x" (memfd) will be lost`) {
		t.Errorf("the log does not say what is in the way: %s", w.logged())
	}
}

// forgeSession makes an outgoing session with a manifest and a file, which the
// caller closes.
func (w *world) forgeSession(name string, manifest *kho.Manifest) *session.Session {
	w.t.Helper()
	s := w.forge(name, manifest)
	if err := s.Preserve(fdtest.Memfd(w.t), 1); err != nil {
		w.t.Fatal(err)
	}
	return s
}

// forge makes an outgoing session with a document, which the caller closes.
func (w *world) forge(name string, document interface{ Memfd() (*fd.FD, error) }) *session.Session {
	w.t.Helper()
	device, err := session.OpenWait(context.Background(), w.kernel, session.Path)
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := device.Create(name)
	if err = errors.Join(err, device.Close()); err != nil {
		w.t.Fatal(err)
	}
	f, err := document.Memfd()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := errors.Join(s.Preserve(f, kho.ManifestToken), f.Close()); err != nil {
		w.t.Fatal(err)
	}
	return s
}
