// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/fdbridge/fdbridge/kho"
)

// What is wrong with an image. Every error of Read that is neither an I/O error
// nor the context's matches one of these.
var (
	ErrNotKernel   = errors.New("not a Linux kernel for x86-64")
	ErrCompression = errors.New("the kernel is compressed in an unknown way")
	ErrTruncated   = errors.New("the image ends too early")
	ErrDamaged     = errors.New("the image is damaged")
	ErrTooLarge    = errors.New("the image is too large")
)

const (
	// MaxKernel is the largest kernel that is looked into, in bytes, compressed or
	// not. Distributions' kernels unpack to less than 100 MiB.
	MaxKernel = 512 << 20

	// maxCmdline bounds the command line in a unified kernel image, in bytes. The
	// kernel takes 2048 (COMMAND_LINE_SIZE of arch/x86/include/asm/setup.h).
	maxCmdline = 64 << 10
)

// Where facts of this package come from.
const (
	SourceImage      kho.Source = "kernel image"
	SourceProcConfig kho.Source = "/proc/config.gz"
)

// Kernel is what can be seen of a kernel from outside.
type Kernel struct {
	Release string // as uname -r has it
	Banner  string // as /proc/version has it; no two builds should share one
	Cmdline string // the command line in a unified kernel image; else empty
	// Memory is what kexec loads a bzImage into, in one piece, in bytes
	// (bzImage64_load in arch/x86/kernel/kexec-bzimage64.c, Linux 7.2); else 0.
	Memory int64

	// Config is not known when the kernel carries none (CONFIG_IKCONFIG).
	Config kho.Fact[Config]
	// Formats has for every Part the names of the layouts that the kernel knows,
	// such as "luo-v5", sorted. If it surely has none, the part is not built in, or
	// the compiler has hidden it.
	Formats map[Part]kho.Fact[[]string]
}

// Read looks into the kernel image of size bytes at r: a bzImage (boot protocol
// 2.08 or later), an ELF vmlinux, or a PE file with either in its section .linux,
// as systemd's ukify makes it; all for x86-64. An image may have any size, but the
// kernel in it MaxKernel at most. It is not held in memory, but a decompressor can
// need some 150 MiB to look back on.
//
// Read takes seconds for a distribution's kernel, and fails with the context's error
// when that is done.
func Read(ctx context.Context, r io.ReaderAt, size int64) (*Kernel, error) {
	kernel, err := readImage(ctx, io.NewSectionReader(r, 0, size))
	if err != nil {
		return nil, fmt.Errorf("read kernel image: %w", err)
	}
	return kernel, nil
}

func readImage(ctx context.Context, img *io.SectionReader) (*Kernel, error) {
	unified, err := isUnified(img)
	if err != nil {
		return nil, err
	}
	if !unified {
		return readKernel(ctx, img)
	}
	linux, cmdline, err := unifiedSections(img)
	if err != nil {
		return nil, err
	}
	kernel, err := readKernel(ctx, linux)
	if err != nil {
		return nil, fmt.Errorf("section .linux: %w", err)
	}
	kernel.Cmdline = cmdline
	return kernel, nil
}

// readKernel reads a bzImage or a vmlinux.
func readKernel(ctx context.Context, img *io.SectionReader) (*Kernel, error) {
	switch bz, err := isBzImage(img); {
	case err != nil:
		return nil, err
	case bz:
		return readBzImage(ctx, img)
	}
	return inspect(&source{ctx: ctx, r: img}, img.Size())
}

// bytesAt returns n bytes of an image; ErrTruncated if it has less.
func bytesAt(img *io.SectionReader, offset, n int64) ([]byte, error) {
	part, err := sectionAt(img, offset, n)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	_, err = io.ReadFull(part, b)
	return b, err
}

// sectionAt returns n bytes of an image from offset on; ErrTruncated if it has
// less.
func sectionAt(img *io.SectionReader, offset, n int64) (*io.SectionReader, error) {
	if offset < 0 || n < 0 || offset > img.Size() || n > img.Size()-offset {
		return nil, fmt.Errorf("%w: it has %d bytes, and %d from %d on are needed", ErrTruncated, img.Size(), n, offset)
	}
	return io.NewSectionReader(img, offset, n), nil
}
