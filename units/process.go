// SPDX-License-Identifier: Apache-2.0

package units

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
)

var (
	// ErrGone says that a process has ended, so that nothing true can be said
	// of it any more.
	ErrGone = errors.New("the process has ended")
	// ErrNoUnit says that a process belongs to no unit of the system manager.
	ErrNoUnit = errors.New("the process belongs to no unit")
)

// UnitOf returns the unit that the process behind pidfd belongs to, by its
// control group, which only root and PID 1 can change. It is what PID 1 would
// answer to GetUnitByPIDFD (cg_path_get_unit in src/basic/cgroup-util.c,
// systemd 257) without asking it, because PID 1 is busiest when units start.
// The caller keeps pidfd. Errors: ErrGone, ErrNoUnit, or the system's.
//
// The process's number is used between two looks at the pidfd only: as long as
// that says that the process lives, the number is its own.
func UnitOf(pidfd *fd.FD) (string, error) {
	pid, err := PID(pidfd)
	if err != nil {
		return "", fmt.Errorf("find the unit of a process: %w", err)
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err == nil {
		err = alive(pidfd)
	}
	if err != nil {
		return "", fmt.Errorf("find the unit of process %d: %w", pid, err)
	}
	unit, ok := unitOfGroups(string(groups))
	if !ok {
		return "", fmt.Errorf("find the unit of process %d: %w", pid, ErrNoUnit)
	}
	return unit, nil
}

// PID returns the number of the process behind pidfd, or ErrGone. Another process
// may have the number as soon as that one has ended: it is for messages, and for
// who looks at the pidfd again. /proc/self/fdinfo has it, -1 for a process that
// has ended (pidfd_show_fdinfo in fs/pidfs.c).
func PID(pidfd *fd.FD) (pid int, err error) {
	err = pidfd.Do(func(raw int) error {
		info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", raw))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(info)) {
			if number, ok := strings.CutPrefix(line, "Pid:"); ok {
				pid, err = strconv.Atoi(strings.TrimSpace(number))
				return err
			}
		}
		return errors.New("the descriptor is no pidfd")
	})
	if err == nil && pid <= 0 {
		err = ErrGone
	}
	return pid, err
}

// alive returns ErrGone when the process has ended: its pidfd is readable then.
// A signal interrupts even a poll(2) that does not wait (do_poll in fs/select.c),
// and the Go runtime sends itself some.
func alive(pidfd *fd.FD) error {
	return pidfd.Do(func(raw int) error {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(raw), Events: unix.POLLIN}}, 0)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case err == nil && n > 0:
				return ErrGone
			}
			return os.NewSyscallError("poll", err)
		}
	})
}

// unitOfGroups finds the unit in what /proc/PID/cgroup says: the first part of
// the path that is no slice, in systemd's own hierarchy where there is one
// beside the unified.
func unitOfGroups(groups string) (unit string, ok bool) {
	path := ""
	for line := range strings.Lines(groups) {
		line = strings.TrimSuffix(line, "\n")
		if p, own := cutHierarchy(line, "name=systemd"); own {
			path = p
			break
		}
		if p, unified := cutHierarchy(line, ""); unified {
			path = p
		}
	}
	for part := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		name := strings.TrimPrefix(part, "_") // how systemd escapes names
		if strings.HasSuffix(name, ".slice") {
			continue
		}
		return name, strings.HasSuffix(name, ".service")
	}
	return "", false
}

// cutHierarchy returns the path of a line ID:CONTROLLERS:PATH when it has these
// controllers.
func cutHierarchy(line, controllers string) (path string, ok bool) {
	_, rest, _ := strings.Cut(line, ":")
	return strings.CutPrefix(rest, controllers+":")
}
