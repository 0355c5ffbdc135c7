// SPDX-License-Identifier: Apache-2.0

package bulk

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/godbus/dbus/v5"

	"github.com/fdbridge/fdbridge/units/bulk/bulktest"
)

// questions are the calls that units.Reader makes, as far as their answers go;
// each counts the elements and the bytes of text that it reads.
func questions(read *int) []Call {
	text := func(r *Reader) { *read += len(r.Text()) }
	return []Call{
		{Signature: "a(suuutuusu)", Read: func(r *Reader) { r.Structs(func() { *read++; readEntry(r, text) }) }},
		{Signature: "a(ssssssouso)", Read: func(r *Reader) {
			r.Structs(func() {
				*read++
				for range 7 {
					text(r)
				}
				r.Uint32()
				text(r)
				text(r)
			})
		}},
		{Signature: "v", Read: func(r *Reader) { r.Variant("s"); text(r) }},
		{Signature: "v", Read: func(r *Reader) { r.Variant("u"); r.Uint32() }},
	}
}

func readEntry(r *Reader, text func(*Reader)) {
	text(r)
	for range 3 {
		r.Uint32()
	}
	r.Uint64()
	r.Uint32()
	r.Uint32()
	text(r)
	r.Uint32()
}

type entry struct {
	Name               string
	Mode, Major, Minor uint32
	Ino                uint64
	Rmajor, Rminor     uint32
	Path               string
	Flags              uint32
}

// dump is the answer to the question for a store with n fds.
func dump(t testing.TB, n int) []byte {
	entries := make([]entry, n)
	for i := range entries {
		entries[i] = entry{"connection", 0o140777, 0, 8, 1e6 + uint64(i), 0, 0, "socket:[1234567]", 2}
	}
	return bulktest.Encode(t, bulktest.Return(&dbus.Message{}, entries), binary.LittleEndian)
}

// FuzzReceive takes what it is given for all that PID 1 sends.
func FuzzReceive(f *testing.F) {
	call := &dbus.Message{}
	f.Add(dump(f, 0))
	f.Add(dump(f, 2))
	for _, m := range []*dbus.Message{
		bulktest.Return(call, dbus.MakeVariant("yes")), bulktest.Return(call, dbus.MakeVariant(uint32(1))),
		bulktest.Fail(call, "a.b", "c"), bulktest.Fail(call, "a.b"), bulktest.Signal("UnitNew", "a.service"),
		bulktest.Raw(call, "a(ssssssouso)", []byte("\x10\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00a\x00\x00\x00")),
	} {
		f.Add(bulktest.Encode(f, m, binary.LittleEndian))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		c := &Conn{in: bufio.NewReader(bytes.NewReader(stream))}
		for taken := 0; ; {
			m, err := c.receive()
			if err != nil {
				return
			}
			if taken += fixedPart + len(m.body); taken > len(stream) {
				t.Fatalf("%d bytes were made of %d", taken, len(stream))
			}
			read := 0
			for _, call := range questions(&read) {
				read = 0
				if _ = m.answer(&call); read > len(m.body) {
					t.Fatalf("%d texts and elements were read from %d bytes", read, len(m.body))
				}
			}
		}
	})
}

// BenchmarkDump reads the answer that costs most: a store of 1,000 fds.
func BenchmarkDump(b *testing.B) {
	stream := dump(b, 1000)
	b.SetBytes(int64(len(stream)))
	b.ReportAllocs()
	for b.Loop() {
		c := &Conn{in: bufio.NewReader(bytes.NewReader(stream))}
		m, err := c.receive()
		if err != nil {
			b.Fatal(err)
		}
		read := 0
		if err := m.answer(&questions(&read)[0]); err != nil || read < 1000 {
			b.Fatalf("%d read: %v", read, err)
		}
	}
}
