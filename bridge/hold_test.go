// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
)

// serveOwn starts an fdbridged as systemd does.
func (w *world) serveOwn() *daemon {
	w.t.Helper()
	return w.start(w.t.Context(), filepath.Join(w.t.TempDir(), "socket"), keeper{m: w.manager, unit: bridge.OwnUnit})
}

func (u *updated) deliverAll(t *testing.T, d *daemon) {
	t.Helper()
	u.deliverTo(t, d, u.units...)
}

// deliverTo delivers all that is held for some of the units.
func (u *updated) deliverTo(t *testing.T, d *daemon, units ...string) {
	t.Helper()
	for _, unit := range units {
		n, err := u.deliver(d.socket, unit)
		result{n, err}.check(t, unit, len(u.want[unit]))
	}
}

// A preserve finishes the sessions that it carries on, and leaves their files in
// its own store in case that the update is rolled back.
func TestWhatARolledBackUpdateHasTakenApartIsDelivered(t *testing.T) {
	eachOrder(t, func(t *testing.T, make func(w *world) []string) {
		u := update(t, make)
		rollBack(t, u)
		u.deliverAll(t, u.serveOwn())
		u.check(t, u.serveOwn())
		if left := u.names(rescueUnit); len(left) > 0 {
			t.Errorf("left in the store of preserve: %q", left)
		}
	})
}

// What cannot be had may be had by the next fdbridged, which finds all the rest again.
func TestWhatIsTakenOverInPartIsDeliveredOnce(t *testing.T) {
	for name, fail := range map[string]func(u *updated, err error){
		"a file is not there":      func(u *updated, err error) { u.unrescued = err },
		"the store is not emptied": func(u *updated, err error) { u.unemptied = err },
	} {
		t.Run(name, func(t *testing.T) {
			u := update(t, stores["one unit"])
			rollBack(t, u)
			fail(u, errors.New("it failed"))
			left := u.names(rescueUnit)
			d := u.serveOwn()
			u.deliverAll(t, d)
			for range 2 {
				d.stop()
				d = u.serveOwn()
				if held := d.holder.Units(); len(held) > 0 {
					t.Errorf("held again: %q", held)
				}
				if p := d.holder.Problems(); len(p) != 1 || !strings.Contains(p[0], "it failed") {
					t.Errorf("problems: %q", p)
				}
			}
			if diff := cmp.Diff(left, u.names(rescueUnit)); diff != "" {
				t.Errorf("store of preserve (-before +after):\n%s", diff)
			}
			d.stop()
			fail(u, nil)
			u.check(t, u.serveOwn())
			if left := u.names(rescueUnit); len(left) > 0 {
				t.Errorf("left in the store of preserve: %q", left)
			}
		})
	}
}

// rollBack lets fdbridged take over what came through the update, and takes a
// further update back after everything was preserved for it.
func rollBack(t *testing.T, u *updated) {
	t.Helper()
	u.kernel.MaxFiles, u.kernel.MaxSessions = 0, 0
	u.serveOwn().stop()
	if err := u.preserve().Close(); err != nil {
		t.Fatal(err)
	}
	if len(u.names(rescueUnit)) == 0 {
		t.Fatal("the preserve has left nothing")
	}
}

func TestWhatMeansNothingInItsStoreIsReportedAndLeftThere(t *testing.T) {
	for _, name := range []string{"other", "s-0123456789abcdef", "x-1"} {
		t.Run(name, func(t *testing.T) {
			u := update(t, stores["one unit"])
			u.put(bridge.OwnUnit, name, "?")
			d := u.serveOwn()
			if p := d.holder.Problems(); len(p) != 1 || !strings.Contains(p[0], name) {
				t.Errorf("problems: %q", p)
			}
			u.deliverAll(t, d)
			if diff := cmp.Diff([]string{"index", name}, u.names(bridge.OwnUnit)); diff != "" {
				t.Errorf("fdbridged's store (-want +got):\n%s", diff)
			}
		})
	}
}

func TestADeviceThatIsBusyIsTriedAgain(t *testing.T) {
	u := update(t, stores["one unit"])
	device, err := session.Open(u.kernel, session.Path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	own := keeper{m: u.manager, unit: bridge.OwnUnit}
	d := u.start(ctx, filepath.Join(t.TempDir(), "socket"), own)
	if p := d.holder.Problems(); len(p) != 1 || !strings.Contains(p[0], session.ErrBusy.Error()) {
		t.Errorf("problems: %q", p)
	}
	if unknown := statusOf(t, d.socket).Unknown; !strings.Contains(unknown, session.ErrBusy.Error()) {
		t.Errorf("status says that it is unknown because %q", unknown)
	}
	if err := d.holder.Known(ctx, "a.service"); !errors.Is(err, session.ErrBusy) || !strings.Contains(err.Error(), "fuser /dev/liveupdate") {
		t.Errorf("why it is not known: %v", err)
	}
	waiting := run(t, u.inject(d.socket, "a.service", keeper{m: u.manager, unit: "a.service"}))
	retried := make(chan bool)
	go func() { retried <- d.holder.Retry(t.Context()) }()
	_ = device.Close()
	if !<-retried {
		t.Error("Retry says that there was nothing to do")
	}
	(<-waiting).check(t, "a.service", 5)
	if s := statusOf(t, d.socket); s.Unknown != "" || s.Handover == nil {
		t.Errorf("status after that: %+v", s)
	}
	d.stop()
	u.check(t, u.serveOwn())
}

func statusOf(t *testing.T, socket string) (status wire.Status) {
	t.Helper()
	err := wire.Ask(socket, wire.OpStatus, func(a *wire.Answer) {
		if a.Status != nil {
			status = *a.Status
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return status
}

func TestNothingIsSaidToBeHeldOnlyWhenThatIsKnown(t *testing.T) {
	for name, test := range map[string]struct {
		break_ func(u *updated)
		says   error
	}{
		"the kernel could not read it": {func(u *updated) { u.kernel.OpenErr = unix.EIO }, session.ErrBroken},
		"a session is not given out": {func(u *updated) {
			u.kernel.Fail = func(req uint, name string, _ uint64) error {
				if req == session.ReqRetrieveSession && name != "fdbridge" {
					return unix.ENOMEM
				}
				return nil
			}
		}, unix.ENOMEM},
	} {
		t.Run(name, func(t *testing.T) {
			u := update(t, stores["one unit"])
			test.break_(u)
			d := u.serveOwn()
			if n, err := u.deliver(d.socket, "a.service"); n != 0 || err == nil || !strings.Contains(err.Error(), test.says.Error()) {
				t.Errorf("deliver: %d, %v; want %q", n, err, test.says)
			}
			if d.holder.Retry(t.Context()) {
				t.Error("Retry says that it has done something")
			}
		})
	}
}

func TestDropLetsGoOfAUnitsFilesAndOfNoOthers(t *testing.T) {
	u := update(t, stores["a file that two units have"])
	d := u.serveOwn()
	for _, test := range []struct{ unit, says string }{
		{"a.service", ""}, {"a.service", "nothing is held for a.service"}, {"no.service", "nothing is held for no.service"},
	} {
		err := wire.Drop(d.socket, test.unit)
		if test.says == "" && err == nil {
			continue
		}
		if !errors.Is(err, wire.ErrRefused) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("drop %s: %v, want %q", test.unit, err, test.says)
		}
	}
	n, err := u.deliver(d.socket, "a.service")
	result{n, err}.check(t, "a.service", 0)
	u.units, u.want["a.service"] = []string{"b.service"}, nil
	u.deliverAll(t, d)
	u.check(t, d)
}

// slow is the way to a store of which PID 1 takes its time to take in what is sent.
type slow struct {
	keeper
	took time.Duration
}

func (s slow) Barrier() error { time.Sleep(s.took); return s.keeper.Barrier() }

// How long PID 1 takes is not the client's to answer for: what is done is not to be
// told as a failure.
func TestADecisionForWhichPID1TakesLongIsAnswered(t *testing.T) {
	u := update(t, stores["a file that two units have"])
	u.impatient = 200 * time.Millisecond
	own := slow{keeper{m: u.manager, unit: bridge.OwnUnit}, u.impatient * 3 / 2}
	d := u.start(u.t.Context(), filepath.Join(u.t.TempDir(), "socket"), own)
	if _, err := wire.DeliverAs(d.socket, "a.service", "a.service"); err != nil {
		t.Errorf("deliver-as: %v", err)
	}
	if err := wire.Drop(d.socket, "a.service"); err != nil {
		t.Errorf("drop: %v", err)
	}
}

// ask sends a request on a new connection, or on one to which something was
// granted, and returns what its error says.
func ask(t *testing.T, conn *wire.Conn, request wire.Request) string {
	t.Helper()
	if err := conn.Send(request, nil); err != nil {
		t.Fatal(err)
	}
	var answer struct{ Error string }
	f, err := conn.Receive(&answer)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	return answer.Error
}

func dial(t *testing.T, d *daemon) *wire.Conn {
	t.Helper()
	conn, err := wire.Dial(d.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestAUnitGetsOnlyWhatItsOwnManifestNames(t *testing.T) {
	u := update(t, stores["a file that two units have"])
	d := u.serveOwn()
	// The shared file is in the session of one of them, under token 2.
	owner, sharer := "a.service", "b.service"
	if len(d.holder.Held(owner)[0].Sessions) == 2 {
		owner, sharer = sharer, owner
	}
	u.setPeer(sharer)
	for _, test := range []struct {
		unit    string
		token   uint64
		refused bool
	}{
		{sharer, 0, false}, // its manifest
		{sharer, 1, false}, // its own
		{owner, 2, false},  // the shared one
		{owner, 1, true},   // another unit's own
		{owner, 0, true},   // another unit's manifest
		{sharer, 99, true}, // nothing
		{"no.service", 1, true},
	} {
		conn := dial(t, d)
		if says := ask(t, conn, wire.Request{Op: wire.OpDeliver}); says != "" {
			t.Fatal(says)
		}
		says := ask(t, conn, wire.Request{Op: wire.OpFile, Session: kho.SessionName(test.unit), Token: test.token})
		if refused := says != ""; refused != test.refused {
			t.Errorf("token %d of %s: %q", test.token, test.unit, says)
		}
		_ = conn.Close()
	}
}

func TestOnlyAUnitItselfSettlesItsDelivery(t *testing.T) {
	u := update(t, stores["a file that two units have"])
	d := u.serveOwn()
	u.setPeer("b.service")
	other := wire.Request{Op: wire.OpDelivered, Session: "fdbridge.a.service"}
	if says := ask(t, dial(t, d), other); !strings.Contains(says, "another unit") {
		t.Errorf("another unit's: %q", says)
	}
	if n := len(d.holder.Held("a.service")); n != 1 {
		t.Errorf("%d parcels of a.service are held", n)
	}
	u.setPeer("a.service")
	for range 2 { // the answer to the first may have been lost
		if says := ask(t, dial(t, d), other); says != "" {
			t.Errorf("its own: %q", says)
		}
	}
	if n := len(d.holder.Held("a.service")); n != 0 {
		t.Errorf("%d parcels of a.service are held still", n)
	}
}

// The next fdbridged need not ask PID 1, which may be busy, who the unit is: it was
// rightful when the delivery began.
func TestADeliveryIsSettledWithTheNextFdbridged(t *testing.T) {
	const this, another = "0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdee"
	for name, c := range map[string]struct {
		op, invocation string
		refused        bool // the request
		delivered      int  // by the next delivery, -1 when it is refused
	}{
		"delivered":            {wire.OpDelivered, this, false, 0},
		"delivered by another": {wire.OpDelivered, another, true, -1},
		"returned":             {wire.OpReturned, this, false, 5},
		"returned by another":  {wire.OpReturned, another, false, -1},
	} {
		t.Run(name, func(t *testing.T) {
			const unit, of = "a.service", "fdbridge.a.service"
			u := update(t, stores["one unit"])
			d := u.serveOwn()
			u.setPeer(unit)
			conn := dial(t, d)
			if err := conn.Send(wire.Request{Op: wire.OpDeliver, Invocation: this}, nil); err != nil {
				t.Fatal(err)
			}
			f, err := conn.Receive(&wire.Grant{})
			if err = errors.Join(err, f.Close(), conn.Send(wire.Request{Op: wire.OpStoring}, nil), conn.Close()); err != nil {
				t.Fatal(err)
			}
			d.stop()
			d = u.serveOwn()
			u.fail(units.ErrManager)
			says := ask(t, dial(t, d), wire.Request{Op: c.op, Session: of, Invocation: c.invocation})
			if refused := strings.Contains(says, units.ErrManager.Error()); refused != c.refused || says != "" != refused {
				t.Errorf("fdbridged says %q", says)
			}
			u.fail(nil)
			n, err := u.deliver(d.socket, unit)
			if refused := err != nil; refused != (c.delivered < 0) || n != max(c.delivered, 0) {
				t.Errorf("the next delivery: %d, %v", n, err)
			}
		})
	}
}

// It may come yet, and has a file in the session of the one that is delivered.
func TestAFileOfAUnitThatCannotBeHadYetIsKept(t *testing.T) {
	for _, first := range []string{"a.service", "b.service"} {
		t.Run(first+" is delivered first", func(t *testing.T) {
			u := update(t, stores["a file that two units have"])
			other := map[string]string{"a.service": "b.service", "b.service": "a.service"}[first]
			u.failing(session.ReqRetrieveSession, kho.SessionName(other), unix.ENOMEM)
			d := u.serveOwn()
			n, err := u.deliver(d.socket, first)
			if n != len(u.want[first]) && err == nil {
				t.Errorf("deliver to %s: %d, %v", first, n, err)
			}
			d.stop()
			u.kernel.Fail = nil
			d = u.serveOwn()
			u.deliverTo(t, d, other)
			if err != nil {
				u.deliverTo(t, d, first)
			}
			u.check(t, d)
		})
	}
}

// What a unit had stored last comes first, though it cannot be had yet.
func TestTheOlderOfTwoParcelsWaitsForTheNewer(t *testing.T) {
	const unit = "a.service"
	w := newWorld(t)
	w.add(unit, "yes")
	w.put(unit, "x", "old")
	w.kexec(w.preserve())
	d := w.serveOwn()
	w.put(unit, "x", "new")
	w.kexec(w.preserve())
	d.stop()
	newer := kho.SessionName(unit)
	w.failing(session.ReqRetrieveSession, newer, unix.ENOMEM)
	d = w.serveOwn()
	if held := d.holder.Held(unit); len(held) != 1 || held[0].Sessions[0] == newer {
		t.Fatalf("held: %+v", held)
	}
	if n, err := w.deliver(d.socket, unit); n != 0 || err == nil || !strings.Contains(err.Error(), unix.ENOMEM.Error()) {
		t.Errorf("deliver: %d, %v, want why the newer cannot be had", n, err)
	}
	d.stop()
	w.kernel.Fail = nil
	d = w.serveOwn()
	for _, want := range []string{"x=new@3", "x=old@3"} {
		if n, err := w.deliver(d.socket, unit); n != 1 || err != nil {
			t.Fatalf("deliver: %d, %v", n, err)
		}
		if diff := cmp.Diff([]string{want}, w.contents(unit)); diff != "" {
			t.Errorf("the store (-want +got):\n%s", diff)
		}
		w.empty(unit)
	}
}

// The mark that a parcel is done holds where its session cannot be finished.
func TestWhatIsDeliveredIsNotDeliveredAgainThoughItCannotBeFinished(t *testing.T) {
	u := update(t, stores["one unit"])
	u.failing(session.ReqFinish, "", unix.EBUSY)
	d := u.serveOwn()
	u.deliverAll(t, d)
	u.empty("a.service")
	for range 2 {
		n, err := u.deliver(d.socket, "a.service")
		result{n, err}.check(t, "a.service", 0)
		if diff := cmp.Diff([]string{"d-", "sessions-0", "index"}, shapes(u.names(bridge.OwnUnit))); diff != "" {
			t.Errorf("fdbridged's store (-want +got):\n%s", diff)
		}
		d.stop()
		d = u.serveOwn()
	}
	d.stop()
	u.kernel.Fail = nil
	u.serveOwn() // which tidies up
	if diff := cmp.Diff([]string{"index"}, u.names(bridge.OwnUnit)); diff != "" {
		t.Errorf("fdbridged's store (-want +got):\n%s", diff)
	}
}

// A client that was given a session may have it for longer than fdbridged lives.
func TestASessionThatAClientStillHasIsNotMissed(t *testing.T) {
	u := update(t, stores["one unit"])
	d := u.serveOwn()
	u.setPeer("a.service")
	conn := dial(t, d)
	if err := conn.Send(wire.Request{Op: wire.OpDeliver}, nil); err != nil {
		t.Fatal(err)
	}
	f, err := conn.Receive(&wire.Grant{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if says := ask(t, conn, wire.Request{Op: wire.OpDelivered, Session: "fdbridge.a.service"}); says != "" {
		t.Fatal(says)
	}
	d.stop()
	d = u.serveOwn()
	if p := d.holder.Problems(); len(p) > 0 {
		t.Errorf("problems: %q", p)
	}
	n, err := u.deliver(d.socket, "a.service")
	result{n, err}.check(t, "a.service", 0)
}

func TestWhatIsNotClaimedInTimeIsDropped(t *testing.T) {
	w := newWorld(t)
	for _, unit := range []string{"claimed.service", "left.service"} {
		w.add(unit, "yes")
		w.put(unit, "x", "X")
	}
	w.kexec(w.preserve())
	d := w.start(t.Context(), filepath.Join(t.TempDir(), "socket"), keeper{m: w.manager, unit: bridge.OwnUnit})
	if n, err := w.deliver(d.socket, "claimed.service"); n != 1 || err != nil {
		t.Fatalf("deliver: %d, %v", n, err)
	}
	ended, stop := context.WithCancel(t.Context())
	stop()
	d.server.Expire(ended, 100*365*24*time.Hour)
	if held := d.holder.Units(); len(held) != 1 {
		t.Fatalf("held before the time is over: %v", held)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		t.Fatal(err)
	}
	// This long after the kernel was started, and not from now on, or the test does not end.
	d.server.Expire(t.Context(), time.Duration(now.Nano()))
	if held := d.holder.Units(); len(held) != 0 {
		t.Errorf("held when it is over: %v", held)
	}
	if said := w.logged(); !strings.Contains(said, "left.service: It has not claimed its fds within HoldTimeoutSec=") {
		t.Errorf("the log does not say what was dropped: %s", said)
	}
}
