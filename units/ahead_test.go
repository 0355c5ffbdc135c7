// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/units/bulk/bulktest"
)

// changing is a PID 1 whose units change between questions, and which notes whose
// stores it is asked for.
type changing struct {
	mu     sync.Mutex
	units  pid1
	dumped []string
}

func (c *changing) serve(p *bulktest.Peer) {
	for call := p.Call(); call != nil; call = p.Call() {
		c.mu.Lock()
		if call.Headers[dbus.FieldMember].Value() == "DumpUnitFileDescriptorStore" {
			c.dumped = append(c.dumped, call.Body[0].(string))
		}
		answer := c.units.answer(call)
		c.mu.Unlock()
		p.Send(answer)
	}
}

func (c *changing) change(unit string, change func(u *fakeUnit)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.units[unit] = with(c.units[unit], change)
}

// asked returns whose stores were asked for since it was called last.
func (c *changing) asked() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	asked := c.dumped
	c.dumped = nil
	slices.Sort(asked)
	return asked
}

// stoppedService is one that has stopped at a time, with what is in its store.
func stoppedService(since uint64, entries ...dumped) fakeUnit {
	u := service("yes", 8, entries...)
	u.state = [2]string{"inactive", "dead-resources-pinned"}
	u.properties[unitInterface+".StateChangeTimestampMonotonic"] = since
	u.properties[serviceInterface+".NFileDescriptorStore"] = uint32(len(entries))
	return u
}

// halfStopped is a machine on which some services have stopped.
func halfStopped(t *testing.T) (*changing, *Ahead) {
	t.Helper()
	c := &changing{units: pid1{
		"a.service":       stoppedService(1, dumpedFile),
		"b.service":       stoppedService(2, dumpedFile, dumpedTTY),
		"dead.service":    with(stoppedService(1, dumpedFile), func(u *fakeUnit) { u.state[1] = "dead" }),
		"failed.service":  with(stoppedService(1), func(u *fakeUnit) { u.state = [2]string{"failed", "failed"} }),
		"running.service": service("yes", 8, dumpedFile),
	}}
	return c, &Ahead{Reader: reader(t, c.serve)}
}

func (a *Ahead) look(t *testing.T) {
	t.Helper()
	if err := a.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (a *Ahead) stores(t *testing.T) []Store {
	t.Helper()
	var stores []Store
	if err := a.EachStore(t.Context(), func(s *Store) { stores = append(stores, *s) }); err != nil {
		t.Fatal(err)
	}
	return stores
}

func keptStore(unit string, entries ...Entry) Store {
	s := store(unit, "yes", entries...)
	s.Kept, s.Preserve = true, ""
	return s
}

func TestWhatWasSeenAheadIsNotAskedForAgain(t *testing.T) {
	c, a := halfStopped(t)
	a.look(t)
	if diff := cmp.Diff([]string{"a.service", "b.service", "failed.service"}, c.asked()); diff != "" {
		t.Errorf("asked for ahead (-want +got):\n%s", diff)
	}
	a.look(t)
	if diff := cmp.Diff([]string(nil), c.asked()); diff != "" {
		t.Errorf("asked for ahead once more (-want +got):\n%s", diff)
	}
	want := []Store{keptStore("a.service", wantEntries[:1]...), keptStore("b.service", wantEntries...), store("running.service", "yes", wantEntries[:1]...)}
	if diff := cmp.Diff(want, a.stores(t)); diff != "" {
		t.Errorf("stores (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"running.service"}, c.asked()); diff != "" {
		t.Errorf("asked for in the end (-want +got):\n%s", diff)
	}
}

// A store that was seen ahead is read again when it may be another.
func TestWhatChangesAfterItWasSeenIsAskedForAgain(t *testing.T) {
	entry := wantEntries[1:]
	for name, change := range map[string]struct {
		change func(u *fakeUnit)
		want   []Store
	}{
		"stopped anew": {func(u *fakeUnit) { *u = stoppedService(3, dumpedTTY) }, []Store{keptStore("a.service", entry...)}},
		"more in it": {
			func(u *fakeUnit) { *u = stoppedService(1, dumpedTTY, dumpedTTY) },
			[]Store{keptStore("a.service", entry[0], entry[0])},
		},
		"runs":    {func(u *fakeUnit) { *u = service("yes", 8, dumpedTTY) }, []Store{store("a.service", "yes", entry...)}},
		"emptied": {func(u *fakeUnit) { u.state[1] = "dead" }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c, a := halfStopped(t)
			for _, other := range []string{"b.service", "running.service"} {
				c.change(other, func(u *fakeUnit) { u.load = "not-found" })
			}
			a.look(t)
			c.change("a.service", change.change)
			if diff := cmp.Diff(change.want, a.stores(t)); diff != "" {
				t.Errorf("stores (-want +got):\n%s", diff)
			}
		})
	}
}

// What cannot be read ahead is not taken for an empty store, or for nobody's.
func TestWhatCannotBeSeenAheadIsAskedForInTheEnd(t *testing.T) {
	c, a := halfStopped(t)
	var whole fakeUnit
	c.change("a.service", func(u *fakeUnit) { whole = *u })
	for _, fault := range []func(u *fakeUnit){
		func(u *fakeUnit) { u.dumpError = "org.freedesktop.DBus.Error.NoMemory" },
		func(u *fakeUnit) { u.properties = map[string]any{} },
	} {
		c.change("a.service", fault)
		if err := a.Look(t.Context()); err == nil || errors.Is(err, ErrManager) {
			t.Errorf("Look with a unit that cannot be read: %v", err)
		}
		c.change("a.service", func(u *fakeUnit) { *u = whole })
	}
	_ = c.asked()
	stores := a.stores(t)
	if diff := cmp.Diff(keptStore("a.service", wantEntries[:1]...), stores[0]); diff != "" {
		t.Errorf("store (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"a.service", "running.service"}, c.asked()); diff != "" {
		t.Errorf("asked for in the end (-want +got):\n%s", diff)
	}
}

// What was answered when the services have stopped is of use.
func TestWhatWasSeenUntilLookEndsIsKept(t *testing.T) {
	c, a := halfStopped(t)
	ctx, stop := context.WithCancel(t.Context())
	a.Known = func(s *Store) bool { return true } // three questions about each
	a.Socket = bulktest.Serve(t, func(p *bulktest.Peer) {
		p.Send(c.units.answer(p.Call()))
		for _, call := range p.Calls(9)[:3] {
			p.Send(c.units.answer(call))
		}
		for p.Call() != nil { // the client hangs up
		}
	})
	done := make(chan error)
	go func() { done <- a.Look(ctx) }()
	for a.sightings()["a.service"] == nil {
		runtime.Gosched()
	}
	stop()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Look that ends early: %v", err)
	}
	a.Socket = bulktest.Serve(t, c.serve)
	_ = c.asked()
	if stores := a.stores(t); len(stores) != 3 {
		t.Errorf("%d stores, want 3", len(stores))
	}
	if diff := cmp.Diff([]string{"b.service", "failed.service", "running.service"}, c.asked()); diff != "" {
		t.Errorf("asked for in the end (-want +got):\n%s", diff)
	}
}
