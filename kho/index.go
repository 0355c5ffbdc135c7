// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"errors"
	"fmt"
	"time"

	"github.com/fdbridge/fdbridge/internal/fd"
)

// IndexFormat is what an index has as its member "format".
const IndexFormat = "fdbridge.index"

// Index lists what was preserved, because the kernel cannot list its sessions.
type Index struct {
	Origin   Origin
	Duration time.Duration // how long preserve took; written in microseconds
	Units    []IndexUnit
	Services []Service // the services' own sessions
	// Messages are warnings of when it was preserved, a sentence each, which are in
	// no journal.
	Messages []string
	Unknown  []Member
}

// IndexUnit is what is carried for a unit under one manifest. A unit for which
// something was held still when its store was preserved has a second one, for
// what was held, behind that of the store.
type IndexUnit struct {
	Unit     string
	Sessions []string    // those its entries are in, its manifest's first; none when all is lost
	Token    uint64      // of its manifest in the first session
	Entries  int         // how many entries are carried
	Bytes    int64       // the sum of their sizes
	Lost     []LostEntry // those that are not carried
	Unknown  []Member
}

// LostEntry is an entry of kind lost in an index: see Entry.
type LostEntry struct {
	Name    string
	Type    string
	Reason  string
	Unknown []Member
}

// ParseIndex reads an index from data. Its errors answer errors.Is for ErrFormat,
// ErrVersion and ErrTooLarge.
func ParseIndex(data []byte) (*Index, error) {
	x := &Index{}
	if err := parse(data, x, IndexFormat); err != nil {
		return nil, fmt.Errorf("parse index: %w", err)
	}
	return x, nil
}

// ReadIndex reads the index from f as ReadManifest does a manifest. f stays the
// caller's. Its errors answer errors.Is for ErrFormat, ErrVersion and
// ErrTooLarge, or are the system's.
func ReadIndex(f *fd.FD) (*Index, error) {
	x := &Index{}
	if err := readMemfd(f, x, IndexFormat); err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	return x, nil
}

// Encode returns the index as JSON. It refuses, with ErrFormat or ErrTooLarge,
// what a reader would refuse. Text that is not UTF-8 comes out with U+FFFD.
func (x *Index) Encode() ([]byte, error) {
	data, err := encode(x, IndexFormat)
	if err != nil {
		return nil, fmt.Errorf("write index: %w", err)
	}
	return data, nil
}

// Total is what an index says of a unit in all.
type Total struct {
	Unit    string
	Entries int   // that are carried
	Bytes   int64 // the sum of their sizes
	Lost    int   // entries that are not carried
}

// Totals returns those of the units, each once, in the order of the index.
func (x *Index) Totals() []Total {
	var list []Total
	at := map[string]int{}
	for _, u := range x.Units {
		i, seen := at[u.Unit]
		if !seen {
			i = len(list)
			at[u.Unit] = i
			list = append(list, Total{Unit: u.Unit})
		}
		t := &list[i]
		t.Entries, t.Bytes, t.Lost = t.Entries+u.Entries, t.Bytes+u.Bytes, t.Lost+len(u.Lost)
	}
	return list
}

// Memfd returns the encoded index in a memfd, close-on-exec and fully sealed, with
// its position at the start. The caller owns it. Errors are those of Encode and
// the system's.
func (x *Index) Memfd() (*fd.FD, error) {
	f, err := writeMemfd(x, IndexFormat)
	if err != nil {
		return nil, fmt.Errorf("write index: %w", err)
	}
	return f, nil
}

func (x *Index) fields() []field {
	return []field{
		req("origin", nested{&x.Origin}),
		req("duration_us", micros{&x.Duration}),
		req("units", list[IndexUnit, *IndexUnit]{&x.Units}),
		opt("services", list[Service, *Service]{&x.Services}),
		opt("messages", (*texts)(&x.Messages)),
	}
}

func (x *Index) unknown() *[]Member { return &x.Unknown }

func (x *Index) validate() error {
	if err := x.Origin.validate(); err != nil {
		return err
	}
	if x.Duration < 0 {
		return fmt.Errorf("preserve took %v, which is below zero", x.Duration)
	}
	type place struct {
		session string
		token   uint64
	}
	manifests := map[place]string{}
	for i := range x.Units {
		u := &x.Units[i]
		if err := u.validate(); err != nil {
			return fmt.Errorf("unit %d, %.255q: %w", i, u.Unit, err)
		}
		if len(u.Sessions) == 0 {
			continue
		}
		at := place{u.Sessions[0], u.Token}
		if other, taken := manifests[at]; taken {
			return fmt.Errorf("token %d of session %s is the manifest of %s and of %s", at.token, at.session, other, u.Unit)
		}
		manifests[at] = u.Unit
	}
	return x.validateServices()
}

func (x *Index) validateServices() error {
	seen := map[string]bool{}
	for i := range x.Services {
		s := &x.Services[i]
		if err := s.validate(); err != nil {
			return fmt.Errorf("service %d, %.255q: %w", i, s.Unit, err)
		}
		if seen[s.Session] {
			return fmt.Errorf("session %s is there twice", s.Session)
		}
		seen[s.Session] = true
	}
	return nil
}

func (u *IndexUnit) fields() []field {
	return []field{
		req("unit", (*text)(&u.Unit)),
		opt("sessions", (*texts)(&u.Sessions)),
		opt("token", num(&u.Token)),
		opt("entries", num(&u.Entries)),
		opt("bytes", num(&u.Bytes)),
		opt("lost", list[LostEntry, *LostEntry]{&u.Lost}),
	}
}

func (u *IndexUnit) unknown() *[]Member { return &u.Unknown }

func (u *IndexUnit) validate() error {
	if err := checkUnit(u.Unit); err != nil {
		return err
	}
	if u.Entries < 0 || u.Bytes < 0 {
		return fmt.Errorf("%d entries or %d bytes are below zero", u.Entries, u.Bytes)
	}
	if u.Entries > 0 && len(u.Sessions) == 0 {
		return fmt.Errorf("%d entries are carried, but in no session", u.Entries)
	}
	for _, session := range u.Sessions {
		if !isUnitSession(session) {
			return fmt.Errorf("%.64q is not the name of a unit's session", session)
		}
	}
	for i := range u.Lost {
		if err := u.Lost[i].validate(); err != nil {
			return fmt.Errorf("lost entry %d, %.255q: %w", i, u.Lost[i].Name, err)
		}
	}
	return nil
}

func (l *LostEntry) fields() []field {
	return []field{
		req("name", (*text)(&l.Name)),
		req("type", (*text)(&l.Type)),
		req("reason", (*text)(&l.Reason)),
	}
}

func (l *LostEntry) unknown() *[]Member { return &l.Unknown }

func (l *LostEntry) validate() error {
	if l.Reason == "" {
		return errors.New("it has no reason")
	}
	return checkName(l.Name)
}
