// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/bus"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

// patience bounds each wait for something that has to come.
const patience = time.Minute

// nobody is an ordinary user.
const nobody = 65534

// config is that of a system bus, with what the package installs on it.
const config = `<busconfig>
  <type>system</type>
  <listen>unix:path=%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.PolicyKit1"/>
  </policy>
  <policy user="root"><allow own="org.freedesktop.PolicyKit1"/></policy>
  <include>%s</include>
</busconfig>`

// startBus starts a message bus for a test and returns the path of its socket. stop
// ends it before the test does.
func startBus(t *testing.T) (socket string, stop func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test calls as several users, which takes root")
	}
	policy, err := filepath.Abs("../../contrib/dbus/org.fdbridge.Bridge1.conf")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "fdbridge-bus-") // which every user can get into, unlike t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket = filepath.Join(dir, "socket")
	file := filepath.Join(dir, "config")
	err = os.WriteFile(file, fmt.Appendf(nil, config, socket, policy), 0o644)
	if err = errors.Join(err, os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command("dbus-daemon", "--config-file="+file, "--nofork", "--nopidfile", "--print-address")
	var said bytes.Buffer
	daemon.Stderr = &said
	out, err := daemon.StdoutPipe()
	if err == nil {
		err = daemon.Start()
	}
	if err != nil {
		t.Fatalf("start dbus-daemon, which \"make deps\" installs: %v", err)
	}
	stop = sync.OnceFunc(func() {
		_ = daemon.Process.Kill()
		_ = daemon.Wait() // it was killed
		if t.Failed() {
			t.Logf("dbus-daemon said:\n%s", said.String())
		}
	})
	t.Cleanup(stop)
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it listens
		t.Fatal(err)
	}
	return socket, stop
}

// dial connects to a bus as a user.
func dial(t *testing.T, socket string, uid int) *dbus.Conn {
	t.Helper()
	type result struct {
		conn net.Conn
		err  error
	}
	dialed := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with its user
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			dialed <- result{nil, errno}
			return
		}
		conn, err := net.Dial("unix", socket)
		dialed <- result{conn, err}
	}()
	r := <-dialed
	if r.err != nil {
		t.Fatal(r.err)
	}
	conn, err := dbus.NewConn(r.conn)
	if err == nil {
		err = conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(uid))})
	}
	if err == nil {
		err = conn.Hello()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// backend is an fdbridged.
type backend struct {
	mu      sync.Mutex
	units   []wire.Unit
	status  wire.Status
	entries []wire.Entry
	verdict bus.Verdict
	err     error         // of everything
	block   chan struct{} // if not nil, Check waits until it is closed
	checks  int
	asked   int // how often for units
	done    []string
	changed func() // of the watcher that there is
	watched chan struct{}
}

func (b *backend) Units(context.Context) ([]wire.Unit, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked++
	return b.units, b.err
}

// times is how often Units was called.
func (b *backend) times() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked
}

func (b *backend) Status(context.Context) (wire.Status, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status, b.err
}

func (b *backend) Report(context.Context) (*wire.Report, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return &wire.Report{Status: b.status, Problems: []string{"y\x00\xff"}}, b.err
}

func (b *backend) Show(_ context.Context, unit string) (*wire.Shown, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if unit != "a.service" {
		return &wire.Shown{}, b.err
	}
	return &wire.Shown{Unit: unit, Entries: b.entries}, b.err
}

func (b *backend) Check(ctx context.Context) (*bus.Verdict, error) {
	b.mu.Lock()
	block := b.block
	b.checks++
	b.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return &b.verdict, b.err
}

func (b *backend) Drop(_ context.Context, unit string) error { return b.note("drop " + unit) }

func (b *backend) Deliver(_ context.Context, unit, as string) error {
	return b.note("deliver " + unit + " " + as)
}

func (b *backend) note(what string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done = append(b.done, what)
	return b.err
}

func (b *backend) Watch(ctx context.Context, changed func()) error {
	b.mu.Lock()
	b.changed = changed
	b.mu.Unlock()
	changed()
	b.watched <- struct{}{}
	<-ctx.Done()
	return ctx.Err()
}

// set changes what the backend says, and tells it if it is said that it changes.
func (b *backend) set(change func(b *backend)) {
	b.mu.Lock()
	change(b)
	changed := b.changed
	b.mu.Unlock()
	if changed != nil {
		changed()
	}
}

// bed is a service on a bus, and callers.
type bed struct {
	*testing.T
	*backend
	socket  string
	stopBus func()
	stop    func() // of the service
	ended   chan error
	root    *dbus.Conn
	user    *dbus.Conn
}

func number(n uint64) *uint64 { return &n }

// start starts a service with something in each property.
func start(t *testing.T) *bed {
	t.Helper()
	size := int64(4096)
	return startWith(t, &backend{
		units: []wire.Unit{
			{Unit: "a.service", State: wire.StateHeld, Stored: 1, Held: 2, HeldBytes: 8192, Lost: 3, Session: "fdbridge.a.service"},
			{Unit: "b@1.service", State: wire.StateOptedIn, Stored: 4},
		},
		status: wire.Status{Held: 1},
		entries: []wire.Entry{
			{Place: wire.PlaceHeld, Name: "x", Type: "memfd", Size: &size},
			{Place: wire.PlaceStored, Name: "y\x00\xff", Type: "pipe"},
		},
		verdict: bus.Verdict{Outcome: "lossy", CalledOff: true, Problems: []bus.Problem{
			{Outcome: "lossy", Unit: "a.service", FDs: []string{"p"}, Type: "pipe", Message: "no", Remedy: "yes"},
			{Outcome: "carried", Message: "perhaps"},
		}},
	}, wire.Kernel{Device: true, LiveUpdateNumber: number(7), Previous: "7.2.13"})
}

func startWith(t *testing.T, b *backend, kernel wire.Kernel) *bed {
	t.Helper()
	bed := &bed{T: t, backend: b, ended: make(chan error, 1)}
	b.watched = make(chan struct{}, 1)
	bed.socket, bed.stopBus = startBus(t)
	bed.root, bed.user = dial(t, bed.socket, 0), dial(t, bed.socket, nobody)
	owned := bed.signals(bed.root, dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, bus.Name))
	ctx, stop := context.WithCancel(t.Context())
	service := bus.Service{Backend: b, Machine: wire.Status{Version: "1.2", Kernel: kernel}}
	go func() { bed.ended <- service.Serve(ctx, bed.socket) }()
	bed.stop = sync.OnceFunc(func() {
		stop()
		if err := <-bed.ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(func() { stop() })
	bed.next(owned)
	if kernel.Device {
		<-b.watched
	}
	return bed
}

// signals returns those that come to a connection.
func (b *bed) signals(conn *dbus.Conn, options ...dbus.MatchOption) chan *dbus.Signal {
	b.Helper()
	if err := conn.AddMatchSignal(options...); err != nil {
		b.Fatal(err)
	}
	signals := make(chan *dbus.Signal, 100)
	conn.Signal(signals)
	return signals
}

// next returns the next signal, but for the bus's own to every new connection.
func (b *bed) next(signals chan *dbus.Signal) *dbus.Signal {
	b.Helper()
	for {
		select {
		case s := <-signals:
			if s.Name != "org.freedesktop.DBus.NameAcquired" {
				return s
			}
		case err := <-b.ended:
			b.Fatalf("the service has ended: %v", err)
		case <-time.After(patience):
			b.Fatal("no signal has come")
		}
	}
}

// call calls a method of an object; name is that of the interface and the method.
func (b *bed) call(conn *dbus.Conn, path, name string, args ...any) *dbus.Call {
	ctx, stop := context.WithTimeout(b.Context(), patience)
	defer stop()
	return conn.Object(bus.Name, dbus.ObjectPath(path)).CallWithContext(ctx, name, 0, args...)
}

// answer waits for the end of one of several calls, and returns its error.
func (b *bed) answer(done chan *dbus.Call) error {
	b.Helper()
	select {
	case c := <-done:
		return c.Err
	case <-time.After(patience):
		b.Fatal("a call was not answered")
		return nil
	}
}

// body returns what a method replies.
func (b *bed) body(conn *dbus.Conn, path, name string, args ...any) []any {
	b.Helper()
	c := b.call(conn, path, name, args...)
	if c.Err != nil {
		b.Fatalf("%s of %s: %v", name, path, c.Err)
	}
	return c.Body
}

// fault demands that a call has failed with an error of that name and some message.
func fault(t *testing.T, what string, err error, name string) {
	t.Helper()
	var e dbus.Error
	if !errors.As(err, &e) || e.Name != name || e.Error() == "" {
		t.Errorf("%s: %v (%q), want %s", what, err, e.Name, name)
	}
}

// node is what an object's introspection tells.
type node struct {
	Interfaces []ifaceNode `xml:"interface"`
	Children   []struct {
		Name string `xml:"name,attr"`
	} `xml:"node"`
}

type ifaceNode struct {
	Name       string   `xml:"name,attr"`
	Methods    []member `xml:"method"`
	Signals    []member `xml:"signal"`
	Properties []member `xml:"property"`
}

type member struct {
	Name   string `xml:"name,attr"`
	Type   string `xml:"type,attr"`
	Access string `xml:"access,attr"`
	Args   []struct {
		Name      string `xml:"name,attr"`
		Type      string `xml:"type,attr"`
		Direction string `xml:"direction,attr"`
	} `xml:"arg"`
	Annotations []struct {
		Name  string `xml:"name,attr"`
		Value string `xml:"value,attr"`
	} `xml:"annotation"`
}

func (b *bed) introspect(path string) (n node) {
	b.Helper()
	text := b.body(b.user, path, "org.freedesktop.DBus.Introspectable.Introspect")[0].(string)
	if err := xml.Unmarshal([]byte(text), &n); err != nil {
		b.Fatalf("introspection of %s: %v", path, err)
	}
	return n
}
