// SPDX-License-Identifier: Apache-2.0

// Package journal writes what fdbridge has to say to where an operator finds
// it: the journal, and where that is not there yet, or not kept any more, the
// kernel log.
//
// Every message is one sentence with a syslog priority, sd-daemon(3).
package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Log writes messages. Its methods may be called from several goroutines.
type Log struct {
	mu   sync.Mutex
	emit func(priority int, text string) error
}

// To returns a Log that writes lines to w, with the priority in front as
// sd-daemon(3) has it.
func To(w io.Writer) *Log {
	return &Log{emit: func(priority int, text string) error {
		_, err := fmt.Fprintf(w, "<%d>%s\n", priority, text)
		return err
	}}
}

// Stderr returns a Log that writes to standard error, which for a service is
// the journal.
func Stderr() *Log { return To(os.Stderr) }

// Kernel returns a Log that writes to the kernel log, each message with the
// program's name before it.
func Kernel(program string) *Log {
	return &Log{emit: func(priority int, text string) error { return toKernel(program, priority, text) }}
}

// Native returns a Log that writes to the journal by its own protocol, and to
// the kernel log as long as there is no journal. It is for a service that may
// not be connected to the journal by systemd, because that orders it after
// systemd-journald.socket.
func Native(program string) *Log {
	return &Log{emit: func(priority int, text string) error {
		if err := toJournal(program, priority, text); err != nil {
			return errors.Join(err, toKernel(program, priority, text))
		}
		return nil
	}}
}

// maxKernelText is how much text is put into one record of the kernel log, which
// refuses records of more than 1,024 bytes (PRINTKRB_RECORD_MAX, kernel/printk/internal.h).
const maxKernelText = 900

// toKernel opens the device for each message, because the kernel limits the
// rate of writes per open file (devkmsg_write in kernel/printk/internal.h) and a
// message about a lost fd may not be dropped.
func toKernel(program string, priority int, text string) error {
	kmsg, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for rest := text; rest != "" && err == nil; {
		n := min(len(rest), maxKernelText)
		_, err = fmt.Fprintf(kmsg, "<%d>%s: %s\n", priority, program, rest[:n])
		rest = rest[n:]
	}
	return errors.Join(err, kmsg.Close())
}

// journalSocket is where journald reads its own protocol.
const journalSocket = "/run/systemd/journal/socket"

func toJournal(program string, priority int, text string) error {
	raw, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	message := fmt.Sprintf("MESSAGE=%s\nPRIORITY=%d\nSYSLOG_IDENTIFIER=%s\n", text, priority, program)
	err = unix.Sendto(raw, []byte(message), unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: journalSocket})
	return errors.Join(err, unix.Close(raw))
}

// Err reports that something was lost or did not work.
func (l *Log) Err(format string, args ...any) { l.write(3, format, args) }

// Warning reports what may need attention.
func (l *Log) Warning(format string, args ...any) { l.write(4, format, args) }

// Info reports what was done.
func (l *Log) Info(format string, args ...any) { l.write(6, format, args) }

// write writes one message. Where that fails there is nobody left to tell.
func (l *Log) write(priority int, format string, args []any) {
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.emit(priority, text)
}
