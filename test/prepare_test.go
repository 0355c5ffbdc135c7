// SPDX-License-Identifier: Apache-2.0

//go:build vm

package test

// grown tries to change the size of early.service's memfd, and returns its size then.
func (b *bed) grown(size int) string {
	b.Helper()
	return b.sh(`fd=$(find /proc/1/fd -lname '/memfd:early.service/grows*' | head -n 1)
truncate -s %d "$fd" 2> /run/grown || true
stat -L -c %%s "$fd"`, size)
}

// outlasts reloads units when what prepares has been starting for longer than it may.
func outlasts(b *bed, preserve string) {
	b.Helper()
	const dir = "/etc/systemd/system/fdbridge-preserve.service.d"
	b.sh("mkdir -p %s", dir)
	b.file(dir+"/test.conf", "[Service]\nTimeoutStartSec=1s\n")
	b.sh("sleep 1; systemctl daemon-reload")
	if state := b.sh("systemctl show -P TimeoutStartUSec -P ActiveState %s; rm -r %s; systemctl daemon-reload", preserve, dir); state != "infinity\nactivating" {
		b.Errorf("after daemon-reload what prepares is %q", state)
	}
}

// What can be is preserved while services run, and can be undone.
func preparedAhead() scenario {
	units := map[string]string{"early.service": service(optIn+"[X-FDBridge]\nEarly=yes\n",
		"grows,memfd,4096,1", "sealed,memfd,8192,2,6")}
	return scenario{name: "what is prepared is carried", units: units, before: func(b *bed) func(*bed) {
		const unit, preserve = "early.service", "fdbridge-preserve.service"
		b.says("preparing", "fdbridgectl prepare", "Prepared ", " fds of ")
		for _, command := range []string{"fdbridgectl abort", "systemctl stop " + preserve}[:min(middles, 2)] {
			if size := b.grown(8192); size != "4096" {
				b.Errorf("a memfd that is preserved has grown to %s bytes", size)
			}
			b.sh("%s", command)
			if state := b.sh("systemctl show -P Result -P ActiveState %s", preserve); state != "success\ninactive" {
				b.Errorf("after %q it is %q", command, state)
			}
			if size := b.grown(8192); size != "8192" {
				b.Errorf("after %q the memfd cannot be grown: %s bytes", command, b.sh("cat /run/grown"))
			}
			b.grown(4096)
			b.sh("fdbridgectl prepare")
		}
		b.sh("fdbridgectl prepare") // which is prepared already
		outlasts(b, preserve)
		// Without a live update it is undone after a while, and harms nothing.
		b.sh("fdbridgectl abort")
		b.configured("PrepareTimeoutSec=1s")
		b.sh("fdbridgectl prepare")
		b.until("systemctl show -P ActiveState %s | grep -q inactive", preserve)
		const ended = "systemctl show -P InactiveEnterTimestampMonotonic fdbridge-rollback.service"
		before := b.sh(ended)
		b.configured("")
		b.sh("fdbridgectl prepare; systemctl kill --signal=KILL --kill-whom=main %s", preserve)
		b.until("systemctl -q is-failed %s", preserve)
		b.until(`test "$(%s)" != "%s" && systemctl show -P ActiveState fdbridge-rollback.service | grep -q inactive`, ended, before)
		if state := b.sh("systemctl is-active %s default.target", unit); state != "active\nactive" {
			b.Errorf("a crash of what prepares has had an effect: %s", state)
		}
		b.sh("fdbridgectl prepare")
		truth := b.restarted(unit)
		return func(b *bed) { b.same(truth) }
	}}
}
