// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
)

// The fields of the setup header that lead to the compressed kernel, from
// Documentation/arch/x86/boot.rst (Linux 7.2). All numbers are little-endian.
const (
	setupSectors  = 0x1f1 // u8: sectors of real-mode code after the first
	setupMagic    = 0x202 // "HdrS"
	setupProtocol = 0x206 // u16: 0x0208 from version 2.08 on
	setupPayload  = 0x248 // u32: offset into the protected-mode code
	setupLength   = 0x24c // u32: length of the payload
	setupInitSize = 0x260 // u32: memory to load into, from version 2.10 on
	setupEnd      = 0x264

	protocolPayload  = 0x0208
	protocolInitSize = 0x020a
	sectorSize       = 512
)

func isBzImage(img *io.SectionReader) (bool, error) {
	if img.Size() < setupEnd {
		return false, nil
	}
	magic, err := bytesAt(img, setupMagic, 4)
	return string(magic) == "HdrS", err
}

func readBzImage(ctx context.Context, img *io.SectionReader) (*Kernel, error) {
	header, err := bytesAt(img, 0, setupEnd)
	if err != nil {
		return nil, err
	}
	protocol := binary.LittleEndian.Uint16(header[setupProtocol:])
	if protocol < protocolPayload {
		return nil, fmt.Errorf("%w: boot protocol %d.%02d is of before Linux 2.6.26",
			ErrNotKernel, protocol>>8, protocol&0xff)
	}
	sectors := int64(header[setupSectors])
	if sectors == 0 { // as boot.rst has it, for old boot loaders
		sectors = 4
	}
	offset := (sectors+1)*sectorSize + int64(binary.LittleEndian.Uint32(header[setupPayload:]))
	length := int64(binary.LittleEndian.Uint32(header[setupLength:]))
	if length > MaxKernel {
		return nil, fmt.Errorf("%w: a compressed kernel of %d bytes", ErrTooLarge, length)
	}
	payload, err := sectionAt(img, offset, length)
	if err != nil {
		return nil, err
	}
	unpacked, size, err := unpack(ctx, payload)
	if err != nil {
		return nil, err
	}
	kernel, err := inspect(&source{ctx: ctx, r: unpacked}, size)
	if err == nil && protocol >= protocolInitSize {
		kernel.Memory = int64(binary.LittleEndian.Uint32(header[setupInitSize:]))
	}
	return kernel, err
}
