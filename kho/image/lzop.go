// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/adler32"
	"io"

	"github.com/anchore/go-lzo"
)

// The container that lzop makes of LZO blocks, as lib/decompress_unlzo.c reads it
// (Linux 7.2). All numbers are big-endian.
const (
	lzopMagic = "\x89LZO\x00\r\n\x1a\n"

	// lzopVersion is the lzop, of 1998, from which on the header is as it is here.
	lzopVersion = 0x0940

	lzopMaxBlock = 256 << 10 // LZO_BLOCK_SIZE: of an unpacked block

	// Flags of the header. The kernel takes for granted that blocks have the
	// checksum which lzop makes by default, and no other.
	lzopFilter    = 1 << 11 // the header names a filter
	lzopAdler     = 1 << 0  // Adler-32 of each unpacked block
	lzopChecksums = lzopAdler | 1<<1 | 1<<8 | 1<<9
)

type lzopReader struct {
	in     *bufio.Reader
	packed [lzopMaxBlock]byte
	block  [lzopMaxBlock]byte
	unread []byte // of block
}

func newLZOP(r *bufio.Reader) (io.Reader, error) {
	var head struct {
		Magic                  [len(lzopMagic)]byte
		Version, Library, Need uint16
		Method, Level          uint8
		Flags                  uint32
	}
	if err := binary.Read(r, binary.BigEndian, &head); err != nil {
		return nil, err
	}
	if head.Version < lzopVersion || head.Flags&lzopFilter != 0 || head.Flags&lzopChecksums != lzopAdler {
		return nil, fmt.Errorf("lzop %#x with flags %#x is not for kernels", head.Version, head.Flags)
	}
	var file struct {
		Mode, Time, TimeHigh uint32
		NameLen              uint8
	}
	if err := binary.Read(r, binary.BigEndian, &file); err != nil {
		return nil, err
	}
	const checksum = 4
	if _, err := r.Discard(int(file.NameLen) + checksum); err != nil {
		return nil, err
	}
	return &lzopReader{in: r}, nil
}

func (l *lzopReader) Read(p []byte) (int, error) {
	if len(l.unread) == 0 {
		if err := l.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, l.unread)
	l.unread = l.unread[n:]
	return n, nil
}

// next unpacks a block; io.EOF if there is no more.
func (l *lzopReader) next() error {
	size, err := l.number()
	if err != nil {
		return err
	}
	if size == 0 {
		return io.EOF
	}
	packed, err := l.number()
	if err != nil {
		return err
	}
	sum, err := l.number()
	if err != nil {
		return err
	}
	if packed == 0 || packed > size || size > lzopMaxBlock {
		return fmt.Errorf("a block of %d bytes unpacks to %d", packed, size)
	}
	if err := l.unpack(l.packed[:packed], l.block[:size]); err != nil {
		return err
	}
	if adler32.Checksum(l.block[:size]) != sum {
		return errors.New("wrong checksum of a block")
	}
	l.unread = l.block[:size]
	return nil
}

func (l *lzopReader) unpack(packed, block []byte) error {
	if err := l.fill(packed); err != nil {
		return err
	}
	if len(packed) == len(block) { // stored as it was
		copy(block, packed)
		return nil
	}
	n, err := lzo.Decompress(packed, block)
	if err == nil && n < len(block) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (l *lzopReader) number() (uint32, error) {
	var b [4]byte
	err := l.fill(b[:])
	return binary.BigEndian.Uint32(b[:]), err
}

// fill reads all of b. Only next knows where the end may be.
func (l *lzopReader) fill(b []byte) error {
	_, err := io.ReadFull(l.in, b)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
