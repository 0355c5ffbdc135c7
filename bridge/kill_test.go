// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"fmt"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
)

// Whatever fdbridged does last, the deliveries come to their end with the next.
func TestFdbridgedIsKilledAtEachStep(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, u *updated){
		"after an update": func(*testing.T, *updated) {},
		"after one more that was called off": func(t *testing.T, u *updated) {
			rollBack(t, u)
			u.apart = u.seals["a.serviceshared"]&unix.F_SEAL_EXEC != 0 // see Holder.hold
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachOrder(t, func(t *testing.T, make func(w *world) []string) {
				for steps, reached := 0, true; reached && !t.Failed(); steps++ {
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

// What fdbridged has sent to PID 1 and not waited for is lost with it, at worst.
func TestFdbridgedIsKilledBeforePID1HasReadAll(t *testing.T) {
	eachOrder(t, func(t *testing.T, make func(w *world) []string) {
		u := update(t, make)
		own := &queue{keeper: keeper{m: u.manager, unit: bridge.OwnUnit}}
		socket := filepath.Join(t.TempDir(), "socket")
		u.kernel.Fail = func(request uint, name string, _ uint64) error {
			if request == session.ReqFinish && own.keeps() {
				t.Errorf("%s is finished before PID 1 has what is kept of it", name)
			}
			return nil
		}
		for _, unit := range u.units {
			d := u.start(u.t.Context(), socket, own)
			n, err := u.deliver(socket, unit)
			result{n, err}.check(t, unit, len(u.want[unit]))
			d.stop()
			own.drop()
		}
		u.check(t, u.start(u.t.Context(), socket, own.keeper))
	})
}

// What is done is not held again where its session cannot be finished.
func TestFdbridgedIsKilledBeforePID1HasReadThatSomethingIsDone(t *testing.T) {
	u := update(t, stores["one unit"])
	u.failing(session.ReqFinish, "", unix.EBUSY)
	const unit = "a.service"
	own := &queue{keeper: keeper{m: u.manager, unit: bridge.OwnUnit}}
	socket := filepath.Join(t.TempDir(), "socket")
	d := u.start(u.t.Context(), socket, own)
	u.deliverAll(t, d)
	d.stop()
	own.drop()
	u.empty(unit)
	u.start(u.t.Context(), socket, own.keeper)
	n, err := u.deliver(socket, unit)
	result{n, err}.check(t, unit, 0)
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
		for steps, reached := 0, true; reached && !t.Failed(); steps++ {
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
				said := regexp.MustCompile(`a\.service: The delivery of session fdbridge\.a\.service was broken off.*systemctl clean --what=fdstore a\.service`)
				if reached && !restart && !said.MatchString(u.logged()) {
					t.Errorf("the log does not say what to do:\n%s", u.logged())
				}
				if !reached {
					result{n, err}.check(t, unit, 0)
				} else {
					refused := func(n int, err error) {
						t.Helper()
						if n != 0 || err == nil || !strings.Contains(err.Error(), "fdbridgectl deliver a.service --as a.service") {
							t.Errorf("the delivery after one that was interrupted: %d, %v", n, err)
						}
					}
					refused(n, err)
					if diff := cmp.Diff(before, u.contents(unit)); diff != "" {
						t.Errorf("the store (-before +after):\n%s", diff)
					}
					u.empty(unit) // the unit's work is done, and that is not to be done twice
					refused(u.deliver(d.socket, unit))
					d.stop()
					d = u.start(u.t.Context(), d.socket, own)
					refused(u.deliver(d.socket, unit))
					if _, err := wire.DeliverAs(d.socket, unit, unit); err != nil { // an operator does what is said
						t.Error(err)
					}
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

// Nothing of what is held has come to the unit then.
func TestInjectIsKilledBeforeItStoresAnything(t *testing.T) {
	u := update(t, stores["one unit"])
	d := u.serveOwn()
	const unit = "a.service"
	injected := u.inject(d.socket, unit, keeper{m: u.manager, unit: unit})
	injected.Kernel = killing{u.kernel}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := injected.Run(t.Context())
		t.Errorf("it has ended, and was not killed: %v", err)
	}()
	<-done
	u.deliverAll(t, d)
	if said := u.logged(); !strings.Contains(said, "was broken off before anything of it was in the unit's store") {
		t.Errorf("the log does not say so: %s", said)
	}
	u.check(t, d)
}

// A unit that is stopped while it waits for PID 1 was granted nothing.
func TestInjectIsKilledBeforeItIsGrantedAnything(t *testing.T) {
	u := update(t, stores["one unit"])
	d := u.serveOwn()
	u.setPeer("a.service")
	u.fail(units.ErrManager)
	conn := dial(t, d)
	if err := conn.Send(wire.Request{Op: wire.OpDeliver, Invocation: "0123456789abcdef0123456789abcdef"}, nil); err != nil {
		t.Fatal(err)
	}
	for asked := 0; asked == 0; runtime.Gosched() {
		u.manager.mu.Lock()
		asked = u.identities
		u.manager.mu.Unlock()
	}
	_ = conn.Close()
	u.fail(nil)
	u.deliverAll(t, d)
	u.check(t, d)
}

// killing is a kernel that kills who retrieves a file.
type killing struct{ session.Kernel }

func (k killing) Ioctl(f *fd.FD, req uint, arg []byte) error {
	if req == session.ReqRetrieveFD {
		runtime.Goexit() // only descriptors are closed on the way
	}
	return k.Kernel.Ioctl(f, req, arg)
}

// A unit's start has not come to its main process: another fdbridge-inject of
// the same start finds what the first has left.
func TestWhatAnInterruptedDeliveryHasLeftIsReplaced(t *testing.T) {
	for steps, reached := 0, true; reached && !t.Failed(); steps++ {
		t.Run(fmt.Sprint("after ", steps), func(t *testing.T) {
			u := update(t, stores["one unit"])
			own := keeper{m: u.manager, unit: bridge.OwnUnit}
			d := u.start(u.t.Context(), filepath.Join(t.TempDir(), "socket"), own)
			const unit = "a.service"
			reached = u.kill(d, unit, steps)
			again := u.inject(d.socket, unit, keeper{m: u.manager, unit: unit})
			again.Invocation = fmt.Sprintf("%032x", u.invocations.Load()-1)
			n, err := again.Run(t.Context())
			result{n, err}.check(t, unit, len(u.want[unit])*b2i(reached))
			u.check(t, d)
		})
	}
}

// hasty is the way to the store of an fdbridged that is killed before it has put
// a session there that it has just retrieved.
type hasty struct {
	keeper
	lose string
	dead bool
}

func (h *hasty) Store(name string, f *fd.FD) error {
	if h.dead = h.dead || strings.HasPrefix(name, h.lose); h.dead {
		return nil
	}
	return h.keeper.Store(name, f)
}

func (h *hasty) Remove(name string) error {
	if h.dead {
		return nil
	}
	return h.keeper.Remove(name)
}

// Nothing can be done about that, but it must be said, by each fdbridged that
// comes to it.
func TestASessionThatIsLostWhenFdbridgedIsKilledIsNamed(t *testing.T) {
	for name, test := range map[string]struct{ lose, names string }{
		"the index": {"index", "handed over"},
		"a unit's":  {"sessions-", "a.service"},
	} {
		t.Run(name, func(t *testing.T) {
			u := update(t, stores["one unit"])
			own := keeper{m: u.manager, unit: bridge.OwnUnit}
			d := u.start(t.Context(), filepath.Join(t.TempDir(), "socket"), &hasty{keeper: own, lose: test.lose})
			d.stop()
			d = u.start(t.Context(), d.socket, own)
			if p := d.holder.Problems(); len(p) != 1 || !strings.Contains(p[0], test.names) || !strings.Contains(p[0], "was killed") {
				t.Errorf("problems: %q", p)
			}
			if n, err := u.deliver(d.socket, "a.service"); n != 0 || err == nil || !strings.Contains(err.Error(), "was killed") {
				t.Errorf("deliver: %d, %v", n, err)
			}
		})
	}
}
