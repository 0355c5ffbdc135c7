// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
)

func TestOnlyUnlinkedFilesInMemoryAreCarried(t *testing.T) {
	dir := t.TempDir()
	open := func(path string, flags int) *fd.FD {
		raw, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		f := fd.New(raw)
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	linked := filepath.Join("/dev/shm", filepath.Base(filepath.Dir(dir)))
	t.Cleanup(func() { _ = os.Remove(linked) })
	for name, test := range map[string]struct {
		f    *fd.FD
		want bool
	}{
		"memfd":              {fdtest.MemfdWith(t, "x"), true},
		"O_TMPFILE":          {open("/dev/shm", unix.O_TMPFILE|unix.O_RDWR), true},
		"file in tmpfs":      {open(linked, unix.O_CREAT|unix.O_RDWR), false},
		"directory":          {open("/dev/shm", unix.O_DIRECTORY), false},
		"character device":   {open("/dev/null", unix.O_RDWR), false},
		"file of procfs":     {open("/proc/self/stat", unix.O_RDONLY), false},
		"executable on disk": {open("/proc/self/exe", unix.O_RDONLY), false},
	} {
		in, err := InodeOf(test.f)
		if err != nil || in.Carried() != test.want {
			t.Errorf("%s: %+v, %v, want carried %v", name, in, err, test.want)
		}
	}
}

func TestAnUnlinkedFileOnDiskIsNotCarried(t *testing.T) {
	in := Inode{Mode: unix.S_IFREG | 0o600, FS: unix.EXT4_SUPER_MAGIC}
	if in.Carried() {
		t.Errorf("%+v is carried", in)
	}
}

func TestInodeSaysWhatHasMemory(t *testing.T) {
	f := fdtest.MemfdWith(t, "x")
	if err := f.Do(func(raw int) error { return unix.Ftruncate(raw, 1<<20) }); err != nil {
		t.Fatal(err)
	}
	in, err := InodeOf(f)
	if err != nil || in.Size != 1<<20 || in.Allocated == 0 || in.Allocated > 1<<19 {
		t.Errorf("%+v, %v, want 1 MiB with a page", in, err)
	}
	_ = f.Close()
	if _, err := InodeOf(f); !errors.Is(err, fd.ErrClosed) {
		t.Errorf("of a closed file: %v, want %v", err, fd.ErrClosed)
	}
}

func TestMissingSwitches(t *testing.T) {
	for cmdline, want := range map[string][]string{
		"":                                nil,
		"kho=on liveupdate=on":            {},
		"liveupdate=y quiet kho=1":        {},
		"kho=on liveupdate=on kho=off":    {"kho=on"},
		"kho=on":                          {"liveupdate=on"},
		"kho=on -- liveupdate=on":         {"liveupdate=on"},
		"xkho=on kho liveupdate.x=on":     nil,
		`init="/a kho=on liveupdate=on"`:  nil,
		"kho=off liveupdate=on kho=maybe": {"kho=on"},
	} {
		got := MissingSwitches(cmdline)
		if want == nil {
			want = []string{"kho=on", "liveupdate=on"}
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%q lacks %q, want %q", cmdline, got, want)
		}
	}
}

func TestWhatTheMachineSaysOfKexec(t *testing.T) {
	const scratch, meminfo = "sys/kernel/debug/kho/out/scratch_len", "proc/meminfo"
	root := machine("sys/kernel/kexec_loaded", "1\n", scratch, "0x800000\n0x4000000\n0x1000\n",
		meminfo, "MemFree:  1 kB\nMemAvailable:   2048 kB\n", "proc/cmdline", "a b\n")
	loaded, err := ReadLoaded(root)
	available, failed := ReadAvailable(root)
	cmdline, errCmdline := ReadCommandLine(root)
	if err := errors.Join(err, failed, errCmdline); err != nil || !loaded || available != 2<<20 || cmdline != "a b" {
		t.Errorf("loaded %v, %d bytes available, command line %q, %v", loaded, available, cmdline, err)
	}
	if diff := cmp.Diff(known[int64](0x4000000, SourceDebugfs), ReadScratch(root)); diff != "" {
		t.Errorf("scratch (-want +got):\n%s", diff)
	}
	for _, bad := range []string{"", "0x\n", "much\n", "0xffffffffffffffff\n"} {
		if fact := ReadScratch(machine(scratch, bad)); fact.Known || fact.Why == "" {
			t.Errorf("scratch %q: %+v", bad, fact)
		}
	}
	for _, bad := range []string{"", "MemAvailable: kB\n", "MemAvailable: -\n", "MemAvailable: 9223372036854775807 kB\n"} {
		if n, err := ReadAvailable(machine(meminfo, bad)); err == nil {
			t.Errorf("meminfo %q: %d, want an error", bad, n)
		}
	}
	if loaded, err := ReadLoaded(machine("sys/kernel/kexec_loaded", "0\n")); loaded || err != nil {
		t.Errorf("loaded %v, %v, want false", loaded, err)
	}
	none := machine()
	delete(none, "proc/cmdline")
	_, err = ReadLoaded(none)
	_, failed = ReadAvailable(none)
	_, errCmdline = ReadCommandLine(none)
	for _, err := range []error{err, failed, errCmdline} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v, want %v", err, fs.ErrNotExist)
		}
	}
}

// TestWhatIsNoKernelIsNotLoaded makes the call: no kernel takes such an image,
// whoever runs the test.
func TestWhatIsNoKernelIsNotLoaded(t *testing.T) {
	empty, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	for _, initrd := range []*os.File{nil, empty} {
		err := LoadKernel(empty, initrd, "x")
		if err == nil || !strings.Contains(err.Error(), empty.Name()+": kexec_file_load: ") {
			t.Errorf("%v, want an error of kexec_file_load", err)
		}
	}
}

func TestErrorsOfLoadingSayWhatTheyMean(t *testing.T) {
	for errno, want := range map[unix.Errno]string{
		unix.EPERM: "root", unix.ENOEXEC: "bzImage", unix.EADDRNOTAVAIL: "scratch", unix.EBUSY: "another",
		unix.EKEYREJECTED: "signed", unix.ENOKEY: "signed", unix.ENODATA: "signed", unix.ENOSYS: "CONFIG_KEXEC_FILE",
	} {
		if why := whyNotLoaded(os.NewSyscallError("x", errno)); !strings.Contains(why, want) {
			t.Errorf("%v: %q, want it to say %q", errno, why, want)
		}
	}
	if why := whyNotLoaded(unix.EIO); why != "" {
		t.Errorf("EIO: %q", why)
	}
}
