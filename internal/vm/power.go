// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/fdbridge/fdbridge/internal/vm/wire"
)

// leavePoll is how often Leave asks whether the guest has come back.
const leavePoll = time.Second

// GuestKernel is where every image has the kernel that Kexec loads.
const GuestKernel = "/boot/bzImage"

// Kexec loads GuestKernel with kexec_file_load, lets systemd shut down into it, and
// waits for the agent of the next boot as Leave does. The new kernel gets the command
// line of the old one.
func (m *Machine) Kexec(ctx context.Context) error {
	if err := m.load(ctx); err != nil {
		return err
	}
	return m.mustLeave(ctx, "kexec")
}

// KexecWithin is Kexec for who measures what it takes: the bound is the caller's, and the
// guest is asked nothing meanwhile, so that an update that is called off is noticed only
// when the bound is over.
func (m *Machine) KexecWithin(ctx context.Context, bound time.Duration) error {
	if err := m.load(ctx); err != nil {
		return err
	}
	bootID := m.BootID()
	if _, err := m.Run(ctx, "systemctl", "kexec", "--no-block"); err != nil && !errors.Is(err, errGone) {
		return fmt.Errorf("kexec: %w", err)
	}
	return m.waitBoot(ctx, "kexec", bootID, bound)
}

// load loads GuestKernel.
func (m *Machine) load(ctx context.Context) error {
	if _, err := m.Run(ctx, "kexec", "-s", "-l", GuestKernel, "--reuse-cmdline"); err != nil {
		return fmt.Errorf("kexec: load the kernel: %w", err)
	}
	return nil
}

// Reboot reboots the guest through the firmware and waits as Kexec does. It
// needs Config.AllowReboot.
func (m *Machine) Reboot(ctx context.Context) error {
	if !m.cfg.AllowReboot {
		return errors.New("reboot: the configuration does not allow it")
	}
	return m.mustLeave(ctx, "reboot")
}

// mustLeave has systemd go through the verb to another boot.
func (m *Machine) mustLeave(ctx context.Context, verb string) error {
	left, err := m.Leave(ctx, "systemctl", verb, "--no-block")
	if err == nil && !left {
		err = m.explain(errors.New("the guest went back to default.target in the same kernel"))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	return nil
}

// Leave runs a command in the guest that asks for another boot, such as
// "systemctl kexec", and waits for what comes of it, for three minutes at most:
// left is true when the agent of another boot answers, and false when the
// shutdown was called off and the guest, in the same boot, has reached
// default.target again; that is noticed only if it had reached it before. A
// command that fails is an error, and nothing is waited for; one that the
// shutdown cuts off is not.
func (m *Machine) Leave(ctx context.Context, argv ...string) (left bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, bootWait)
	defer cancel()
	bootID, begin := m.BootID(), time.Now()
	reached, err := m.Shell(ctx, targetStart)
	if err != nil {
		return false, err
	}
	if _, err := m.Run(ctx, argv...); err != nil && !errors.Is(err, errGone) {
		return false, err
	}
	for {
		hello, err := m.greetedSoon(ctx, bootID)
		switch {
		case err == nil:
			m.cfg.Log.Printf("%s: %s took %s: Linux %s, boot id %s", m.cfg.Name, argv, since(begin), hello.Release, hello.BootID)
			return true, nil
		case ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded):
			return false, m.explain(fmt.Errorf("%q: no other boot after %s: %w", argv, since(begin), err))
		case m.cameBack(ctx, reached.Stdout):
			m.cfg.Log.Printf("%s: %s was called off after %s", m.cfg.Name, argv, since(begin))
			return false, nil
		}
	}
}

// greetedSoon waits for the agent of a boot other than the one named, for
// leavePoll at most.
func (m *Machine) greetedSoon(ctx context.Context, not string) (wire.Hello, error) {
	ctx, cancel := context.WithTimeout(ctx, leavePoll)
	defer cancel()
	return m.agent().greeted(ctx, not)
}

// targetStart prints what names a start of default.target, nothing if it was
// not started yet. The time stamp of its last stop would not tell starts apart:
// systemd forgets a target that has stopped.
const targetStart = "systemctl show -P InvocationID default.target"

// cameBack asks whether default.target is active by another start than the one
// named. No answer is a no: PID 1 may be gone already.
func (m *Machine) cameBack(ctx context.Context, reached string) bool {
	const script = `systemctl -q is-active default.target && test -n "$1" && test "$1" != "$(` + targetStart + `)"`
	reply, err := m.agent().call(ctx, wire.Request{
		Argv: []string{"sh", "-c", script, "sh", strings.TrimSpace(reached)}, Timeout: commandWait,
	})
	return err == nil && reply.Status == 0
}

// PowerCut ends QEMU at once, starts another one on the same disk, and waits
// for the agent as WaitBoot does. What the guest had not yet written to its
// disk is lost. It needs Config.Disk.
func (m *Machine) PowerCut(ctx context.Context) error {
	if m.cfg.Disk == "" {
		return errors.New("power cut: the configuration keeps no disk")
	}
	m.Kill()
	if err := m.powerOn(ctx); err != nil {
		return fmt.Errorf("power cut: %w", err)
	}
	return m.waitBoot(ctx, "boot after a power cut", "", bootWait)
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
	p := m.qemu.Load()
	select {
	case <-p.exited:
		return p.status
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
	p := m.qemu.Load()
	select {
	case <-p.exited:
		if p.status != nil {
			return m.explain(errors.New("qemu failed"))
		}
		return nil
	case <-ctx.Done():
		return m.explain(fmt.Errorf("wait for the guest to power off: %w", ctx.Err()))
	}
}

func since(begin time.Time) time.Duration { return time.Since(begin).Round(10 * time.Millisecond) }
