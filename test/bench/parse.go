// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// properties are what starts wants to know of the units.
const properties = "Id,ActiveState,StatusText,InactiveExitTimestampMonotonic,ExecMainStartTimestampMonotonic"

// starts finds out when the units were started, from what "systemctl show" says of them. It
// is an error when one is not active or was not passed all its files.
func (f *figures) starts(shown string, userspace time.Duration, l load) error {
	units := strings.Split(strings.TrimSpace(shown), "\n\n")
	if len(units) != l.units {
		return fmt.Errorf("there are %d units, not %d", len(units), l.units)
	}
	var begun, main, between []float64
	for _, unit := range units {
		has := map[string]string{}
		for property := range strings.Lines(unit) {
			name, value, _ := strings.Cut(strings.TrimSpace(property), "=")
			has[name] = value
		}
		exit, err1 := microseconds(has["InactiveExitTimestampMonotonic"])
		start, err2 := microseconds(has["ExecMainStartTimestampMonotonic"])
		wanted := fmt.Sprintf("passed %d fds", l.files) // as benchsvc says it
		if errors.Join(err1, err2) != nil || exit == 0 || start == 0 || has["ActiveState"] != "active" || has["StatusText"] != wanted {
			return fmt.Errorf("a unit is not active with all its files: %q", unit)
		}
		begun, main = append(begun, (exit-userspace).Seconds()), append(main, (start-userspace).Seconds())
		between = append(between, (start - exit).Seconds())
	}
	f.start, f.unit = slices.Min(begun), median(between)
	f.first, f.last = slices.Min(main), slices.Max(main)
	return nil
}

// Lines of the console: what benchsvc marks, with its own clock, and the peaks that it has
// seen; the last that systemd-shutdown says before it preserves, and what it says after
// (src/shutdown/shutdown.c, systemd 262); and what the kernel says at the kexec.
var (
	markLine    = regexp.MustCompile(`\[ *(\d+\.\d+)\] benchsvc: at (\d+)`)
	peaksLine   = regexp.MustCompile(`\[ *(\d+\.\d+)\] benchsvc: peaks (\d+) (\d+)`)
	syncedLine  = regexp.MustCompile(`\[ *(\d+\.\d+)\] systemd-shutdown\[1\]: Syncing filesystems and block devices`)
	carriedLine = regexp.MustCompile(`\[ *(\d+\.\d+)\] systemd-shutdown\[1\]: Preserved fd stores in LUO session`)
	kexecLine   = regexp.MustCompile(`\[ *(\d+\.\d+)\] kexec_core: Starting new kernel`)
)

// stops finds out how a boot has ended, from when PID 1 has said that units were started and
// from the console, whose clocks differ.
func (f *figures) stops(console string, at map[string]time.Duration, s system) error {
	told, clock, err1 := seen(console, markLine)
	_, peaks, err2 := seen(console, peaksLine)
	kexec, _, err3 := seen(console, kexecLine)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	f.pid1, f.preserve = float64(peaks[0]*1024), float64(peaks[1]*1024)
	ahead := time.Duration(clock[0])*time.Microsecond - told
	looking := at[peaksUnit] - at[lateUnit] // at the peaks, for which all else waits
	f.down = (kexec + ahead - at[stoppedUnit] - looking).Seconds()
	if !s.alone {
		if f.preserve == 0 {
			return errors.New("the process that has preserved was not there any more")
		}
		f.ready = (at[preserveUnit] - at[stoppedUnit]).Seconds()
		f.own = f.ready
		return nil
	}
	synced, _, err1 := seen(console, syncedLine)
	carried, _, err2 := seen(console, carriedLine)
	f.ready, f.own = (carried + ahead - at[stoppedUnit] - looking).Seconds(), (carried - synced).Seconds()
	return errors.Join(err1, err2)
}

// seen finds a line of the console, with the time of the kernel's log and with what numbers
// are in it.
func seen(console string, wanted *regexp.Regexp) (at time.Duration, numbers []int64, err error) {
	found := wanted.FindStringSubmatch(console)
	if found == nil {
		return 0, nil, fmt.Errorf("the console has no line like %v", wanted)
	}
	stamp, err := strconv.ParseFloat(found[1], 64)
	for _, digits := range found[2:] {
		n, failed := strconv.ParseInt(digits, 10, 64)
		numbers, err = append(numbers, n), errors.Join(err, failed)
	}
	return time.Duration(stamp * float64(time.Second)), numbers, err
}
