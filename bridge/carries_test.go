// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
)

// crowded is a PID 1 with units of all sorts, one of which is held.
func crowded(t *testing.T) *world {
	w := newWorld(t)
	w.add("held.service", "yes")
	w.put("held.service", "h", "held")
	w.update()
	for _, unit := range []string{"all.service", "refused.service", "sessions.service", "only.service", "excluded.service"} {
		w.add(unit, "yes")
	}
	for _, unit := range []string{"all.service", "refused.service", "sessions.service", "excluded.service"} {
		w.put(unit, "m", unit)
	}
	w.putPipe("refused.service", "p")
	w.put("sessions.service", ownSession, "")
	w.put("only.service", ownSession, "")
	return w
}

func (w *world) stored() map[string]int {
	stored := map[string]int{}
	for unit, u := range w.units {
		if len(u.store) > 0 {
			stored[unit] = len(u.store)
		}
	}
	return stored
}

// systemd from 261 on carries stores, too, and what is in them of sessions.
func TestAPID1ThatCarriesStoresFindsNothingOfWhatIsCarried(t *testing.T) {
	w := crowded(t)
	w.carries = true
	preserved := w.preserve()
	want := []string{"all.service", "refused.service", bridge.OwnUnit}
	if diff := cmp.Diff(want, w.emptied); diff != "" {
		t.Errorf("emptied (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]int{"sessions.service": 2, "only.service": 1, "excluded.service": 1}, w.stored()); diff != "" {
		t.Errorf("still stored (-want +got):\n%s", diff)
	}
	refused := []kho.LostEntry{{Name: "p", Type: "pipe", Reason: session.ErrUnsupported.Error()}}
	for _, u := range preserved.Index.Units {
		if len(u.Lost) > 0 && !cmp.Equal(u.Lost, refused) || u.Entries != 1 || u.Unit == "only.service" {
			t.Errorf("in the index: %+v", u)
		}
	}
	w.kexec(preserved)
	_, socket, _ := w.serve()
	w.put("sessions.service", ownSession, "") // by PID 1
	for unit, contents := range map[string]string{"all.service": "m=all.service@11", "held.service": "h=held@4"} {
		if _, err := w.deliver(socket, unit); err != nil {
			t.Error(err)
		}
		w.check(map[string][]string{unit: {contents}})
	}
	if _, err := w.deliver(socket, "sessions.service"); err != nil {
		t.Error(err)
	}
	w.check(map[string][]string{"sessions.service": {"m=sessions.service@16", "session=@0"}})
}

// busy tells whether PID 1 would find the device busy.
func (w *world) busy() bool {
	w.t.Helper()
	device, err := session.Open(w.kernel, session.Path)
	if err == nil {
		err = device.Close()
	} else if errors.Is(err, session.ErrBusy) {
		return true
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return false
}

// Emptying takes PID 1 long, and it is not needed where it has nothing to carry.
func TestAPID1WithNothingToCarryIsKeptFromTheDevice(t *testing.T) {
	for name, test := range map[string]struct {
		more func(w *world)
		busy bool
	}{
		"all is carried":              {func(w *world) {}, true},
		"but what the kernel refuses": {func(w *world) { w.putPipe("a.service", "p") }, true},
		"others have what is refused": {func(w *world) { w.putPipe("excluded.service", "p") }, true},
		"others have memfds":          {func(w *world) { w.put("excluded.service", "m", "M") }, false},
		"a session beside a file":     {func(w *world) { w.put("a.service", ownSession, "") }, false},
		"a session alone":             {func(w *world) { w.add("b.service", "yes"); w.put("b.service", ownSession, "") }, false},
		"a store that cannot be read": {func(w *world) { w.unsure = errors.New("unreadable") }, false},
		"a store that always changes": {func(w *world) { w.changed = func() { w.empty("a.service"); w.put("a.service", "x", "X") } }, false},
		"a session alone in the end": {func(w *world) {
			w.add("b.service", "yes")
			w.put("b.service", "y", "Y")
			w.changed = func() { w.empty("a.service"); w.put("a.service", ownSession, "") }
		}, false},
		"a service that runs on":       {func(w *world) { w.running = "a.service" }, false},
		"PID 1 carries nothing at all": {func(w *world) { w.carries = false }, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.carries = true
			w.add("a.service", "yes")
			w.add("excluded.service", "yes")
			w.put("a.service", "x", "X")
			test.more(w)
			before := w.stored()
			p := w.preserver()
			p.Partly = true
			preserved, err := p.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if w.busy() != test.busy {
				t.Errorf("busy: %v", w.busy())
			}
			if test.busy && !cmp.Equal(before, w.stored()) {
				t.Errorf("stored before: %v, and after: %v", before, w.stored())
			}
			if err := preserved.Close(); err != nil || w.busy() {
				t.Errorf("closed: %v, busy: %v", err, w.busy())
			}
		})
	}
}

func TestAPID1ThatCarriesNothingKeepsTheStores(t *testing.T) {
	w := crowded(t)
	before := w.stored()
	preserved := w.preserve()
	after := w.stored()
	delete(after, rescueUnit) // what was taken out of held sessions
	if diff := cmp.Diff(before, after); diff != "" || len(w.emptied) > 0 {
		t.Errorf("emptied: %v, stored (-before +after):\n%s", w.emptied, diff)
	}
	for _, u := range preserved.Index.Units {
		if u.Unit == "only.service" && len(u.Lost) == 0 {
			t.Errorf("a session is not named as lost: %+v", u)
		}
	}
}

func TestAStoreThatCannotBeEmptiedStopsNoUpdate(t *testing.T) {
	for name, fail := range map[string]func(w *world, err error){
		"it is refused":           func(w *world, err error) { w.emptyErr = err },
		"there is no time for it": func(w *world, err error) { w.unsealed = err },
	} {
		t.Run(name, func(t *testing.T) {
			w := crowded(t)
			w.carries = true
			fail(w, errors.New("no answer"))
			w.kexec(w.preserve())
			if !strings.Contains(w.logged(), "<4>") || !strings.Contains(w.logged(), "no answer") {
				t.Errorf("there is no warning:\n%s", w.logged())
			}
			if w.unsealed != nil && w.emptied != nil {
				t.Errorf("emptied: %v", w.emptied)
			}
		})
	}
}

// An entry that fdbridge could not get at may be got at by PID 1.
func TestWhatWasNotCapturedIsLeftInTheStore(t *testing.T) {
	w := newWorld(t)
	w.carries = true
	w.add("a.service", "yes")
	w.put("a.service", "m", "M")
	w.changed = func() { w.empty("a.service"); w.put("a.service", "m", "M") }
	if w.preserve(); len(w.emptied) > 0 {
		t.Errorf("emptied: %v", w.emptied)
	}
}

// An update that is called off has emptied nothing.
func TestAnUpdateThatIsCalledOffHasEmptiedNothing(t *testing.T) {
	w := crowded(t)
	w.carries = true
	w.add("required.service", "yes")
	w.putPipe("required.service", "p")
	if _, err := w.preserver().Run(t.Context()); !errors.Is(err, bridge.ErrRequired) || w.emptied != nil {
		t.Errorf("%v, emptied: %v", err, w.emptied)
	}
}
