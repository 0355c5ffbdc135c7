// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// ErrRefused says that a kexec was not begun because of what a check found.
var ErrRefused = errors.New("the kexec is refused")

// Kexec replaces the kernel if nothing is lost by it.
type Kexec struct {
	Check func(ctx context.Context, target *Target) (*Result, error) // a Checker's Run
	// Load loads a kernel; kho.LoadKernel does.
	Load func(kernel, initrd *os.File, cmdline string) error
	// Prepare has preserved what can be while services run. That it could not is no
	// reason not to go on, and for Prepare to tell.
	Prepare func(ctx context.Context)
	// Start has the service manager stop everything and boot the kernel that
	// is loaded.
	Start func() error
	// Undo undoes what Prepare has done, or is about to do, and tells when it cannot.
	Undo func(ctx context.Context)
}

// Options say what to boot.
type Options struct {
	Kernel  string // path of the image; empty: the kernel that is loaded
	Initrd  string // path; empty: none
	Cmdline string // of the kernel
	Force   bool   // begin whatever the check says
}

// Run checks, loads the kernel, prepares, and starts. report is called with what the check
// found before anything is changed. The error is ErrRefused if the check is why
// nothing was done. When starting fails, or ctx ends before, what was prepared is undone;
// a kernel that was loaded stays loaded.
func (k *Kexec) Run(ctx context.Context, o Options, report func(*Result) error) error {
	if o.Kernel == "" {
		if err := k.check(ctx, nil, o.Force, report); err != nil {
			return err
		}
		return k.begin(ctx)
	}
	kernel, err := os.Open(o.Kernel)
	if err != nil {
		return err
	}
	defer kernel.Close()
	info, err := kernel.Stat()
	if err != nil {
		return err
	}
	var initrd *os.File
	if o.Initrd != "" {
		if initrd, err = os.Open(o.Initrd); err != nil {
			return err
		}
		defer initrd.Close()
	}
	target := &Target{Name: o.Kernel, Image: kernel, Size: info.Size(), Cmdline: &o.Cmdline}
	if initrd != nil {
		info, err := initrd.Stat()
		if err != nil {
			return err
		}
		target.Initrd = info.Size()
	}
	if err := k.check(ctx, target, o.Force, report); err != nil {
		return err
	}
	if err := k.Load(kernel, initrd, o.Cmdline); err != nil {
		return err
	}
	return k.begin(ctx)
}

// begin prepares and starts; of what is not started nothing stays prepared.
func (k *Kexec) begin(ctx context.Context) error {
	if ctx.Err() == nil {
		k.Prepare(ctx)
	}
	if ctx.Err() != nil {
		k.Undo(context.WithoutCancel(ctx))
		return fmt.Errorf("nothing was begun: %w", context.Cause(ctx))
	}
	err := k.Start()
	if err != nil {
		k.Undo(context.WithoutCancel(ctx))
	}
	return err
}

func (k *Kexec) check(ctx context.Context, target *Target, force bool, report func(*Result) error) error {
	found, err := k.Check(ctx, target)
	if err != nil {
		return err
	}
	if err := report(found); err != nil {
		return err
	}
	if found.Outcome != Carried && !force {
		return ErrRefused
	}
	return nil
}
