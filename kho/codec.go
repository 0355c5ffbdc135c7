// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// encoding/json's own way from object to struct matches names without regard to
// case, lets a repeated name win silently and cannot keep unknown members without
// reading everything twice. So objects are walked here, in one pass, and
// encoding/json is left what is rare: strings with escapes and unknown values.

// Member is a member of a JSON object which this version does not know. It is
// kept so that it survives reading and writing. Members come from a reader;
// nobody else makes them.
type Member struct {
	Name  string
	Value json.RawMessage
}

// object is a Go type that stands for a JSON object.
type object interface {
	// fields lists the known members in the order in which they are written,
	// at most 64.
	fields() []field
	// unknown is where the others are kept.
	unknown() *[]Member
}

// field is one known member of an object: see req and opt.
type field struct {
	name     string
	value    value
	optional bool
	omit     bool
}

// req is a member that must be there.
func req(name string, v value) field { return field{name: name, value: v} }

// opt is a member that may be absent, and is where its value is zero.
func opt(name string, v interface {
	value
	zero() bool
}) field {
	return field{name: name, value: v, optional: true, omit: v.zero()}
}

// value is a member's value: see values.go.
type value interface {
	read(r *reader) error
	append(b []byte) []byte
}

// reader reads one JSON text. Each method starts at pos, skips white space and
// leaves pos behind what it read. At the end of data it is io.ErrUnexpectedEOF.
type reader struct {
	data []byte
	pos  int
}

// decode fills o, whose fields must be zero, from data: one JSON object and
// nothing behind it. The error says where in data it is.
func decode(data []byte, o object) error {
	r := &reader{data: data}
	err := r.object(o)
	if err == nil {
		if _, end := r.peek(); end == nil {
			err = errors.New("something stands behind the end")
		}
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("it is truncated after byte %d: %w", len(data), err)
	}
	if err != nil {
		return fmt.Errorf("at byte %d: %w", r.pos, err)
	}
	return nil
}

func (r *reader) object(o object) error {
	if err := r.expect('{'); err != nil {
		return err
	}
	fields, seen := o.fields(), uint64(0)
	err := r.members('}', func(int) error {
		name, err := r.text()
		if err == nil {
			err = r.expect(':')
		}
		if err != nil {
			return err
		}
		i := find(fields, name)
		if i < 0 {
			err = r.keep(name, o.unknown())
		} else if seen&(1<<i) != 0 {
			err = errors.New("it is there twice")
		} else {
			seen |= 1 << i
			err = fields[i].value.read(r)
		}
		if err != nil {
			return fmt.Errorf("%.40q: %w", name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return missing(fields, seen)
}

// missing returns an error when a field that must be there has no bit in seen.
func missing(fields []field, seen uint64) error {
	for i, f := range fields {
		if !f.optional && seen&(1<<i) == 0 {
			return fmt.Errorf("%q is missing", f.name)
		}
	}
	return nil
}

// array calls element for every element of an array, which must read it.
func (r *reader) array(element func() error) error {
	if err := r.expect('['); err != nil {
		return err
	}
	return r.members(']', func(i int) error {
		if err := element(); err != nil {
			return fmt.Errorf("number %d: %w", i, err)
		}
		return nil
	})
}

// members calls member for all that stands between commas until end.
func (r *reader) members(end byte, member func(i int) error) error {
	for i := 0; ; i++ {
		c, err := r.peek()
		if err != nil {
			return err
		}
		if c == end {
			break
		}
		if i > 0 {
			if err := r.expect(','); err != nil {
				return err
			}
		}
		if err := member(i); err != nil {
			return err
		}
	}
	return r.expect(end)
}

func find(fields []field, name string) int {
	for i := range fields {
		if fields[i].name == name {
			return i
		}
	}
	return -1
}

// keep adds the value of a member that is not known to members.
func (r *reader) keep(name string, members *[]Member) error {
	dec := json.NewDecoder(bytes.NewReader(r.data[r.pos:]))
	m := Member{Name: name}
	if err := dec.Decode(&m.Value); err == io.EOF {
		return io.ErrUnexpectedEOF
	} else if err != nil {
		return err
	}
	r.pos += int(dec.InputOffset())
	*members = append(*members, m)
	return nil
}

// peek returns the next byte that is not white space without reading it.
func (r *reader) peek() (byte, error) {
	for ; r.pos < len(r.data); r.pos++ {
		switch c := r.data[r.pos]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c, nil
		}
	}
	return 0, io.ErrUnexpectedEOF
}

func (r *reader) expect(want byte) error {
	c, err := r.peek()
	if err == nil && c != want {
		err = fmt.Errorf("%q where %q is due", c, want)
	}
	if err == nil {
		r.pos++
	}
	return err
}

func (r *reader) text() (string, error) {
	if err := r.expect('"'); err != nil {
		return "", err
	}
	start, plain := r.pos, true
	for i := start; i < len(r.data); i++ {
		switch c := r.data[i]; {
		case c == '"':
			r.pos = i + 1
			if plain {
				return string(r.data[start:i]), nil
			}
			var s string
			err := json.Unmarshal(r.data[start-1:i+1], &s)
			return s, err
		case c == '\\':
			plain = false
			i++
		case c < ' ' || c > '~':
			plain = false
		}
	}
	return "", io.ErrUnexpectedEOF
}

// number returns a whole number from 0 on.
func (r *reader) number() (uint64, error) {
	if _, err := r.peek(); err != nil {
		return 0, err
	}
	end := r.pos
	for end < len(r.data) && strings.IndexByte("0123456789+-.eE", r.data[end]) >= 0 {
		end++
	}
	digits := string(r.data[r.pos:end])
	if digits == "" {
		return 0, fmt.Errorf("%q where a number is due", r.data[r.pos])
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || digits != strconv.FormatUint(n, 10) {
		return 0, fmt.Errorf("%.40s is not a whole number from 0 on", digits)
	}
	r.pos = end
	return n, nil
}

func appendObject(b []byte, o object) []byte {
	b = append(b, '{')
	first := len(b)
	comma := func() {
		if len(b) > first {
			b = append(b, ',')
		}
	}
	for _, f := range o.fields() {
		if f.omit {
			continue
		}
		comma()
		b = append(append(append(b, '"'), f.name...), '"', ':') // no name of ours has what means more
		b = f.value.append(b)
	}
	for _, m := range *o.unknown() {
		comma()
		b = append(appendString(b, m.Name), ':')
		b = append(b, m.Value...)
	}
	return append(b, '}')
}

// appendString appends s as a JSON string. Like encoding/json it puts U+FFFD in
// the place of bytes that are not UTF-8.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			quoted, _ := json.Marshal(s) // a string cannot fail
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}
