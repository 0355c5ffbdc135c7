// SPDX-License-Identifier: Apache-2.0

package sessiontest

import (
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
)

// pipe stands for an open device or session: whoever has it open holds its
// writing end, and the Fake the reading end, which hangs up when the last
// writing end is closed.
type pipe struct {
	read *fd.FD
	raw  int32  // the number of read
	ino  uint64 // of both ends: tells which pipe a descriptor belongs to
}

// pipe makes a pipe and returns it with its writing end, the caller's.
func (f *Fake) pipe() (*pipe, *fd.FD, error) {
	var raw [2]int
	if err := unix.Pipe2(raw[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	p, end := &pipe{read: fd.New(raw[0]), raw: int32(raw[0])}, fd.New(raw[1])
	if err := f.watch(p); err != nil {
		_ = p.read.Close()
		_ = end.Close()
		return nil, nil, err
	}
	return p, end, nil
}

// watch makes sweep notice when p hangs up.
func (f *Fake) watch(p *pipe) error {
	st, err := p.read.Stat()
	if err != nil {
		return err
	}
	p.ino = st.Ino
	err = f.epoll.Do(func(epoll int) error {
		return unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, int(p.raw), &unix.EpollEvent{Fd: p.raw})
	})
	if err == nil {
		f.ends[p.raw] = p
	}
	return err
}

// forget closes the Fake's end of p, which takes it out of the epoll, too.
func (f *Fake) forget(p *pipe) {
	delete(f.ends, p.raw)
	_ = p.read.Close()
}

// sweep releases whatever was closed since it was last called.
func (f *Fake) sweep() error {
	for {
		p, err := f.hungUp()
		if p == nil || err != nil {
			return err
		}
		if p == f.device {
			f.device = nil
			f.forget(p)
		} else {
			f.release(f.open[p.ino])
		}
	}
}

// hungUp returns a pipe that has no writing end any more, or nil.
func (f *Fake) hungUp() (p *pipe, err error) {
	err = f.epoll.Do(func(epoll int) error {
		var event [1]unix.EpollEvent
		n, err := unix.EpollWait(epoll, event[:], 0)
		for err == unix.EINTR {
			n, err = unix.EpollWait(epoll, event[:], 0)
		}
		if n > 0 {
			p = f.ends[event[0].Fd]
		}
		return err
	})
	return p, err
}
