// SPDX-License-Identifier: Apache-2.0

// Package fd has the one type that owns a file descriptor in this project.
//
// An FD has exactly one owner, who closes it. It is used instead of *os.File
// because os.NewFile looks at and may change the O_NONBLOCK flag of the open
// file description, which here belongs to somebody else's service.
//
// Reading, writing and every other use of a descriptor do not belong here.
package fd

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrClosed is returned by every method of an FD that was closed or disowned.
var ErrClosed = errors.New("file descriptor is closed")

// FD owns one file descriptor. The zero value owns none. An FD must not be
// copied. Its methods may be called from several goroutines: a descriptor that is
// closed while another method uses it is closed when that has ended, so that its
// number is nobody else's meanwhile.
type FD struct {
	cleanup runtime.Cleanup

	mu     sync.Mutex
	raw    int // the number plus one; 0 when nothing is owned
	users  int // calls of Do that have not ended
	closed bool
}

// New takes ownership of raw, which must be an open descriptor that nobody
// else closes. A descriptor that its owner forgets is closed when the FD is
// garbage collected; that is a backstop, and counted as a leak by fdtest.
func New(raw int) *FD {
	f := &FD{raw: raw + 1}
	f.cleanup = runtime.AddCleanup(f, func(raw int) { _ = unix.Close(raw) }, raw)
	trackOpen(raw)
	return f
}

// Do calls fn with the descriptor's number, which fn must not keep or close.
// It returns fn's error, or ErrClosed.
func (f *FD) Do(fn func(raw int) error) error {
	raw, err := f.use()
	if err != nil {
		return err
	}
	defer f.unuse()
	return fn(raw)
}

func (f *FD) use() (raw int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.owned() {
		return -1, ErrClosed
	}
	f.users++
	return f.raw - 1, nil
}

func (f *FD) unuse() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.users--
	if f.closed && f.users == 0 {
		_ = unix.Close(f.release()) // its owner has closed it without waiting for that
	}
}

// owned tells whether there is a descriptor to be used; the caller has f.mu.
func (f *FD) owned() bool { return f.raw != 0 && !f.closed }

// release gives up ownership and returns the number; the caller has f.mu.
func (f *FD) release() int {
	raw := f.raw - 1
	f.raw = 0
	f.cleanup.Stop()
	trackClose(raw)
	return raw
}

// Dup returns a second descriptor, close-on-exec, for the same open file. The
// caller owns it.
func (f *FD) Dup() (*FD, error) {
	var dup *FD
	err := f.Do(func(raw int) error {
		n, err := unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("fcntl(F_DUPFD_CLOEXEC)", err)
		}
		dup = New(n)
		return nil
	})
	return dup, err
}

// Disown gives up ownership and returns the number, which the caller must
// close; -1 when nothing is owned. No other method may be running.
func (f *FD) Disown() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.owned() {
		return -1
	}
	return f.release()
}

// Close closes the descriptor. Closing twice, or a nil FD, does nothing, so
// that it can be deferred beside an explicit Close. What close(2) says is lost
// when another method uses the descriptor at that time.
func (f *FD) Close() error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.owned() {
		return nil
	}
	f.closed = true
	if f.users > 0 {
		return nil
	}
	return os.NewSyscallError("close", unix.Close(f.release()))
}

// Stat returns what fstat(2) says.
func (f *FD) Stat() (unix.Stat_t, error) {
	var st unix.Stat_t
	err := f.Do(func(raw int) error { return os.NewSyscallError("fstat", unix.Fstat(raw, &st)) })
	return st, err
}

// Link returns where /proc/self/fd points for the descriptor, which for an
// anonymous inode is its kind, such as "anon_inode:[luo_session] NAME".
func (f *FD) Link() (string, error) {
	var link string
	err := f.Do(func(raw int) (err error) {
		link, err = os.Readlink("/proc/self/fd/" + strconv.Itoa(raw))
		return err
	})
	return link, err
}

// SameOpenFile tells whether two descriptors are of one open file, which have
// one position and one set of flags, rather than of two opens of a file. It
// needs Linux 6.10, which has F_DUPFD_QUERY (fs/fcntl.c).
func (f *FD) SameOpenFile(other *FD) (bool, error) {
	same := 0
	err := f.Do(func(a int) error {
		return other.Do(func(b int) (err error) {
			same, err = unix.FcntlInt(uintptr(a), unix.F_DUPFD_QUERY, b)
			return os.NewSyscallError("fcntl(F_DUPFD_QUERY)", err)
		})
	})
	return same == 1, err
}
