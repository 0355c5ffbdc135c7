// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fdbridge/fdbridge/internal/vm"
)

// A live update that never arrives loses what it was to carry. The next boot is
// as after any reboot, and says so once. An ordinary reboot and a power-off are as
// without fdbridge.
func TestAnUpdateThatDoesNotArriveIsReported(t *testing.T) {
	disk := filepath.Join(temporary, "disk.img") // which an interrupt removes, too
	t.Cleanup(func() { os.Remove(disk) })
	b := bootConfig(t, images.with, vm.Config{Disk: disk, AllowReboot: true})
	// reboot(2) answers EINVAL when no kernel is loaded, and systemd-shutdown
	// reboots in the ordinary way.
	const dropIn = "/etc/systemd/system/systemd-kexec.service.d/test.conf"
	b.sh("mkdir -p $(dirname %s)", dropIn)
	b.file(dropIn, "[Service]\nExecStartPre=kexec -s -u\n")
	b.units(map[string]string{
		"a.service":    service(optIn, "a,memfd,4096,5", "b,memfd,100"),
		"late.service": byHand(optIn, "a,memfd,1"),
	})
	b.restarted("a.service")
	b.sh("systemctl stop late.service")
	const lost = "3 fds of 2 units are lost: a.service (2), late.service (1)"
	reported := func(when string) {
		b.Helper()
		b.settled()
		if s := b.status(); len(s.Problems) != 1 || !strings.Contains(s.Problems[0], lost) {
			b.Errorf("after %s the problems are %q, want one that says %q", when, s.Problems, lost)
		}
		if got := b.journal("-t fdbridged -p err"); !strings.Contains(got, "late.service: 1 fds are lost") {
			b.Errorf("after %s the log does not name each unit: %s", when, got)
		}
		if list := b.report("a.service"); len(list) != 0 {
			b.Errorf("after %s a.service finds %+v", when, list)
		}
		if u := b.list()["late.service"]; u.Held != 0 {
			b.Errorf("after %s late.service is listed as %+v", when, u)
		}
	}
	b.load(vm.GuestKernel)
	if left, err := b.m.Leave(b.ctx, "systemctl", "kexec", "--no-block"); err != nil || !left {
		b.Fatalf("the failed kexec: another boot %v, %v", left, err)
	}
	reported("a kexec that failed")
	b.file(dropIn, "[Service]\nExecStartPre=sleep infinity\nTimeoutStartSec=infinity\n")
	b.restarted("a.service")
	said := len(b.m.Console())
	if err := b.m.Reboot(b.ctx); err != nil {
		b.Fatal(err)
	}
	b.settled()
	leftAlone(b, said)
	if list := b.report("a.service"); len(list) != 0 {
		b.Errorf("the unit has got fds through a reboot: %+v", list)
	}
	b.noProblems()

	b.restarted("a.service")
	said = len(b.m.Console())
	b.sh("systemctl start late.service; systemctl stop late.service; sync")
	b.load(vm.GuestKernel)
	b.sh("systemctl kexec --no-block")
	b.console(said, "Started", "fdbridge-preserve.service")
	if err := b.m.PowerCut(b.ctx); err != nil {
		b.Fatal(err)
	}
	reported("a power cut")

	removal(b)
	b.off()
}

// console waits, for a minute at most, until the guest has written a line with
// all of parts to its console, behind what was said before.
func (b *bed) console(before int, parts ...string) {
	b.Helper()
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		for line := range strings.Lines(b.m.Console()[before:]) {
			has := 0
			for _, part := range parts {
				if strings.Contains(line, part) {
					has++
				}
			}
			if has == len(parts) {
				return
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	b.Fatalf("no line on the console has all of %q", parts)
}
