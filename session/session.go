// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
)

// Session is one descriptor of a live-update session. The session itself lives
// until the last of its descriptors is closed, in whichever process that is.
// Its methods may be called from several goroutines; the kernel lets one at a
// time into a session, and different sessions work side by side.
type Session struct {
	k    Kernel
	f    *fd.FD
	name string // empty when adopted
}

// Adopt makes a Session of a session's descriptor that came from elsewhere,
// such as a unit's fd store, and takes ownership of it. Whether it is a session
// at all is for Name to tell.
func Adopt(k Kernel, f *fd.FD) *Session { return &Session{k: k, f: f} }

// Preserve adds the file behind f to an outgoing session under token, any
// number that the session does not use yet. The caller keeps f and may close
// it: the kernel has a reference of its own until the session is closed.
//
// A memfd's size and seals are those of this moment; contents and position are
// those of the kexec. Until the session is closed the memfd cannot change its
// size (mm/memfd_luo.c).
//
// Errors: ErrUnsupported, ErrPreserved, ErrTokenUsed, ErrLimit, ErrDirection, or
// an errno alone: EOPNOTSUPP for seals that the kernel does not know, EFBIG,
// ENOMEM. The session can be used further after any of them.
func (s *Session) Preserve(f *fd.FD, token uint64) error {
	err := f.Do(func(raw int) error {
		return call(s.k, s.f, ReqPreserveFD, &fileByToken{fd: int32(raw), token: token})
	})
	return s.fail(Error{Op: opPreserve, Token: token, HasToken: true}, err)
}

// RetrieveFD returns the file that the session has under token. The caller
// owns the descriptor, which the kernel made close-on-exec (luo_session.c,
// luo_session_retrieve_fd). Files can be retrieved in any order, and again: the
// descriptors then share one open file.
//
// A memfd comes back open for reading and writing, with mode 0777 and owned by
// the caller, whatever it was. As F_SEAL_EXEC is put on it in that mode, a memfd
// made with MFD_NOEXEC_SEAL comes back sealed against writing and changes of
// size, too (mm/memfd.c, memfd_add_seals; seen in Linux 7.2). Before Linux 7.1 it
// comes back with F_SEAL_SEAL alone, so that it can get no others (mm/memfd_luo.c).
//
// The memory of the file is charged to the memory cgroup of the calling process.
//
// Errors: ErrNoToken, or an errno alone: EINVAL for an outgoing session, and
// whatever the kernel met when it restored the file, which it will then answer
// to every further try.
func (s *Session) RetrieveFD(token uint64) (*fd.FD, error) {
	arg := fileByToken{token: token}
	if err := call(s.k, s.f, ReqRetrieveFD, &arg); err != nil {
		return nil, s.fail(Error{Op: opRetrieveFD, Token: token, HasToken: true}, err)
	}
	return fd.New(int(arg.fd)), nil
}

// Finish makes the kernel let go of an incoming session's files. Those that were
// retrieved live on as ordinary files, and can be preserved anew; the others
// are gone. The session is empty afterwards, and finishing it again does nothing.
//
// Errors: ErrDirection, or an errno alone: EBUSY when a file is not ready for it,
// which no handler of Linux 7.2 says. The session is then as before.
func (s *Session) Finish() error {
	return s.fail(Error{Op: opFinish}, call(s.k, s.f, ReqFinish, &finish{}))
}

// Outgoing tells whether the session is an outgoing one; it changes nothing. The
// kernel looks at the direction before anything else (luo_session_ioctl, Linux 7.2), so
// it is asked to preserve a descriptor that is none.
//
// Errors: ErrUnchecked, when Device.HasOutgoing can tell; ErrNoIoctl when the
// descriptor is no session; or fd.ErrClosed.
func (s *Session) Outgoing() (bool, error) {
	err := s.fail(Error{Op: opPreserve}, call(s.k, s.f, ReqPreserveFD, &fileByToken{fd: -1, token: 1<<64 - 1}))
	switch {
	case errors.Is(err, ErrDirection):
		return false, nil
	case errors.Is(err, ErrNoIoctl) || errors.Is(err, fd.ErrClosed):
		return false, err
	}
	if err := call(s.k, s.f, ReqGetName, &getName{}); err != nil { // it came with Linux 7.2, as that look did
		return false, &Error{Op: opDirection, Session: s.bestName(), Kind: ErrUnchecked, Err: err}
	}
	return true, nil
}

// linkPrefix stands before the name in /proc/self/fd/N of a session
// (luo_session.c, luo_session_getfile).
const linkPrefix = "anon_inode:[luo_session] "

// Name asks the kernel for the session's name. Linux before 7.2 cannot be asked:
// there the name is read from the link in /proc, which gives ENAMETOOLONG where
// the kernel has room for 63 bytes of link text (fs/d_path.c, dynamic_dname),
// that is for names above 38 bytes.
//
// Errors: ErrNoIoctl when the descriptor is no session, or an errno alone.
func (s *Session) Name() (string, error) {
	var arg getName
	err := call(s.k, s.f, ReqGetName, &arg)
	if err == nil {
		return cString(arg.name[:]), nil
	}
	kind := kindOf(opGetName, err)
	if kind == ErrNoIoctl {
		link, linkErr := s.f.Link()
		if name, ok := strings.CutPrefix(link, linkPrefix); ok {
			return name, nil
		}
		if errors.Is(linkErr, unix.ENAMETOOLONG) {
			kind, err = nil, linkErr
		}
	}
	return "", &Error{Op: opGetName, Session: s.name, Kind: kind, Err: err}
}

// FD returns the session's descriptor, to be sent or stored elsewhere. The
// Session still owns it.
func (s *Session) FD() *fd.FD { return s.f }

// Close closes this descriptor of the session; Device.Create and
// Device.Retrieve say what the kernel does at the last one. It does not tell
// whether that went well. Closing twice, or a nil Session, does nothing.
func (s *Session) Close() error {
	if s == nil {
		return nil
	}
	if err := s.f.Close(); err != nil {
		return &Error{Op: opClose, Session: s.name, Err: err}
	}
	return nil
}

// fail completes e with the session's name and what the kernel answered; it
// returns nil when that was no error.
func (s *Session) fail(e Error, err error) error {
	if err == nil {
		return nil
	}
	e.Session, e.Kind, e.Err = s.bestName(), kindOf(e.Op, err), err
	return &e
}

// bestName is the name for an error message, empty when an adopted session
// does not tell it.
func (s *Session) bestName() string {
	if s.name != "" {
		return s.name
	}
	name, err := s.Name()
	if err != nil {
		return ""
	}
	return name
}
