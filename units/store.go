// SPDX-License-Identifier: Apache-2.0

package units

import (
	"strings"

	"golang.org/x/sys/unix"
)

// Store is one service as far as its fd store is concerned, as PID 1 tells it.
type Store struct {
	Unit string
	// Preserve is FileDescriptorStorePreserve=: "no", "restart", "yes", and
	// "on-success" from systemd 262. Max is FileDescriptorStoreMax=, which is
	// not asked for when there are Entries, as there are none without it.
	Preserve string
	Max      uint32
	// Kept says that the unit has stopped and its store is still there, which
	// PID 1 does for units that have opted in only (service_release_resources
	// in src/core/service.c, systemd 254); Preserve is not asked for then.
	Kept bool
	// FragmentPath, User and Group say who the unit is; each can be empty.
	FragmentPath, User, Group string
	// Entries are in the order of the store, which is the order of
	// $LISTEN_FDS: the entry stored last stands first.
	Entries []Entry
}

// OptedIn tells whether the unit's store is to survive, by systemd's own
// directives.
func (s *Store) OptedIn() bool {
	return (s.Max > 0 || len(s.Entries) > 0) && (s.Kept || s.Preserve == "yes" || s.Preserve == "on-success")
}

// Entry is what PID 1 tells of one fd in a store: facts, not the fd.
type Entry struct {
	Name  string // FDNAME=, "stored" where the service gave none
	Mode  uint32 // st_mode
	Dev   uint64 // st_dev
	Ino   uint64 // st_ino
	Rdev  uint64 // st_rdev
	Path  string // where /proc/1/fd points: a path or the kind of an anonymous inode
	Flags int    // open flags, without O_LARGEFILE
}

const anonInode = "anon_inode:"

// Anonymous tells whether the entry shares its inode with all others of its
// kind, as eventfds and timerfds do, so that the inode does not identify it.
func (e *Entry) Anonymous() bool { return strings.HasPrefix(e.Path, anonInode) }

// regular tells whether the entry is a regular file, as memfds are.
func (e *Entry) regular() bool { return e.Mode&unix.S_IFMT == unix.S_IFREG }

// Session tells whether the entry is a live-update session. One whose name is
// too long for the kernel to be shown has no path, see Duplicator.Sessions.
func (e *Entry) Session() bool {
	return strings.HasPrefix(e.Path, sessionLink) || e.Path == "" && e.Mode&unix.S_IFMT == 0
}

// IsSession tells whether the entry is the session that the kernel has by this name, which has
// at most 38 bytes: links of longer ones are not shown.
func (e *Entry) IsSession(name string) bool { return e.Path == sessionLink+" "+name }

// Type says in a word or two what kind of file the entry is, such as
// "memfd", "pipe", "socket" or "eventfd".
func (e *Entry) Type() string {
	if e.Anonymous() {
		kind, _, _ := strings.Cut(strings.TrimPrefix(e.Path, anonInode), " ")
		return strings.Trim(kind, "[]")
	}
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		// A memfd that came through a live update has lost its name.
		if strings.HasPrefix(e.Path, "/memfd:") || e.Path == "/ (deleted)" {
			return "memfd"
		}
		return "file"
	case unix.S_IFIFO:
		return "pipe"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	}
	return "unknown"
}
