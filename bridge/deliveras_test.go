// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/wire"
)

// deliverAs has an administrator decide that b.service, or another, is to have
// what is held for a.service.
func (w *world) deliverAs(d *daemon, as string) {
	w.t.Helper()
	got, err := wire.DeliverAs(d.socket, "a.service", as)
	want := &wire.Assigned{Unit: "a.service", As: as, Held: 2, HeldBytes: 2}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		w.t.Errorf("deliver-as: %v (-want +got):\n%s", err, diff)
	}
}

func TestAnAdministratorDecidesWhoGetsWhatIsHeld(t *testing.T) {
	for name, as := range map[string]string{"the unit that has changed": "a.service", "another": "b.service"} {
		for again, restart := range map[string]bool{"": false, ", after a crash of fdbridged": true} {
			t.Run(name+again, func(t *testing.T) {
				w, d := held(t, func(u *unit) { u.identity.User = "alice" })
				w.add("b.service", "yes")
				w.refused(d, "a.service", "its user was")
				w.deliverAs(d, as)
				if restart {
					d.stop()
					d = w.daemon()
				}
				if to := asOf(t, d); to != as {
					t.Errorf("list says that it is for %q, want %q", to, as)
				}
				if as != "a.service" {
					if n, err := w.deliver(d.socket, "a.service"); n != 0 || err != nil {
						t.Errorf("deliver to a.service: %d, %v", n, err)
					}
				}
				w.delivered(d, as)
				d.stop()
				if p := w.daemon().holder.Problems(); len(p) > 0 {
					t.Errorf("problems after that and a crash: %q", p)
				}
			})
		}
	}
}

func TestADecisionIsWithPID1WhenItIsAnswered(t *testing.T) {
	w, d := held(t, nil)
	d.stop()
	own := &queue{keeper: keeper{m: w.manager, unit: bridge.OwnUnit}}
	d = w.start(t.Context(), d.socket, own)
	w.add("b.service", "yes")
	w.deliverAs(d, "b.service")
	d.stop()
	own.drop() // as when it was killed
	if to := asOf(t, w.daemon()); to != "b.service" {
		t.Errorf("it is for %q, want b.service", to)
	}
}

// asOf returns whom list says that what is held for a.service was given to.
func asOf(t *testing.T, d *daemon) (as string) {
	t.Helper()
	err := wire.Ask(d.socket, wire.OpList, func(a *wire.Answer) {
		if a.Unit != nil && a.Unit.Unit == "a.service" {
			as = a.Unit.As
		}
	})
	if err != nil {
		t.Error(err)
	}
	return as
}

// What was given to another unit is no renamed one's any more.
func TestADecisionCountsMoreThanAPreviousName(t *testing.T) {
	w, d := held(t, nil)
	w.remove("a.service")
	w.previously("a.service")
	w.add("c.service", "yes")
	w.deliverAs(d, "c.service")
	if n, err := w.deliver(d.socket, "b.service"); n != 0 || err != nil {
		t.Errorf("deliver to b.service: %d, %v", n, err)
	}
	w.delivered(d, "c.service")
}

func TestTheLastDecisionCounts(t *testing.T) {
	w, d := held(t, nil)
	for _, unit := range []string{"b.service", "c.service"} {
		w.add(unit, "yes")
		w.deliverAs(d, unit)
	}
	if diff := cmp.Diff([]string{"a-", "sessions-0", "index"}, shapes(w.names(bridge.OwnUnit))); diff != "" {
		t.Errorf("fdbridged's store (-want +got):\n%s", diff)
	}
	d.stop()
	d = w.daemon()
	for _, unit := range []string{"a.service", "b.service"} {
		if n, err := w.deliver(d.socket, unit); n != 0 || err != nil {
			t.Errorf("deliver to %s: %d, %v", unit, n, err)
		}
	}
	w.delivered(d, "c.service")
}

// What was decided is of this boot.
func TestADecisionEndsWithTheBootAndWithWhatIsHeld(t *testing.T) {
	w, d := held(t, nil)
	w.add("b.service", "yes")
	w.deliverAs(d, "b.service")
	d.stop()
	w.kexec(w.preserve())
	d = w.daemon()
	if n, err := w.deliver(d.socket, "b.service"); n != 0 || err != nil {
		t.Errorf("deliver: %d, %v", n, err)
	}
	w.deliverAs(d, "b.service")
	if err := wire.Drop(d.socket, "a.service"); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"index"}, w.names(bridge.OwnUnit)); diff != "" {
		t.Errorf("fdbridged's store (-want +got):\n%s", diff)
	}
}

func TestADecisionThatWouldComeToNothingIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		unit, as string
		change   func(w *world)
		says     string
	}{
		"nothing is held":    {"b.service", "c.service", nil, "nothing is held for b.service"},
		"no service":         {"a.service", "b.socket", nil, `"b.socket" is no name of a service`},
		"a template":         {"a.service", "b@.service", nil, `"b@.service" is no name of a service`},
		"no name":            {"a.service", "", nil, `"" is no name of a service`},
		"no such unit":       {"a.service", "none.service", nil, "there is no unit none.service"},
		"an alias":           {"a.service", "b.service", func(w *world) { w.units["b.service"].identity.Unit = "c.service" }, "b.service is another name of c.service"},
		"no store":           {"a.service", "b.service", func(w *world) { w.units["b.service"].max = 0 }, "set FileDescriptorStoreMax="},
		"no opt-in":          {"a.service", "b.service", func(w *world) { w.units["b.service"].preserve = "no" }, "does not ask for its fds"},
		"no drop-in":         {"a.service", "b.service", func(w *world) { w.units["b.service"].identity.DropIns = nil }, `run "systemctl daemon-reload"`},
		"excluded":           {"a.service", "excluded.service", nil, "excluded.service is left alone"},
		"has fds held":       {"a.service", "own.service", nil, "own.service is to have what is held for own.service"},
		"another's decision": {"a.service", "b.service", func(w *world) {}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, unit := range []string{"a.service", "own.service"} {
				w.add(unit, "yes")
				w.put(unit, "x", "X")
			}
			w.kexec(w.preserve())
			for _, unit := range []string{"b.service", "c.service", "excluded.service"} {
				w.add(unit, "yes")
			}
			if test.change != nil {
				test.change(w)
			}
			d := w.daemon()
			_, err := wire.DeliverAs(d.socket, test.unit, test.as)
			if test.says == "" {
				if err != nil {
					t.Error(err)
				}
				test.unit, test.says = "own.service", "b.service is to have what is held for a.service, and cannot have more"
				_, err = wire.DeliverAs(d.socket, test.unit, test.as)
			}
			if !errors.Is(err, wire.ErrRefused) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v, want %q", err, test.says)
			}
			d.stop()
			if !strings.Contains(w.logged(), test.says) {
				t.Errorf("the log does not say %q: %s", test.says, w.logged())
			}
		})
	}
}

// The unit that is to have the fds runs, and has some.
func TestADecisionSaysWhatIsInTheWay(t *testing.T) {
	w, d := held(t, nil)
	w.add("b.service", "yes")
	w.put("b.service", "z", "Z")
	assigned, err := wire.DeliverAs(d.socket, "a.service", "b.service")
	if err != nil || assigned.Stored != 1 {
		t.Errorf("deliver-as: %+v, %v", assigned, err)
	}
	if n, err := w.deliver(d.socket, "b.service"); n != 0 || err == nil ||
		!strings.Contains(err.Error(), "systemctl clean --what=fdstore b.service") || !strings.Contains(err.Error(), "fdbridgectl drop a.service") {
		t.Errorf("deliver: %d, %v", n, err)
	}
	w.empty("b.service")
	w.delivered(d, "b.service")
}

func TestAMarkThatIsNoDecisionIsLeftAlone(t *testing.T) {
	w, d := held(t, nil)
	w.add("b.service", "yes")
	d.stop()
	w.put(bridge.OwnUnit, "a-0123456789abcdef", "a.service b.service")
	d = w.daemon()
	if p := d.holder.Problems(); len(p) != 1 || !strings.Contains(p[0], `"a-0123456789abcdef"`) {
		t.Errorf("problems: %q", p)
	}
	if n, err := w.deliver(d.socket, "b.service"); n != 0 || err != nil {
		t.Errorf("deliver: %d, %v", n, err)
	}
}
