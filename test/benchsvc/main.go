// SPDX-License-Identifier: Apache-2.0

// Command benchsvc is what the benchmark runs in the guest.
//
//	benchsvc serve FILES SIZE [sealed]
//
// is a service that stores memfds of that many bytes, each page of which has been
// written to, unless it was started with some; sealed ones cannot change in size.
//
//	benchsvc loop UNITS FILES SIZE
//
// makes as many memfds as so many units would have, puts them into a session for each
// unit in one loop, and prints the microseconds that this has taken. It is what nobody
// can do better than.
//
//	benchsvc mark
//
// writes the microseconds of the monotonic clock to the kernel's log, which has a clock of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units/notify"
)

func main() {
	err := errors.New("usage: benchsvc serve FILES SIZE [sealed] | loop UNITS FILES SIZE | mark")
	if len(os.Args) == 2 && os.Args[1] == "mark" {
		err = mark()
	}
	if len(os.Args) > 3 {
		switch numbers, failed := numbers(os.Args[2:]); {
		case failed != nil:
			err = failed
		case os.Args[1] == "serve":
			err = serve(numbers[0], numbers[1], len(os.Args) > 4)
		case os.Args[1] == "loop" && len(numbers) == 3:
			err = loop(numbers[0], numbers[1], numbers[2])
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchsvc:", err)
		os.Exit(1)
	}
}

// numbers reads arguments up to one that is a word.
func numbers(args []string) (list []int, err error) {
	for _, arg := range args {
		n, err := strconv.Atoi(arg)
		if err != nil && len(list) >= 2 {
			break
		}
		if err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	return list, nil
}

func serve(files, size int, sealed bool) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	socket, err := notify.Open(os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	passed, err := notify.Listen()
	if err != nil {
		return err
	}
	for i := range files {
		if len(passed) > 0 {
			break
		}
		f, err := memfd(size, sealed)
		if err == nil {
			err = errors.Join(socket.Store(fmt.Sprint("f", i), f), f.Close())
		}
		if err != nil {
			return err
		}
	}
	for _, p := range passed {
		_ = p.FD.Close() // it is in the store
	}
	if err := socket.Ready("running"); err != nil {
		return err
	}
	<-stop
	return nil
}

func memfd(size int, sealed bool) (*fd.FD, error) {
	raw, err := unix.MemfdCreate("bench", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := fd.New(raw)
	err = unix.Fallocate(raw, 0, 0, int64(size))
	for at := 0; at < size && err == nil; at += os.Getpagesize() {
		_, err = unix.Pwrite(raw, []byte{1}, int64(at))
	}
	if err == nil && sealed {
		_, err = unix.FcntlInt(uintptr(raw), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func mark() error {
	log, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return errors.Join(err, log.Close())
	}
	_, err = fmt.Fprintf(log, "benchsvc: %d", now.Nano()/1e3)
	return errors.Join(err, log.Close())
}

func loop(units, files, size int) error {
	all := make([]*fd.FD, units*files)
	for i := range all {
		var err error
		if all[i], err = memfd(size, false); err != nil {
			return err
		}
	}
	start := time.Now()
	device, err := session.OpenWait(context.Background(), session.System{}, session.Path)
	if err != nil {
		return err
	}
	for unit := range units {
		s, err := device.Create(fmt.Sprint("loop.", unit))
		if err != nil {
			return err
		}
		for file := range files {
			if err := s.Preserve(all[unit*files+file], uint64(file)); err != nil {
				return err
			}
		}
	}
	if err := device.Close(); err != nil {
		return err
	}
	fmt.Println(time.Since(start).Microseconds())
	return nil
}
