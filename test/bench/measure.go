// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fdbridge/fdbridge/internal/vm"
	"github.com/fdbridge/fdbridge/test/machine"
)

// timeout bounds what is done with one machine for one load.
const timeout = 40 * time.Minute

// settled waits until the guest has started all that it starts.
const settled = "systemctl is-system-running --wait > /dev/null || true"

// figures is what one run gives.
type figures struct {
	loop, ready, own, down, start, first, last time.Duration
	serve                                      int64 // bytes
}

// repeated measures a load some times, and returns the medians.
func repeated(ctx context.Context, config vm.Config, l load, s system) (m figures, err error) {
	config.Image = s.image
	var all []figures
	for range *runs {
		f, err := measure(ctx, config, l, s)
		if err != nil {
			return f, err
		}
		all = append(all, f)
	}
	for _, get := range []func(f *figures) *time.Duration{
		func(f *figures) *time.Duration { return &f.loop },
		func(f *figures) *time.Duration { return &f.ready },
		func(f *figures) *time.Duration { return &f.own },
		func(f *figures) *time.Duration { return &f.down },
		func(f *figures) *time.Duration { return &f.start },
		func(f *figures) *time.Duration { return &f.first },
		func(f *figures) *time.Duration { return &f.last },
	} {
		var list []time.Duration
		for i := range all {
			list = append(list, *get(&all[i]))
		}
		slices.Sort(list)
		*get(&m) = list[len(list)/2]
	}
	for _, f := range all {
		m.serve = max(m.serve, f.serve)
	}
	return m, nil
}

// measure takes a machine of its own through one update.
func measure(ctx context.Context, config vm.Config, l load, s system) (f figures, err error) {
	err = withMachine(ctx, config, func(ctx context.Context, m *vm.Machine) error {
		r, err := m.Shell(ctx, fmt.Sprintf("%sbenchsvc loop %d %s", machine.GuestPrograms, l.units, l.memfds()))
		if err != nil {
			return err
		}
		if f.loop, err = microseconds(r.Stdout); err != nil {
			return err
		}
		if err := populate(ctx, m, l); err != nil {
			return err
		}
		if _, err := m.Run(ctx, machine.GuestPrograms+"benchsvc", "mark"); err != nil {
			return err
		}
		if err := m.Kexec(ctx); err != nil {
			return err
		}
		if err := f.starts(ctx, m, l.units); err != nil {
			return err
		}
		return f.stops(ctx, m, s)
	})
	return f, err
}

// withMachine has something done with a machine that is up.
func withMachine(ctx context.Context, config vm.Config, do func(ctx context.Context, m *vm.Machine) error) (err error) {
	ctx, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	m, err := vm.Start(ctx, config)
	if err != nil {
		return err
	}
	defer func() {
		m.Kill()
		if err == nil {
			err = os.RemoveAll(m.Dir())
		}
	}()
	if err := m.WaitBoot(ctx); err != nil {
		return err
	}
	if _, err := m.Shell(ctx, settled); err != nil {
		return err
	}
	return do(ctx, m)
}

// populate starts the units, and prepares.
func populate(ctx context.Context, m *vm.Machine, l load) error {
	unit := fmt.Sprintf("[Service]\nType=notify\nFileDescriptorStoreMax=10000\nFileDescriptorStorePreserve=yes\nLimitNOFILE=20000\n"+
		"TimeoutStartSec=infinity\nExecStart=%sbenchsvc serve %s\n[Install]\nWantedBy=multi-user.target\n",
		machine.GuestPrograms, l.memfds())
	if err := m.WriteFile(ctx, "/etc/systemd/system/bench@.service", []byte(unit), 0o644); err != nil {
		return err
	}
	script := "systemctl enable --now"
	for i := range l.units {
		script += fmt.Sprintf(" bench@%d.service", i)
	}
	if l.prepare {
		script += "\nfdbridgectl prepare >&2"
	}
	_, err := m.Shell(ctx, script)
	return err
}

func microseconds(text string) (time.Duration, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	return time.Duration(n) * time.Microsecond, err
}

// starts waits for all units, and finds out when they were started.
func (f *figures) starts(ctx context.Context, m *vm.Machine, units int) error {
	r, err := m.Shell(ctx, settled+`
systemctl show -P UserspaceTimestampMonotonic
systemctl show -P InactiveExitTimestampMonotonic 'bench@*.service' | sort -n | sed -n '/./{p;q}'
pid=$(systemctl show -P MainPID fdbridged.service)
if test $pid = 0; then echo 0; else sed -n 's/^VmHWM:[^0-9]*\([0-9]*\).*/\1/p' /proc/$pid/status; fi
systemctl show -P ExecMainStartTimestampMonotonic 'bench@*.service'`)
	if err != nil {
		return err
	}
	var times []time.Duration
	for _, field := range strings.Fields(r.Stdout) {
		us, err := microseconds(field)
		if err != nil {
			return err
		}
		times = append(times, us)
	}
	const others = 3
	if len(times) != others+units {
		return fmt.Errorf("%d units have started, not %d", len(times)-others, units)
	}
	f.start, f.serve = times[1]-times[0], int64(times[2]/time.Microsecond)*1024
	f.first, f.last = slices.Min(times[others:])-times[0], slices.Max(times[others:])-times[0]
	return nil
}

// Lines of the console: what benchsvc marks, with its own clock; the last that
// systemd-shutdown says before it preserves, and what it says after (src/shutdown/shutdown.c,
// systemd 262); and what the kernel says at the kexec.
var (
	markLine    = regexp.MustCompile(`\[ *(\d+\.\d+)\] benchsvc: at (\d+)`)
	syncedLine  = regexp.MustCompile(`\[ *(\d+\.\d+)\] systemd-shutdown\[1\]: Syncing filesystems and block devices`)
	carriedLine = regexp.MustCompile(`\[ *(\d+\.\d+)\] systemd-shutdown\[1\]: Preserved fd stores in LUO session`)
	kexecLine   = regexp.MustCompile(`\[ *(\d+\.\d+)\] kexec_core: Starting new kernel`)
)

// stops finds out how the boot before has ended, from its journal and from the console,
// whose clocks differ.
func (f *figures) stops(ctx context.Context, m *vm.Machine, s system) error {
	stopped, err := reached(ctx, m, "shutdown.target")
	if err != nil {
		return err
	}
	console := m.Console()
	mark := markLine.FindStringSubmatch(console)
	if mark == nil {
		return errors.New("the console does not show what benchsvc has marked")
	}
	told, err := stamp(mark)
	if err != nil {
		return err
	}
	clock, err := microseconds(mark[2])
	if err != nil {
		return err
	}
	kexec, err := stamp(kexecLine.FindStringSubmatch(console))
	if err != nil {
		return err
	}
	f.down = kexec - told + clock - stopped
	if !s.alone {
		ready, err := reached(ctx, m, "fdbridge-preserve.service")
		f.ready = ready - stopped
		f.own = f.ready
		return err
	}
	synced, err1 := stamp(syncedLine.FindStringSubmatch(console))
	carried, err2 := stamp(carriedLine.FindStringSubmatch(console))
	f.ready, f.own = carried-told+clock-stopped, carried-synced
	return errors.Join(err1, err2)
}

// stamp is the time of a line of the console.
func stamp(line []string) (time.Duration, error) {
	if line == nil {
		return 0, errors.New("a line is missing on the console")
	}
	seconds, err := strconv.ParseFloat(line[1], 64)
	return time.Duration(seconds * float64(time.Second)), err
}

// reached is when PID 1 has said that a unit was started, in the boot before.
func reached(ctx context.Context, m *vm.Machine, unit string) (time.Duration, error) {
	r, err := m.Shell(ctx, "journalctl -q -b -1 -n 1 -o json _PID=1 JOB_TYPE=start JOB_RESULT=done UNIT="+unit)
	if err != nil {
		return 0, err
	}
	var message struct {
		Monotonic string `json:"__MONOTONIC_TIMESTAMP"`
	}
	if err := json.Unmarshal([]byte(r.Stdout), &message); err != nil {
		return 0, fmt.Errorf("the journal of the boot before does not say when %s was started: %w: %s", unit, err, r.Stdout)
	}
	return microseconds(message.Monotonic)
}
