// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fdbridge/fdbridge/internal/vm/progress"
	"github.com/fdbridge/fdbridge/internal/vm/wire"
)

// guest answers what a Machine asks.
type guest struct {
	net.Conn
	wire *wire.Conn
	// fate is what a command that asks for another boot, or "depart", leads to.
	fate func(g *guest, r wire.Request)
	// asked is what default.target answers next, in turn: 0 for having come back.
	asked []int
}

// guestMachine returns a machine whose agent has said hello in boot b1.
func guestMachine(t *testing.T, g *guest) *Machine {
	t.Helper()
	c, conn := port(t)
	g.Conn, g.wire = conn, wire.NewConn(conn)
	m := &Machine{cfg: Config{Name: "guest", Dir: t.TempDir(), Log: progress.New(io.Discard)}}
	exited := make(chan struct{})
	close(exited)
	m.qemu.Store(&process{agent: c, exited: exited})
	g.hello("b1")
	if _, err := c.greeted(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	go g.serve()
	return m
}

// started is what the guest prints when it is asked by which start default.target
// is active.
const started = "first-start"

func (g *guest) hello(bootID string) {
	_ = g.wire.Write(wire.Message{Hello: &wire.Hello{Nonce: bootID, BootID: bootID}}) // seen as a missing hello
}

func (g *guest) reply(r wire.Request, status int) {
	_ = g.wire.Write(wire.Message{Reply: &wire.Reply{Nonce: r.Nonce, ID: r.ID, Status: status, Stdout: []byte(started + "\n")}}) // seen as a missing reply
}

func (g *guest) serve() {
	for {
		m, err := g.wire.Read()
		switch {
		case err != nil:
			return
		case m.Request.Argv[0] == "depart" || g.fate != nil && slices.Contains(m.Request.Argv, "--no-block"):
			g.fate(g, *m.Request)
		case !slices.Contains(m.Request.Argv, started): // it does not ask whether the guest has come back
			g.reply(*m.Request, 0)
		case len(g.asked) > 0:
			g.reply(*m.Request, g.asked[0])
			g.asked = g.asked[1:]
		default:
			g.hello("b2")
		}
	}
}

func TestLeaveFollowsTheGuest(t *testing.T) {
	tests := map[string]struct {
		guest guest
		left  bool
		err   string
	}{
		"into another boot": {
			guest: guest{fate: func(g *guest, r wire.Request) { g.reply(r, 0) }, asked: []int{1}}, left: true},
		"into another boot that cuts the command off": {
			guest: guest{fate: func(g *guest, _ wire.Request) { g.hello("b2") }}, left: true},
		"back to where it was": {
			guest: guest{fate: func(g *guest, r wire.Request) { g.reply(r, 0) }, asked: []int{1, 0}}},
		"nowhere when the command fails": {
			guest: guest{fate: func(g *guest, r wire.Request) { g.reply(r, 3) }}, err: "status 3"},
		"to its end": {
			guest: guest{fate: func(g *guest, r wire.Request) { g.reply(r, 0); g.Close() }}, err: "qemu has ended"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := guestMachine(t, &test.guest)
			left, err := m.Leave(t.Context(), "depart")
			if left != test.left || (err != nil) != (test.err != "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("left %t, error %v; want %t, %q", left, err, test.left, test.err)
			}
		})
	}
}

func TestAnUpdateThatIsCalledOffIsAnErrorOfKexec(t *testing.T) {
	m := guestMachine(t, &guest{asked: []int{0}})
	if err := m.Kexec(t.Context()); err == nil || !strings.Contains(err.Error(), "same kernel") {
		t.Errorf("error is %v", err)
	}
}

func TestKexecWithinWaitsForItsOwnBoundAndAsksNothing(t *testing.T) {
	const asked = 7
	for name, test := range map[string]struct {
		fate  func(g *guest, r wire.Request)
		bound time.Duration
		want  error
	}{
		"another boot":  {func(g *guest, r wire.Request) { g.reply(r, 0); g.hello("b2") }, time.Minute, nil},
		"cut off by it": {func(g *guest, _ wire.Request) { g.hello("b2") }, time.Minute, nil},
		"none":          {func(g *guest, r wire.Request) { g.reply(r, 0) }, 2 * leavePoll, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := &guest{fate: test.fate, asked: []int{asked}}
			m := guestMachine(t, g)
			if err := m.KexecWithin(t.Context(), test.bound); !errors.Is(err, test.want) {
				t.Errorf("error is %v, want %v", err, test.want)
			}
			if len(g.asked) != 1 {
				t.Error("the guest was asked whether it has come back")
			}
		})
	}
}

// A QEMU whose guest has come up as soon as it is looked at.
const upAtOnce = `exec perl -MIO::Socket::UNIX -e '
	my ($path) = "@ARGV" =~ /id=agent,\S*path=(\S+)/;
	unlink $path;
	my $port = IO::Socket::UNIX->new(Local => $path, Listen => 1)->accept;
	syswrite $port, "\n{\"hello\":{\"nonce\":\"n\",\"boot_id\":\"boot-$$\"}}\n";
	sleep 600' -- "$@"`

func TestPowerCutBootsAgainFromTheSameDisk(t *testing.T) {
	cfg := fakeQEMU(t, upAtOnce)
	cfg.Image = filepath.Join(cfg.Dir, "qemu.cmd") // any file that is there
	cfg.Disk = filepath.Join(cfg.Dir, "disk")
	m := &Machine{cfg: cfg}
	if err := m.powerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() { m.Kill() }()
	if err := m.WaitBoot(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, first := m.BootID(), m.qemu.Load()
	if err := m.PowerCut(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := m.BootID(); before == "" || after == "" || before == after {
		t.Errorf("boot ids are %q before and %q after", before, after)
	}
	if first.cmd.ProcessState == nil {
		t.Error("the first QEMU runs on")
	}
}

func TestPowerCutNeedsADiskThatIsKept(t *testing.T) {
	m := guestMachine(t, &guest{})
	if err := m.PowerCut(t.Context()); err == nil || errors.Is(err, errGone) {
		t.Errorf("error is %v", err)
	}
	if m.BootID() != "b1" {
		t.Error("the machine is gone")
	}
}
