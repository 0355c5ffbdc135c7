// SPDX-License-Identifier: Apache-2.0

// Command bench measures, in the VM, what fdbridge takes of an update with 200
// units of 20 memfds of 4 KiB each. It is run by make bench with the path of
// the package to measure, and boots the same units without it for comparison.
package main

import (
	"context"
	"encoding/json"
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

const (
	units = 200
	files = 20
	// timeout bounds one machine's part.
	timeout = 20 * time.Minute
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: bench PACKAGE")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
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
	with, err := measure(ctx, builder, log, "with", deb)
	if err != nil {
		return err
	}
	without, err := measure(ctx, builder, log, "without", "")
	if err != nil {
		return err
	}
	fmt.Printf("%d units with %d memfds of 4 KiB:\n", units, files)
	fmt.Printf("  all services stopped to READY=1          %8.3f s\n", with.ready.Seconds())
	for _, row := range []struct {
		what          string
		with, without time.Duration
	}{{"first", with.first, without.first}, {"last", with.last, without.last}} {
		fmt.Printf("  PID 1's start to the %-5s main process   %8.3f s, without fdbridge %.3f s: %+.3f s\n",
			row.what, row.with.Seconds(), row.without.Seconds(), (row.with - row.without).Seconds())
	}
	fmt.Print(with.sizes)
	return nil
}

// figures is what one machine gives.
type figures struct {
	ready       time.Duration
	first, last time.Duration
	sizes       string
}

// measure takes a machine through one update.
func measure(ctx context.Context, builder *machine.Builder, log *progress.Log, name, deb string) (f figures, err error) {
	ctx, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	image, err := builder.Image(ctx, deb, machine.Programs("storesvc"), nil)
	if err != nil {
		return f, err
	}
	m, err := vm.Start(ctx, vm.Config{Name: "bench-" + name, Kernel: builder.Kernel, Image: image, Log: log})
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
	if err := populate(ctx, m); err != nil {
		return f, err
	}
	log.Printf("%s fdbridge: %d units are running", name, units)
	if err := m.Kexec(ctx); err != nil {
		return f, err
	}
	if f.first, f.last, err = starts(ctx, m); err != nil || deb == "" {
		return f, err
	}
	if f.ready, err = readiness(ctx, m); err != nil {
		return f, err
	}
	log.Printf("%s fdbridge: ready after %v", name, f.ready)
	r, err := m.Shell(ctx, sizes)
	f.sizes = r.Stdout
	return f, err
}

// populate starts the units.
func populate(ctx context.Context, m *vm.Machine) error {
	var unit, names strings.Builder
	unit.WriteString("[Service]\nType=notify\nEnvironment=UNIT=%n\nFileDescriptorStoreMax=100\n" +
		"FileDescriptorStorePreserve=yes\nExecStart=" + machine.GuestPrograms + "storesvc")
	for i := range files {
		fmt.Fprintf(&unit, " f%d,memfd,4096", i)
	}
	unit.WriteString("\n[Install]\nWantedBy=multi-user.target\n")
	if err := m.WriteFile(ctx, "/etc/systemd/system/bench@.service", []byte(unit.String()), 0o644); err != nil {
		return err
	}
	for i := range units {
		fmt.Fprintf(&names, " bench@%d.service", i)
	}
	_, err := m.Shell(ctx, "systemctl daemon-reload; systemctl enable --now"+names.String())
	return err
}

// starts waits for all units and returns when the first and the last main
// process were started, from the start of PID 1.
func starts(ctx context.Context, m *vm.Machine) (first, last time.Duration, err error) {
	r, err := m.Shell(ctx, `systemctl is-system-running --wait > /dev/null || true
systemctl show -P UserspaceTimestampMonotonic
systemctl show -P ExecMainStartTimestampMonotonic 'bench@*.service'`)
	if err != nil {
		return 0, 0, err
	}
	var times []time.Duration
	for _, field := range strings.Fields(r.Stdout) {
		us, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, 0, err
		}
		times = append(times, time.Duration(us)*time.Microsecond)
	}
	if len(times) != 1+units {
		return 0, 0, fmt.Errorf("%d units have started, not %d", len(times)-1, units)
	}
	return slices.Min(times[1:]) - times[0], slices.Max(times[1:]) - times[0], nil
}

// readiness returns the time between PID 1's messages that all services have stopped
// and that fdbridge-preserve.service has started, from the journal of the boot before.
func readiness(ctx context.Context, m *vm.Machine) (time.Duration, error) {
	var times []int64
	for _, unit := range []string{"shutdown.target", "fdbridge-preserve.service"} {
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
		us, err := strconv.ParseInt(message.Monotonic, 10, 64)
		if err != nil {
			return 0, err
		}
		times = append(times, us)
	}
	return time.Duration(times[1]-times[0]) * time.Microsecond, nil
}

// sizes prints what the programs take.
const sizes = `
kb() { sed -n "s/^$2:[^0-9]*\([0-9]*\).*/\1/p" /proc/$1/status; }
serve=$(systemctl show -P MainPID fdbridged.service)
echo "  fdbridged serve, idle                    $(kb $serve VmRSS) kB, peak $(kb $serve VmHWM) kB"
echo "  fdbridge-inject                          $(stat -c %s /usr/lib/fdbridge/fdbridge-inject) bytes"
systemd-run --quiet --wait --pipe -p MemoryAccounting=yes -p Type=oneshot -p NotifyAccess=all -p FileDescriptorStoreMax=1 -p 'ExecStopPost=sh -c "echo \"  memory of a unit with nothing but inject   $(cat /sys/fs/cgroup/system.slice/inject.service/memory.peak) bytes\""' -u inject /usr/lib/fdbridge/fdbridge-inject
`
