// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

func TestArguments(t *testing.T) {
	for _, test := range []struct {
		args    []string
		command string
		numbers []int
		sealed  bool
	}{
		{[]string{"mark"}, "mark", nil, false},
		{[]string{"serve", "10", "4096"}, "serve", []int{10, 4096}, false},
		{[]string{"loop", "1", "2", "3", "sealed"}, "loop", []int{1, 2, 3}, true},
		{nil, "", nil, false},
	} {
		command, numbers, sealed, err := parse(test.args)
		if err != nil || command != test.command || sealed != test.sealed || !cmp.Equal(numbers, test.numbers) {
			t.Errorf("%q are %q, %v, %t, %v", test.args, command, numbers, sealed, err)
		}
	}
	for _, args := range [][]string{nil, {"serve", "10"}, {"serve", "ten", "1"}, {"loop", "1", "1"}, {"peaks", "1"}} {
		if run(args) == nil {
			t.Errorf("%q are no error", args)
		}
	}
}

func TestMemfdsHaveTheirSizeAndSeals(t *testing.T) {
	const size = 10000
	for sealed, want := range map[bool]int{false: 0, true: unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL} {
		f, err := memfd(size, sealed)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Do(func(raw int) error { // it is open
			var st unix.Stat_t
			if err := unix.Fstat(raw, &st); err != nil || st.Size != size {
				t.Errorf("the size is %d: %v", st.Size, err)
			}
			if seals, err := unix.FcntlInt(uintptr(raw), unix.F_GET_SEALS, 0); err != nil || seals != want {
				t.Errorf("the seals are %#x, want %#x: %v", seals, want, err)
			}
			return nil
		})
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestPeakOfAProcess(t *testing.T) {
	kib, err := peak("self")
	if page := int64(os.Getpagesize() / 1024); err != nil || kib < page {
		t.Errorf("the peak is %d KiB: %v", kib, err)
	}
	if _, err := peak("no such"); !os.IsNotExist(err) {
		t.Errorf("the error is %v", err)
	}
}
