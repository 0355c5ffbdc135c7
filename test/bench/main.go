// SPDX-License-Identifier: Apache-2.0

// Command bench measures, in the VM, what fdbridge takes of a live update, and what a
// plain loop of system calls takes that does nothing but preserve as many files. It is
// run by make bench with the path of the package to measure, and prints a table.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fdbridge/fdbridge/internal/vm"
	"github.com/fdbridge/fdbridge/internal/vm/progress"
	"github.com/fdbridge/fdbridge/test/machine"
)

var (
	runs = flag.Int("runs", 3, "how often each load is measured; the medians are printed")
	most = flag.Int("units", 200, "the greatest number of units to measure")
)

// timeout bounds what is done with one machine for one load.
const timeout = 15 * time.Minute

// load is what there is to carry.
type load struct {
	units, files, size int
	sealed             bool
	prepare            bool // with fdbridgectl prepare before
}

const (
	page = 4 << 10
	mib  = 1 << 20
)

// compared is also measured without fdbridge.
var compared = load{units: 200, files: 20, size: page}

// loads are measured one after the other, each on a machine of its own.
var loads = []load{
	{units: 1, files: 10, size: page},
	{units: 10, files: 10, size: page},
	{units: 100, files: 10, size: page},
	compared,
	{units: 1000, files: 10, size: page},
	{units: 1, files: 100, size: page},
	{units: 1, files: 1000, size: page},
	{units: 1, files: 5000, size: page},
	{units: 1, files: 1, size: 1024 * mib, sealed: true},
	{units: 1, files: 1, size: 1024 * mib, sealed: true, prepare: true},
	{units: 1, files: 8, size: 128 * mib, sealed: true},
	{units: 1, files: 8, size: 128 * mib, sealed: true, prepare: true},
}

func (l load) String() string {
	text := fmt.Sprintf("%d x %d x %d KiB", l.units, l.files, l.size>>10)
	if l.prepare {
		text += ", prepared"
	}
	return text
}

func main() {
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: bench [-runs N] [-units N] PACKAGE")
		os.Exit(2)
	}
	if err := run(flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(deb string) error {
	ctx, log := context.Background(), progress.New(os.Stderr)
	builder, err := machine.NewBuilder(ctx, log)
	if err != nil {
		return err
	}
	image, err := builder.Image(ctx, deb, machine.Programs("benchsvc"), nil)
	if err != nil {
		return err
	}
	without, err := builder.Image(ctx, "", machine.Programs("benchsvc"), nil)
	if err != nil {
		return err
	}
	var with figures
	fmt.Printf("%-28s %10s %10s %7s %10s %10s %10s %8s\n", "units x memfds x size", "loop", "ready", "ratio", "boot", "first", "last", "serve")
	for _, l := range loads {
		if l.units > *most {
			continue
		}
		var all []figures
		for range *runs {
			f, err := measure(ctx, vm.Config{Name: "bench", Kernel: builder.Kernel, Image: image, Memory: 4096, Log: log}, l, true)
			if err != nil {
				return fmt.Errorf("%v: %w", l, err)
			}
			all = append(all, f)
		}
		m := median(all)
		if l == compared {
			with = m
		}
		fmt.Printf("%-28v %8.1fms %8.1fms %7.2f %8.1fms %9.2fs %9.2fs %5.1fMB\n", l, ms(m.loop), ms(m.ready), ratio(m.ready, m.loop),
			ms(m.boot), m.first.Seconds(), m.last.Seconds(), float64(m.serve)/1e6)
	}
	fmt.Print(`
loop   a plain loop that does nothing but put as many memfds into a session for each unit
ready  all services stopped to fdbridge-preserve.service's READY=1
boot   the start of fdbridged to its READY=1, before which no unit of those starts
first  PID 1's start to the start of the first main process, and last, to that of the last
serve  the peak of fdbridged's resident memory
`)
	if compared.units > *most {
		return nil
	}
	f, err := measure(ctx, vm.Config{Name: "bench", Kernel: builder.Kernel, Image: without, Memory: 4096, Log: log}, compared, false)
	fmt.Printf("\nWithout fdbridge, %v: first %.2f s, last %.2f s\n%s", compared, f.first.Seconds(), f.last.Seconds(), with.sizes)
	return err
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

func ratio(a, b time.Duration) float64 { return float64(a) / float64(max(b, 1)) }

// figures is what one run gives.
type figures struct {
	loop, ready, boot, first, last time.Duration
	serve                          int64  // bytes
	sizes                          string // lines of what else takes room
}

// median is that of each figure.
func median(all []figures) (m figures) {
	of := func(get func(f *figures) *time.Duration) {
		var list []time.Duration
		for i := range all {
			list = append(list, *get(&all[i]))
		}
		slices.Sort(list)
		*get(&m) = list[len(list)/2]
	}
	of(func(f *figures) *time.Duration { return &f.loop })
	of(func(f *figures) *time.Duration { return &f.ready })
	of(func(f *figures) *time.Duration { return &f.boot })
	of(func(f *figures) *time.Duration { return &f.first })
	of(func(f *figures) *time.Duration { return &f.last })
	for _, f := range all {
		m.serve, m.sizes = max(m.serve, f.serve), f.sizes
	}
	return m
}

// measure takes a machine of its own through one update, with fdbridge or without.
func measure(ctx context.Context, config vm.Config, l load, with bool) (f figures, err error) {
	ctx, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	m, err := vm.Start(ctx, config)
	if err != nil {
		return f, err
	}
	defer func() {
		m.Kill()
		if err == nil {
			err = os.RemoveAll(m.Dir())
		}
	}()
	if err := m.WaitBoot(ctx); err != nil {
		return f, err
	}
	if _, err := m.Shell(ctx, "systemctl is-system-running --wait > /dev/null || true"); err != nil {
		return f, err
	}
	r, err := m.Shell(ctx, fmt.Sprintf("%sbenchsvc loop %d %d %d", machine.GuestPrograms, l.units, l.files, l.size))
	if err != nil {
		return f, err
	}
	if f.loop, err = microseconds(r.Stdout); err != nil {
		return f, err
	}
	if err := populate(ctx, m, l); err != nil {
		return f, err
	}
	if err := m.Kexec(ctx); err != nil {
		return f, err
	}
	if err := f.starts(ctx, m, l.units); err != nil || !with {
		return f, err
	}
	if err := f.preserved(ctx, m); err != nil {
		return f, err
	}
	r, err = m.Shell(ctx, sizes)
	f.sizes = r.Stdout
	return f, err
}

// sizes prints what the programs take.
const sizes = `
echo "fdbridge-inject: $(stat -c %s /usr/lib/fdbridge/fdbridge-inject) bytes; the package installed: $(dpkg-query -W -f '${Installed-Size}' fdbridge) KiB"
systemd-run --quiet --wait --pipe -p MemoryAccounting=yes -p Type=oneshot -p NotifyAccess=all -p FileDescriptorStoreMax=1 -p 'ExecStopPost=sh -c "echo \"memory of a unit with nothing but fdbridge-inject: $(cat /sys/fs/cgroup/system.slice/inject.service/memory.peak) bytes\""' -u inject /usr/lib/fdbridge/fdbridge-inject
`

// populate starts the units, and prepares.
func populate(ctx context.Context, m *vm.Machine, l load) error {
	sealed := ""
	if l.sealed {
		sealed = " sealed"
	}
	unit := fmt.Sprintf("[Service]\nType=notify\nFileDescriptorStoreMax=10000\nFileDescriptorStorePreserve=yes\nLimitNOFILE=20000\n"+
		"ExecStart=%sbenchsvc serve %d %d%s\n[Install]\nWantedBy=multi-user.target\n", machine.GuestPrograms, l.files, l.size, sealed)
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
	r, err := m.Shell(ctx, `systemctl is-system-running --wait > /dev/null || true
systemctl show -P UserspaceTimestampMonotonic
systemctl show -P ExecMainStartTimestampMonotonic fdbridged.service
systemctl show -P ActiveEnterTimestampMonotonic fdbridged.service
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
	const others = 4
	if len(times) != others+units {
		return fmt.Errorf("%d units have started, not %d", len(times)-others, units)
	}
	f.boot, f.serve = times[2]-times[1], int64(times[3]/time.Microsecond)*1024
	f.first, f.last = slices.Min(times[others:])-times[0], slices.Max(times[others:])-times[0]
	return nil
}

// preserved finds out the time between PID 1's messages that all services have stopped
// and that fdbridge-preserve.service has started, from the journal of the boot before.
func (f *figures) preserved(ctx context.Context, m *vm.Machine) error {
	var times []time.Duration
	for _, unit := range []string{"shutdown.target", "fdbridge-preserve.service"} {
		r, err := m.Shell(ctx, "journalctl -q -b -1 -n 1 -o json _PID=1 JOB_TYPE=start JOB_RESULT=done UNIT="+unit)
		if err != nil {
			return err
		}
		var message struct {
			Monotonic string `json:"__MONOTONIC_TIMESTAMP"`
		}
		if err := json.Unmarshal([]byte(r.Stdout), &message); err != nil {
			return fmt.Errorf("the journal of the boot before does not say when %s was started: %w: %s", unit, err, r.Stdout)
		}
		us, err := microseconds(message.Monotonic)
		if err != nil {
			return err
		}
		times = append(times, us)
	}
	f.ready = times[1] - times[0]
	return nil
}
