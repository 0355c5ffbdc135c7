// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/config"
	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/units"
	"github.com/fdbridge/fdbridge/units/generator"
	"github.com/fdbridge/fdbridge/units/unitfile"
)

// going is an Update of a world with what can be prepared, and what it does.
type going struct {
	*world
	*bridge.Update
	rules    config.Rules // what Reload returns
	waits    []wait       // what happens to one Wait after the other
	within   []time.Duration
	granted  []time.Duration // by the service manager
	status   []string
	unheard  [2]error // what the service manager answers with when it is to wait, and is told a status
	reloads  int
	looks    int
	closes   int
	prepared func() // called when preparing begins
}

// wait is what happens to a Wait.
type wait func(ctx context.Context, meanwhile func(context.Context)) error

// noShutdown is that none has begun; allStopped that all services have stopped, which calledOff
// never comes to.
func noShutdown(context.Context, func(context.Context)) error { return units.ErrNoShutdown }
func calledOff(context.Context, func(context.Context)) error  { return units.ErrCalledOff }
func allStopped(ctx context.Context, meanwhile func(context.Context)) error {
	meanwhile(ctx)
	return nil
}

func (g *going) Look(context.Context) error { g.looks++; return errors.New("it is busy") }

func (g *going) Close() {
	if g.closes++; g.prepared != nil {
		g.prepared()
	}
}

func (g *going) ExtendTimeout(wait time.Duration) error {
	g.granted = append(g.granted, wait)
	return g.unheard[0]
}

func (g *going) Status(status string) error {
	g.status = append(g.status, status)
	return g.unheard[1]
}

// goThrough returns an Update to which that happens.
func goThrough(t *testing.T, waits ...wait) *going {
	w := preparable(t)
	g := &going{world: w, waits: waits, rules: config.Rules{
		Config: &config.Config{PrepareTimeout: time.Hour, PreserveTimeout: time.Minute},
		Register: generator.Register{
			"early.service": {Early: generator.EarlyYes}, "never.service": {Early: generator.EarlyNo}, "excluded.service": {Left: true},
		},
	}}
	g.Update = &bridge.Update{
		Preserver: w.preserver(), Ahead: g, Manager: g, Log: journal.To(w),
		DropIn: filepath.Join(t.TempDir(), "x.d", "prepared.conf"),
		Reload: func() *config.Rules {
			g.reloads++
			rules := g.rules
			return &rules
		},
		Wait: func(ctx context.Context, within time.Duration, meanwhile func(context.Context)) error {
			g.within = append(g.within, within)
			if len(g.waits) == 0 {
				t.Fatal("it waits more often than it should")
			}
			wait := g.waits[0]
			g.waits = g.waits[1:]
			return wait(ctx, meanwhile)
		},
		Stop: func(context.Context) error { t.Error("it is stopped"); return nil },
		Exit: func() { t.Error("it exits") },
	}
	g.Preserver.Excluded, g.Preserver.Required, g.Preserver.Early = nil, nil, nil
	return g
}

// run runs the Update. What is preserved is closed at the end of the test.
func (g *going) run(ctx context.Context) (*bridge.Preserved, error) {
	g.t.Helper()
	preserved, err := g.Run(ctx)
	if preserved != nil {
		g.t.Cleanup(func() { _ = preserved.Close() })
	}
	if len(g.waits) > 0 {
		g.t.Errorf("it has not waited for %d more", len(g.waits))
	}
	if _, err := os.Stat(g.DropIn); err == nil {
		g.t.Error("the drop-in of what is prepared is left")
	}
	if g.closes == 0 {
		g.t.Error("what was seen of stores is kept")
	}
	return preserved, err
}

// carries checks that all there is is preserved, and how long the service manager was asked
// to wait meanwhile.
func (g *going) carries(preserved *bridge.Preserved, err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
	if got := preserved.Summary(); got != "Preserved 10 fds of 4 units." {
		g.t.Error(got)
	}
	if diff := cmp.Diff([]time.Duration{90 * time.Second}, g.granted[len(g.granted)-1:]); diff != "" {
		g.t.Errorf("the service manager waits for preserving (-want +got):\n%s", diff)
	}
}

// waited checks how long it was to wait each time for a shutdown to begin.
func (g *going) waited(want ...time.Duration) {
	g.t.Helper()
	if diff := cmp.Diff(want, g.within); diff != "" {
		g.t.Errorf("waited for a shutdown to begin (-want +got):\n%s", diff)
	}
}

// isPrepared checks whether what can be prepared is preserved in a session.
func (g *going) isPrepared(want bool) {
	g.t.Helper()
	if free := g.free(g.file("a.service", "sealed")); free == want {
		g.t.Errorf("what is sealed is preserved: %v", !free)
	}
}

func (g *going) says(want string) {
	g.t.Helper()
	if said := g.logged(); !strings.Contains(said, want) {
		g.t.Errorf("the log does not say %q: %s", want, said)
	}
}

func TestAnUpdateThatIsUnderWay(t *testing.T) {
	g := goThrough(t, allStopped)
	g.Preserver.Record = func(*kho.Index) error {
		if g.closes > 0 {
			t.Error("what was seen of stores is not used")
		}
		return nil
	}
	g.carries(g.run(t.Context()))
	g.waited(0)
	if g.looks != 1 || g.reloads != 1 || len(g.status) > 0 {
		t.Errorf("looked %d times at stores and %d times at rules, says %q", g.looks, g.reloads, g.status)
	}
}

func TestAnUpdateThatIsPrepared(t *testing.T) {
	var g *going
	g = goThrough(t, noShutdown, func(ctx context.Context, meanwhile func(context.Context)) error {
		g.isPrepared(true)
		if text, err := os.ReadFile(g.DropIn); !strings.Contains(string(text), "\nTimeoutStartSec=infinity\n") {
			t.Errorf("the drop-in of what is prepared is %q: %v", text, err)
		}
		for range 2 {
			meanwhile(ctx)
		}
		return nil
	})
	g.carries(g.run(t.Context()))
	g.waited(0, time.Hour)
	if g.looks != 2 || g.reloads != 2 {
		t.Errorf("looked %d times at stores and %d times at rules", g.looks, g.reloads)
	}
	if g.closes != 2 {
		t.Errorf("stores were closed %d times: what was seen of them before they are prepared may change", g.closes)
	}
	if g.granted[0] != time.Hour+bridge.AliveTimeout || len(g.status) != 1 || !strings.HasPrefix(g.status[0], "Prepared ") {
		t.Errorf("when it is prepared it says %q, and the service manager is to wait for %v", g.status, g.granted[0])
	}
}

func TestWhatIsPreparedWithoutAnEnd(t *testing.T) {
	g := goThrough(t, noShutdown, allStopped)
	g.rules.PrepareTimeout = unitfile.Infinity
	g.DropIn = filepath.Join("/proc/self/none", "prepared.conf")
	g.carries(g.run(t.Context()))
	g.waited(0, unitfile.Infinity)
	if g.granted[0] != unitfile.Infinity {
		t.Errorf("the service manager is to wait for %v", g.granted[0])
	}
	g.says("systemctl daemon-reload will undo what is prepared: mkdir /proc/self/none: ")
}

// The rules of the moment count, however short the shutdown is.
func TestRulesThatChangeWhileSomethingIsPrepared(t *testing.T) {
	for _, why := range []error{nil, unix.EIO} {
		var g *going
		g = goThrough(t, noShutdown, func(context.Context, func(context.Context)) error {
			g.rules.Register = generator.Register{bridge.OwnUnit: {Masked: true}}
			return nil
		})
		g.kernel.OpenErr = why
		preserved, err := g.run(t.Context())
		if err != nil || preserved.Index != nil {
			t.Errorf("Run while fdbridged is masked: %+v, %v", preserved, err)
		}
		g.kernel.OpenErr = nil
		g.isPrepared(false)
	}
}

func TestWhatIsPreparedInVainIsUndone(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("it is stopped")
	g := goThrough(t, noShutdown, noShutdown, func(ctx context.Context, _ func(context.Context)) error { return context.Cause(ctx) })
	g.Stop = func(context.Context) error {
		g.isPrepared(false)
		cancel(stopped)
		return nil
	}
	if _, err := g.run(ctx); !errors.Is(err, stopped) {
		t.Errorf("Run: %v", err)
	}
	g.says("Nothing was made of what was prepared within PrepareTimeoutSec=1h0m0s: it is undone.")
	g.waited(0, time.Hour, bridge.PreserveEndTimeout)
}

// The service manager refuses to stop a unit that the shutdown has begun to stop.
func TestAShutdownThatBeginsWhenWhatIsPreparedIsUndone(t *testing.T) {
	var g *going
	g = goThrough(t, noShutdown, noShutdown, func(ctx context.Context, meanwhile func(context.Context)) error {
		meanwhile(ctx)
		if g.reloads != 2 {
			t.Errorf("the rules were read %d times while services stopped, want 2", g.reloads)
		}
		return nil
	})
	g.Stop = func(context.Context) error { return errors.New("it is refused") }
	g.carries(g.run(t.Context()))
}

func TestAnUpdateThatNobodyEnds(t *testing.T) {
	refused := errors.New("it is refused")
	g := goThrough(t, noShutdown, noShutdown, noShutdown)
	g.Stop = func(context.Context) error { return refused }
	if _, err := g.run(t.Context()); !errors.Is(err, bridge.ErrUnprepared) || !errors.Is(err, refused) {
		t.Errorf("Run: %v, want that nothing is prepared, and why it goes on", err)
	}
	g.isPrepared(false)
}

func TestAnUpdateThatCannotBePrepared(t *testing.T) {
	g := goThrough(t, noShutdown, noShutdown)
	g.kernel.OpenErr = unix.EIO
	if _, err := g.run(t.Context()); !errors.Is(err, bridge.ErrUnprepared) || !errors.Is(err, unix.EIO) {
		t.Errorf("Run: %v, want that nothing is prepared, and why", err)
	}
	g.waited(0, 0)

	// Nor when the service manager does not know of it.
	for i, begun := range []wait{noShutdown, noShutdown, calledOff} {
		g = goThrough(t, noShutdown, begun)
		g.unheard[i%2] = unix.EAGAIN
		_, err := g.run(t.Context())
		if none := errors.Is(err, bridge.ErrUnprepared) && errors.Is(err, unix.EAGAIN); none == errors.Is(err, units.ErrCalledOff) {
			t.Errorf("Run: %v, want that nothing is prepared, and why, or that the shutdown is called off", err)
		}
		g.isPrepared(false)
	}

	// It does not wait for a shutdown when it is stopped meanwhile.
	ctx, stop := context.WithCancel(t.Context())
	g = goThrough(t, noShutdown)
	g.prepared = stop
	if _, err := g.run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v, want that it is stopped", err)
	}
	g.isPrepared(false)
}

// A shutdown that has begun while something could not be prepared goes on.
func TestAShutdownThatBeginsWhenNothingIsPrepared(t *testing.T) {
	var g *going
	g = goThrough(t, noShutdown, func(ctx context.Context, meanwhile func(context.Context)) error {
		g.kernel.OpenErr = nil
		meanwhile(ctx)
		if g.reloads != 2 {
			t.Errorf("the rules were read %d times while services stopped, want 2", g.reloads)
		}
		return nil
	})
	g.kernel.OpenErr = unix.EIO
	g.carries(g.run(t.Context()))
	g.waited(0, 0)
	g.says(bridge.ErrUnprepared.Error())
	if g.looks != 1 {
		t.Errorf("looked %d times at stores", g.looks)
	}
}

func TestAShutdownThatIsCalledOff(t *testing.T) {
	g := goThrough(t, noShutdown, calledOff)
	if _, err := g.run(t.Context()); !errors.Is(err, units.ErrCalledOff) {
		t.Errorf("Run: %v", err)
	}
	g.isPrepared(false)
}

// unsaying is a PID 1 that does not say whether it carries stores itself until the caller
// gives up.
type unsaying struct {
	*manager
	waits func()
}

func (r *unsaying) Carries(ctx context.Context) (bool, error) {
	if r.waits != nil {
		r.waits()
		r.waits = nil
		<-ctx.Done()
		return false, context.Cause(ctx)
	}
	return false, nil
}

func (r *unsaying) EachStore(ctx context.Context, each func(s *units.Store)) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return r.manager.EachStore(ctx, each)
}

// What fails calls the live update off where something is required, and else is told unit
// for unit, as what is lost then is not in any index.
func TestAnUpdateThatTakesTooLong(t *testing.T) {
	for _, required := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			g := goThrough(t, allStopped)
			g.Preserver.Stores = &unsaying{g.manager, func() {}}
			g.rules.Rollback = required
			preserved, err := g.run(t.Context())
			const why = "it has taken longer than PreserveTimeoutSec=1m0s"
			if required {
				if err == nil || !strings.Contains(err.Error(), why) {
					t.Errorf("Run: %v, want %q", err, why)
				}
				return
			}
			if err != nil || preserved.Index != nil {
				t.Errorf("Run: %+v, %v", preserved, err)
			}
			g.says("No fd store will be carried into the next kernel: ")
			g.says(why)
			g.says(`a.service: Not carried are the fds "pipe" (pipe), `)
			if g.closes != 2 {
				t.Errorf("stores were closed %d times: what was seen of them may be why", g.closes)
			}
			time.Sleep(time.Hour) // if it is to exit nevertheless
		})
	}
}

// One that is stopped has nothing to say.
func TestAnUpdateThatIsStoppedWhileItPreserves(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	g := goThrough(t, allStopped)
	g.Preserver.Stores = &unsaying{g.manager, stop}
	if _, err := g.run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
	if said := g.logged(); said != "" {
		t.Errorf("the log says %s", said)
	}
}

func TestPreservingHasAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := goThrough(t, allStopped)
		exited := make(chan struct{})
		start := time.Now()
		g.Exit = func() {
			if got := time.Since(start); got != 90*time.Second {
				t.Errorf("it exits after %v, want 90 s", got)
			}
			close(exited)
		}
		g.Preserver.Record = func(*kho.Index) error { <-exited; return nil }
		_, _ = g.run(t.Context())
		<-exited // or synctest says that all wait for each other
		g.says("The live update is called off: preserving has not come to an end within 1m30s.")
	})
}

// emptying is a PID 1 that takes its time to empty stores.
type emptying struct{ *manager }

func (e emptying) Empty(ctx context.Context, units []string) error {
	time.Sleep(time.Hour)
	return e.manager.Empty(ctx, units)
}

// What is preserved is not given up any more, however long the rest takes.
func TestEmptyingStoresHasTimeOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := goThrough(t, allStopped)
		g.manager.carries = true
		g.Preserver.Stores = emptying{g.manager}
		if _, err := g.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if want := []time.Duration{90 * time.Second, bridge.EmptyTimeout + 2*bridge.PreserveMessageTimeout}; !cmp.Equal(want, g.granted) {
			t.Errorf("the service manager was asked to wait for %v, want %v", g.granted, want)
		}
	})
}
