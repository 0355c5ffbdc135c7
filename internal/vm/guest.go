// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/fdbridge/fdbridge/internal/vm/wire"
)

// WaitBoot waits until the guest's agent answers, for three minutes at most. It
// returns at once when it does already.
func (m *Machine) WaitBoot(ctx context.Context) error { return m.waitOther(ctx, "", "boot") }

// waitOther waits for the agent of a boot other than the one named.
func (m *Machine) waitOther(ctx context.Context, not, what string) error {
	ctx, cancel := context.WithTimeout(ctx, bootWait)
	defer cancel()
	begin := time.Now()
	hello, err := m.agent.greeted(ctx, not)
	if err != nil {
		return m.explain(fmt.Errorf("%s: no agent after %s: %w", what, since(begin), err))
	}
	m.cfg.Log.Printf("%s: %s took %s: Linux %s, boot id %s", m.cfg.Name, what, since(begin), hello.Release, hello.BootID)
	return nil
}

// BootID returns the boot id of the kernel that answered last; empty before
// the first boot.
func (m *Machine) BootID() string {
	m.agent.mu.Lock()
	defer m.agent.mu.Unlock()
	if m.agent.hello == nil {
		return ""
	}
	return m.agent.hello.BootID
}

// Command is a command to run in the guest.
type Command struct {
	Argv  []string
	Env   []string // added to PATH, HOME, LANG and TERM
	Stdin []byte
}

// Do runs a command as root in the guest, for as long as ctx allows and two
// minutes otherwise; then it is killed. A command that ran has no error, whatever
// its status.
func (m *Machine) Do(ctx context.Context, c Command) (Result, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, commandWait)
		defer cancel()
	}
	deadline, _ := ctx.Deadline()
	reply, err := m.agent.call(ctx, wire.Request{
		Argv: c.Argv, Env: c.Env, Stdin: c.Stdin, Timeout: time.Until(deadline),
	})
	r := Result{Stdout: string(reply.Stdout), Stderr: string(reply.Stderr), Status: reply.Status}
	if err != nil {
		return r, m.explain(fmt.Errorf("run %q in the guest: %w", c.Argv, err))
	}
	return r, nil
}

// Run runs argv in the guest as Do does, and makes a status other than 0 an
// error that carries what the command wrote.
func (m *Machine) Run(ctx context.Context, argv ...string) (Result, error) {
	r, err := m.Do(ctx, Command{Argv: argv})
	return r, errors.Join(err, r.err(fmt.Sprintf("%q", argv)))
}

// Shell runs a script with the guest's sh -eu, otherwise as Run.
func (m *Machine) Shell(ctx context.Context, script string) (Result, error) {
	r, err := m.Do(ctx, Command{Argv: []string{"sh", "-eu", "-c", script}})
	return r, errors.Join(err, r.err("script"))
}

func (r Result) err(what string) error {
	if r.Status == 0 {
		return nil
	}
	return fmt.Errorf("%s in the guest: status %d\n%s%s", what, r.Status, r.Stdout, r.Stderr)
}

// ReadFile returns the contents of a file in the guest, 16 MiB at most.
func (m *Machine) ReadFile(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandWait)
	defer cancel()
	reply, err := m.agent.call(ctx, wire.Request{Read: true, Path: path})
	if err != nil {
		return nil, fmt.Errorf("read %s in the guest: %w", path, err)
	}
	return reply.Data, nil
}

// WriteFile puts a file of 16 MiB at most, and the directories it needs, in
// the guest.
func (m *Machine) WriteFile(ctx context.Context, path string, data []byte, mode os.FileMode) error {
	if len(data) > wire.MaxBytes {
		return fmt.Errorf("write %s in the guest: more than %d bytes", path, wire.MaxBytes)
	}
	ctx, cancel := context.WithTimeout(ctx, commandWait)
	defer cancel()
	if _, err := m.agent.call(ctx, wire.Request{Path: path, Data: data, Mode: uint32(mode.Perm())}); err != nil {
		return fmt.Errorf("write %s in the guest: %w", path, err)
	}
	return nil
}

// GuestKernel is where the image has the kernel that Kexec loads.
const GuestKernel = "/boot/bzImage"

// Kexec loads the kernel of the image with kexec_file_load, lets systemd shut
// down into it, and waits for the agent of the next boot, for three
// minutes at most. The new kernel gets the command line of the old one.
func (m *Machine) Kexec(ctx context.Context) error {
	if _, err := m.Run(ctx, "kexec", "-s", "-l", GuestKernel, "--reuse-cmdline"); err != nil {
		return fmt.Errorf("kexec: load the kernel: %w", err)
	}
	return m.leave(ctx, "kexec")
}

// Reboot reboots the guest through the firmware and waits as Kexec does. It
// needs Config.AllowReboot.
func (m *Machine) Reboot(ctx context.Context) error {
	if !m.cfg.AllowReboot {
		return errors.New("reboot: the configuration does not allow it")
	}
	return m.leave(ctx, "reboot")
}

// leave has systemd go through the verb and waits for the next boot.
func (m *Machine) leave(ctx context.Context, verb string) error {
	bootID := m.BootID()
	if _, err := m.Run(ctx, "systemctl", verb, "--no-block"); err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	return m.waitOther(ctx, bootID, verb)
}

// Shutdown powers the guest off and waits for the end of QEMU, for a minute at
// most; after that QEMU is killed and it is an error.
func (m *Machine) Shutdown(ctx context.Context) error {
	begin := time.Now()
	if _, err := m.Run(ctx, "systemctl", "poweroff", "--no-block"); err != nil {
		m.Kill()
		return fmt.Errorf("power off: %w", err)
	}
	err := m.WaitEnd(ctx)
	if err == nil {
		m.cfg.Log.Printf("%s: power off took %s", m.cfg.Name, since(begin))
	}
	return err
}

// WaitQuit waits until the person at the console ends QEMU, without a bound
// but ctx, at whose end QEMU is killed.
func (m *Machine) WaitQuit(ctx context.Context) error {
	defer m.Kill()
	select {
	case <-m.exited:
		return m.status
	case <-ctx.Done():
		return ctx.Err()
	}
}

// WaitEnd waits for QEMU to end, for a minute at most; after that QEMU is
// killed and it is an error.
func (m *Machine) WaitEnd(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, endWait)
	defer cancel()
	defer m.Kill()
	select {
	case <-m.exited:
		if m.status != nil {
			return m.explain(errors.New("qemu failed"))
		}
		return nil
	case <-ctx.Done():
		return m.explain(fmt.Errorf("wait for the guest to power off: %w", ctx.Err()))
	}
}

func since(begin time.Time) time.Duration { return time.Since(begin).Round(10 * time.Millisecond) }
