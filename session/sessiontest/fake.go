// SPDX-License-Identifier: Apache-2.0

package sessiontest

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/session"
)

// Fake is a session.Kernel without live update behind it: it answers as Linux
// 7.2 does, errno for errno, and Kexec takes it into the next kernel. The
// device and the sessions are real descriptors, which can be duplicated, sent
// and stored; the Fake notices when the last one of each is closed.
//
// What it cannot do: forbid to change the size of a file while it is preserved
// (the kernel answers EPERM), which a test must not rely on; show a session's
// name in /proc/self/fd, where its descriptors are pipes; keep a file's pages
// without copying them.
//
// The exported fields may be changed while no call is running.
type Fake struct {
	// MaxFiles is how many files a session takes before ENOSPC; 0 for any
	// number. Linux 6.19 to 7.1 take 128.
	MaxFiles int
	// MaxSessions is how many outgoing sessions there can be before ENOMEM;
	// 0 for any number. Linux 6.19 to 7.1 have room for 819.
	MaxSessions int
	// NoGetName makes GET_NAME unknown, as before Linux 7.2.
	NoGetName bool
	// NoDirection makes requests on sessions of the other direction do what they
	// would do on the right one, as before Linux 7.2.
	NoDirection bool
	// NoSeals makes memfds come back with F_SEAL_SEAL alone, as before Linux 7.1
	// (memfd_alloc_file without MFD_ALLOW_SEALING).
	NoSeals bool
	// OpenErr is what every Open returns when it is not nil: unix.EIO for
	// incoming state that cannot be read, unix.ENOENT for a kernel without
	// live update.
	OpenErr error
	// Fail, when not nil, is called before each request that has passed the
	// checks of its size and direction, with the name of the session and, for
	// files, the token. When it returns an error, unix.ENOMEM say, nothing is
	// done and the request gives that error. A failed ReqRetrieveFD stays
	// failed, as in the kernel, and is not asked about again. Fail must not
	// call the Fake.
	Fail func(req uint, name string, token uint64) error

	mu        sync.Mutex
	epoll     *fd.FD
	ends      map[int32]*pipe // by the number of the reading end
	device    *pipe           // nil while nobody has it open
	open      map[uint64]*luo // sessions that have descriptors, by pipe inode
	outgoing  map[string]*luo // all are open
	incoming  map[string]*luo // open when retrieved
	preserved map[inode]bool  // what cannot be preserved again
}

// luo is the kernel's side of a session.
type luo struct {
	name      string
	pipe      *pipe // nil while not retrieved
	retrieved bool  // incoming, and handed out
	files     map[uint64]*file
}

// NewFake returns a freshly booted Fake, which the caller closes.
func NewFake() (*Fake, error) {
	raw, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return &Fake{
		epoll:     fd.New(raw),
		ends:      map[int32]*pipe{},
		open:      map[uint64]*luo{},
		outgoing:  map[string]*luo{},
		incoming:  map[string]*luo{},
		preserved: map[inode]bool{},
	}, nil
}

// Close releases all that the Fake holds. Descriptors it gave out stay the
// caller's. The Fake cannot be used further.
func (f *Fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.powerOff()
	return f.epoll.Close()
}

// powerOff lets go of all sessions and files.
func (f *Fake) powerOff() {
	for _, sessions := range []map[string]*luo{f.outgoing, f.incoming} {
		for _, s := range sessions {
			f.release(s)
		}
	}
	if f.device != nil {
		f.forget(f.device)
		f.device = nil
	}
}

// Kexec takes the Fake into the next kernel: outgoing sessions that still have
// a descriptor open become the incoming ones, and all else is gone. Descriptors
// from before answer ENOTTY; close them, as the kexec would have. On an error
// nothing has happened.
func (f *Fake) Kexec() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.sweep(); err != nil {
		return err
	}
	next := map[string]*luo{}
	for name, s := range f.outgoing {
		successor, err := f.successor(s)
		next[name] = successor
		if err != nil {
			for _, s := range next {
				f.drop(s)
			}
			return err
		}
	}
	f.powerOff()
	f.incoming = next
	return nil
}

// Open implements session.Kernel. Only session.Path exists.
func (f *Fake) Open(path string) (*fd.FD, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.sweep(); err != nil {
		return nil, err
	}
	switch {
	case f.OpenErr != nil:
		return nil, f.OpenErr
	case path != session.Path:
		return nil, unix.ENOENT
	case f.device != nil:
		return nil, unix.EBUSY
	}
	p, end, err := f.pipe()
	if err != nil {
		return nil, err
	}
	f.device = p
	return end, nil
}

// release does what the kernel does when the last descriptor of a session is
// closed (luo_session_release).
func (f *Fake) release(s *luo) {
	f.drop(s)
	if s.pipe != nil {
		delete(f.open, s.pipe.ino)
		f.forget(s.pipe)
	}
	if f.outgoing[s.name] == s {
		delete(f.outgoing, s.name)
	} else {
		delete(f.incoming, s.name)
	}
}

// drop takes all files out of a session, which unpreserves or finishes them.
func (f *Fake) drop(s *luo) {
	for token, file := range s.files {
		if file.counted {
			delete(f.preserved, file.id)
		}
		_ = file.f.Close()
		delete(s.files, token)
	}
}
