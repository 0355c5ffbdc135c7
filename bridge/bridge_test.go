// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/session/sessiontest"
	"github.com/fdbridge/fdbridge/units"
	"github.com/fdbridge/fdbridge/units/generator"
)

// world is a fake kernel and a PID 1 above it.
type world struct {
	t      testing.TB
	kernel *sessiontest.Fake
	*manager
	log         bytes.Buffer
	invocations atomic.Int64
	startsDir   string
	starts      chan struct{} // a value for each unit that asks for its fds
	last        *daemon       // see daemon
	mu          sync.Mutex
	recorded    *kho.Index
	unrecorded  error         // why an index cannot be recorded
	unrescued   error         // why something of an update that was called off cannot be had
	unheard     error         // why nothing of it can be
	unemptied   error         // why it is left where it is
	unsealed    error         // why there is no time to empty stores
	impatient   time.Duration // the servers' RequestTimeout, if set
	// waitInterval is the servers' WaitInterval, if set; otherwise nobody is told to wait.
	// queueTimeout is their QueueTimeout, if set.
	waitInterval, queueTimeout time.Duration
}

func newWorld(t testing.TB) *world {
	t.Helper()
	kernel, err := sessiontest.NewFake()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, kernel: kernel, manager: newManager(t), startsDir: t.TempDir(), starts: make(chan struct{}, 10000)}
	w.manager.kernel = kernel
	t.Cleanup(func() {
		if err := kernel.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// Write is where logs go.
func (w *world) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(p)
}

func (w *world) logged() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.String()
}

func (w *world) preserver() *bridge.Preserver {
	log := journal.To(w)
	return &bridge.Preserver{
		Stores: w.manager, Sealed: func(time.Duration) error { return w.unsealed }, Duplicator: w.duplicator, Kernel: w.kernel, Device: session.Path,
		Excluded: func(unit string) bool {
			return unit == "excluded.service" || unit == bridge.OwnUnit || unit == rescueUnit
		},
		Required: func(unit string) bool { return unit == "required.service" },
		Early: func(unit string) generator.Early {
			return map[string]generator.Early{"early.service": generator.EarlyYes, "never.service": generator.EarlyNo}[unit]
		},
		Rescue: keeper{m: w.manager, unit: rescueUnit},
		Record: func(index *kho.Index) error {
			w.recorded = index
			return w.unrecorded
		},
		Origin: kho.Origin{BootID: "boot", Kernel: "7.2.0", Time: time.Unix(0, 0).UTC()},
		Log:    log, Warnings: log.Recall(),
	}
}

// failing has requests of one kind fail, those about a session of that name, or about any.
func (w *world) failing(kind uint, of string, err error) {
	w.kernel.Fail = func(request uint, name string, _ uint64) error {
		if request == kind && (of == "" || name == of) {
			return err
		}
		return nil
	}
}

// preserve preserves, and closes what was preserved at the end of the test.
func (w *world) preserve() *bridge.Preserved {
	w.t.Helper()
	preserved, err := w.preserver().Run(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = preserved.Close() })
	return preserved
}

// kexec replaces kernel and PID 1, whose stores are gone.
func (w *world) kexec(preserved *bridge.Preserved) {
	w.t.Helper()
	if err := w.kernel.Kexec(); err != nil {
		w.t.Fatal(err)
	}
	_ = preserved.Close()
	for unit := range w.units {
		w.empty(unit)
	}
}

// serve starts an fdbridged and returns its Holder, its socket and what stops it.
func (w *world) serve() (holder *bridge.Holder, socket string, stop func()) {
	w.t.Helper()
	d := w.start(w.t.Context(), filepath.Join(w.t.TempDir(), "socket"), keeper{m: w.manager, unit: bridge.OwnUnit})
	return d.holder, d.socket, d.stop
}

// deliver starts a unit's fdbridge-inject. What PID 1 has not read when that ends is lost.
func (w *world) deliver(socket, unit string) (int, error) {
	store := &queue{keeper: keeper{m: w.manager, unit: unit}}
	defer store.drop()
	return w.inject(socket, unit, store).Run(w.t.Context())
}

func TestStoresComeBackAsTheyWere(t *testing.T) {
	w := newWorld(t)
	want := map[string][]string{}
	for _, unit := range []string{"a.service", "b.service"} {
		w.add(unit, "yes")
		for _, name := range []string{"x", "same", "same", "", "last one!"} {
			w.put(unit, name, unit+name+fmt.Sprint(len(w.units[unit].store)))
		}
		want[unit] = w.contents(unit)
	}
	w.kexec(w.preserve())
	holder, socket, _ := w.serve()
	if diff := cmp.Diff([]string{"a.service", "b.service"}, holder.Units()); diff != "" {
		t.Errorf("held (-want +got):\n%s", diff)
	}
	for unit, contents := range want {
		if n, err := w.deliver(socket, unit); n != len(contents) || err != nil {
			t.Errorf("deliver to %s: %d, %v", unit, n, err)
		}
		if diff := cmp.Diff(contents, w.contents(unit)); diff != "" {
			t.Errorf("the store of %s (-want +got):\n%s", unit, diff)
		}
		if n, err := w.deliver(socket, unit); n != 0 || err != nil {
			t.Errorf("deliver to %s again: %d, %v", unit, n, err)
		}
	}
	if held := holder.Units(); len(held) != 0 {
		t.Errorf("still held: %v", held)
	}
	if p := holder.Problems(); len(p) != 0 {
		t.Errorf("problems: %v", p)
	}
}

func TestOnlyOptedInUnitsArePreserved(t *testing.T) {
	w := newWorld(t)
	for unit, preserve := range map[string]string{
		"in.service": "yes", "success.service": "on-success", "restart.service": "restart",
		"no.service": "no", "excluded.service": "yes",
	} {
		w.add(unit, preserve)
		w.put(unit, "a", unit)
	}
	var got []string
	for _, u := range w.preserve().Index.Units {
		got = append(got, u.Unit)
	}
	if diff := cmp.Diff([]string{"in.service", "success.service"}, got); diff != "" {
		t.Errorf("preserved units (-want +got):\n%s", diff)
	}
}

func TestWhatIsRefusedIsNamedAndTheRestCarried(t *testing.T) {
	w := newWorld(t)
	w.add("mixed.service", "yes")
	w.put("mixed.service", "a", "A")
	w.putPipe("mixed.service", "p")
	w.put("mixed.service", "b", "B")
	w.add("lost.service", "yes")
	w.putPipe("lost.service", "q")
	preserved := w.preserve()
	want := []kho.IndexUnit{
		{Unit: "lost.service", Lost: []kho.LostEntry{{Name: "q", Type: "pipe", Reason: session.ErrUnsupported.Error()}}},
		{Unit: "mixed.service", Sessions: []string{"fdbridge.mixed.service"}, Entries: 2, Bytes: 2,
			Lost: []kho.LostEntry{{Name: "p", Type: "pipe", Reason: session.ErrUnsupported.Error()}}},
	}
	if diff := cmp.Diff(want, preserved.Index.Units); diff != "" {
		t.Errorf("index (-want +got):\n%s", diff)
	}
	if !strings.Contains(w.logged(), `mixed.service: The fd "p" (pipe) will be lost`) {
		t.Errorf("the log does not name the lost fd: %s", w.logged())
	}
	w.kexec(preserved)
	_, socket, _ := w.serve()
	if n, err := w.deliver(socket, "mixed.service"); n != 2 || err != nil {
		t.Errorf("deliver: %d, %v", n, err)
	}
	if diff := cmp.Diff([]string{"b=B@1", "a=A@1"}, w.contents("mixed.service")); diff != "" {
		t.Errorf("store (-want +got):\n%s", diff)
	}
}

func TestHeldSessionsSurviveACrashOfFdbridged(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "X")
	w.kexec(w.preserve())
	_, _, stop := w.serve()
	stop()
	holder, socket, stop := w.serve()
	if p := holder.Problems(); len(p) != 0 {
		t.Errorf("problems: %v", p)
	}
	if n, err := w.deliver(socket, "a.service"); n != 1 || err != nil {
		t.Errorf("deliver: %d, %v", n, err)
	}
	stop()
	holder, _, _ = w.serve()
	if p := holder.Problems(); len(p) != 0 {
		t.Errorf("problems after delivery and another crash: %v", p)
	}
}

func TestWhatNobodyClaimedIsHeldOverTheNextUpdate(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "old")
	for range 2 {
		w.kexec(w.preserve())
		_, _, stop := w.serve()
		stop()
	}
	// Started without its fds, the unit has a store of its own by now.
	w.put("a.service", "y", "new")
	w.kexec(w.preserve())
	_, socket, _ := w.serve()
	if n, err := w.deliver(socket, "a.service"); n != 1 || err != nil {
		t.Errorf("deliver: %d, %v", n, err)
	}
	if diff := cmp.Diff([]string{"y=new@3"}, w.contents("a.service")); diff != "" {
		t.Errorf("first delivery (-want +got):\n%s", diff)
	}
	w.empty("a.service")
	if n, err := w.deliver(socket, "a.service"); n != 1 || err != nil {
		t.Errorf("deliver: %d, %v", n, err)
	}
	if diff := cmp.Diff([]string{"x=old@3"}, w.contents("a.service")); diff != "" {
		t.Errorf("second delivery (-want +got):\n%s", diff)
	}
}

func TestPID1IsAskedOnceWhenUnitsStartForTheFirstTime(t *testing.T) {
	w := newWorld(t)
	for i := range 10 {
		unit := fmt.Sprintf("u%d.service", i)
		w.add(unit, "yes")
		w.put(unit, "x", "X")
	}
	w.kexec(w.preserve())
	_, socket, _ := w.serve()
	for i := range 10 {
		if n, err := w.deliver(socket, fmt.Sprintf("u%d.service", i)); n != 1 || err != nil {
			t.Errorf("deliver: %d, %v", n, err)
		}
	}
	if w.asked != 1 {
		t.Errorf("PID 1 was asked %d times for 10 deliveries, want once", w.asked)
	}
}

// The unit was started while fdbridged was away.
func TestOldAndNewFDsAreNotMixed(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "old")
	w.kexec(w.preserve())
	_, _, stop := w.serve()
	stop()
	w.put("a.service", "x", "new")
	holder, socket, _ := w.serve()
	if _, err := w.deliver(socket, "a.service"); err == nil || !strings.Contains(err.Error(), "1 fds already") {
		t.Errorf("deliver: %v", err)
	}
	if len(holder.Held("a.service")) != 1 || len(holder.Problems()) != 1 {
		t.Errorf("held %v, problems %v", holder.Held("a.service"), holder.Problems())
	}
}

// The unit's fdbridge-inject did not come to ask when it was started first, as when there
// was no memory for it.
func TestOldAndNewFDsAreNotMixedAfterAStartThatDidNotAsk(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "old")
	w.kexec(w.preserve())
	d := w.daemon()
	w.invoke("a.service")
	w.put("a.service", "x", "new")
	if _, err := w.deliver(d.socket, "a.service"); err == nil || !strings.Contains(err.Error(), "1 fds already") {
		t.Errorf("deliver: %v", err)
	}
}

func TestAStoreThatIsTooSmallLeavesTheSessionHeld(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "X")
	w.put("a.service", "y", "Y")
	w.kexec(w.preserve())
	holder, socket, _ := w.serve()
	w.setMax("a.service", 1)
	if _, err := w.deliver(socket, "a.service"); err == nil || !strings.Contains(err.Error(), "room for 1 fds only") {
		t.Errorf("deliver: %v", err)
	}
	w.setMax("a.service", 2)
	w.empty("a.service")
	if n, err := w.deliver(socket, "a.service"); n != 2 || err != nil {
		t.Errorf("deliver again: %d, %v", n, err)
	}
	if held := holder.Units(); len(held) != 0 {
		t.Errorf("still held: %v", held)
	}
}

// Each fault hits one of two units; the other's fds come through.
func TestFaultsCostOneUnitAndAreNamed(t *testing.T) {
	fail := func(request uint, name string, token uint64) func(uint, string, uint64) error {
		return func(r uint, n string, t uint64) error {
			if r == request && n == name && t == token {
				return unix.EIO
			}
			return nil
		}
	}
	const bad = "fdbridge.bad.service"
	for name, fault := range map[string]struct {
		before, after func(uint, string, uint64) error
		says          string
	}{
		"the session cannot be created":    {before: fail(session.ReqCreateSession, bad, 0), says: "no session for the unit"},
		"an entry cannot be preserved":     {before: fail(session.ReqPreserveFD, bad, 1), says: `The fd "x" (memfd) will be lost`},
		"the manifest cannot be preserved": {before: fail(session.ReqPreserveFD, bad, 0), says: "manifest of its session"},
		"the session cannot be retrieved":  {after: fail(session.ReqRetrieveSession, bad, 0), says: "bad.service: Its fds cannot be restored"},
		"an entry cannot be retrieved":     {after: fail(session.ReqRetrieveFD, bad, 1), says: `The fd "x" of session fdbridge.bad.service is lost`},
		"the manifest cannot be retrieved": {after: fail(session.ReqRetrieveFD, bad, 0), says: "bad.service"},
		"the session cannot be finished":   {after: fail(session.ReqFinish, bad, 0), says: "The session fdbridge.bad.service cannot be finished"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, unit := range []string{"bad.service", "good.service"} {
				w.add(unit, "yes")
				w.put(unit, "x", "X")
			}
			w.kernel.Fail = fault.before
			w.kexec(w.preserve())
			w.kernel.Fail = fault.after
			holder, socket, _ := w.serve()
			_, _ = w.deliver(socket, "bad.service")
			if n, err := w.deliver(socket, "good.service"); n != 1 || err != nil {
				t.Errorf("deliver to the good unit: %d, %v", n, err)
			}
			if !strings.Contains(w.logged(), fault.says) {
				t.Errorf("the log does not say %q:\n%s", fault.says, w.logged())
			}
			retrieved := name == "the manifest cannot be retrieved"
			if held := len(holder.Held("bad.service")) > 0; held != retrieved {
				t.Errorf("the bad unit's session is held: %v, want %v", held, retrieved)
			}
		})
	}
}

// A file that two units have is in the session of one of them.
func TestAUnitGetsTheRestWhenASessionThatItSharesIsMissing(t *testing.T) {
	for name, test := range map[string]struct {
		why  error
		want []string
	}{
		"for good":              {unix.ENOENT, []string{"own=O@1"}},
		"for this fdbridged":    {unix.EMFILE, []string{}},
		"for all that is known": {unix.EIO, []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			names := []string{"a.service", "b.service"}
			for _, unit := range names {
				w.add(unit, "yes")
				w.put(unit, "own", "O")
			}
			w.putMemfd(names, "shared", "S", unix.O_RDWR, 0)
			w.kexec(w.preserve())
			borrower := w.recorded.Units[slices.IndexFunc(w.recorded.Units, func(u kho.IndexUnit) bool { return len(u.Sessions) == 2 })]
			w.kernel.Fail = func(request uint, name string, _ uint64) error {
				if request == session.ReqRetrieveSession && name == borrower.Sessions[1] {
					return test.why
				}
				return nil
			}
			d := w.daemon()
			n, err := w.deliver(d.socket, borrower.Unit)
			if n != len(test.want) || (err == nil) != (n > 0) {
				t.Errorf("deliver: %d, %v", n, err)
			}
			if diff := cmp.Diff(test.want, w.contents(borrower.Unit)); diff != "" {
				t.Errorf("the store (-want +got):\n%s", diff)
			}
			if held := len(d.holder.Held(borrower.Unit)) > 0; held != (n == 0) {
				t.Errorf("held: %v", held)
			}
			if says := `The fd "shared" of session ` + borrower.Sessions[0] + " is lost"; strings.Contains(w.logged(), says) != (n > 0) {
				t.Errorf("the log says %q, or not:\n%s", says, w.logged())
			}
		})
	}
}

// The one may come with the next fdbridged, whatever has become of the other.
func TestAUnitThatMissesTwoSessionsWaitsForTheOneThatMayCome(t *testing.T) {
	for _, order := range [][2]error{{unix.EMFILE, unix.ENOENT}, {unix.ENOENT, unix.EMFILE}} {
		w := newWorld(t)
		w.kernel.MaxFiles = 3
		w.add("a.service", "yes")
		for i := range 8 {
			w.put("a.service", fmt.Sprint("n", i), "x")
		}
		w.kexec(w.preserve())
		sessions := w.recorded.Units[0].Sessions
		if len(sessions) < 3 {
			t.Fatalf("its sessions are %q", sessions)
		}
		w.kernel.Fail = func(request uint, name string, _ uint64) error {
			if i := slices.Index(sessions, name); request == session.ReqRetrieveSession && (i == 1 || i == 2) {
				return order[i-1]
			}
			return nil
		}
		d := w.daemon()
		if n, err := w.deliver(d.socket, "a.service"); n != 0 || err == nil || len(d.holder.Held("a.service")) != 1 {
			t.Errorf("deliver: %d, %v; held: %v", n, err, d.holder.Held("a.service"))
		}
	}
}

func TestWithoutTheDeviceNothingIsPreservedAndItIsSaid(t *testing.T) {
	for name, test := range map[string]struct{ open, want error }{
		"no device":  {unix.ENOENT, session.ErrNoDevice},
		"broken":     {unix.EIO, session.ErrBroken},
		"no devices": {unix.ENXIO, session.ErrNoDevice},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.add("a.service", "yes")
			w.put("a.service", "x", "X")
			w.kernel.OpenErr = test.open
			if _, err := w.preserver().Run(t.Context()); !errors.Is(err, test.want) {
				t.Errorf("Run: %v, want %v", err, test.want)
			}
			holder, _, _ := w.serve()
			if p := holder.Problems(); len(p) != 1 || !strings.Contains(p[0], test.want.Error()) {
				t.Errorf("problems: %q, want one that says %q", p, test.want)
			}
		})
	}
}

func TestABusyDeviceEndsWithTheContext(t *testing.T) {
	w := newWorld(t)
	device, err := session.Open(w.kernel, session.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	ctx, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	if _, err := w.preserver().Run(ctx); !errors.Is(err, session.ErrBusy) {
		t.Errorf("Run: %v, want ErrBusy", err)
	}
}

func TestAnUnansweringPID1IsAnError(t *testing.T) {
	w := newWorld(t)
	w.err = fmt.Errorf("no answer: %w", units.ErrManager)
	if _, err := w.preserver().Run(t.Context()); !errors.Is(err, units.ErrManager) {
		t.Errorf("Run: %v, want ErrManager", err)
	}
}

func TestAStoreThatChangesIsReadAgain(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "X")
	once := sync.OnceFunc(func() {
		w.empty("a.service")
		w.put("a.service", "y", "Y")
		w.put("a.service", "z", "Z")
	})
	w.changed = once
	w.kexec(w.preserve())
	_, socket, _ := w.serve()
	if n, err := w.deliver(socket, "a.service"); n != 2 || err != nil {
		t.Errorf("deliver: %d, %v", n, err)
	}
	if diff := cmp.Diff([]string{"z=Z@1", "y=Y@1"}, w.contents("a.service")); diff != "" {
		t.Errorf("store (-want +got):\n%s", diff)
	}
}

func TestAStoreThatNeverStandsStillIsLostByName(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "X")
	w.changed = func() {
		w.empty("a.service")
		w.put("a.service", "x", "X")
	}
	unit := w.preserve().Index.Units[0]
	if len(unit.Lost) != 1 || unit.Lost[0].Reason != units.ErrChanged.Error() {
		t.Errorf("index: %+v", unit)
	}
}

func TestAStoreThatCannotBeReadAgainIsLostByName(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "X")
	w.put("a.service", "y", "Y")
	w.changed = func() {
		_ = keeper{m: w.manager, unit: "a.service"}.Remove("y")
		w.err = units.ErrManager
	}
	unit := w.preserve().Index.Units[0]
	if len(unit.Lost) != 2 {
		t.Fatalf("index: %+v", unit)
	}
	for _, l := range unit.Lost {
		if !strings.Contains(l.Reason, "cannot be listed again") {
			t.Errorf("%q is lost: %s", l.Name, l.Reason)
		}
	}
}

// When the time is over, or PID 1 answers no more, what is preserved is carried
// and the rest is named.
func TestWhatWasPreservedInTimeIsCarried(t *testing.T) {
	w := newWorld(t)
	all := 0
	for i := range 50 + runtime.GOMAXPROCS(0) { // which all capture side by side
		unit := fmt.Sprintf("u%d.service", i)
		w.add(unit, "yes")
		w.put(unit, "x", "X")
		all++
	}
	ctx, stop := context.WithCancelCause(t.Context())
	w.changed = func() { stop(errors.New("it takes too long")) }
	preserver := w.preserver()
	preserver.Partly = true
	preserved, err := preserver.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer preserved.Close()
	carried, lost := 0, 0
	for _, u := range preserved.Index.Units {
		carried, lost = carried+u.Entries, lost+len(u.Lost)
		if len(u.Lost) > 0 && u.Lost[0].Reason != "it takes too long" {
			t.Errorf("%s: %+v", u.Unit, u.Lost)
		}
	}
	if carried == 0 || lost == 0 || carried+lost != all {
		t.Errorf("%d carried, %d lost", carried, lost)
	}
}

// silent is a PID 1 that does not tell of all stores, and says why.
type silent struct {
	*manager
	why error
}

func (s silent) EachStore(ctx context.Context, each func(*units.Store)) error {
	return errors.Join(s.manager.EachStore(ctx, each), fmt.Errorf("read the others: %w", s.why))
}

func TestStoresThatPID1DoesNotTellOfAreLostOrCallTheUpdateOff(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "X")
	preserver := w.preserver()
	for _, why := range []error{unix.EACCES, units.ErrManager} {
		preserver.Stores = silent{w.manager, why}
		if _, err := preserver.Run(t.Context()); !errors.Is(err, why) {
			t.Errorf("%v, want %v", err, why)
		}
	}
	preserver.Partly = true
	preserved, err := preserver.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer preserved.Close()
	if list := preserved.Index.Units; len(list) != 1 || list[0].Entries != 1 {
		t.Errorf("index: %+v", list)
	}
	if !strings.Contains(w.logged(), "read the others") {
		t.Errorf("the log does not say what is missing: %s", w.logged())
	}
}

// What is in a session under the manifest's token when it is not the manifest.
func TestASessionWithABadManifestStaysHeld(t *testing.T) {
	good := func(unit string) []byte {
		m := kho.Manifest{Unit: unit, Origin: kho.Origin{Time: time.Unix(0, 0)}}
		data, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for name, test := range map[string]struct {
		data []byte
		want error
	}{
		"truncated":     {good("a.service")[:40], kho.ErrFormat},
		"empty":         {nil, kho.ErrFormat},
		"not JSON":      {[]byte("manifest"), kho.ErrFormat},
		"other version": {bytes.Replace(good("a.service"), []byte(`"version":1`), []byte(`"version":2`), 1), kho.ErrVersion},
		"other unit":    {good("b.service"), kho.ErrUnit},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.add("a.service", "yes")
			forge(w, map[string][]byte{"fdbridge.a.service": test.data})
			holder, socket, _ := w.serve()
			if n, err := w.deliver(socket, "a.service"); n != 0 || err == nil {
				t.Errorf("deliver: %d, %v", n, err)
			}
			problems := strings.Join(holder.Problems(), " ")
			if len(holder.Held("a.service")) != 1 || !strings.Contains(problems, "is held on: whose session fdbridge.a.service is") {
				t.Errorf("held %v, problems %q", holder.Held("a.service"), problems)
			}
			if !strings.Contains(w.logged(), test.want.Error()) {
				t.Errorf("the log does not say %q:\n%s", test.want, w.logged())
			}
		})
	}
}

// What is held cannot be carried on when it cannot be read. Where that may not
// be lost, the update is called off before the session is touched.
func TestHeldFdsThatMayNotBeLostCallTheUpdateOff(t *testing.T) {
	for name, sessions := range map[string]map[string][]byte{
		"manifest": {"fdbridge.a.service": []byte("of a later version")},
		"index":    {kho.IndexSession: []byte("of a later version"), "fdbridge.a.service": nil},
	} {
		w := newWorld(t)
		w.add("a.service", "yes")
		forge(w, sessions)
		w.serve()
		preserver := w.preserver()
		preserver.Required = func(unit string) bool { return unit == "a.service" }
		if _, err := preserver.Run(t.Context()); !errors.Is(err, bridge.ErrRequired) || !errors.Is(err, kho.ErrFormat) && name == "index" {
			t.Errorf("%s: %v, want ErrRequired", name, err)
		}
		preserver.Required, preserver.Partly = func(string) bool { return false }, true
		preserved, err := preserver.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = preserved.Close()
		if !strings.Contains(w.logged(), "will be lost: ") {
			t.Errorf("%s: the log does not say that it will be lost: %s", name, w.logged())
		}
	}
}

// forge makes sessions with given contents as their manifests, and an index
// that lists them as those of a.service, and goes to the next kernel.
func forge(w *world, sessions map[string][]byte) {
	w.t.Helper()
	device, err := session.Open(w.kernel, session.Path)
	if err != nil {
		w.t.Fatal(err)
	}
	index := &kho.Index{Origin: kho.Origin{Time: time.Unix(0, 0)}}
	for name := range sessions {
		index.Units = append(index.Units, kho.IndexUnit{Unit: "a.service", Sessions: []string{name}, Entries: 1})
	}
	if _, listed := sessions[kho.IndexSession]; !listed {
		if sessions[kho.IndexSession], err = index.Encode(); err != nil {
			w.t.Fatal(err)
		}
	}
	var made []*session.Session
	for name, data := range sessions {
		s, err := device.Create(name)
		if err != nil {
			w.t.Fatal(err)
		}
		made = append(made, s)
		raw, err := unix.MemfdCreate("forged", unix.MFD_CLOEXEC)
		if err != nil {
			w.t.Fatal(err)
		}
		f := fd.New(raw)
		if _, err := unix.Write(raw, data); err != nil {
			w.t.Fatal(err)
		}
		if err := errors.Join(s.Preserve(f, kho.ManifestToken), f.Close()); err != nil {
			w.t.Fatal(err)
		}
	}
	err = errors.Join(device.Close(), w.kernel.Kexec())
	for _, s := range made {
		err = errors.Join(err, s.Close())
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func TestABadIndexIsReportedAndKept(t *testing.T) {
	w := newWorld(t)
	forge(w, map[string][]byte{kho.IndexSession: []byte("{}")})
	holder, _, _ := w.serve()
	if p := holder.Problems(); len(p) != 1 || !strings.Contains(p[0], kho.ErrFormat.Error()) {
		t.Errorf("problems: %q", p)
	}
	if n := len(w.units[bridge.OwnUnit].store); n != 1 {
		t.Errorf("%d sessions are kept, want the index", n)
	}
}

func TestASessionThatIsListedButNotThereIsReported(t *testing.T) {
	w := newWorld(t)
	index := kho.Index{Origin: kho.Origin{Time: time.Unix(0, 0)}, Units: []kho.IndexUnit{
		{Unit: "gone.service", Sessions: []string{"fdbridge.gone.service"}, Entries: 1}}}
	data, err := index.Encode()
	if err != nil {
		t.Fatal(err)
	}
	forge(w, map[string][]byte{kho.IndexSession: data})
	holder, _, _ := w.serve()
	if p := holder.Problems(); len(p) != 1 || !strings.Contains(p[0], "gone.service") {
		t.Errorf("problems: %q", p)
	}
}
