// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/fdbridge/fdbridge/internal/fd"
)

// ManifestToken is the token of the manifest in its session.
const ManifestToken = 0

const manifestFormat = "fdbridge.manifest"

// Kind says how an entry travels. There are more kinds to come, so that nobody may
// assume that an entry has a token.
type Kind string

const (
	// KindLUO is an entry that the kernel carries in the session; it has a token.
	KindLUO Kind = "luo"
	// KindLost is an entry that is not carried; it has a reason and no token.
	KindLost Kind = "lost"
)

// Manifest says what is in a session and whose it is.
type Manifest struct {
	Unit     string
	Identity Identity
	Origin   Origin
	Entries  []Entry // in the order of PID 1's store, as its dump lists it
	Unknown  []Member
}

// Identity is what the unit was when its store was captured.
type Identity struct {
	Fragment string // path of the unit file; empty for a transient unit's
	User     string // as User= has it; empty when not set
	Group    string // as Group= has it; empty when not set
	Unknown  []Member
}

// Entry is one fd of the store. What is zero is not written.
//
// The kernel carries a file once, and restores one open file of it. Entries that
// are the same file have the same Session and Token, whichever units they belong
// to; those that are the same open file have the same Open besides. An Open above
// 0 is to be opened anew from the restored file, with Flags and at Position.
type Entry struct {
	Name     string // as systemd allows it: see fdname_is_valid
	Kind     Kind
	Session  string // the session it is in; empty: the one that the manifest is in
	Token    uint64 // the number of the file in the session; 0: it has none
	Open     uint32 // which open file of that file it is; 0: the one that the kernel carries
	Type     string // what kind of file it is, in words: "memfd", "pipe"
	Size     int64  // in bytes
	Position int64  // of the open file, in bytes
	Seals    Seals
	Flags    uint32 // of the open file, as fcntl(F_GETFL) returns them
	Mode     uint32 // as stat(2) has it, with the type of the file; 0: not known, and its owner neither
	UID, GID uint32 // whose the file is, as stat(2) has it
	Reason   string // why it is lost
	Unknown  []Member
}

// SessionOf returns the session that the entry's file is in, when its manifest is
// in the one named.
func (e *Entry) SessionOf(manifest string) string { return cmp.Or(e.Session, manifest) }

// ParseManifest reads a manifest from data. Its errors answer errors.Is for
// ErrFormat, ErrVersion and ErrTooLarge.
func ParseManifest(data []byte) (*Manifest, error) {
	m := &Manifest{}
	if err := parse(data, m, manifestFormat); err != nil {
		return nil, fmt.Errorf("parse manifest: %w", err)
	}
	return m, nil
}

// ReadManifest reads the manifest of unit from f, which may be unsealed (kernels before
// 7.1 do not carry seals), and leaves f's position alone. f stays the caller's. Its errors
// answer errors.Is for ErrFormat, ErrVersion, ErrTooLarge and, when it is that of another
// unit, ErrUnit, or are the system's.
func ReadManifest(f *fd.FD, unit string) (*Manifest, error) {
	m := &Manifest{}
	err := readMemfd(f, m, manifestFormat)
	if err == nil && m.Unit != unit {
		err = fmt.Errorf("%w: it says %q, not %q", ErrUnit, m.Unit, unit)
	}
	if err != nil {
		return nil, fmt.Errorf("read manifest of %s: %w", unit, err)
	}
	return m, nil
}

// Equal tells whether both say the same of a unit and its entries, but for what is Unknown.
func (m *Manifest) Equal(o *Manifest) bool {
	a, b := &m.Identity, &o.Identity
	return m.Unit == o.Unit && a.Fragment == b.Fragment && a.User == b.User && a.Group == b.Group &&
		slices.EqualFunc(m.Entries, o.Entries, func(a, b Entry) bool { return a.equal(&b) })
}

func (e *Entry) equal(o *Entry) bool {
	return e.Name == o.Name && e.Kind == o.Kind && e.Session == o.Session && e.Token == o.Token && e.Open == o.Open &&
		e.Type == o.Type && e.Size == o.Size && e.Position == o.Position && e.Seals == o.Seals && e.Flags == o.Flags &&
		e.Mode == o.Mode && e.UID == o.UID && e.GID == o.GID && e.Reason == o.Reason
}

// Encode returns the manifest as JSON. It refuses, with ErrFormat or ErrTooLarge,
// what a reader would refuse. Text that is not UTF-8 comes out with U+FFFD.
func (m *Manifest) Encode() ([]byte, error) {
	data, err := encode(m, manifestFormat)
	if err != nil {
		return nil, fmt.Errorf("write manifest of %s: %w", m.Unit, err)
	}
	return data, nil
}

// Memfd returns the encoded manifest in a memfd, close-on-exec and fully sealed,
// with its position at the start. The caller owns it. Errors are those of Encode
// and the system's.
func (m *Manifest) Memfd() (*fd.FD, error) {
	f, err := writeMemfd(m, manifestFormat)
	if err != nil {
		return nil, fmt.Errorf("write manifest of %s: %w", m.Unit, err)
	}
	return f, nil
}

func (m *Manifest) fields() []field {
	return []field{
		req("unit", (*text)(&m.Unit)),
		req("identity", nested{&m.Identity}),
		req("origin", nested{&m.Origin}),
		req("entries", list[Entry, *Entry]{&m.Entries}),
	}
}

func (m *Manifest) unknown() *[]Member { return &m.Unknown }

func (m *Manifest) validate() error {
	if err := errors.Join(checkUnit(m.Unit), m.Origin.validate()); err != nil {
		return err
	}
	for i := range m.Entries {
		if err := m.Entries[i].validate(); err != nil {
			return fmt.Errorf("entry %d, %.255q: %w", i, m.Entries[i].Name, err)
		}
	}
	return nil
}

func (i *Identity) fields() []field {
	return []field{
		opt("fragment", (*text)(&i.Fragment)),
		opt("user", (*text)(&i.User)),
		opt("group", (*text)(&i.Group)),
	}
}

func (i *Identity) unknown() *[]Member { return &i.Unknown }

func (e *Entry) fields() []field {
	return []field{
		req("name", (*text)(&e.Name)),
		req("kind", (*text)(&e.Kind)),
		opt("session", (*text)(&e.Session)),
		opt("token", token{num(&e.Token)}),
		opt("open", num(&e.Open)),
		req("type", (*text)(&e.Type)),
		opt("size", num(&e.Size)),
		opt("position", num(&e.Position)),
		opt("seals", (*sealNames)(&e.Seals)),
		opt("flags", num(&e.Flags)),
		opt("mode", num(&e.Mode)),
		opt("uid", num(&e.UID)),
		opt("gid", num(&e.GID)),
		opt("reason", (*text)(&e.Reason)),
	}
}

func (e *Entry) unknown() *[]Member { return &e.Unknown }

func (e *Entry) validate() error {
	switch {
	case e.Kind == "":
		return errors.New("it has no kind")
	case e.Kind == KindLUO && e.Token == 0:
		return errors.New("it is carried by the kernel but has no token")
	case e.Kind == KindLost && e.Token != 0:
		return fmt.Errorf("it is lost but has token %d", e.Token)
	case e.Session != "" && !isUnitSession(e.Session):
		return fmt.Errorf("%.64q is not the name of a unit's session", e.Session)
	case e.Kind == KindLost && e.Reason == "":
		return errors.New("it is lost but has no reason")
	case e.Size < 0 || e.Position < 0:
		return fmt.Errorf("size %d or position %d is below zero", e.Size, e.Position)
	}
	return checkName(e.Name)
}
