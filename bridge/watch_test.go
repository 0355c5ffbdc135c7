// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/session"
)

// told is what a watcher has been told, packet by packet.
type told struct {
	answers chan wire.Answer
	ended   chan error
	stop    func()
}

// watch watches a daemon, and returns when that has begun.
func (d *daemon) watch(t *testing.T) *told {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	w := &told{make(chan wire.Answer, 100), make(chan error, 1), stop}
	go func() {
		w.ended <- wire.Watch(ctx, d.socket, func(a *wire.Answer) { w.answers <- *a })
	}()
	t.Cleanup(stop)
	if diff := cmp.Diff(wire.Answer{}, w.next(t)); diff != "" {
		t.Fatalf("the first packet (-want +got):\n%s", diff)
	}
	return w
}

func (w *told) next(t *testing.T) wire.Answer {
	t.Helper()
	select {
	case a := <-w.answers:
		return a
	case err := <-w.ended:
		t.Fatalf("the watch has ended: %v", err)
	case <-time.After(time.Minute):
		t.Fatal("nothing was told within a minute")
	}
	return wire.Answer{}
}

// expect demands that these changes are told next, and in this order.
func (w *told) expect(t *testing.T, want ...wire.Change) {
	t.Helper()
	for i := range want {
		if diff := cmp.Diff(wire.Answer{Change: &want[i]}, w.next(t)); diff != "" {
			t.Errorf("change %d (-want +got):\n%s", i, diff)
		}
	}
}

func listed(t *testing.T, socket, unit string) (found wire.Unit) {
	t.Helper()
	err := wire.Ask(socket, wire.OpList, func(a *wire.Answer) {
		if a.Unit != nil && a.Unit.Unit == unit {
			found = *a.Unit
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestWatchersAreToldWhatBecomesOfWhatIsHeld(t *testing.T) {
	u := update(t, stores["a file that two units have"])
	d := u.serveOwn()
	first, second := d.watch(t), d.watch(t)
	if n, err := u.deliver(d.socket, "a.service"); err != nil || n != 3 {
		t.Fatalf("delivered %d fds: %v", n, err)
	}
	if err := wire.Drop(d.socket, "b.service"); err != nil {
		t.Fatal(err)
	}
	d.holder.Problem(journal.About{}, "something %s", "is wrong")
	for _, w := range []*told{first, second} {
		w.expect(t, wire.Change{Unit: "a.service", What: wire.ChangeDelivered, FDs: 3},
			wire.Change{Unit: "b.service", What: wire.ChangeDropped, FDs: 3})
		if a := w.next(t); a.Problem != "something is wrong" {
			t.Errorf("told of the problem: %+v", a)
		}
	}
	for unit, want := range map[string]string{"a.service": wire.ChangeDelivered, "b.service": wire.ChangeDropped} {
		if got := listed(t, d.socket, unit); got.Outcome != want || got.State != wire.StateOptedIn {
			t.Errorf("%s is listed as %+v, want the outcome %q", unit, got, want)
		}
	}
	d.stop()
	if got := listed(t, u.serveOwn().socket, "a.service"); got.Outcome != "" {
		t.Errorf("after a restart a.service is listed as %+v", got)
	}
}

func TestWatchersAreToldOfWhatIsHeldLate(t *testing.T) {
	u := update(t, stores["one unit"])
	device, err := session.Open(u.kernel, session.Path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	d := u.start(ctx, filepath.Join(t.TempDir(), "socket"), keeper{m: u.manager, unit: "fdbridged.service"})
	w := d.watch(t)
	_ = device.Close()
	if !d.holder.Retry(t.Context()) {
		t.Error("Retry says that there was nothing to do")
	}
	w.expect(t, wire.Change{Unit: "a.service", What: wire.ChangeHeld, FDs: 5})
}

func TestAWatchEndsWithEitherSide(t *testing.T) {
	u := update(t, stores["one unit"])
	d := u.serveOwn()
	w := d.watch(t)
	w.stop()
	if err := <-w.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("a watch that was stopped: %v", err)
	}
	w = d.watch(t)
	d.stop() // which waits for all connections
	if err := <-w.ended; !errors.Is(err, io.EOF) {
		t.Errorf("a watch whose fdbridged was stopped: %v", err)
	}
}

// A problem fits into an answer, whatever it is about.
func TestALongProblemIsCut(t *testing.T) {
	u := update(t, stores["one unit"])
	d := u.serveOwn()
	w := d.watch(t)
	d.holder.Problem(journal.About{}, "it begins %s", strings.Repeat("\x01", 100_000))
	if a := w.next(t); !strings.HasPrefix(a.Problem, "it begins ") || len(a.Problem) > 10_000 {
		t.Errorf("a watcher is told %d bytes", len(a.Problem))
	}
	report, err := wire.ReadReport(d.socket)
	if err != nil || len(report.Problems) != 1 {
		t.Errorf("the report has %d problems, %v", len(report.Problems), err)
	}
}

// A watcher that does not read is hung up on, and nobody waits for it.
func TestAWatcherThatDoesNotReadIsHungUpOn(t *testing.T) {
	u := update(t, stores["one unit"])
	d := u.serveOwn()
	conn, err := wire.Dial(d.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Send(wire.Request{Op: wire.OpWatch}, nil); err != nil {
		t.Fatal(err)
	}
	var answer wire.Answer
	if _, err := conn.Receive(&answer); err != nil {
		t.Fatal(err)
	}
	other := d.watch(t)
	text := strings.Repeat("x", 8<<10) // some of these fill the socket
	const many = 6000
	for i := range many {
		if i == 100 {
			text = "x"
		}
		d.holder.Problem(journal.About{}, "%s", text)
		if a := other.next(t); a.Problem != text {
			t.Fatalf("the other watcher is told %d bytes", len(a.Problem))
		}
	}
	got := 0
	for err == nil {
		if _, err = conn.Receive(&answer); err == nil {
			got++
		}
	}
	if !errors.Is(err, io.EOF) || got == 0 || got >= many {
		t.Errorf("the watcher that did not read was told %d times, then %v", got, err)
	}
	d.stop() // so that all is logged
	if says := fmt.Sprintf("A request of process %d on the socket failed: a client that watches is too slow", os.Getpid()); !strings.Contains(u.logged(), says) {
		t.Errorf("the log does not say %q", says)
	}
}

func TestThereIsABoundForWatchers(t *testing.T) {
	u := update(t, stores["one unit"])
	d := u.serveOwn()
	var watchers []*told
	for range 16 {
		watchers = append(watchers, d.watch(t))
	}
	err := wire.Watch(t.Context(), d.socket, func(*wire.Answer) { t.Error("one more is told something") })
	if !errors.Is(err, wire.ErrRefused) {
		t.Errorf("one watcher more: %v", err)
	}
	watchers[0].stop()
	for err = wire.ErrRefused; errors.Is(err, wire.ErrRefused); { // until fdbridged has seen it go
		ctx, stop := context.WithCancel(t.Context())
		err = wire.Watch(ctx, d.socket, func(*wire.Answer) { stop() })
		stop()
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("after one has gone: %v", err)
	}
}
