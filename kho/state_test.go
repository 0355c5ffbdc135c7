// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const (
	bootLog = "<5>[    0.000000] Linux version 7.2.13 (build@host) #1 SMP\n" +
		"<6>[    0.000000] Command line: kho=on liveupdate=on\n"
	handoverLog = bootLog +
		"<6>[    0.000000] KHO: found kexec handover data.\n" +
		"<6>[    0.100000] luo: Retrieved live update data, liveupdate number: 3\n" +
		"<6>[    0.200000] KHO: exec from: 7.2.12-custom (count 4)\n"
	// A log that has lost its beginning.
	lateLog = "<6>[  900.000000] usb 1-1: new device\n"
)

func luoBlob(compatible string, number uint64) []byte {
	blob := make([]byte, 32)
	copy(blob, compatible)
	binary.NativeEndian.PutUint64(blob[8:], number)
	return blob
}

func metadataBlob(version uint32, release string) []byte {
	blob := make([]byte, 73)
	binary.NativeEndian.PutUint32(blob, version)
	copy(blob[4:], release)
	binary.NativeEndian.PutUint32(blob[69:], 4)
	return blob
}

// faultyFS fails to open what errs names.
type faultyFS struct {
	fstest.MapFS
	errs map[string]error
}

func (f faultyFS) Open(name string) (fs.File, error) {
	if err := f.errs[name]; err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return f.MapFS.Open(name)
}

func (f faultyFS) Stat(name string) (fs.FileInfo, error) {
	if err := f.errs[name]; err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	return f.MapFS.Stat(name)
}

func (f faultyFS) ReadDir(name string) ([]fs.DirEntry, error) {
	if err := f.errs[name]; err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	return f.MapFS.ReadDir(name)
}

const (
	debugfsDir = "sys/kernel/debug"
	outLUO     = debugfsDir + "/kho/out/sub_fdts/LUO"
	inLUO      = debugfsDir + "/kho/in/sub_fdts/LUO"
	inMetadata = debugfsDir + "/kho/in/sub_fdts/kexec-metadata"
)

// machine returns a file system with what is given, path and content in turn.
func machine(pairs ...string) fstest.MapFS {
	m := fstest.MapFS{debugfsDir: {Mode: fs.ModeDir}}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
	}
	return m
}

func TestReadStateAsksWhatThereIs(t *testing.T) {
	const noKHOParam = "<5>[    0.010000] Unknown kernel command line parameters \"kho=on liveupdate=on\", " +
		"will be passed to user space.\n"
	on := []string{"proc/cmdline", "quiet kho=on liveupdate=on\n", "dev/liveupdate", ""}
	with := func(more ...string) fstest.MapFS { return machine(append(on[:4:4], more...)...) }
	const unmounted = "debugfs is not mounted on /sys/kernel/debug"
	const noKHODir = "debugfs has no directory kho: kexec handover is off, or the kernel was built without " +
		"CONFIG_KEXEC_HANDOVER_DEBUGFS"
	const noDevice = "liveupdate=on is on the kernel command line, but there is no /dev/liveupdate: " +
		"kexec handover is off, or the kernel was built without CONFIG_LIVEUPDATE"
	const noStart = "the kernel log does not reach back to the boot any more"
	yes, device := known(true, SourceDebugfs), known(true, SourceDevice)

	tests := []struct {
		name string
		root fs.FS
		log  string
		want State
	}{
		{
			name: "after a live update, with debugfs",
			// What is in inLUO is freed memory: see number.
			root: with(outLUO, string(luoBlob("luo-v5", 4)), inLUO, string(luoBlob("luo-v5", 99)),
				inMetadata, string(metadataBlob(1, "7.2.12"))),
			log: lateLog,
			want: State{KHO: yes, LUO: device, Device: device,
				Number: known(uint64(3), SourceDebugfs), Previous: known("7.2.12", SourceDebugfs)},
		},
		{
			name: "first boot, with debugfs",
			root: with(outLUO, string(luoBlob("luo-v5", 1))),
			log:  lateLog,
			want: State{KHO: yes, LUO: device, Device: device,
				Number: known(uint64(0), SourceDebugfs), Previous: known("", SourceDebugfs)},
		},
		{
			name: "after a live update, without debugfs",
			root: with(),
			log:  handoverLog,
			want: State{KHO: device, LUO: device, Device: device, Debugfs: unmounted,
				Number: known(uint64(3), SourceLog), Previous: known("7.2.12-custom", SourceLog)},
		},
		{
			name: "first boot, without debugfs",
			root: with(),
			log:  bootLog,
			want: State{KHO: device, LUO: device, Device: device, Debugfs: unmounted,
				Number: known(uint64(0), SourceLog), Previous: known("", SourceLog)},
		},
		{
			name: "without debugfs and with a log that has lost its beginning",
			root: with(),
			log:  lateLog,
			want: State{KHO: device, LUO: device, Device: device, Debugfs: unmounted,
				Number: unknown[uint64](unmounted + "; " + noStart), Previous: unknown[string](unmounted + "; " + noStart)},
		},
		{
			name: "with debugfs of a kernel before 7.2",
			root: with(outLUO, "\xd0\x0d\xfe\xed"+strings.Repeat("x", 60), inMetadata, string(metadataBlob(9, "7.1"))),
			log:  handoverLog,
			want: State{KHO: yes, LUO: device, Device: device,
				Number: known(uint64(3), SourceLog), Previous: known("7.2.12-custom", SourceLog)},
		},
		{
			name: "a kernel before this one that did not say its release",
			root: with(outLUO, string(luoBlob("luo-v5", 2)), inLUO, ""),
			log:  bootLog + "<6>[    0.000000] KHO: found kexec handover data.\n",
			want: State{KHO: yes, LUO: device, Device: device, Number: known(uint64(1), SourceDebugfs),
				Previous: unknown[string]("the kernel before this one did not leave its release in debugfs")},
		},
		{
			name: "handover without live update",
			root: machine("proc/cmdline", "kho=1\n", debugfsDir+"/kho/out/fdt", ""),
			log:  lateLog,
			want: State{KHO: yes, LUO: known(false, SourceDevice), Device: known(false, SourceDevice),
				Number:   unknown[uint64]("debugfs has no live-update state: live update is off; " + noStart),
				Previous: known("", SourceDebugfs)},
		},
		{
			name: "switched off",
			root: machine("proc/cmdline", "kho=off liveupdate=on\n", debugfsDir+"/bdi/x", ""),
			log:  lateLog,
			want: State{KHO: known(false, SourceCommandLine),
				LUO:      Fact[bool]{Known: true, Source: SourceDevice, Why: noDevice},
				Device:   known(false, SourceDevice),
				Number:   known(uint64(0), SourceCommandLine),
				Previous: known("", SourceCommandLine),
				Debugfs:  noKHODir},
		},
		{
			name: "a kernel built without either",
			root: machine("proc/cmdline", "kho=on liveupdate=on\n", debugfsDir+"/bdi/x", ""),
			log:  bootLog + noKHOParam,
			want: State{
				KHO: Fact[bool]{Known: true, Source: SourceLog,
					Why: "the kernel does not know kho=: it was built without CONFIG_KEXEC_HANDOVER"},
				LUO:      Fact[bool]{Known: true, Source: SourceDevice, Why: noDevice},
				Device:   known(false, SourceDevice),
				Number:   known(uint64(0), SourceLog),
				Previous: known("", SourceLog),
				Debugfs:  noKHODir},
		},
		{
			name: "nothing said",
			root: machine("proc/cmdline", "quiet\n"),
			log:  lateLog,
			want: State{
				KHO: unknown[bool]("kho= is not on the kernel command line, and only the kernel's " +
					"configuration (CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT) says what that means"),
				LUO: known(false, SourceDevice), Device: known(false, SourceDevice), Debugfs: unmounted,
				Number: unknown[uint64](unmounted + "; " + noStart), Previous: unknown[string](unmounted + "; " + noStart)},
		},
		{
			name: "neither proc nor debugfs",
			root: fstest.MapFS{},
			log:  bootLog,
			want: State{
				KHO: unknown[bool]("the kernel command line in /proc/cmdline cannot be read"),
				LUO: known(false, SourceDevice), Device: known(false, SourceDevice),
				Debugfs: "this kernel has no debugfs",
				Number:  known(uint64(0), SourceLog), Previous: known("", SourceLog)},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ReadState(tt.root, func() ([]byte, error) { return []byte(tt.log), nil })
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("ReadState (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadStateSaysWhatItMayNotRead(t *testing.T) {
	const lockdown = "debugfs may only be read by root, and not under kernel lockdown"
	const noLog = "the kernel log may only be read with CAP_SYSLOG"
	for _, path := range []string{debugfsDir + "/kho", debugfsDir, inMetadata, debugfsDir + "/kho/in", outLUO} {
		root := faultyFS{machine("proc/cmdline", "kho=on", "dev/liveupdate", ""), map[string]error{path: unix.EPERM}}
		if path != debugfsDir {
			root.MapFS[debugfsDir+"/kho/in/sub_fdts/x"] = &fstest.MapFile{}
		}
		got, err := ReadState(root, func() ([]byte, error) {
			return nil, os.NewSyscallError("syslog(READ_ALL)", unix.EPERM)
		})
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if got.Debugfs != lockdown || got.Number.Known || got.Number.Why != lockdown+"; "+noLog {
			t.Errorf("%s is forbidden: debugfs %q, number %+v", path, got.Debugfs, got.Number)
		}
	}
}

func TestReadStateReportsIOErrorsAndTheRest(t *testing.T) {
	for _, path := range []string{"dev/liveupdate", "proc/cmdline", debugfsDir, outLUO, inMetadata,
		debugfsDir + "/kho/in"} {
		m := machine("proc/cmdline", "kho=on liveupdate=on", "dev/liveupdate", "")
		if path != debugfsDir {
			m[debugfsDir+"/kho/out/fdt"] = &fstest.MapFile{}
		}
		got, err := ReadState(faultyFS{m, map[string]error{path: unix.EIO}},
			func() ([]byte, error) { return []byte(handoverLog), nil })
		if !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error is %v", path, err)
		}
		if want := known(uint64(3), SourceLog); got.Number != want || !got.LUO.Value {
			t.Errorf("%s: number is %+v, LUO is %+v", path, got.Number, got.LUO)
		}
	}
	got, err := ReadState(faultyFS{machine(), map[string]error{"dev/liveupdate": unix.EIO}},
		func() ([]byte, error) { return nil, unix.EIO })
	if want := unknown[bool]("/dev/liveupdate cannot be looked up",
		"the kernel command line in /proc/cmdline cannot be read"); got.LUO != want {
		t.Errorf("LUO is %+v", got.LUO)
	}
	if !errors.Is(err, unix.EIO) {
		t.Errorf("the kernel log: error is %v", err)
	}
	_, err = ReadState(machine(), func() ([]byte, error) { return nil, unix.ENOSYS })
	if err != nil {
		t.Errorf("a kernel without a log: error is %v", err)
	}
}

func TestReadStateOfThisMachineDoesNotFail(t *testing.T) {
	state, err := ReadState(os.DirFS("/"), KernelLog)
	if err != nil {
		t.Errorf("ReadState: %v", err)
	}
	if !state.Device.Known {
		t.Errorf("Device is %+v", state.Device)
	}
}

func TestReadOriginIsOfTheRunningKernel(t *testing.T) {
	root := fstest.MapFS{
		"proc/sys/kernel/random/boot_id": {Data: []byte("3f1b52c4-8a0e-4c1b-9d7e-2f6a5b9c0d11\n")},
		"proc/sys/kernel/osrelease":      {Data: []byte("7.2.13\n")},
	}
	want := exampleOrigin()
	got, err := ReadOrigin(root, want.Time.In(time.FixedZone("somewhere", 3600)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ReadOrigin (-want +got):\n%s", diff)
	}
	if got.Time.Location() != time.UTC {
		t.Errorf("the time is of %v", got.Time.Location())
	}
	for path := range root {
		file := root[path]
		delete(root, path)
		if _, err := ReadOrigin(root, want.Time); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("without %s: %v", path, err)
		}
		root[path] = file
	}
}
