// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	// cloudPackage depends on the newest kernel of its kind.
	cloudPackage = "linux-image-cloud-amd64"
	// cloudWait bounds the download and the unpacking of some 13 MB.
	cloudWait = 5 * time.Minute
	// cloudRecipe counts the changes to how it is unpacked.
	cloudRecipe = "1"
)

// CloudKernel returns the path of the bzImage of Debian's own kernel for
// cloud machines, which has CONFIG_KEXEC_HANDOVER off (seen in 7.2). It is
// unpacked from the newest package there is, and never installed. When the mirror
// does not answer, one unpacked before does too.
func (b *Builder) CloudKernel(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, cloudWait)
	defer cancel()
	dir, err := b.fromNewest(ctx, "cloud-kernel", cloudRecipe, b.newestCloud, func(p debPackage, out, work string) error {
		return b.takeKernel(ctx, p, out, work)
	})
	if err != nil {
		return "", fmt.Errorf("take Debian's cloud kernel: %w", err)
	}
	return filepath.Join(dir, "bzImage"), nil
}

// newestCloud finds the package with the kernel, which cloudPackage depends on
// through another one.
func (b *Builder) newestCloud(ctx context.Context) (debPackage, error) {
	p, err := b.newest(ctx, cloudPackage)
	for _, prefix := range []string{"linux-image-", "linux-binary-"} {
		if err == nil {
			p, err = b.dependency(ctx, p, prefix)
		}
	}
	return p, err
}

// dependency finds the package with that prefix that p depends on.
func (b *Builder) dependency(ctx context.Context, p debPackage, prefix string) (debPackage, error) {
	for dependency := range strings.SplitSeq(p.depends, ", ") {
		if name, _, _ := strings.Cut(dependency, " "); strings.HasPrefix(name, prefix) {
			return b.newest(ctx, name)
		}
	}
	return debPackage{}, fmt.Errorf("package %s depends on no %s*: %q", p.name, prefix, p.depends)
}

// takeKernel puts the kernel of a package into out.
func (b *Builder) takeKernel(ctx context.Context, p debPackage, out, work string) error {
	deb, err := b.downloadAnew(ctx, p, work)
	if err != nil {
		return err
	}
	const script = `set -eu; dpkg-deb --fsys-tarfile "$1" | tar -xO --wildcards "./usr/lib/modules/*/vmlinuz" > "$2"; test -s "$2"`
	cmd := exec.Command("sh", "-c", script, "sh", deb, filepath.Join(out, "bzImage"))
	return b.run(ctx, filepath.Join(work, "unpack.log"), cmd)
}
