// SPDX-License-Identifier: Apache-2.0

package session

import (
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
)

// The numbers are those a C compiler gives for include/uapi/linux/liveupdate.h
// of Linux 7.2.
func TestRequestsAndStructsAreThoseOfTheHeader(t *testing.T) {
	var named namedSession
	var file fileByToken
	var fin finish
	var name getName
	for _, c := range []struct {
		what      string
		got, want uintptr
	}{
		{"LIVEUPDATE_SESSION_NAME_LENGTH", nameSize, 64},
		{"LIVEUPDATE_IOCTL_CREATE_SESSION", uintptr(ReqCreateSession), 0xba00},
		{"LIVEUPDATE_IOCTL_RETRIEVE_SESSION", uintptr(ReqRetrieveSession), 0xba01},
		{"LIVEUPDATE_SESSION_PRESERVE_FD", uintptr(ReqPreserveFD), 0xba40},
		{"LIVEUPDATE_SESSION_RETRIEVE_FD", uintptr(ReqRetrieveFD), 0xba41},
		{"LIVEUPDATE_SESSION_FINISH", uintptr(ReqFinish), 0xba42},
		{"LIVEUPDATE_SESSION_GET_NAME", uintptr(ReqGetName), 0xba43},
		{"sizeof liveupdate_ioctl_create_session", unsafe.Sizeof(named), 72},
		{"offsetof liveupdate_ioctl_create_session.fd", unsafe.Offsetof(named.fd), 4},
		{"offsetof liveupdate_ioctl_create_session.name", unsafe.Offsetof(named.name), 8},
		{"sizeof liveupdate_session_preserve_fd", unsafe.Sizeof(file), 16},
		{"offsetof liveupdate_session_preserve_fd.fd", unsafe.Offsetof(file.fd), 4},
		{"offsetof liveupdate_session_preserve_fd.token", unsafe.Offsetof(file.token), 8},
		{"sizeof liveupdate_session_finish", unsafe.Sizeof(fin), 8},
		{"offsetof liveupdate_session_finish.reserved", unsafe.Offsetof(fin.reserved), 4},
		{"sizeof liveupdate_session_get_name", unsafe.Sizeof(name), 72},
		{"offsetof liveupdate_session_get_name.reserved", unsafe.Offsetof(name.reserved), 4},
		{"offsetof liveupdate_session_get_name.name", unsafe.Offsetof(name.name), 8},
	} {
		if c.got != c.want {
			t.Errorf("%s is %#x, want %#x", c.what, c.got, c.want)
		}
	}
}

func TestCallWritesTheSizeFirst(t *testing.T) {
	var k recorder
	if err := call(&k, nil, ReqPreserveFD, &fileByToken{fd: 5, token: 7}); err != nil {
		t.Fatal(err)
	}
	want := recorder{req: ReqPreserveFD, arg: []byte{16, 0, 0, 0, 5, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0}}
	if diff := cmp.Diff(want, k, cmp.AllowUnexported(recorder{})); diff != "" {
		t.Errorf("ioctl on a little-endian machine (-want +got):\n%s", diff)
	}
}
