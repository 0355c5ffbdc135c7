// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/deliver"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units/notify"
)

// stores are ways in which the files of units can be spread over sessions.
var stores = map[string]func(w *world) (names []string){
	"one unit": func(w *world) []string {
		w.add("a.service", "yes")
		for i, name := range []string{"x", "same", "same", ""} {
			w.put("a.service", name, fmt.Sprint(i))
		}
		w.putMemfd([]string{"a.service"}, "read-only", "R", unix.O_RDONLY, 0)
		return []string{"a.service"}
	},
	"a file that two units have": func(w *world) []string {
		names := []string{"a.service", "b.service"}
		for _, unit := range names {
			w.add(unit, "yes")
			w.put(unit, "first", unit)
		}
		w.putMemfd(names, "shared", "S", unix.O_RDWR, 0)
		for _, unit := range names {
			w.put(unit, "last", unit)
		}
		return names
	},
	"a file that two units have and nobody may execute": func(w *world) []string {
		names := []string{"a.service", "b.service"}
		for _, unit := range names {
			w.add(unit, "yes")
			w.put(unit, "own", unit)
		}
		w.putMemfd(names, "shared", "S", unix.O_RDWR, unix.MFD_NOEXEC_SEAL)
		return names
	},
	"a file that is open twice and nobody may execute": func(w *world) []string {
		w.add("a.service", "yes")
		w.putMemfd([]string{"a.service"}, "shared", "S", unix.O_RDWR, unix.MFD_NOEXEC_SEAL)
		w.lend("a.service", "shared", "a.service", "shared", 0)
		return []string{"a.service"}
	},
	"more files than a session takes": func(w *world) []string {
		w.kernel.MaxFiles = 3
		w.add("a.service", "yes")
		for i := range 8 {
			w.put("a.service", fmt.Sprint("n", i), fmt.Sprint(i))
		}
		return []string{"a.service"}
	},
	"more units than there are sessions": func(w *world) []string {
		w.kernel.MaxSessions = 3
		var names []string
		for i := range 4 {
			unit := fmt.Sprintf("u%d.service", i)
			w.add(unit, "yes")
			w.put(unit, "x", unit)
			w.put(unit, "y", unit)
			names = append(names, unit)
		}
		w.putMemfd(names, "shared", "S", unix.O_RDWR, 0)
		return names
	},
}

// eachOrder runs a test for each of stores, with the units starting in their
// order and in the opposite one.
func eachOrder(t *testing.T, test func(t *testing.T, make func(w *world) []string)) {
	for name, make := range stores {
		for order, arrange := range map[string]func([]string){"in order": func([]string) {}, "in reverse": slices.Reverse[[]string]} {
			t.Run(name+", "+order, func(t *testing.T) {
				test(t, func(w *world) []string {
					names := make(w)
					arrange(names)
					return names
				})
			})
		}
	}
}

// updated is a world after a live update, and what its stores had.
type updated struct {
	*world
	units []string
	want  map[string][]string
	seals map[string]int    // by unit and name
	modes map[string]uint32 // by unit and name
	apart bool              // what is shared need not be one file any more
}

func update(t *testing.T, make func(w *world) []string) *updated {
	t.Helper()
	u := &updated{world: newWorld(t), want: map[string][]string{}, seals: map[string]int{}, modes: map[string]uint32{}}
	u.units = make(u.world)
	for _, unit := range u.units {
		u.want[unit] = u.contents(unit)
		u.each(unit, func(name string, _ uint64, mode uint32, seals int) {
			u.seals[unit+name], u.modes[unit+name] = seals, mode
		})
	}
	u.kexec(u.preserve())
	return u
}

// check finds out whether each of units has all, and once, in one order, and
// nothing is held any more, now and after a crash.
func (u *updated) check(t *testing.T, d *daemon) {
	t.Helper()
	shared := map[uint64]bool{}
	for _, unit := range u.units {
		if diff := cmp.Diff(u.want[unit], u.contents(unit)); diff != "" {
			t.Errorf("the store of %s (-want +got):\n%s", unit, diff)
		}
		u.each(unit, func(name string, inode uint64, mode uint32, seals int) {
			if seals != u.seals[unit+name] || mode != u.modes[unit+name] {
				t.Errorf("%q of %s has seals %#x and mode %#o, want %#x and %#o", name, unit, seals, mode, u.seals[unit+name], u.modes[unit+name])
			}
			if name == "shared" {
				shared[inode] = true
			}
		})
	}
	if len(shared) > 1 && !u.apart {
		t.Errorf("the shared file has become %d", len(shared))
	}
	for range 2 {
		if held := d.holder.Units(); len(held) != 0 {
			t.Errorf("still held: %v", held)
		}
		if p := d.holder.Problems(); len(p) != 0 {
			t.Errorf("problems: %q", p)
		}
		if diff := cmp.Diff([]string{"index"}, u.names(bridge.OwnUnit)); diff != "" {
			t.Errorf("fdbridged's store (-want +got):\n%s", diff)
		}
		d.stop()
		d = u.start(u.t.Context(), d.socket, keeper{m: u.manager, unit: bridge.OwnUnit})
	}
	if t.Failed() {
		t.Fatal(u.logged())
	}
}

func TestDeliveryInAnyOrder(t *testing.T) {
	eachOrder(t, func(t *testing.T, make func(w *world) []string) {
		u := update(t, make)
		d := u.start(u.t.Context(), filepath.Join(t.TempDir(), "socket"), keeper{m: u.manager, unit: bridge.OwnUnit})
		for _, unit := range u.units {
			if n, err := u.deliver(d.socket, unit); n != len(u.want[unit]) || err != nil {
				t.Errorf("deliver to %s: %d, %v", unit, n, err)
			}
		}
		u.check(t, d)
	})
}

// result is that of a Deliverer.
type result struct {
	n   int
	err error
}

func run(t *testing.T, d *deliver.Deliverer) <-chan result {
	done := make(chan result, 1)
	go func() {
		n, err := d.Run(t.Context())
		done <- result{n, err}
	}()
	return done
}

func (r result) check(t *testing.T, unit string, want int) {
	t.Helper()
	if r.n != want || r.err != nil {
		t.Errorf("deliver to %s: %d, %v; want %d", unit, r.n, r.err, want)
	}
}

// refusing is a store that takes in only so many fds, and answers the next with
// an error.
type refusing struct {
	keeper
	left int
}

func (r *refusing) Store(name string, f *fd.FD) error {
	if r.left--; r.left < 0 {
		return unix.EAGAIN
	}
	return r.keeper.Store(name, f)
}

// deaf is a store whose messages PID 1 does not read in time, once.
type deaf struct {
	keeper
	heard bool
}

func (d *deaf) Barrier() error {
	if !d.heard {
		d.heard = true
		return notify.ErrBarrier
	}
	return d.keeper.Barrier()
}

func TestADeliveryThatFailsLeavesNothingBehindAndAllHeld(t *testing.T) {
	const unit = "a.service"
	for name, test := range map[string]struct {
		store func(k keeper) deliver.Store
		says  string
	}{
		"PID 1 does not take in the first":  {func(k keeper) deliver.Store { return &refusing{k, 0} }, `deliver the fd "x": resource temporarily unavailable`},
		"PID 1 does not take in the second": {func(k keeper) deliver.Store { return &refusing{k, 1} }, `deliver the fd "same"`},
		"PID 1 does not read the messages":  {func(k keeper) deliver.Store { return &deaf{keeper: k} }, notify.ErrBarrier.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			u := update(t, stores["one unit"])
			d := u.start(u.t.Context(), filepath.Join(t.TempDir(), "socket"), keeper{m: u.manager, unit: bridge.OwnUnit})
			n, err := u.inject(d.socket, unit, test.store(keeper{m: u.manager, unit: unit})).Run(t.Context())
			if n != 0 || err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("Run: %d, %v; want %q", n, err, test.says)
			}
			if left := u.names(unit); len(left) > 0 {
				t.Errorf("in the unit's store: %q", left)
			}
			if p := d.holder.Problems(); len(p) != 1 || !strings.Contains(p[0], test.says) || !strings.Contains(p[0], "held on") {
				t.Errorf("problems: %q", p)
			}
			if diff := cmp.Diff([]string{"sessions-0", "index"}, shapes(u.names(bridge.OwnUnit))); diff != "" {
				t.Errorf("fdbridged's store (-want +got):\n%s", diff)
			}
			n, err = u.deliver(d.socket, unit)
			result{n, err}.check(t, unit, len(u.want[unit]))
			d.stop()
			u.check(t, u.start(u.t.Context(), d.socket, keeper{m: u.manager, unit: bridge.OwnUnit}))
		})
	}
}

// shapes cuts hashes off names in fdbridged's store.
func shapes(names []string) []string {
	for i, name := range names {
		if len(name) > 2 && name[1] == '-' {
			names[i] = name[:2]
		}
	}
	return names
}

func TestAUnitThatIsStoppedWhileItStartsGetsNothing(t *testing.T) {
	u := update(t, stores["one unit"])
	d := u.start(u.t.Context(), filepath.Join(t.TempDir(), "socket"), keeper{m: u.manager, unit: bridge.OwnUnit})
	const unit = "a.service"
	ctx, stop := context.WithCancel(t.Context())
	steps := 2
	store := stepping{keeper{m: u.manager, unit: unit}, func() bool {
		if steps--; steps == 0 {
			stop()
		}
		return true
	}}
	if n, err := u.inject(d.socket, unit, store).Run(ctx); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %d, %v", n, err)
	}
	if left := u.names(unit); len(left) > 0 {
		t.Errorf("in the unit's store: %q", left)
	}
	n, err := u.deliver(d.socket, unit)
	result{n, err}.check(t, unit, len(u.want[unit]))
}

func TestTwoStartsAtOnceDeliverOnce(t *testing.T) {
	u := update(t, stores["one unit"])
	d := u.start(u.t.Context(), filepath.Join(t.TempDir(), "socket"), keeper{m: u.manager, unit: bridge.OwnUnit})
	const unit = "a.service"
	var second <-chan result
	store := stepping{keeper{m: u.manager, unit: unit}, func() bool {
		if second == nil {
			<-u.starts // the first
			second = run(t, u.inject(d.socket, unit, keeper{m: u.manager, unit: unit}))
			<-u.starts
		}
		return true
	}}
	n, err := u.inject(d.socket, unit, store).Run(t.Context())
	result{n, err}.check(t, unit, len(u.want[unit]))
	(<-second).check(t, unit, 0)
	u.check(t, d)
}

func TestAUnitWaitsUntilFewEnoughDeliveriesAreUnderWay(t *testing.T) {
	w := newWorld(t)
	const unit = "last.service"
	names := []string{unit}
	for i := range 2 * runtime.GOMAXPROCS(0) {
		names = append(names, fmt.Sprintf("x%d.service", i))
	}
	for _, name := range names {
		w.add(name, "yes")
		w.put(name, "x", name)
	}
	w.kexec(w.preserve())
	w.waitInterval = time.Millisecond
	d := w.daemon()
	next := func(conn *wire.Conn) *wire.Grant {
		var grant wire.Grant
		f, err := conn.Receive(&grant)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		return &grant
	}
	ask := func(name string) *wire.Conn {
		w.setPeer(name)
		conn := dial(t, d)
		if err := conn.Send(wire.Request{Op: wire.OpDeliver}, nil); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	granted := func(name string, conn *wire.Conn) {
		grant := next(conn)
		for grant.Wait {
			grant = next(conn)
		}
		if grant.Session == "" {
			t.Fatalf("%s is granted %+v", name, grant)
		}
	}
	var busy *wire.Conn
	for _, name := range names[1:] { // clients that do nothing with what they get
		busy = ask(name)
		granted(name, busy)
	}
	impatient := ask(unit) // and one that does not wait is not in the way
	if grant := next(impatient); !grant.Wait {
		t.Fatalf("%s is granted %+v", unit, grant)
	}
	_ = impatient.Close()
	last := ask(unit)
	for range 3 {
		if grant := next(last); !grant.Wait {
			t.Fatalf("%s is granted %+v", unit, grant)
		}
	}
	_ = busy.Close()
	granted(unit, last)
	_ = last.Close()
	n, err := w.deliver(d.socket, unit)
	result{n, err}.check(t, unit, 1)
	if p := d.holder.Problems(); len(p) > 0 {
		t.Errorf("problems %q; a unit that is stopped while it starts is none", p)
	}
}

func TestAStoppedFdbridgedLetsDeliveriesEnd(t *testing.T) {
	u := update(t, stores["one unit"])
	own := keeper{m: u.manager, unit: bridge.OwnUnit}
	d := u.start(u.t.Context(), filepath.Join(t.TempDir(), "socket"), own)
	const unit = "a.service"
	stopped := make(chan struct{})
	stopping := false
	store := stepping{keeper{m: u.manager, unit: unit}, func() bool {
		if !stopping {
			stopping = true
			go func() { d.stop(); close(stopped) }()
		}
		return true
	}}
	n, err := u.inject(d.socket, unit, store).Run(t.Context())
	result{n, err}.check(t, unit, len(u.want[unit]))
	<-stopped
	u.check(t, u.start(u.t.Context(), d.socket, own))
}

// What the kernel makes of them can get no seals any more.
func TestSealsThatTheKernelForgetsComeBack(t *testing.T) {
	const all = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	eachOrder(t, func(t *testing.T, make func(w *world) []string) {
		u := update(t, func(w *world) []string {
			w.kernel.NoSeals = true
			names := make(w)
			for entry, seals := range map[string]int{"all": all, "some": unix.F_SEAL_GROW, "for good": unix.F_SEAL_SEAL} {
				w.put(names[0], entry, entry)
				w.seal(names[0], entry, seals)
			}
			return names
		})
		d := u.serveOwn()
		u.deliverAll(t, d)
		u.check(t, d)
	})
}

// late is a store that takes in no kept files before it is told to.
type late struct {
	keeper
	now chan struct{}
}

func (l late) Store(name string, f *fd.FD) error {
	if strings.HasPrefix(name, "f-") {
		<-l.now
	}
	return l.keeper.Store(name, f)
}

// It may take minutes to copy a large file.
func TestAUnitIsToldToWaitForAFile(t *testing.T) {
	u := update(t, stores["a file that two units have and nobody may execute"])
	u.waitInterval = time.Millisecond
	own := late{keeper{m: u.manager, unit: bridge.OwnUnit}, make(chan struct{})}
	release := sync.OnceFunc(func() { close(own.now) })
	defer release()
	d := u.start(u.t.Context(), filepath.Join(t.TempDir(), "socket"), own)
	conn := u.granted(t, d)
	if err := conn.Send(conn.shared, nil); err != nil {
		t.Fatal(err)
	}
	var answers []wire.File
	for len(answers) == 0 || answers[len(answers)-1].Wait {
		var file wire.File
		f, err := conn.Receive(&file)
		if err != nil {
			t.Fatal(err)
		}
		if has := f != nil; has == file.Wait {
			t.Errorf("there is a file %v with %+v", has, file)
		}
		_ = f.Close()
		answers = append(answers, file)
		release()
	}
	if last := answers[len(answers)-1]; len(answers) < 2 || last.Error != "" {
		t.Errorf("answers: %+v; want at least one to wait, and then the file", answers)
	}
}

// granted is a connection of the unit in whose session the shared file is, to which its
// fds were granted.
type granted struct {
	*wire.Conn
	unit, invocation string
	shared           wire.Request // for that file
}

func (u *updated) granted(t *testing.T, d *daemon) *granted {
	t.Helper()
	owner := "a.service"
	if len(d.holder.Held(owner)[0].Sessions) == 2 { // the shared file is in the session of the other
		owner = "b.service"
	}
	u.setPeer(owner)
	conn := &granted{Conn: dial(t, d), unit: owner, invocation: u.invoke(owner)}
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := conn.Send(wire.Request{Op: wire.OpDeliver, Invocation: conn.invocation}, nil); err != nil {
		t.Fatal(err)
	}
	var grant wire.Grant
	for again := true; again; again = grant.Wait {
		grant = wire.Grant{}
		f, err := conn.Receive(&grant)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	if len(grant.Shared) != 1 {
		t.Fatalf("granted: %+v", grant)
	}
	conn.shared = wire.Request{Op: wire.OpFile, Session: grant.Session, Token: grant.Shared[0]}
	return conn
}

// What takes longer than a server has that is being stopped, the next one does.
func TestAStoppedFdbridgedLeavesALongCopyToTheNext(t *testing.T) {
	u := update(t, func(w *world) []string {
		names := []string{"a.service", "b.service"}
		for _, unit := range names {
			w.add(unit, "yes")
			w.put(unit, "own", unit)
		}
		w.putMemfd(names, "shared", strings.Repeat("S", 17<<20), unix.O_RDWR, unix.MFD_NOEXEC_SEAL)
		return names
	})
	d := u.serveOwn()
	conn := u.granted(t, d)
	stopped := make(chan struct{})
	go func() { d.stop(); close(stopped) }()
	for again, err := wire.Dial(d.socket); err == nil; again, err = wire.Dial(d.socket) {
		_ = again.Close()
		runtime.Gosched()
	}
	if err := conn.Send(conn.shared, nil); err != nil {
		t.Fatal(err)
	}
	if f, err := conn.Receive(&wire.File{}); !errors.Is(err, io.EOF) {
		t.Errorf("there is an answer with a file %v, %v; want none", f != nil, err)
	}
	<-stopped
	next := u.serveOwn()
	for _, unit := range u.units {
		injected := u.inject(next.socket, unit, keeper{m: u.manager, unit: unit})
		if unit == conn.unit { // it is still the same start
			injected.Invocation = conn.invocation
		}
		n, err := injected.Run(t.Context())
		result{n, err}.check(t, unit, len(u.want[unit]))
	}
	u.check(t, next)
}

func TestWhatCannotBeRestoredIsLostByNameAndTheRestDelivered(t *testing.T) {
	u := update(t, stores["one unit"])
	u.kernel.Fail = func(req uint, _ string, token uint64) error {
		if req == session.ReqRetrieveFD && token == 5 {
			return unix.ENOMEM // for ever
		}
		return nil
	}
	d := u.start(u.t.Context(), filepath.Join(t.TempDir(), "socket"), keeper{m: u.manager, unit: bridge.OwnUnit})
	const unit = "a.service"
	var lost []string
	injected := u.inject(d.socket, unit, keeper{m: u.manager, unit: unit})
	injected.Lost = func(name string, _ error) { lost = append(lost, name) }
	n, err := injected.Run(t.Context())
	result{n, err}.check(t, unit, 4)
	if diff := cmp.Diff([]string{"x"}, lost); diff != "" {
		t.Errorf("lost (-want +got):\n%s", diff)
	}
	if p := d.holder.Problems(); len(p) != 1 || !strings.Contains(p[0], `The fd "x" of session fdbridge.a.service is lost`) {
		t.Errorf("problems: %q", p)
	}
	if diff := cmp.Diff(u.want[unit][:4], u.contents(unit)); diff != "" {
		t.Errorf("the store (-want +got):\n%s", diff)
	}
	if held := d.holder.Units(); len(held) > 0 {
		t.Errorf("still held: %v", held)
	}
}

// full is a store that has no room for what has such a name.
type full struct {
	keeper
	prefix string
}

func (f full) Store(name string, file *fd.FD) error {
	if strings.HasPrefix(name, f.prefix) {
		return unix.EAGAIN
	}
	return f.keeper.Store(name, file)
}

// The session that has the file is not finished then.
func TestWhatCannotBeKeptForAnotherUnitStaysWhereItIs(t *testing.T) {
	for _, name := range []string{"a file that two units have", "more units than there are sessions"} {
		t.Run(name, func(t *testing.T) {
			u := update(t, stores[name])
			own := keeper{m: u.manager, unit: bridge.OwnUnit}
			d := u.start(u.t.Context(), filepath.Join(t.TempDir(), "socket"), full{own, "f-"})
			for i, unit := range u.units {
				if i == len(u.units)-1 {
					if !strings.Contains(u.logged(), "another unit needs") {
						t.Errorf("the log does not say why a session is not finished:\n%s", u.logged())
					}
					d.stop()
					d = u.start(u.t.Context(), d.socket, own)
				}
				n, err := u.deliver(d.socket, unit)
				result{n, err}.check(t, unit, len(u.want[unit]))
			}
			u.check(t, d)
		})
	}
}

// So many, and with such names, that not all fit into what fdbridged is told.
func TestWhatIsLostIsCountedWhenItIsTooMuchToBeNamed(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	const files = 40
	for i := range files {
		w.put("a.service", fmt.Sprintf("%d%s", i, strings.Repeat("<", 250)), "x")
	}
	w.kexec(w.preserve())
	var retrieved int
	w.kernel.Fail = func(request uint, _ string, token uint64) error {
		if request == session.ReqRetrieveFD && token != kho.ManifestToken {
			if retrieved++; retrieved > 1 {
				return unix.EIO
			}
		}
		return nil
	}
	d := w.daemon()
	n, err := w.deliver(d.socket, "a.service")
	result{n, err}.check(t, "a.service", 1)
	const more = files - 1 - wire.MaxFailed
	if says := fmt.Sprintf("a.service: %d more fds of session fdbridge.a.service are lost", more); !strings.Contains(w.logged(), says) {
		t.Errorf("the log does not say %q:\n%s", says, w.logged())
	}
	if held := d.holder.Held("a.service"); len(held) > 0 || len(d.holder.Problems()) != wire.MaxFailed+1 {
		t.Errorf("held: %v; there are %d problems", held, len(d.holder.Problems()))
	}
}
