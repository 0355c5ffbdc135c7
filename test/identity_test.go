// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"strings"
	"testing"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/test/machine"
)

// as is a service that runs as a user who may write the report.
func as(user string) string {
	return optIn + user + "\nExecStartPre=+install -d -m 0777 /run/storesvc\nReadWritePaths=-/run/storesvc\n"
}

const (
	previously = "[X-FDBridge]\nPreviousName="
	everything = "[X-FDBridge]\nIdentity=unit user group fragment\n"
)

// What is held is given to the unit that it belongs to, and to no other, until an
// administrator decides otherwise; who that is, is first looked at on the message bus.
func TestTheRightFDGoesBackToTheRightUnit(t *testing.T) {
	b := boot(t, images.with)
	two := []string{"a,memfd,4096,5", "b,memfd,100"}
	units := map[string]string{
		"kept.service":    service(as("User=daemon")+everything, append(two, "r,readonly,100")...),
		"dynamic.service": service(as("DynamicUser=yes")+everything, two...),
		"changed.service": service(as("User=daemon"), two...),
		"old.service":     service(as("User=daemon"), two...),
		"gone.service":    service(optIn, two...),
		"owner.service":   byHand(optIn, two...),
		"ghost.service":   service(optIn),
		"forger.service":  service(optIn, "fdbridge.victim.service,session,4096"),
		"victim.service":  service(optIn, two...),
	}
	for _, unit := range busUnits {
		units[unit] = byHand(optIn, "a,memfd,4096", "b,memfd,8192")
	}
	b.units(units)
	if got := b.busStates()["start.service"]; got != "opted-in, 0 held" {
		b.Errorf("before the update start.service is %s", got)
	}
	truth := b.restarted("kept.service", "dynamic.service", "changed.service", "old.service", "gone.service", "owner.service")
	// The next kernel's systemd reads the files that are there then.
	const etc = "/etc/systemd/system/"
	b.file(etc+"changed.service", service(as("User=bin"), two...))
	b.file(etc+"renamed.service", service(as("User=daemon")+previously+"old.service\n", two...))
	b.file(etc+"moved.service", service(optIn, two...))
	b.file(etc+"thief.service", service(as("User=games")+previously+"owner.service\n", two...))
	b.sh(`cd %s; rm old.service gone.service; cd multi-user.target.wants; rm old.service gone.service
for unit in renamed moved thief; do ln -s ../$unit.service; done; sync`, etc)
	b.kexec()
	b.Run("the message bus", func(t *testing.T) { onTheBus(b.in(t)) })
	b.active("kept.service", "dynamic.service", "changed.service", "renamed.service", "moved.service", "thief.service",
		"ghost.service", "forger.service", "victim.service")

	truth["renamed.service"] = truth["old.service"]
	b.same(map[string][]found{"kept.service": truth["kept.service"], "dynamic.service": truth["dynamic.service"],
		"renamed.service": truth["renamed.service"]})
	b.nothingFor("changed.service", "moved.service", "thief.service", "ghost.service", "forger.service", "victim.service")
	forged(b)
	list := b.list()
	for unit, held := range map[string]int{"changed.service": 2, "gone.service": 2, "owner.service": 2, "old.service": 0, "renamed.service": 0} {
		if u := list[unit]; u.Held != held {
			b.Errorf("%s is listed as %+v, want %d fds held", unit, u, held)
		}
	}
	b.refused("changed.service: What is held for it was not delivered",
		`its user was "daemon" and is "bin"`, `"fdbridgectl deliver changed.service --as changed.service"`)
	b.refused("thief.service: What is held for owner.service was not delivered", "owner.service is a unit of its own")
	impostors(b)

	b.ctl(1, "there is no unit none.service", "deliver", "gone.service", "--as", "none.service")
	b.ctl(1, "nothing is held for old.service", "deliver", "old.service", "--as", "moved.service")
	b.sh("systemctl stop changed.service moved.service; systemctl clean --what=fdstore changed.service moved.service")
	for unit, to := range map[string]string{"changed.service": "changed.service", "gone.service": "moved.service"} {
		want := "2 fds of " + unit + " will be delivered to " + to + " when it starts."
		if got := b.sh("fdbridgectl deliver %s --as %s", unit, to); got != want {
			b.Errorf("deliver says %q, want %q", got, want)
		}
	}
	b.killServe()
	b.sh("systemctl start changed.service moved.service owner.service")
	b.same(map[string][]found{"changed.service": truth["changed.service"], "moved.service": truth["gone.service"],
		"owner.service": truth["owner.service"]})
	for unit, u := range b.list() {
		if u.State == wire.StateHeld {
			b.Errorf("%s is listed as %+v still", unit, u)
		}
	}
	b.off()
}

// forged looks at what has become of the fds of a unit when another one had a session under
// its name: they are lost, and what is in the way is named.
func forged(b *bed) {
	b.Helper()
	lost := map[string]string{}
	for _, l := range b.status().Lost {
		if l.Unit == "victim.service" {
			lost[l.Name] = l.Reason
		}
	}
	for _, name := range []string{"a", "b"} {
		if !strings.Contains(lost[name], session.ErrExist.Error()) {
			b.Errorf("of victim.service are lost, and why: %q", lost)
		}
	}
}

// nothingFor checks that units were started without fds.
func (b *bed) nothingFor(units ...string) {
	b.Helper()
	for _, unit := range units {
		if list := b.report(unit); len(list) > 0 {
			b.Errorf("%s has got %+v", unit, list)
		}
	}
}

// refused checks that there is one problem that begins so and says all of parts,
// and that the log has the process besides.
func (b *bed) refused(begins string, parts ...string) {
	b.Helper()
	var about []string
	for _, problem := range b.status().Problems {
		if strings.HasPrefix(problem, begins) {
			about = append(about, problem)
		}
	}
	if len(about) != 1 {
		b.Errorf("%d problems begin with %q, want one: %q", len(about), begins, about)
		return
	}
	for _, part := range parts {
		if !strings.Contains(about[0], part) {
			b.Errorf("a problem does not say %q: %s", part, about[0])
		}
	}
	if log := b.journal("-t fdbridged"); !strings.Contains(log, about[0]+" (asked for by process ") {
		b.Errorf("the log does not name the process that was refused %q: %s", begins, log)
	}
}

// impostors are processes of other units that ask for what is owner.service's.
func impostors(b *bed) {
	b.Helper()
	got := b.sh(`systemd-run --quiet --wait --pipe --unit=impostor.service %simpostor \
'{"op":"deliver","unit":"owner.service","session":"fdbridge.owner.service"}' \
'{"op":"file","unit":"owner.service","session":"fdbridge.owner.service","token":1}' \
'{"op":"delivered","session":"fdbridge.owner.service","stored":2}'`, machine.GuestPrograms)
	lines := strings.Split(got, "\n")
	for i, says := range []string{`fd false: {}`, `fd false: {"error":"there is no operation`, "is the manifest of another unit than impostor.service"} {
		if i >= len(lines) || !strings.Contains(lines[i], says) {
			b.Errorf("the answers are %q, want one that says %q", lines, says)
		}
	}
	// A process that is in no service, with the control group of a user's session.
	got = b.sh(`systemd-run --quiet --scope --unit=impostor.scope %simpostor '{"op":"deliver","unit":"owner.service"}'`, machine.GuestPrograms)
	if !strings.Contains(got, "fd false: ") || !strings.Contains(got, "belongs to no unit") {
		b.Errorf("a process of no service is answered %s", got)
	}
	if u := b.list()["owner.service"]; u.Held != 2 {
		b.Errorf("after that owner.service is listed as %+v", u)
	}
	log := b.journal("-t fdbridged")
	for _, says := range []string{"is the manifest of another unit than impostor.service", "the process belongs to no unit"} {
		if !strings.Contains(log, says) {
			b.Errorf("the log does not say %q: %s", says, log)
		}
	}
}
