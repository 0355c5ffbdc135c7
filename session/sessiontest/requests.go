// SPDX-License-Identifier: Apache-2.0

package sessiontest

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/session"
)

// The layout of the ioctls' arguments, written down here a second time so that
// a mistake in package session does not go unnoticed.
const (
	atFD    = 4 // s32, right after the size; the reserved word of FINISH and GET_NAME
	atToken = 8 // u64
	atName  = 8 // char[64]

	sizeNamed  = 72
	sizeToken  = 16
	sizeFinish = 8
)

// direction says on which sessions a request is allowed.
type direction int

const (
	outgoing direction = iota
	incoming
	both
)

// request is one ioctl: its full number, the size of its argument, and what it
// does to a session, nil for a request on the device.
type request struct {
	req  uint
	size uint32
	on   direction
	do   func(f *Fake, s *luo, arg []byte) error
}

// deviceRequest returns what the device does for the number in the low byte of
// a request.
func deviceRequest(nr uint) (request, bool) {
	switch nr {
	case 0x00:
		return request{session.ReqCreateSession, sizeNamed, both, (*Fake).create}, true
	case 0x01:
		return request{session.ReqRetrieveSession, sizeNamed, both, (*Fake).retrieve}, true
	}
	return request{}, false
}

// sessionRequest is deviceRequest for a session.
func (f *Fake) sessionRequest(nr uint) (request, bool) {
	switch nr {
	case 0x40:
		return request{session.ReqPreserveFD, sizeToken, outgoing, (*Fake).preserveFD}, true
	case 0x41:
		return request{session.ReqRetrieveFD, sizeToken, incoming, (*Fake).retrieveFD}, true
	case 0x42:
		return request{session.ReqFinish, sizeFinish, incoming, (*Fake).finish}, true
	case 0x43:
		return request{session.ReqGetName, sizeNamed, both, (*Fake).getName}, !f.NoGetName
	}
	return request{}, false
}

// Ioctl implements session.Kernel.
func (f *Fake) Ioctl(file *fd.FD, req uint, arg []byte) error {
	st, err := file.Stat()
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.sweep(); err != nil {
		return err
	}
	isPipe := st.Mode&unix.S_IFMT == unix.S_IFIFO
	s := f.open[st.Ino]
	switch {
	case isPipe && f.device != nil && f.device.ino == st.Ino:
		r, known := deviceRequest(req & 0xff)
		return f.handle(r, known, nil, req, arg)
	case isPipe && s != nil:
		r, known := f.sessionRequest(req & 0xff)
		return f.handle(r, known, s, req, arg)
	}
	return unix.ENOTTY
}

// handle checks a request in the kernel's order (luo_ioctl, luo_session_ioctl)
// and does it. The argument is answered in place, and only on success.
func (f *Fake) handle(r request, known bool, s *luo, req uint, arg []byte) error {
	if !known {
		return unix.EINVAL
	}
	if len(arg) < 4 {
		return unix.EFAULT
	}
	size := binary.NativeEndian.Uint32(arg)
	switch {
	case r.req != req:
		return unix.ENOTTY
	case s != nil && !f.NoDirection && (r.on == incoming && !s.retrieved || r.on == outgoing && s.retrieved):
		return unix.EINVAL
	case size < r.size:
		return unix.EINVAL
	case uint64(size) > uint64(len(arg)):
		return unix.EFAULT
	case len(bytes.Trim(arg[r.size:size], "\x00")) > 0:
		return unix.E2BIG
	}
	return r.do(f, s, arg[:r.size])
}

// fail asks the test's Fail.
func (f *Fake) fail(req uint, name string, token uint64) error {
	if f.Fail == nil {
		return nil
	}
	return f.Fail(req, name, token)
}

// create is CREATE_SESSION (luo_session_create).
func (f *Fake) create(_ *luo, arg []byte) error {
	name, terminated := nameIn(arg)
	if err := f.fail(session.ReqCreateSession, name, 0); err != nil {
		return err
	}
	switch {
	case name == "" || !terminated:
		return unix.EINVAL
	case f.MaxSessions > 0 && len(f.outgoing) >= f.MaxSessions:
		return unix.ENOMEM
	case f.outgoing[name] != nil:
		return unix.EEXIST
	}
	s := &luo{name: name, files: map[uint64]*file{}}
	if err := f.handOut(s, arg); err != nil {
		return err
	}
	f.outgoing[name] = s
	return nil
}

// retrieve is RETRIEVE_SESSION (luo_session_retrieve).
func (f *Fake) retrieve(_ *luo, arg []byte) error {
	name, _ := nameIn(arg)
	if err := f.fail(session.ReqRetrieveSession, name, 0); err != nil {
		return err
	}
	s := f.incoming[name]
	switch {
	case s == nil:
		return unix.ENOENT
	case s.retrieved:
		return unix.EINVAL
	}
	s.retrieved = true
	if err := f.handOut(s, arg); err != nil {
		s.retrieved = false
		return err
	}
	return nil
}

// handOut gives a session its first descriptor.
func (f *Fake) handOut(s *luo, arg []byte) error {
	p, end, err := f.pipe()
	if err != nil {
		return err
	}
	s.pipe = p
	f.open[p.ino] = s
	binary.NativeEndian.PutUint32(arg[atFD:], uint32(end.Disown()))
	return nil
}

// finish is FINISH (luo_session_finish, luo_file_finish).
func (f *Fake) finish(s *luo, arg []byte) error {
	if binary.NativeEndian.Uint32(arg[atFD:]) != 0 {
		return unix.EINVAL
	}
	if err := f.fail(session.ReqFinish, s.name, 0); err != nil {
		return err
	}
	f.drop(s)
	return nil
}

// getName is GET_NAME (luo_session_get_name).
func (f *Fake) getName(s *luo, arg []byte) error {
	if binary.NativeEndian.Uint32(arg[atFD:]) != 0 {
		return unix.EINVAL
	}
	if err := f.fail(session.ReqGetName, s.name, 0); err != nil {
		return err
	}
	copy(arg[atName:], s.name+"\x00")
	return nil
}

// nameIn returns the name in arg and whether a NUL ends it.
func nameIn(arg []byte) (string, bool) {
	name, _, terminated := bytes.Cut(arg[atName:], []byte{0})
	return string(name), terminated
}
