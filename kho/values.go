// SPDX-License-Identifier: Apache-2.0

package kho

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// text is a string. Bytes that are not UTF-8 read as U+FFFD.
type text string

func (t *text) read(r *reader) error {
	s, err := r.text()
	*t = text(s)
	return err
}

func (t *text) append(b []byte) []byte { return appendString(b, string(*t)) }
func (t *text) zero() bool             { return *t == "" }

// number is a whole number from 0 to T's greatest, written in digits only.
type number[T int | int64 | uint32 | uint64] struct{ p *T }

func num[T int | int64 | uint32 | uint64](p *T) number[T] { return number[T]{p} }

func (n number[T]) read(r *reader) error {
	u, err := r.number()
	if err != nil {
		return err
	}
	if T(u) < 0 || uint64(T(u)) != u {
		return fmt.Errorf("%d is too large", u)
	}
	*n.p = T(u)
	return nil
}

func (n number[T]) append(b []byte) []byte { return strconv.AppendUint(b, uint64(*n.p), 10) }
func (n number[T]) zero() bool             { return *n.p == 0 }

// token is the number of an fd in a session; 0, which is the manifest's, stands
// for none and is never written.
type token struct{ number[uint64] }

func (t token) read(r *reader) error {
	err := t.number.read(r)
	if err == nil && t.zero() {
		err = fmt.Errorf("%d is the token of the manifest itself", ManifestToken)
	}
	return err
}

// instant is a time, RFC 3339 and always UTC.
type instant struct{ p *time.Time }

func (i instant) read(r *reader) error {
	s, err := r.text()
	if err != nil {
		return err
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || !strings.HasSuffix(s, "Z") {
		return fmt.Errorf("%.40q is not a time as RFC 3339 has it, in UTC", s)
	}
	*i.p = t
	return nil
}

func (i instant) append(b []byte) []byte {
	return append(i.p.UTC().AppendFormat(append(b, '"'), time.RFC3339Nano), '"')
}

// micros is a duration in whole microseconds from 0 on.
type micros struct{ p *time.Duration }

func (m micros) read(r *reader) error {
	var us int64
	if err := num(&us).read(r); err != nil {
		return err
	}
	if us > math.MaxInt64/int64(time.Microsecond) {
		return fmt.Errorf("%d microseconds are too many", us)
	}
	*m.p = time.Duration(us) * time.Microsecond
	return nil
}

func (m micros) append(b []byte) []byte { return strconv.AppendInt(b, m.p.Microseconds(), 10) }

// texts is a list of strings.
type texts []string

func (t *texts) read(r *reader) error {
	return r.array(func() error {
		s, err := r.text()
		*t = append(*t, s)
		return err
	})
}

func (t *texts) append(b []byte) []byte {
	return appendList(b, len(*t), func(b []byte, i int) []byte { return appendString(b, (*t)[i]) })
}
func (t *texts) zero() bool { return len(*t) == 0 }

// sealNames is a set of seals, as a list of their names.
type sealNames Seals

func (s *sealNames) read(r *reader) error {
	return r.array(func() error {
		name, err := r.text()
		if err != nil {
			return err
		}
		bits, ok := sealBits(name)
		if !ok {
			return fmt.Errorf("%.40q is not the name of a seal", name)
		}
		*s |= sealNames(bits)
		return nil
	})
}

func (s *sealNames) append(b []byte) []byte {
	names := texts(Seals(*s).Names())
	return names.append(b)
}
func (s *sealNames) zero() bool { return *s == 0 }

// nested is an object within an object.
type nested struct{ object }

func (n nested) read(r *reader) error   { return r.object(n.object) }
func (n nested) append(b []byte) []byte { return appendObject(b, n.object) }

// list is a list of objects of type T, whose pointers are P.
type list[T any, P interface {
	*T
	object
}] struct{ p *[]T }

func (l list[T, P]) read(r *reader) error {
	return r.array(func() error {
		var element T
		err := r.object(P(&element))
		*l.p = append(*l.p, element)
		return err
	})
}

func (l list[T, P]) append(b []byte) []byte {
	return appendList(b, len(*l.p), func(b []byte, i int) []byte { return appendObject(b, P(&(*l.p)[i])) })
}
func (l list[T, P]) zero() bool { return len(*l.p) == 0 }

func appendList(b []byte, n int, element func(b []byte, i int) []byte) []byte {
	b = append(b, '[')
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		b = element(b, i)
	}
	return append(b, ']')
}
