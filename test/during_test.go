// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"fmt"
	"strings"
)

// inTheMiddle are steps of a fdbridge-inject that has two fds to deliver: before the
// second is stored, before the first is, and before it says that both are.
var inTheMiddle = []int{8, 6, 11}[:middles]

// begun starts a unit and holds its delivery at a step.
func (b *bed) begun(unit string, step int) {
	b.Helper()
	b.steps(injectSteps, fmt.Sprint(step, " hold"))
	b.sh("systemctl start --no-block %s", unit)
	b.until("test -e %s/held", injectSteps)
}

// goOn lets a delivery go on, and waits until its unit runs.
func (b *bed) goOn(unit string) {
	b.Helper()
	b.sh("rm -f %s/*", injectSteps)
	b.until("test -e /run/storesvc/%[1]s && systemctl -q is-active %[1]s", unit)
}

// complete checks that units have got their fds once and for all.
func (b *bed) complete(truth map[string][]found, units ...string) {
	b.Helper()
	b.same(of(truth, units...))
	list := b.list()
	for _, unit := range units {
		if u := list[unit]; u.Held != 0 || u.Stored != len(truth[unit]) {
			b.Errorf("%s is listed as %+v, want %d fds stored", unit, u, len(truth[unit]))
		}
	}
	b.sh("systemctl restart %s", strings.Join(units, " "))
	b.same(of(truth, units...))
}

// Two starts of a unit, and two restarts, are asked for while it is started.
func startedTwice() fault {
	units := numbered("t-twice", len(inTheMiddle))
	return fault{"a unit is started twice at once", each(units, twoFiles), func(b *bed, truth map[string][]found) {
		for i, unit := range units {
			b.begun(unit, inTheMiddle[i])
			b.sh("systemctl start --no-block %[1]s; systemctl start --no-block %[1]s", unit)
			b.goOn(unit)
		}
		b.complete(truth, units...)
	}}
}

// The main process fails when it is started first after the update, and is
// started again.
func mainFails() fault {
	const unit = "t-fails.service"
	const text = `ExecStart=/bin/sh -c 'mkdir -p /run/failed; if test -e /etc/fail-once && mkdir /run/failed/%n; then exit 1; fi; exec "$$@"' sh `
	files := map[string]string{unit: strings.Replace(byHand(optIn+"Restart=on-failure\n", "a,memfd,4096,1", "b,memfd,8192,2"), "ExecStart=", text, 1)}
	return fault{"the main process fails and is started again", files, func(b *bed, truth map[string][]found) {
		b.sh("systemctl start --no-block %s", unit)
		b.until("test -e /run/storesvc/%[1]s && systemctl -q is-active %[1]s", unit)
		if n := b.sh("systemctl show -P NRestarts %s", unit); n != "1" {
			b.Errorf("%s was started again %s times, want once", unit, n)
		}
		b.complete(truth, unit)
	}}
}

// A unit is stopped and started again while its fds are being delivered, and
// while its session is not yet finished.
func stoppedMeanwhile() fault {
	units := append(numbered("t-stopped", len(inTheMiddle)), "t-unfinished.service")
	return fault{"a unit is stopped and started again meanwhile", each(units, twoFiles), func(b *bed, truth map[string][]found) {
		for i, step := range inTheMiddle {
			b.begun(units[i], step)
			b.sh("systemctl restart --no-block %s", units[i])
			b.until("systemctl list-jobs | grep -q %s", units[i])
			b.goOn(units[i])
		}
		const unfinished = "t-unfinished.service"
		b.steps(serveSteps, "+FINISH hold")
		b.sh("systemctl restart fdbridged.service; systemctl start --no-block %s", unfinished)
		b.until("test -e %s/held", serveSteps)
		b.hit(b.stepped(serveSteps), "FINISH")
		b.sh("systemctl restart --no-block %s; rm %s/held", unfinished, serveSteps)
		b.goOn(unfinished)
		b.complete(truth, units...)
	}}
}

// PID 1 executes itself anew. That turns the order of stores round, as
// daemon-reload does, so it does not come when both fds are in the store.
func pid1Again() fault {
	units := numbered("t-reexec", min(middles, 2)) // of the third step see above
	return fault{"PID 1 executes itself anew", each(units, twoFiles), func(b *bed, truth map[string][]found) {
		for i, unit := range units {
			b.begun(unit, inTheMiddle[i])
			b.sh("systemctl daemon-reexec")
			b.goOn(unit)
			b.complete(truth, unit)
		}
	}}
}
