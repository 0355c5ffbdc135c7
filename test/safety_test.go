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

// calledOff asks for a live update that is to be called off, and checks that it is, and
// that units were started again, as after a plain restart.
func (b *bed) calledOff(truth map[string][]found) {
	b.Helper()
	boot, units := b.m.BootID(), slices.Sorted(maps.Keys(truth))
	for _, unit := range units {
		b.sh("rm '/run/storesvc/%s'", unit)
	}
	b.sh("kexec -s -l /boot/bzImage --reuse-cmdline")
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

// An update that would lose an fd of a unit with Required=yes goes back to the
// same kernel: all services run again with what they had stored, and what was
// held is held. OnLoss=rollback does it for all units.
func TestAnUpdateThatWouldLoseSomethingIsCalledOff(t *testing.T) {
	b := boot(t, images.with)
	required := service(optIn+"[X-FDBridge]\nRequired=yes\n", "a,memfd,4096,7", "p,pipe", "b,memfd,100")
	b.units(map[string]string{
		"late.service":  byHand(optIn, "a,memfd,4096,1", "b,memfd,8192,2"),
		"other.service": service(optIn, "a,memfd,65536,9,0x2", "b,memfd,1"),
	})
	truth := b.restarted("other.service", "late.service")
	b.kexec()
	b.same(map[string][]found{"other.service": truth["other.service"]})

	b.units(map[string]string{"required.service": required})
	truth = b.restarted("other.service", "required.service")
	held := func(when string) {
		b.Helper()
		if u := b.list()["late.service"]; u.State != wire.StateHeld || u.Held != 2 || u.HeldBytes != 12288 {
			b.Errorf("%s late.service is listed as %+v, want 2 fds of 12288 bytes held", when, u)
		}
	}
	held("after the update")
	for range middles {
		b.calledOff(truth)
		held("after an update that was called off")
	}
	const said = `fdbridge: required.service: The fd "p" (pipe) will be lost`
	if !strings.Contains(b.m.Console(), said) {
		b.Errorf("the console does not say: %s", said)
	}

	b.sh("rm /etc/systemd/system/required.service; systemctl disable --now required.service")
	delete(truth, "required.service")
	if thorough {
		b.file("/etc/fdbridge/fdbridge.conf", "[Bridge]\nOnLoss=rollback\n")
		b.units(map[string]string{"mixed.service": service(optIn, "a,memfd,10", "s,socket")})
		truth = b.restarted("other.service", "mixed.service")
		b.calledOff(truth)
		held("after OnLoss=rollback")
		b.file("/etc/fdbridge/fdbridge.conf", "[Bridge]\nOnLoss=continue\n")
		delete(truth, "mixed.service")
	}
	truth = b.restarted("other.service")
	b.kexec()
	b.same(truth)
	held("after the next update")
	b.sh("systemctl start late.service")
	if list := b.report("late.service"); len(list) != 2 || list[1].Position != 1 {
		b.Errorf("late.service has got %+v", list)
	}
	b.off()
}

// What the kernel carries once is given to all who have stored it, and what is
// held stays held over several updates.
func TestFilesThatAreStoredMoreThanOnce(t *testing.T) {
	b := boot(t, images.with)
	var many []string
	for i := range manyFiles {
		many = append(many, fmt.Sprintf("f%d,memfd,%d", i, i%3))
	}
	b.units(map[string]string{
		"a.service":    service(optIn, "own,memfd,4096,5", "twice,again,a.service/own,17", "more,memfd,1"),
		"b.service":    service(optIn+"[Unit]\nAfter=a.service\n", "x,memfd,8", "lent,again,a.service/own,9"),
		"c.service":    byHand(optIn+"[Unit]\nAfter=a.service\n", "lent,again,a.service/own,11", "y,memfd,8"),
		"many.service": service(strings.Replace(optIn, "1024", "2000", 1)+"LimitNOFILE=4096\n", many...),
	})
	truth := b.restarted("a.service", "b.service", "c.service", "many.service")
	b.sh("systemctl stop c.service")
	for range 2 {
		b.kexec()
		b.same(map[string][]found{"a.service": truth["a.service"], "b.service": truth["b.service"], "many.service": truth["many.service"]})
		if u := b.list()["c.service"]; u.State != wire.StateHeld || u.Held != 2 {
			b.Errorf("c.service is listed as %+v, want 2 fds held", u)
		}
	}
	b.sh("systemctl start c.service")
	b.same(truth)
	inodes := map[uint64]bool{}
	for unit, names := range map[string][]string{"a.service": {"own", "twice"}, "b.service": {"lent"}, "c.service": {"lent"}} {
		for _, f := range b.report(unit) {
			for _, name := range names {
				if f.Name == name {
					inodes[f.Inode] = true
				}
			}
		}
	}
	if len(inodes) != 1 {
		b.Errorf("one memfd has become %d: %v", len(inodes), inodes)
	}
	b.noProblems()
	b.off()
}
