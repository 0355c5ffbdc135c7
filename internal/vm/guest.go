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
func (m *Machine) WaitBoot(ctx context.Context) error {
	return m.waitBoot(ctx, "boot", "", bootWait)
}

// waitBoot waits for the agent of a boot other than the one named.
func (m *Machine) waitBoot(ctx context.Context, what, not string, bound time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	begin := time.Now()
	hello, err := m.agent().greeted(ctx, not)
	if err != nil {
		return m.explain(fmt.Errorf("%s: no agent after %s: %w", what, since(begin), err))
	}
	m.cfg.Log.Printf("%s: %s took %s: Linux %s, boot id %s", m.cfg.Name, what, since(begin), hello.Release, hello.BootID)
	return nil
}

// BootID returns the boot id of the kernel that answered last; empty before
// the first boot.
func (m *Machine) BootID() string { return m.agent().bootID() }

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
	reply, err := m.agent().call(ctx, wire.Request{
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
	reply, err := m.agent().call(ctx, wire.Request{Read: true, Path: path})
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
	if _, err := m.agent().call(ctx, wire.Request{Path: path, Data: data, Mode: uint32(mode.Perm())}); err != nil {
		return fmt.Errorf("write %s in the guest: %w", path, err)
	}
	return nil
}
