// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// What was duplicated ahead is carried as it is in the end, and is not looked for in
// PID 1 again.
func TestWhatWasDuplicatedAheadIsCarriedAsItIs(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "before")
	w.put("a.service", "y", "other")
	w.look("a.service")
	w.blind = errors.New("not to be asked")
	err := w.file("a.service", "x").Do(func(raw int) error {
		_, err := unix.Pwrite(raw, []byte("what others write later"), 0)
		_, failed := unix.Seek(raw, 4, unix.SEEK_SET)
		return errors.Join(err, failed)
	})
	if err != nil {
		t.Fatal(err)
	}
	want := w.contents("a.service")
	preserved := w.preserve()
	if bytes := preserved.Index.Units[0].Bytes; bytes != int64(len("what others write later")+len("other")) {
		t.Errorf("%d bytes are carried", bytes)
	}
	w.blind = nil
	w.kexec(preserved)
	_, socket, _ := w.serve()
	if _, err := w.deliver(socket, "a.service"); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(want, w.contents("a.service")); diff != "" {
		t.Errorf("the store (-want +got):\n%s", diff)
	}
}

// The descriptors of what is not carried are closed, which TestMain looks at.
func TestWhatWasDuplicatedAheadInVainIsClosed(t *testing.T) {
	w := newWorld(t)
	w.add("a.service", "yes")
	w.put("a.service", "x", "X")
	w.look("a.service")
	ctx, stop := context.WithCancel(t.Context())
	stop()
	preserved, err := w.preserver().Run(ctx)
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Run when its time is over: %v", err)
	}
	if preserved != nil {
		_ = preserved.Close()
	}
}
