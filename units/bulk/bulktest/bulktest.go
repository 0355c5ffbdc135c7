// SPDX-License-Identifier: Apache-2.0

// Package bulktest is the other side of package bulk in tests: a PID 1 that
// says what the test wants it to. It speaks D-Bus with godbus's coder, so that
// what bulk writes and reads is held against somebody else's reading of the
// specification.
package bulktest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
)

// Listen serves each connection to the socket that it returns with serve, in a
// goroutine of its own. The connection is closed when serve returns, or when
// the test ends, which waits for serve.
func Listen(t testing.TB, serve func(conn net.Conn)) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "private")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var (
		serving sync.WaitGroup
		mu      sync.Mutex
		conns   []net.Conn
	)
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // the test has ended
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			serving.Go(func() {
				defer conn.Close()
				serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		mu.Lock()
		for _, conn := range conns {
			_ = conn.Close() // may have been closed by its server
		}
		mu.Unlock()
		serving.Wait()
	})
	return socket
}

// Serve is Listen for connections that authenticate first, as whoever runs the
// test.
func Serve(t testing.TB, serve func(p *Peer)) (socket string) {
	t.Helper()
	return Listen(t, func(conn net.Conn) {
		p := &Peer{t: t, conn: conn, in: bufio.NewReader(conn)}
		if err := p.authenticate(); err != nil {
			t.Errorf("authenticate a client: %v", err)
			return
		}
		serve(p)
	})
}

// Peer is the server's end of one authenticated connection.
type Peer struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

func (p *Peer) authenticate() error {
	want := fmt.Sprintf("\x00AUTH EXTERNAL %x\r\nBEGIN\r\n", fmt.Append(nil, os.Getuid()))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(p.in, got); err != nil {
		return err
	}
	if string(got) != want {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	_, err := p.conn.Write([]byte("OK 0123456789abcdef0123456789abcdef\r\n"))
	return err
}

// Call returns the next call, or nil when the client has closed the
// connection. A call that is malformed fails the test.
func (p *Peer) Call() *dbus.Message {
	if _, err := p.in.Peek(1); err != nil {
		return nil
	}
	m, err := dbus.DecodeMessage(p.in)
	if err != nil {
		if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, net.ErrClosed) {
			p.t.Errorf("a malformed call: %v", err)
		}
		return nil
	}
	return m
}

// Calls returns the next n calls, fewer when the client closes the connection.
func (p *Peer) Calls(n int) (calls []*dbus.Message) {
	for range n {
		call := p.Call()
		if call == nil {
			break
		}
		calls = append(calls, call)
	}
	return calls
}

// Waiting tells whether more has come than was asked for so far.
func (p *Peer) Waiting() bool { return p.in.Buffered() > 0 }

// Send sends messages. That the client does not want them is no failure: what
// it says of them is for the test to judge.
func (p *Peer) Send(messages ...*dbus.Message) {
	for _, m := range messages {
		p.SendBytes(Encode(p.t, m, binary.LittleEndian))
	}
}

// SendBytes sends what need not be a message.
func (p *Peer) SendBytes(b []byte) { _, _ = p.conn.Write(b) }

// Encode returns m as it stands on the wire.
func Encode(t testing.TB, m *dbus.Message, order binary.ByteOrder) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := m.EncodeTo(&b, order); err != nil {
		t.Errorf("encode %v: %v", m, err)
	}
	return b.Bytes()
}

// Return is the answer to a call.
func Return(call *dbus.Message, body ...any) *dbus.Message {
	return message(dbus.TypeMethodReply, body, map[dbus.HeaderField]any{dbus.FieldReplySerial: call.Serial()})
}

// Fail is an error as the answer to a call.
func Fail(call *dbus.Message, name string, body ...any) *dbus.Message {
	return message(dbus.TypeError, body, map[dbus.HeaderField]any{
		dbus.FieldReplySerial: call.Serial(), dbus.FieldErrorName: name,
	})
}

// Raw is an answer whose body is not what its signature says.
func Raw(call *dbus.Message, signature string, body []byte) *dbus.Message {
	m := Return(call)
	for _, b := range body {
		m.Body = append(m.Body, b)
	}
	m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.ParseSignatureMust(signature))
	return m
}

// Signal is a signal of the service manager, from a sender.
func Signal(member string, body ...any) *dbus.Message {
	return message(dbus.TypeSignal, body, map[dbus.HeaderField]any{
		dbus.FieldPath:      dbus.ObjectPath("/org/freedesktop/systemd1"),
		dbus.FieldInterface: "org.freedesktop.systemd1.Manager",
		dbus.FieldMember:    member,
		dbus.FieldSender:    "org.freedesktop.systemd1",
	})
}

func message(kind dbus.Type, body []any, fields map[dbus.HeaderField]any) *dbus.Message {
	m := &dbus.Message{Type: kind, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{}}
	for field, value := range fields {
		m.Headers[field] = dbus.MakeVariant(value)
	}
	if len(body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
	}
	return m
}
