// SPDX-License-Identifier: Apache-2.0

package bulk

import (
	"encoding/binary"
	"fmt"
	"io"
)

// The kinds of messages, and the header fields that matter here.
const (
	kindCall   = 1
	kindReturn = 2
	kindError  = 3

	fieldPath        = 1
	fieldInterface   = 2
	fieldMember      = 3
	fieldErrorName   = 4
	fieldReplySerial = 5
	fieldDestination = 6
	fieldSignature   = 8
)

const (
	destination = "org.freedesktop.systemd1"
	// maxMessage bounds what is taken for a message: one unit's store of
	// 65,536 entries with long names has a quarter of it.
	maxMessage = 64 << 20
	fixedPart  = 16
)

// align pads to a multiple of n, a power of two.
func align(b []byte, n int) []byte {
	for len(b)&(n-1) != 0 {
		b = append(b, 0)
	}
	return b
}

func appendString(b []byte, s string) []byte {
	b = binary.LittleEndian.AppendUint32(align(b, 4), uint32(len(s)))
	return append(append(b, s...), 0)
}

func appendSignature(b []byte, s string) []byte {
	return append(append(append(b, byte(len(s))), s...), 0)
}

// encodeCall writes a method call into b from its beginning, as values are
// aligned from that of their message.
func encodeCall(b []byte, serial uint32, c *Call) []byte {
	b = append(b[:0], 'l', kindCall, 0, 1, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, serial)
	b = append(b, 0, 0, 0, 0)
	fields := len(b)
	signature := ""
	for _, arg := range c.Args {
		if _, list := arg.([]string); list {
			signature += "a"
		}
		signature += "s"
	}
	field := func(code byte, kind, value string) {
		b = appendSignature(append(align(b, 8), code), kind)
		if kind == "g" {
			b = appendSignature(b, value)
		} else {
			b = appendString(b, value)
		}
	}
	field(fieldPath, "o", c.Path)
	field(fieldInterface, "s", c.Interface)
	field(fieldMember, "s", c.Member)
	field(fieldDestination, "s", destination)
	field(fieldSignature, "g", signature)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(b)-fields))
	b = align(b, 8)
	body := len(b)
	for _, arg := range c.Args {
		b = appendArg(b, arg)
	}
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)-body))
	return b
}

func appendArg(b []byte, arg any) []byte {
	list, ok := arg.([]string)
	if !ok {
		return appendString(b, arg.(string))
	}
	b = append(align(b, 4), 0, 0, 0, 0)
	begin := len(b)
	for _, s := range list {
		b = appendString(b, s)
	}
	binary.LittleEndian.PutUint32(b[begin-4:], uint32(len(b)-begin))
	return b
}

// message is a message that was received.
type message struct {
	kind      byte
	replyTo   uint32
	errorName string
	signature string
	body      []byte
}

// receive reads one message.
func (c *Conn) receive() (*message, error) {
	var fixed [fixedPart]byte
	if _, err := io.ReadFull(c.in, fixed[:]); err != nil {
		return nil, err
	}
	if fixed[0] != 'l' || fixed[3] != 1 {
		return nil, fmt.Errorf("%w: byte order %q, version %d", ErrProtocol, fixed[0], fixed[3])
	}
	body := uint64(binary.LittleEndian.Uint32(fixed[4:]))
	fields := uint64(binary.LittleEndian.Uint32(fixed[12:]))
	padded := (fields + 7) &^ 7
	if padded+body > maxMessage {
		return nil, fmt.Errorf("%w: %d bytes", ErrProtocol, padded+body)
	}
	rest := make([]byte, padded+body)
	if _, err := io.ReadFull(c.in, rest); err != nil {
		return nil, err
	}
	m := &message{kind: fixed[1], body: rest[padded:]}
	return m, m.readFields(rest[:fields])
}

// readFields reads the header fields; they begin at a multiple of eight.
func (m *message) readFields(data []byte) error {
	r := &Reader{data: data}
	for r.err == nil && r.at < len(data) {
		r.align(8)
		code := r.byte()
		switch kind := r.signature(); kind {
		case "u":
			if n := r.Uint32(); code == fieldReplySerial {
				m.replyTo = n
			}
		case "s", "o":
			if s := r.Text(); code == fieldErrorName {
				m.errorName = s
			}
		case "g":
			if s := r.signature(); code == fieldSignature {
				m.signature = s
			}
		default:
			r.fail("a header field of type %q", kind)
		}
	}
	return r.err
}

// answer hands the message to the call that it answers.
func (m *message) answer(c *Call) error {
	r := &Reader{data: m.body}
	if m.kind == kindError {
		e := &Error{Name: m.errorName}
		if m.signature == "s" {
			e.Message = r.Text()
		}
		return e
	}
	if m.signature != c.Signature {
		return fmt.Errorf("%w: the answer has the signature %q, not %q", ErrProtocol, m.signature, c.Signature)
	}
	c.Read(r)
	if r.err == nil && r.at != len(r.data) {
		r.fail("%d bytes are left", len(r.data)-r.at)
	}
	return r.err
}
