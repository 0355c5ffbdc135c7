// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/fdbridge/fdbridge/internal/vm/cache"
)

// programsKept bounds the programs in the cache, of some 3 MB each.
const programsKept = 32

// Program links a main package of the module and returns the path of what comes out,
// which is static: guests have other libraries. It does so once for a Builder: linking
// takes its time though nothing has changed, and every image has the same programs.
func (b *Builder) Program(ctx context.Context, pkg string) (path string, err error) {
	b.linking.Lock()
	defer b.linking.Unlock()
	if path = b.linked[pkg]; path != "" {
		return path, nil
	}
	if path, err = b.link(ctx, pkg); err != nil {
		return "", fmt.Errorf("build %s: %w", pkg, err)
	}
	if b.linked == nil {
		b.linked = map[string]string{}
	}
	b.linked[pkg] = path
	return path, nil
}

// link puts a program into the cache, by its contents: only the go command knows all
// that it is made from.
func (b *Builder) link(ctx context.Context, pkg string) (path string, err error) {
	unlock, err := b.Cache.Lock(ctx, "link")
	if err != nil {
		return "", err
	}
	defer unlock()
	work, name := filepath.Join(b.Cache.Dir, "work", "link"), filepath.Base(pkg)
	if err := os.MkdirAll(work, 0o755); err != nil {
		return "", err
	}
	made := filepath.Join(work, name)
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", made, pkg)
	cmd.Dir, cmd.Env = b.Module, append(os.Environ(), "CGO_ENABLED=0")
	if err := b.run(ctx, made+".log", cmd); err != nil {
		return "", err
	}
	sum, err := cache.FileKey(made)
	if err != nil {
		return "", err
	}
	dir, err := b.Cache.Ensure(ctx, "program", name+"-"+cache.Key(sum), func(out, _ string) error {
		return os.Rename(made, filepath.Join(out, name))
	})
	return filepath.Join(dir, name), errors.Join(err, b.Cache.Prune("program", programsKept))
}
