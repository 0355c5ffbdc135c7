// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
	"time"
)

// askTimeout bounds each wait for a part of an answer, which fdbridged may have
// to ask PID 1 for.
const askTimeout = 60 * time.Second

// ErrRefused is what an error that fdbridged answered with answers errors.Is for.
var ErrRefused = errors.New("fdbridged refused")

// Ask asks fdbridged at the socket path for op, OpList or OpStatus, and calls
// each with every part of the answer in turn.
func Ask(path, op string, each func(*Answer)) error { return ask(path, Request{Op: op}, each) }

// Drop makes fdbridged at the socket path let go of all that it holds for a
// unit, which is lost then.
func Drop(path, unit string) error {
	return ask(path, Request{Op: OpDrop, Unit: unit}, func(*Answer) {})
}

func ask(path string, request Request, each func(*Answer)) error {
	conn, err := Dial(path)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // everything was received, or is of no use
	if err := conn.SetDeadline(time.Now().Add(askTimeout)); err != nil {
		return err
	}
	if err := conn.Send(request, nil); err != nil {
		return err
	}
	for {
		if err := conn.SetDeadline(time.Now().Add(askTimeout)); err != nil {
			return err
		}
		var answer Answer
		stray, err := conn.Receive(&answer)
		_ = stray.Close() // no answer of these has an fd with it
		switch {
		case err != nil:
			return fmt.Errorf("wait for the end of fdbridged's answer to %q: %w", request.Op, err)
		case answer.Error != "":
			return fmt.Errorf("%w: %s", ErrRefused, answer.Error)
		case answer.End:
			return nil
		}
		each(&answer)
	}
}
