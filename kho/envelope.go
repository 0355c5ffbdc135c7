// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
)

// What a reader refuses. The text of an error says more.
var (
	// ErrFormat is for what is not JSON, is truncated, is of another format or
	// contradicts itself.
	ErrFormat = errors.New("damaged, or not in fdbridge's format")
	// ErrVersion is for a version of the format that this fdbridge cannot read.
	ErrVersion = errors.New("of a version that this fdbridge cannot read")
	// ErrUnit is for a manifest that belongs to another unit.
	ErrUnit = errors.New("manifest of another unit")
	// ErrTooLarge is for a manifest or index of more than MaxManifest bytes.
	ErrTooLarge = errors.New("too large")
)

// MaxManifest is the greatest size in bytes of a manifest or an index. An entry
// takes about 150 bytes, so it is far from what a unit can store, and bounds what
// a damaged session can make a reader allocate.
const MaxManifest = 16 << 20

// usual is the size in bytes up to which a manifest is written without making more room.
const usual = 4 << 10

// formatVersion is the version of both formats.
const formatVersion = 1

// maxName is the greatest length in bytes of an entry's and of a unit's name:
// FDNAME_MAX of src/basic/fd-util.h and UNIT_NAME_MAX less the NUL of
// src/basic/unit-name.h (systemd 257).
const maxName = 255

// document is the body of a file of ours.
type document interface {
	object
	// validate is asked on both ways, so that what is written can be read.
	validate() error
}

// envelope is what manifest and index have in common: the members in front.
type envelope struct {
	document
	format  string
	version int
}

func (e *envelope) fields() []field {
	return append([]field{
		req("format", (*text)(&e.format)),
		req("version", num(&e.version)),
	}, e.document.fields()...)
}

// encode returns d as a file of the given format.
func encode(d document, format string) ([]byte, error) {
	if err := d.validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	data := append(appendObject(make([]byte, 0, usual), &envelope{d, format, formatVersion}), '\n')
	return data, checkSize(int64(len(data)))
}

// parse fills d, which must be zero, from a file of the given format.
func parse(data []byte, d document, format string) error {
	if err := checkSize(int64(len(data))); err != nil {
		return err
	}
	found := envelope{document: d}
	err := decode(data, &found)
	if err != nil {
		// A later version may well look damaged to this one.
		found.format, found.version = probe(data, format)
	}
	switch {
	case found.format != format:
		return fmt.Errorf("%w: its format is %.40q, not %q", ErrFormat, found.format, format)
	case found.version != formatVersion:
		return fmt.Errorf("%w: it is version %d of %s, readable is %d",
			ErrVersion, found.version, format, formatVersion)
	case err == nil:
		err = d.validate()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return nil
}

// probe returns format and version of what could not be read as a whole, and those
// that were expected where even that cannot be told.
func probe(data []byte, format string) (string, int) {
	var head struct {
		Format  *string
		Version *int
	}
	if json.Unmarshal(data, &head) != nil || head.Format == nil || head.Version == nil {
		return format, formatVersion
	}
	return *head.Format, *head.Version
}

func checkSize(size int64) error {
	if size > MaxManifest {
		return fmt.Errorf("%w: %d bytes, allowed are %d", ErrTooLarge, size, MaxManifest)
	}
	return nil
}

// Origin says where a manifest or an index was written.
type Origin struct {
	BootID  string    // the boot id of the kernel that wrote it
	Kernel  string    // that kernel's release, as uname -r prints it
	Time    time.Time // when; in UTC
	Unknown []Member
}

// ReadOrigin returns the origin of what is written now on the machine whose file
// system is root (os.DirFS("/")): boot id and kernel release from
// /proc/sys/kernel. It fails when one of them cannot be read.
func ReadOrigin(root fs.FS, now time.Time) (Origin, error) {
	bootID, err := fs.ReadFile(root, "proc/sys/kernel/random/boot_id")
	if err != nil {
		return Origin{}, fmt.Errorf("read boot id: %w", err)
	}
	release, err := fs.ReadFile(root, "proc/sys/kernel/osrelease")
	if err != nil {
		return Origin{}, fmt.Errorf("read kernel release: %w", err)
	}
	return Origin{
		BootID: strings.TrimSpace(string(bootID)),
		Kernel: strings.TrimSpace(string(release)),
		Time:   now.UTC(),
	}, nil
}

func (o *Origin) fields() []field {
	return []field{
		req("boot_id", (*text)(&o.BootID)),
		req("kernel", (*text)(&o.Kernel)),
		req("time", instant{&o.Time}),
	}
}

func (o *Origin) unknown() *[]Member { return &o.Unknown }

func (o *Origin) validate() error {
	if year := o.Time.UTC().Year(); year < 0 || year > 9999 {
		return fmt.Errorf("the origin's time is in the year %d, which RFC 3339 cannot say", year)
	}
	return nil
}

// checkUnit checks a unit's name as unit_name_is_valid of src/basic/unit-name.c
// (systemd 257) does, but for the list of suffixes, which may grow.
func checkUnit(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("a unit name of %d bytes; 1 to %d are possible", len(name), maxName)
	}
	for i := range len(name) {
		c := name[i]
		letter := c|0x20 >= 'a' && c|0x20 <= 'z'
		if !letter && (c < '0' || c > '9') && !strings.ContainsRune(`:-_.\@`, rune(c)) {
			return fmt.Errorf("unit name %q has a character that systemd does not allow", name)
		}
	}
	return nil
}

// checkName checks an entry's name as fdname_is_valid of src/basic/fd-util.c
// (systemd 257) does; the empty name is valid.
func checkName(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("a name of %d bytes; up to %d are possible", len(name), maxName)
	}
	for i := range len(name) {
		if c := name[i]; c < ' ' || c > '~' || c == ':' {
			return fmt.Errorf("name %q has a character that systemd does not allow", name)
		}
	}
	return nil
}
