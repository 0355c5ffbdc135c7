// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/version"
)

const (
	firstBootLog = "<5>[    0.000000] Linux version 7.2.13 (build@host) #1 SMP\n"
	handoverLog  = firstBootLog +
		"<6>[    0.000000] KHO: found kexec handover data.\n" +
		"<6>[    0.100000] luo: Retrieved live update data, liveupdate number: 3\n" +
		"<6>[    0.200000] KHO: exec from: 7.2.12 (count 4)\n"
	lateLog = "<6>[  900.000000] usb 1-1: new device\n" // the beginning is gone
)

// rootFS is the file system of a machine with a command line, and with files
// below debugfs and elsewhere, path and content in turn.
func rootFS(cmdline string, more ...string) fstest.MapFS {
	root := fstest.MapFS{
		"proc/sys/kernel/random/boot_id": {Data: []byte("1b4e28ba-2fa1-41d2-883f-0016d3cca427\n")},
		"proc/sys/kernel/osrelease":      {Data: []byte("7.2.13\n")},
		"proc/cmdline":                   {Data: []byte(cmdline + "\n")},
		"sys/kernel/debug":               {Mode: fs.ModeDir},
	}
	for i := 0; i < len(more); i += 2 {
		root[more[i]] = &fstest.MapFile{Data: []byte(more[i+1])}
	}
	return root
}

// outgoing is debugfs's struct luo_ser for the next kernel, and incoming its
// struct kho_kexec_metadata from the last one (Linux 7.2).
func outgoing(number uint64) string {
	blob := make([]byte, 32)
	copy(blob, "luo-v5")
	binary.NativeEndian.PutUint64(blob[8:], number)
	return string(blob)
}

func incoming(release string) string {
	blob := make([]byte, 73)
	binary.NativeEndian.PutUint32(blob, 1)
	copy(blob[4:], release)
	return string(blob)
}

func TestMachineSaysWhatIsKnownOfTheKernel(t *testing.T) {
	const (
		on        = "quiet kho=on liveupdate=on"
		debugLUO  = "sys/kernel/debug/kho/out/sub_fdts/LUO"
		debugMeta = "sys/kernel/debug/kho/in/sub_fdts/kexec-metadata"
		device    = "dev/liveupdate"
		unmounted = "debugfs is not mounted on /sys/kernel/debug"
	)
	number := func(n uint64) *uint64 { return &n }
	for name, test := range map[string]struct {
		root fs.FS
		log  string
		want wire.Kernel
	}{
		"first boot":                      {rootFS(on, device, "", debugLUO, outgoing(1)), lateLog, wire.Kernel{Device: true, LiveUpdateNumber: number(0)}},
		"first boot, without debugfs":     {rootFS(on, device, ""), firstBootLog, wire.Kernel{Device: true, LiveUpdateNumber: number(0)}},
		"after a handover":                {rootFS(on, device, "", debugLUO, outgoing(4), debugMeta, incoming("7.2.12")), lateLog, wire.Kernel{Device: true, LiveUpdateNumber: number(3), Previous: "7.2.12"}},
		"after a handover, by log":        {rootFS(on, device, ""), handoverLog, wire.Kernel{Device: true, LiveUpdateNumber: number(3), Previous: "7.2.12"}},
		"nothing that says a number":      {rootFS(on, device, ""), lateLog, wire.Kernel{Device: true, Note: unmounted + "; the kernel log does not reach back to the boot any more"}},
		"no release of the kernel before": {rootFS(on, device, "", debugLUO, outgoing(2), "sys/kernel/debug/kho/in/fdt", ""), firstBootLog + "<6>KHO: found kexec handover data.\n", wire.Kernel{Device: true, LiveUpdateNumber: number(1), Note: "the kernel before this one did not leave its release in debugfs"}},
		"no device":                       {rootFS("quiet"), firstBootLog, wire.Kernel{LiveUpdateNumber: number(0)}},
	} {
		t.Run(name, func(t *testing.T) {
			test.want.Release, test.want.BootID = "7.2.13", "1b4e28ba-2fa1-41d2-883f-0016d3cca427"
			want := wire.Status{Version: version.Version, Kernel: test.want}
			got, err := bridge.Machine(test.root, func() ([]byte, error) { return []byte(test.log), nil })
			if err != nil {
				t.Errorf("Machine: %v", err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWithAnErrorMachineSaysTheRest(t *testing.T) {
	noBootID := rootFS("kho=on", "dev/liveupdate", "")
	delete(noBootID, "proc/sys/kernel/random/boot_id")
	for name, test := range map[string]struct {
		root fs.FS
		log  error
		want error
		rest wire.Kernel
	}{
		"no boot id": {noBootID, nil, fs.ErrNotExist, wire.Kernel{}},
		"the log is broken": {rootFS("kho=on", "dev/liveupdate", ""), unix.EIO, unix.EIO, wire.Kernel{
			Release: "7.2.13", BootID: "1b4e28ba-2fa1-41d2-883f-0016d3cca427", Device: true,
			Note: "debugfs is not mounted on /sys/kernel/debug; the kernel log cannot be read"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := bridge.Machine(test.root, func() ([]byte, error) { return nil, test.log })
			if !errors.Is(err, test.want) {
				t.Errorf("Machine: %v, want %v", err, test.want)
			}
			if diff := cmp.Diff(wire.Status{Version: version.Version, Kernel: test.rest}, got); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
		})
	}
}
