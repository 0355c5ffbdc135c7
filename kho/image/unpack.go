// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bufio"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"
	"github.com/ulikunitz/xz/lzma"
)

// maxDictionary is how far back a decompressor may have to look, in bytes. It is
// what scripts/xz_wrap.sh and "zstd -22 --ultra" of scripts/Makefile.lib ask for
// (Linux 7.2).
const maxDictionary = 128 << 20

// sizeLen is the length of what ends every payload: the unpacked size as a
// little-endian u32. gzip has it in its own format; after all others
// scripts/Makefile.lib appends it (size_append, Linux 7.2).
const sizeLen = 4

// compression is one of the kernel build's ways to compress itself.
type compression struct {
	name, magic string
	open        func(*bufio.Reader) (io.Reader, error)
}

// compressions returns what arch/x86/Kconfig selects HAVE_KERNEL_* for (Linux 7.2).
func compressions() []compression {
	return []compression{
		{"gzip", "\x1f\x8b", func(r *bufio.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
		{"bzip2", "BZh", func(r *bufio.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }},
		{"lzma", "\x5d\x00\x00", func(r *bufio.Reader) (io.Reader, error) {
			return lzma.ReaderConfig{DictCap: maxDictionary}.NewReader(r)
		}},
		{"xz", "\xfd7zXZ\x00", func(r *bufio.Reader) (io.Reader, error) { return xz.NewReader(r, maxDictionary) }},
		{"lzo", lzopMagic, newLZOP},
		{"lz4", "\x02\x21\x4c\x18", func(r *bufio.Reader) (io.Reader, error) { return lz4.NewReader(r), nil }},
		{"zstd", "\x28\xb5\x2f\xfd", func(r *bufio.Reader) (io.Reader, error) {
			// One decoder and no goroutine, so that there is nothing to close.
			return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxDictionary))
		}},
	}
}

// unpack returns the kernel in a payload, and its size as the payload has it.
func unpack(ctx context.Context, payload *io.SectionReader) (io.Reader, int64, error) {
	tail, err := bytesAt(payload, payload.Size()-sizeLen, sizeLen)
	if err != nil {
		return nil, 0, fmt.Errorf("compressed kernel: %w", err)
	}
	size := int64(binary.LittleEndian.Uint32(tail))
	magic, err := bytesAt(payload, 0, min(payload.Size(), int64(len(lzopMagic))))
	if err != nil {
		return nil, 0, err
	}
	for _, c := range compressions() {
		if !strings.HasPrefix(string(magic), c.magic) {
			continue
		}
		length := payload.Size()
		if c.name != "gzip" {
			length -= sizeLen
		}
		u := &unpacked{name: c.name, src: &source{ctx: ctx, r: io.LimitReader(payload, length)}}
		u.r, err = c.open(bufio.NewReader(u.src))
		return u, size, u.failed(err)
	}
	return nil, 0, fmt.Errorf("%w: it starts with % x", ErrCompression, magic)
}

// source is what something is read from. It ends with the context, and keeps its
// error from what decompressors make of it.
type source struct {
	ctx context.Context
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	if err := context.Cause(s.ctx); err != nil {
		s.err = err
		return 0, err
	}
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// unpacked is a kernel while it is decompressed.
type unpacked struct {
	name string
	src  *source
	r    io.Reader
}

func (u *unpacked) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if err == io.EOF {
		return n, err
	}
	return n, u.failed(err)
}

// failed tells a payload that cannot be decompressed from one that cannot be read.
func (u *unpacked) failed(err error) error {
	if err == nil || u.src.err != nil {
		return u.src.err
	}
	return fmt.Errorf("%w: decompress %s: %w", ErrDamaged, u.name, err)
}
