// SPDX-License-Identifier: Apache-2.0

package units

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// inotify is an inotify(7) descriptor, which the runtime's poller serves.
type inotify struct {
	*os.File
	raw int
}

// inotifyEvent is struct inotify_event.
type inotifyEvent struct {
	watch int // what add has returned
	mask  uint32
	name  string // in the directory that is watched
}

func newInotify() (*inotify, error) {
	raw, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	return &inotify{os.NewFile(uintptr(raw), "inotify"), raw}, nil
}

// add watches for what mask says in a directory.
func (i *inotify) add(dir string, mask uint32) (watch int, err error) {
	return unix.InotifyAddWatch(i.raw, dir, mask|unix.IN_ONLYDIR)
}

// next waits for events and calls each with them. It returns an error that answers
// errors.Is for os.ErrClosed after Close.
func (i *inotify) next(each func(e inotifyEvent)) error {
	buffer := make([]byte, 64<<10)
	n, err := i.Read(buffer)
	if err != nil {
		return err
	}
	parseEvents(buffer[:n], each)
	return nil
}

// drain calls each with the events that are there, and waits for none.
func (i *inotify) drain(each func(e inotifyEvent)) error {
	conn, err := i.SyscallConn()
	if err != nil {
		return err
	}
	buffer := make([]byte, 16<<10)
	for {
		var n int
		var failed error
		err := conn.Read(func(raw uintptr) (done bool) {
			n, failed = unix.Read(int(raw), buffer)
			return true
		})
		if errors.Is(failed, unix.EAGAIN) || failed == nil && n == 0 {
			return nil
		}
		if err = errors.Join(err, os.NewSyscallError("read", failed)); err != nil {
			return err
		}
		parseEvents(buffer[:n], each)
	}
}

func parseEvents(events []byte, each func(e inotifyEvent)) {
	for len(events) >= unix.SizeofInotifyEvent {
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[12:]))
		name, _, _ := bytes.Cut(events[unix.SizeofInotifyEvent:size], []byte{0})
		each(inotifyEvent{
			watch: int(int32(binary.NativeEndian.Uint32(events))),
			mask:  binary.NativeEndian.Uint32(events[4:]),
			name:  string(name),
		})
		events = events[size:]
	}
}
