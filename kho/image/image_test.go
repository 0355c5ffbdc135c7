// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/kho"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

const (
	sampleBanner = "Linux version 7.2.12-sample (builder@host) (gcc, ld) #1 SMP Thu Jan 1 00:00:00 UTC 1970"
	noConfig     = "no configuration is embedded: it was built without CONFIG_IKCONFIG=y"
)

// sampleKernel is what testdata/vmlinux has in it.
func sampleKernel() *Kernel {
	return &Kernel{
		Release: "7.2.12-sample",
		Banner:  sampleBanner,
		Config: kho.Fact[Config]{Known: true, Source: SourceImage, Value: Config{
			"CONFIG_LOCALVERSION":     `"-sample"`,
			"CONFIG_KEXEC_HANDOVER":   "y",
			"CONFIG_LIVEUPDATE":       "y",
			"CONFIG_LIVEUPDATE_MEMFD": "y",
			"CONFIG_KUNIT":            "n",
		}},
		Formats: formats(SourceImage, "kho-v4", "luo-v5", "memfd-v2"),
	}
}

// formats returns what is known of a kernel with these formats.
func formats(source kho.Source, names ...string) map[Part]kho.Fact[[]string] {
	found := map[Part]kho.Fact[[]string]{}
	for _, part := range Parts() {
		found[part] = kho.Fact[[]string]{Known: true, Source: source}
	}
	for _, name := range names {
		fact := found[partOf(name)]
		fact.Value = append(fact.Value, name)
		found[partOf(name)] = fact
	}
	return found
}

// samples are the files of testdata that hold a kernel, but for the plain one.
func samples() []string {
	return []string{"vmlinux.gz", "vmlinux.bz2", "vmlinux.lzma", "vmlinux.xz", "vmlinux.lzo", "vmlinux.lz4", "vmlinux.zst"}
}

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sampleImage returns a bzImage with a sample as its payload.
func sampleImage(t testing.TB, name string) []byte {
	t.Helper()
	if name == "vmlinux.gz" {
		return bzImage(testdata(t, name))
	}
	return bzImage(sized(testdata(t, name), len(testdata(t, "vmlinux"))))
}

// sized returns compressed data with the size that it should unpack to after it.
func sized(packed []byte, size int) []byte {
	return binary.LittleEndian.AppendUint32(slices.Clone(packed), uint32(size))
}

// bzImage returns an image with two sectors of setup code, and with something
// before and after its payload.
func bzImage(payload []byte) []byte {
	b := make([]byte, 2*sectorSize)
	b[setupSectors] = 1
	copy(b[setupMagic:], "HdrS")
	binary.LittleEndian.PutUint16(b[setupProtocol:], 0x020f)
	binary.LittleEndian.PutUint32(b[setupPayload:], 16)
	binary.LittleEndian.PutUint32(b[setupLength:], uint32(len(payload)))
	return slices.Concat(b, make([]byte, 16), payload, make([]byte, 16))
}

// gzipped returns data as gzip's format has it, which ends with the size.
func gzipped(data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(data)
	w.Close()
	return b.Bytes()
}

// vmlinux returns an ELF file with no more than a header and content.
func vmlinux(content ...string) []byte {
	b := make([]byte, elfHeaderLen)
	copy(b, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(b[16:], 2)    // executable
	binary.LittleEndian.PutUint16(b[18:], 0x3e) // x86-64
	for _, c := range content {
		b = append(b, c...)
	}
	return b
}

type peSection struct {
	name string
	data []byte
}

// unified returns a PE file whose sections are padded to 64 bytes.
func unified(sections ...peSection) []byte {
	const optional, align = 112, 64
	b := make([]byte, 128)
	copy(b, "MZ")
	binary.LittleEndian.PutUint32(b[peOffset:], uint32(len(b)))
	header := make([]byte, peHeader+optional)
	copy(header, "PE\x00\x00\x64\x86")
	binary.LittleEndian.PutUint16(header[peSectionCount:], uint16(len(sections)))
	binary.LittleEndian.PutUint16(header[peOptionalSize:], optional)
	b = append(b, header...)
	at := len(b) + sectionEntry*len(sections)
	var data []byte
	for _, s := range sections {
		padded := (len(s.data) + align - 1) &^ (align - 1)
		entry := make([]byte, sectionEntry)
		copy(entry, s.name)
		binary.LittleEndian.PutUint32(entry[sectionInMemory:], uint32(len(s.data)))
		binary.LittleEndian.PutUint32(entry[sectionInFile:], uint32(padded))
		binary.LittleEndian.PutUint32(entry[sectionFileStart:], uint32(at+len(data)))
		b = append(b, entry...)
		data = append(data, s.data...)
		data = append(data, strings.Repeat("x", padded-len(s.data))...)
	}
	return append(b, data...)
}
