// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/test/machine"
)

// owner is a unit file of a service that has sessions of its own.
func owner(directives string, names ...string) string {
	return "[Service]\nType=notify\nEnvironment=UNIT=%n\nRuntimeDirectory=%N\nRuntimeDirectoryPreserve=yes\nExecStart=" +
		machine.GuestPrograms + "sessionsvc " + strings.Join(names, " ") + "\n" + directives + "[Install]\nWantedBy=multi-user.target\n"
}

// sessionReport returns what a unit of owner's has found.
func (b *bed) sessionReport(name string) string { b.Helper(); return b.sh("cat /run/%s/report", name) }

// find checks what units of owner's have found.
func (b *bed) find(when string, want map[string][]string) {
	b.Helper()
	for name, lines := range want {
		if diff := cmp.Diff(lines, strings.Split(b.sessionReport(name), "\n")); diff != "" {
			b.Errorf("%s: %s (-want +got):\n%s", when, name, diff)
		}
	}
}

// logged checks the first line that the examples have logged in this boot.
func (b *bed) logged(when string, want map[string]string) {
	b.Helper()
	for name, line := range want {
		const first = "^(start|came|a new)"
		b.until(`journalctl --no-pager -q -b -o cat -u %s.service | grep -qE "%s"`, name, first)
		lines := strings.Split(b.journal("-u %s.service", name), "\n")
		if got := lines[slices.IndexFunc(lines, regexp.MustCompile(first).MatchString)]; got != line {
			b.Errorf("%s: %s.service says %q, want %q", when, name, got, line)
		}
	}
}

// TestServicesHaveSessionsOfTheirOwn goes through an update, and in make soak through
// another one, with services that preserve memfds by themselves, none of which runs as
// root.
func TestServicesHaveSessionsOfTheirOwn(t *testing.T) {
	b := boot(t, images.with)
	const nobody, somebody = "uid 65534", "uid 7"
	b.sh("cd /usr/lib/fdbridge-test && install -m 755 guest luo luosession.sh /usr/local/bin && " +
		"install -m 644 guest.service luosession.service /etc/systemd/system")
	b.units(map[string]string{
		"vm.service":       owner(optIn+"User=nobody\n", "guest", "vfio/0~x"),
		"other.service":    owner(optIn+"User=lp\n", "guest"),
		"outsider.service": owner("User=nobody\n", "guest"),
		"luo.service":      owner("User=nobody\nLUOSession=first second\n"),
	}, "guest.service", "luosession.service")
	b.logged("at first", map[string]string{"guest": "start 1", "luosession": "a new session"})
	const notOptedIn = "guest fdbridged refused \"open-session\" of the session \"guest\": outsider.service has not opted in, " +
		"which takes FileDescriptorStoreMax= above zero and FileDescriptorStorePreserve=yes"
	b.find("at first", map[string][]string{
		"vm":       {nobody, "guest none", "vfio/0~x none"},
		"other":    {somebody, "guest none"},
		"outsider": {nobody, notOptedIn},
		"luo":      {nobody, "passed second is new", "passed first is new"},
	})
	// fdbridged and the services crash; the sessions are where they were.
	b.sh("systemctl kill --signal=KILL --kill-whom=main fdbridged.service; systemctl restart vm.service luo.service")
	b.find("after a restart", map[string][]string{
		"vm":  {nobody, "guest none, is open", "vfio/0~x none, is open"},
		"luo": {nobody, "passed second has it", "passed first has it"},
	})
	b.sh("systemctl disable --no-reload --now other.service")
	// The next kernel's systemd reads the files that are there then: one of another unit
	// that comes by the names of what is carried, and one that gives a unit another user.
	b.file("/etc/systemd/system/intruder.service", owner(optIn+"User=nobody\n", "first", "vfio/0~x"))
	b.file("/etc/systemd/system/other.service.d/user.conf", "[Service]\nUser=nobody\n")

	b.kexec()
	b.find("after the update", map[string][]string{
		"vm":       {nobody, "guest guest of vm.service", "vfio/0~x vfio/0~x of vm.service"},
		"outsider": {nobody, notOptedIn},
		"luo":      {nobody, "passed second second of luo.service", "passed first first of luo.service"},
	})
	b.sh("systemctl start intruder.service")
	b.logged("after the update", map[string]string{"guest": "start 2", "luosession": "came: hello"})
	b.find("beside those", map[string][]string{"intruder": {nobody, "first none", "vfio/0~x none"}})
	b.sh("systemctl start other.service")
	b.find("with another user", map[string][]string{"other": {nobody, "guest fdbridged refused \"claim-session\" of the session \"guest\": " +
		`other.service is not the unit that it was before the live update: its user was "lp" and is "nobody"; ` +
		`"fdbridgectl drop other.service" lets go of the session`}})
	if got := b.sh("fdbridgectl check --json || :"); !strings.Contains(got, `"guest"`) || !strings.Contains(got, "luo_session") {
		b.Errorf("check does not name the session that would be lost: %s", got)
	}
	b.sh("fdbridgectl drop other.service")
	b.noProblems()
	if thorough {
		b.kexec()
		b.find("after the second update", map[string][]string{
			"vm": {nobody, "guest guest of vm.service", "vfio/0~x vfio/0~x of vm.service"},
		})
		b.logged("after the second update", map[string]string{"guest": "start 3", "luosession": "a new session"})
	}
	b.off()
}
