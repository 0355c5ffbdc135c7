// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import (
	"github.com/fdbridge/fdbridge/bridge/storetest"
	"github.com/fdbridge/fdbridge/test/machine"
)

// realKernelConforms runs the suite that the fake kernel passes, too, on the real one.
// The service is not stopped at shutdown and survives the final kill, so that its
// sessions are open at the kexec.
func realKernelConforms() scenario {
	const text = `[Unit]
DefaultDependencies=no
SurviveFinalKillSignal=yes
[Service]
Type=notify
ExecStart=@` + machine.GuestPrograms + `luoconform @luoconform before
StandardOutput=file:/run/conforms
`
	return scenario{name: "the real kernel conforms", units: map[string]string{"luoconform.service": text}, before: func(b *bed) func(*bed) {
		b.Log(b.sh("cat /run/conforms; systemctl -q is-active luoconform.service"))
		return func(b *bed) { b.Log(b.sh(machine.GuestPrograms + "luoconform after")) }
	}}
}

// realPID1Conforms runs the suite that what stands in for PID 1 passes, too, on the real one.
func realPID1Conforms() scenario {
	return scenario{name: "the real PID 1 conforms", before: func(b *bed) func(*bed) {
		const unit = "storeconform.service"
		b.Log(b.sh("systemd-run --quiet --wait --pipe --unit=%s -p NotifyAccess=main -p FileDescriptorStoreMax=%d %sstoreconform %[1]s",
			unit, storetest.Room, machine.GuestPrograms))
		return func(*bed) {}
	}}
}
