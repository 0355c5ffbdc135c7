// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"regexp"
	"slices"
	"strings"

	"github.com/fdbridge/fdbridge/kho"
)

const (
	// scanWindow is how much of a kernel is looked at at a time, in bytes, and
	// scanReach how long the longest thing is that is looked for: an embedded
	// configuration, which has about 70 KiB in distributions' kernels.
	scanWindow = 4 << 20
	scanReach  = 1 << 20

	maxFormat = 64  // bytes of a format and its NUL
	maxBanner = 512 // bytes of a banner

	elfHeaderLen = 64
	bannerStart  = "Linux version "
)

// maxFormats is more formats than a kernel knows.
const maxFormats = 64

// formatString is a format, behind which there may be others that it includes.
const formatString = `((?:kho|luo|luo-session|luo-flb|memfd)-v[0-9]+(?:[;-][!-~]*)?)\x00`

// formatPattern knows a format that is a string of its own or a part of a struct,
// after a pointer: memfd_luo_handler of mm/memfd_luo.c (Linux 7.2) has it so.
var formatPattern = regexp.MustCompile(`^[^ -~]` + formatString)

// findings are what was found in a kernel. Of banner and configuration the first
// counts.
type findings struct {
	banner, release string
	formats         map[string]bool
	config          *kho.Fact[Config]
}

// inspect looks into the unpacked kernel of size bytes at r.
func inspect(r io.Reader, size int64) (*Kernel, error) {
	if size > MaxKernel {
		return nil, fmt.Errorf("%w: a kernel of %d bytes", ErrTooLarge, size)
	}
	in := bufio.NewReaderSize(io.LimitReader(r, size+1), scanWindow)
	header, err := in.Peek(elfHeaderLen)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if err := checkELF(header, size); err != nil {
		return nil, err
	}
	found := findings{formats: map[string]bool{}}
	n, err := found.scan(in)
	switch {
	case err != nil:
		return nil, err
	case len(found.formats) > maxFormats:
		return nil, fmt.Errorf("%w: it has more than %d formats", ErrDamaged, maxFormats)
	case n != size:
		return nil, fmt.Errorf("%w: the kernel in it should have %d bytes", ErrDamaged, size)
	case found.banner == "":
		return nil, fmt.Errorf("%w: it does not say %q", ErrNotKernel, bannerStart)
	}
	return found.kernel(), nil
}

// checkELF knows a vmlinux by its ELF header. At the end of the file is its table
// of sections.
func checkELF(header []byte, size int64) error {
	var h elf.Header64
	if len(header) < elfHeaderLen || string(header[:4]) != elf.ELFMAG {
		return fmt.Errorf("%w: neither bzImage nor unified kernel image nor ELF file", ErrNotKernel)
	}
	if _, err := binary.Decode(header, binary.LittleEndian, &h); err != nil {
		return err
	}
	if elf.Class(h.Ident[elf.EI_CLASS]) != elf.ELFCLASS64 || elf.Machine(h.Machine) != elf.EM_X86_64 {
		return fmt.Errorf("%w: an ELF file for another processor", ErrNotKernel)
	}
	if table := uint64(h.Shnum) * uint64(h.Shentsize); h.Shoff > uint64(size) || table > uint64(size)-h.Shoff {
		return fmt.Errorf("%w: it has %d bytes, and a table of sections at %d", ErrTruncated, size, h.Shoff)
	}
	return nil
}

// scan looks at what in has, and returns how much that was.
func (f *findings) scan(in *bufio.Reader) (int64, error) {
	for n := int64(0); ; n += scanWindow - scanReach {
		window, err := in.Peek(scanWindow)
		switch err {
		case nil:
			f.look(window, scanWindow-scanReach)
		case io.EOF:
			f.look(window, len(window))
			return n + int64(len(window)), nil
		default:
			return n, err
		}
		if _, err := in.Discard(scanWindow - scanReach); err != nil {
			return n, err
		}
	}
}

// look finds what starts at the bytes 1 to n of a window: byte 0 tells what is
// before byte 1, and the window before has seen it.
func (f *findings) look(window []byte, n int) {
	for _, part := range Parts() {
		for at := range occurrences(window, n, string(part)+"-") {
			format := formatPattern.FindSubmatch(window[at-1 : min(len(window), at+maxFormat)])
			if format != nil && len(f.formats) <= maxFormats {
				f.formats[string(format[1])] = true
			}
		}
	}
	for at := range occurrences(window, n, bannerStart) {
		if f.banner != "" {
			break
		}
		f.banner, f.release = bannerAt(window[at:min(len(window), at+maxBanner)])
	}
	for at := range occurrences(window, n, configStart+gzipMagic) {
		if f.config == nil {
			f.config = embeddedConfig(window[at+len(configStart):])
		}
	}
}

// bannerAt returns the banner at the beginning of b and the release in it; nothing
// if that is no banner, or the one without a number of the build after "#": the
// linker makes a kernel with that first, and leaves it in (init/version.c, Linux
// 7.2).
func bannerAt(b []byte) (banner, release string) {
	line, _, whole := strings.Cut(string(b), "\n\x00")
	if !whole || strings.ContainsAny(line, "\n\x00") {
		return "", ""
	}
	release, builder, _ := strings.Cut(line[len(bannerStart):], " (")
	_, build, _ := strings.Cut(builder, ") #")
	if release == "" || strings.ContainsAny(release, " %") || build == "" || build[0] == ' ' {
		return "", ""
	}
	return line, release
}

// occurrences yields where in a window what is, from byte 1 to byte n.
func occurrences(window []byte, n int, what string) iter.Seq[int] {
	return func(yield func(int) bool) {
		end := min(len(window), n+len(what))
		for at := 1; at < end; at++ {
			i := bytes.Index(window[at:end], []byte(what))
			if i < 0 || !yield(at+i) {
				return
			}
			at += i
		}
	}
}

func (f *findings) kernel() *Kernel {
	k := &Kernel{Release: f.release, Banner: f.banner, Formats: map[Part]kho.Fact[[]string]{}}
	k.Config.Why = "no configuration is embedded: it was built without CONFIG_IKCONFIG=y"
	if f.config != nil {
		k.Config = *f.config
	}
	for _, part := range Parts() {
		fact := kho.Fact[[]string]{Known: true, Source: SourceImage}
		for format := range f.formats {
			if partOf(format) == part {
				fact.Value = append(fact.Value, format)
			}
		}
		slices.Sort(fact.Value)
		k.Formats[part] = fact
	}
	return k
}
