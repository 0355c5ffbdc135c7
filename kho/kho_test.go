// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

// golden returns a file of testdata. Those that are named v1 are the format's
// version 1: when a test with one fails, the format has changed, not the file.
func golden(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func position(t *testing.T, f *fd.FD) (pos int64) {
	t.Helper()
	err := f.Do(func(raw int) (err error) {
		pos, err = unix.Seek(raw, 0, unix.SEEK_CUR)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return pos
}

func exampleOrigin() Origin {
	return Origin{
		BootID: "3f1b52c4-8a0e-4c1b-9d7e-2f6a5b9c0d11",
		Kernel: "7.2.13",
		Time:   time.Date(2026, 3, 1, 2, 59, 58, 250e6, time.UTC),
	}
}

func exampleManifest() *Manifest {
	return &Manifest{
		Unit: `dev-disk-by\x2dlabel-data@1.service`,
		Identity: Identity{
			Fragment: "/etc/systemd/system/dev-disk@.service",
			User:     "data",
			Group:    "données",
		},
		Origin: exampleOrigin(),
		Entries: []Entry{
			{Name: "state", Kind: KindLUO, Token: 1, Type: "memfd", Size: 64 << 20, Position: 4096,
				Seals: unix.F_SEAL_SEAL | unix.F_SEAL_GROW | 0x140, Flags: 0o100002},
			{Name: `quote " and \ slash`, Kind: KindLUO, Session: "fdbridge.other.service", Token: 1<<64 - 1, Open: 2, Type: "memfd"},
			{Name: "", Kind: KindLost, Type: "pipe", Flags: 1, Reason: "the kernel cannot carry a pipe"},
		},
	}
}

func exampleIndex() *Index {
	return &Index{
		Origin:   exampleOrigin(),
		Duration: 123456 * time.Microsecond,
		Units: []IndexUnit{
			{Unit: "counter.service", Sessions: []string{"fdbridge.counter.service", "fdbridge.counter.service#2"},
				Entries: 200, Bytes: 819200},
			{Unit: "guest.service", Sessions: []string{"fdbridge.counter.service"}, Token: 201, Entries: 1, Bytes: 1},
			{Unit: "proxy.service", Lost: []LostEntry{{Name: "listen", Type: "socket", Reason: "no handler"}}},
		},
	}
}
