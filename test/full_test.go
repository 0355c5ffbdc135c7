// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

import "strings"

// With too little memory to preserve there is no update; with a full disk and a
// full /run there is.
func full(b *bed, units ...string) {
	b.Helper()
	const dropIn = "/etc/systemd/system/fdbridge-preserve.service.d/test.conf"
	b.file(dropIn, "[Service]\nMemoryMax=1M\nMemorySwapMax=0\n")
	b.sh("systemctl daemon-reload")
	b.leavesLate(b.restarted(units...))
	if got := b.journal("_PID=1 UNIT=fdbridge-preserve.service"); !strings.Contains(got, "oom-kill") {
		b.Errorf("the update was called off, but not for want of memory: %s", got)
	}

	b.sh("rm %s; systemctl daemon-reload", dropIn)
	truth := b.restarted(units...)
	b.sh(`for dir in / /run; do
	fallocate -l $(($(stat -f -c '(%%a - 8192) * %%S' $dir))) $dir/most
	dd if=/dev/zero of=$dir/rest bs=4k 2> /dev/null || true
	test "$(stat -f -c %%a $dir)" = 0
done`)
	b.kexec()
	b.same(truth)
	b.noProblems()
}
