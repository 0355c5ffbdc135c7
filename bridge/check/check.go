// SPDX-License-Identifier: Apache-2.0

// Package check finds out before a live update what would come of it.
package check

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/kho/image"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
)

// timeout bounds a check, the most of which is to unpack two kernel images.
const timeout = 2 * time.Minute

// Outcome is what would come of a live update, or of a part of it.
type Outcome string

// The outcomes.
const (
	Carried    Outcome = "carried"    // nothing would be lost
	Lossy      Outcome = "lossy"      // something would be lost, or may be
	Impossible Outcome = "impossible" // nothing would be carried, or the next kernel would not boot
)

// Result is what would happen if systemctl kexec were called now. Its JSON is an
// interface: members may be added.
type Result struct {
	Outcome Outcome `json:"outcome"`
	// CalledOff says that the live update would be called off because of what
	// would be lost: see Required in Unit.
	CalledOff bool `json:"called_off"`
	// Units are those that have opted in and have something stored, by name, and
	// those that are not done with a session of their own.
	Units    []Unit    `json:"units"`
	Problems []Problem `json:"problems"`
	Kernel   Kernel    `json:"kernel"`
	Memory   Memory    `json:"memory"`
}

// Unit is one unit's store.
type Unit struct {
	Unit string `json:"unit"`
	// Required says that the live update is called off when anything of the
	// unit would be lost: Required=yes in its file, or OnLoss=rollback.
	Required bool    `json:"required"`
	Entries  []Entry `json:"entries"` // in the order of the store
}

// Entry is one fd in a store.
type Entry struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	Carried bool   `json:"carried"`
	Size    int64  `json:"size"`             // bytes; 0 of what is not carried
	Reason  string `json:"reason,omitempty"` // why it is not carried
	remedy  string
}

// Problem is something that is wrong, and what to do about it.
type Problem struct {
	// Outcome is what it leads to; Carried where it may do no harm.
	Outcome Outcome  `json:"outcome"`
	Unit    string   `json:"unit,omitempty"` // the unit that it is about, if any
	FDs     []string `json:"fds,omitempty"`  // the names of the fds of the unit, if any
	Type    string   `json:"type,omitempty"` // of the fds
	Message string   `json:"message"`
	Remedy  string   `json:"remedy"`
}

// Kernel is the kernel that would be booted.
type Kernel struct {
	Loaded  bool   `json:"loaded"`            // one is loaded for kexec
	Image   string `json:"image,omitempty"`   // the file that was named
	Release string `json:"release,omitempty"` // what is in it
	// Cmdline is its command line; null when it cannot be told.
	Cmdline *string `json:"cmdline"`
}

// Memory is in bytes.
type Memory struct {
	Carried   int64 `json:"carried"`   // the size of all that would be carried
	Needed    int64 `json:"needed"`    // what of that has no memory yet, and would get some
	Available int64 `json:"available"` // MemAvailable of /proc/meminfo
	// Scratch is the largest area that the next kernel or its initrd can be
	// loaded into; null when it cannot be told.
	Scratch *int64 `json:"scratch"`
}

// Count returns how many fds of the opted-in units would be carried and lost.
func (r *Result) Count() (carried, lost int) {
	for i := range r.Units {
		for _, e := range r.Units[i].Entries {
			if e.Carried {
				carried++
			} else {
				lost++
			}
		}
	}
	return carried, lost
}

func (r *Result) add(outcome Outcome, remedy, format string, args ...any) {
	r.Problems = append(r.Problems, Problem{Outcome: outcome, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

// conclude sorts the problems, the worst first, and draws the conclusion.
func (r *Result) conclude() {
	order := []Outcome{Impossible, Lossy, Carried}
	slices.SortStableFunc(r.Problems, func(a, b Problem) int {
		return slices.Index(order, a.Outcome) - slices.Index(order, b.Outcome)
	})
	r.Outcome = Carried
	if len(r.Problems) > 0 {
		r.Outcome = r.Problems[0].Outcome
	}
	for i := range r.Units {
		lost := slices.ContainsFunc(r.Units[i].Entries, func(e Entry) bool { return !e.Carried })
		r.CalledOff = r.CalledOff || lost && r.Units[i].Required
	}
}

// Stores is what a Checker asks PID 1 about stores; units.Reader does it.
type Stores interface {
	EachStore(ctx context.Context, each func(s *units.Store)) error
	Carries(ctx context.Context) (bool, error)
	Version(ctx context.Context) (string, error)
}

// Checker finds out what a live update would do, and changes nothing. The kernel
// has no way to ask whether it would preserve a file but to do it, which would
// keep the file from growing meanwhile; so files are judged by their kind.
type Checker struct {
	Stores     Stores
	Duplicator func() (bridge.Duplicator, error)
	Kernel     session.Kernel // which is asked for the names of sessions
	// State asks PID 1 for the state of a unit; units.Reader's does.
	State    func(ctx context.Context, unit string) (units.State, error)
	Excluded func(unit string) bool // as bridge.Preserver has it
	Required func(unit string) bool // as bridge.Preserver has it
	Settings []error                // what is wrong with settings, of fdbridge's or of units
	// Root is the machine's file system, and KernelLog returns its kernel log,
	// as kho.ReadState takes them.
	Root      fs.FS
	KernelLog func() ([]byte, error)
}

// Run checks what would happen with the kernel that is to be booted, or with the
// one that is loaded when target is nil. It takes two minutes at most. An error
// means that nothing can be said, as when PID 1 does not answer.
func (c *Checker) Run(ctx context.Context, target *Target) (*Result, error) {
	ctx, stop := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it has taken longer than %v", timeout))
	defer stop()
	found := &Result{Units: []Unit{}, Problems: []Problem{}}
	for _, wrong := range c.Settings {
		found.add(Carried, "See fdbridge.conf(5), fdbridge.directives(7) and fdbridge(7).", "%v", wrong)
	}
	err := c.machine(ctx, found)
	if err == nil {
		err = c.services(ctx, found)
	}
	if err == nil {
		err = c.target(ctx, found, target)
	}
	if err == nil {
		err = c.stores(ctx, found)
	}
	if err == nil {
		err = c.memory(found)
	}
	if err != nil {
		return nil, fmt.Errorf("check what a live update would do: %w", err)
	}
	found.conclude()
	return found, nil
}

// machine looks at the running kernel. It has the device if and only if live
// update and kexec handover are on.
func (c *Checker) machine(ctx context.Context, found *Result) error {
	state, err := kho.ReadState(c.Root, c.KernelLog)
	if err != nil {
		return err
	}
	if state.Device.Value {
		return nil
	}
	why, err := c.whyNot(ctx, &state)
	if err != nil {
		return err
	}
	found.add(Impossible, "Boot a kernel with CONFIG_LIVEUPDATE=y, and with kho=on liveupdate=on.", "%s", why)
	return nil
}

// whyNot says why there is no /dev/liveupdate.
func (c *Checker) whyNot(ctx context.Context, state *kho.State) (string, error) {
	if !state.Device.Known {
		return state.Device.Why, nil
	}
	cmdline, err := kho.ReadCommandLine(c.Root)
	if err != nil {
		return "", err
	}
	running, err := image.Running(ctx, c.Root)
	if err != nil {
		return "", err
	}
	missing := kho.MissingSwitches(running.Switches(cmdline))
	if len(missing) == 0 {
		return state.LUO.Why, nil
	}
	why := "this kernel offers no live update: there is no /dev/liveupdate, and no " +
		strings.Join(missing, " and no ") + " on its command line"
	if running.Overrides() {
		why += ", which is built in (CONFIG_CMDLINE_OVERRIDE=y)"
	}
	return why, nil
}

// services looks at fdbridge's own units.
func (c *Checker) services(ctx context.Context, found *Result) error {
	var states [3]units.State
	for i, unit := range []string{bridge.OwnUnit, bridge.PreserveUnit, kexecUnit} {
		state, err := c.State(ctx, unit)
		if err != nil {
			return err
		}
		states[i] = state
	}
	own, preserve, kexec := states[0], states[1], states[2]
	const reinstall = "Install fdbridge anew, and call systemctl daemon-reload."
	for _, unit := range []struct{ name, load string }{{bridge.OwnUnit, own.Load}, {bridge.PreserveUnit, preserve.Load}} {
		switch unit.load {
		case "loaded":
		case "masked":
			found.add(Impossible, "Call systemctl unmask "+unit.name+".", "%s is masked", unit.name)
		default:
			found.add(Impossible, reinstall, "%s is not loaded (%s)", unit.name, unit.load)
		}
	}
	if own.Load == "loaded" && own.Active != "active" {
		found.add(Lossy, "See systemctl status "+bridge.OwnUnit+".",
			"%s is %s, so that stores of stopped units may be forgotten", bridge.OwnUnit, own.Active)
	}
	if preserve.Load == "loaded" && !slices.Contains(kexec.Requires, bridge.PreserveUnit) {
		found.add(Impossible, reinstall, "%s does not require %s", kexecUnit, bridge.PreserveUnit)
	}
	return nil
}

// kexecUnit is the unit that replaces the kernel.
const kexecUnit = "systemd-kexec.service"

// memory compares what would be carried with the memory there is. What has
// memory has it in the next kernel, too; but holes are filled when a memfd is
// preserved (memfd_pin_folios in memfd_luo_preserve_folios, mm/memfd_luo.c,
// Linux 7.2).
func (c *Checker) memory(found *Result) (err error) {
	m := &found.Memory
	if m.Available, err = kho.ReadAvailable(c.Root); err != nil {
		return err
	}
	if m.Needed > m.Available {
		found.add(Lossy, "Free memory, or make the files smaller.",
			"what would be carried has holes that take %d MiB of memory when they are filled, and %d MiB are available",
			m.Needed>>20, m.Available>>20)
	}
	return nil
}
