// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
	"github.com/fdbridge/fdbridge/units/notify"
)

// services returns where the daemon listens for services, from now on.
func (d *daemon) services() string {
	d.w.t.Helper()
	path := filepath.Join(d.w.t.TempDir(), "sessions")
	listener, err := wire.ListenToAll(path)
	if err != nil {
		d.w.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- d.server.ServeSessions(d.w.t.Context(), listener) }()
	d.w.t.Cleanup(func() {
		_ = listener.Close()
		if err := <-done; err != nil {
			d.w.t.Errorf("ServeSessions: %v", err)
		}
	})
	return path
}

// daemon starts an fdbridged, when the one before has ended.
func (w *world) daemon() *daemon {
	w.t.Helper()
	if w.last != nil {
		w.last.stop()
	}
	w.last = w.start(w.t.Context(), filepath.Join(w.t.TempDir(), "socket"), keeper{m: w.manager, unit: bridge.OwnUnit})
	return w.last
}

// asks makes a request as a process of a unit, and returns the answer and the
// session with it, nil when there is none.
func (w *world) asks(path, unit, op, name string) (wire.Session, *session.Session) {
	w.t.Helper()
	w.setPeer(unit)
	conn, err := wire.Dial(path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	var answer wire.Session
	var f *fd.FD
	if err = conn.Send(wire.Request{Op: op, Name: name}, nil); err == nil {
		f, err = conn.Receive(&answer)
	}
	if err != nil {
		w.t.Fatalf("%s %q as %s: %v", op, name, unit, err)
	}
	if f == nil {
		return answer, nil
	}
	s := session.Adopt(w.kernel, f)
	w.t.Cleanup(func() { _ = s.Close() })
	return answer, s
}

// gets is asks for who is to get a session.
func (w *world) gets(path, unit, op, name string) *session.Session {
	w.t.Helper()
	answer, s := w.asks(path, unit, op, name)
	want := wire.Session{Unit: unit, Session: kho.ServiceSession(unit, name)}
	if answer.Came = false; answer != want || s == nil {
		w.t.Fatalf("%s %q as %s: %+v, session %v", op, name, unit, answer, s)
	}
	return s
}

// notServed is asks for who is to be told why not.
func (w *world) notServed(path, unit, op, name, why string) {
	w.t.Helper()
	answer, s := w.asks(path, unit, op, name)
	if s != nil || !strings.Contains(answer.Error, why) || strings.Contains(answer.Error, "\n") {
		w.t.Errorf("%s %q as %s: %+v, session %v; want an error that says %q", op, name, unit, answer, s, why)
	}
}

func (m *manager) Store(_ context.Context, name string) (*units.Store, error) {
	m.looks.Add(1)
	store, err := m.store(name)
	return &store, err
}

// setUser sets a unit's User=; empty for the one that all have.
func (m *manager) setUser(unit, user string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.units[unit].identity.User = user
}

// holds checks that a session has a file with this text under a token.
func holds(t *testing.T, s *session.Session, token uint64, want string) {
	t.Helper()
	f, err := s.RetrieveFD(token)
	if err != nil {
		t.Errorf("token %d: %v", token, err)
		return
	}
	defer f.Close()
	buffer := make([]byte, 100)
	_ = f.Do(func(raw int) error {
		if n, err := unix.Pread(raw, buffer, 0); string(buffer[:max(n, 0)]) != want {
			t.Errorf("token %d has %q, %v; want %q", token, buffer[:max(n, 0)], err, want)
		}
		return nil
	})
}

// vm is a world in which vm.service has opened a session with a file in it.
func vm(t *testing.T) *world {
	w := newWorld(t)
	for _, unit := range []string{"vm.service", "other.service", "required.service"} {
		w.add(unit, "yes")
	}
	s := w.gets(w.daemon().services(), "vm.service", wire.OpOpenSession, "guest")
	if err := s.Preserve(fdtest.MemfdWith(t, "memory"), 77); err != nil {
		t.Fatal(err)
	}
	_ = s.Close() // as when the service stops
	return w
}

func TestAServiceRegainsWhatItHasPreservedItself(t *testing.T) {
	w := vm(t)
	preserved := w.preserve()
	want := []kho.Service{kho.NewService("vm.service", "guest", kho.Identity{Fragment: "/etc/systemd/system/vm.service", User: "nobody"})}
	if diff := cmp.Diff(want, preserved.Index.Services); diff != "" || len(preserved.Index.Units) > 0 {
		t.Errorf("index: units %+v, services (-want +got):\n%s", preserved.Index.Units, diff)
	}
	w.kexec(preserved)
	d := w.daemon()
	path := d.services()
	for unit, name := range map[string]string{"other.service": "guest", "vm.service": "gues"} {
		if answer, s := w.asks(path, unit, wire.OpClaimSession, name); s != nil || answer != (wire.Session{Unit: unit}) {
			t.Errorf("%s claims %q: %+v, %v", unit, name, answer, s)
		}
	}
	shown, err := wire.Show(d.socket, "vm.service")
	held := []wire.Entry{{Name: "guest", Place: wire.PlaceHeld, Type: "luo_session", Flags: unix.O_RDWR, Session: kho.ServiceSession("vm.service", "guest")}}
	if diff := cmp.Diff(held, shown.Entries); diff != "" || err != nil {
		t.Errorf("shown: %v (-want +got):\n%s", err, diff)
	}
	if u := listed(t, d.socket, "vm.service"); u.Sessions != 1 || u.State != wire.StateHeld {
		t.Errorf("it is listed as %+v", u)
	}
	changes := d.watch(t)
	for range 2 { // the service crashes in between
		s := w.gets(path, "vm.service", wire.OpClaimSession, "guest")
		holds(t, s, 77, "memory")
		_ = s.Close()
	}
	w.notServed(path, "vm.service", wire.OpOpenSession, "guest", "done with")
	w.asks(path, "other.service", wire.OpDoneSession, "guest")
	s := w.gets(path, "vm.service", wire.OpClaimSession, "guest")
	if err := s.Finish(); err != nil {
		t.Error(err)
	}
	if answer, _ := w.asks(path, "vm.service", wire.OpDoneSession, "guest"); answer.Error != "" {
		t.Errorf("done: %+v", answer)
	}
	_ = s.Close()
	changes.expect(t, wire.Change{Unit: "vm.service", What: wire.ChangeDelivered, FDs: 1})
	if u := listed(t, d.socket, "vm.service"); u.Sessions != 0 || u.State == wire.StateHeld {
		t.Errorf("after it is done it is listed as %+v", u)
	}
	if answer, s := w.asks(path, "vm.service", wire.OpClaimSession, "guest"); s != nil || answer.Session != "" {
		t.Errorf("after it is done: %+v, %v", answer, s)
	}
	if n := strings.Count(w.logged(), "vm.service: Delivered session "+kho.ServiceSession("vm.service", "guest")+"."); n != 1 {
		t.Errorf("the log says %d times that the session was delivered:\n%s", n, w.logged())
	}
	if err := w.gets(path, "vm.service", wire.OpOpenSession, "guest").Preserve(fdtest.MemfdWith(t, "again"), 1); err != nil {
		t.Error(err)
	}
	w.kexec(w.preserve())
	d = w.daemon()
	holds(t, w.gets(d.services(), "vm.service", wire.OpClaimSession, "guest"), 1, "again")
	if p := d.holder.Problems(); len(p) > 0 {
		t.Errorf("problems: %q", p)
	}
}

// PID 1 answers nobody while it starts all the units of a boot.
func TestASessionThatCameIsClaimedThoughPID1DoesNotAnswer(t *testing.T) {
	w := vm(t)
	w.kexec(w.preserve())
	w.units["vm.service"].known = true
	d := w.daemon()
	path := d.services()
	w.err = units.ErrManager
	holds(t, w.gets(path, "vm.service", wire.OpClaimSession, "guest"), 77, "memory")
	w.err = nil
}

func TestASessionIsTheSameUntilItIsDoneWith(t *testing.T) {
	w := vm(t)
	path := w.daemon().services() // the one before has crashed
	s := w.gets(path, "vm.service", wire.OpOpenSession, "guest")
	if err := s.Preserve(fdtest.MemfdWith(t, "x"), 77); !errors.Is(err, session.ErrTokenUsed) {
		t.Errorf("preserve under a token that was used: %v", err)
	}
	other := w.gets(path, "other.service", wire.OpOpenSession, "guest")
	if err := other.Preserve(fdtest.MemfdWith(t, "x"), 77); err != nil {
		t.Errorf("preserve in another unit's session of that name: %v", err)
	}
	_ = s.Close()
	w.asks(path, "vm.service", wire.OpDoneSession, "guest")
	s = w.gets(w.daemon().services(), "vm.service", wire.OpOpenSession, "guest")
	if err := s.Preserve(fdtest.MemfdWith(t, "x"), 77); err != nil {
		t.Errorf("preserve in a new session: %v", err)
	}
	if diff := cmp.Diff(2, strings.Count(strings.Join(w.names(bridge.OwnUnit), " "), "o-")); diff != "" {
		t.Errorf("fdbridged's store has %q", w.names(bridge.OwnUnit))
	}
}

func TestAServiceIsToldWhyItGetsNoSession(t *testing.T) {
	w := newWorld(t)
	for unit, preserve := range map[string]string{"in.service": "yes", "out.service": "restart", "excluded.service": "yes", "none.service": "yes"} {
		w.add(unit, preserve)
	}
	w.setMax("none.service", 0)
	d := w.daemon()
	path := d.services()
	for _, unit := range []string{"out.service", "none.service"} {
		w.notServed(path, unit, wire.OpOpenSession, "a", unit+" has not opted in")
	}
	w.notServed(path, "excluded.service", wire.OpOpenSession, "a", "left alone")
	for _, op := range []string{wire.OpOpenSession, wire.OpClaimSession, wire.OpDoneSession} {
		for _, name := range []string{"", "a b", "a:b", strings.Repeat("x", 256)} {
			w.notServed(path, "in.service", op, name, "1 to 255 printable ASCII characters")
		}
	}
	for _, op := range []string{wire.OpDrop, wire.OpDeliver, wire.OpList, wire.OpStatus, wire.OpLUOSession, ""} {
		w.notServed(path, "in.service", op, "a", "there is no operation")
	}
	for i := range wire.MaxSessions {
		_ = w.gets(path, "in.service", wire.OpOpenSession, fmt.Sprint(i)).Close()
	}
	w.notServed(path, "in.service", wire.OpOpenSession, "one-more", "no unit may have more")
	kept := w.gets(path, "in.service", wire.OpOpenSession, "3")
	w.asks(path, "in.service", wire.OpDoneSession, "3")
	w.notServed(path, "in.service", wire.OpOpenSession, "one-more", "no unit may have more") // the kernel has it still
	_ = kept.Close()
	_ = w.gets(path, "in.service", wire.OpOpenSession, "one-more").Close()
	w.kernel.OpenErr = unix.ENOENT
	w.notServed(path, "in.service", wire.OpClaimSession, "a:b", "colon")
	w.asks(path, "in.service", wire.OpDoneSession, "4")
	w.notServed(path, "in.service", wire.OpOpenSession, "4", "this kernel offers no live update")
	if !strings.Contains(w.logged(), `in.service: open-session of the session "one-more" is refused`) {
		t.Errorf("refusals are not logged:\n%s", w.logged())
	}
}

// opens is a kernel that counts how often the device is opened.
type opens struct {
	session.Kernel
	n atomic.Int32
}

func (o *opens) Open(path string) (*fd.FD, error) {
	o.n.Add(1)
	return o.Kernel.Open(path)
}

func TestAUnitIsWaitedForThatHasAllItMayHave(t *testing.T) {
	w := newWorld(t)
	w.add("in.service", "yes")
	d := w.daemon()
	kernel := &opens{Kernel: w.kernel}
	d.holder.Kernel = kernel
	path := d.services()
	var ended *session.Session
	for i := range wire.MaxSessions {
		ended = w.gets(path, "in.service", wire.OpOpenSession, fmt.Sprint(i))
		w.asks(path, "in.service", wire.OpDoneSession, fmt.Sprint(i))
	}
	var tries atomic.Int32
	third := make(chan struct{}, 1)
	w.kernel.Fail = func(_ uint, name string, _ uint64) error {
		if name == kho.ServiceSession("in.service", fmt.Sprint(wire.MaxSessions-1)) && tries.Add(1) == 3 {
			third <- struct{}{}
		}
		return nil
	}
	w.looks.Store(0)
	kernel.n.Store(0)
	answer, _ := w.asks(path, "in.service", wire.OpOpenSession, "one-more")
	if !strings.Contains(answer.Error, "no unit may have more") || strings.Contains(answer.Error, "of this name already") {
		t.Errorf("it is told: %s", answer.Error)
	}
	<-third // or the test does not end
	if looks, opens := w.looks.Load(), kernel.n.Load(); looks != 1 || opens != tries.Load() {
		t.Errorf("in %d looks at what has ended PID 1 was asked %d times, and the device opened %d times", tries.Load(), looks, opens)
	}
	for _, name := range []string{fmt.Sprint(wire.MaxSessions - 1), "one-more"} {
		kept := ended
		go func() {
			<-third
			_ = kept.Close()
		}()
		tries.Store(0)
		ended = w.gets(path, "in.service", wire.OpOpenSession, name)
		w.asks(path, "in.service", wire.OpDoneSession, name)
	}
}

// The session that a unit was done with, and the one of that name in its store, are two.
func TestWhatAUnitIsDoneWithDoesNotCountWhenItIsMadeAgain(t *testing.T) {
	w := newWorld(t)
	w.add("in.service", "yes")
	d := w.daemon()
	path := d.services()
	for i := range wire.MaxSessions {
		_ = w.gets(path, "in.service", wire.OpOpenSession, fmt.Sprint(i)).Close()
	}
	w.asks(path, "in.service", wire.OpDoneSession, "3")
	if err := w.luo(d.socket, "in.service", "3"); err != nil {
		t.Fatal(err)
	}
	_ = w.gets(path, "in.service", wire.OpOpenSession, "one-more").Close()
}

// Nobody asks about the sessions of transient units that are gone.
func TestWhatManyUnitsAreDoneWithIsForgotten(t *testing.T) {
	w := newWorld(t)
	path := w.daemon().services()
	var made atomic.Int32
	w.kernel.Fail = func(_ uint, name string, _ uint64) error {
		if name == kho.ServiceSession("run-0.service", "s") {
			made.Add(1)
		}
		return nil
	}
	for i := range 300 {
		unit := fmt.Sprintf("run-%d.service", i)
		w.add(unit, "yes")
		_ = w.gets(path, unit, wire.OpOpenSession, "s").Close()
		w.asks(path, unit, wire.OpDoneSession, "s")
	}
	if n := made.Load(); n != 2 { // the second time to see that it is gone
		t.Errorf("the session of the first unit was made %d times", n)
	}
}

func TestASessionIsForTheUserThatLeftIt(t *testing.T) {
	w := vm(t)
	w.kexec(w.preserve())
	w.setUser("vm.service", "mallory")
	path := w.daemon().services()
	for _, op := range []string{wire.OpClaimSession, wire.OpDoneSession} {
		w.notServed(path, "vm.service", op, "guest", `its user was "nobody" and is "mallory"`)
	}
	w.setUser("vm.service", "nobody")
	holds(t, w.gets(path, "vm.service", wire.OpClaimSession, "guest"), 77, "memory")
}

func TestDroppingAUnitDropsItsSessions(t *testing.T) {
	w := vm(t)
	w.kexec(w.preserve())
	d := w.daemon()
	if err := wire.Drop(d.socket, "vm.service"); err != nil {
		t.Errorf("drop: %v", err)
	}
	if err := wire.Drop(d.socket, "vm.service"); !errors.Is(err, wire.ErrRefused) {
		t.Errorf("drop again: %v", err)
	}
	if answer, s := w.asks(d.services(), "vm.service", wire.OpClaimSession, "guest"); s != nil || answer.Session != "" {
		t.Errorf("claim: %+v, %v", answer, s)
	}
}

func TestASessionThatIsNotClaimedInTimeIsDropped(t *testing.T) {
	w := vm(t)
	s := w.gets(w.daemon().services(), "other.service", wire.OpOpenSession, "claimed")
	_ = s.Close()
	w.put("other.service", "x", "X") // which it does not want
	w.kexec(w.preserve())
	d := w.daemon()
	path := d.services()
	_ = w.gets(path, "other.service", wire.OpClaimSession, "claimed").Close()
	d.server.Expire(t.Context(), time.Nanosecond) // since the kernel was started
	if answer, s := w.asks(path, "vm.service", wire.OpClaimSession, "guest"); s != nil || answer.Session != "" {
		t.Errorf("it can be claimed still: %+v", answer)
	}
	_ = w.gets(path, "other.service", wire.OpClaimSession, "claimed").Close()
	if held := d.holder.Units(); len(held) > 0 {
		t.Errorf("held are fds of %q", held)
	}
	d.server.Expire(t.Context(), time.Nanosecond)
	for _, unit := range []string{"vm", "other"} { // and not again
		if n := strings.Count(w.logged(), unit+".service: It has not claimed its fds"); n != 1 {
			t.Errorf("the log says %d times that %s.service has not claimed its fds, want once:\n%s", n, unit, w.logged())
		}
	}
}

func TestASessionThatIsRefusedIsNotClaimed(t *testing.T) {
	w := vm(t)
	w.kexec(w.preserve())
	w.setUser("vm.service", "mallory")
	d := w.daemon()
	path := d.services()
	w.notServed(path, "vm.service", wire.OpClaimSession, "guest", "mallory")
	d.server.Expire(t.Context(), time.Nanosecond)
	if answer, s := w.asks(path, "vm.service", wire.OpClaimSession, "guest"); s != nil || answer != (wire.Session{Unit: "vm.service"}) {
		t.Errorf("it is held on: %+v", answer)
	}
}

// What was claimed from the fdbridged before is in use, for all that this one knows.
func TestASessionThatMayBeClaimedIsNotDropped(t *testing.T) {
	w := vm(t)
	w.kexec(w.preserve())
	d := w.daemon()
	_ = w.gets(d.services(), "vm.service", wire.OpClaimSession, "guest").Close()
	d.stop()
	d = w.daemon()
	d.server.Expire(t.Context(), time.Nanosecond)
	_ = w.gets(d.services(), "vm.service", wire.OpClaimSession, "guest").Close()
}

func TestASessionThatDidNotComeIsAProblemAndSaidToItsUnit(t *testing.T) {
	w := vm(t)
	w.kexec(w.preserve())
	w.failing(session.ReqRetrieveSession, "fdbridge/vm.service/guest", unix.ENOMEM)
	d := w.daemon()
	path := d.services()
	if p := d.holder.Problems(); len(p) != 1 || !strings.Contains(p[0], `vm.service: Its session "guest" cannot be restored`) {
		t.Errorf("problems: %q", p)
	}
	w.notServed(path, "vm.service", wire.OpClaimSession, "guest", "cannot allocate memory")
	_ = w.gets(path, "vm.service", wire.OpOpenSession, "guest").Close()
}

func TestOneUnitLeavesRoomForTheOthers(t *testing.T) {
	w := vm(t)
	path := w.daemon().services()
	w.setPeer("other.service")
	const conns, served = 300, 16
	ended := make(chan error, conns)
	for range conns { // which say nothing
		conn, err := wire.Dial(path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go func() {
			_, err := conn.Receive(&wire.Session{})
			ended <- err
		}()
	}
	for range conns - served {
		if err := <-ended; !errors.Is(err, io.EOF) {
			t.Errorf("a connection that is one too many ends with %v", err)
		}
	}
	_ = w.gets(path, "vm.service", wire.OpOpenSession, "guest").Close()
}

// fdbridged ends before each of its steps until a service has opened its session, and
// the service asks the next one.
func TestFdbridgedIsKilledWhileASessionIsOpened(t *testing.T) {
	for steps := 0; ; steps++ {
		w := newWorld(t)
		w.add("vm.service", "yes")
		end := newFate(1000)
		d := w.start(t.Context(), filepath.Join(t.TempDir(), "socket"), stepping{keeper{m: w.manager, unit: bridge.OwnUnit}, end.step})
		end.in(steps)
		answer, s := w.asks(d.services(), "vm.service", wire.OpOpenSession, "a")
		if answer.Error == "" {
			if err := s.Preserve(fdtest.MemfdWith(t, "A"), 1); err != nil {
				t.Fatal(err)
			}
		}
		d.stop()
		s2 := w.gets(w.daemon().services(), "vm.service", wire.OpOpenSession, "a")
		err := s2.Preserve(fdtest.MemfdWith(t, "A"), 1)
		if answer.Error == "" && !errors.Is(err, session.ErrTokenUsed) {
			t.Errorf("step %d: the session that was answered with is another one: %v", steps, err)
		}
		w.kexec(w.preserve())
		holds(t, w.gets(w.daemon().services(), "vm.service", wire.OpClaimSession, "a"), 1, "A")
		if end.step() {
			return // it came to its end
		}
	}
}

// What was stored beside the sessions is another's.
func TestASessionWhoseOwnerIsNotCertainIsGivenToNobody(t *testing.T) {
	w := vm(t)
	w.gets(w.daemon().services(), "other.service", wire.OpOpenSession, "guest")
	w.last.stop()
	var labels []*notify.Passed
	own := w.units[bridge.OwnUnit].store
	for i := range own {
		if strings.HasPrefix(own[i].Name, "l-") {
			labels = append(labels, &own[i])
		}
	}
	if len(labels) != 2 {
		t.Fatalf("fdbridged's store has %q", w.names(bridge.OwnUnit))
	}
	labels[0].FD, labels[1].FD = labels[1].FD, labels[0].FD
	before := w.names(bridge.OwnUnit)
	d := w.daemon()
	path := d.services()
	for _, unit := range []string{"vm.service", "other.service"} {
		w.notServed(path, unit, wire.OpOpenSession, "guest", "the unit has a session of this name already")
	}
	if p := strings.Join(d.holder.Problems(), "\n"); strings.Count(p, "Whose the session") != 2 {
		t.Errorf("problems: %s", p)
	}
	if diff := cmp.Diff(before, w.names(bridge.OwnUnit)); diff != "" {
		t.Errorf("fdbridged's store (-want +got):\n%s", diff)
	}
	// The kernel knows which is which: they are carried, and given to whom they belong then.
	w.kexec(w.preserve())
	path = w.daemon().services()
	holds(t, w.gets(path, "vm.service", wire.OpClaimSession, "guest"), 77, "memory")
	if _, err := w.gets(path, "other.service", wire.OpClaimSession, "guest").RetrieveFD(77); !errors.Is(err, session.ErrNoToken) {
		t.Errorf("other.service has got a file: %v", err)
	}
}
