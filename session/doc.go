// SPDX-License-Identifier: Apache-2.0

// Package session speaks the kernel's live-update ABI: the device
// /dev/liveupdate and the sessions made from it (include/uapi/linux/liveupdate.h
// and kernel/liveupdate/luo_{core,session,file}.c; Linux 6.19 and later, read
// and tried in 7.2).
//
// A session is a named set of files that the kernel keeps over a kexec. In the
// old kernel it is outgoing: [Device.Create] makes it and [Session.Preserve]
// adds files, each under a token. In the new kernel it is incoming:
// [Device.Retrieve] takes it over by name, [Session.RetrieveFD] gives the files
// back, [Session.Finish] tells the kernel to forget it.
//
// The device has one opener on the whole system. Open it late and close it at
// once: sessions live on without it, for as long as a descriptor of theirs is
// open somewhere.
//
// Every error is an [*Error], but that of a wait given up by [OpenWait], which
// wraps one. It answers errors.Is for the sentinels of this package and for the
// kernel's errno.
//
// Units, manifests and policy do not belong here, nor anything that a small
// static helper should not link. Package sessiontest has a fake kernel.
package session
