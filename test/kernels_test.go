// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/fdbridge/fdbridge/bridge/check"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/vm"
	"github.com/fdbridge/fdbridge/test/machine"
)

// One live update to the next kernel and back, both begun with fdbridgectl, and
// what that refuses before.
func TestTheNextKernelAndBack(t *testing.T) {
	b := boot(t, images.oldest)
	b.units(map[string]string{
		"held.service": byHand(optIn, "a,memfd,4096,1", "b,memfd,8192,2,0x2"),
		"kept.service": service(optIn, "a,memfd,65536,9,0x2", "b,memfd,1", "c,memfd,0"),
		"pipe.service": byHand(optIn, "m,memfd,10", "leak,pipe"),
	})
	truth := b.restarted("held.service", "kept.service")
	b.sh("systemctl stop held.service")
	b.ctl(1, "it is not known which memfd format the running kernel", "check", "--kernel", machine.NextKernel)
	installed(b, vm.GuestKernel)
	refuses(b)

	const kept = "kept.service"
	b.arrive(machine.NextKernel, of(truth, kept))
	ungenerated(b)
	truth[kept] = b.restarted(kept)[kept]
	b.arrive(vm.GuestKernel, of(truth, kept))
	b.sh("systemctl start held.service")
	b.same(truth)
	b.off()
}

// arrive has fdbridgectl replace the kernel, and looks at what has come.
func (b *bed) arrive(kernel string, truth map[string][]found) {
	b.Helper()
	was := b.sh("uname -r")
	b.moveTo(kernel)
	installed(b, kernel)
	b.same(truth)
	if u := b.list()["held.service"]; u.State != wire.StateHeld || u.Held != 2 {
		b.Errorf("under %s held.service is listed as %+v, want 2 fds held", kernel, u)
	}
	b.noProblems()
	if release := b.sh("uname -r"); release == was || b.status().Kernel.Previous != was {
		b.Errorf("with %s the kernel is %s after %s, which was %s", kernel, release, b.status().Kernel.Previous, was)
	}
}

// ungenerated reloads PID 1 when it cannot run its generators, which harms no update.
func ungenerated(b *bed) {
	b.Helper()
	const generator = "/usr/lib/systemd/system-generators/fdbridge-generator"
	b.sh("chmod -x %[1]s; systemctl daemon-reload; chmod +x %[1]s", generator)
	pinned(b)
	if got := b.journal("-t fdbridged -p err"); !strings.Contains(got, "did not run fdbridge's generator") {
		b.Errorf("the log does not say that the generator did not run: %s", got)
	}
}

// installed gives the running kernel's image the name that distributions give it.
func installed(b *bed, kernel string) {
	b.Helper()
	b.sh("ln -sf %s /boot/vmlinuz-$(uname -r)", kernel)
}

// moveTo has fdbridgectl replace the kernel.
func (b *bed) moveTo(kernel string) {
	b.Helper()
	left, err := b.m.Leave(b.ctx, "fdbridgectl", "kexec", "--kernel", kernel, "--reuse-cmdline")
	if err != nil {
		b.Fatal(err)
	}
	if !left {
		b.Fatal("the update was called off")
	}
	b.settled()
}

// refuses goes through what fdbridgectl finds before a kernel is loaded, and
// after. It leaves pipe.service without what it had.
func refuses(b *bed) {
	b.Helper()
	boot := b.m.BootID()
	b.ctl(2, "no kernel is loaded for kexec", "check")
	b.ctl(2, "KEXEC_HANDOVER", "check", "--kernel", machine.CloudKernel)
	b.ctl(2, "KEXEC_HANDOVER", "kexec", "--kernel", machine.CloudKernel, "--reuse-cmdline")
	b.ctl(2, "no kho=on and no liveupdate=on", "kexec", "--kernel", machine.NextKernel, "--cmdline", "console=ttyS0")
	const leak = `pipe.service: fd "leak" (pipe): the kernel cannot carry`
	b.ctl(1, leak, "check", "--kernel", machine.NextKernel)
	b.ctl(1, leak, "kexec", "--kernel", machine.NextKernel, "--reuse-cmdline")
	if got := b.sh("cat /sys/kernel/kexec_loaded /proc/sys/kernel/random/boot_id; systemctl is-active kept.service"); got != "0\n"+boot+"\nactive" {
		b.Errorf("what was refused has changed something: %s", got)
	}

	b.load(machine.NextKernel)
	finds := func(status int) (found check.Result) {
		b.Helper()
		if err := json.Unmarshal([]byte(b.ctl(status, "{", "check", "--json")), &found); err != nil {
			b.Fatal(err)
		}
		return found
	}
	entries := map[string][]check.Entry{}
	for _, u := range finds(1).Units {
		entries[u.Unit] = u.Entries
	}
	lost := func(e check.Entry) bool { return !e.Carried }
	if e := entries["pipe.service"]; len(e) != 2 || e[0].Name != "leak" || e[0].Carried || e[0].Reason == "" || !e[1].Carried {
		b.Errorf("check has pipe.service as %+v", e)
	}
	if e := entries["kept.service"]; len(e) != 3 || slices.ContainsFunc(e, lost) {
		b.Errorf("check has kept.service as %+v", e)
	}
	b.sh("systemctl stop pipe.service; systemctl clean --what=fdstore pipe.service")
	if found := finds(0); found.Outcome != check.Carried || !found.Kernel.Loaded {
		b.Errorf("check finds %+v", found)
	}
	b.sh("kexec -u")
	b.ctl(0, "Nothing would be lost: 5 fds of 2 units", "check", "--kernel", machine.NextKernel)
}

// ctl runs fdbridgectl, which is to end with a status and say something, and
// returns all that it says.
func (b *bed) ctl(status int, says string, args ...string) string {
	b.Helper()
	r, err := b.do(append([]string{"fdbridgectl"}, args...)...)
	if err != nil {
		b.Fatal(err)
	}
	said := r.Stdout + r.Stderr
	if r.Status != status || !strings.Contains(strings.Join(strings.Fields(said), " "), says) {
		b.Errorf("fdbridgectl %q ends with status %d, want %d, and is to say %q:\n%s", args, r.Status, status, says, said)
	}
	return r.Stdout
}
