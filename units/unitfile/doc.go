// SPDX-License-Identifier: Apache-2.0

// Package unitfile reads service units and configuration files from disk the
// way systemd 257 does, for programs that run when PID 1 cannot be asked.
//
// It knows the lines of a file (src/shared/conf-parser.c), the names of units
// (src/basic/unit-name.c), which file is a unit's fragment and which names it
// has (src/shared/unit-file.c), and which drop-ins change it
// (src/shared/dropin.c). It reads .service units only: no other kind has an fd
// store. It does not know which settings exist, which values they take or
// what specifiers stand for; whoever asks for a setting knows that.
//
// Everything is read below a root directory, whose symlinks are followed as
// if it were "/". All paths that go in or come out are paths below that root.
//
// A program that can talk to PID 1 should ask it instead: what is loaded may
// differ from what is on disk until the next daemon-reload.
package unitfile
