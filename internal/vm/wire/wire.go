// SPDX-License-Identifier: Apache-2.0

// Package wire is the language between the VM harness and the agent in the
// guest: JSON objects, one a line, over a virtio-serial port. What the words do
// belongs to the harness and the agent.
//
// A port keeps bytes that one kernel wrote or should have read while the next
// one boots. So every line is preceded by a newline, which ends whatever was
// cut off before it, lines that do not parse are skipped, and every agent
// picks a nonce that both ends put in each message.
package wire

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// PortName is the name of the virtio-serial port.
const PortName = "fdbridge.agent"

// MaxBytes bounds the output that a reply carries per stream, and the size of
// a file read or written.
const MaxBytes = 16 << 20

// maxLine bounds one message: two streams of MaxBytes in base64, and room.
const maxLine = 48 << 20

// Hello is what an agent says first, and again when it was started anew.
type Hello struct {
	Nonce   string `json:"nonce"`
	BootID  string `json:"boot_id"`
	Release string `json:"release"` // of the kernel
}

// Request asks the agent to do one thing: to run Argv, or to read or write the
// file Path.
type Request struct {
	Nonce   string        `json:"nonce"`
	ID      uint64        `json:"id"`
	Argv    []string      `json:"argv,omitempty"`
	Env     []string      `json:"env,omitempty"`
	Stdin   []byte        `json:"stdin,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"`
	Read    bool          `json:"read,omitempty"`
	Path    string        `json:"path,omitempty"`
	Mode    uint32        `json:"mode,omitempty"`
	Data    []byte        `json:"data,omitempty"`
}

// Reply answers the request with the same nonce and id. Error is set when the
// agent could not do it; a command that ran and failed has only a Status.
type Reply struct {
	Nonce  string `json:"nonce"`
	ID     uint64 `json:"id"`
	Error  string `json:"error,omitempty"`
	Status int    `json:"status,omitempty"` // exit status, 128 + signal when killed
	Stdout []byte `json:"stdout,omitempty"`
	Stderr []byte `json:"stderr,omitempty"`
	Data   []byte `json:"data,omitempty"`
}

// Message is one line; exactly one field is set.
type Message struct {
	Hello   *Hello   `json:"hello,omitempty"`
	Request *Request `json:"request,omitempty"`
	Reply   *Reply   `json:"reply,omitempty"`
}

// Conn reads and writes messages on a byte stream that it does not own. Writes
// may come from several goroutines, reads from one at a time.
type Conn struct {
	in  *bufio.Reader
	max int        // bytes of a line
	mu  sync.Mutex // one line at a time
	out io.Writer
}

// NewConn returns a Conn on rw.
func NewConn(rw io.ReadWriter) *Conn {
	return &Conn{in: bufio.NewReaderSize(rw, 64<<10), max: maxLine, out: rw}
}

// Write sends one message. It blocks while the other end does not read.
func (c *Conn) Write(m Message) error {
	line, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	frame := append(append([]byte{'\n'}, line...), '\n')
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.out.Write(frame); err != nil {
		return fmt.Errorf("write message: %w", err)
	}
	return nil
}

// Read returns the next message, skipping every line that is not one. The
// error is that of the stream; io.EOF when it ended.
func (c *Conn) Read() (Message, error) {
	for {
		line, err := c.line()
		if err != nil {
			return Message{}, err
		}
		var m Message
		if json.Unmarshal(line, &m) == nil && (m.Hello != nil || m.Request != nil || m.Reply != nil) {
			return m, nil
		}
	}
}

// line returns the next line, or nothing for one that is too long.
func (c *Conn) line() ([]byte, error) {
	var line []byte
	skip := false
	for {
		part, err := c.in.ReadSlice('\n')
		if skip = skip || len(line)+len(part) > c.max; skip {
			line = nil
		} else {
			line = append(line, part...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}
