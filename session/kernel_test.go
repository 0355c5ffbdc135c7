// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

// recorder is a Kernel that remembers its last Ioctl.
type recorder struct {
	req uint
	arg []byte
}

func (*recorder) Open(string) (*fd.FD, error) { return nil, unix.ENOENT }

func (k *recorder) Ioctl(_ *fd.FD, req uint, arg []byte) error {
	k.req, k.arg = req, slices.Clone(arg)
	return nil
}

func TestInterruptedCallsAreMadeAgainButNotForEver(t *testing.T) {
	for _, c := range []struct {
		name       string
		interrupts int
		calls      int
		want       error
	}{
		{"never interrupted", 0, 1, unix.EBADF},
		{"interrupted twice", 2, 3, unix.EBADF},
		{"interrupted for ever", maxInterrupts * 2, maxInterrupts, unix.EINTR},
	} {
		t.Run(c.name, func(t *testing.T) {
			calls := 0
			err := uninterrupted(func() error {
				if calls++; calls <= c.interrupts {
					return unix.EINTR
				}
				return unix.EBADF
			})
			if err != c.want || calls != c.calls {
				t.Errorf("%v after %d calls, want %v after %d", err, calls, c.want, c.calls)
			}
		})
	}
}

func TestSystemGivesTheErrnoOfTheRunningKernel(t *testing.T) {
	f, err := System{}.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_ = f.Do(func(raw int) error {
		if flags, _ := unix.FcntlInt(uintptr(raw), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
			t.Error("Open gives a descriptor that is not close-on-exec")
		}
		if flags, _ := unix.FcntlInt(uintptr(raw), unix.F_GETFL, 0); flags&unix.O_ACCMODE != unix.O_RDWR {
			t.Error("Open does not open for reading and writing")
		}
		return nil
	})
	if err := (System{}).Ioctl(f, ReqGetName, make([]byte, 72)); err != unix.ENOTTY {
		t.Errorf("Ioctl on /dev/null: %v, want ENOTTY", err)
	}
	if _, err := (System{}).Open(t.TempDir() + "/none"); err != unix.ENOENT {
		t.Errorf("Open of nothing: %v, want ENOENT", err)
	}
	_ = f.Close()
	if err := (System{}).Ioctl(f, ReqGetName, make([]byte, 72)); !errors.Is(err, fd.ErrClosed) {
		t.Errorf("Ioctl on a closed descriptor: %v, want ErrClosed", err)
	}
}

func TestSystemIoctlHandsOverTheArgument(t *testing.T) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	read, write := fd.New(ends[0]), fd.New(ends[1])
	defer read.Close()
	defer write.Close()
	if _, err := unix.Write(ends[1], []byte("four")); err != nil {
		t.Fatal(err)
	}
	arg := make([]byte, 4)
	if err := (System{}).Ioctl(read, unix.TIOCINQ, arg); err != nil || !slices.Equal(arg, []byte{4, 0, 0, 0}) {
		t.Errorf("FIONREAD of a pipe with four bytes: %v, %v", arg, err)
	}
}
