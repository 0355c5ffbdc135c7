// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

// pair returns the two ends of a connection over a real socket.
func pair(t testing.TB) (client, server *wire.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	listener, err := wire.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if client, err = wire.Dial(path); err != nil {
		t.Fatal(err)
	}
	if server, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(); _ = server.Close() })
	return client, server
}

// rawPair is pair with a server that can send what a Conn does not. (A client's fds
// are refused by the kernel.)
func rawPair(t testing.TB) (server int, client *wire.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	listener, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(listener)
	if err = unix.Bind(listener, &unix.SockaddrUnix{Name: path}); err == nil {
		err = unix.Listen(listener, 1)
	}
	if err == nil {
		client, err = wire.Dial(path)
	}
	if err == nil {
		server, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
	}
	if err != nil {
		t.Fatal(err)
	}
	return server, client
}

func pipe(t *testing.T) *fd.FD {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(p[1])
	f := fd.New(p[0])
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestPacketArrivesWithItsFD(t *testing.T) {
	client, server := pair(t)
	f := pipe(t)
	if err := server.Send(wire.Grant{Unit: "a.service", Session: "fdbridge.a.service"}, f); err != nil {
		t.Fatal(err)
	}
	var got wire.Grant
	received, err := client.Receive(&got)
	if err != nil {
		t.Fatal(err)
	}
	defer received.Close()
	want, _ := f.Stat()
	if st, err := received.Stat(); err != nil || st.Ino != want.Ino {
		t.Errorf("received inode %d, %v; want %d", st.Ino, err, want.Ino)
	}
	if got.Unit != "a.service" || got.Session != "fdbridge.a.service" {
		t.Errorf("received %+v", got)
	}
	if err := server.Send(wire.Settled{}, nil); err != nil {
		t.Fatal(err)
	}
	if f, err := client.Receive(&wire.Settled{}); f != nil || err != nil {
		t.Errorf("a packet without an fd gives %v, %v", f, err)
	}
}

func TestPeerIsTheProcessThatConnected(t *testing.T) {
	_, server := pair(t)
	peer, err := server.Peer()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(self)
	var want unix.Stat_t
	_ = unix.Fstat(self, &want)
	if got, err := peer.Stat(); err != nil || got.Ino != want.Ino {
		t.Errorf("the peer's pidfd has inode %d, %v; want %d", got.Ino, err, want.Ino)
	}
}

func TestNoRequestHasAnFDWithIt(t *testing.T) {
	client, server := pair(t)
	f := pipe(t)
	err := client.Send(wire.Request{Op: wire.OpOpenSession}, f)
	if refuses(t) {
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("Send: %v, want EPERM", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	stray, err := server.Receive(&wire.Request{})
	_ = stray.Close()
	if err != nil {
		t.Error(err)
	}
}

// refuses tells whether this kernel can refuse fds (Linux 6.16 and later).
func refuses(t *testing.T) bool {
	t.Helper()
	raw, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(raw)
	return unix.SetsockoptInt(raw, unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 0) == nil
}

func TestReceiveEndsWithThePeer(t *testing.T) {
	client, server := pair(t)
	_ = server.Close()
	if _, err := client.Receive(&wire.Grant{}); !errors.Is(err, io.EOF) {
		t.Errorf("Receive after the peer closed: %v, want EOF", err)
	}
}

// The kernel can say that the connection has ended when it has not, see Receive: that
// looks as an empty packet does.
func TestThePeerHasHungUpWhenTheKernelSaysSoTwice(t *testing.T) {
	server, client := rawPair(t)
	defer client.Close()
	for _, packet := range []string{"", `{"unit":"a.service"}`} {
		if err := unix.Send(server, []byte(packet), unix.MSG_EOR); err != nil {
			t.Fatal(err)
		}
	}
	_ = unix.Close(server)
	var grant wire.Grant
	if _, err := client.Receive(&grant); err != nil || grant.Unit != "a.service" {
		t.Errorf("Receive of what was sent before the peer closed: %+v, %v", grant, err)
	}
	if _, err := client.Receive(&grant); !errors.Is(err, io.EOF) {
		t.Errorf("Receive of what was not sent: %v, want EOF", err)
	}
}

func TestEveryWaitEndsAtTheDeadline(t *testing.T) {
	client, _ := pair(t)
	if err := client.SetDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Receive(&wire.Grant{}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Receive: %v, want ErrDeadlineExceeded", err)
	}
}

func TestMalformedPacketsAreRefusedAndLeaveNoFD(t *testing.T) {
	for name, send := range map[string]func(raw int, f int) error{
		"no JSON":      func(raw, f int) error { return unix.Sendmsg(raw, []byte("{"), unix.UnixRights(f), nil, 0) },
		"another type": func(raw, f int) error { return unix.Sendmsg(raw, []byte(`"x"`), unix.UnixRights(f), nil, 0) },
		"two fds":      func(raw, f int) error { return unix.Sendmsg(raw, []byte("{}"), unix.UnixRights(f, f), nil, 0) },
		"too long": func(raw, f int) error {
			return unix.Sendmsg(raw, []byte(`{"op":"`+strings.Repeat("x", wire.MaxPacket)+`"}`), nil, nil, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			raw, client := rawPair(t)
			defer unix.Close(raw)
			defer client.Close()
			if err := pipe(t).Do(func(f int) error { return send(raw, f) }); err != nil {
				t.Fatal(err)
			}
			before := descriptors(t)
			f, err := client.Receive(&wire.Request{})
			if !errors.Is(err, wire.ErrPacket) || f != nil {
				t.Errorf("Receive: %v, %v; want ErrPacket", f, err)
			}
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors are open, %d before", after, before)
			}
		})
	}
}

// descriptors counts the open descriptors of this process.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestTooLargeAPacketIsNotSent(t *testing.T) {
	client, _ := pair(t)
	err := client.Send(wire.Request{Op: strings.Repeat("x", wire.MaxPacket)}, nil)
	if !errors.Is(err, wire.ErrPacket) {
		t.Errorf("Send: %v, want ErrPacket", err)
	}
}

func TestListenReplacesASocketLeftBehind(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	for range 2 {
		listener, err := wire.Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		_ = listener.Close()
	}
	if _, err := wire.Dial(path); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("Dial without a listener: %v, want ECONNREFUSED", err)
	}
}

func TestAListenerIsForRootOrForAll(t *testing.T) {
	for mode, listen := range map[os.FileMode]func(string) (*wire.Listener, error){0o600: wire.Listen, 0o666: wire.ListenToAll} {
		path := filepath.Join(t.TempDir(), "socket")
		listener, err := listen(path)
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("the socket has mode %v, %v; want %v", info.Mode().Perm(), err, mode)
		}
	}
}

func TestARemovedSocketIsNotFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	listener, err := wire.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := listener.Remove(); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if _, err := wire.Dial(path); !errors.Is(err, unix.ENOENT) {
		t.Errorf("Dial: %v, want ENOENT", err)
	}
	if err := listener.Remove(); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), path) {
		t.Errorf("Remove again: %v, want ENOENT and the path", err)
	}
}

func TestAcceptEndsWithTheListener(t *testing.T) {
	listener, err := wire.Listen(filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		_, err := listener.Accept()
		done <- err
	}()
	_ = listener.Close()
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Accept: %v, want ErrClosed", err)
	}
}
