// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/test/contents"
	"github.com/fdbridge/fdbridge/test/machine"
)

// scenario is what is done before a kernel update and looked at after it.
type scenario struct {
	name   string
	units  map[string]string
	more   func(b *bed) (units []string) // that are enabled and started, too
	before func(b *bed) (after func(b *bed))
}

// TestKernelUpdate goes through an update with all scenarios that it does not
// matter to whether others go through it with them. A second one is called off; make soak
// has it called off more often, and go on then.
func TestKernelUpdate(t *testing.T) {
	b := boot(t, images.with)
	held := map[string][]found{}
	scenarios := append(everywhere(64<<20), realKernelConforms(), namesAndNumbers(), storedMoreThanOnce(held))
	if thorough {
		scenarios = slices.Insert(scenarios, 0, preparedAhead()) // it reloads: see bed.units
	}
	b.update(scenarios...)
	units := []string{"s0.service", "stop.service", "a.service", "b.service", "many.service"}
	b.turnedBack(units...)
	b.held(held, "c.service")
	if thorough {
		b.turnedBackAgain(held, units...)
		b.goesOn(units...)
		b.held(held, "c.service")
	}
	sharedAtLast(b, held)
	b.off()
}

// everywhere are the scenarios that every systemd goes through, with files of that size
// and smaller ones.
func everywhere(large int) []scenario {
	return []scenario{
		everyFD(large), storedOnStop(), withoutOptIn(), refusedKinds(), unreferenced(), heldUntilStarted(),
		realPID1Conforms(),
	}
}

// update goes through one update with scenarios.
func (b *bed) update(scenarios ...scenario) {
	b.Helper()
	files, more := map[string]string{}, []string{}
	for _, s := range scenarios {
		maps.Copy(files, s.units)
		if s.more != nil {
			more = append(more, s.more(b)...)
		}
	}
	b.units(files, more...)
	afters := make([]func(*bed), len(scenarios))
	for i, s := range scenarios {
		b.Run("before/"+s.name, func(t *testing.T) { afters[i] = s.before(b.in(t)) })
	}
	if b.Failed() {
		b.off()
		b.FailNow()
	}
	b.kexec()
	for i, s := range scenarios {
		b.Run(s.name, func(t *testing.T) { afters[i](b.in(t)) })
	}
	if n := b.status().Kernel.LiveUpdateNumber; n == nil || *n != 1 {
		b.Errorf("the live-update number is %v, want 1", n)
	}
	b.onlyRefusedLost()
}

// onlyRefusedLost checks that fdbridge has nothing to complain about but what scenarios
// have stored that the kernel refuses.
func (b *bed) onlyRefusedLost() {
	b.Helper()
	s := b.status()
	lost := slices.DeleteFunc(s.Lost, func(l wire.Lost) bool { return l.Type == "pipe" || l.Type == "socket" })
	if len(s.Problems) > 0 || len(lost) > 0 {
		b.Errorf("fdbridge reports problems %q and lost fds %+v", s.Problems, lost)
	}
}

// Five services with three memfds each, sealed or not, with a position.
func everyFD(large int) scenario {
	const shrink, grow, write = 0x2, 0x4, 0x8
	seals := []int{0, shrink, grow, shrink | grow, shrink | grow | write}
	files := map[string]string{}
	for i, seal := range seals {
		files[fmt.Sprintf("s%d.service", i)] = service(optIn,
			fmt.Sprintf("small,memfd,4096,%d,%d", i, seal),
			fmt.Sprintf("middle,memfd,1048576,%d,%d", 4096*i, seals[len(seals)-1-i]),
			fmt.Sprintf("large,memfd,%d,%d,%d", large, 12345*i, seal))
	}
	return scenario{name: "every fd comes back as it was", units: files, before: func(b *bed) func(*bed) {
		truth := b.restarted(slices.Sorted(maps.Keys(files))...)
		return func(b *bed) { b.same(truth) }
	}}
}

// A service that stores its state only when it is told to stop.
func storedOnStop() scenario {
	units := map[string]string{"stop.service": service(optIn, "-on-stop", "a,memfd,100000,7", "b,memfd,1")}
	return scenario{name: "state that is stored on stop comes back", units: units, before: func(b *bed) func(*bed) {
		truth := b.restarted("stop.service")
		b.sh("systemctl stop stop.service; systemctl clean --what=fdstore stop.service; systemctl start stop.service")
		if list := b.report("stop.service"); len(list) != 0 {
			b.Fatalf("the service was to begin without fds, and has %+v", list)
		}
		return func(b *bed) { b.same(truth) }
	}}
}

// A unit that has not opted in.
func withoutOptIn() scenario {
	units := map[string]string{"plain.service": service("FileDescriptorStoreMax=10\n", "a,memfd,4096")}
	return scenario{name: "a unit without the opt-in is left alone", units: units, before: func(b *bed) func(*bed) {
		if got := b.sh("systemctl show -P NotifyAccess -P ExecStartPre -P DropInPaths -P After plain.service"); strings.Contains(got, "fdbridge") {
			b.Errorf("fdbridge has changed the unit: %s", got)
		}
		return func(b *bed) {
			if list := b.report("plain.service"); len(list) != 0 {
				b.Errorf("the unit has got fds that a stop would have taken from it: %+v", list)
			}
			if u, listed := b.list()["plain.service"]; listed {
				b.Errorf("the unit is listed: %+v", u)
			}
		}
	}}
}

// Entries of kinds that the kernel refuses are named before and after, and the
// others of the unit are carried.
func refusedKinds() scenario {
	units := map[string]string{"mixed.service": service(optIn, "a,memfd,4096,3", "p,pipe", "s,socket", "b,memfd,100")}
	return scenario{name: "what the kernel refuses is named", units: units, before: func(b *bed) func(*bed) {
		truth := b.restarted("mixed.service")
		truth["mixed.service"] = slices.DeleteFunc(truth["mixed.service"], func(f found) bool { return f.Type != "memfd" })
		return func(b *bed) {
			b.same(truth)
			lost := map[string]wire.Lost{}
			for _, l := range b.status().Lost {
				if l.Unit == "mixed.service" {
					lost[l.Name] = l
				}
			}
			for name, kind := range map[string]string{"p": "pipe", "s": "socket"} {
				if l := lost[name]; l.Type != kind || l.Reason == "" {
					b.Errorf("fdbridgectl status names the lost fd %q as %+v", name, l)
				}
				message := fmt.Sprintf("fdbridge: mixed.service: The fd %q (%s) will be lost: the kernel cannot carry this kind of file", name, kind)
				if !strings.Contains(b.m.Console(), message) {
					b.Errorf("the log before the kexec does not say: %s", message)
				}
			}
			if len(lost) != 2 {
				b.Errorf("lost are %+v", lost)
			}
		}
	}}
}

// Units that nothing refers to, which systemd 257 would forget when they stop.
func unreferenced() scenario {
	units := map[string]string{"instance@.service": service(optIn, "a,memfd,4096", "b,memfd,8192")}
	return scenario{name: "units that nothing refers to keep their stores", units: units, before: func(b *bed) func(*bed) {
		transient := "systemd-run --quiet --unit=transient.service --service-type=notify -p FileDescriptorStoreMax=10 " +
			"-p FileDescriptorStorePreserve=yes -E UNIT=transient.service " + machine.GuestPrograms + "storesvc c,memfd,5000 d,memfd,6000"
		const instance = `instance@a\x2d1.service`
		b.sh("%s", transient)
		b.until("grep -qs transient.service /run/systemd/system/fdbridge-pin-*.target") // the first one has all looked at
		b.sh("systemctl start '%s'", instance)
		b.until(`grep -qsF "%s" /run/systemd/system/fdbridge-pin-*.target`, instance)
		both := []string{instance, "transient.service"}
		truth := b.restarted(both...)
		b.sh("systemctl stop '%s'", strings.Join(both, "' '"))
		return func(b *bed) {
			list := b.list()
			for _, unit := range both {
				if u := list[unit]; u.State != wire.StateHeld || u.Held != 2 {
					b.Errorf("after the update %s is listed as %+v, want 2 fds held", unit, u)
				}
			}
			b.sh("systemctl start '%s'; %s", instance, transient)
			b.same(truth)
		}
	}}
}

// A service that is started much later, after all that can come between.
func heldUntilStarted() scenario {
	// The start that fdbridge counts is that which asks.
	const counted = "ExecStartPre=/bin/sh -c 'test $$(readlink /run/systemd/units/invocation:%n) = $$INVOCATION_ID'\n"
	units := map[string]string{"late.service": byHand(optIn+counted, "a,memfd,4096,1", "b,memfd,8192,2", "c,memfd,0")}
	return scenario{name: "fds are held until the unit is started", units: units, before: func(b *bed) func(*bed) {
		truth := b.restarted("late.service")
		return func(b *bed) {
			held := func(when string) {
				b.Helper()
				u := b.list()["late.service"]
				if u.State != wire.StateHeld || u.Held != 3 || u.HeldBytes != 12288 {
					b.Errorf("%s late.service is listed as %+v, want 3 fds of 12288 bytes held", when, u)
				}
			}
			held("after the update")
			b.sh("systemctl daemon-reload")
			held("after daemon-reload")
			b.sh("systemctl daemon-reexec")
			held("after daemon-reexec")
			b.killServe()
			held("after a crash of fdbridged")
			b.sh("systemctl start late.service")
			b.same(truth)
			if u := b.list()["late.service"]; u.State != wire.StateOptedIn || u.Stored != 3 {
				b.Errorf("after its start late.service is listed as %+v, want 3 fds stored", u)
			}
		}
	}}
}

// Names with all characters that systemd allows, equal names and none, a unit
// name of 255 characters, manyFiles in a unit, and manyUnits.
func namesAndNumbers() scenario {
	var all strings.Builder
	for c := byte(' '); c <= '~'; c++ {
		switch c {
		case ':':
		case ',', '%':
			fmt.Fprintf(&all, "%%%02X", c)
		default:
			all.WriteByte(c)
		}
	}
	var many []string
	for i := range manyFiles {
		many = append(many, fmt.Sprintf("f%d,memfd,%d", i, i))
	}
	units := map[string]string{
		"names.service": service(optIn, all.String()+",memfd,10", "same,memfd,1", "same,memfd,2", "same,memfd,3",
			"-,memfd,4", ",memfd,5", strings.Repeat("x", 255)+",memfd,6"),
		"many.service":  service(strings.Replace(optIn, "1024", "2000", 1)+"LimitNOFILE=4096\n", many...),
		"kinds.service": service(optIn, "n,noexec,5000,7", "r,readonly,5000,8", "both,noexec,5000,9,0x3"),
		"x@.service":    service(optIn, "one,memfd,4096"),
	}
	long := strings.Repeat("n", 255-len(".service")) + ".service"
	truth := map[string][]found{}
	more := func(b *bed) []string {
		// PID 1 closes each of very many fds in a process of its own when it reloads, and has
		// no room for generators then on a machine as small as this.
		b.sh("systemctl set-property init.scope TasksMax=infinity")
		// The name leaves no room for the ending of a temporary file's.
		b.file("/root/long", service(optIn, "a,memfd,1"))
		b.sh("mv /root/long /etc/systemd/system/%s", long)
		more := []string{long}
		for i := range manyUnits {
			unit := fmt.Sprintf("x@%d.service", i)
			more = append(more, unit)
			const readWrite, memfdMode = 2, 0o100777
			truth[unit] = []found{{Name: "one", Type: "memfd", Size: 4096, Flags: readWrite, Mode: memfdMode, Sum: contents.Of(unit, "one", 4096)}}
		}
		return more
	}
	return scenario{name: "names and numbers that systemd allows", units: units, more: more, before: func(b *bed) func(*bed) {
		maps.Copy(truth, b.restarted("names.service", "many.service", "kinds.service", long))
		if n := len(truth["many.service"]); n != manyFiles {
			b.Fatalf("many.service has %d fds, want %d", n, manyFiles)
		}
		return func(b *bed) { b.same(truth) }
	}}
}

// A kernel without live update.
func TestWithoutLiveUpdateNothingHappens(t *testing.T) {
	b := boot(t, images.oldest, "liveupdate=off")
	b.units(map[string]string{"a.service": service(optIn, "a,memfd,4096")})
	for unit, property := range map[string]string{"a.service": "DropInPaths", "fdbridged.service": "ActiveState"} {
		if got := b.sh("systemctl show -P %s %s", property, unit); got != "" && got != "inactive" {
			b.Errorf("%s of %s is %q", property, unit, got)
		}
	}
	b.kexec()
	if list := b.report("a.service"); len(list) != 0 {
		b.Errorf("the unit has got fds: %+v", list)
	}
	if strings.Contains(b.m.Console(), kernelLog) {
		b.Error("fdbridge has written to the kernel log")
	}
	b.ctl(2, "no liveupdate=on on its command line", "check")
	if got := b.sh("fdbridgectl status 2>&1 || true"); !strings.Contains(got, "kho=on liveupdate=on") {
		b.Errorf("fdbridgectl does not say what is missing: %s", got)
	}
	b.off()
}

// kernelLog is how fdbridge's messages in the kernel log begin.
const kernelLog = "] fdbridge: "

// pinned waits until fdbridged has pinned a unit.
func pinned(b *bed) {
	b.Helper()
	b.until("systemctl -q is-active fdbridge-pin-*.target")
}

// inTheWay are traces of fdbridge on the console when it has a part in a reboot or
// power-off: what it says itself, what preserves, and that one of its units is waited for,
// which only systemd 262 says on this console (manager_print_jobs_in_progress in
// src/core/manager.c, with the format of Debian's).
var inTheWay = regexp.MustCompile(regexp.QuoteMeta(kernelLog) + `|fdbridge-preserve|Job fdbridge\S*/stop running`)

// leftAlone checks that fdbridge had no part in a reboot or power-off, by what the
// console says since then.
func leftAlone(b *bed, since int) {
	b.Helper()
	if traces := inTheWay.FindAllString(b.m.Console()[since:], -1); len(traces) > 0 {
		b.Errorf("the console has %q: fdbridge was part of a reboot or power-off", traces)
	}
}

// removal takes the package away under a running unit, brings it back, and takes it
// away for good.
func removal(b *bed) {
	b.Helper()
	text := byHand(optIn, "a,memfd,4096")
	b.units(map[string]string{"r.service": text, "i@.service": text})
	b.sh("systemctl start i@1.service")
	pinned(b)
	b.sh("dpkg --remove fdbridge")
	const traces = `find / -xdev -path /proc -prune -o -name '*fdbridge*' -print | grep -v -e ^/var/lib/dpkg/info -e ^/usr/lib/fdbridge-test -e ^/root || true
find /run -name '*fdbridge*' -not -name '*virtio*'; systemctl list-units --all --plain --no-legend '*fdbridge*' | grep -v virtio || true
systemctl show -P DropInPaths -P ExecStartPre r.service i@1.service`
	if got := b.sh("%s", traces); got != "/etc/fdbridge\n/etc/fdbridge/fdbridge.conf" {
		b.Errorf("what is left of a removed fdbridge is more than its configuration:\n%s", got)
	}
	if n := b.sh("systemctl show -P NFileDescriptorStore r.service"); n != "1" {
		b.Errorf("a running unit has %s fds in its store, want 1", n)
	}
	b.sh("dpkg --install %s", guestDeb)
	if u := b.list()["r.service"]; u.State != wire.StateOptedIn || u.Stored != 1 {
		b.Errorf("after the installation r.service is listed as %+v", u)
	}
	b.sh("dpkg --purge fdbridge")
	if got := b.sh("%s", traces); got != "" {
		b.Errorf("what is left of a purged fdbridge:\n%s", got)
	}
}
