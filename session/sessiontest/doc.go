// SPDX-License-Identifier: Apache-2.0

// Package sessiontest has what stands in for the kernel in tests of live
// update, and what proves that it stands in well: [Fake], and a conformance
// suite that runs against a Fake in go test and against /dev/liveupdate in a
// virtual machine.
//
// A kexec lies in the middle of the suite, so it is in three parts: the checks
// of [Before], then [Prepare], whose sessions the caller keeps open over the
// kexec, then the checks of [After]. Each check stands alone, leaves nothing
// behind, and expects of a Fake exactly what Linux 7.2 does; [Real] has the few
// that a Fake cannot pass. A check is run in a subtest, whose *testing.T is a [T], or, where
// there is no go test, by package conform.
//
// What needs systemd or a unit does not belong here.
package sessiontest
