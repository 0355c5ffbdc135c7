// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/fdbridge/fdbridge/internal/vm/cache"
)

// The kernels that the tests boot: Debian's packages linux-source-SERIES.
const (
	KernelSeries     = "7.2"
	NextKernelSeries = "7.3"
)

// kernelWait bounds a build, or the wait for somebody else's.
const kernelWait = 40 * time.Minute

// kernelRecipe counts the changes to how a kernel is built.
const kernelRecipe = "1"

// Kernel returns the path of the bzImage of a series, built with the settings
// in contrib/vm/kernel.config from the newest package there is; beside it is
// its .config. When the mirror does not answer, a kernel built before from
// an older package does too.
func (b *Builder) Kernel(ctx context.Context, series string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, kernelWait)
	defer cancel()
	settings, err := b.lines("kernel.config")
	if err != nil {
		return "", err
	}
	find := func(ctx context.Context) (debPackage, error) { return b.newest(ctx, "linux-source-"+series) }
	recipe := series + "-" + cache.Key(append(settings, kernelRecipe)...)
	dir, err := b.fromNewest(ctx, "kernel", recipe, find, func(source debPackage, out, work string) error {
		k := kernelBuild{Builder: b, source: source, settings: settings, out: out, work: work}
		return k.build(ctx)
	})
	if err != nil {
		return "", fmt.Errorf("build kernel %s: %w", series, err)
	}
	return filepath.Join(dir, "bzImage"), nil
}

// kernelBuild is one attempt, which goes on where an interrupted one with the
// same source stopped.
type kernelBuild struct {
	*Builder
	source    debPackage
	settings  []string
	out, work string
}

func (k kernelBuild) build(ctx context.Context) error {
	tree := filepath.Join(k.work, k.source.name+"_"+k.source.version)
	if _, err := os.Stat(tree); err != nil {
		if err := k.unpack(ctx, tree); err != nil {
			return err
		}
	}
	if err := k.configure(ctx, tree); err != nil {
		return err
	}
	k.Log.Printf("kernel %s: building, some five minutes on two cores", k.source.version)
	jobs := fmt.Sprintf("-j%d", runtime.NumCPU())
	if err := k.run(ctx, k.log("make"), exec.Command("make", "-C", tree, jobs, "bzImage")); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(tree, "arch/x86/boot/bzImage"), filepath.Join(k.out, "bzImage")); err != nil {
		return err
	}
	return os.Rename(filepath.Join(tree, ".config"), filepath.Join(k.out, ".config"))
}

// unpack leaves the source tree under its name only when it is complete.
func (k kernelBuild) unpack(ctx context.Context, tree string) error {
	deb, err := k.downloadAnew(ctx, k.source, k.work)
	if err != nil {
		return err
	}
	k.Log.Printf("kernel %s: unpacking", k.source.version)
	part := tree + ".part"
	if err := os.Mkdir(part, 0o755); err != nil {
		return err
	}
	// The package holds one tarball, which holds one directory.
	const script = `set -eu; dpkg-deb --fsys-tarfile "$1" |
		tar -xO --wildcards "./usr/src/$2.tar.xz" | tar -xJ --strip-components=1 -C "$3"
		test -e "$3/Makefile"`
	cmd := exec.Command("sh", "-c", script, "sh", deb, k.source.name, part)
	if err := k.run(ctx, k.log("unpack"), cmd); err != nil {
		return err
	}
	return os.Rename(part, tree)
}

func (k kernelBuild) configure(ctx context.Context, tree string) error {
	wanted := filepath.Join(k.work, "wanted.config")
	if err := os.WriteFile(wanted, []byte(strings.Join(k.settings, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	cmd := exec.Command("make", "-C", tree, "allnoconfig")
	cmd.Env = append(os.Environ(), "KCONFIG_ALLCONFIG="+wanted)
	if err := k.run(ctx, k.log("config"), cmd); err != nil {
		return err
	}
	got, err := os.ReadFile(filepath.Join(tree, ".config"))
	if err != nil {
		return err
	}
	return checkConfig(k.settings, string(got))
}

func (k kernelBuild) log(step string) string { return filepath.Join(k.work, step+".log") }

// checkConfig names every setting that is not in the configuration that came
// out: kconfig drops one silently when what it depends on is missing.
func checkConfig(settings []string, config string) error {
	got := map[string]string{}
	for line := range strings.Lines(config) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			got[name] = value
		}
	}
	var dropped []string
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		if value == "n" {
			value = ""
		}
		if got[name] != value {
			dropped = append(dropped, s)
		}
	}
	if len(dropped) > 0 {
		return fmt.Errorf("kconfig did not take these settings of kernel.config: %s", strings.Join(dropped, " "))
	}
	return nil
}
