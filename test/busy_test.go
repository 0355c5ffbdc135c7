// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

// occupier is a unit that opens the device before another one is started, and
// has it open until the shell's command meanwhile ends.
func occupier(before, wantedBy, order, meanwhile string) string {
	return fmt.Sprintf(`[Unit]
DefaultDependencies=no
Before=%s
%s
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=sh -c 'exec 3<>/dev/liveupdate; { %s; } &'
[Install]
WantedBy=%s
`, before, order, meanwhile, wantedBy)
}

const (
	forEver = "sleep infinity"
	// untilMet is until what preserves has found the device open, at which it is held.
	untilMet = "until test -e " + preserveSteps + "/held; do sleep 0.1; done; exec 3>&-; rm " + preserveSteps + "/held"
	// untilBegun is until what delivers to a unit was held and goes on.
	untilBegun = "until test -e " + injectSteps + "/held; do sleep 0.1; done; while test -e " + injectSteps + "/held; do sleep 0.1; done; exec 3>&-"
)

// atBoot has the device while fdbridged starts, and atPreserve while the stores
// are preserved.
func atBoot(meanwhile string) string {
	return occupier("fdbridged.service shutdown.target", "sysinit.target", "Conflicts=shutdown.target", meanwhile)
}

func atPreserve(meanwhile string) string {
	return occupier("fdbridge-preserve.service", "kexec.target", "After=shutdown.target", meanwhile)
}

// occupy changes unit files, of which those of occupiers are enabled but not
// started, and returns what units find from then on: see bed.units.
func occupy(b *bed, files map[string]string, units ...string) (truth map[string][]found) {
	b.Helper()
	for unit, text := range files {
		b.file("/etc/systemd/system/"+unit, text)
	}
	b.sh("systemctl enable -q %s", strings.Join(slices.Sorted(maps.Keys(files)), " "))
	return b.restarted(units...)
}

// Another process has the device open when it is wanted. For a while: all is as
// without it. For ever: units start without their fds, which are delivered when
// it is free, and an update goes on, or is called off if that was asked for.
func TestTheDeviceIsBusy(t *testing.T) {
	b := boot(t, common())
	b.preserveUnderAtstep()
	b.injectUnderAtstep("waits.service")
	b.steps(preserveSteps, "EBUSY hold")
	// They store nothing anew before they are told to stop.
	a := service(optIn, "-on-stop", "a,memfd,4096,7", "b,memfd,100")
	b.units(map[string]string{"a.service": a, "waits.service": byHand(optIn, "-on-stop", "a,memfd,8192,3", "b,memfd,1")})

	truth := occupy(b, map[string]string{"boot.service": atBoot(untilBegun), "preserve.service": atPreserve(untilMet)}, "a.service", "waits.service")
	b.kexec()
	b.hit(b.stepped(preserveSteps), "EBUSY")
	freed(b, truth)

	if thorough {
		b.sh("systemctl disable -q --no-reload --now boot.service preserve.service")
		truth = occupy(b, map[string]string{"preserve.service": atPreserve(forEver), "a.service": a + "[X-FDBridge]\nRequired=yes\n"}, "a.service")
		b.calledOff(truth)
		goneOnWith(b, a)
	}
	b.off()
}

// goneOnWith is an update for which nothing can be preserved, and nothing has to be.
func goneOnWith(b *bed, a string) {
	b.Helper()
	b.sh("systemctl disable -q --no-reload --now preserve.service")
	occupy(b, map[string]string{"preserve.service": atPreserve(forEver), "a.service": a}, "a.service")
	b.kexec()
	if list := b.report("a.service"); len(list) != 0 {
		b.Errorf("fds have come through an update that preserved none: %+v", list)
	}
	for _, said := range []string{"The live update is called off: ", "No fd store will be carried into the next kernel: ",
		`a.service: Not carried are the fds "`} {
		if !strings.Contains(b.m.Console(), "fdbridge: "+said) {
			b.Errorf("the console does not say: %s", said)
		}
	}
	b.until(`fdbridgectl status --json | grep -q "4 fds of 2 units are lost: a.service (2), waits.service (2)"`)
}

// freed looks at a unit that was started while nothing could be retrieved, and
// goes on when the device is free.
func freed(b *bed, truth map[string][]found) {
	b.Helper()
	if list := b.report("a.service"); len(list) != 0 {
		b.Errorf("the unit has got fds that cannot have been retrieved: %+v", list)
	}
	b.said("fdbridge-inject", "another process has the device open")
	if problems := b.status().Problems; len(problems) != 1 || !strings.Contains(problems[0], "cannot be restored") {
		b.Errorf("fdbridge reports the problems %q", problems)
	}
	// This one waits for its fds, as all units do for a while after fdbridged has begun: it is
	// about to ask by then, so that none of that while passes with starting it.
	b.begun("waits.service", 1)
	b.sh("systemctl restart fdbridged.service; rm %s/held", injectSteps)
	b.until("systemctl -q is-active waits.service")
	b.same(of(truth, "waits.service"))
	b.said("fdbridged", "was restored at last")
	if u := b.list()["a.service"]; u.State != wire.StateHeld || u.Held != 2 {
		b.Errorf("a.service is listed as %+v, want 2 fds held", u)
	}
	b.killed("a.service")
	b.until("! systemctl -q is-active a.service")
	b.sh("systemctl start a.service")
	b.same(truth)
}

// said checks that the journal of this boot has a message of a program.
func (b *bed) said(program, message string) {
	b.Helper()
	if got := b.journal("-t %s", program); !strings.Contains(got, message) {
		b.Errorf("%s has not said %q, but:\n%s", program, message, got)
	}
}
