// SPDX-License-Identifier: Apache-2.0

// Package kho has what is handed over from one kernel to the next: the names of
// fdbridge's sessions, the manifest that rides in each session beside the fds,
// the index that lists the sessions, and what the running kernel says of its own
// kexec handover (KHO) and live update (LUO).
//
// Manifest and index are JSON objects in sealed memfds. Both start with
// "format" and "version"; a reader refuses a version that it does not know, and
// keeps members and kinds of entry that it does not know. So a later fdbridge may
// add members and kinds to version 1, and must raise the version for everything
// else.
//
// ioctls on /dev/liveupdate and all that talks to systemd do not belong here. The
// package is linked into fdbridge-inject, which must stay small: nothing here may
// import more than encoding/json, crypto/sha256 and x/sys.
package kho
