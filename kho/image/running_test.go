// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/kho"
)

const (
	usrImage   = "usr/lib/modules/7.2.12-sample/vmlinuz"
	bootImage  = "boot/vmlinuz-7.2.12-sample"
	khoDebugfs = "sys/kernel/debug/kho/out/fdt"
	luoDebugfs = "sys/kernel/debug/kho/out/sub_fdts/LUO"
)

// What debugfs has: the beginning of a device tree that Linux 7.2 made, a struct
// luo_ser, and the values of the tree that LUO had before Linux 7.2.
const (
	khoTree = "\xd0\r\xfe\xed\x00\x00\x01\x1d\x00\x00\x00\x38\x00\x00\x00\xe4\x00\x00\x00\x28" +
		"\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x07\x00\x00\x00\x20kho-v4\x00\x00" +
		"\x00\x00\x00\x03\x00\x00\x00\x08\x00\x00\x00\x00\x00\xa0\x07\x02\x00\x00\x00\x00\x00\x00\x00\x01LUO\x00"
	luoState = "luo-v5\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\xa0\x07\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	luoTree  = "\xd0\r\xfe\xedluo-v1\x00\x00\x00\x00\x00\x0bluo-session-v2\x00\x00luo-flb-v1\x00\x00"
)

// machine returns the file system of one that runs the sample kernel, with these
// files; nil takes one away.
func machine(files map[string][]byte) fstest.MapFS {
	all := map[string][]byte{
		"proc/sys/kernel/osrelease": []byte("7.2.12-sample\n"),
		"proc/version":              []byte(sampleBanner + "\n"),
	}
	maps.Copy(all, files)
	root := fstest.MapFS{}
	for name, data := range all {
		if data != nil {
			root[name] = &fstest.MapFile{Data: data}
		}
	}
	return root
}

func TestRunningKernel(t *testing.T) {
	image, config := sampleImage(t, "vmlinux.gz"), testdata(t, "config.gz")
	bare := vmlinux("\x00kho-v9\x00memfd-v9\x00", sampleBanner, "\n\x00")
	sample, none := sampleKernel(), "file does not exist"
	absent := "/" + usrImage + ": " + none + "; /" + bootImage + ": " + none
	unknown := func(why string, file string) kho.Fact[[]string] {
		if file != "" {
			why += "; /" + file + ": " + none
		}
		return kho.Fact[[]string]{Why: why}
	}
	nothing := func(why string) *Kernel {
		return &Kernel{
			Release: sample.Release, Banner: sample.Banner,
			Config:  kho.Fact[Config]{Why: why + "; /proc/config.gz: " + none},
			Formats: map[Part]kho.Fact[[]string]{KHO: unknown(why, khoDebugfs), LUO: unknown(why, luoDebugfs), Memfd: unknown(why, "")},
		}
	}
	debugfs := func(names ...string) kho.Fact[[]string] {
		return kho.Fact[[]string]{Known: true, Value: names, Source: kho.SourceDebugfs}
	}
	with := func(k *Kernel, change func(*Kernel)) *Kernel { change(k); return k }
	fromProc := kho.Fact[Config]{Known: true, Value: sample.Config.Value, Source: SourceProcConfig}

	tests := map[string]struct {
		files map[string][]byte
		want  *Kernel
	}{
		"no source":         {nil, nothing(absent)},
		"image in /usr":     {map[string][]byte{usrImage: image}, sample},
		"image in /boot":    {map[string][]byte{bootImage: image}, sample},
		"image of the past": {map[string][]byte{usrImage: []byte("x"), bootImage: image}, sample},
		"images of others": {
			map[string][]byte{usrImage: bzImage(gzipped(vmlinux("Linux version 7.2.12-sample (b) #2\n\x00"))), bootImage: []byte("text")},
			nothing("/" + usrImage + " is of another build; /" + bootImage + ": read kernel image: " +
				"not a Linux kernel for x86-64: neither bzImage nor unified kernel image nor ELF file")},
		"an image that is a folder": {map[string][]byte{usrImage + "/file": image},
			nothing("/" + usrImage + ": not a file; /" + bootImage + ": " + none)},
		"only a configuration": {map[string][]byte{"proc/config.gz": config},
			with(nothing(absent), func(k *Kernel) { k.Config = fromProc })},
		"a configuration that cannot be read": {map[string][]byte{"proc/config.gz": config[:20]},
			with(nothing(absent), func(k *Kernel) { k.Config.Why = absent + "; /proc/config.gz: unexpected EOF" })},
		"only debugfs": {map[string][]byte{khoDebugfs: []byte(khoTree), luoDebugfs: []byte(luoState)},
			with(nothing(absent), func(k *Kernel) { k.Formats[KHO], k.Formats[LUO] = debugfs("kho-v4"), debugfs("luo-v5") })},
		"debugfs before 7.2": {map[string][]byte{khoDebugfs: []byte(khoTree), luoDebugfs: []byte(luoTree)},
			with(nothing(absent), func(k *Kernel) {
				k.Formats[KHO], k.Formats[LUO] = debugfs("kho-v4"), debugfs("luo-flb-v1", "luo-session-v2", "luo-v1")
			})},
		"debugfs that says something else": {map[string][]byte{khoDebugfs: []byte(luoState), luoDebugfs: []byte("x" + luoState)},
			with(nothing(absent), func(k *Kernel) {
				k.Formats[KHO] = kho.Fact[[]string]{Why: absent + "; /" + khoDebugfs + ": no kho format in it"}
				k.Formats[LUO] = kho.Fact[[]string]{Why: absent + "; /" + luoDebugfs + ": no luo format in it"}
			})},
		"each says what it knows best": {
			map[string][]byte{usrImage: bare, "proc/config.gz": config, khoDebugfs: []byte(khoTree), luoDebugfs: []byte(luoState)},
			with(nothing(absent), func(k *Kernel) {
				k.Config = fromProc
				k.Formats[KHO], k.Formats[LUO] = debugfs("kho-v4"), debugfs("luo-v5")
				k.Formats[Memfd] = kho.Fact[[]string]{Known: true, Value: []string{"memfd-v9"}, Source: SourceImage}
			})},
		"a debugfs that says nothing takes nothing away": {map[string][]byte{usrImage: image, khoDebugfs: {}}, sample},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Running(context.Background(), machine(test.files))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("kernel (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRunningNeedsProc(t *testing.T) {
	for _, name := range []string{"proc/sys/kernel/osrelease", "proc/version"} {
		if k, err := Running(context.Background(), machine(map[string][]byte{name: nil})); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("without /%s: kernel %v, error %v", name, k, err)
		}
	}
}

func TestRunningEndsWithItsContext(t *testing.T) {
	errEnough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errEnough)
	k, err := Running(ctx, machine(map[string][]byte{usrImage: sampleImage(t, "vmlinux.gz")}))
	if k != nil || !errors.Is(err, errEnough) {
		t.Errorf("kernel %v, error %v", k, err)
	}
}
