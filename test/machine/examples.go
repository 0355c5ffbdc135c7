// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Examples builds the examples below root, that of the project, which are not written
// in Go, as strictly as the compiler can, and puts all their files into a directory. They
// are static: the guest has another C library.
func Examples(ctx context.Context, root, dir string) error {
	files, err := filepath.Glob(filepath.Join(root, "contrib/examples/*session/*"))
	if err == nil && len(files) == 0 {
		err = errors.New("there are no examples")
	}
	for _, file := range files {
		name := filepath.Base(file)
		if source, ok := strings.CutSuffix(name, ".c"); ok {
			cmd := exec.CommandContext(ctx, "gcc", "-static", "-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-o", filepath.Join(dir, source), file)
			if out, failed := cmd.CombinedOutput(); failed != nil {
				err = errors.Join(err, fmt.Errorf("build %s: %w: %s", file, failed, out))
			}
			continue
		}
		data, failed := os.ReadFile(file)
		if failed == nil {
			failed = os.WriteFile(filepath.Join(dir, name), data, 0o644)
		}
		err = errors.Join(err, failed)
	}
	return err
}
