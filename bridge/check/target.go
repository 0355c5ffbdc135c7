// SPDX-License-Identifier: Apache-2.0

package check

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"

	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/kho/image"
)

// Target is a kernel that is to be booted, though it may not be loaded yet.
type Target struct {
	Name  string // the path of its image
	Image io.ReaderAt
	Size  int64 // of the image, in bytes
	// Initrd is the size of the initrd that is loaded with it, in bytes; 0 for none.
	Initrd int64
	// Cmdline is the command line that it will be given; nil for the one that
	// a unified kernel image has.
	Cmdline *string
}

// target looks at the kernel that would be booted.
func (c *Checker) target(ctx context.Context, found *Result, target *Target) (err error) {
	found.Kernel.Loaded, err = kho.ReadLoaded(c.Root)
	if errors.Is(err, fs.ErrNotExist) {
		found.add(Impossible, "Boot a kernel with CONFIG_KEXEC_FILE=y.", "this kernel has no kexec")
		return nil
	}
	if err != nil {
		return err
	}
	scratch := kho.ReadScratch(c.Root)
	if scratch.Known {
		found.Memory.Scratch = &scratch.Value
	}
	switch {
	case target != nil:
		return c.named(ctx, found, target)
	case !found.Kernel.Loaded:
		found.add(Impossible, "Load one with fdbridgectl kexec, or kexec --kexec-file-syscall --load.",
			"no kernel is loaded for kexec")
	default:
		found.add(Carried, "Name its image with --kernel, or load it with fdbridgectl kexec.",
			"which kernel is loaded, with which command line, and whether by kexec_file_load, "+
				"without which nothing is carried, cannot be told")
	}
	return nil
}

// named looks at an image.
func (c *Checker) named(ctx context.Context, found *Result, target *Target) error {
	found.Kernel.Image = target.Name
	kernel, err := image.Read(ctx, target.Image, target.Size)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		found.add(Impossible, "Name a bzImage.", "%s: %v", target.Name, err)
		return nil
	}
	running, err := image.Running(ctx, c.Root)
	if err != nil {
		return err
	}
	found.Kernel.Release = kernel.Release
	found.readable(kernel.CanRead(running), target.Name)
	if found.Kernel.Cmdline = target.Cmdline; target.Cmdline == nil && kernel.Cmdline != "" {
		found.Kernel.Cmdline = &kernel.Cmdline
	}
	found.switches(kernel)
	found.fits("the kernel", cmp.Or(kernel.Memory, target.Size))
	found.fits("the initrd", target.Initrd)
	return nil
}

// fits compares what is to be loaded with the memory that there is for that.
func (r *Result) fits(what string, size int64) {
	if scratch := r.Memory.Scratch; scratch != nil && size > *scratch {
		r.add(Carried, "Boot the running kernel with a larger kho_scratch= if it cannot be loaded.",
			"%s takes %d MiB, and no area that kexec loads into has more than %d MiB", what, size>>20, *scratch>>20)
	}
}

// readable adds why the next kernel cannot read what this one hands over. It
// panics while it boots then, so that what cannot be told counts, too.
func (r *Result) readable(verdict image.Verdict, name string) {
	outcome, remedy := Impossible, "Name a kernel that is built with live update, and reads the same formats."
	if verdict.Answer == image.Unknown {
		outcome, remedy = Lossy, "A kernel that cannot read what is handed over panics: make sure that this one can."
	}
	for _, reason := range verdict.Reasons {
		r.add(outcome, remedy, "%s: %s", name, reason)
	}
}

// switches looks at the next kernel's command line.
func (r *Result) switches(kernel *image.Kernel) {
	remedy, line, cmdline := "Give it kho=on liveupdate=on.", "the next kernel's command line", ""
	switch given := r.Kernel.Cmdline; {
	case kernel.Overrides():
		remedy = "Name a kernel that is built with them in CONFIG_CMDLINE, or without CONFIG_CMDLINE_OVERRIDE."
		line = "the next kernel goes by nothing but the command line that is built in (CONFIG_CMDLINE_OVERRIDE=y), which"
	case given == nil:
		r.add(Carried, remedy, "with which command line %s is booted cannot be told", r.Kernel.Image)
		return
	default:
		cmdline = *given
	}
	if missing := kho.MissingSwitches(kernel.Switches(cmdline)); len(missing) > 0 {
		r.add(Impossible, remedy, "%s has no %s", line, strings.Join(missing, " and no "))
	}
}
