// SPDX-License-Identifier: Apache-2.0

package notify_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/units/notify"
)

func TestMain(m *testing.M) {
	if os.Getenv("NOTIFY_TEST_LISTEN") != "" {
		listen()
		return
	}
	fdtest.Main(m)
}

// service is the service manager's end of a notify socket.
type service struct {
	t    *testing.T
	conn *net.UnixConn
}

func open(t *testing.T) (*notify.Socket, *service) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	socket, err := notify.Open(path, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close(); _ = conn.Close() })
	return socket, &service{t, conn}
}

// next returns a message and the inodes of the fds with it, which are closed.
func (s *service) next() (string, []uint64) {
	s.t.Helper()
	buffer, oob := make([]byte, 4096), make([]byte, 4096)
	n, oobn, _, _, err := s.conn.ReadMsgUnix(buffer, oob)
	if err != nil {
		s.t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		s.t.Fatal(err)
	}
	var inodes []uint64
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			s.t.Fatal(err)
		}
		for _, raw := range fds {
			var st unix.Stat_t
			if err := unix.Fstat(raw, &st); err != nil {
				s.t.Error(err)
			}
			inodes = append(inodes, st.Ino)
			_ = unix.Close(raw)
		}
	}
	return string(buffer[:n]), inodes
}

func memfd(t *testing.T) (*fd.FD, uint64) {
	t.Helper()
	f := fdtest.Memfd(t)
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, st.Ino
}

func TestMessagesAreWhatSystemdReads(t *testing.T) {
	socket, service := open(t)
	f, inode := memfd(t)
	for _, test := range []struct {
		send   func() error
		want   string
		inodes []uint64
	}{
		{func() error { return socket.Ready("all\nis well") }, "READY=1\nSTATUS=all is well", nil},
		{func() error { return socket.Store("a b", f) }, "FDSTORE=1\nFDPOLL=0\nFDNAME=a b", []uint64{inode}},
		{func() error { return socket.Store("", f) }, "FDSTORE=1\nFDPOLL=0\nFDNAME=", []uint64{inode}},
		{func() error { return socket.StoreUnnamed(f) }, "FDSTORE=1\nFDPOLL=0", []uint64{inode}},
		{func() error { return socket.Remove("a b") }, "FDSTOREREMOVE=1\nFDNAME=a b", nil},
	} {
		if err := test.send(); err != nil {
			t.Errorf("%q: %v", test.want, err)
			continue
		}
		message, inodes := service.next()
		if message != test.want {
			t.Errorf("sent %q, want %q", message, test.want)
		}
		if diff := cmp.Diff(test.inodes, inodes); diff != "" {
			t.Errorf("%q carries other fds (-want +got):\n%s", test.want, diff)
		}
	}
}

func TestBarrierWaitsForTheServiceManager(t *testing.T) {
	socket, service := open(t)
	done := make(chan error, 1)
	go func() { done <- socket.Barrier() }()
	message, inodes := service.next() // which closes the fd, as PID 1 does
	if message != "BARRIER=1" || len(inodes) != 1 {
		t.Errorf("sent %q with %d fds", message, len(inodes))
	}
	if err := <-done; err != nil {
		t.Errorf("Barrier: %v", err)
	}
}

func TestAServiceManagerThatReadsNothingIsNotWaitedForLonger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	socket, err := notify.Open(path, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if err := socket.Barrier(); !errors.Is(err, notify.ErrBarrier) {
		t.Errorf("Barrier: %v, want ErrBarrier", err)
	}
	for err = nil; err == nil; {
		err = socket.Status("there is room for so many only")
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Errorf("Status: %v, want EAGAIN", err)
	}
}

func TestNamesThatSystemdWouldIgnoreAreRefused(t *testing.T) {
	socket, _ := open(t)
	f, _ := memfd(t)
	for _, name := range []string{"a:b", "a\nb", "ä", "\x7f", strings.Repeat("x", 256)} {
		if err := socket.Store(name, f); !errors.Is(err, notify.ErrName) {
			t.Errorf("Store(%q): %v, want ErrName", name, err)
		}
		if err := socket.Remove(name); !errors.Is(err, notify.ErrName) {
			t.Errorf("Remove(%q): %v, want ErrName", name, err)
		}
	}
	if !notify.ValidName(strings.Repeat("~", 255)) {
		t.Error("a name of 255 characters is refused")
	}
}

func TestOpenSaysWhatIsMissing(t *testing.T) {
	if _, err := notify.Open("", time.Minute); !errors.Is(err, notify.ErrNoSocket) {
		t.Errorf("Open of nothing: %v, want ErrNoSocket", err)
	}
	if _, err := notify.Open(filepath.Join(t.TempDir(), "none"), time.Minute); !errors.Is(err, unix.ENOENT) {
		t.Errorf("Open of a missing socket: %v, want ENOENT", err)
	}
}

// listen is what the child process of TestListen does.
func listen() {
	passed, err := notify.Listen()
	for _, p := range passed {
		_ = p.FD.Do(func(raw int) error {
			flags, err := unix.FcntlInt(uintptr(raw), unix.F_GETFD, 0)
			fmt.Printf("%d %q cloexec=%v %v\n", raw, p.Name, flags&unix.FD_CLOEXEC != 0, err)
			return nil
		})
	}
	again, _ := notify.Listen()
	fmt.Printf("error=%v again=%d env=%q\n", err, len(again), os.Getenv("LISTEN_FDS")+os.Getenv("LISTEN_FDNAMES"))
}

func TestListenTakesOverWhatWasPassed(t *testing.T) {
	for name, test := range map[string]struct {
		env, want string
	}{
		"two fds": {"LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=b:a",
			"3 \"b\" cloexec=true <nil>\n4 \"a\" cloexec=true <nil>\nerror=<nil> again=0 env=\"\"\n"},
		"a name that is empty": {"LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=:a",
			"3 \"\" cloexec=true <nil>\n4 \"a\" cloexec=true <nil>\nerror=<nil> again=0 env=\"\"\n"},
		"no fds":            {"", "error=<nil> again=0 env=\"\"\n"},
		"another process's": {"LISTEN_PID=1 LISTEN_FDS=2 LISTEN_FDNAMES=b:a", "error=<nil> again=0 env=\"\"\n"},
		"names missing":     {"LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=b", "error=LISTEN_FDS=2 with 1 names: " + notify.ErrListen.Error() + " again=0 env=\"\"\n"},
		"no number":         {"LISTEN_PID=$$ LISTEN_FDS=x LISTEN_FDNAMES=b", "error=LISTEN_FDS=x with 1 names: " + notify.ErrListen.Error() + " again=0 env=\"\"\n"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("sh", "-c", "exec env NOTIFY_TEST_LISTEN=1 "+test.env+" \"$0\"", os.Args[0])
			for range 2 {
				null, err := os.Open(os.DevNull)
				if err != nil {
					t.Fatal(err)
				}
				defer null.Close()
				cmd.ExtraFiles = append(cmd.ExtraFiles, null)
			}
			out, err := cmd.CombinedOutput()
			if diff := cmp.Diff(test.want, string(out)); diff != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}
