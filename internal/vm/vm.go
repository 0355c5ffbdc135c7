// SPDX-License-Identifier: Apache-2.0

// Package vm boots a virtual machine from a kernel and a disk image, drives it
// across kexecs, and runs commands in it. It is where everything that touches
// a real kernel and a real PID 1 is proven.
//
// Its subpackages make the kernel and the image (build), keep them (cache),
// and talk to the guest (wire, agent). Scenarios belong in test/, and nothing here
// knows what fdbridge is.
package vm

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fdbridge/fdbridge/internal/vm/progress"
)

const (
	// qemuWait bounds the wait for QEMU to make the agent's socket.
	qemuWait = 10 * time.Second
	// bootWait bounds a boot, and a shutdown with a boot after it.
	bootWait = 180 * time.Second
	// commandWait bounds a command in the guest whose context sets no earlier end.
	commandWait = 120 * time.Second
	// endWait bounds the wait for QEMU to end after the guest was told to power
	// off.
	endWait = 60 * time.Second
	// exitWait bounds the wait for QEMU to end after its ports were closed.
	exitWait = time.Second
	// consoleTail is how many lines of the console an error shows.
	consoleTail = 12
)

// Config says what to boot. Kernel and Image must be set; the rest has defaults.
type Config struct {
	Name        string        // in progress lines and the name of Dir; default "vm"
	Kernel      string        // path of a bzImage
	Image       string        // path of a raw disk image, never written to
	Disk        string        // writable copy of Image, made when it is not there, and kept; default none
	Memory      int           // MiB; default 2048
	CPUs        int           // default 2
	KernelArgs  []string      // added to the command line of the kernel
	AllowReboot bool          // a reboot or a panic boots again instead of ending QEMU
	Interactive bool          // the console is on stdin and stdout
	Dir         string        // for the console log, the command line and the socket; default a new one
	Accel       Accel         // default what Probe finds
	Log         *progress.Log // default lines on stderr
}

// Machine is a virtual machine that runs. Kill it or Shutdown it.
type Machine struct {
	cfg  Config
	qemu atomic.Pointer[process] // another one after a power cut
}

// Result is what a command in the guest did.
type Result struct {
	Stdout, Stderr string
	Status         int // exit status, 128 + the number of the signal that killed it
}

// Start starts QEMU and returns when the agent's port is connected, which is
// before the guest's kernel runs; WaitBoot waits for that. QEMU is killed
// when the program that started it dies.
func Start(ctx context.Context, cfg Config) (*Machine, error) {
	cfg, err := cfg.withDefaults(ctx)
	if err != nil {
		return nil, fmt.Errorf("start a vm: %w", err)
	}
	m := &Machine{cfg: cfg}
	if err := m.powerOn(ctx); err != nil {
		return nil, fmt.Errorf("start a vm: %w", err)
	}
	cfg.Log.Printf("%s: started with %s in %s", cfg.Name, cfg.Accel, cfg.Dir)
	return m, nil
}

// powerOn starts a QEMU and connects to the agent's port.
func (m *Machine) powerOn(ctx context.Context) error {
	p, err := launch(m.cfg)
	if err != nil {
		return err
	}
	m.qemu.Store(p)
	if err := p.connect(ctx, m.cfg.agentSocket()); err != nil {
		err = m.explain(err)
		m.Kill()
		return err
	}
	return nil
}

// agent is the host's end of the present QEMU's port.
func (m *Machine) agent() *client { return m.qemu.Load().agent }

// Dir is where the machine's console log and command line are.
func (m *Machine) Dir() string { return m.cfg.Dir }

// Console returns all that the guest wrote to its console so far.
func (m *Machine) Console() string {
	data, _ := os.ReadFile(m.cfg.consoleLog()) // not there until the first byte
	return string(data)
}

// explain adds to an error what the machine did last.
func (m *Machine) explain(err error) error {
	said, _ := os.ReadFile(m.cfg.stderrLog()) // nothing to add when it cannot be read
	return fmt.Errorf("%w; %s, logs are in %s; it said last:\n%s%s",
		err, m.qemu.Load().state(), m.cfg.Dir, said, lastWords(m.Console()))
}

// lastWords returns the end of a console log, and the panic if there was one,
// whose trace can be longer.
func lastWords(console string) string {
	end := lastLines(console, consoleTail)
	if _, panicked, ok := strings.Cut(console, "Kernel panic"); ok && !strings.Contains(end, "Kernel panic") {
		reason, _, _ := strings.Cut(panicked, "\n")
		return "Kernel panic" + strings.TrimRight(reason, "\r") + "\n" + end
	}
	return end
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\r\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Kill ends QEMU at once, as a power cut would, and waits for it.
func (m *Machine) Kill() { m.qemu.Load().kill() }
