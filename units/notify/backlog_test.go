// SPDX-License-Identifier: Apache-2.0

package notify_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/units/notify"
)

// fill leaves a service manager no room for messages, and returns how many it has got.
func (s *service) fill() (n int) {
	s.t.Helper()
	socket, err := notify.Open(s.conn.LocalAddr().String(), time.Millisecond)
	if err != nil {
		s.t.Fatal(err)
	}
	defer socket.Close()
	for ; err == nil; n++ {
		err = socket.Status("full")
	}
	if !errors.Is(err, unix.EAGAIN) {
		s.t.Fatal(err)
	}
	return n - 1
}

func TestABusyServiceManagerIsNotWaitedForToRemove(t *testing.T) {
	socket, service := open(t)
	b := notify.Backlog{Socket: socket, Failed: func(err error) { t.Error(err) }}
	if err := b.Remove("room"); err != nil {
		t.Error(err)
	}
	n := service.fill()
	for _, name := range []string{"a", "b", "c"} { // or the test does not end
		if err := b.Remove(name); err != nil {
			t.Error(err)
		}
	}
	if err := b.Remove("not: a name"); !errors.Is(err, notify.ErrName) {
		t.Errorf("Remove of what is no name: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- errors.Join(b.Store("last", fdtest.Memfd(t)), b.Barrier()) }()
	var got []string
	for range 1 + n + 5 {
		if message, _ := service.next(); message != "STATUS=full" {
			got = append(got, message)
		}
	}
	const remove = "FDSTOREREMOVE=1\nFDNAME="
	want := []string{remove + "room", remove + "a", remove + "b", remove + "c", "FDSTORE=1\nFDPOLL=0\nFDNAME=last", "BARRIER=1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the service manager was told (-want +got):\n%s", diff)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWhatCannotBeRemovedLaterIsSaid(t *testing.T) {
	_, service := open(t)
	socket, err := notify.Open(service.conn.LocalAddr().String(), time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	service.fill()
	failed := make(chan error, 1)
	b := notify.Backlog{Socket: socket, Failed: func(err error) { failed <- err }}
	if err := b.Remove("a"); err != nil {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, unix.EAGAIN) {
		t.Errorf("Failed was told %v, want EAGAIN", err)
	}
	if err := b.Store("b", fdtest.Memfd(t)); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("Store: %v, want EAGAIN", err)
	}
}
