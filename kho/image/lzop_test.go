// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"hash/adler32"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// lzopHead is what lzop 1.04 writes before the first block.
const lzopHead = lzopMagic + "\x10\x40\x20\xa0\x09\x40\x03\x09\x03\x00\x00\x0d" + // versions, method, level, flags
	"\x00\x00\x81\xa4\x6b\x01\x3a\xdf\x00\x00\x00\x00" + "\x00" + "\x00\x00\x00\x00" // mode, times, name, checksum

func lzopBlock(size, packed, sum uint32, data string) string {
	b := binary.BigEndian.AppendUint32(nil, size)
	b = binary.BigEndian.AppendUint32(b, packed)
	return string(binary.BigEndian.AppendUint32(b, sum)) + data
}

// lzopped returns data as lzop has it that cannot be made smaller.
func lzopped(data []byte) []byte {
	out := []byte(lzopHead)
	for block := range slices.Chunk(data, lzopMaxBlock) {
		n := uint32(len(block))
		out = append(out, lzopBlock(n, n, adler32.Checksum(block), string(block))...)
	}
	return append(out, 0, 0, 0, 0)
}

func unlzop(b string) ([]byte, error) {
	r, err := newLZOP(bufio.NewReader(strings.NewReader(b)))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func TestLZOPUnpacksStoredAndPackedBlocksInTurn(t *testing.T) {
	long := bytes.Repeat([]byte("0123456789abcdef"), lzopMaxBlock/10)
	packed := string(testdata(t, "vmlinux.lzo")[len(lzopHead):])
	stored := strings.TrimSuffix(string(lzopped(long)), "\x00\x00\x00\x00")
	got, err := unlzop(stored + packed)
	if err != nil {
		t.Fatal(err)
	}
	if want := slices.Concat(long, testdata(t, "vmlinux")); !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
}

func TestLZOPHeader(t *testing.T) {
	body := string(lzopped([]byte("hello"))[len(lzopHead):])
	change := func(at int, bytes string) string {
		return lzopHead[:at] + bytes + lzopHead[at+len(bytes):]
	}
	tests := map[string]struct {
		head string
		ok   bool
	}{
		"of lzop 1.04":        {lzopHead, true},
		"with a file's name":  {lzopHead[:len(lzopHead)-5] + "\x03abc\x00\x00\x00\x00", true},
		"of lzop 0.93":        {change(9, "\x09\x30"), false},
		"with a filter":       {change(19, "\x08"), false},
		"without checksums":   {change(20, "\x0c"), false},
		"with CRC-32 as well": {change(19, "\x01"), false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := unlzop(test.head + body)
			if ok := err == nil && string(got) == "hello"; ok != test.ok {
				t.Errorf("%q, error %v", got, err)
			}
		})
	}
}

func TestLZOPRefusesBadBlocks(t *testing.T) {
	sum := adler32.Checksum([]byte("hello"))
	end := "\x00\x00\x00\x00"
	packed := testdata(t, "vmlinux.lzo")[len(lzopHead):]
	kernel := adler32.Checksum(testdata(t, "vmlinux"))
	tests := map[string]struct {
		body, want string
	}{
		"no end":                {lzopBlock(5, 5, sum, "hello"), "unexpected EOF"},
		"wrong checksum":        {lzopBlock(5, 5, sum+1, "hello") + end, "wrong checksum of a block"},
		"block too large":       {lzopBlock(lzopMaxBlock+1, 5, sum, "hello") + end, "a block of 5 bytes unpacks to 262145"},
		"packs to more":         {lzopBlock(5, 6, sum, "hello!") + end, "a block of 6 bytes unpacks to 5"},
		"packs to nothing":      {lzopBlock(5, 0, sum, "") + end, "a block of 0 bytes unpacks to 5"},
		"block cut off":         {lzopBlock(5, 5, sum, "hell"), "unexpected EOF"},
		"header cut off":        {"\x00\x00\x00\x05\x00\x00", "unexpected EOF"},
		"no LZO":                {lzopBlock(6, 5, sum, "hello") + end, "lzo: input overrun"},
		"unpacks to too much":   {lzopBlock(2839, uint32(len(packed)-16), kernel, string(packed[12:])), "lzo: output overrun"},
		"unpacks to too little": {lzopBlock(2841, uint32(len(packed)-16), kernel, string(packed[12:])), "unexpected EOF"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := unlzop(lzopHead + test.body)
			if err == nil {
				t.Fatal("no error")
			}
			if diff := cmp.Diff(test.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}
