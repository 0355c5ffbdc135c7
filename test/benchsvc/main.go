// SPDX-License-Identifier: Apache-2.0

// Command benchsvc is what the benchmark runs in the guest.
//
//	benchsvc serve FILES SIZE [sealed]
//
// is a service that stores memfds of that many bytes, each page of which has been
// written to, unless it was started with some; sealed ones cannot change in size. Its
// status says how many it was started with.
//
//	benchsvc loop UNITS FILES SIZE [sealed]
//
// makes as many such memfds as so many units would have, puts them into a session for each
// unit in one loop, and prints the microseconds that this has taken. It is what nobody
// can do better than.
//
//	benchsvc mark
//
// writes the microseconds of the monotonic clock to the kernel's log, which has a clock of its own.
//
//	benchsvc peaks
//
// writes there how much memory PID 1 and "fdbridged preserve" have had at most, in KiB;
// 0 when nothing preserves.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units/notify"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "benchsvc:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	command, numbers, sealed, err := parse(args)
	switch n := len(numbers); {
	case err != nil:
		return err
	case command == "serve" && n == 2:
		return serve(numbers[0], numbers[1], sealed)
	case command == "loop" && n == 3:
		return loop(numbers[0], numbers[1], numbers[2], sealed)
	case command == "mark" && n == 0:
		return mark()
	case command == "peaks" && n == 0:
		return peaks()
	}
	return errors.New("usage: benchsvc serve FILES SIZE [sealed] | loop UNITS FILES SIZE [sealed] | mark | peaks")
}

// parse takes arguments apart.
func parse(args []string) (command string, numbers []int, sealed bool, err error) {
	if n := len(args); n > 0 && args[n-1] == "sealed" {
		args, sealed = args[:n-1], true
	}
	for i, arg := range args {
		if i == 0 {
			command = arg
			continue
		}
		n, err := strconv.Atoi(arg)
		if err != nil {
			return "", nil, false, err
		}
		numbers = append(numbers, n)
	}
	return command, numbers, sealed, nil
}

func serve(files, size int, sealed bool) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	socket, err := notify.Open(os.Getenv("NOTIFY_SOCKET"), notify.Patience)
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
	if err := ready(socket, fmt.Sprintf("passed %d fds", len(passed))); err != nil {
		return err
	}
	<-stop
	return nil
}

// ready says that the service has started. PID 1 may not read a message for longer than
// this one waits for room while it starts a thousand units.
func ready(socket *notify.Socket, status string) error {
	for {
		if err := socket.Ready(status); !errors.Is(err, unix.EAGAIN) {
			return err
		}
	}
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
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	return log(fmt.Sprintf("at %d", now.Nano()/1e3))
}

// preserving has the processes of the service that preserves.
const preserving = "/sys/fs/cgroup/system.slice/fdbridge-preserve.service/cgroup.procs"

func peaks() error {
	pid1, err := peak("1")
	if err != nil {
		return err
	}
	var preserve int64
	pids, err := os.ReadFile(preserving)
	if err == nil {
		preserve, err = peak(strings.TrimSpace(string(pids)))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return log(fmt.Sprintf("peaks %d %d", pid1, preserve))
}

var peakLine = regexp.MustCompile(`(?m)^VmHWM:\s*(\d+) kB$`)

// peak is how much memory a process has had at most, in KiB.
func peak(pid string) (int64, error) {
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return 0, err
	}
	found := peakLine.FindSubmatch(status)
	if found == nil {
		return 0, fmt.Errorf("process %s has no memory", pid)
	}
	return strconv.ParseInt(string(found[1]), 10, 64)
}

// log writes to the kernel's log.
func log(text string) error {
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(f, "benchsvc: "+text)
	return errors.Join(err, f.Close())
}

func loop(units, files, size int, sealed bool) error {
	all := make([]*fd.FD, units*files)
	for i := range all {
		var err error
		if all[i], err = memfd(size, sealed); err != nil {
			return err
		}
	}
	start := time.Now()
	device, err := session.OpenWait(context.Background(), session.System{}, session.Path)
	if err != nil {
		return err
	}
	sessions := make([]*session.Session, units)
	defer runtime.KeepAlive(sessions) // else some are let go of while the time is taken
	for unit := range units {
		s, err := device.Create(fmt.Sprint("loop.", unit))
		if err != nil {
			return err
		}
		sessions[unit] = s
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
