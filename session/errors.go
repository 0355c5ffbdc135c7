// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"
)

// What an *Error can be, beside its errno, which is given in brackets with
// the function of Linux 7.2 that returns it.
var (
	// ErrNoDevice: Open found no device (ENOENT, ENXIO, ENODEV).
	ErrNoDevice = errors.New("this kernel offers no live update: it needs CONFIG_LIVEUPDATE=y and to be booted with kho=on liveupdate=on")
	// ErrBusy: Open found that the device is open (EBUSY, luo_open).
	ErrBusy = errors.New("another process has the device open")
	// ErrBroken: Open found that the kernel could not make sessions of what
	// the old kernel left (EIO, luo_open). Every later Open gives it, too.
	ErrBroken = errors.New("the kernel could not read what the kernel before it handed over, and will not before the next reboot")
	// ErrBadName: a name is empty, longer than MaxName, or has a NUL in it.
	// It is found before the kernel is asked; there is no errno.
	ErrBadName = errors.New("a session's name has 1 to 63 bytes, none of them NUL")
	// ErrExist: Create found an outgoing session of that name (EEXIST,
	// luo_session_insert).
	ErrExist = errors.New("an outgoing session of this name exists")
	// ErrNoSession: Retrieve found no incoming session of that name, or only
	// one that was retrieved and closed (ENOENT, luo_session_retrieve).
	ErrNoSession = errors.New("there is no incoming session of this name")
	// ErrRetrieved: Retrieve found that somebody holds the session (EINVAL,
	// luo_session_retrieve).
	ErrRetrieved = errors.New("the session was retrieved before and is still open")
	// ErrDirection: Preserve on an incoming session, or Finish on an outgoing
	// one (EINVAL, luo_session_ioctl). Before Linux 7.2 the kernel does not look
	// at that, and does what is asked.
	ErrDirection = errors.New("incoming sessions take no new files, and outgoing ones cannot be finished")
	// ErrUnchecked: Outgoing asked a kernel that may not look at the direction,
	// one before Linux 7.2.
	ErrUnchecked = errors.New("this kernel does not tell whether a session is outgoing")
	// ErrUnsupported: Preserve found no handler in the kernel for this kind
	// of file (ENOENT, luo_preserve_file).
	ErrUnsupported = errors.New("the kernel cannot carry this kind of file")
	// ErrPreserved: Preserve found that the same inode is preserved, or was
	// retrieved from a session that is not finished (EBUSY,
	// luo_preserve_file; Linux 7.1 and later).
	ErrPreserved = errors.New("this file is in a session already")
	// ErrTokenUsed: Preserve found the token in use in the session (EEXIST,
	// luo_preserve_file).
	ErrTokenUsed = errors.New("the session has another file under this token")
	// ErrNoToken: RetrieveFD found no file under the token, or the session
	// finished (ENOENT, luo_retrieve_file).
	ErrNoToken = errors.New("the session has no file under this token")
	// ErrLimit: no more room for files in the session, or for sessions
	// (ENOSPC). Linux 6.19 to 7.1 give it for the 129th file; later ones at
	// a million files or 480,000 sessions (kho_block_add). Linux 6.19 to 7.1
	// have room for 819 sessions and then give ENOMEM, which is not told
	// apart from memory running out.
	ErrLimit = errors.New("the kernel has no room for more")
	// ErrNoIoctl: the descriptor is no session, or the kernel is too old for
	// the request (ENOTTY; for GET_NAME also EINVAL).
	ErrNoIoctl = errors.New("the descriptor is no live-update session, or the kernel does not know the request")
)

// The operations, as Error.Op has them; opening has the path as well.
const (
	opOpen       = "open"
	opCreate     = "create"
	opRetrieve   = "retrieve"
	opPreserve   = "preserve fd"
	opRetrieveFD = "retrieve fd"
	opFinish     = "finish"
	opGetName    = "get name"
	opDirection  = "ask for the direction"
	opClose      = "close"
)

// Error is a failed operation on the device or a session. It answers errors.Is
// for its Kind and for whatever Err wraps, the errno above all.
type Error struct {
	Op       string // what was tried, in words
	Session  string // the session's name; empty when it is not known
	Token    uint64 // the token, when HasToken
	HasToken bool
	Kind     error // a sentinel of this package; nil when none fits
	Err      error // the cause, as Kernel gave it; nil with ErrBadName alone
}

// Error says all that is known in one sentence, such as: session "a": token 3:
// preserve fd: the kernel cannot carry this kind of file (ENOENT).
func (e *Error) Error() string {
	s := e.Op + ": "
	if e.HasToken {
		s = "token " + strconv.FormatUint(e.Token, 10) + ": " + s
	}
	if e.Session != "" {
		s = "session " + strconv.Quote(e.Session) + ": " + s
	}
	switch {
	case e.Kind == nil:
		return s + e.Err.Error()
	case e.Err == nil:
		return s + e.Kind.Error()
	}
	return s + e.Kind.Error() + " (" + shortCause(e.Err) + ")"
}

// Unwrap returns the sentinel and the cause, where there are any.
func (e *Error) Unwrap() []error {
	var errs []error
	for _, err := range []error{e.Kind, e.Err} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// shortCause names an errno, whose usual text ("no such file or directory") would
// mislead beside a sentinel's.
func shortCause(err error) string {
	if errno, ok := err.(unix.Errno); ok {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// kindOf returns the sentinel for what the kernel answered to op, or nil.
func kindOf(op string, err error) error {
	if errors.Is(err, unix.ENOTTY) {
		return ErrNoIoctl
	}
	for _, row := range []struct {
		op    string
		errno unix.Errno
		kind  error
	}{
		{opOpen, unix.ENOENT, ErrNoDevice},
		{opOpen, unix.ENXIO, ErrNoDevice},
		{opOpen, unix.ENODEV, ErrNoDevice},
		{opOpen, unix.EBUSY, ErrBusy},
		{opOpen, unix.EIO, ErrBroken},
		{opCreate, unix.EEXIST, ErrExist},
		{opCreate, unix.ENOSPC, ErrLimit},
		{opRetrieve, unix.ENOENT, ErrNoSession},
		{opRetrieve, unix.EINVAL, ErrRetrieved},
		{opPreserve, unix.ENOENT, ErrUnsupported},
		{opPreserve, unix.EBUSY, ErrPreserved},
		{opPreserve, unix.EEXIST, ErrTokenUsed},
		{opPreserve, unix.ENOSPC, ErrLimit},
		{opPreserve, unix.EINVAL, ErrDirection},
		{opRetrieveFD, unix.ENOENT, ErrNoToken},
		{opFinish, unix.EINVAL, ErrDirection},
		{opGetName, unix.EINVAL, ErrNoIoctl},
	} {
		if row.op == op && errors.Is(err, row.errno) {
			return row.kind
		}
	}
	return nil
}
