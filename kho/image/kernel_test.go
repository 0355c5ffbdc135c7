// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func read(b []byte) (*Kernel, error) {
	return Read(context.Background(), bytes.NewReader(b), int64(len(b)))
}

func TestReadSeesTheSameInEveryKindOfImage(t *testing.T) {
	images := map[string][]byte{
		"vmlinux": testdata(t, "vmlinux"),
		"unified image of a vmlinux": unified(
			peSection{".text", []byte("stub")}, peSection{".linux", testdata(t, "vmlinux")}),
	}
	for _, name := range samples() {
		images[name] = sampleImage(t, name)
		images["unified image of "+name] = unified(peSection{".linux", sampleImage(t, name)})
		// With EFI_STUB a bzImage starts like a PE file.
		images["EFI program of "+name] = append([]byte("MZ"), images[name][2:]...)
	}
	gz := sampleImage(t, "vmlinux.gz")
	images["four sectors of setup code, said as none"] = slices.Concat(
		put(gz[:2*sectorSize], setupSectors, uint8(0)), make([]byte, 3*sectorSize), gz[2*sectorSize:])
	for name, image := range images {
		t.Run(name, func(t *testing.T) {
			got, err := read(image)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(sampleKernel(), got); diff != "" {
				t.Errorf("kernel (-want +got):\n%s", diff)
			}
		})
	}
}

func TestABzImageSaysWhatMemoryItTakes(t *testing.T) {
	const memory = 70 << 20
	bz := put(sampleImage(t, "vmlinux.gz"), setupInitSize, uint32(memory))
	for name, test := range map[string]struct {
		image []byte
		want  int64
	}{
		"bzImage":              {bz, memory},
		"of an old protocol":   {put(bz, setupProtocol, uint16(protocolInitSize-1)), 0},
		"unified":              {unified(peSection{".linux", bz}), memory},
		"not what kexec loads": {testdata(t, "vmlinux"), 0},
	} {
		k, err := read(test.image)
		if err != nil || k.Memory != test.want {
			t.Errorf("%s: %+v, %v, want %d bytes", name, k, err, test.want)
		}
	}
}

func TestUnifiedImageBootsItsFirstProfile(t *testing.T) {
	linux := peSection{".linux", testdata(t, "vmlinux")}
	other := peSection{".linux", []byte("no kernel")}
	profile := peSection{".profile", []byte("ID=x")}
	cmdline := func(text string) peSection { return peSection{".cmdline", []byte(text)} }
	tests := map[string]struct {
		sections []peSection
		want     string
	}{
		"no command line":                 {[]peSection{linux}, ""},
		"command line":                    {[]peSection{cmdline("root=/dev/vda kho=on \n\x00"), linux}, "root=/dev/vda kho=on"},
		"first of two":                    {[]peSection{cmdline("a"), cmdline("b"), linux, other}, "a"},
		"common to all profiles":          {[]peSection{cmdline("a"), linux, profile, profile, cmdline("c")}, "a"},
		"of the first profile":            {[]peSection{cmdline("a"), linux, profile, cmdline("b"), profile, cmdline("c"), other}, "b"},
		"first of two in a profile":       {[]peSection{linux, profile, cmdline("b"), cmdline("c")}, "b"},
		"only of another profile":         {[]peSection{linux, profile, profile, cmdline("c")}, ""},
		"kernel of the profile":           {[]peSection{other, profile, linux, cmdline("b")}, "b"},
		"profile is the last section":     {[]peSection{cmdline("a"), linux, profile}, "a"},
		"a name that fills its 8 bytes":   {[]peSection{{".cmdlin", nil}, {".cmdline", []byte("a")}, linux}, "a"},
		"a section with nothing in it":    {[]peSection{cmdline(""), linux}, ""},
		"a name that only starts like it": {[]peSection{{".linuxX", nil}, linux}, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := read(unified(test.sections...))
			if err != nil {
				t.Fatal(err)
			}
			if got.Cmdline != test.want {
				t.Errorf("command line %q, want %q", got.Cmdline, test.want)
			}
		})
	}
}

// put returns a copy of b with a little-endian number at an offset.
func put[T uint8 | uint16 | uint32 | uint64](b []byte, at int, number T) []byte {
	b = slices.Clone(b)
	var buf bytes.Buffer
	binary.Write(&buf, binary.LittleEndian, number)
	copy(b[at:], buf.Bytes())
	return b
}

func TestReadSaysWhatIsWrong(t *testing.T) {
	good, plain := sampleImage(t, "vmlinux.gz"), testdata(t, "vmlinux")
	bare := vmlinux(sampleBanner, "\n\x00", "x")
	uki := unified(peSection{".linux", plain})
	tests := map[string]struct {
		image []byte
		want  error
	}{
		"nothing":                      {nil, ErrTruncated},
		"text":                         {[]byte(strings.Repeat("text ", 1000)), ErrNotKernel},
		"ELF of another class":         {put(plain, 4, uint8(1)), ErrNotKernel},
		"ELF for another processor":    {put(plain, 18, uint16(183)), ErrNotKernel},
		"ELF that is not Linux":        {vmlinux("luo-v5\x00"), ErrNotKernel},
		"end of an ELF cut off":        {plain[:len(plain)-1], ErrTruncated},
		"sections at the end of int64": {put(plain, 0x28, ^uint64(0)), ErrTruncated},
		"boot protocol 2.07":           {put(good, setupProtocol, uint16(0x0207)), ErrNotKernel},
		"payload past the end":         {put(good, setupPayload, uint32(1<<31)), ErrTruncated},
		"payload longer than the file": {put(good, setupLength, uint32(len(good))), ErrTruncated},
		"payload of 3 bytes":           {put(good, setupLength, uint32(3)), ErrTruncated},
		"payload of 4 GiB":             {put(good, setupLength, ^uint32(0)), ErrTooLarge},
		"payload without magic":        {bzImage([]byte("no compression\x00\x00\x00\x00")), ErrCompression},
		"payload that is not an ELF":   {bzImage(gzipped(bytes.Repeat([]byte("x"), 100))), ErrNotKernel},
		"empty payload":                {bzImage(gzipped(nil)), ErrNotKernel},
		"unpacked kernel of 4 GiB":     {bzImage(sized(testdata(t, "vmlinux.xz"), 1<<32-1)), ErrTooLarge},
		"unpacks to less than it says": {bzImage(sized(testdata(t, "vmlinux.xz"), len(plain)+1)), ErrDamaged},
		"unpacks to more than it says": {bzImage(sized(lzopped(bare), len(bare)-1)), ErrDamaged},
		"PE header past the end":       {put(uki, peOffset, ^uint32(0)), ErrTruncated},
		"not a PE file":                {put(uki, 128, uint32(0)), ErrNotKernel},
		"PE for another processor":     {put(uki, 128+peMachine, uint16(0xaa64)), ErrNotKernel},
		"PE with too many sections":    {put(uki, 128+peSectionCount, ^uint16(0)), ErrTruncated},
		"PE without sections":          {put(uki, 128+peSectionCount, uint16(0)), ErrNotKernel},
		"unified image without kernel": {unified(peSection{".text", plain}), ErrNotKernel},
		"unified image in another":     {unified(peSection{".linux", uki}), ErrNotKernel},
		"unified image cut off":        {uki[:len(uki)-64], ErrTruncated},
		"command line of a MiB": {unified(peSection{".linux", plain},
			peSection{".cmdline", make([]byte, 1<<20)}), ErrTooLarge},
		"command line cut off": {cut(unified(peSection{".linux", plain},
			peSection{".cmdline", []byte("kho=on")}), 64), ErrTruncated},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			k, err := read(test.image)
			if k != nil || !errors.Is(err, test.want) {
				t.Errorf("kernel %v, error %v; want %v", k, err, test.want)
			}
		})
	}
}

func cut(b []byte, n int) []byte { return b[:len(b)-n] }

// TestReadOfAnyCutImageFails cuts the image, and its payload with all else as it
// should be.
func TestReadOfAnyCutImageFails(t *testing.T) {
	for _, name := range samples() {
		t.Run(name, func(t *testing.T) {
			image, payload := sampleImage(t, name), testdata(t, name)
			for n := 0; n < len(payload); n += 1 + len(payload)/20 {
				_, err := read(bzImage(sized(payload[:n], len(testdata(t, "vmlinux")))))
				if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrCompression) {
					t.Errorf("payload cut to %d bytes: %v", n, err)
				}
				if _, err := read(cut(image, len(payload)+16-n)); !errors.Is(err, ErrTruncated) {
					t.Errorf("image with %d bytes of payload: %v", n, err)
				}
			}
		})
	}
}

// watched calls a function before each read, and fails when that does.
type watched struct {
	io.ReaderAt
	before func(at int64, n int) error
}

func (w watched) ReadAt(p []byte, at int64) (int, error) {
	if err := w.before(at, len(p)); err != nil {
		return 0, err
	}
	return w.ReaderAt.ReadAt(p, at)
}

func TestReadKeepsIOErrorsAsTheyAre(t *testing.T) {
	errDisk := errors.New("disk on fire")
	images := map[string][]byte{
		"vmlinux": testdata(t, "vmlinux"),
		"unified": unified(peSection{".linux", testdata(t, "vmlinux")}),
	}
	for _, name := range samples() {
		images[name] = sampleImage(t, name)
	}
	for name, image := range images {
		t.Run(name, func(t *testing.T) {
			const padding = 64 // which nobody needs to read
			for good := 0; good < len(image)-padding; good += 1 + len(image)/20 {
				r := watched{bytes.NewReader(image), func(at int64, n int) error {
					if int(at)+n > good && n > sizeLen { // what is at the end is read first
						return errDisk
					}
					return nil
				}}
				_, err := Read(context.Background(), r, int64(len(image)))
				if !errors.Is(err, errDisk) || errors.Is(err, ErrDamaged) {
					t.Errorf("after %d bytes: %v", good, err)
				}
			}
		})
	}
}

func TestReadEndsWithItsContext(t *testing.T) {
	errEnough := errors.New("enough")
	kernel := func(size int) []byte { return vmlinux(string(make([]byte, size)), sampleBanner, "\n\x00") }
	for name, image := range map[string][]byte{
		"plain":  kernel(3 * scanWindow),
		"packed": bzImage(gzipped(kernel(3 * scanWindow))),
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(context.Background())
			r := watched{bytes.NewReader(image), func(_ int64, n int) error {
				if n > setupEnd { // not a header
					cancel(errEnough)
				}
				return nil
			}}
			_, err := Read(ctx, r, int64(len(image)))
			if !errors.Is(err, errEnough) || errors.Is(err, ErrDamaged) {
				t.Errorf("error %v, want %v", err, errEnough)
			}
		})
	}
}

func FuzzRead(f *testing.F) {
	for _, name := range samples() {
		f.Add(sampleImage(f, name))
	}
	f.Add(testdata(f, "vmlinux"))
	f.Add(unified(peSection{".linux", testdata(f, "vmlinux")}, peSection{".profile", nil},
		peSection{".cmdline", []byte("kho=on")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := read(b)
		if (k == nil) == (err == nil) {
			t.Fatalf("kernel %v, error %v", k, err)
		}
		known := []error{ErrNotKernel, ErrCompression, ErrTruncated, ErrDamaged, ErrTooLarge}
		if err != nil && !slices.ContainsFunc(known, func(e error) bool { return errors.Is(err, e) }) {
			t.Errorf("error that says nothing: %v", err)
		}
		if err == nil && (k.Release == "" || !strings.HasPrefix(k.Banner, "Linux version "+k.Release+" ")) {
			t.Errorf("release %q, banner %q", k.Release, k.Banner)
		}
	})
}
