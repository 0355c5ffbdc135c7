// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/deliver"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/session"
)

// stores are ways in which the files of units can be spread over sessions.
var stores = map[string]func(w *world) (names []string){
	"one unit": func(w *world) []string {
		w.add("a.service", "yes")
		for i, name := range []string{"x", "same", "same", ""} {
			w.put("a.service", name, fmt.Sprint(i))
		}
		return []string{"a.service"}
	},
	"a file that two units have": func(w *world) []string {
		names := []string{"a.service", "b.service"}
		for _, unit := range names {
			w.add(unit, "yes")
			w.put(unit, "first", unit)
		}
		w.putInAll(names, "shared", "S")
		for _, unit := range names {
			w.put(unit, "last", unit)
		}
		return names
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
		w.putInAll(names, "shared", "S")
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
}

func update(t *testing.T, make func(w *world) []string) *updated {
	t.Helper()
	u := &updated{world: newWorld(t), want: map[string][]string{}}
	u.units = make(u.world)
	for _, unit := range u.units {
		u.want[unit] = u.contents(unit)
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
		if inode, ok := u.inodes(t, unit)["shared"]; ok {
			shared[inode] = true
		}
	}
	if len(shared) > 1 {
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

// Whatever fdbridged does last, the deliveries come to their end with the next.
func TestFdbridgedIsKilledAtEachStep(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, u *updated){
		"after an update":                    func(*testing.T, *updated) {},
		"after one more that was called off": rollBack,
	} {
		t.Run(name, func(t *testing.T) {
			eachOrder(t, func(t *testing.T, make func(w *world) []string) {
				for steps, reached := 0, true; reached; steps++ {
					t.Run(fmt.Sprint("after ", steps), func(t *testing.T) {
						u := update(t, make)
						prepare(t, u)
						reached = u.killFdbridged(t, steps)
					})
				}
			})
		})
	}
}

func (u *updated) killFdbridged(t *testing.T, steps int) (reached bool) {
	f := newFate(steps)
	u.kernel.Fail = f.finish
	own := keeper{m: u.manager, unit: bridge.OwnUnit}
	d := u.start(u.t.Context(), filepath.Join(t.TempDir(), "socket"), stepping{own, f.step})
	f.mu.Lock() // the restoring is over
	f.die = d.hangUp
	f.mu.Unlock()
	next := func() {
		d.stop()
		u.kernel.Fail = nil
		d = u.start(u.t.Context(), d.socket, own)
	}
	over := func() bool {
		select {
		case <-f.died:
			return true
		default:
			return false
		}
	}
	if over() { // while it restored
		next()
		reached = true
	}
	for _, unit := range u.units {
		injected := u.inject(d.socket, unit, keeper{m: u.manager, unit: unit})
		result := run(t, injected)
		if !reached {
			select {
			case r := <-result:
				r.check(t, unit, len(u.want[unit]))
				if over() {
					next()
					reached = true
				}
				continue
			case <-f.died:
				next()
				reached = true
			}
		}
		r := <-result
		r.check(t, unit, len(u.want[unit]))
	}
	u.check(t, d)
	return reached
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

// dying is the way to the store of an fdbridge-inject that is killed before one
// of its steps.
func dying(store keeper, steps int) stepping {
	return stepping{store, func() bool {
		if steps--; steps < 0 {
			runtime.Goexit() // only descriptors are closed on the way
		}
		return true
	}}
}

// kill starts a unit's fdbridge-inject and kills it before one of its steps; it
// tells whether it came to that.
func (u *updated) kill(d *daemon, unit string, steps int) (reached bool) {
	injected := u.inject(d.socket, unit, dying(keeper{m: u.manager, unit: unit}, steps))
	reached = true
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = injected.Run(u.t.Context())
		reached = false
	}()
	<-done
	return reached
}

func TestInjectIsKilledAtEachStep(t *testing.T) {
	make := stores["a file that two units have"]
	for _, restart := range []bool{false, true} {
		for steps, reached := 0, true; reached; steps++ {
			t.Run(fmt.Sprintf("after %d, fdbridged restarted %v", steps, restart), func(t *testing.T) {
				u := update(t, make)
				own := keeper{m: u.manager, unit: bridge.OwnUnit}
				d := u.start(u.t.Context(), filepath.Join(t.TempDir(), "socket"), own)
				const unit = "a.service"
				reached = u.kill(d, unit, steps)
				if restart {
					d.stop()
					d = u.start(u.t.Context(), d.socket, own)
				}
				before := u.contents(unit)
				n, err := u.deliver(d.socket, unit) // the unit's next start
				switch {
				case !reached || len(before) == 0:
					result{n, err}.check(t, unit, 3*b2i(reached))
				case n != 0 || err == nil || !strings.Contains(err.Error(), "systemctl clean --what=fdstore a.service"):
					t.Errorf("the delivery after one that was interrupted: %d, %v", n, err)
				default: // nothing has changed, and an operator does what is said
					if diff := cmp.Diff(before, u.contents(unit)); diff != "" {
						t.Errorf("the store (-before +after):\n%s", diff)
					}
					u.empty(unit)
					n, err := u.deliver(d.socket, unit)
					result{n, err}.check(t, unit, 3)
					d.stop() // which forgets the problem that there was
					d = u.start(u.t.Context(), d.socket, own)
				}
				n, err = u.deliver(d.socket, "b.service")
				result{n, err}.check(t, "b.service", 3)
				u.check(t, d)
			})
		}
	}
}

// A unit's start has not come to its main process: another fdbridge-inject of
// the same start finds what the first has left.
func TestWhatAnInterruptedDeliveryHasLeftIsReplaced(t *testing.T) {
	for steps, reached := 0, true; reached; steps++ {
		t.Run(fmt.Sprint("after ", steps), func(t *testing.T) {
			u := update(t, stores["one unit"])
			own := keeper{m: u.manager, unit: bridge.OwnUnit}
			d := u.start(u.t.Context(), filepath.Join(t.TempDir(), "socket"), own)
			const unit = "a.service"
			reached = u.kill(d, unit, steps)
			again := u.inject(d.socket, unit, keeper{m: u.manager, unit: unit})
			again.Invocation = fmt.Sprintf("%032x", u.invocations.Load()-1)
			n, err := again.Run(t.Context())
			result{n, err}.check(t, unit, 4*b2i(reached))
			u.check(t, d)
		})
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

func TestADeliveryThatFailsLeavesNothingBehindAndAllHeld(t *testing.T) {
	const unit = "a.service"
	for name, test := range map[string]struct {
		store func(k keeper) deliver.Store
		says  string
	}{
		"PID 1 does not take in the first":  {func(k keeper) deliver.Store { return &refusing{k, 0} }, `deliver the fd "x": resource temporarily unavailable`},
		"PID 1 does not take in the second": {func(k keeper) deliver.Store { return &refusing{k, 1} }, `deliver the fd "same"`},
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
			if diff := cmp.Diff([]string{"s-", "index"}, shapes(u.names(bridge.OwnUnit))); diff != "" {
				t.Errorf("fdbridged's store (-want +got):\n%s", diff)
			}
			n, err = u.deliver(d.socket, unit)
			result{n, err}.check(t, unit, 4)
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
	result{n, err}.check(t, unit, 4)
}

func TestTwoStartsAtOnceDeliverOnce(t *testing.T) {
	u := update(t, stores["one unit"])
	d := u.start(u.t.Context(), filepath.Join(t.TempDir(), "socket"), keeper{m: u.manager, unit: bridge.OwnUnit})
	const unit = "a.service"
	var second <-chan result
	store := stepping{keeper{m: u.manager, unit: unit}, func() bool {
		if second == nil {
			second = run(t, u.inject(d.socket, unit, keeper{m: u.manager, unit: unit}))
		}
		return true
	}}
	n, err := u.inject(d.socket, unit, store).Run(t.Context())
	result{n, err}.check(t, unit, 4)
	(<-second).check(t, unit, 0)
	u.check(t, d)
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
	result{n, err}.check(t, unit, 4)
	<-stopped
	u.check(t, u.start(u.t.Context(), d.socket, own))
}

func TestWhatCannotBeRestoredIsLostByNameAndTheRestDelivered(t *testing.T) {
	u := update(t, stores["one unit"])
	u.kernel.Fail = func(req uint, _ string, token uint64) error {
		if req == session.ReqRetrieveFD && token == 4 {
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
	result{n, err}.check(t, unit, 3)
	if diff := cmp.Diff([]string{"x"}, lost); diff != "" {
		t.Errorf("lost (-want +got):\n%s", diff)
	}
	if p := d.holder.Problems(); len(p) != 1 || !strings.Contains(p[0], `The fd "x" of session fdbridge.a.service is lost`) {
		t.Errorf("problems: %q", p)
	}
	if diff := cmp.Diff(u.want[unit][:3], u.contents(unit)); diff != "" {
		t.Errorf("the store (-want +got):\n%s", diff)
	}
	if held := d.holder.Units(); len(held) > 0 {
		t.Errorf("still held: %v", held)
	}
}
