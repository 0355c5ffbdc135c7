// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/fdbridge/fdbridge/internal/vm"
)

// tracePath is where strace writes in the guest.
const tracePath = "/var/tmp/preserve.trace"

// count says how many system calls and bytes of PID 1's socket it takes to preserve a
// file, and how large the programs are. strace makes it take long, so that it is
// not measured at the same time.
func count(ctx context.Context, config vm.Config) (text string, err error) {
	err = withMachine(ctx, config, func(ctx context.Context, m *vm.Machine) error {
		if err := populate(ctx, m, counted); err != nil {
			return err
		}
		// The process that will preserve is there from then on.
		r, err := m.Shell(ctx, "fdbridgectl prepare >&2\nsystemctl show -P MainPID fdbridge-preserve.service")
		if err != nil {
			return err
		}
		pid := strings.TrimSpace(r.Stdout)
		_, err = m.Shell(ctx, fmt.Sprintf(`setsid strace -f -yy -s 0 -o %s -p %s > /dev/null 2>&1 &
timeout 60 sh -c 'until grep -q "^TracerPid:[^0-9]*[1-9]" /proc/%[2]s/status; do sleep 0.1; done'`, tracePath, pid))
		if err != nil {
			return err
		}
		if err := m.KexecWithin(ctx, kexecWait); err != nil {
			return err
		}
		if err := settle(ctx, m); err != nil {
			return err
		}
		if r, err = m.Shell(ctx, "cat "+tracePath); err != nil {
			return err
		}
		text = calls(r.Stdout)
		r, err = m.Shell(ctx, sizes)
		text += r.Stdout
		return err
	})
	return text, err
}

// sizes prints what the programs take.
const sizes = `
echo "fdbridge-inject: $(stat -c %s /usr/lib/fdbridge/fdbridge-inject) bytes; the package installed: $(dpkg-query -W -f '${Installed-Size}' fdbridge) KiB"
systemd-run --quiet --wait --pipe -p MemoryAccounting=yes -p Type=oneshot -p NotifyAccess=all -p FileDescriptorStoreMax=1 -p 'ExecStopPost=sh -c "echo \"memory of a unit with nothing but fdbridge-inject: $(cat /sys/fs/cgroup/system.slice/inject.service/memory.peak) bytes\""' -u inject /usr/lib/fdbridge/fdbridge-inject
`

// Lines of strace, which begin with the thread's number: the connection to PID 1, with
// the socket's inode; the start of a transfer over one, which another thread may
// interrupt; and the rest of one.
var (
	connected = regexp.MustCompile(`connect\(\d+<UNIX-STREAM:\[(\d+).*sun_path="/run/systemd/private"`)
	transfer  = regexp.MustCompile(`^(\d+) +(?:sendmsg|sendto|write|recvmsg|recvfrom|read)\(\d+<UNIX-STREAM:\[(\d+)`)
	resumed   = regexp.MustCompile(`^(\d+) +<\.\.\. \w+ resumed>`)
	result    = regexp.MustCompile(` = (\d+)$`)
)

// calls counts what is in a trace.
func calls(trace string) string {
	fds := float64(counted.units * counted.files)
	all, bytes := 0, 0
	sockets, interrupted := map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(trace) {
		line = strings.TrimSpace(line)
		counts := false
		if rest := resumed.FindStringSubmatch(line); rest != nil {
			counts = interrupted[rest[1]]
			delete(interrupted, rest[1])
		} else if strings.Contains(line, "(") {
			all++
			if c := connected.FindStringSubmatch(line); c != nil {
				sockets[c[1]] = true
			}
			t := transfer.FindStringSubmatch(line)
			counts = t != nil && sockets[t[2]]
			if counts && strings.HasSuffix(line, "<unfinished ...>") {
				interrupted[t[1]] = true
			}
		}
		if n := result.FindStringSubmatch(line); counts && n != nil {
			moved, _ := strconv.Atoi(n[1]) // digits
			bytes += moved
		}
	}
	return fmt.Sprintf("%v: %.1f system calls and %.0f bytes of PID 1's socket per fd\n", counted, float64(all)/fds, float64(bytes)/fds)
}
