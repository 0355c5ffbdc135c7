// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"testing"

	"github.com/fdbridge/fdbridge/test/machine"
)

// The suite that the fake kernel passes in session/sessiontest, against the
// real one. The service is not stopped at shutdown and survives the final
// kill, so that its sessions are open at the kexec.
func TestRealKernelConforms(t *testing.T) {
	b := boot(t, images.without)
	b.file("/etc/systemd/system/luoconform.service", `[Unit]
DefaultDependencies=no
SurviveFinalKillSignal=yes
[Service]
Type=notify
ExecStart=@`+machine.GuestPrograms+`luoconform @luoconform before
StandardOutput=file:/run/luoconform
`)
	b.sh("systemctl daemon-reload")
	t.Log(b.sh("systemctl start luoconform.service || { cat /run/luoconform >&2; exit 1; }; cat /run/luoconform"))
	b.kexec()
	t.Log(b.sh(machine.GuestPrograms + "luoconform after"))
	b.off()
}
