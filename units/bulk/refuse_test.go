// SPDX-License-Identifier: Apache-2.0

package bulk_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/units/bulk"
	"github.com/fdbridge/fdbridge/units/bulk/bulktest"
)

// body puts together what a message holds, without any padding.
func body(values ...any) (b []byte) {
	for _, v := range values {
		switch v := v.(type) {
		case string:
			b = append(b, v...)
		case int:
			b = binary.LittleEndian.AppendUint32(b, uint32(v))
		}
	}
	return b
}

func TestAMalformedAnswerIsTheErrorOfItsCallAlone(t *testing.T) {
	readPairs := func(r *bulk.Reader) any { r.Structs(func() { r.Uint32(); r.Uint32() }); return nil }
	for name, test := range map[string]struct {
		signature string // that is asked for
		read      func(*bulk.Reader) any
		answered  string
		body      []byte
	}{
		"another signature":              {"s", readText, "u", body(1)},
		"an object path":                 {"s", readText, "o", body(5, "short\x00")},
		"no signature":                   {"s", readText, "", nil},
		"no body":                        {"s", readText, "s", nil},
		"a text that ends early":         {"s", readText, "s", body(6, "short")},
		"a text without its NUL":         {"s", readText, "s", body(5, "short")},
		"a text of 4 GiB":                {"s", readText, "s", body(-1, "short\x00")},
		"more than a text":               {"s", readText, "s", body(5, "short\x00\x00")},
		"a variant of another type":      {"v", readVariantUint32, "v", body("\x01i\x00\x00", 0)},
		"a variant of no type":           {"v", readVariantUint32, "v", nil},
		"a variant without its value":    {"v", readVariantUint32, "v", body("\x01u\x00")},
		"a variant whose type ends":      {"v", readVariantUint32, "v", body("\x05u")},
		"an array without its padding":   {"a(uu)", readPairs, "a(uu)", body(0)},
		"an array longer than the body":  {"a(uu)", readPairs, "a(uu)", body(16, 0, 1, 2)},
		"an array of 4 GiB":              {"a(uu)", readPairs, "a(uu)", body(-1, 0, 1, 2)},
		"an array shorter than the body": {"a(uu)", readPairs, "a(uu)", body(8, 0, 1, 2, 3, 4)},
		"an array that cuts an element":  {"a(uu)", readPairs, "a(uu)", body(12, 0, 1, 2, 3, 4)},
		"an array of which none is read": {"a(uu)", func(r *bulk.Reader) any { r.Structs(func() {}); return nil },
			"a(uu)", body(8, 0, 1, 2)},
		"entries that end early": {"a(suuutuusu)", readEntries, "a(suuutuusu)", body(16, 0, 3, "abc\x00", 1, 2)},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, conn := dial(t, func(p *bulktest.Peer) {
				calls := p.Calls(2)
				p.Send(bulktest.Raw(calls[0], test.answered, test.body), bulktest.Return(calls[1], "fine"))
				p.Send(bulktest.Return(p.Call(), "still fine"))
			})
			var next, later string
			calls := []bulk.Call{
				{Path: "/a", Interface: "a.b", Member: "C", Signature: test.signature, Read: func(r *bulk.Reader) { test.read(r) }},
				text(&next),
			}
			if err := conn.Do(ctx, calls, nil); err != nil {
				t.Fatalf("the connection: %v", err)
			}
			if !errors.Is(calls[0].Err, bulk.ErrProtocol) {
				t.Errorf("the call: %v, want ErrProtocol", calls[0].Err)
			}
			if calls[1].Err != nil || next != "fine" {
				t.Errorf("the call after it: %q, %v", next, calls[1].Err)
			}
			calls = []bulk.Call{text(&later)}
			if err := errors.Join(conn.Do(ctx, calls, nil), calls[0].Err); err != nil || later != "still fine" {
				t.Errorf("a call later: %q, %v", later, err)
			}
		})
	}
}

// patched is a good answer to call, with bytes replaced.
func patched(t *testing.T, call *dbus.Message, at int, with ...byte) []byte {
	b := bulktest.Encode(t, bulktest.Return(call, "good"), binary.LittleEndian)
	copy(b[at:], with)
	return b
}

// answerWith is an answer without a body that has the header fields.
func answerWith(fields []byte) []byte {
	b := body("l\x02\x00\x01", 0, 7, len(fields), string(fields))
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	return b
}

func TestAMalformedMessageEndsTheConnection(t *testing.T) {
	for name, test := range map[string]struct {
		stream func(t *testing.T, call *dbus.Message) []byte
		want   error
	}{
		"big-endian": {func(t *testing.T, call *dbus.Message) []byte {
			return bulktest.Encode(t, bulktest.Return(call, "good"), binary.BigEndian)
		}, bulk.ErrProtocol},
		"the mark of big-endian": {func(t *testing.T, call *dbus.Message) []byte { return patched(t, call, 0, 'B') }, bulk.ErrProtocol},
		"another version":        {func(t *testing.T, call *dbus.Message) []byte { return patched(t, call, 3, 2) }, bulk.ErrProtocol},
		"a body of more than 64 MiB": {func(t *testing.T, call *dbus.Message) []byte {
			return patched(t, call, 4, 0, 0, 0, 4)
		}, bulk.ErrProtocol},
		"fields of 4 GiB": {func(t *testing.T, call *dbus.Message) []byte {
			return patched(t, call, 12, 0xff, 0xff, 0xff, 0xff)
		}, bulk.ErrProtocol},
		"fields that end early": {func(t *testing.T, call *dbus.Message) []byte {
			return answerWith(body("\x05\x01u\x00", int(call.Serial()), "\x07\x01s\x00", 100))
		}, bulk.ErrProtocol},
		"a field of a type that no field has": {func(t *testing.T, call *dbus.Message) []byte {
			return answerWith(body("\x05\x01u\x00", int(call.Serial()), "\x07\x01t\x00"))
		}, bulk.ErrProtocol},
		"an answer to no call": {func(t *testing.T, call *dbus.Message) []byte { return answerWith(nil) }, bulk.ErrProtocol},
		"an answer to a call before": {func(t *testing.T, call *dbus.Message) []byte {
			return answerWith(body("\x05\x01u\x00", int(call.Serial())-1))
		}, bulk.ErrProtocol},
		"an answer to a call to come": {func(t *testing.T, call *dbus.Message) []byte {
			return answerWith(body("\x05\x01u\x00", int(call.Serial())+2))
		}, bulk.ErrProtocol},
		"an answer that came before": {func(t *testing.T, call *dbus.Message) []byte {
			b := patched(t, call, 0)
			return append(b, b...)
		}, bulk.ErrProtocol},
		"nothing":             {func(t *testing.T, call *dbus.Message) []byte { return nil }, io.EOF},
		"an end in the fixed": {func(t *testing.T, call *dbus.Message) []byte { return patched(t, call, 0)[:7] }, io.ErrUnexpectedEOF},
		"an end in the rest": {func(t *testing.T, call *dbus.Message) []byte {
			b := patched(t, call, 0)
			return b[:len(b)-1]
		}, io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, conn := dial(t, func(p *bulktest.Peer) {
				p.Send(bulktest.Return(p.Call(), "fine")) // so that there is a call before
				calls := p.Calls(2)
				p.SendBytes(test.stream(t, calls[0]))
			})
			var a, b string
			calls := []bulk.Call{text(&a), text(&b)}
			if err := conn.Do(ctx, calls[:1], nil); err != nil {
				t.Fatal(err)
			}
			if err := conn.Do(ctx, calls, nil); !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			if err := conn.Do(ctx, calls, nil); !errors.Is(err, net.ErrClosed) {
				t.Errorf("a call later: %v, want ErrClosed", err)
			}
		})
	}
}

// A server that takes no more calls, and one that takes all and says nothing.
func TestDoEndsWithItsContext(t *testing.T) {
	cause := errors.New("no time left")
	for name, take := range map[string]int{"no answer": 2000, "not even read": 1} {
		t.Run(name, func(t *testing.T) {
			taken := make(chan struct{})
			_, conn := dial(t, func(p *bulktest.Peer) {
				p.Calls(min(take, 1))
				close(taken)
				if p.Calls(take - 1); take == 1 {
					<-t.Context().Done()
				}
			})
			ctx, end := context.WithCancelCause(t.Context())
			go func() { <-taken; end(cause) }()
			calls := make([]bulk.Call, 2000)
			for i := range calls {
				calls[i] = text(new(string), strings.Repeat("x", 1000))
			}
			if err := conn.Do(ctx, calls, nil); !errors.Is(err, cause) {
				t.Errorf("%v, want %v", err, cause)
			}
			if err := conn.Do(t.Context(), calls, nil); !errors.Is(err, net.ErrClosed) {
				t.Errorf("later: %v, want ErrClosed", err)
			}
		})
	}
}

// Whether the calls that are left are on their way or wait for room, nobody waits for them.
func TestDoEndsWithTheConnection(t *testing.T) {
	for name, take := range map[string]int{"not even read": 1, "no room": 1024} {
		t.Run(name, func(t *testing.T) {
			ctx, conn := dial(t, func(p *bulktest.Peer) {
				p.Calls(take)
				p.SendBytes(make([]byte, 16))
				<-t.Context().Done()
			})
			calls := make([]bulk.Call, 2000)
			for i := range calls {
				calls[i] = text(new(string), strings.Repeat("x", 1000))
			}
			if err := conn.Do(ctx, calls, nil); !errors.Is(err, bulk.ErrProtocol) || ctx.Err() != nil {
				t.Errorf("Do: %v; its context: %v", err, ctx.Err())
			}
		})
	}
}

// The context that ends when all is answered may have ended the connection too.
func TestDoWhoseContextHasEndedNeverSucceeds(t *testing.T) {
	cause := errors.New("no time left")
	_, conn := dial(t, func(p *bulktest.Peer) { p.Calls(1) })
	ctx, end := context.WithCancelCause(t.Context())
	end(cause)
	if err := conn.Do(ctx, nil, nil); !errors.Is(err, cause) {
		t.Errorf("%v, want %v", err, cause)
	}
}

func TestDialTakesNothingButOK(t *testing.T) {
	for name, test := range map[string]struct {
		says string
		want error
	}{
		"rejected":             {"REJECTED EXTERNAL\r\n", bulk.ErrProtocol},
		"error":                {"ERROR\r\n", bulk.ErrProtocol},
		"nothing":              {"", io.EOF},
		"a line cut":           {"OK 01234", io.EOF},
		"a line without end":   {"OK " + strings.Repeat("0", 1<<20), bufio.ErrBufferFull},
		"another line than OK": {"OKAY\r\n", bulk.ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, stop := context.WithTimeout(t.Context(), patience)
			defer stop()
			_, err := bulk.Dial(ctx, bulktest.Listen(t, func(conn net.Conn) {
				_, _ = conn.Read(make([]byte, 1024))
				_, _ = io.WriteString(conn, test.says) // the client may have had enough
			}))
			if !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
		})
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	cause := errors.New("no time left")
	ctx, end := context.WithCancelCause(t.Context())
	_, err := bulk.Dial(ctx, bulktest.Listen(t, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 1024))
		end(cause)
		_, _ = io.Copy(io.Discard, conn)
	}))
	if !errors.Is(err, cause) {
		t.Errorf("no answer: %v, want %v", err, cause)
	}
	if _, err := bulk.Dial(t.Context(), t.TempDir()+"/none"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no socket: %v, want ENOENT", err)
	}
}
