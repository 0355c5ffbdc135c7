// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/test/machine"
)

// Where atstep reads at which steps it is to kill or hold what. On the disk, so
// that it is there right after a kexec.
const (
	serveSteps    = "/etc/atstep/serve"
	injectSteps   = "/etc/atstep/inject"
	preserveSteps = "/etc/atstep/preserve"
)

// atstep is how a command line begins that puts a program under atstep.
const atstep = machine.GuestPrograms + "atstep "

// dropIn writes a drop-in of a unit that comes after fdbridge's own.
func (b *bed) dropIn(unit, text string) {
	b.Helper()
	b.sh("mkdir -p /etc/systemd/system/%s.d", unit)
	b.file("/etc/systemd/system/"+unit+".d/zzz-test.conf", "[Service]\n"+text)
}

// serveUnderAtstep puts fdbridged under atstep, which what confines it would not let
// trace it, and has it start again sooner than usual when it was killed.
func (b *bed) serveUnderAtstep() {
	b.dropIn("fdbridged.service", "ExecStart=\nExecStart=+"+atstep+serveSteps+
		" /usr/lib/fdbridge/fdbridged serve\nRestartSteps=0\nRestartMaxDelaySec=infinity\n")
}

// injectUnderAtstep puts the fdbridge-inject of a unit under atstep, or of all units whose
// names begin so: systemd.unit(5).
func (b *bed) injectUnderAtstep(unit string) {
	b.dropIn(unit, "ExecStartPre=\nExecStartPre=-+"+atstep+injectSteps+" /usr/lib/fdbridge/fdbridge-inject\n")
}

// preserveUnderAtstep puts "fdbridged preserve" under atstep.
func (b *bed) preserveUnderAtstep() {
	b.dropIn("fdbridge-preserve.service", "ExecStart=\nExecStart=+@"+strings.TrimSpace(atstep)+" @fdbridged "+preserveSteps+
		" /usr/lib/fdbridge/fdbridged preserve\n")
}

// steps says what is to be done at which steps of the next runs of what is
// under atstep, in a line for each.
func (b *bed) steps(dir string, lines ...string) {
	b.Helper()
	b.sh("mkdir -p %[1]s; rm -f %[1]s/*; printf '%[2]s' >%[1]s/steps", dir, strings.Join(lines, `\n`))
}

// stepped returns the steps to which it has come since.
func (b *bed) stepped(dir string) []string {
	b.Helper()
	return strings.FieldsFunc(b.sh("cat %s/log 2>/dev/null || true", dir), func(c rune) bool { return c == '\n' })
}

// hit checks that there are steps, and some of each kind among them, named by how they
// begin.
func (b *bed) hit(steps []string, kinds ...string) {
	b.Helper()
	if len(steps) == 0 {
		b.Error("no step was hit")
	}
	b.Logf("hit were %d steps:\n%s", len(steps), strings.Join(steps, "\n"))
	for _, kind := range kinds {
		if !slices.ContainsFunc(steps, func(step string) bool { return strings.HasPrefix(step, kind) }) {
			b.Errorf("no step was hit that is %q", kind)
		}
	}
}

// held checks that the fds of units are all held.
func (b *bed) held(truth map[string][]found, units ...string) {
	b.Helper()
	list := b.list()
	for _, unit := range units {
		if u := list[unit]; u.State != wire.StateHeld || u.Held != len(truth[unit]) {
			b.Errorf("%s is listed as %+v, want %d fds held", unit, u, len(truth[unit]))
		}
	}
}

// of returns the part of the truth that is about units.
func of(truth map[string][]found, units ...string) map[string][]found {
	part := map[string][]found{}
	for _, unit := range units {
		part[unit] = truth[unit]
	}
	return part
}

// numbered returns names of units.
func numbered(prefix string, n int) (units []string) {
	for i := range n {
		units = append(units, fmt.Sprint(prefix, i+1, ".service"))
	}
	return units
}
