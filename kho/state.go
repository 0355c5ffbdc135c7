// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"errors"
	"io/fs"
	"strings"
)

// Source is where a fact about the kernel comes from.
type Source string

// The sources of facts.
const (
	SourceDebugfs     Source = "debugfs"
	SourceDevice      Source = "/dev/liveupdate"
	SourceCommandLine Source = "kernel command line"
	SourceLog         Source = "kernel log"
)

// Fact is one answer about the kernel.
type Fact[T any] struct {
	Known  bool
	Value  T      // zero when not known
	Source Source // empty when not known
	Why    string // for people: why it is not known, or not as was asked for
}

// State is what the running kernel says about handover and live update.
type State struct {
	KHO    Fact[bool] // kexec handover is on
	LUO    Fact[bool] // live update is on
	Device Fact[bool] // /dev/liveupdate exists

	// Number counts the live updates since power-on; 0: there was none.
	Number Fact[uint64]
	// Previous is the release of the kernel that handed over to this one;
	// empty: none did.
	Previous Fact[string]

	// Debugfs says in a sentence why debugfs could not be asked; empty when it
	// was.
	Debugfs string
}

// ReadState asks what there is: device, debugfs, kernel command line and kernel
// log, of which any may be absent or forbidden. root is the machine's file system
// (os.DirFS("/")), and log returns its kernel log (KernelLog).
//
// An error is an I/O error and joins all that occurred; the state then still has
// what could be had.
func ReadState(root fs.FS, log func() ([]byte, error)) (State, error) {
	var s sources
	err := errors.Join(s.readDevice(root), s.readCommandLine(root), s.readDebugfs(root), s.readLog(log))
	return State{
		KHO:      s.kho(),
		LUO:      s.luo(),
		Device:   s.device,
		Number:   s.number(),
		Previous: s.previous(),
		Debugfs:  s.debugfs.why,
	}, err
}

func known[T any](value T, source Source) Fact[T] {
	return Fact[T]{Known: true, Value: value, Source: source}
}

func unknown[T any](why ...string) Fact[T] {
	var said []string
	for _, w := range why {
		if w != "" {
			said = append(said, w)
		}
	}
	return Fact[T]{Why: strings.Join(said, "; ")}
}

// kho judges by what only a kernel with handover has, then by what it was told.
func (s *sources) kho() Fact[bool] {
	on, given := parseSwitch(s.cmdline, "kho")
	switch {
	case s.debugfs.present:
		return known(true, SourceDebugfs)
	case s.device.Value: // luo_early_startup turns LUO off without KHO (Linux 7.2)
		return known(true, SourceDevice)
	case s.cmdlineWhy != "":
		return unknown[bool](s.cmdlineWhy)
	case !given:
		return unknown[bool]("kho= is not on the kernel command line, and only the kernel's " +
			"configuration (CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT) says what that means")
	case on && s.log.khoUnknown:
		off := known(false, SourceLog)
		off.Why = "the kernel does not know kho=: it was built without CONFIG_KEXEC_HANDOVER"
		return off
	}
	return known(on, SourceCommandLine)
}

// luo relies on the device, which liveupdate_ioctl_init makes if and only if live
// update is on (Linux 7.2).
func (s *sources) luo() Fact[bool] {
	on, _ := parseSwitch(s.cmdline, "liveupdate")
	switch {
	case s.device.Known:
		fact := s.device
		if on && !fact.Value {
			fact.Why = "liveupdate=on is on the kernel command line, but there is no /dev/liveupdate: " +
				"kexec handover is off, or the kernel was built without CONFIG_LIVEUPDATE"
		}
		return fact
	case s.cmdlineWhy != "":
		return unknown[bool](s.device.Why, s.cmdlineWhy)
	}
	return known(on, SourceCommandLine)
}

// number does not look at debugfs's kho/in/sub_fdts/LUO: luo_early_startup frees
// that memory (Linux 7.2), and debugfs goes on to show whatever is there now.
// What this kernel has prepared for the next one is alive and one higher.
func (s *sources) number() Fact[uint64] {
	next, err := s.nextNumber()
	if err == nil {
		return known(next-1, SourceDebugfs)
	}
	switch kho := s.kho(); {
	case s.log.number > 0:
		return known(s.log.number, SourceLog)
	case s.log.whole:
		return known[uint64](0, SourceLog)
	case kho.Known && !kho.Value:
		return known[uint64](0, kho.Source)
	}
	return unknown[uint64](err.Error(), s.logWhy)
}

func (s *sources) nextNumber() (uint64, error) {
	switch {
	case s.debugfs.luo != nil:
		return parseLUO(s.debugfs.luo)
	case s.debugfs.why != "":
		return 0, errors.New(s.debugfs.why)
	}
	return 0, errors.New("debugfs has no live-update state: live update is off")
}

func (s *sources) previous() Fact[string] {
	release, err := s.metadataRelease()
	if err == nil {
		return known(release, SourceDebugfs)
	}
	switch kho := s.kho(); {
	case s.log.previous != "":
		return known(s.log.previous, SourceLog)
	case s.log.whole && !s.log.handover:
		return known("", SourceLog)
	case kho.Known && !kho.Value:
		return known("", kho.Source)
	}
	return unknown[string](err.Error(), s.logWhy)
}

func (s *sources) metadataRelease() (string, error) {
	switch {
	case s.debugfs.metadata != nil:
		return parseMetadata(s.debugfs.metadata)
	case s.debugfs.present && !s.debugfs.handover:
		return "", nil
	case s.debugfs.why != "":
		return "", errors.New(s.debugfs.why)
	}
	return "", errors.New("the kernel before this one did not leave its release in debugfs")
}
