// SPDX-License-Identifier: Apache-2.0

// Package bulk asks PID 1 many questions at a time, over its private socket
// and in D-Bus's own words.
//
// It is there for the one place where time counts: between the end of the
// services and the kexec, some thousand questions are asked and answered, and
// a general D-Bus library spends ten times as long on them as PID 1 itself. It
// can call methods and read the answers that fdbridge needs; signals, fds and
// everything else belong to godbus.
package bulk

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
)

// window is how many calls are on their way at a time. sd-bus keeps at most
// BUS_RQUEUE_MAX and BUS_WQUEUE_MAX messages of a connection, 384K each
// (src/libsystemd/sd-bus/bus-internal.h, systemd 257), and what is on its way
// is in memory on both sides.
const window = 1024

// piece is how many calls are written at a time. More follow before all others have been
// answered: PID 1 goes on with a shutdown as soon as it has nothing to answer.
const piece = 128

// ErrProtocol says that what came is not what D-Bus's specification allows, or
// not the kind of answer that was expected.
var ErrProtocol = errors.New("malformed D-Bus message")

// Call is one method call and what becomes of it.
type Call struct {
	Path, Interface, Member string
	// Args are the arguments: strings, and lists of strings.
	Args []any
	// Read reads the answer's body, whose signature must be Signature. It is
	// not called for an error, and what it reads past the end makes Err.
	Signature string
	Read      func(*Reader)
	// Err is the error that this call was answered with, an *Error, or what
	// is wrong with the answer.
	Err error
}

// Error is an error that the service manager answered with.
type Error struct{ Name, Message string }

// Error implements error.
func (e *Error) Error() string {
	if e.Message == "" {
		return e.Name
	}
	return e.Message
}

// Conn is a connection to PID 1. One goroutine at a time may use it.
type Conn struct {
	stream *stream
	in     *bufio.Reader
	ended  bool // it has failed
	serial uint32
	call   []byte // the call that is written last
	calls  []byte // those of one piece, one right behind the other
}

// Dial connects to the service manager's socket at path and authenticates as
// the user that this process runs as; PID 1 takes root only. It is bounded by
// ctx. The caller closes the Conn.
func Dial(ctx context.Context, path string) (*Conn, error) {
	stream, err := connect(ctx, path)
	if err != nil {
		return nil, err
	}
	c := &Conn{stream: stream, in: bufio.NewReaderSize(stream, 64<<10)}
	if err := c.within(ctx, c.authenticate); err != nil {
		return nil, errors.Join(fmt.Errorf("authenticate at %s: %w", path, err), c.Close())
	}
	return c, nil
}

// Close closes the connection.
func (c *Conn) Close() error { return c.stream.sock.Close() }

// within makes the reads and writes of do end with ctx. It fails whenever ctx
// ended first, since the connection is then of no use to what comes after do.
func (c *Conn) within(ctx context.Context, do func() error) error {
	if c.ended {
		return errEnded
	}
	stop := context.AfterFunc(ctx, c.stream.end)
	err := do()
	if !stop() {
		err = errors.Join(context.Cause(ctx), err)
	}
	c.ended = err != nil
	return err
}

// authenticate says all there is to say at once, as sd-bus itself does
// (bus_socket_start_auth_client in src/libsystemd/sd-bus/bus-socket.c).
func (c *Conn) authenticate() error {
	uid := hex.EncodeToString([]byte(strconv.Itoa(os.Getuid())))
	if _, err := fmt.Fprintf(c.stream, "\x00AUTH EXTERNAL %s\r\nBEGIN\r\n", uid); err != nil {
		return err
	}
	line, err := c.in.ReadSlice('\n') // fails for one that does not end
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(line, []byte("OK ")) {
		return fmt.Errorf("%w: %.60q instead of OK", ErrProtocol, line)
	}
	return nil
}

// Do makes the calls and waits for all answers; answered, unless it is nil, is
// called after each with the call's index, so that work can begin before all
// are there. The error is of the connection, which is then of no use any more,
// or that of ctx; the calls' own are in them.
func (c *Conn) Do(ctx context.Context, calls []Call, answered func(i int)) error {
	return c.within(ctx, func() error { return c.exchange(calls, answered) })
}

// exchange reads answers while it still writes calls, so that neither side waits for the
// other to read.
func (c *Conn) exchange(calls []Call, answered func(i int)) error {
	first := c.serial + 1
	c.serial += uint32(len(calls))
	room := make(chan struct{}, window/piece+len(calls)/piece) // for a piece each
	for range window / piece {
		room <- struct{}{}
	}
	written := make(chan error, 1)
	go func() { written <- c.write(first, calls, room) }()
	n := 0
	err := c.answers(first, calls, func(i int) {
		if n++; n%piece == 0 {
			room <- struct{}{}
		}
		if answered != nil {
			answered(i)
		}
	})
	if err != nil {
		c.stream.end() // so that the writer ends
	}
	close(room)
	return errors.Join(err, <-written)
}

// write writes calls, a piece as soon as there is room for it.
func (c *Conn) write(first uint32, calls []Call, room <-chan struct{}) error {
	for start := 0; start < len(calls); start += piece {
		<-room
		c.calls = c.calls[:0]
		for i := start; i < min(start+piece, len(calls)); i++ {
			c.call = encodeCall(c.call, first+uint32(i), &calls[i])
			c.calls = append(c.calls, c.call...)
		}
		if _, err := c.stream.Write(c.calls); err != nil {
			return err
		}
	}
	return nil
}

// answers reads messages until each call has its answer. Signals, which PID 1
// sends to every private connection, are passed over.
func (c *Conn) answers(first uint32, calls []Call, answered func(i int)) error {
	known := make([]bool, len(calls))
	for left := len(calls); left > 0; {
		m, err := c.receive()
		if err != nil {
			return err
		}
		i := int64(m.replyTo) - int64(first)
		if m.kind != kindReturn && m.kind != kindError {
			continue
		}
		if i < 0 || i >= int64(len(calls)) || known[i] {
			return fmt.Errorf("%w: an answer to call %d, which waits for none", ErrProtocol, m.replyTo)
		}
		known[i] = true
		left--
		calls[i].Err = m.answer(&calls[i])
		answered(int(i))
	}
	return nil
}
