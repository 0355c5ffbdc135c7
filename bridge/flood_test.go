// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

// Who floods a socket costs nobody else anything, and leaves nothing behind.
const (
	manyConnections = 1000
	manyFDs         = 10_000
	fdsAtOnce       = 100 // beside one packet
)

// raw connects to a socket as no client of package wire would; the test closes it.
func raw(t *testing.T, path string) int {
	t.Helper()
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(s, &unix.SockaddrUnix{Name: path})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(s) })
	return s
}

// ended waits until the other ends of so many of these connections have hung up.
func ended(t *testing.T, connections []int, many int) {
	t.Helper()
	var list []unix.PollFd
	for _, s := range connections {
		list = append(list, unix.PollFd{Fd: int32(s)})
	}
	gone := 0
	for end := time.Now().Add(20 * time.Second); gone < many; {
		if time.Now().After(end) {
			t.Fatalf("fdbridged has hung up on %d of %d connections, want %d", gone, len(list), many)
		}
		_, err := unix.Poll(list, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
		gone = 0
		for _, p := range list {
			if p.Revents&unix.POLLHUP != 0 {
				gone++
			}
		}
	}
}

// descriptors returns how many this process has, of which fdbridged is a part.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestConnectionsThatSayNothingAreInNobodysWay(t *testing.T) {
	w, d := held(t, nil)
	w.add("vm.service", "yes")
	services := d.services()
	w.setPeer("flood.service")
	var flood []int
	for range manyConnections {
		raw(t, d.socket)
		flood = append(flood, raw(t, services))
	}
	const served = 16 // of one unit at a time
	ended(t, flood, manyConnections-served)
	// Root's socket serves others beside them, and that for services other units.
	w.gets(services, "vm.service", wire.OpOpenSession, "guest")
	if n, err := w.deliver(d.socket, "a.service"); n != 2 || err != nil {
		t.Errorf("deliver beside %d connections: %d, %v", manyConnections, n, err)
	}
}

func TestFDsThatNobodyAskedForAreNotKept(t *testing.T) {
	w, d := held(t, nil)
	w.add("vm.service", "yes")
	services := d.services()
	w.setPeer("vm.service")
	var beside []int
	for range fdsAtOnce {
		beside = append(beside, 0)
	}
	before, refused := descriptors(t), 0
	for i := range manyFDs / fdsAtOnce {
		packet := fmt.Sprintf(`{"op":%q,"name":"guest"}`, []string{wire.OpOpenSession, wire.OpDeliver, "nothing"}[i%3])
		if i%4 == 0 {
			packet = packet[:len(packet)/2] // half a message
		}
		for _, path := range []string{d.socket, services} {
			s := raw(t, path)
			before++ // s itself
			err := unix.Sendmsg(s, []byte(packet), unix.UnixRights(beside...), nil, 0)
			if errors.Is(err, unix.EPERM) { // as Linux 6.16 and later do what wire.Listen asks for
				refused++
				_ = unix.Shutdown(s, unix.SHUT_RDWR)
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			ended(t, []int{s}, 1)
		}
	}
	if refused != 0 && refused != 2*manyFDs/fdsAtOnce {
		t.Errorf("the kernel has refused fds %d times of %d", refused, 2*manyFDs/fdsAtOnce)
	}
	served := func() bool { return strings.Contains(w.logged(), "vm.service") } // some at least
	for end := time.Now().Add(20 * time.Second); !served() || descriptors(t) > before; {
		if time.Now().After(end) {
			t.Fatalf("after %d fds there are %d descriptors, and were %d", 2*manyFDs, descriptors(t), before)
		}
	}
	// Nor is the log, which others' messages have to get into.
	if n := strings.Count(w.logged(), "vm.service"); n > 60 {
		t.Errorf("%d messages about vm.service", n)
	}
	if list := d.holder.Held("a.service"); len(list) != 1 {
		t.Errorf("held for a.service: %v", list)
	}
}
