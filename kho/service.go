// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/fdbridge/fdbridge/internal/fd"
)

const (
	servicePrefix = IndexSession + "/"

	labelFormat = "fdbridge.service"

	// maxService is how long the name of a service's session can be. Kernels
	// before 7.2 tell it in the link of its descriptor alone, which has room for
	// 63 bytes (dynamic_dname in fs/d_path.c), 25 of which stand before it.
	maxService = 38
)

// Service is a session that a service preserves files in by itself. An index lists
// those that are carried; by itself it is the label of one that is open.
type Service struct {
	Unit     string // whose it is
	Name     string // what the unit calls it: see CheckServiceName
	Session  string // what the kernel calls it: see ServiceSession
	Identity Identity
	Unknown  []Member
}

// NewService returns the session of unit called name.
func NewService(unit, name string, identity Identity) Service {
	return Service{Unit: unit, Name: name, Session: ServiceSession(unit, name), Identity: identity}
}

// ServiceSession returns the name in the kernel of the session that unit calls
// name: "fdbridge/UNIT/NAME". One that would be longer than the 38 bytes that every
// kernel shows is cut and ends in "~" and the first 16 hexadecimal digits of the
// SHA-256 of "UNIT/NAME", and so does one with a "~" in it, cut or not. No unit
// has a "/" in its name, so that no two sessions share one, and none of them is
// that of a unit's store: see SessionName.
func ServiceSession(unit, name string) string {
	full := unit + "/" + name
	session := servicePrefix + full
	if len(session) <= maxService && !strings.Contains(name, "~") {
		return session
	}
	sum := sha256.Sum256([]byte(full))
	return session[:min(len(session), maxService-1-hashDigits)] + "~" + hex.EncodeToString(sum[:])[:hashDigits]
}

// IsServiceSession reports whether a session of this name is a service's, made by
// fdbridge.
func IsServiceSession(name string) bool { return strings.HasPrefix(name, servicePrefix) }

// ErrServiceName says that a service's session cannot be called so.
var ErrServiceName = errors.New("a session's name has 1 to 255 printable ASCII characters, and no colon or space among them")

// CheckServiceName returns ErrServiceName for a name that a service's session cannot
// have: one that systemd would take neither for an fd nor in LUOSession=
// (luo_session_name_is_valid of src/shared/luo-util.c, systemd 262), or an empty one.
func CheckServiceName(name string) error {
	if name == "" || strings.Contains(name, " ") || checkName(name) != nil {
		return fmt.Errorf("%.300q: %w", name, ErrServiceName)
	}
	return nil
}

// ReadService reads a label from f as ReadIndex does an index, with the same errors.
func ReadService(f *fd.FD) (*Service, error) {
	s := &Service{}
	if err := readMemfd(f, s, labelFormat); err != nil {
		return nil, fmt.Errorf("read the label of a session: %w", err)
	}
	return s, nil
}

// Memfd returns the label in a memfd as Index.Memfd does an index.
func (s *Service) Memfd() (*fd.FD, error) {
	f, err := writeMemfd(s, labelFormat)
	if err != nil {
		return nil, fmt.Errorf("write the label of session %s: %w", s.Session, err)
	}
	return f, nil
}

func (s *Service) fields() []field {
	return []field{
		req("unit", (*text)(&s.Unit)),
		req("name", (*text)(&s.Name)),
		req("session", (*text)(&s.Session)),
		req("identity", nested{&s.Identity}),
	}
}

func (s *Service) unknown() *[]Member { return &s.Unknown }

func (s *Service) validate() error {
	if err := errors.Join(checkUnit(s.Unit), CheckServiceName(s.Name)); err != nil {
		return err
	}
	if want := ServiceSession(s.Unit, s.Name); s.Session != want {
		return fmt.Errorf("the session %q of %s is %.64q, not %q", s.Name, s.Unit, s.Session, want)
	}
	return nil
}
