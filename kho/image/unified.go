// SPDX-License-Identifier: Apache-2.0

package image

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Unified kernel images are PE files; the offsets are those of Microsoft's PE
// format. debug/pe would read symbols and relocations too, and as many as a hostile
// file says it has.
const (
	peOffset         = 0x3c // u32: where the PE header is
	peHeader         = 24   // bytes: "PE\0\0" and the COFF header
	peMachine        = 4    // u16
	peSectionCount   = 6    // u16
	peOptionalSize   = 20   // u16: bytes between header and section table
	peMachineAMD64   = 0x8664
	sectionEntry     = 40 // bytes: char name[8], then u32 each:
	sectionInMemory  = 8
	sectionInFile    = 16
	sectionFileStart = 20
)

// A bzImage has the PE header too.
func isUnified(img *io.SectionReader) (bool, error) {
	bz, err := isBzImage(img)
	if err != nil || bz {
		return false, err
	}
	magic, err := bytesAt(img, 0, 2)
	return string(magic) == "MZ", err
}

// unifiedSections returns the kernel and the command line that a unified kernel
// image boots when nobody chooses a profile. That is profile 0, whose sections go
// before those common to all profiles, and of two alike the first is taken
// (pe_locate_profile_sections in src/boot/pe.c, systemd 257).
func unifiedSections(img *io.SectionReader) (linux *io.SectionReader, cmdline string, err error) {
	table, err := sectionTable(img)
	if err != nil {
		return nil, "", err
	}
	common, profile := cutAtProfile(table)
	profile, _ = cutAtProfile(profile[min(len(profile), sectionEntry):])
	linux, err = section(img, ".linux", profile, common)
	if err != nil {
		return nil, "", err
	}
	if linux == nil {
		return nil, "", fmt.Errorf("%w: a PE file without a section .linux", ErrNotKernel)
	}
	text, err := section(img, ".cmdline", profile, common)
	if err != nil || text == nil {
		return linux, "", err
	}
	if text.Size() > maxCmdline {
		return nil, "", fmt.Errorf("%w: its command line has %d bytes", ErrTooLarge, text.Size())
	}
	b, err := bytesAt(text, 0, text.Size())
	return linux, strings.TrimRight(string(b), "\x00\n "), err
}

func sectionTable(img *io.SectionReader) ([]byte, error) {
	at, err := bytesAt(img, peOffset, 4)
	if err != nil {
		return nil, err
	}
	start := int64(binary.LittleEndian.Uint32(at))
	header, err := bytesAt(img, start, peHeader)
	if err != nil {
		return nil, err
	}
	if string(header[:4]) != "PE\x00\x00" || binary.LittleEndian.Uint16(header[peMachine:]) != peMachineAMD64 {
		return nil, fmt.Errorf("%w: a program for DOS, or for another processor", ErrNotKernel)
	}
	start += peHeader + int64(binary.LittleEndian.Uint16(header[peOptionalSize:]))
	return bytesAt(img, start, sectionEntry*int64(binary.LittleEndian.Uint16(header[peSectionCount:])))
}

// cutAtProfile cuts a section table before the first section that starts a
// profile.
func cutAtProfile(table []byte) (before, from []byte) {
	for at := 0; at < len(table); at += sectionEntry {
		if sectionName(table[at:]) == ".profile" {
			return table[:at], table[at:]
		}
	}
	return table, nil
}

// section returns what is in the first section of that name, without the padding
// after it; nil if no table has it.
func section(img *io.SectionReader, name string, tables ...[]byte) (*io.SectionReader, error) {
	for entry := range slices.Chunk(slices.Concat(tables...), sectionEntry) {
		if sectionName(entry) != name {
			continue
		}
		number := func(at int) int64 { return int64(binary.LittleEndian.Uint32(entry[at:])) }
		part, err := sectionAt(img, number(sectionFileStart), min(number(sectionInMemory), number(sectionInFile)))
		if err != nil {
			return nil, fmt.Errorf("section %s: %w", name, err)
		}
		return part, nil
	}
	return nil, nil
}

func sectionName(entry []byte) string {
	return strings.TrimRight(string(entry[:8]), "\x00")
}
