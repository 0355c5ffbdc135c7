// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ReadCommandLine returns the running kernel's command line.
func ReadCommandLine(root fs.FS) (string, error) {
	data, err := readSmallFile(root, "proc/cmdline")
	if err != nil {
		return "", fmt.Errorf("read the kernel command line: %w", err)
	}
	return strings.TrimSuffix(string(data), "\n"), nil
}

// MissingSwitches returns what a kernel command line lacks for a live update:
// "kho=on", "liveupdate=on", both or none. What a kernel's configuration says besides
// is for its image to tell: image.Kernel.Switches.
func MissingSwitches(cmdline string) []string {
	var missing []string
	for _, name := range []string{"kho", "liveupdate"} {
		if on, _ := parseSwitch(cmdline, name); !on {
			missing = append(missing, name+"=on")
		}
	}
	return missing
}

// ReadLoaded tells whether a kernel is loaded for kexec, from
// /sys/kernel/kexec_loaded below root. Neither how it was loaded nor its command
// line can be seen from outside (kernel/kexec_core.c, Linux 7.2). The error is
// fs.ErrNotExist when the kernel has no kexec.
func ReadLoaded(root fs.FS) (bool, error) {
	data, err := readSmallFile(root, "sys/kernel/kexec_loaded")
	if err != nil {
		return false, fmt.Errorf("see whether a kernel is loaded for kexec: %w", err)
	}
	return strings.TrimSpace(string(data)) == "1", nil
}

// LoadKernel loads a kernel for kexec in the one way that hands memory over,
// kexec_file_load(2), in place of what is loaded already. The kernel is what this
// architecture loads, a bzImage on x86-64; initrd may be nil. The files stay the
// caller's. It needs CAP_SYS_BOOT.
func LoadKernel(kernel, initrd *os.File, cmdline string) error {
	flags, second := unix.KEXEC_FILE_NO_INITRAMFS, -1
	if initrd != nil {
		flags, second = 0, int(initrd.Fd())
	}
	err := unix.KexecFileLoad(int(kernel.Fd()), second, cmdline, flags)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("load %s: %w", kernel.Name(), os.NewSyscallError("kexec_file_load", err))
	if why := whyNotLoaded(err); why != "" {
		err = fmt.Errorf("%w: %s", err, why)
	}
	return err
}

// whyNotLoaded says what an error of kexec_file_load means (kernel/kexec_file.c
// and arch/x86/kernel/kexec-bzimage64.c, Linux 7.2).
func whyNotLoaded(err error) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return "only root may, and not when kernel.kexec_load_disabled is set"
	case errors.Is(err, unix.ENOEXEC):
		return "it is no bzImage; of a unified kernel image, give the kernel and the initrd in it"
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return "it does not fit into the scratch memory; kho_scratch= on the running kernel's command line sets its size"
	case errors.Is(err, unix.EBUSY):
		return "another process is loading a kernel"
	case errors.Is(err, unix.ENOKEY), errors.Is(err, unix.EKEYREJECTED), errors.Is(err, unix.ENODATA):
		return "it is not signed with a key that this kernel trusts"
	case errors.Is(err, unix.ENOSYS):
		return "the running kernel was built without CONFIG_KEXEC_FILE"
	}
	return ""
}
