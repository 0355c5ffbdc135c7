// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fdbridge/fdbridge/internal/vm"
	"github.com/fdbridge/fdbridge/test/machine"
)

const (
	// timeout bounds what is done with one machine for one load, and each command in it.
	timeout = 90 * time.Minute
	// kexecWait bounds an update up to the first process of the next boot.
	kexecWait = 30 * time.Minute
	// settlePoll is how often a machine is asked whether it has started all.
	settlePoll = 5 * time.Second
	// together is how many units are started at once before the update. PID 1 starts all
	// before it reads a message.
	together = 100

	benchsvc = machine.GuestPrograms + "benchsvc"
)

// Units of the guest.
const (
	template     = "bench@.service"
	peaksUnit    = "bench-peaks.service"
	preserveUnit = "fdbridge-preserve.service"
	stoppedUnit  = "shutdown.target"
	lateUnit     = "final.target"
)

// repeated takes a machine with a load through as many updates as there are to be runs, one
// after the other, and returns the medians.
func repeated(ctx context.Context, config vm.Config, l load, s system) (figures, error) {
	config.Image = s.image
	var all []figures
	err := withMachine(ctx, config, func(ctx context.Context, m *vm.Machine) error {
		if err := populate(ctx, m, l); err != nil {
			return err
		}
		for range *runs {
			f, err := measure(ctx, m, l, s)
			if err != nil {
				return err
			}
			all = append(all, f)
		}
		return nil
	})
	if err != nil {
		return figures{}, err
	}
	return medians(all), nil
}

// measure takes a machine through one update.
func measure(ctx context.Context, m *vm.Machine, l load, s system) (f figures, err error) {
	r, err := m.Shell(ctx, fmt.Sprintf("%s loop %d %s", benchsvc, l.units, l.memfds()))
	if err != nil {
		return f, err
	}
	took, err := microseconds(r.Stdout)
	if err != nil {
		return f, err
	}
	f.loop = took.Seconds()
	before := len(m.Console())
	if l.prepare {
		if _, err := m.Run(ctx, "fdbridgectl", "prepare"); err != nil {
			return f, err
		}
	}
	if _, err := m.Run(ctx, benchsvc, "mark"); err != nil {
		return f, err
	}
	if err := m.KexecWithin(ctx, kexecWait); err != nil {
		return f, err
	}
	if err := settle(ctx, m); err != nil {
		return f, err
	}
	if err := f.boot(ctx, m, l); err != nil {
		return f, err
	}
	return f, f.shutdown(ctx, m, s, m.Console()[before:])
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
	if err := settle(ctx, m); err != nil {
		return err
	}
	return do(ctx, m)
}

// settle waits until the guest has started all that it starts. It asks seldom: PID 1 would
// tell "systemctl is-system-running --wait" of each change of each unit meanwhile.
func settle(ctx context.Context, m *vm.Machine) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settlePoll):
		}
		r, err := m.Do(ctx, vm.Command{Argv: []string{"systemctl", "is-system-running"}})
		if state := strings.TrimSpace(r.Stdout); err != nil || state == "running" || state == "degraded" {
			return err
		}
	}
}

// populate starts the units.
func populate(ctx context.Context, m *vm.Machine, l load) error {
	for name, text := range unitFiles(l) {
		if err := m.WriteFile(ctx, "/etc/systemd/system/"+name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	script := "systemctl enable -q " + peaksUnit + "\n" // which reloads PID 1
	var names []string
	for i := range l.units {
		names = append(names, fmt.Sprintf("bench@%d.service", i))
	}
	for some := range slices.Chunk(names, together) {
		list := strings.Join(some, " ")
		script += fmt.Sprintf("systemctl enable -q --no-reload %s\nsystemctl start %[1]s\n", list)
	}
	_, err := m.Shell(ctx, script)
	return err
}

// unitFiles are those of the load's units, and of one that looks at the memory of
// processes when all is preserved.
func unitFiles(l load) map[string]string {
	return map[string]string{
		template: fmt.Sprintf(`[Service]
Type=notify
FileDescriptorStoreMax=10000
FileDescriptorStorePreserve=yes
LimitNOFILE=20000
TimeoutStartSec=infinity
ExecStart=%s serve %s
[Install]
WantedBy=multi-user.target
`, benchsvc, l.memfds()),
		peaksUnit: fmt.Sprintf(`[Unit]
DefaultDependencies=no
After=%s %s
Before=systemd-kexec.service
[Service]
Type=oneshot
ExecStart=%s peaks
[Install]
WantedBy=kexec.target
`, preserveUnit, lateUnit, benchsvc),
	}
}

// boot finds out when the units were started, and whether all has arrived.
func (f *figures) boot(ctx context.Context, m *vm.Machine, l load) error {
	r, err := m.Shell(ctx, `systemctl show -P UserspaceTimestampMonotonic
pid=$(systemctl show -P MainPID fdbridged.service)
if test $pid = 0; then echo 0; else sed -n 's/^VmHWM:[^0-9]*\([0-9]*\).*/\1/p' /proc/$pid/status; fi`)
	if err != nil {
		return err
	}
	var userspace, kib int64
	if _, err := fmt.Sscan(r.Stdout, &userspace, &kib); err != nil {
		return fmt.Errorf("the guest says %q: %w", r.Stdout, err)
	}
	f.serve = float64(kib * 1024)
	if r, err = m.Run(ctx, "systemctl", "show", "-p", properties, "bench@*.service"); err != nil {
		return err
	}
	err = f.starts(r.Stdout, time.Duration(userspace)*time.Microsecond, l)
	if err == nil {
		return nil
	}
	said, failed := m.Shell(ctx, "journalctl -q -b -o short-monotonic -p warning -n 200; fdbridgectl status || true")
	return fmt.Errorf("%w; the guest says:\n%s", errors.Join(err, failed), said.Stdout)
}

// shutdown finds out how the boot before has ended; console is what was written to it since.
func (f *figures) shutdown(ctx context.Context, m *vm.Machine, s system, console string) error {
	units := []string{stoppedUnit, lateUnit, peaksUnit}
	if !s.alone {
		units = append(units, preserveUnit)
	}
	at := map[string]time.Duration{}
	for _, unit := range units {
		r, err := m.Shell(ctx, "journalctl -q -b -1 -n 1 -o json _PID=1 JOB_TYPE=start JOB_RESULT=done UNIT="+unit)
		if err == nil {
			at[unit], err = sent(r.Stdout)
		}
		if err != nil {
			return fmt.Errorf("the journal of the boot before does not say when %s was started: %w", unit, err)
		}
	}
	return f.stops(console, at, s)
}

// sent is when a message of the journal was sent: journald stamps it when it gets to it, and
// a busy one is late.
func sent(text string) (time.Duration, error) {
	var message struct {
		Monotonic string `json:"__MONOTONIC_TIMESTAMP"`
		Realtime  string `json:"__REALTIME_TIMESTAMP"`
		Source    string `json:"_SOURCE_REALTIME_TIMESTAMP"`
	}
	if err := json.Unmarshal([]byte(text), &message); err != nil {
		return 0, fmt.Errorf("%q: %w", text, err)
	}
	var times [3]time.Duration
	for i, field := range []string{message.Monotonic, message.Realtime, message.Source} {
		var err error
		if times[i], err = microseconds(field); err != nil {
			return 0, fmt.Errorf("%q: %w", text, err)
		}
	}
	return times[0] - (times[1] - times[2]), nil
}

func microseconds(text string) (time.Duration, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	return time.Duration(n) * time.Microsecond, err
}
