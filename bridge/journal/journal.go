// SPDX-License-Identifier: Apache-2.0

// Package journal writes what fdbridge has to say to where an operator finds
// it: the journal, and where that is not there yet, or not kept any more, the
// kernel log.
//
// Every message is one sentence with a syslog priority, sd-daemon(3). In the
// journal it has the fields of its About, too.
package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Log writes messages. Its methods may be called from several goroutines.
type Log struct {
	mu   sync.Mutex
	emit func(about *About, priority int, text string) error
}

// To returns a Log that writes lines to w, with the priority in front as
// sd-daemon(3) has it.
func To(w io.Writer) *Log {
	return &Log{emit: func(_ *About, priority int, text string) error {
		_, err := fmt.Fprintf(w, "<%d>%s\n", priority, text)
		return err
	}}
}

// Stderr returns a Log that writes to standard error, which for a service is
// the journal: without the fields of About, but with those of the unit, however soon
// the process ends.
func Stderr() *Log { return To(os.Stderr) }

// Kernel returns a Log that writes to the kernel log, each message with the
// program's name before it.
func Kernel(program string) *Log {
	return &Log{emit: func(_ *About, priority int, text string) error { return toKernel(program, priority, text) }}
}

// Native returns a Log that writes to the journal by its own protocol, and to
// the kernel log as long as there is no journal. It is for a service that may
// not be connected to the journal by systemd, because that orders it after
// systemd-journald.socket.
func Native(program string) *Log {
	return &Log{emit: func(about *About, priority int, text string) error {
		if err := toJournal(entry(about, program, priority, text)); err != nil {
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

func toJournal(entry string) error {
	raw, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	err = unix.Sendto(raw, []byte(entry), unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: journalSocket})
	return errors.Join(err, unix.Close(raw))
}

// maxRecalled bounds how many messages are kept for recall.
const maxRecalled = 100

// Recall lets the Log keep the texts of warnings and errors from now on, a hundred at
// most, and returns what returns those up to then.
func (l *Log) Recall() (recall func() []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var kept []string
	emit := l.emit
	l.emit = func(about *About, priority int, text string) error {
		if priority <= warning && len(kept) < maxRecalled {
			kept = append(kept, text)
		}
		return emit(about, priority, text)
	}
	return func() []string {
		l.mu.Lock()
		defer l.mu.Unlock()
		return slices.Clone(kept)
	}
}

// entry is a message as the journal takes it, a field a line.
func entry(about *About, program string, priority int, text string) string {
	kind := about.Kind
	if kind == "" && priority == info {
		kind = Note
	} else if kind == "" {
		kind = Trouble
	}
	var b strings.Builder
	for _, field := range []struct{ name, value string }{
		{"MESSAGE", text}, {"MESSAGE_ID", string(kind)}, {"PRIORITY", strconv.Itoa(priority)}, {"SYSLOG_IDENTIFIER", program},
		{"UNIT", about.Unit}, {"OBJECT_SYSTEMD_UNIT", about.Unit}, {"FDBRIDGE_SESSION", about.Session}, {"FDBRIDGE_FD", about.FD},
	} {
		if field.value != "" {
			fmt.Fprintf(&b, "%s=%s\n", field.name, strings.ReplaceAll(field.value, "\n", "; "))
		}
	}
	return b.String()
}

// The priorities, as in syslog(3).
const (
	err     = 3
	warning = 4
	info    = 6
)

// Err reports that something was lost or did not work.
func (l *Log) Err(format string, args ...any) { l.write(&About{}, err, format, args) }

// Warning reports what may need attention.
func (l *Log) Warning(format string, args ...any) { l.write(&About{}, warning, format, args) }

// Info reports what was done.
func (l *Log) Info(format string, args ...any) { l.write(&About{}, info, format, args) }

// ErrOf is Err with what the message is about.
func (l *Log) ErrOf(about About, format string, args ...any) { l.write(&about, err, format, args) }

// WarningOf is Warning with what the message is about.
func (l *Log) WarningOf(about About, format string, args ...any) {
	l.write(&about, warning, format, args)
}

// InfoOf is Info with what the message is about.
func (l *Log) InfoOf(about About, format string, args ...any) { l.write(&about, info, format, args) }

// write writes one message. Where that fails there is nobody left to tell.
func (l *Log) write(about *About, priority int, format string, args []any) {
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.emit(about, priority, text)
}
