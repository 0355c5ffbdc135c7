// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/test/contents"
)

// TestKernelUpdateWithSystemd254 is TestKernelUpdate with the oldest systemd that has
// what fdbridge needs, and a second update, on a machine that is full.
func TestKernelUpdateWithSystemd254(t *testing.T) {
	b := boot(t, images.oldest)
	b.update(append([]scenario{preparedAhead(), shown()}, everywhere(4<<20)...)...)
	full(b, "s0.service", "stop.service")
	b.off()
}

// TestKernelUpdateWithSystemd262 is TestKernelUpdate with a systemd that carries
// stores itself, and a second update, which is called off, and in make soak goes on then.
func TestKernelUpdateWithSystemd262(t *testing.T) {
	b := boot(t, images.sid)
	b.update(append(everywhere(4<<20), leftToSystemd(), sessionsOfAService())...)
	units := []string{"s0.service", "stop.service"}
	b.turnedBack(units...)
	if thorough {
		b.goesOn(units...)
	}
	complaints(b)
	b.off()
}

// TestSystemd262IsKeptFromTheDevice has nothing that systemd could carry: stores are not
// emptied for it then, but fdbridge has the device.
func TestSystemd262IsKeptFromTheDevice(t *testing.T) {
	b := boot(t, images.sid)
	b.units(map[string]string{"a.service": service(optIn, "a,memfd,4096,1", "b,memfd,8192,2", "p,pipe")})
	truth := b.restarted("a.service")
	truth["a.service"] = slices.DeleteFunc(truth["a.service"], func(f found) bool { return f.Name == "p" })
	before := len(b.m.Console())
	b.kexec()
	b.same(truth)
	b.onlyRefusedLost()
	b.console(before, "fdbridge: Nothing is left for the service manager to carry")
	b.console(before, "systemd-shutdown", "Failed to open /dev/liveupdate: Device or resource busy")
	if strings.Contains(b.m.Console(), "Failed to preserve LUO fd") {
		b.Error("systemd has tried to carry what fdbridge carries")
	}
	b.off()
}

// complaints checks what systemd says of stores at the end: fdbridge has left it
// only units that have sessions, of which it can do nothing with a memfd, and
// what is systemd's own.
func complaints(b *bed) {
	b.Helper()
	const memfdOfSessions, ofJournald, ofUdevd = "m", "stored", "inotify"
	seen := map[string]int{memfdOfSessions: 0, ofJournald: 0, ofUdevd: 0}
	for line := range strings.Lines(b.m.Console()) {
		if _, said, ok := strings.Cut(line, "Failed to preserve LUO fd "); ok {
			_, name, _ := strings.Cut(said, "(name '")
			name, _, _ = strings.Cut(name, "'")
			if _, ok := seen[name]; !ok {
				b.Errorf("systemd complains: %s", line)
			}
			seen[name]++
		}
	}
	for name, n := range seen { // or what it says is not what is looked for
		if n == 0 {
			b.Errorf("systemd does not complain of %q, which it cannot carry", name)
		}
	}
}

// A unit that fdbridge leaves to systemd, which turns the order of stores round.
func leftToSystemd() scenario {
	units := map[string]string{"systemds.service": service(optIn+"[X-FDBridge]\nPreserve=no\n",
		"a,memfd,4096,1", "b,memfd,8192,2", "c,memfd,1")}
	return scenario{name: "a unit is left to systemd", units: units, before: func(b *bed) func(*bed) {
		truth := b.restarted("systemds.service")
		slices.Reverse(truth["systemds.service"])
		return func(b *bed) {
			b.same(truth)
			if u, ok := b.list()["systemds.service"]; ok {
				b.Errorf("a unit that is no concern of fdbridge's is listed as %+v", u)
			}
		}
	}}
}

// A service that keeps sessions of its own in its store, and those that systemd
// has made for it, beside a memfd.
func sessionsOfAService() scenario {
	units := map[string]string{"sessions.service": service(optIn+"LUOSession=first second\n",
		"own,session,4096", "m,memfd,100,3")}
	return scenario{name: "sessions of a service come back once", units: units, before: func(b *bed) func(*bed) {
		truth := b.restarted("sessions.service")["sessions.service"]
		return func(b *bed) {
			got := b.report("sessions.service")
			names := func(list []found) (names []string) {
				for _, f := range list {
					names = append(names, f.Name+" "+f.Type)
				}
				slices.Sort(names)
				return names
			}
			if diff := cmp.Diff(names(truth), names(got)); diff != "" {
				b.Errorf("the unit has got other fds (-want +got):\n%s", diff)
			}
			inside := contents.Of("sessions.service", "own", 4096)
			if !slices.ContainsFunc(got, func(f found) bool { return f.Name == "own" && f.Sum == inside }) {
				b.Errorf("the service's own session has not what was in it: %+v", got)
			}
		}
	}}
}
