// SPDX-License-Identifier: Apache-2.0

package units

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
)

func TestUnitIsTheFirstPartOfTheControlGroupThatIsNoSlice(t *testing.T) {
	for groups, want := range map[string]string{
		"0::/system.slice/a.service\n":                                           "a.service",
		"0::/system.slice/system-x.slice/x@1.service\n":                          "x@1.service",
		"0::/system.slice/a.service/.control\n":                                  "a.service",
		"0::/system.slice/a.service/b.service\n":                                 "a.service",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.service\n": "user@1000.service",
		"0::/system.slice/_cpu.service\n":                                        "cpu.service",
		"0::/a.service\n":                                                        "a.service",
		"12:memory:/x\n1:name=systemd:/system.slice/a.service\n0::/\n":           "a.service",
		"1:name=systemd:/system.slice/a.service\n0::/system.slice/b.service\n":   "a.service",
		"0::/user.slice/user-1000.slice/session-1.scope\n":                       "",
		"0::/init.scope\n":                                                       "", "0::/\n": "", "": "", "0::/system.slice\n": "", "nonsense": "",
	} {
		unit, ok := unitOfGroups(groups)
		if ok != (want != "") || ok && unit != want {
			t.Errorf("%q is of unit %q, %v; want %q", groups, unit, ok, want)
		}
	}
}

func TestUnitOfAProcessThatHasEndedIsNotGuessed(t *testing.T) {
	child := exec.Command("sleep", "100")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	raw, err := unix.PidfdOpen(child.Process.Pid, 0)
	pidfd := own(t, raw, err)
	if _, err := UnitOf(pidfd); errors.Is(err, ErrGone) {
		t.Errorf("UnitOf a running process: %v", err)
	}
	_ = child.Process.Kill()
	if err := waitReadable(raw); err != nil { // ended, and not yet reaped
		t.Fatal(err)
	}
	if err := alive(pidfd); !errors.Is(err, ErrGone) {
		t.Errorf("alive: %v, want ErrGone", err)
	}
	_ = child.Wait()
	if _, err := UnitOf(pidfd); !errors.Is(err, ErrGone) {
		t.Errorf("UnitOf a process that is gone: %v, want ErrGone", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	raw, err = unix.Dup(int(null.Fd()))
	if _, err := UnitOf(own(t, raw, err)); err == nil || errors.Is(err, ErrGone) {
		t.Errorf("UnitOf something else: %v", err)
	}
}

func waitReadable(raw int) error {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(raw), Events: unix.POLLIN}}, 10_000)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func TestSignalsDoNotKeepAUnitFromBeingFound(t *testing.T) {
	raw, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	self := fd.New(raw)
	defer self.Close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread, sent := unix.Gettid(), make(chan struct{})
	go func() {
		defer close(sent)
		for range 50_000 {
			_ = unix.Tgkill(os.Getpid(), thread, unix.SIGURG) // which the Go runtime ignores
		}
	}()
	for {
		if err := alive(self); err != nil {
			t.Error(err)
			<-sent
		}
		select {
		case <-sent:
			return
		default:
		}
	}
}
