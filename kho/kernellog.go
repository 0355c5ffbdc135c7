// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxKernelLog bounds the bytes of kernel log that are read. A kernel's log buffer
// has 128 KiB to some MiB.
const maxKernelLog = 16 << 20

// KernelLog returns the kernel's log with the level in front of every line, as
// syslog(2) gives it. It needs CAP_SYSLOG where kernel.dmesg_restrict is set. It
// does not block.
func KernelLog() ([]byte, error) {
	size, err := unix.Klogctl(unix.SYSLOG_ACTION_SIZE_BUFFER, nil)
	if err != nil {
		return nil, os.NewSyscallError("syslog(SIZE_BUFFER)", err)
	}
	// Levels and times are not in the buffer, and what does not fit is left out
	// at the front, where the lines stand that are wanted.
	log := make([]byte, min(2*size, maxKernelLog))
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, log)
	if err != nil {
		return nil, os.NewSyscallError("syslog(READ_ALL)", err)
	}
	return log[:n], nil
}

// logFacts is what the kernel log says of a handover.
type logFacts struct {
	whole      bool   // it reaches back to the boot: what it lacks did not happen
	handover   bool   // something was handed over to this kernel
	number     uint64 // live-update number; 0: not said
	previous   string // release of the kernel that handed over; "": not said
	khoUnknown bool   // this kernel does not know the parameter kho
}

// parseLog reads the lines that linux_banner (init/version-timestamp.c),
// kho_populate and kho_in_kexec_metadata (kernel/liveupdate/kexec_handover.c),
// luo_early_startup (kernel/liveupdate/luo_core.c) and print_unknown_bootoptions
// (init/main.c) write (Linux 7.2).
func parseLog(log string) logFacts {
	var facts logFacts
	for line := range strings.Lines(log) {
		if msg, ok := kernelMessage(strings.TrimSuffix(line, "\n")); ok {
			facts.read(msg)
		}
	}
	return facts
}

func (f *logFacts) read(msg string) {
	f.whole = f.whole || strings.HasPrefix(msg, "Linux version ")
	f.handover = f.handover || msg == "KHO: found kexec handover data."
	if s, ok := strings.CutPrefix(msg, "luo: Retrieved live update data, liveupdate number: "); ok {
		if n, err := strconv.ParseUint(s, 10, 64); err == nil {
			f.number = n
		}
	}
	if s, ok := strings.CutPrefix(msg, "KHO: exec from: "); ok {
		if i := strings.LastIndex(s, " (count "); i > 0 {
			f.previous = s[:i]
		}
	}
	if s, ok := strings.CutPrefix(msg, `Unknown kernel command line parameters "`); ok {
		_, f.khoUnknown = parseSwitch(s, "kho")
	}
}

// kernelMessage returns the text of a line of the kernel log and whether the
// kernel itself wrote it. In front of it print_syslog and info_print_prefix of
// kernel/printk/printk.c put "<facility*8+level>" and, as they are configured,
// "[time]", "[caller]" and a space. User space cannot write with facility 0.
func kernelMessage(line string) (string, bool) {
	prefix, msg, ok := strings.Cut(line, ">")
	priority, err := strconv.ParseUint(strings.TrimPrefix(prefix, "<"), 10, 32)
	if !ok || err != nil || priority > 7 {
		return "", false
	}
	if strings.HasPrefix(msg, "[") {
		if _, rest, ok := strings.Cut(msg, "] "); ok {
			msg = rest
		}
	}
	return msg, true
}
