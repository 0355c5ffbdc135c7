// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
)

const (
	// Levels of syslog(3), with the facility LOG_DAEMON as systemd's own
	// programs have it: the kernel takes messages without one for a user's.
	logErr     = 3<<3 | 3
	logWarning = 3<<3 | 4

	// maxMessage is how many bytes of a message are logged: the kernel takes
	// no more than 1024 at once, with all that stands before it
	// (PRINTKRB_RECORD_MAX in kernel/printk/printk.c, Linux 7.2).
	maxMessage = 900
)

// logger writes to the kernel's log when systemd runs the program, because at
// that time there is no other, and to stderr otherwise.
type logger struct {
	file   *os.File
	kernel bool
}

func openLog(root string) logger {
	if os.Getenv("SYSTEMD_SCOPE") == "system" { // set for generators since systemd 251
		if f, err := os.OpenFile(filepath.Join(root, "dev/kmsg"), os.O_WRONLY, 0); err == nil {
			return logger{file: f, kernel: true}
		}
	}
	return logger{file: os.Stderr}
}

// write logs one line. There is nobody to tell when that fails.
func (l logger) write(level int, message string) {
	if len(message) > maxMessage {
		message = message[:maxMessage] + "..."
	}
	if l.kernel {
		message = fmt.Sprintf("<%d>fdbridge-generator[%d]: %s", level, os.Getpid(), message)
	} else {
		message = "fdbridge-generator: " + message
	}
	_, _ = fmt.Fprintln(l.file, message)
}

func (l logger) close() {
	if l.kernel {
		_ = l.file.Close()
	}
}
