// SPDX-License-Identifier: Apache-2.0

//go:build vm && soak

package test

import (
	"strings"
	"testing"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

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
	for range 3 {
		b.calledOff(truth)
		held("after an update that was called off")
	}
	const said = `fdbridge: required.service: The fd "p" (pipe) will be lost`
	if !strings.Contains(b.m.Console(), said) {
		b.Errorf("the console does not say: %s", said)
	}

	b.sh("rm /etc/systemd/system/required.service; systemctl disable --now required.service")
	delete(truth, "required.service")
	b.file("/etc/fdbridge/fdbridge.conf", "[Bridge]\nOnLoss=rollback\n")
	b.units(map[string]string{"mixed.service": service(optIn, "a,memfd,10", "s,socket")})
	truth = b.restarted("other.service", "mixed.service")
	b.calledOff(truth)
	held("after OnLoss=rollback")
	b.file("/etc/fdbridge/fdbridge.conf", "[Bridge]\nOnLoss=continue\n")
	delete(truth, "mixed.service")
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
