// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"strings"

	"github.com/fdbridge/fdbridge/internal/vm"
)

// losing is a unit that would lose something.
const losing = "required.service"

func losingSomething(directives string) map[string]string {
	return map[string]string{losing: service(optIn+directives, "a,memfd,4096,7", "p,pipe", "b,memfd,100")}
}

// turnedBack has an update called off, for a unit that would lose something, and looks at
// that and at other units after it.
func (b *bed) turnedBack(units ...string) {
	b.Helper()
	b.units(losingSomething("[X-FDBridge]\nRequired=yes\n"))
	b.leavesLate(b.restarted(append(units, losing)...))
	const said = "fdbridge: " + losing + `: The fd "p" (pipe) will be lost`
	if !strings.Contains(b.m.Console(), said) {
		b.Errorf("the console does not say: %s", said)
	}
}

// leavesLate has an update called off while late.service runs, which was started by hand:
// it is not started again, and has its store.
func (b *bed) leavesLate(truth map[string][]found) {
	b.Helper()
	const late, report = "late.service", "/run/storesvc/late.service"
	b.sh("systemctl -q is-active %s; rm %s", late, report)
	b.calledOff(truth)
	b.until("systemctl show -P ActiveState %s | grep -qx inactive", late)
	const want = "3"
	if got := b.sh("systemctl show -P NFileDescriptorStore %s; cat %s 2> /dev/null || true", late, report); got != want {
		b.Errorf("after an update that was called off %s has not %s fds in its store, or was started: %s", late, want, got)
	}
}

// turnedBackAgain has two more updates called off after that one, and one because of
// OnLoss=rollback, which holds for units that do not ask for it. What is held stays held.
func (b *bed) turnedBackAgain(held map[string][]found, units ...string) {
	b.Helper()
	units = append(units, losing)
	truth := b.restarted(units...)
	for range 2 {
		b.calledOff(truth)
		b.held(held, "c.service")
	}
	b.configured("OnLoss=rollback")
	b.units(losingSomething(""))
	b.calledOff(b.restarted(units...))
	b.held(held, "c.service")
	b.configured("")
}

// goesOn goes through the update that was called off, with what has called it off gone.
// It is begun with fdbridgectl, which refuses one that would lose something.
func (b *bed) goesOn(units ...string) {
	b.Helper()
	b.sh("systemctl disable --now %[1]s; systemctl clean --what=fdstore %[1]s", losing)
	truth := b.restarted(units...) // disable reloads: see bed.units
	installed(b, vm.GuestKernel)
	b.moveTo(vm.GuestKernel)
	b.same(truth)
	b.noProblems()
}
