// SPDX-License-Identifier: Apache-2.0

// Package journal writes what fdbridge has to say to where an operator finds
// it: to standard error, which systemd puts into the journal, and in late
// shutdown to the kernel log, when the journal is no longer kept.
//
// Every message is one sentence with a syslog priority, sd-daemon(3).
package journal

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
)

// Log writes messages. Its methods may be called from several goroutines.
type Log struct {
	mu     sync.Mutex
	prefix string
	open   func() (io.WriteCloser, error)
}

type unclosed struct{ io.Writer }

func (unclosed) Close() error { return nil }

// To returns a Log that writes lines to w.
func To(w io.Writer) *Log {
	return &Log{open: func() (io.WriteCloser, error) { return unclosed{w}, nil }}
}

// Stderr returns a Log that writes to standard error.
func Stderr() *Log { return To(os.Stderr) }

// Kernel returns a Log that writes to the kernel log, each message with the
// program's name before it. The device is opened for each message, because
// the kernel limits the rate of writes per open file (devkmsg_write,
// kernel/printk/printk.c) and a message about a lost fd may not be dropped.
func Kernel(program string) *Log {
	return &Log{prefix: program + ": ", open: func() (io.WriteCloser, error) {
		return os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	}}
}

// Err reports that something was lost or did not work.
func (l *Log) Err(format string, args ...any) { l.write(3, format, args) }

// Warning reports what may need attention.
func (l *Log) Warning(format string, args ...any) { l.write(4, format, args) }

// Info reports what was done.
func (l *Log) Info(format string, args ...any) { l.write(6, format, args) }

// write writes one line. Where that fails there is nobody left to tell.
func (l *Log) write(priority int, format string, args []any) {
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	l.mu.Lock()
	defer l.mu.Unlock()
	w, err := l.open()
	if err != nil {
		return
	}
	_, _ = fmt.Fprintf(w, "<%d>%s%s\n", priority, l.prefix, text)
	_ = w.Close()
}
