// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"golang.org/x/sys/unix"
)

// sources is what a State is judged by. A source that is absent or forbidden says
// why in words.
type sources struct {
	device     Fact[bool]
	cmdline    string
	cmdlineWhy string
	debugfs    debugfs
	log        logFacts
	logWhy     string // also when the log does not reach back to the boot
}

// debugfs is what debugfs has below kho, from kernel/liveupdate/kexec_handover.c
// and kexec_handover_debugfs.c (Linux 7.2).
type debugfs struct {
	why      string // why some of the rest is missing
	present  bool   // there is a kho directory: kexec handover is on
	handover bool   // there is kho/in: this kernel was handed something
	luo      []byte // kho/out/sub_fdts/LUO: for the next kernel; nil: absent
	metadata []byte // kho/in/sub_fdts/kexec-metadata: from the last one; nil: absent
}

const (
	debugfsRoot = "sys/kernel/debug"

	// maxSmallFile bounds what is read of a file which has a few bytes.
	maxSmallFile = 64 << 10
)

func (s *sources) readDevice(root fs.FS) error {
	_, err := fs.Stat(root, "dev/liveupdate")
	switch {
	case err == nil:
		s.device = known(true, SourceDevice)
	case errors.Is(err, fs.ErrNotExist):
		s.device = known(false, SourceDevice)
	default:
		s.device = unknown[bool]("/dev/liveupdate cannot be looked up")
		return ioError("look up /dev/liveupdate", err)
	}
	return nil
}

func (s *sources) readCommandLine(root fs.FS) error {
	data, err := readSmallFile(root, "proc/cmdline")
	if err != nil {
		s.cmdlineWhy = "the kernel command line in /proc/cmdline cannot be read"
		return ioError("read the kernel command line", err)
	}
	s.cmdline = string(data)
	return nil
}

func (s *sources) readLog(log func() ([]byte, error)) error {
	data, err := log()
	if err != nil {
		s.logWhy = "the kernel log cannot be read"
		if errors.Is(err, fs.ErrPermission) {
			s.logWhy = "the kernel log may only be read with CAP_SYSLOG"
		}
		return ioError("read the kernel log", err)
	}
	s.log = parseLog(string(data))
	if !s.log.whole {
		s.logWhy = "the kernel log does not reach back to the boot any more"
	}
	return nil
}

func (s *sources) readDebugfs(root fs.FS) error {
	d := &s.debugfs
	_, err := fs.Stat(root, debugfsRoot+"/kho")
	if errors.Is(err, fs.ErrNotExist) {
		d.why, err = whyNoKHO(root)
		return d.failed(err)
	}
	if err != nil {
		return d.failed(err)
	}
	d.present = true
	_, err = fs.Stat(root, debugfsRoot+"/kho/in")
	d.handover = !errors.Is(err, fs.ErrNotExist)
	errIn := d.failed(err)
	d.luo, err = readSmallFile(root, debugfsRoot+"/kho/out/sub_fdts/LUO")
	errLUO := d.failed(err)
	d.metadata, err = readSmallFile(root, debugfsRoot+"/kho/in/sub_fdts/kexec-metadata")
	return errors.Join(errIn, errLUO, d.failed(err))
}

// failed notes why something could not be read, unless it is merely absent, and
// returns what is an I/O error.
func (d *debugfs) failed(err error) error {
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, fs.ErrPermission):
		d.why = "debugfs may only be read by root, and not under kernel lockdown"
	default:
		d.why = "debugfs cannot be read"
	}
	return ioError("read the handover state in debugfs", err)
}

// whyNoKHO says why debugfs has no kho directory.
func whyNoKHO(root fs.FS) (string, error) {
	entries, err := fs.ReadDir(root, debugfsRoot)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "this kernel has no debugfs", nil
	case err != nil:
		return "", err
	case len(entries) == 0:
		return "debugfs is not mounted on /sys/kernel/debug", nil
	}
	return "debugfs has no directory kho: kexec handover is off, or the kernel was built without " +
		"CONFIG_KEXEC_HANDOVER_DEBUGFS", nil
}

// readSmallFile returns the first maxSmallFile bytes of a file that a kernel makes
// up; nil on error.
func readSmallFile(root fs.FS, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSmallFile))
	if err != nil {
		return nil, err
	}
	return data, nil
}

// ioError returns nil for an error that means no more than that something is
// absent, not built in or not permitted.
func ioError(operation string, err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) ||
		errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return fmt.Errorf("%s: %w", operation, err)
}
