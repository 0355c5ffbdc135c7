// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"strings"
	"testing"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

// TestWhatIsConfiguredHolds has an update called off that takes too long, drops what is not
// claimed, and has nothing carried while fdbridged.service is masked.
func TestWhatIsConfiguredHolds(t *testing.T) {
	b := boot(t, images.with)
	const unit, late = "a.service", "late.service"
	b.units(map[string]string{
		unit: service(optIn+"[X-FDBridge]\nRequired=yes\n", "a,memfd,4096,1", "b,memfd,8192,2"),
		late: byHand(optIn, "c,memfd,100"),
	})
	b.configured("PreserveTimeoutSec=1ms")
	before := len(b.m.Console())
	b.calledOff(b.restarted(unit))
	b.console(before, "fdbridge: The live update is called off", "it has taken longer than PreserveTimeoutSec=1ms")
	b.configured("")
	truth := b.restarted(unit, late)
	b.kexec()
	b.same(of(truth, unit))
	b.held(truth, late)
	b.configured("HoldTimeoutSec=1s")
	b.sh("systemctl restart fdbridged.service")
	b.until(`fdbridgectl status | grep -q "fds of 0 units"`)
	if u := b.list()[late]; u.Outcome != wire.ChangeDropped {
		b.Errorf("%s is listed as %+v, want it dropped", late, u)
	}
	const says = late + ": It has not claimed its fds within HoldTimeoutSec=1s; they are dropped."
	if log := b.journal("-t fdbridged"); !strings.Contains(log, says) {
		b.Errorf("the log does not say %q:\n%s", says, log)
	}
	b.same(of(truth, unit))
	b.masked(unit)
	b.off()
}

// masked goes through an update with fdbridged.service masked.
func (b *bed) masked(unit string) {
	b.Helper()
	b.sh("systemctl mask fdbridged.service")
	b.restarted(unit)
	before := len(b.m.Console())
	b.kexec()
	if list := b.report(unit); len(list) != 0 {
		b.Errorf("with fdbridged.service masked %s finds %+v", unit, list)
	}
	if console := b.m.Console()[before:]; strings.Contains(console, "fdbridge: Preserved") || strings.Contains(console, "fdbridge: The live update is called off") {
		b.Error("fdbridge has had a part in an update with fdbridged.service masked")
	}
}
