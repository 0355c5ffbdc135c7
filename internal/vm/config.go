// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/fdbridge/fdbridge/internal/vm/cache"
	"github.com/fdbridge/fdbridge/internal/vm/progress"
)

// runsKept bounds the directories of past runs in the cache.
const runsKept = 30

// withDefaults completes the Config, makes its directory and its disk, and
// probes for KVM.
func (c Config) withDefaults(ctx context.Context) (Config, error) {
	if c.Kernel == "" || c.Image == "" {
		return c, errors.New("the configuration names no kernel or no image")
	}
	if c.Name == "" {
		c.Name = "vm"
	}
	if c.Memory == 0 {
		c.Memory = 2048
	}
	if c.CPUs == 0 {
		c.CPUs = 2
	}
	if c.Log == nil {
		c.Log = progress.New(os.Stderr)
	}
	if c.Accel == "" {
		c.Accel = Probe(ctx, c.Kernel, c.Log)
	}
	if err := c.makeDir(); err != nil {
		return c, err
	}
	if c.Disk != "" {
		return c, makeDisk(ctx, c.Disk, c.Image)
	}
	return c, nil
}

func (c *Config) makeDir() error {
	if c.Dir != "" {
		return os.MkdirAll(c.Dir, 0o755)
	}
	store, err := cache.Default()
	if err != nil {
		return err
	}
	runs := filepath.Join(store.Dir, "runs")
	if err := errors.Join(os.MkdirAll(runs, 0o755), store.Prune("runs", runsKept)); err != nil {
		return err
	}
	name := strings.Map(func(r rune) rune {
		if r == '/' || r == ',' || r == '*' || r == ' ' {
			return '_'
		}
		return r
	}, c.Name)
	if c.Dir, err = os.MkdirTemp(runs, name[:min(len(name), 40)]+"-"); err != nil {
		return err
	}
	return cache.Use(c.Dir)
}

// makeDisk copies the image, with its holes, unless the disk is there.
func makeDisk(ctx context.Context, disk, image string) error {
	if _, err := os.Stat(disk); err == nil {
		return nil
	}
	tmp := disk + ".tmp"
	out, err := exec.CommandContext(ctx, "cp", "--sparse=always", "--reflink=auto", image, tmp).CombinedOutput()
	if err != nil {
		return fmt.Errorf("copy the image to %s: %w: %s", disk, err, out)
	}
	return os.Rename(tmp, disk)
}
