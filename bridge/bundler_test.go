// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/internal/bundle"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units/notify"
)

// many returns a function that makes units with an fd each.
func many(count int) func(w *world) []string {
	return func(w *world) (names []string) {
		for i := range count {
			unit := fmt.Sprintf("u%03d.service", i)
			w.add(unit, "yes")
			w.put(unit, "x", unit)
			names = append(names, unit)
		}
		return names
	}
}

// entries counts what is in fdbridged's store: bundles, sessions that are in none, and other
// things.
func (u *updated) entries() (count [3]int) {
	for _, name := range u.names(bridge.OwnUnit) {
		switch {
		case strings.HasPrefix(name, "sessions-"):
			count[0]++
		case strings.HasPrefix(name, "s-"):
			count[1]++
		default:
			count[2]++
		}
	}
	return count
}

// PID 1 takes one message for each entry, and compares it with all the others; but what is
// in bundles counts for root.
func TestTheSessionsOfManyUnitsTakeFewEntriesInTheStore(t *testing.T) {
	const count, bundled = 500, 448
	u := update(t, many(count))
	d := u.serveOwn()
	want := [3]int{bundled / 64, count - bundled, 1}
	entries := func() {
		t.Helper()
		if diff := cmp.Diff(want, u.entries()); diff != "" {
			t.Errorf("entries (-want +got):\n%s", diff)
		}
	}
	entries()
	u.deliverTo(t, d, u.units[:2*64+1]...)
	u.deliverTo(t, d, u.units[count-2:]...)
	want[0], want[1] = want[0]-2, want[1]-2
	for range 3 { // the first of the third bundle is finished, and still there
		entries()
		if diff := cmp.Diff(u.units[2*64+1:count-2], d.holder.Units()); diff != "" {
			t.Errorf("held (-want +got):\n%s", diff)
		}
		d.stop()
		d = u.serveOwn()
	}
	d.stop()
	u.kexec(u.preserve())
	if strings.Contains(u.logged(), "will be lost") {
		t.Error(u.logged())
	}
	d = u.serveOwn()
	u.deliverAll(t, d)
	u.check(t, d)
}

// A bundle to which nothing can be added any more stays as it is, and the next fdbridged
// makes one of its own.
func TestFdbridgedIsKilledWithABundleHalfFull(t *testing.T) {
	u := update(t, many(6))
	left := 3 // with the index
	u.kernel.Fail = func(req uint, _ string, _ uint64) error {
		if left--; req == session.ReqRetrieveSession && left < 0 {
			return unix.EIO
		}
		return nil
	}
	u.serveOwn().stop()
	u.kernel.Fail = nil
	u.put(bridge.OwnUnit, "retrieving", "")
	d := u.serveOwn()
	if diff := cmp.Diff([3]int{2, 0, 1}, u.entries()); diff != "" {
		t.Errorf("entries (-want +got):\n%s\n%s", diff, u.logged())
	}
	u.deliverTo(t, d, u.units[1:]...)
	d.stop()
	d = u.serveOwn()
	if diff := cmp.Diff(u.units[:1], d.holder.Units()); diff != "" {
		t.Errorf("held (-want +got):\n%s", diff)
	}
	u.deliverTo(t, d, u.units[0])
	u.check(t, d)
}

// There are sessions behind it that somebody still wants, and files that were kept for them.
func TestABundleThatCannotBeOpenedIsReportedAndNothingOfItLost(t *testing.T) {
	for _, of := range []string{"a file that two units have", "one unit"} {
		t.Run(of, func(t *testing.T) {
			u := update(t, stores[of])
			d := u.serveOwn()
			// That in whose session the shared file is comes first.
			sessions := func(unit string) int {
				at := slices.IndexFunc(u.recorded.Units, func(of kho.IndexUnit) bool { return of.Unit == unit })
				return len(u.recorded.Units[at].Sessions)
			}
			slices.SortFunc(u.units, func(a, b string) int { return sessions(a) - sessions(b) })
			last := u.units[len(u.units)-1]
			u.deliverTo(t, d, u.units[:len(u.units)-1]...)
			d.stop()
			mend := u.breakBundle()
			before := u.names(bridge.OwnUnit)
			d = u.serveOwn()
			if p := d.holder.Problems(); len(p) != 1 || !strings.Contains(p[0], `"sessions-0"`) || !strings.Contains(p[0], "left there") {
				t.Errorf("problems: %q", p)
			}
			if n, err := u.deliver(d.socket, last); n != 0 || err == nil {
				t.Errorf("deliver to %s: %d, %v", last, n, err)
			}
			d.stop()
			if _, err := u.preserver().Run(t.Context()); !errors.Is(err, bridge.ErrRequired) || !strings.Contains(err.Error(), "taken over") {
				t.Errorf("Run: %v", err)
			}
			if diff := cmp.Diff(before, u.names(bridge.OwnUnit)); diff != "" {
				t.Errorf("fdbridged's store (-before +after):\n%s", diff)
			}
			mend()
			d = u.serveOwn()
			u.deliverTo(t, d, last)
			u.check(t, d)
		})
	}
}

func TestABundleThatCanBeOpenedInPartStays(t *testing.T) {
	u := update(t, many(3))
	u.serveOwn().stop()
	mend := u.breakBundle(u.units[0])
	d := u.serveOwn()
	u.deliverTo(t, d, u.units[0])
	if n, err := u.deliver(d.socket, u.units[1]); n != 0 || err == nil {
		t.Errorf("deliver to %s: %d, %v", u.units[1], n, err)
	}
	d.stop()
	mend()
	d = u.serveOwn()
	u.deliverTo(t, d, u.units[1:]...)
	u.check(t, d)
}

// breakBundle replaces the bundle, until mend is called, by one of which no more can be had
// than the sessions of these units.
func (u *updated) breakBundle(without ...string) (mend func()) {
	u.t.Helper()
	good := u.bundle().FD
	list, err := bundle.Open(good)
	if err != nil {
		u.t.Fatal(err)
	}
	queue, way := pair(u.t)
	for _, named := range list {
		if slices.ContainsFunc(without, func(unit string) bool { return named.Name == "fdbridge."+unit }) {
			send(u.t, way, named.Name, named.FD)
		}
		_ = named.FD.Close()
	}
	send(u.t, way, "none", nil)
	u.bundle().FD = queue
	return func() {
		_ = queue.Close()
		u.bundle().FD = good
	}
}

// bundle returns the first bundle in fdbridged's store.
func (u *updated) bundle() *notify.Passed {
	u.t.Helper()
	store := u.manager.units[bridge.OwnUnit].store
	at := slices.IndexFunc(store, func(p notify.Passed) bool { return p.Name == "sessions-0" })
	if at < 0 {
		u.t.Fatal("there is no bundle")
	}
	return &store[at]
}

// Nothing may be added to it any more, and there is nothing in it.
func TestAnEmptyBundleIsRemoved(t *testing.T) {
	u := update(t, stores["one unit"])
	d := u.serveOwn()
	u.deliverAll(t, d)
	d.stop()
	queue, _ := pair(t)
	err := keeper{m: u.manager, unit: bridge.OwnUnit}.Store("sessions-3", queue)
	if err = errors.Join(err, queue.Close()); err != nil {
		t.Fatal(err)
	}
	u.check(t, u.serveOwn())
}

// pair returns both ends of a bundle without anything in it; the caller owns the first.
func pair(t testing.TB) (queue, way *fd.FD) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	queue, way = fd.New(pair[0]), fd.New(pair[1])
	t.Cleanup(func() { _ = way.Close() })
	return queue, way
}

func send(t testing.TB, way *fd.FD, name string, f *fd.FD) {
	t.Helper()
	err := way.Do(func(raw int) error {
		if f == nil {
			return unix.Sendmsg(raw, []byte(name), nil, nil, 0)
		}
		return f.Do(func(sent int) error { return unix.Sendmsg(raw, []byte(name), unix.UnixRights(sent), nil, 0) })
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Kernels before 7.2 do not tell the name of a session when it is long. That of one in a
// bundle is beside it.
func TestAHeldSessionWhoseNameIsNotKnownIsNamedAsLost(t *testing.T) {
	u := update(t, many(449))
	u.serveOwn().stop()
	last := u.units[448]
	u.kernel.Fail = func(request uint, name string, _ uint64) error {
		if request == session.ReqGetName && name == kho.SessionName(last) {
			return unix.EINVAL
		}
		return nil
	}
	u.preserver().GiveUp(t.Context(), errors.New("not now"))
	if want := last + ": Not carried are"; !strings.Contains(u.logged(), want) {
		t.Errorf("the log does not say %q", want)
	}
	preserved := u.preserve()
	if want := last + ": What is held for it in session " + kho.SessionName(last) + " will be lost"; strings.Count(u.logged(), want) != 1 || strings.Count(u.logged(), "will be lost") != 1 {
		t.Errorf("the log does not say %q, or more", want)
	}
	u.kexec(preserved)
	if diff := cmp.Diff(u.units[:448], u.serveOwn().holder.Units()); diff != "" {
		t.Errorf("held (-want +got):\n%s", diff)
	}
}
