// SPDX-License-Identifier: Apache-2.0

package fd

import "golang.org/x/sys/unix"

// RoomForOne returns a buffer for the control messages of a recvmsg(2) that may be
// given one descriptor. The kernel installs no more than fit (scm_max_fds in
// net/core/scm.c), so that surplus ones are never this process's to close.
func RoomForOne() []byte {
	return make([]byte, unix.CmsgLen(4)) // CmsgSpace would round up to room for two
}

// Received returns the descriptor in what a recvmsg(2) has put into a RoomForOne; the
// caller owns it. It is nil when there is none.
func Received(control []byte) (*FD, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	for i := range messages { // at most one has any
		if messages[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		numbers, err := unix.ParseUnixRights(&messages[i])
		if err != nil || len(numbers) == 0 {
			return nil, err
		}
		return New(numbers[0]), nil
	}
	return nil, nil
}
