// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"maps"
	"slices"
	"strings"

	"github.com/fdbridge/fdbridge/internal/vm"
)

// calledOff asks for a live update that is to be called off, and checks that it is, and
// that units were started again, as after a plain restart.
func (b *bed) calledOff(truth map[string][]found) {
	b.Helper()
	boot, units := b.m.BootID(), slices.Sorted(maps.Keys(truth))
	if len(units) > 0 {
		b.sh("cd /run/storesvc; rm '%s'", strings.Join(units, "' '"))
	}
	b.load(vm.GuestKernel)
	left, err := b.m.Leave(b.ctx, "systemctl", "kexec", "--no-block")
	if err != nil {
		b.Fatal(err)
	}
	if left {
		b.Fatal("the update went on, and was to be called off")
	}
	b.settled()
	if now := b.sh("cat /proc/sys/kernel/random/boot_id"); now != boot {
		b.Errorf("the boot id is %s, was %s", now, boot)
	}
	b.active(units...)
	b.same(truth)
}

// What the kernel carries once is given to all who have stored it. c.service is held from
// then on, as held says, until sharedAtLast.
func storedMoreThanOnce(held map[string][]found) scenario {
	units := map[string]string{
		"a.service": service(optIn, "own,memfd,4096,5", "twice,again,a.service/own,17", "more,memfd,1"),
		"b.service": service(optIn+"[Unit]\nAfter=a.service\n", "x,memfd,8", "lent,again,a.service/own,9"),
		"c.service": byHand(optIn+"[Unit]\nAfter=a.service\n", "lent,again,a.service/own,11", "y,memfd,8"),
	}
	return scenario{name: "files that are stored more than once", units: units, before: func(b *bed) func(*bed) {
		truth := b.restarted("a.service", "b.service", "c.service")
		maps.Copy(held, of(truth, "c.service"))
		b.sh("systemctl stop c.service")
		return func(b *bed) {
			b.same(of(truth, "a.service", "b.service"))
			b.held(held, "c.service")
		}
	}}
}

// sharedAtLast starts the unit that was held, and checks that one file has stayed one file.
func sharedAtLast(b *bed, held map[string][]found) {
	b.Helper()
	b.sh("systemctl start c.service")
	b.same(held)
	inodes := map[uint64]bool{}
	for unit, names := range map[string][]string{"a.service": {"own", "twice"}, "b.service": {"lent"}, "c.service": {"lent"}} {
		for _, f := range b.report(unit) {
			if slices.Contains(names, f.Name) {
				inodes[f.Inode] = true
			}
		}
	}
	if len(inodes) != 1 {
		b.Errorf("one memfd has become %d: %v", len(inodes), inodes)
	}
	b.onlyRefusedLost()
}
