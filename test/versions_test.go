// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/test/contents"
)

// TestKernelUpdateWithSystemd254 is TestKernelUpdate with the oldest systemd that has
// what fdbridge needs, and a second update as below.
func TestKernelUpdateWithSystemd254(t *testing.T) {
	b := boot(t, images.oldest)
	b.update(everywhere()...)
	again(b)
	b.off()
}

// TestKernelUpdateWithSystemd262 is TestKernelUpdate with a systemd that carries
// stores itself, and a second update, which is called off before it goes on.
func TestKernelUpdateWithSystemd262(t *testing.T) {
	b := boot(t, images.sid)
	b.update(append(everywhere(), leftToSystemd(), sessionsOfAService())...)
	again(b)
	complaints(b)
	b.off()
}

// complaints checks what systemd says of stores at the end: fdbridge has left it
// only units that have sessions, of which it can do nothing with a memfd, and
// what is systemd's own.
func complaints(b *bed) {
	b.Helper()
	const memfdOfSessions, ofJournald, ofUdevd = "m", "stored", "inotify"
	names := map[string]bool{memfdOfSessions: true, ofJournald: true, ofUdevd: true}
	for line := range strings.Lines(b.m.Console()) {
		if _, said, ok := strings.Cut(line, "Failed to preserve LUO fd "); ok {
			_, name, _ := strings.Cut(said, "(name '")
			name, _, _ = strings.Cut(name, "'")
			if !names[name] {
				b.Errorf("systemd complains: %s", line)
			}
		}
	}
}

// again calls a second update off and then lets it go on.
func again(b *bed) {
	b.Helper()
	required := service(optIn+"[X-FDBridge]\nRequired=yes\n", "a,memfd,4096,7", "p,pipe")
	b.units(map[string]string{"required.service": required})
	truth := b.restarted("required.service", "s0.service", "stop.service")
	b.sh("systemctl stop late.service")
	b.calledOff(truth)

	b.sh("systemctl disable --now required.service; systemctl clean --what=fdstore required.service")
	truth = b.restarted("s0.service", "stop.service") // disable reloads: see bed.units
	b.kexec()
	b.same(truth)
	if problems := b.status().Problems; len(problems) > 0 {
		b.Errorf("fdbridge reports problems: %q", problems)
	}
}

// A unit that fdbridge leaves to systemd, which turns the order of stores round.
func leftToSystemd() scenario {
	units := map[string]string{"systemds.service": service(optIn+"[X-FDBridge]\nPreserve=no\n",
		"a,memfd,4096,1", "b,memfd,8192,2", "c,memfd,1")}
	return scenario{"a unit is left to systemd", units, func(b *bed) func(*bed) {
		truth := b.restarted("systemds.service")
		slices.Reverse(truth["systemds.service"])
		return func(b *bed) {
			b.same(truth)
			if u := b.list()["systemds.service"]; u.State != wire.StateOptedIn || u.Stored != 3 || u.Held != 0 {
				b.Errorf("the unit is listed as %+v", u)
			}
		}
	}}
}

// A service that keeps sessions of its own in its store, and those that systemd
// has made for it, beside a memfd.
func sessionsOfAService() scenario {
	units := map[string]string{"sessions.service": service(optIn+"LUOSession=first second\n",
		"own,session,4096", "m,memfd,100,3")}
	return scenario{"sessions of a service come back once", units, func(b *bed) func(*bed) {
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
