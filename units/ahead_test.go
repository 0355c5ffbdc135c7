// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/units/bulk/bulktest"
)

// changing is a PID 1 whose units change between questions, and which notes whose
// stores it is asked for, and how many properties.
type changing struct {
	mu         sync.Mutex
	units      pid1
	dumped     []string
	properties int
	answered   func(member string, body []any)
}

func (c *changing) serve(p *bulktest.Peer) {
	for call := p.Call(); call != nil; call = p.Call() {
		c.mu.Lock()
		switch call.Headers[dbus.FieldMember].Value() {
		case "DumpUnitFileDescriptorStore":
			c.dumped = append(c.dumped, call.Body[0].(string))
		case "Get":
			c.properties++
		}
		answer := c.units.answer(call)
		if c.answered != nil {
			c.answered(call.Headers[dbus.FieldMember].Value().(string), call.Body)
		}
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

// when has answered called with each call, before the answer is sent.
func (c *changing) when(answered func(member string, body []any)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answered = answered
}

// told returns for how many properties it was asked since it was called last.
func (c *changing) told() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	told := c.properties
	c.properties = 0
	return told
}

// stoppedService is one that has stopped at a time, with what is in its store.
func stoppedService(since uint64, entries ...dumped) fakeUnit {
	u := service("yes", 8, entries...)
	u.state = [2]string{"inactive", "dead-resources-pinned"}
	u.properties[unitInterface+".StateChangeTimestampMonotonic"] = since
	u.properties[serviceInterface+".NFileDescriptorStore"] = uint32(len(entries))
	u.properties[serviceInterface+".ControlGroup"] = ""
	return u
}

// gone makes a unit one that PID 1 knows by its name alone.
func gone(u *fakeUnit) { u.load, u.state = "not-found", [2]string{"inactive", "dead"} }

// A unit file that was taken away, or is wrong by now, takes no store with it.
func TestTheStoreOfAUnitThatCannotBeLoadedIsTold(t *testing.T) {
	for _, ahead := range []bool{true, false} {
		c, a := halfStopped(t)
		c.change("a.service", func(u *fakeUnit) { u.load = "bad-setting" })
		if ahead {
			a.look(t)
		}
		if stores := a.stores(t); len(stores) != 3 || stores[0].Unit != "a.service" {
			t.Errorf("seen ahead: %v; stores: %+v", ahead, stores)
		}
	}
}

// managerProperties are those of a PID 1 that has loaded its units at a time, and had so
// many jobs.
func managerProperties(loaded uint64, jobs uint32) map[string]any {
	return map[string]any{
		managerInterface + ".UnitsLoadTimestampMonotonic": loaded, managerInterface + ".NInstalledJobs": jobs,
		managerInterface + ".Version": "257.13",
	}
}

// halfStopped is a machine on which some services have stopped.
func halfStopped(t *testing.T) (*changing, *Ahead) {
	t.Helper()
	c := &changing{units: pid1{
		managerItself:     {properties: managerProperties(1, 7), load: "none"},
		"a.service":       stoppedService(1, dumpedFile),
		"b.service":       stoppedService(2, dumpedFile, dumpedTTY),
		"dead.service":    with(stoppedService(1, dumpedFile), func(u *fakeUnit) { u.state[1] = "dead" }),
		"failed.service":  with(stoppedService(1), func(u *fakeUnit) { u.state = [2]string{"failed", "failed"} }),
		"running.service": service("yes", 8, dumpedFile),
	}}
	a := &Ahead{
		Reader: reader(t, c.serve), Open: func() (*Duplicator, error) { return OpenDuplicator(os.Getpid()) },
		Excluded: func(unit string) bool { return unit == "excluded.service" },
	}
	t.Cleanup(a.Close)
	return c, a
}

func (a *Ahead) look(t *testing.T) {
	t.Helper()
	if err := a.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (a *Ahead) sees(unit string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.seen[unit] != nil
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

// later is a time at which a unit's state changes after the test has begun.
const later = math.MaxUint64

// A store that was seen ahead is read again when it may be another.
func TestWhatChangesAfterItWasSeenIsAskedForAgain(t *testing.T) {
	old, entry := keptStore("a.service", wantEntries[:1]...), wantEntries[1:]
	for name, change := range map[string]struct {
		change  func(u *fakeUnit)
		manager map[string]any
		want    []Store
		asked   []string
	}{
		"nothing":        {func(*fakeUnit) {}, managerProperties(1, 7), []Store{old}, nil},
		"another starts": {func(*fakeUnit) {}, managerProperties(1, 8), []Store{old}, nil},
		"stopped anew": {
			func(u *fakeUnit) { *u = stoppedService(later, dumpedTTY) }, managerProperties(1, 8),
			[]Store{keptStore("a.service", entry...)}, []string{"a.service"},
		},
		"stopped anew, and it is not known whether": {
			func(u *fakeUnit) {
				*u = stoppedService(1, dumpedTTY)
				delete(u.properties, unitInterface+".StateChangeTimestampMonotonic")
			},
			managerProperties(1, 8), []Store{keptStore("a.service", entry...)}, []string{"a.service"},
		},
		"loaded anew, and has never been started": {
			func(u *fakeUnit) { *u = stoppedService(0, dumpedTTY) }, managerProperties(1, 8),
			[]Store{keptStore("a.service", entry...)}, []string{"a.service"},
		},
		"stopped anew, and jobs were not known": {
			func(u *fakeUnit) { *u = stoppedService(later, dumpedTTY) }, managerProperties(1, 7),
			[]Store{keptStore("a.service", entry...)}, []string{"a.service"},
		},
		"stopped anew, and jobs are not known, and were not known": {
			func(u *fakeUnit) { *u = stoppedService(later, dumpedTTY) }, managerProperties(1, 0),
			[]Store{keptStore("a.service", entry...)}, []string{"a.service"},
		},
		"stopped anew, and jobs are not known": {
			func(u *fakeUnit) { *u = stoppedService(later, dumpedTTY) }, managerProperties(1, 0),
			[]Store{keptStore("a.service", entry...)}, []string{"a.service"},
		},
		"runs": {
			func(u *fakeUnit) { *u = service("yes", 8, dumpedTTY) }, managerProperties(1, 7),
			[]Store{store("a.service", "yes", entry...)}, []string{"a.service"},
		},
		"starts": {
			func(u *fakeUnit) { *u = with(stoppedService(1, dumpedTTY), func(u *fakeUnit) { u.job = "restart" }) }, managerProperties(1, 7),
			[]Store{keptStore("a.service", entry...)}, []string{"a.service"},
		},
		"emptied": {
			func(u *fakeUnit) { *u = with(stoppedService(1), func(u *fakeUnit) { u.state[1] = "dead" }) }, managerProperties(1, 7), nil, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, a := halfStopped(t)
			for _, other := range []string{"b.service", "failed.service", "running.service"} {
				c.change(other, gone)
			}
			if strings.HasSuffix(name, "were not known") {
				c.change(managerItself, func(u *fakeUnit) { u.properties = managerProperties(1, 0) })
			}
			a.look(t)
			c.asked()
			c.change("a.service", change.change)
			c.change(managerItself, func(u *fakeUnit) { u.properties = change.manager })
			if diff := cmp.Diff(change.want, a.stores(t)); diff != "" {
				t.Errorf("stores (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(change.asked, c.asked()); diff != "" {
				t.Errorf("asked for in the end (-want +got):\n%s", diff)
			}
		})
	}
}

// A service that is to be started is not seen ahead: its job may have been there before.
func TestAStoreOfAServiceThatIsToBeStartedIsNotSeenAhead(t *testing.T) {
	for job, sees := range map[string]bool{"": true, "stop": true, "start": false, "restart": false} {
		c, a := halfStopped(t)
		c.change("a.service", func(u *fakeUnit) { u.job = job })
		a.look(t)
		if a.sees("a.service") != sees {
			t.Errorf("job %q: sees it: %v", job, !sees)
		}
	}
}

// A time at which PID 1 may have told of the store already is not before it was asked.
func TestAServiceThatIsStartedWhileItsStoreIsReadIsReadAgain(t *testing.T) {
	c, a := halfStopped(t)
	c.when(func(member string, body []any) {
		if member == "DumpUnitFileDescriptorStore" {
			now, err := monotonic()
			if err != nil {
				t.Error(err)
			}
			c.units[body[0].(string)].properties[unitInterface+".StateChangeTimestampMonotonic"] = now
		}
	})
	a.look(t)
	c.asked()
	c.change(managerItself, func(u *fakeUnit) { u.properties = managerProperties(1, 8) })
	a.stores(t)
	if diff := cmp.Diff([]string{"a.service", "b.service", "failed.service", "running.service"}, c.asked()); diff != "" {
		t.Errorf("asked for in the end (-want +got):\n%s", diff)
	}
}

// A job that comes while the services are listed is one since the look.
func TestJobsAreCountedBeforeServicesAreListed(t *testing.T) {
	c, a := halfStopped(t)
	c.when(func(member string, _ []any) {
		if member == "ListUnitsByPatterns" {
			c.units[managerItself].properties[managerInterface+".NInstalledJobs"] = uint32(8)
		}
	})
	a.look(t)
	c.asked()
	c.change("a.service", func(u *fakeUnit) { u.properties[unitInterface+".StateChangeTimestampMonotonic"] = uint64(later) })
	a.stores(t)
	if diff := cmp.Diff([]string{"a.service", "running.service"}, c.asked()); diff != "" {
		t.Errorf("asked for in the end (-want +got):\n%s", diff)
	}
}

// PID 1 drops an fd that hangs up, and the unit's state stays as it is.
func TestAStoreThatHasLostAnFDIsReadAgain(t *testing.T) {
	c, a := halfStopped(t)
	a.look(t)
	c.asked()
	c.change("b.service", func(u *fakeUnit) { *u = stoppedService(2, dumpedFile) })
	if stores := a.stores(t); len(stores) != 3 || len(stores[0].Entries) != 1 || len(stores[1].Entries) != 1 {
		t.Errorf("stores: %+v", stores)
	}
	if diff := cmp.Diff([]string{"b.service", "running.service"}, c.asked()); diff != "" {
		t.Errorf("asked for in the end (-want +got):\n%s", diff)
	}
	a.look(t)
	c.asked()
	c.change("b.service", func(u *fakeUnit) { delete(u.properties, serviceInterface+".NFileDescriptorStore") })
	a.stores(t)
	if diff := cmp.Diff([]string{"b.service", "running.service"}, c.asked()); diff != "" {
		t.Errorf("asked for when it cannot be told (-want +got):\n%s", diff)
	}
}

// Without a list it is not known whether a service has been started.
func TestWhatIsDuplicatedIsUnsureWhenPID1DoesNotListServices(t *testing.T) {
	c, a := holding(t, map[string][]*fd.FD{"a.service": {fdtest.Memfd(t)}})
	a.look(t)
	a.Socket = bulktest.Serve(t, func(p *bulktest.Peer) {
		for call := p.Call(); call != nil; call = p.Call() {
			if call.Headers[dbus.FieldMember].Value() == "ListUnitsByPatterns" {
				p.Send(bulktest.Fail(call, "org.freedesktop.DBus.Error.NoMemory"))
			} else {
				p.Send(c.units.answer(call))
			}
		}
	})
	if err := a.EachStore(t.Context(), func(*Store) {}); !errors.Is(err, ErrUnsure) {
		t.Errorf("EachStore: %v", err)
	}
}

// Whoever drafts a manifest has what was duplicated, as long as there is time.
func TestWhatIsDuplicatedIsSeen(t *testing.T) {
	twice := fdtest.Memfd(t)
	_, a := holding(t, map[string][]*fd.FD{
		"a.service": {fdtest.Memfd(t), fdtest.Memfd(t)}, "excluded.service": {fdtest.Memfd(t)}, "empty.service": {}, "twice.service": {twice, own2(t, twice)},
	})
	seen := map[string]int{}
	a.Seen = func(s *Store, files []*File) {
		seen[s.Unit] = len(files)
		for i, f := range files {
			if f.Ino != s.Entries[i].Ino {
				t.Errorf("file %d is not what its entry says", i)
			}
		}
	}
	a.look(t)
	if diff := cmp.Diff(map[string]int{"a.service": 2}, seen); diff != "" {
		t.Errorf("seen (-want +got):\n%s", diff)
	}
}

// As long as a process is left it may change the store, and leave no trace of it.
func TestAStoreThatAProcessIsLeftOfIsNotSeenAhead(t *testing.T) {
	c, a := halfStopped(t)
	c.change("a.service", func(u *fakeUnit) { u.properties[serviceInterface+".ControlGroup"] = "/system.slice/a.service" })
	a.look(t)
	if a.sees("a.service") || !a.sees("b.service") {
		t.Errorf("sees a: %v, b: %v", a.sees("a.service"), a.sees("b.service"))
	}
}

// A daemon-reload turns stores round, and a daemon-reexec gives fds other numbers.
func TestWhatWasSeenBeforeAReloadIsForgotten(t *testing.T) {
	const property = managerInterface + ".UnitsLoadTimestampMonotonic"
	unknown := managerProperties(1, 7)
	delete(unknown, property)
	for _, properties := range []map[string]any{managerProperties(2, 7), unknown} {
		c, a := halfStopped(t)
		a.look(t)
		c.change(managerItself, func(u *fakeUnit) { u.properties = properties })
		_ = c.asked()
		if n := len(a.stores(t)); n != 3 {
			t.Errorf("%d stores, want 3", n)
		}
		if diff := cmp.Diff([]string{"a.service", "b.service", "failed.service", "running.service"}, c.asked()); diff != "" {
			t.Errorf("asked for in the end (-want +got):\n%s", diff)
		}
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
	stores := a.stores(t) // those that were seen come first
	if diff := cmp.Diff(keptStore("a.service", wantEntries[:1]...), stores[1]); diff != "" {
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
	a.Known = func(s *Store) bool { return true } // two questions about each
	a.Socket = bulktest.Serve(t, func(p *bulktest.Peer) {
		for _, call := range p.Calls(4) {
			p.Send(c.units.answer(call))
		}
		for _, call := range p.Calls(6)[:2] {
			p.Send(c.units.answer(call))
		}
		for p.Call() != nil { // the client hangs up
		}
	})
	done := make(chan error)
	go func() { done <- a.Look(ctx) }()
	for !a.sees("a.service") {
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

// dump is what PID 1 would say of files in a store.
func dump(t *testing.T, files ...*fd.FD) (list []dumped) {
	t.Helper()
	for _, f := range files {
		e := entry(t, f)
		list = append(list, dumped{
			"x", e.Mode, unix.Major(e.Dev), unix.Minor(e.Dev), e.Ino,
			unix.Major(e.Rdev), unix.Minor(e.Rdev), e.Path, uint32(e.Flags),
		})
	}
	return list
}

// holding is a machine whose services have stopped, with real files in their stores.
func holding(t *testing.T, stores map[string][]*fd.FD) (*changing, *Ahead) {
	t.Helper()
	c, a := halfStopped(t)
	for unit := range c.units {
		c.change(unit, gone)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for unit, files := range stores {
		c.units[unit] = stoppedService(1, dump(t, files...)...)
	}
	return c, a
}

// filesOf returns what was duplicated ahead of each store, and closes it with the test.
func (a *Ahead) filesOf(t *testing.T) map[string][]*File {
	t.Helper()
	found := map[string][]*File{}
	err := a.EachStore(t.Context(), func(s *Store) {
		if files := a.Files(s); files != nil {
			found[s.Unit] = files
		}
		if a.Files(s) != nil {
			t.Errorf("the files of %s are given twice", s.Unit)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, files := range found {
			for _, f := range files {
				_ = f.FD.Close()
			}
		}
	})
	return found
}

func TestFilesAreDuplicatedAhead(t *testing.T) {
	first, second := fdtest.Memfd(t), fdtest.Memfd(t)
	_, a := holding(t, map[string][]*fd.FD{"a.service": {second, first}})
	a.look(t)
	files := a.filesOf(t)["a.service"]
	if len(files) != 2 {
		t.Fatalf("%d files, want 2", len(files))
	}
	for i, f := range []*fd.FD{second, first} {
		if same, err := files[i].FD.SameOpenFile(f); !same || err != nil {
			t.Errorf("file %d is another: %v", i, err)
		}
	}
	if _, err := unix.Pwrite(raw(t, first), []byte("grown"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Seek(raw(t, first), 3, unix.SEEK_SET); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(raw(t, first)), unix.F_SETFL, unix.O_RDWR|unix.O_APPEND); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fchmod(raw(t, first), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := files[1].Renew(); err != nil || files[1].Mode != unix.S_IFREG|0o600 || files[1].Size != 5 || files[1].Position != 3 || files[1].Flags != unix.O_RDWR|unix.O_APPEND {
		t.Errorf("renewed: %d bytes, position %d, flags %x, mode %o: %v", files[1].Size, files[1].Position, files[1].Flags, files[1].Mode, err)
	}
}

// What cannot be told apart yet, or is no file of its own, is left to who knows all stores.
func TestOnlyWhatIsCertainIsDuplicatedAhead(t *testing.T) {
	twice := fdtest.Memfd(t)
	again := own2(t, twice)
	raw, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	event, gone := own(t, raw, err), fdtest.Memfd(t)
	_, a := holding(t, map[string][]*fd.FD{
		"twice.service": {again, fdtest.Memfd(t)}, "event.service": {event, fdtest.Memfd(t)}, "gone.service": {fdtest.Memfd(t), gone},
		"excluded.service": {fdtest.Memfd(t)}, "with-event.service": {fdtest.Memfd(t), event},
	})
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	a.look(t)
	if files := a.filesOf(t); len(files) > 0 {
		t.Errorf("duplicated: %v", files)
	}
}

// Of two open files of one memfd neither is taken for the only one, though each store was
// looked at by itself.
func TestAFileOfTwoStoresIsNotDuplicatedAhead(t *testing.T) {
	f := fdtest.Memfd(t)
	again, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", raw(t, f)), unix.O_RDWR|unix.O_CLOEXEC, 0)
	_, a := holding(t, map[string][]*fd.FD{"a.service": {f}, "b.service": {own(t, again, err)}})
	a.look(t)
	if files := a.filesOf(t); len(files) > 0 {
		t.Errorf("duplicated: %v", files)
	}
}

// What has changed since is not what was duplicated.
func TestFilesOfAChangedStoreAreNotGiven(t *testing.T) {
	f, other := fdtest.Memfd(t), fdtest.Memfd(t)
	for name, change := range map[string]func(c *changing){
		"stopped anew": func(c *changing) {
			c.change("a.service", func(u *fakeUnit) { *u = stoppedService(later, dump(t, other)...) })
			c.change(managerItself, func(u *fakeUnit) { u.properties = managerProperties(1, 8) })
		},
		"runs": func(c *changing) {
			c.change("a.service", func(u *fakeUnit) { *u = service("yes", 8, dump(t, other)...) })
		},
		"gone": func(c *changing) {
			c.change("a.service", func(u *fakeUnit) { *u = fakeUnit{load: "not-found"} })
		},
		"reloaded": func(c *changing) {
			c.change(managerItself, func(u *fakeUnit) { u.properties = managerProperties(2, 7) })
			c.change("a.service", gone)
		},
	} {
		for _, take := range []bool{false, true} {
			c, a := holding(t, map[string][]*fd.FD{"a.service": {f}})
			a.look(t)
			change(c)
			a.stale(t, take)
			if files := a.filesOf(t); len(files) > 0 {
				t.Errorf("%s: given: %v", name, files)
			}
		}
	}
}

// stale expects that what was told of a.service first is found out to have changed, whether
// its files were taken or not.
func (a *Ahead) stale(t *testing.T, take bool) {
	t.Helper()
	var told []string
	err := a.EachStore(t.Context(), func(s *Store) {
		told = append(told, s.Unit)
		if take {
			for _, f := range a.Files(s) {
				_ = f.FD.Close()
			}
		}
	})
	if !errors.Is(err, ErrStale) || !slices.Equal(told, []string{"a.service"}) {
		t.Errorf("told of %v: %v", told, err)
	}
}

// What is known to have changed is so even if PID 1 does not say of the others.
func TestAChangeIsKnownThoughPID1HangsUp(t *testing.T) {
	c, a := holding(t, map[string][]*fd.FD{"a.service": {fdtest.Memfd(t)}, "b.service": {fdtest.Memfd(t)}})
	a.look(t)
	c.change("a.service", func(u *fakeUnit) { u.properties[unitInterface+".StateChangeTimestampMonotonic"] = uint64(later) })
	c.change(managerItself, func(u *fakeUnit) { u.properties = managerProperties(1, 8) })
	a.Socket = bulktest.Serve(t, func(p *bulktest.Peer) {
		for _, call := range p.Calls(4) {
			p.Send(c.units.answer(call))
		}
		p.Send(c.units.answer(p.Calls(2)[0]))
	})
	if err := a.EachStore(t.Context(), func(*Store) {}); !errors.Is(err, ErrStale) || !errors.Is(err, ErrManager) {
		t.Errorf("EachStore: %v", err)
	}
}

// A service that is not there any more may come back, and be another.
func TestWhatIsGoneIsForgotten(t *testing.T) {
	c, a := halfStopped(t)
	a.look(t)
	c.change("a.service", gone)
	a.look(t)
	if a.sees("a.service") || !a.sees("b.service") {
		t.Errorf("sees a: %v, b: %v", a.sees("a.service"), a.sees("b.service"))
	}
}

// As long as PID 1 has had no further job it is asked about no unit that was seen.
func TestWhatIsDuplicatedIsVerifiedAtOnce(t *testing.T) {
	for jobs, want := range map[uint32]int{7: 3, 8: 5} {
		c, a := holding(t, map[string][]*fd.FD{"a.service": {fdtest.Memfd(t)}, "b.service": {fdtest.Memfd(t)}})
		a.look(t)
		c.change(managerItself, func(u *fakeUnit) { u.properties = managerProperties(1, jobs) })
		c.told()
		a.stores(t)
		if told := c.told(); told != want {
			t.Errorf("after %d jobs PID 1 was asked for %d properties, want %d", jobs, told, want)
		}
	}
}

// Then it is not known whether it is so still.
func TestWhatIsDuplicatedIsToldWhenPID1DoesNotAnswer(t *testing.T) {
	_, a := holding(t, map[string][]*fd.FD{"a.service": {fdtest.Memfd(t)}})
	a.look(t)
	a.Socket = bulktest.Serve(t, func(p *bulktest.Peer) { p.Call() }) // and hangs up
	var told []string
	err := a.EachStore(t.Context(), func(s *Store) { told = append(told, s.Unit) })
	if !errors.Is(err, ErrManager) || !errors.Is(err, ErrUnsure) || !slices.Equal(told, []string{"a.service"}) {
		t.Errorf("told of %v: %v", told, err)
	}
}

// As long as PID 1 has not answered there is something to do already.
func TestWhatIsDuplicatedIsToldBeforePID1IsAsked(t *testing.T) {
	c, a := holding(t, map[string][]*fd.FD{"a.service": {fdtest.Memfd(t)}, "b.service": {}})
	a.look(t)
	c.mu.Lock()
	err := a.EachStore(t.Context(), func(s *Store) {
		if s.Unit == "a.service" {
			c.mu.Unlock() // or it would not answer
		}
	})
	if err != nil {
		t.Error(err)
	}
}

// What PID 1 has told of when its time is over is duplicated nevertheless, unless all of
// PID 1's fds were to be looked at for it.
func TestWhatWasSeenLastIsDuplicatedToo(t *testing.T) {
	for _, begun := range []bool{true, false} {
		_, a := holding(t, nil)
		a.Seen = func(s *Store, _ []*File) {
			if s.Unit == "last" {
				t.Error("seen when there is no time any more")
			}
		}
		first, last := &sighting{store: &Store{Entries: entriesOf(t, fdtest.Memfd(t))}}, &sighting{store: &Store{Unit: "last", Entries: entriesOf(t, fdtest.Memfd(t))}}
		ctx, stop := context.WithCancel(t.Context())
		found, done := make(chan *sighting), make(chan struct{})
		go func() { a.duplicate(ctx, found); close(done) }()
		if begun {
			found <- first
			found <- &sighting{store: &Store{}} // which is taken when the first is done with
		}
		stop()
		found <- last
		close(found)
		<-done
		if (last.files != nil) != begun {
			t.Errorf("begun before: %v; duplicated: %v", begun, last.files)
		}
		first.close()
		last.close()
	}
}

func entriesOf(t *testing.T, files ...*fd.FD) (list []Entry) {
	t.Helper()
	for _, f := range files {
		list = append(list, *entry(t, f))
	}
	return list
}

// Whoever has to duplicate anew finds in PID 1 what was duplicated in vain: of a service
// that runs again, and what was given once already, as when all is preserved anew.
func TestWhatIsNotGivenAheadCanBeDuplicated(t *testing.T) {
	for name, change := range map[string]func(f *fd.FD) fakeUnit{
		"runs":         func(f *fd.FD) fakeUnit { return service("yes", 8, dump(t, f)...) },
		"stopped anew": func(f *fd.FD) fakeUnit { return stoppedService(later, dump(t, f)...) },
		"given before": nil,
	} {
		f := fdtest.Memfd(t)
		c, a := holding(t, map[string][]*fd.FD{"a.service": {f}})
		a.look(t)
		if change == nil && len(a.filesOf(t)) != 1 {
			t.Errorf("%s: nothing was given", name)
		}
		if change != nil {
			c.change("a.service", func(u *fakeUnit) { *u = change(f) })
			c.change(managerItself, func(u *fakeUnit) { u.properties = managerProperties(1, 8) })
			a.stale(t, true)
		}
		if files := a.filesOf(t); len(files) > 0 {
			t.Errorf("%s: given: %v", name, files)
		}
		d, err := a.OpenDuplicator()
		if err != nil {
			t.Fatal(err)
		}
		e := entry(t, f)
		if list := d.found[file{dev: e.Dev, ino: e.Ino}].list; !slices.Contains(list, raw(t, f)) {
			t.Errorf("%s: the descriptor %d is left out: %v", name, raw(t, f), list)
		}
		_ = d.Close()
	}
}

// A file that another store has, too, once it was duplicated ahead, is the other one.
func TestADuplicatorLeavesWhatWasDuplicatedAhead(t *testing.T) {
	f := fdtest.Memfd(t)
	_, a := holding(t, map[string][]*fd.FD{"a.service": {f}})
	a.look(t)
	later := own2(t, f)
	for _, when := range []string{"before it is given", "and after"} {
		d, err := a.OpenDuplicator()
		if err != nil {
			t.Fatal(err)
		}
		e := entry(t, f)
		list := d.found[file{dev: e.Dev, ino: e.Ino}].list
		if slices.Contains(list, raw(t, f)) || !slices.Contains(list, raw(t, later)) {
			t.Errorf("%s: the descriptors %v, want %d and not %d", when, list, raw(t, later), raw(t, f))
		}
		_ = d.Close()
		_ = a.filesOf(t)
	}
}

func TestWhetherPID1CarriesStoresIsAskedOnce(t *testing.T) {
	for _, look := range []bool{false, true} { // which brings it along
		c, a := halfStopped(t)
		c.change(managerItself, func(u *fakeUnit) { delete(u.properties, managerInterface+".Version") })
		if look {
			a.look(t)
		}
		if _, err := a.Carries(t.Context()); err == nil {
			t.Error("a PID 1 without a version has one")
		}
		c.change(managerItself, func(u *fakeUnit) { u.properties[managerInterface+".Version"] = "261" })
		if look {
			a.look(t)
			a.Socket = "/nowhere"
		}
		for range 2 {
			if carries, err := a.Carries(t.Context()); !carries || err != nil {
				t.Errorf("Carries: %v, %v", carries, err)
			}
			a.Socket = "/nowhere"
		}
	}
}
