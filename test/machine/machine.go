// SPDX-License-Identifier: Apache-2.0

// Package machine builds what the scenarios, the benchmark and the
// demonstration boot: the kernel, and disk images with programs of this module
// on them. What is in no image of theirs does not belong here.
package machine

import (
	"context"
	"maps"

	"github.com/fdbridge/fdbridge/internal/vm/build"
	"github.com/fdbridge/fdbridge/internal/vm/progress"
)

// GuestPrograms is where the programs of the scenarios are in the guest.
const GuestPrograms = "/usr/lib/fdbridge-test/"

// Where the images that have the files of Kernels have them.
const (
	NextKernel  = "/boot/bzImage-" + build.NextKernelSeries
	CloudKernel = "/boot/bzImage-cloud" // Debian's own
)

// Builder builds images of one Debian release around one kernel.
type Builder struct {
	Kernel  string // path of the kernel's image
	suite   string
	builder *build.Builder
}

// NewBuilder builds the kernel, unless it is in the cache, and says on log what
// it does. The images are of Debian trixie, with systemd 257.
func NewBuilder(ctx context.Context, log *progress.Log) (*Builder, error) {
	builder, err := build.New(log)
	if err != nil {
		return nil, err
	}
	kernel, err := builder.Kernel(ctx, build.KernelSeries)
	if err != nil {
		return nil, err
	}
	return &Builder{Kernel: kernel, suite: build.Trixie, builder: builder}, nil
}

// Bookworm returns a Builder of images of Debian bookworm with its backports, with
// systemd 254, the oldest that there is fdbridge for, around the same kernel.
func (b *Builder) Bookworm() *Builder {
	return &Builder{Kernel: b.Kernel, suite: build.Bookworm, builder: b.builder}
}

// Sid returns a Builder of images of Debian sid, with systemd 262 or later,
// around the same kernel.
func (b *Builder) Sid() *Builder {
	return &Builder{Kernel: b.Kernel, suite: build.Sid, builder: b.builder}
}

// Kernels builds the other kernels, unless they are in the cache, and returns
// them as files for Image.
func (b *Builder) Kernels(ctx context.Context) (files map[string]string, err error) {
	next, err := b.builder.Kernel(ctx, build.NextKernelSeries)
	if err != nil {
		return nil, err
	}
	cloud, err := b.builder.CloudKernel(ctx)
	return map[string]string{NextKernel: next, CloudKernel: cloud}, err
}

// Image returns the path of a disk image with the Debian package deb, none if
// empty, with programs, from path in the guest to Go package, and with files,
// from path in the guest to path on the host.
func (b *Builder) Image(ctx context.Context, deb string, programs, files map[string]string) (image string, err error) {
	all := maps.Clone(files)
	if all == nil {
		all = map[string]string{}
	}
	for guest, pkg := range programs {
		if all[guest], err = b.builder.Program(ctx, pkg); err != nil {
			return "", err
		}
	}
	return b.builder.Image(ctx, build.Image{Suite: b.suite, Kernel: b.Kernel, Deb: deb, Files: all})
}

// Programs are the programs of the scenarios, from path in the guest to package.
func Programs(names ...string) map[string]string {
	programs := map[string]string{}
	for _, name := range names {
		programs[GuestPrograms+name] = "github.com/fdbridge/fdbridge/test/" + name
	}
	return programs
}
