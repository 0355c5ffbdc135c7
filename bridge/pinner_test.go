// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/units"
)

// pins is what stands in for PID 1 under a Pinner.
type pins struct {
	mu        sync.Mutex
	optedIn   []string // the loaded units that have opted in
	covered   map[string]bool
	uncovered error // why it is not known what is covered
	pinned    []string
	asked     [][]string
	errs      []error // what the next questions are answered with
	log       bytes.Buffer
}

func (p *pins) OptedIn(_ context.Context, names []string) ([]units.Store, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, names)
	var err error
	if len(p.errs) > 0 {
		err, p.errs = p.errs[0], p.errs[1:]
	}
	var list []units.Store
	for _, unit := range p.optedIn {
		if names == nil || slices.Contains(names, unit) {
			list = append(list, units.Store{Unit: unit})
		}
	}
	if err != nil {
		list = nil
	}
	return list, err
}

func (p *pins) pin(_ context.Context, names []string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pinned = append(p.pinned, names...)
	return nil
}

// run starts a Pinner in a bubble of time, lets it come to rest after each
// step, and ends it.
func (p *pins) run(t *testing.T, steps ...func(*bridge.Pinner)) {
	synctest.Test(t, func(t *testing.T) {
		pinner := bridge.NewPinner()
		pinner.OptedIn, pinner.Pin = p.OptedIn, p.pin
		pinner.Covered = func() (map[string]bool, error) { return p.covered, p.uncovered }
		pinner.Excluded = func(unit string) bool { return unit == "excluded.service" }
		pinner.Log = journal.To(&p.log)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			pinner.Run(ctx)
		}()
		synctest.Wait()
		for _, step := range steps {
			step(pinner)
			synctest.Wait()
		}
		cancel()
		<-done
	})
}

func TestPinnerPinsWhatTheGeneratorDidNotCover(t *testing.T) {
	p := &pins{
		optedIn: []string{"a@1.service", "covered.service", "excluded.service", bridge.OwnUnit, "transient.service"},
		covered: map[string]bool{"covered.service": true},
	}
	p.run(t)
	if diff := cmp.Diff([]string{"a@1.service", "transient.service"}, p.pinned); diff != "" {
		t.Errorf("pinned (-want +got):\n%s", diff)
	}
}

// Without the generator's drop-ins nothing else keeps the units.
func TestPinnerPinsAllWhenItIsNotKnownWhatIsCovered(t *testing.T) {
	p := &pins{optedIn: []string{"a.service", "b.service"}, uncovered: errors.New("the generator did not run")}
	p.run(t)
	if diff := cmp.Diff([]string{"a.service", "b.service"}, p.pinned); diff != "" {
		t.Errorf("pinned (-want +got):\n%s", diff)
	}
}

func TestPinnerPinsAStartedUnitOnceAndAsksForItAlone(t *testing.T) {
	p := &pins{}
	p.run(t, func(pinner *bridge.Pinner) {
		p.optedIn = []string{"new.service", "other.service"}
		pinner.Notice("new.service")
	}, func(pinner *bridge.Pinner) { pinner.Notice("new.service") })
	if diff := cmp.Diff([]string{"new.service"}, p.pinned); diff != "" {
		t.Errorf("pinned (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([][]string{nil, {"new.service"}}, p.asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

func TestPinnerThatIsToldTooMuchLooksAtEverything(t *testing.T) {
	p := &pins{}
	synctest.Test(t, func(t *testing.T) {
		pinner := bridge.NewPinner()
		flooded := make(chan struct{})
		pinner.OptedIn = func(ctx context.Context, names []string) ([]units.Store, error) {
			found, err := p.OptedIn(ctx, names)
			<-flooded // it reads nothing meanwhile, and nobody may have to wait
			return found, err
		}
		pinner.Pin = p.pin
		pinner.Covered = func() (map[string]bool, error) { return nil, nil }
		pinner.Excluded = func(string) bool { return false }
		pinner.Log = journal.To(io.Discard)
		ctx, cancel := context.WithCancel(t.Context())
		go pinner.Run(ctx)
		synctest.Wait()
		p.optedIn = []string{"u.service"}
		for range 3000 {
			pinner.Notice("x.service")
		}
		close(flooded)
		synctest.Wait()
		cancel()
	})
	if diff := cmp.Diff([]string{"u.service"}, p.pinned); diff != "" {
		t.Errorf("pinned (-want +got):\n%s", diff)
	}
}

func TestPinnerAsksUntilPID1AnswersAndSaysSoOnce(t *testing.T) {
	silent := errors.Join(units.ErrManager, errors.New("no answer"))
	p := &pins{optedIn: []string{"a@1.service"}, errs: []error{silent, silent, silent}}
	p.run(t, func(*bridge.Pinner) { time.Sleep(time.Minute) /* of the bubble */ })
	if diff := cmp.Diff([]string{"a@1.service"}, p.pinned); diff != "" {
		t.Errorf("pinned (-want +got):\n%s", diff)
	}
	log := p.log.String()
	if n := strings.Count(log, "may lose their fd store"); n != 1 {
		t.Errorf("it was said %d times that stores may be lost:\n%s", n, log)
	}
	if n := strings.Count(log, "answers again"); n != 1 {
		t.Errorf("it was said %d times that PID 1 answers again:\n%s", n, log)
	}
}

func TestPinnerLooksAtEverythingAfterAReload(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(root+"/run/systemd", 0o755); err != nil {
		t.Fatal(err)
	}
	watcher, err := units.NewWatcher(root)
	if err != nil {
		t.Fatal(err)
	}
	looked := make(chan []string)
	pinner := bridge.NewPinner()
	pinner.OptedIn = func(_ context.Context, names []string) ([]units.Store, error) {
		looked <- names
		return nil, nil
	}
	pinner.Covered = func() (map[string]bool, error) { return nil, nil }
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { pinner.Follow(watcher) })
	running.Go(func() { pinner.Run(ctx) })
	<-looked // as it begins
	if err := os.Mkdir(root+"/run/systemd/generator", 0o755); err != nil {
		t.Fatal(err)
	}
	if names := <-looked; names != nil { // or the test does not end
		t.Errorf("only %q was looked at", names)
	}
	if err := watcher.Close(); err != nil {
		t.Error(err)
	}
	stop()
	running.Wait()
}
