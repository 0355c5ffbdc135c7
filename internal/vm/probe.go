// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/fdbridge/fdbridge/internal/vm/cache"
	"github.com/fdbridge/fdbridge/internal/vm/progress"
)

// probeWait bounds the probe boot. With a KVM that works it takes a second or two.
const probeWait = 20 * time.Second

// Probe says how to run the guest. KVM is the answer only when the kernel has
// booted with it as far as its panic for want of a root file system: /dev/kvm
// may exist and open, and its guest still hang in the firmware. The answer is
// kept until the host boots again.
func Probe(ctx context.Context, kernel string, log *progress.Log) Accel {
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return TCG
	}
	file := probeFile()
	if known, err := os.ReadFile(file); err == nil {
		return Accel(known)
	}
	log.Printf("probing KVM, for %s at most", probeWait)
	accel := TCG
	if err := probeKVM(ctx, kernel); err == nil {
		accel = KVM
	} else {
		log.Printf("KVM is not usable, taking TCG: %v", err)
	}
	if ctx.Err() == nil && os.MkdirAll(filepath.Dir(file), 0o755) == nil {
		_ = os.WriteFile(file, []byte(accel), 0o644) // costs another probe when it fails
	}
	return accel
}

// probeFile names the answer for this boot of the host.
func probeFile() string {
	store, err := cache.Default()
	if err != nil {
		return ""
	}
	bootID, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // always there on Linux
	return filepath.Join(store.Dir, "accel", strings.TrimSpace(string(bootID)))
}

func probeKVM(ctx context.Context, kernel string) error {
	ctx, cancel := context.WithTimeout(ctx, probeWait)
	defer cancel()
	out, err := exec.CommandContext(ctx, qemuProgram, probeArgs(kernel)...).CombinedOutput()
	switch {
	case ctx.Err() != nil:
		return errors.New("the probe boot did not end")
	case err != nil:
		return errors.Join(err, errors.New(lastLines(string(out), 1)))
	case !strings.Contains(string(out), "Kernel panic"):
		return errors.New("the probe boot showed no kernel")
	}
	return nil
}

func probeArgs(kernel string) []string {
	return append(KVM.args(),
		"-nodefaults", "-display", "none", "-m", "512", "-no-reboot", "-serial", "stdio",
		"-kernel", kernel, "-append", "console=ttyS0 panic=-1")
}
