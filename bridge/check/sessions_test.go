// SPDX-License-Identifier: Apache-2.0

package check_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/check"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/session/sessiontest"
	"github.com/fdbridge/fdbridge/units"
)

// withSessions is a Duplicator of a PID 1 that has sessions.
type withSessions struct {
	*units.Duplicator
	t        *testing.T
	sessions []*session.Session
}

func (d withSessions) Sessions() ([]*fd.FD, error) {
	var list []*fd.FD
	for _, s := range d.sessions {
		f, err := s.FD().Dup()
		if err != nil {
			d.t.Error(err)
		}
		list = append(list, f)
	}
	return list, nil
}

// updated returns a kernel that has come through a live update with sessions of
// services, and those that PID 1 holds after it: what came, and one that is open.
func updated(t *testing.T, came []kho.Service, open string) (kernel *sessiontest.Fake, held []*session.Session) {
	t.Helper()
	kernel, err := sessiontest.NewFake()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kernel.Close() })
	index := &kho.Index{Services: came}
	f, err := index.Memfd()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	each := func(do func(d *session.Device, name string) (*session.Session, error)) (list []*session.Session) {
		device, err := session.Open(kernel, session.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer device.Close()
		for _, s := range append([]kho.Service{{Session: kho.IndexSession}}, came...) {
			made, err := do(device, s.Session)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = made.Close() })
			list = append(list, made)
		}
		return list
	}
	if err := each((*session.Device).Create)[0].Preserve(f, kho.ManifestToken); err != nil {
		t.Fatal(err)
	}
	if err := kernel.Kexec(); err != nil {
		t.Fatal(err)
	}
	held = each((*session.Device).Retrieve)
	device, err := session.Open(kernel, session.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	s, err := device.Create(open)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return kernel, append(held, s)
}

// asSession lists a session in a unit's store.
func (s *stores) asSession(unit, name, session string) {
	s.entries[unit] = append(s.entries[unit], units.Entry{Name: name, Path: "anon_inode:[luo_session] " + session})
}

// before72 is a kernel before Linux 7.2, as far as its sessions do not tell whether they
// came. Their names it tells until that is asked.
type before72 struct {
	session.Kernel
	asked  *fd.FD // the session that was asked last
	opened int    // how often the device was
	busy   func() // another process has the device open, and this is called; nil: none has
}

func (k *before72) Open(path string) (*fd.FD, error) {
	k.opened++
	if k.busy != nil {
		k.busy()
		return nil, unix.EBUSY
	}
	return k.Kernel.Open(path)
}

func (k *before72) Ioctl(f *fd.FD, req uint, arg []byte) error {
	switch {
	case req == session.ReqPreserveFD:
		k.asked = f
		return unix.EBADF
	case req == session.ReqGetName && f == k.asked:
		return unix.ENOTTY
	}
	return k.Kernel.Ioctl(f, req, arg)
}

// withServices returns a machine where sessions of services have come, and one is open.
func withServices(t *testing.T) *checked {
	c := newChecked(t)
	came := []kho.Service{
		kho.NewService("a.service", "claimed", kho.Identity{}), kho.NewService("required.service", "x", kho.Identity{}),
		kho.NewService("luo.service", "stored", kho.Identity{}), kho.NewService("luo.service", "done", kho.Identity{}),
	}
	kernel, held := updated(t, came, kho.ServiceSession("luo.service", "new"))
	c.Kernel = kernel
	c.Excluded = func(unit string) bool { return unit == bridge.OwnUnit }
	c.Duplicator = func() (bridge.Duplicator, error) {
		d, err := units.OpenDuplicator(os.Getpid())
		return withSessions{d, t, held[:len(held)-1]}, err
	}
	held[4] = held[5] // what is done with is gone
	// Hashes of the sessions' names, as fdbridged has them in its store.
	for name, session := range map[string]string{
		"s-a191bfb3c106ca2a": came[0].Session, "s-700a779267500726": came[1].Session,
	} {
		c.asSession(bridge.OwnUnit, name, session)
	}
	c.asSession("luo.service", "stored", came[2].Session)
	c.asSession("luo.service", "new", kho.ServiceSession("luo.service", "new"))
	c.asSession("luo.service", "strange", kho.ServiceSession("other.service", "strange"))
	return c
}

func TestSessionsThatTheirUnitsAreNotDoneWithWouldBeLost(t *testing.T) {
	c := withServices(t)
	old := &before72{Kernel: c.Kernel}
	for name, kernel := range map[string]session.Kernel{"Linux 7.2": c.Kernel, "before": old} {
		c.Kernel = kernel
		got := c.run(t, nil)
		var said []string
		for _, u := range got.Units {
			for _, e := range u.Entries {
				said = append(said, u.Unit+" "+e.Name+map[bool]string{true: " carried"}[e.Carried])
			}
		}
		want := []string{"a.service claimed", "luo.service stored", "luo.service new carried", "luo.service strange", "required.service x"}
		if diff := gocmp.Diff(want, said); diff != "" || !got.CalledOff || got.Outcome != check.Lossy {
			t.Errorf("%s: called off %v, outcome %s, entries (-want +got):\n%s", name, got.CalledOff, got.Outcome, diff)
		}
	}
	if old.opened != 1 {
		t.Errorf("the device is opened %d times, want once", old.opened)
	}
}

func TestACheckDoesNotWaitForTheDeviceWhenItHasEnded(t *testing.T) {
	c := withServices(t)
	ctx, stop := context.WithCancel(t.Context())
	kernel := &before72{Kernel: c.Kernel, busy: stop}
	c.Kernel = kernel
	start := time.Now()
	_, err := c.Run(ctx, nil)
	if !errors.Is(err, context.Canceled) || !errors.Is(err, session.ErrBusy) || kernel.opened > 2 {
		t.Errorf("%v after %v, and the device was asked for %d times", err, time.Since(start), kernel.opened)
	}
}
