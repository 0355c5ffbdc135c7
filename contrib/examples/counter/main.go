// SPDX-License-Identifier: Apache-2.0

// Command counter is a service that counts requests in a memfd, which it keeps
// in its fd store: the count survives a restart of the service, and with
// fdbridge a replacement of the kernel. Nothing in it knows of fdbridge; the
// opt-in are two directives in counter.service.
//
// Each connection to its socket is a request, and is answered with the count:
// "counter ask" makes one.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/units/notify"
)

const socketPath = "/run/counter.sock"

func main() {
	work := run
	if len(os.Args) == 2 && os.Args[1] == "ask" {
		work = ask
	}
	if err := work(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	manager, err := notify.Open(os.Getenv("NOTIFY_SOCKET"), notify.Patience)
	if err != nil {
		return err
	}
	counter, err := restore(manager)
	if err != nil {
		return err
	}
	if err := os.Remove(socketPath); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socketPath)
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		_ = listener.Close()
	}()
	if err := manager.Ready("counting"); err != nil {
		return err
	}
	return serve(listener, counter)
}

// restore returns the memfd with the count: the one from the fd store, or a new
// one, which it puts there.
func restore(manager *notify.Socket) (*fd.FD, error) {
	passed, err := notify.Listen()
	if err != nil {
		return nil, err
	}
	for _, p := range passed {
		if p.Name == "counter" {
			return p.FD, nil
		}
	}
	raw, err := unix.MemfdCreate("counter", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	counter := fd.New(raw)
	if err := unix.Ftruncate(raw, 8); err != nil {
		return nil, errors.Join(err, counter.Close())
	}
	return counter, manager.Store("counter", counter)
}

// serve counts connections until the listener is closed.
func serve(listener net.Listener, counter *fd.FD) error {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		n, err := increment(counter)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintln(conn, n) // a client that is gone was counted
		_ = conn.Close()
	}
}

// increment adds one to the number in the memfd.
func increment(counter *fd.FD) (n uint64, err error) {
	err = counter.Do(func(raw int) error {
		var number [8]byte
		if _, err := unix.Pread(raw, number[:], 0); err != nil {
			return err
		}
		n = binary.NativeEndian.Uint64(number[:]) + 1
		binary.NativeEndian.PutUint64(number[:], n)
		_, err := unix.Pwrite(raw, number[:], 0)
		return err
	})
	return n, err
}

// ask makes one request and prints the answer.
func ask() error {
	conn, err := net.Dial("unix", socketPath)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = io.Copy(os.Stdout, conn)
	return err
}
