// SPDX-License-Identifier: Apache-2.0

package check_test

import (
	"os"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

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

func TestSessionsThatTheirUnitsAreNotDoneWithWouldBeLost(t *testing.T) {
	c := newChecked(t)
	came := []kho.Service{
		kho.NewService("a.service", "claimed", kho.Identity{}), kho.NewService("required.service", "x", kho.Identity{}),
		kho.NewService("luo.service", "stored", kho.Identity{}), kho.NewService("luo.service", "done", kho.Identity{}),
	}
	kernel, held := updated(t, came, kho.ServiceSession("luo.service", "new"))
	c.Kernel = kernel
	c.Excluded = func(unit string) bool { return unit == bridge.OwnUnit }
	c.Duplicator = func() (check.Duplicator, error) {
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
	got := c.run(t, nil)
	var said []string
	for _, u := range got.Units {
		for _, e := range u.Entries {
			said = append(said, u.Unit+" "+e.Name+map[bool]string{true: " carried"}[e.Carried])
		}
	}
	want := []string{"a.service claimed", "luo.service stored", "luo.service new carried", "luo.service strange", "required.service x"}
	if diff := gocmp.Diff(want, said); diff != "" || !got.CalledOff || got.Outcome != check.Lossy {
		t.Errorf("called off %v, outcome %s, entries (-want +got):\n%s", got.CalledOff, got.Outcome, diff)
	}
}
