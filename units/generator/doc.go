// SPDX-License-Identifier: Apache-2.0

// Package generator makes what fdbridge-generator writes: for each service
// that has opted in a drop-in that lets it have its fds back, and for
// fdbridged.service one that orders it before them. Reading unit files does
// not belong here, nor fdbridge's own configuration.
//
// The Before= lines have a second effect, which systemd 254 to 260 need: a
// unit that no other unit refers to is forgotten when it has stopped, and its
// fd store with it, in spite of FileDescriptorStorePreserve=yes.
// service_may_gc() in systemd's src/core/service.c (257) allows it, store or
// not. Before that happens, unit_gc_sweep() in src/core/manager.c looks
// whether a unit that is still needed has a reference to this one, and
// unit_add_dependency() in src/core/unit.c makes such a reference for each
// name in Before= (config_parse_unit_deps() asks for it). So the units named
// stay as long as fdbridged.service does, which is needed while it runs, and
// otherwise because of the target that wants it.
//
// # Ordering cycles
//
// The drop-ins put fdbridged.service before units that may start at any time,
// so it must itself be after as little as possible. DefaultDependencies=no is
// not all: systemd 257 adds After= by itself for slices and mounts
// (unit_add_slice_dependencies() and unit_add_mount_dependencies() in
// src/core/unit.c). Those cannot make a cycle as long as they are active
// already, because a unit without a job is not looked at
// (transaction_drop_redundant() and then transaction_verify_order() in
// src/core/transaction.c): -.slice, system.slice, -.mount, and the mounts the
// kernel shows, such as /run, always are. These could (see
// unit_add_exec_dependencies()), and fdbridged.service must not have them:
//
//   - Slice= with a slice of its own;
//   - StandardOutput= or StandardError= with journal, which is the default, or
//     kmsg: it adds After=systemd-journald.socket, so a unit that opts in and
//     is Before= that socket makes a cycle;
//   - StateDirectory=, CacheDirectory= and LogsDirectory=, which add
//     After=systemd-remount-fs.service, and PrivateTmp=yes, which adds
//     After=systemd-tmpfiles-setup.service;
//   - a path on a file system that is mounted during boot in WorkingDirectory=
//     and the like;
//   - a socket unit that starts it, and with it what that is after.
package generator
