// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
)

// writeMemfd returns a memfd with d in the given format that nobody can change any
// more. The caller owns it.
func writeMemfd(d document, format string) (*fd.FD, error) {
	data, err := encode(d, format)
	if err != nil {
		return nil, err
	}
	raw, err := createMemfd(format)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := fd.New(raw)
	if err := f.Do(func(raw int) error { return fill(raw, data) }); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// createMemfd asks for a memfd that can never be executed, which a kernel before
// 6.3 does not know.
func createMemfd(name string) (int, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	raw, err := unix.MemfdCreate(name, flags|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL {
		return unix.MemfdCreate(name, flags)
	}
	return raw, err
}

func fill(raw int, data []byte) error {
	for done := 0; done < len(data); {
		n, err := unix.Pwrite(raw, data[done:], int64(done))
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("pwrite", err)
		}
		done += max(n, 0)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	_, err := unix.FcntlInt(uintptr(raw), unix.F_ADD_SEALS, seals)
	return os.NewSyscallError("fcntl(F_ADD_SEALS)", err)
}

// Contents returns what is in a memfd, or another file with a size, and no more than
// the first most bytes. The file stays the caller's, and its position as it was. A file
// that shrinks meanwhile is ErrFormat.
func Contents(f *fd.FD, most int64) ([]byte, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data := make([]byte, min(st.Size, most))
	if err := f.Do(func(raw int) error { return readFull(raw, data) }); err != nil {
		return nil, err
	}
	return data, nil
}

// readMemfd fills d, which must be zero, with what is in f in the given format. It
// leaves f's position alone.
func readMemfd(f *fd.FD, d document, format string) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%w: it is not a memfd, its mode is %#o", ErrFormat, st.Mode)
	}
	if err := checkSize(st.Size); err != nil {
		return err
	}
	data, err := Contents(f, MaxManifest)
	if err != nil {
		return err
	}
	return parse(data, d, format)
}

func readFull(raw int, data []byte) error {
	for done := 0; done < len(data); {
		n, err := unix.Pread(raw, data[done:], int64(done))
		if n == 0 && err == nil {
			return fmt.Errorf("%w: it shrank from %d to %d bytes while it was read", ErrFormat, len(data), done)
		}
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("pread", err)
		}
		done += max(n, 0)
	}
	return nil
}
