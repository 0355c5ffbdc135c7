// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// Before Linux 6.5 the kernel knows no SO_PEERPIDFD, as of these sockets it knows no
// process: the number that SO_PEERCRED has is not taken instead.
func TestAPeerThatTheKernelDoesNotNameIsNone(t *testing.T) {
	for name, family := range map[string]int{"not connected": unix.AF_UNIX, "of another family": unix.AF_INET} {
		raw, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := newConn(raw)
		if err != nil {
			t.Fatal(err)
		}
		if peer, err := conn.Peer(); peer != nil || !errors.Is(err, ErrNoPeer) {
			t.Errorf("%s: %v, %v, want ErrNoPeer", name, peer, err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}
