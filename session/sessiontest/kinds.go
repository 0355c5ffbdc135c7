// SPDX-License-Identifier: Apache-2.0

package sessiontest

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/session"
)

// kindChecks returns the checks of what can be preserved and what not
// (memfd_luo_can_preserve).
func kindChecks() []Check {
	return []Check{
		{Name: "a shmem file without a link can be preserved", Run: kindsTaken},
		{Name: "everything else is refused", Run: kindsRefused},
		{Name: "what is no open file is a bad descriptor", Run: badDescriptors},
	}
}

// kind makes a file of some kind until the end of the check.
type kind struct {
	name string
	open func(t T) *fd.FD
}

func kindsTaken(t T, k session.Kernel) {
	s := create(t, device(t, k), "conform.taken")
	for token, kind := range []kind{
		{"memfd", func(t T) *fd.FD { return memfd(t, 0, "x") }},
		{"empty memfd", func(t T) *fd.FD { return memfd(t, 0, "") }},
		{"noexec memfd", func(t T) *fd.FD { return memfd(t, unix.MFD_NOEXEC_SEAL, "x") }},
		{"memfd sealed against everything", func(t T) *fd.FD {
			f := memfd(t, unix.MFD_ALLOW_SEALING, "x")
			fcntl(t, f, unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
			return f
		}},
		{"memfd opened for reading", func(t T) *fd.FD { return reopen(t, memfd(t, 0, "x"), unix.O_RDONLY) }},
		{"O_TMPFILE", tmpfile},
		{"unlinked file on tmpfs", func(t T) *fd.FD {
			f, path := shmFile(t)
			ok(t, "remove", os.Remove(path))
			return f
		}},
	} {
		ok(t, kind.name, s.Preserve(kind.open(t), uint64(token)))
	}
}

func kindsRefused(t T, k session.Kernel) {
	d := device(t, k)
	s := create(t, d, "conform.notaken")
	for _, kind := range append(refusedKinds(),
		kind{"the session itself", func(T) *fd.FD { return s.FD() }},
		kind{"another session", func(t T) *fd.FD { return create(t, d, "conform.inner").FD() }},
	) {
		fails(t, kind.name, s.Preserve(kind.open(t), 1), session.ErrUnsupported, unix.ENOENT)
	}
}

// opened opens what has a name, or had one.
func opened(path string) func(t T) *fd.FD {
	return func(t T) *fd.FD { return rawFD(unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0))(t) }
}

// refusedKinds returns kinds without a handler in Linux 7.2, but for sessions.
func refusedKinds() []kind {
	return []kind{
		{"pipe", pipeEnd},
		{"socket", func(t T) *fd.FD { return rawFD(unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))(t) }},
		{"eventfd", func(t T) *fd.FD { return rawFD(unix.Eventfd(0, unix.EFD_CLOEXEC))(t) }},
		{"timerfd", func(t T) *fd.FD { return rawFD(unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC))(t) }},
		{"inotify", func(t T) *fd.FD { return rawFD(unix.InotifyInit1(unix.IN_CLOEXEC))(t) }},
		{"epoll", func(t T) *fd.FD { return rawFD(unix.EpollCreate1(unix.EPOLL_CLOEXEC))(t) }},
		{"character device", opened("/dev/null")},
		{"directory on tmpfs", opened(shmDir)},
		{"file on disk", opened("/proc/self/exe")},
		{"unlinked file on disk", func(t T) *fd.FD {
			file := must(os.CreateTemp("/var/tmp", "conform"))(t) // where /tmp may be tmpfs
			defer file.Close()
			f := opened(file.Name())(t)
			ok(t, "remove", os.Remove(file.Name()))
			return f
		}},
		{"removed directory on tmpfs", func(t T) *fd.FD {
			path := must(os.MkdirTemp(shmDir, "conform"))(t)
			f := opened(path)(t)
			ok(t, "remove", os.Remove(path))
			return f
		}},
		{"file on tmpfs with a link", func(t T) *fd.FD { f, _ := shmFile(t); return f }},
	}
}

func badDescriptors(t T, k session.Kernel) {
	s := create(t, device(t, k), "conform.bad")
	path := rawFD(unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0))(t)
	fails(t, "preserve an O_PATH descriptor", s.Preserve(path, 1), unix.EBADF)
	arg := argument(sizeToken)
	for i := range 4 {
		arg[atFD+i] = 0xff
	}
	fails(t, "preserve descriptor -1", k.Ioctl(s.FD(), session.ReqPreserveFD, arg), unix.EBADF)
}

// pipeEnd makes a pipe and returns its reading end.
func pipeEnd(t T) *fd.FD {
	t.Helper()
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		t.Fatalf("pipe: %v", err)
	}
	own(t, fd.New(ends[1]))
	return own(t, fd.New(ends[0]))
}

// tmpfile makes a file on tmpfs that never had a name.
func tmpfile(t T) *fd.FD {
	t.Helper()
	return rawFD(unix.Open(shmDir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600))(t)
}

// throughSocket sends a session's descriptor into a socket, closes the
// session, and returns what comes out at the other end.
func throughSocket(t T, s *session.Session) *fd.FD {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("socketpair: %v", err)
	}
	own(t, fd.New(pair[0]))
	own(t, fd.New(pair[1]))
	ok(t, "send", s.FD().Do(func(raw int) error {
		return unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(raw), nil, 0)
	}))
	ok(t, "close", s.Close())
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[1], make([]byte, 1), control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		t.Fatalf("receive: %v", err)
	}
	messages := must(unix.ParseSocketControlMessage(control[:n]))(t)
	if len(messages) != 1 {
		t.Fatalf("received %d control messages, want 1", len(messages))
	}
	raws := must(unix.ParseUnixRights(&messages[0]))(t)
	return own(t, fd.New(raws[0]))
}
