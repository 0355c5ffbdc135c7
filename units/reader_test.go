// SPDX-License-Identifier: Apache-2.0

package units

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/units/bulk"
	"github.com/fdbridge/fdbridge/units/bulk/bulktest"
)

// dumped is an element of a(suuutuusu), listed one of a(ssssssouso).
type dumped struct {
	Name               string
	Mode, Major, Minor uint32
	Ino                uint64
	Rmajor, Rminor     uint32
	Path               string
	Flags              uint32
}

type listed struct {
	Name, Description, Load, Active, Sub, Following string
	Path                                            dbus.ObjectPath
	Job                                             uint32
	Type                                            string
	JobPath                                         dbus.ObjectPath
}

// fakeUnit is a unit that is loaded unless load says otherwise.
type fakeUnit struct {
	load       string
	state      [2]string      // active and sub; running unless set
	job        string         // its type
	properties map[string]any // by the full name
	entries    []dumped
	dumpError  string
}

// pid1 answers as PID 1 would if it had the units.
type pid1 map[string]fakeUnit

// managerItself is what has PID 1's own properties.
const managerItself = ""

func (units pid1) serve(p *bulktest.Peer) {
	for call := p.Call(); call != nil; call = p.Call() {
		p.Send(units.answer(call))
	}
}

func (units pid1) answer(call *dbus.Message) *dbus.Message {
	to := call.Headers[dbus.FieldPath].Value().(dbus.ObjectPath)
	member := fmt.Sprint(call.Headers[dbus.FieldInterface].Value(), ".", call.Headers[dbus.FieldMember].Value())
	switch {
	case to == managerPath && member == managerInterface+".ListUnitsByPatterns":
		return bulktest.Return(call, units.list(call.Body[1].([]string)))
	case to == managerPath && member == managerInterface+".DumpUnitFileDescriptorStore":
		unit, ok := units[call.Body[0].(string)]
		if !ok {
			return bulktest.Fail(call, errNoSuchUnit, "no such unit")
		}
		if unit.dumpError != "" {
			return bulktest.Fail(call, unit.dumpError, "it does not work")
		}
		return bulktest.Return(call, unit.entries)
	case member == "org.freedesktop.DBus.Properties.Get":
		for name, unit := range units {
			if name == managerItself {
				if to != managerPath {
					continue
				}
			} else if unitPath(name) != string(to) {
				continue
			}
			property := fmt.Sprint(call.Body[0], ".", call.Body[1])
			if value, ok := unit.properties[property]; ok {
				return bulktest.Return(call, dbus.MakeVariant(value))
			}
			return bulktest.Fail(call, "org.freedesktop.DBus.Error.UnknownProperty", "no "+property)
		}
		return bulktest.Fail(call, errUnknownObject)
	}
	return bulktest.Fail(call, "org.freedesktop.DBus.Error.UnknownMethod", member)
}

// list goes by patterns as fnmatch(3) does with FNM_NOESCAPE, which path.Match is the
// same as for the names of units when there is no escape. None match all units.
func (units pid1) list(patterns []string) []listed {
	list := []listed{}
	for name, unit := range units {
		matches := func(pattern string) bool {
			ok, err := path.Match(strings.ReplaceAll(pattern, `\`, `\\`), name)
			return ok && err == nil
		}
		if len(patterns) > 0 && !slices.ContainsFunc(patterns, matches) {
			continue
		}
		load := unit.load
		if load == "" {
			load = "loaded"
		}
		state := unit.state
		if state[0] == "" {
			state = [2]string{"active", "running"}
		}
		list = append(list, listed{name, "About " + name, load, state[0], state[1], "",
			dbus.ObjectPath(unitPath(name)), 0, unit.job, "/"})
	}
	return list
}

// service has the properties of a service that keeps its store as preserve says.
func service(preserve string, maximum uint32, entries ...dumped) fakeUnit {
	return fakeUnit{entries: entries, properties: map[string]any{
		serviceInterface + ".FileDescriptorStorePreserve": preserve,
		serviceInterface + ".FileDescriptorStoreMax":      maximum,
		serviceInterface + ".User":                        "alice",
		serviceInterface + ".Group":                       "staff",
		unitInterface + ".FragmentPath":                   "/usr/lib/" + preserve,
	}}
}

func with(unit fakeUnit, change func(u *fakeUnit)) fakeUnit {
	change(&unit)
	return unit
}

var (
	dumpedFile  = dumped{"data", unix.S_IFREG | 0o600, 0, 5, 1 << 33, 0, 0, "/memfd:x (deleted)", unix.O_RDWR}
	dumpedTTY   = dumped{"", unix.S_IFCHR | 0o620, 0, 6, 7, 4, 1000, "/dev/tty", unix.O_RDWR | unix.O_NONBLOCK}
	wantEntries = []Entry{
		{Name: "data", Mode: unix.S_IFREG | 0o600, Dev: unix.Mkdev(0, 5), Ino: 1 << 33, Path: "/memfd:x (deleted)", Flags: unix.O_RDWR},
		{Mode: unix.S_IFCHR | 0o620, Dev: unix.Mkdev(0, 6), Ino: 7, Rdev: unix.Mkdev(4, 1000), Path: "/dev/tty", Flags: unix.O_RDWR | unix.O_NONBLOCK},
	}
)

// machine is what most tests ask about.
func machine() pid1 {
	return pid1{
		"yes.service":      service("yes", 8, dumpedFile, dumpedTTY),
		"restart.service":  service("restart", 8, dumpedTTY),
		"empty.service":    service("yes", 8),
		"success.service":  service("on-success", 1),
		"none.service":     service("yes", 0),
		`a\x2db.service`:   service("yes", 2, dumpedFile),
		"disabled.service": with(service("no", 0), func(u *fakeUnit) { u.dumpError = errStoreDisabled }),
		"gone.service":     with(service("no", 0), func(u *fakeUnit) { u.dumpError = errNoSuchUnit }),
		"missing.service":  {load: "not-found"},
		"a.socket":         {},
	}
}

// reader asks a server.
func reader(t *testing.T, serve func(p *bulktest.Peer)) *Reader {
	t.Helper()
	return &Reader{Socket: bulktest.Serve(t, serve)}
}

func store(unit, preserve string, entries ...Entry) Store {
	return Store{Unit: unit, Preserve: preserve, User: "alice", Group: "staff", FragmentPath: "/usr/lib/" + preserve, Entries: entries}
}

func TestStoresAreThoseThatHoldSomething(t *testing.T) {
	got, err := reader(t, machine().serve).Stores(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []Store{
		store(`a\x2db.service`, "yes", wantEntries[0]),
		store("restart.service", "restart", wantEntries[1]),
		store("yes.service", "yes", wantEntries...),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stores (-want +got):\n%s", diff)
	}
}

func TestAStoreThatCannotBeReadLeavesTheOthers(t *testing.T) {
	const refused = "org.freedesktop.DBus.Error.AccessDenied"
	units := machine()
	units["denied.service"] = with(service("yes", 8, dumpedFile), func(u *fakeUnit) { u.dumpError = refused })
	r := reader(t, units.serve)
	got, err := r.Stores(t.Context())
	var answer *bulk.Error
	if !errors.As(err, &answer) || answer.Name != refused || !strings.Contains(err.Error(), "denied.service") || errors.Is(err, ErrManager) {
		t.Errorf("error: %v", err)
	}
	names := []string{}
	for _, s := range got {
		names = append(names, s.Unit)
	}
	if diff := cmp.Diff([]string{`a\x2db.service`, "restart.service", "yes.service"}, names); diff != "" {
		t.Errorf("stores (-want +got):\n%s", diff)
	}
	stored, err := r.Stored(t.Context(), []string{"denied.service", "yes.service"})
	if diff := cmp.Diff(map[string]int{"yes.service": 2}, stored); diff != "" || !errors.As(err, &answer) {
		t.Errorf("%v, stored (-want +got):\n%s", err, diff)
	}
	if entries, err := r.Entries(t.Context(), "denied.service"); entries != nil || !errors.As(err, &answer) {
		t.Errorf("entries: %v, %v", entries, err)
	}
}

func TestAPropertyThatCannotBeReadIsNamed(t *testing.T) {
	units := machine()
	delete(units["yes.service"].properties, serviceInterface+".User")
	got, err := reader(t, units.serve).Stores(t.Context())
	if err == nil || !strings.Contains(err.Error(), "User of yes.service") || len(got) != 3 {
		t.Errorf("%d stores, %v", len(got), err)
	}
	units = machine()
	units["yes.service"].properties[serviceInterface+".User"] = uint32(0) // of another type
	_, err = reader(t, units.serve).Stores(t.Context())
	if !errors.Is(err, bulk.ErrProtocol) || !strings.Contains(err.Error(), "User of yes.service") {
		t.Errorf("of another type: %v", err)
	}
}

// A unit that went away while it was asked about is no error.
func TestPropertiesOfAUnitThatIsGoneAreEmpty(t *testing.T) {
	units := machine()
	r := reader(t, func(p *bulktest.Peer) {
		for call := p.Call(); call != nil; call = p.Call() {
			if call.Headers[dbus.FieldPath].Value() == dbus.ObjectPath(unitPath("yes.service")) {
				p.Send(bulktest.Fail(call, errUnknownObject, "no such object"))
			} else {
				p.Send(units.answer(call))
			}
		}
	})
	optedIn, err := r.OptedIn(t.Context(), []string{"yes.service", "success.service"})
	if diff := cmp.Diff([]Store{{Unit: "success.service", Preserve: "on-success", Max: 1}}, optedIn); diff != "" || err != nil {
		t.Errorf("%v, opted in (-want +got):\n%s", err, diff)
	}
}

func TestOptedInAsksAboutLoadedServices(t *testing.T) {
	all := []Store{
		{Unit: `a\x2db.service`, Preserve: "yes", Max: 2}, {Unit: "empty.service", Preserve: "yes", Max: 8},
		{Unit: "success.service", Preserve: "on-success", Max: 1}, {Unit: "yes.service", Preserve: "yes", Max: 8},
	}
	for name, test := range map[string]struct {
		units []string
		want  []Store
	}{
		"all":       {nil, all},
		"backslash": {[]string{`a\x2db.service`}, all[:1]},
		"some":      {[]string{"yes.service", "restart.service", "empty.service"}, []Store{all[1], all[3]}},
		"not there": {[]string{"missing.service", "never.service"}, nil},
	} {
		got, err := reader(t, machine().serve).OptedIn(t.Context(), test.units)
		if diff := cmp.Diff(test.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v, opted in (-want +got):\n%s", name, err, diff)
		}
	}
}

func TestStoredAndEntriesOfUnitsByName(t *testing.T) {
	r := reader(t, machine().serve)
	stored, err := r.Stored(t.Context(), slices.Collect(maps.Keys(machine())))
	want := map[string]int{"yes.service": 2, "restart.service": 1, `a\x2db.service`: 1}
	if diff := cmp.Diff(want, stored); diff != "" || err != nil {
		t.Errorf("%v, stored (-want +got):\n%s", err, diff)
	}
	for unit, want := range map[string][]Entry{
		"yes.service": wantEntries, "empty.service": nil, "disabled.service": nil, "gone.service": nil, "never.service": nil,
	} {
		got, err := r.Entries(t.Context(), unit)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v, entries (-want +got):\n%s", unit, err, diff)
		}
	}
}

// PID 1 spends time on every connection that is open (see Manager).
func TestReaderKeepsNoConnection(t *testing.T) {
	closed := make(chan int, 10)
	r := reader(t, func(p *bulktest.Peer) {
		calls := 0
		for call := p.Call(); call != nil; call = p.Call() {
			calls++
			p.Send(machine().answer(call))
		}
		closed <- calls
	})
	if _, err := r.Stores(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The list; the store and four properties of all services but the one that
	// is not loaded.
	if got := <-closed; got != 1+8*5 {
		t.Errorf("%d calls on the connection", got)
	}
}

func TestNothingIsAskedAboutNoUnits(t *testing.T) {
	r := &Reader{Socket: t.TempDir() + "/none"}
	if stored, err := r.Stored(t.Context(), nil); len(stored) != 0 || err != nil {
		t.Errorf("stored: %v, %v", stored, err)
	}
}

// As it does when PID 1 re-executes itself, be it in the middle of its answers.
func TestAClosedConnectionIsErrManagerOnce(t *testing.T) {
	units := []string{"yes.service", "restart.service", `a\x2db.service`}
	for answers := range units {
		var conns atomic.Int32
		r := reader(t, func(p *bulktest.Peer) {
			if conns.Add(1) > 1 {
				machine().serve(p)
				return
			}
			for _, call := range p.Calls(len(units))[:answers] {
				p.Send(machine().answer(call))
			}
		})
		stored, err := r.Stored(t.Context(), units)
		if !errors.Is(err, ErrManager) || !errors.Is(err, io.EOF) || len(stored) != 0 {
			t.Errorf("closed after %d answers: %v, %v", answers, stored, err)
		}
		stored, err = r.Stored(t.Context(), units)
		want := map[string]int{"yes.service": 2, "restart.service": 1, `a\x2db.service`: 1}
		if diff := cmp.Diff(want, stored); diff != "" || err != nil {
			t.Errorf("asked again: %v, stored (-want +got):\n%s", err, diff)
		}
	}
}

func TestPID1ThatDoesNotAnswerIsErrManager(t *testing.T) {
	questions := map[string]func(ctx context.Context, r *Reader) (int, error){
		"Stores": func(ctx context.Context, r *Reader) (int, error) { got, err := r.Stores(ctx); return len(got), err },
		"OptedIn": func(ctx context.Context, r *Reader) (int, error) {
			got, err := r.OptedIn(ctx, nil)
			return len(got), err
		},
		"Stored": func(ctx context.Context, r *Reader) (int, error) {
			got, err := r.Stored(ctx, []string{"yes.service"})
			return len(got), err
		},
		"Entries": func(ctx context.Context, r *Reader) (int, error) {
			got, err := r.Entries(ctx, "yes.service")
			return len(got), err
		},
	}
	calls := map[string]int{"Stores": 6, "OptedIn": 3, "Stored": 1, "Entries": 1}
	for name, ask := range questions {
		// It answers some calls, and then says nothing more, or no sensible word.
		for answered := range calls[name] {
			ctx, end := context.WithCancel(t.Context())
			n, err := ask(ctx, reader(t, answerSome(answered, end)))
			if !errors.Is(err, ErrManager) || !errors.Is(err, context.Canceled) || n != 0 {
				t.Errorf("%s, silent after %d answers: %d, %v", name, answered, n, err)
			}
			ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
			n, err = ask(ctx, reader(t, answerSome(answered, nil)))
			if stop(); !errors.Is(err, ErrManager) || !errors.Is(err, bulk.ErrProtocol) || n != 0 {
				t.Errorf("%s, nonsense after %d answers: %d, %v", name, answered, n, err)
			}
		}
		if _, err := ask(t.Context(), &Reader{Socket: t.TempDir() + "/none"}); !errors.Is(err, ErrManager) || !errors.Is(err, unix.ENOENT) {
			t.Errorf("%s, no socket: %v", name, err)
		}
	}
}

// answerSome answers that many calls. It calls silent at the next one, or else
// says what is no answer.
func answerSome(n int, silent func()) func(p *bulktest.Peer) {
	units := pid1{"yes.service": service("yes", 8, dumpedFile)}
	return func(p *bulktest.Peer) {
		for range n {
			p.Send(units.answer(p.Call()))
		}
		if p.Call(); silent == nil {
			p.SendBytes([]byte("no D-Bus message begins like this"))
		} else {
			silent()
		}
		for p.Call() != nil {
		}
	}
}

// PID 1 is not asked what its answers so far already say: see loaded.dead and
// Store.Kept.
func TestStoppedUnitsAreAskedAboutTheirStoresOnly(t *testing.T) {
	stopped := func(active, sub string, entries ...dumped) fakeUnit {
		return with(service("not asked for", 8, entries...), func(u *fakeUnit) { u.state = [2]string{active, sub} })
	}
	units := pid1{
		"dead.service":    stopped("inactive", "dead", dumpedFile),
		"failed.service":  stopped("failed", "failed", dumpedFile),
		"failed2.service": stopped("failed", "failed"),
		"pinned.service":  stopped("inactive", "dead-resources-pinned", dumpedFile),
		"running.service": service("yes", 8, dumpedFile),
	}
	r := reader(t, func(p *bulktest.Peer) {
		for call := p.Call(); call != nil; call = p.Call() {
			p.Send(units.answer(call))
		}
	})
	r.Known = func(s *Store) bool { s.User = "of " + s.Unit; return s.Unit != "running.service" }
	got, err := r.Stores(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kept := func(unit string) Store {
		return Store{Unit: unit, Kept: true, User: "of " + unit, Entries: wantEntries[:1]}
	}
	want := []Store{kept("failed.service"), kept("pinned.service"), store("running.service", "yes", wantEntries[:1]...)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stores (-want +got):\n%s", diff)
	}
	for _, s := range got {
		if !s.OptedIn() {
			t.Errorf("%s has not opted in", s.Unit)
		}
	}
}

// What is known is not kept until all is.
func TestEachStoreIsToldOfWhilePID1StillAnswers(t *testing.T) {
	units := pid1{"a.service": service("yes", 8, dumpedFile), "b.service": service("yes", 8, dumpedFile)}
	told := make(chan string, 2)
	r := reader(t, func(p *bulktest.Peer) {
		p.Send(units.answer(p.Call()))
		calls := p.Calls(10)
		for _, call := range calls[:5] {
			p.Send(units.answer(call))
		}
		if unit := <-told; unit != "a.service" {
			t.Errorf("told of %s first", unit)
		}
		for _, call := range calls[5:] {
			p.Send(units.answer(call))
		}
	})
	if err := r.EachStore(t.Context(), func(s *Store) { told <- s.Unit }); err != nil {
		t.Fatal(err)
	}
	if unit := <-told; unit != "b.service" {
		t.Errorf("told of %s then", unit)
	}
}
