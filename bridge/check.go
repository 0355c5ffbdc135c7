// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/units"
)

// checkTimeout bounds a check, the most of which is to unpack two kernel images.
const checkTimeout = 2 * time.Minute

// Outcome is what would come of a live update, or of a part of it.
type Outcome string

// The outcomes.
const (
	Carried    Outcome = "carried"    // nothing would be lost
	Lossy      Outcome = "lossy"      // something would be lost, or may be
	Impossible Outcome = "impossible" // nothing would be carried, or the next kernel would not boot
)

// Check is what would happen if systemctl kexec were called now. Its JSON is an
// interface: members may be added.
type Check struct {
	Outcome Outcome `json:"outcome"`
	// CalledOff says that the live update would be called off because of what
	// would be lost: see Required in CheckedUnit.
	CalledOff bool `json:"called_off"`
	// Units are those that have opted in and have something stored, by name.
	Units    []CheckedUnit  `json:"units"`
	Problems []CheckProblem `json:"problems"`
	Kernel   CheckedKernel  `json:"kernel"`
	Memory   CheckedMemory  `json:"memory"`
}

// CheckedUnit is one unit's store.
type CheckedUnit struct {
	Unit string `json:"unit"`
	// Required says that the live update is called off when anything of the
	// unit would be lost: Required=yes in its file, or OnLoss=rollback.
	Required bool           `json:"required"`
	Entries  []CheckedEntry `json:"entries"` // in the order of the store
}

// CheckedEntry is one fd in a store.
type CheckedEntry struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	Carried bool   `json:"carried"`
	Size    int64  `json:"size"`             // bytes; 0 of what is not carried
	Reason  string `json:"reason,omitempty"` // why it is not carried
	remedy  string
}

// CheckProblem is something that is wrong, and what to do about it.
type CheckProblem struct {
	// Outcome is what it leads to; Carried where it may do no harm.
	Outcome Outcome  `json:"outcome"`
	Unit    string   `json:"unit,omitempty"` // the unit that it is about, if any
	FDs     []string `json:"fds,omitempty"`  // the names of the fds of the unit, if any
	Type    string   `json:"type,omitempty"` // of the fds
	Message string   `json:"message"`
	Remedy  string   `json:"remedy"`
}

// CheckedKernel is the kernel that would be booted.
type CheckedKernel struct {
	Loaded  bool   `json:"loaded"`            // one is loaded for kexec
	Image   string `json:"image,omitempty"`   // the file that was named
	Release string `json:"release,omitempty"` // what is in it
	// Cmdline is its command line; null when it cannot be told.
	Cmdline *string `json:"cmdline"`
}

// CheckedMemory is in bytes.
type CheckedMemory struct {
	Carried   int64 `json:"carried"`   // the size of all that would be carried
	Needed    int64 `json:"needed"`    // what of that has no memory yet, and would get some
	Available int64 `json:"available"` // MemAvailable of /proc/meminfo
	// Scratch is the largest area that the next kernel or its initrd can be
	// loaded into; null when it cannot be told.
	Scratch *int64 `json:"scratch"`
}

// Count returns how many fds of the opted-in units would be carried and lost.
func (c *Check) Count() (carried, lost int) {
	for i := range c.Units {
		for _, e := range c.Units[i].Entries {
			if e.Carried {
				carried++
			} else {
				lost++
			}
		}
	}
	return carried, lost
}

func (c *Check) add(outcome Outcome, remedy, format string, args ...any) {
	c.Problems = append(c.Problems, CheckProblem{Outcome: outcome, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

// conclude sorts the problems, the worst first, and draws the conclusion.
func (c *Check) conclude() {
	order := []Outcome{Impossible, Lossy, Carried}
	slices.SortStableFunc(c.Problems, func(a, b CheckProblem) int {
		return slices.Index(order, a.Outcome) - slices.Index(order, b.Outcome)
	})
	c.Outcome = Carried
	if len(c.Problems) > 0 {
		c.Outcome = c.Problems[0].Outcome
	}
	for i := range c.Units {
		lost := slices.ContainsFunc(c.Units[i].Entries, func(e CheckedEntry) bool { return !e.Carried })
		c.CalledOff = c.CalledOff || lost && c.Units[i].Required
	}
}

// Checker finds out what a live update would do, and changes nothing. The kernel
// has no way to ask whether it would preserve a file but to do it, which would
// keep the file from growing meanwhile; so files are judged by their kind.
type Checker struct {
	Stores     Stores
	Duplicator func() (Duplicator, error)
	// State asks PID 1 for the state of a unit; units.Reader's does.
	State    func(ctx context.Context, unit string) (units.State, error)
	Excluded func(unit string) bool // as Preserver has it
	Required func(unit string) bool // as Preserver has it
	// Root is the machine's file system, and KernelLog returns its kernel log,
	// as kho.ReadState takes them.
	Root      fs.FS
	KernelLog func() ([]byte, error)
}

// Run checks what would happen with the kernel that is to be booted, or with the
// one that is loaded when target is nil. It takes two minutes at most. An error
// means that nothing can be said, as when PID 1 does not answer.
func (c *Checker) Run(ctx context.Context, target *Target) (*Check, error) {
	ctx, stop := context.WithTimeoutCause(ctx, checkTimeout, fmt.Errorf("it has taken longer than %v", checkTimeout))
	defer stop()
	check := &Check{Units: []CheckedUnit{}, Problems: []CheckProblem{}}
	err := c.machine(check)
	if err == nil {
		err = c.services(ctx, check)
	}
	if err == nil {
		err = c.target(ctx, check, target)
	}
	if err == nil {
		err = c.stores(ctx, check)
	}
	if err == nil {
		err = c.memory(check)
	}
	if err != nil {
		return nil, fmt.Errorf("check what a live update would do: %w", err)
	}
	check.conclude()
	return check, nil
}

// machine looks at the running kernel. It has the device if and only if live
// update and kexec handover are on.
func (c *Checker) machine(check *Check) error {
	state, err := kho.ReadState(c.Root, c.KernelLog)
	if err != nil {
		return err
	}
	if state.Device.Value {
		return nil
	}
	why := "this kernel offers no live update: there is no /dev/liveupdate"
	cmdline, err := kho.ReadCommandLine(c.Root)
	if err != nil {
		return err
	}
	missing := kho.MissingSwitches(cmdline)
	switch {
	case !state.Device.Known:
		why = state.Device.Why
	case len(missing) > 0:
		why += ", and no " + strings.Join(missing, " and no ") + " on its command line"
	default:
		why = state.LUO.Why
	}
	check.add(Impossible, "Boot a kernel with CONFIG_LIVEUPDATE=y, and with kho=on liveupdate=on.", "%s", why)
	return nil
}

// services looks at fdbridge's own units.
func (c *Checker) services(ctx context.Context, check *Check) error {
	var states [3]units.State
	for i, unit := range []string{OwnUnit, PreserveUnit, kexecUnit} {
		state, err := c.State(ctx, unit)
		if err != nil {
			return err
		}
		states[i] = state
	}
	own, preserve, kexec := states[0], states[1], states[2]
	const reinstall = "Install fdbridge anew, and call systemctl daemon-reload."
	for _, unit := range []struct{ name, load string }{{OwnUnit, own.Load}, {PreserveUnit, preserve.Load}} {
		switch unit.load {
		case "loaded":
		case "masked":
			check.add(Impossible, "Call systemctl unmask "+unit.name+".", "%s is masked", unit.name)
		default:
			check.add(Impossible, reinstall, "%s is not loaded (%s)", unit.name, unit.load)
		}
	}
	if own.Load == "loaded" && own.Active != "active" {
		check.add(Lossy, "See systemctl status "+OwnUnit+".",
			"%s is %s, so that stores of stopped units may be forgotten", OwnUnit, own.Active)
	}
	if preserve.Load == "loaded" && !slices.Contains(kexec.Requires, PreserveUnit) {
		check.add(Impossible, reinstall, "%s does not require %s", kexecUnit, PreserveUnit)
	}
	return nil
}

// kexecUnit is the unit that replaces the kernel.
const kexecUnit = "systemd-kexec.service"

// memory compares what would be carried with the memory there is. What has
// memory has it in the next kernel, too; but holes are filled when a memfd is
// preserved (memfd_pin_folios in memfd_luo_preserve_folios, mm/memfd_luo.c,
// Linux 7.2).
func (c *Checker) memory(check *Check) (err error) {
	m := &check.Memory
	if m.Available, err = kho.ReadAvailable(c.Root); err != nil {
		return err
	}
	if m.Needed > m.Available {
		check.add(Lossy, "Free memory, or make the files smaller.",
			"what would be carried has holes that take %d MiB of memory when they are filled, and %d MiB are available",
			m.Needed>>20, m.Available>>20)
	}
	return nil
}
