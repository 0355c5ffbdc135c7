// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fdbridge/fdbridge/internal/fd"
)

// askTimeout bounds each wait for a part of an answer, which fdbridged may have
// to ask PID 1 for.
const askTimeout = 60 * time.Second

// ErrRefused is what an error that fdbridged answered with answers errors.Is for.
var ErrRefused = errors.New("fdbridged refused")

// Ask asks fdbridged at the socket path for op, OpList or OpStatus, and calls
// each with every part of the answer in turn.
func Ask(path, op string, each func(*Answer)) error {
	return ask(path, Request{Op: op}, func(a *Answer, _ *fd.FD) error { each(a); return nil })
}

// Report is what fdbridged has to tell of the last live update. Its JSON is an
// interface: members may be added.
type Report struct {
	Status
	// Carried is what the last live update carried, for each unit.
	Carried []Carried `json:"carried"`
	// Lost are the fds that it did not carry.
	Lost []Lost `json:"lost"`
	// Problems are sentences about what went wrong in this boot.
	Problems []string `json:"problems"`
}

// ReadReport asks fdbridged at the socket path.
func ReadReport(path string) (*Report, error) {
	r := &Report{Carried: []Carried{}, Lost: []Lost{}, Problems: []string{}}
	err := Ask(path, OpStatus, func(a *Answer) {
		switch {
		case a.Status != nil:
			r.Status = *a.Status
		case a.Carried != nil:
			r.Carried = append(r.Carried, *a.Carried)
		case a.Lost != nil:
			r.Lost = append(r.Lost, *a.Lost)
		case a.Problem != "":
			r.Problems = append(r.Problems, a.Problem)
		}
	})
	return r, err
}

// Shown is what there is of a unit's fds. Its JSON is an interface: members may be
// added.
type Shown struct {
	Unit    string  `json:"unit"`
	Entries []Entry `json:"entries"`
	// Problems are sentences about what cannot be shown.
	Problems []string `json:"problems"`
}

// Show asks fdbridged at the socket path for the fds of a unit.
func Show(path, unit string) (*Shown, error) {
	s := &Shown{Unit: unit, Entries: []Entry{}, Problems: []string{}}
	request := Request{Op: OpShow, Unit: unit}
	err := ask(path, request, func(a *Answer, _ *fd.FD) error {
		switch {
		case a.Entry != nil:
			s.Entries = append(s.Entries, *a.Entry)
		case a.Problem != "":
			s.Problems = append(s.Problems, a.Problem)
		}
		return nil
	})
	return s, err
}

// Inspect asks fdbridged at the socket path for the manifests in a session that
// it holds, or for the index, and calls each with every one, which is closed
// after that; an error of it ends the answer.
func Inspect(path, session string, each func(document *fd.FD) error) error {
	return ask(path, Request{Op: OpInspect, Session: session}, func(a *Answer, f *fd.FD) error {
		if a.Document == nil || f == nil {
			return fmt.Errorf("%w: there is no document with it", ErrPacket)
		}
		return each(f)
	})
}

// Drop makes fdbridged at the socket path let go of all that it holds for a
// unit, which is lost then.
func Drop(path, unit string) error {
	return ask(path, Request{Op: OpDrop, Unit: unit}, func(*Answer, *fd.FD) error { return nil })
}

// Watch calls each with what fdbridged at the socket path tells as it happens: an
// empty Answer, after which nothing is missed, then Changes and Problems. It waits
// until ctx ends, and returns why then, or until the connection does, which gives
// io.EOF when fdbridged has hung up: it is stopped, or each is too slow.
func Watch(ctx context.Context, path string, each func(*Answer)) error {
	conn, err := Dial(path)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		stop()
		_ = conn.Close() // there is nothing more to say
	}()
	if err = conn.SetDeadline(time.Now().Add(askTimeout)); err == nil {
		err = conn.Send(Request{Op: OpWatch}, nil)
	}
	for err == nil {
		var answer Answer
		var stray *fd.FD
		stray, err = conn.Receive(&answer)
		_ = stray.Close() // no answer of these has an fd with it
		if err == nil && answer.Error != "" {
			err = fmt.Errorf("%w: %s", ErrRefused, answer.Error)
		}
		if err == nil {
			each(&answer)
			err = conn.SetDeadline(time.Time{}) // what comes next may take as long as it likes
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("watch fdbridged: %w", err)
}

// DeliverAs makes fdbridged at the socket path deliver what it holds for a unit to
// another one, or to that unit whatever it has become, when that is started
// next. It returns what will happen then.
func DeliverAs(path, unit, as string) (*Assigned, error) {
	assigned := &Assigned{}
	err := ask(path, Request{Op: OpDeliverAs, Unit: unit, As: as}, func(a *Answer, _ *fd.FD) error {
		if a.Assigned != nil {
			assigned = a.Assigned
		}
		return nil
	})
	return assigned, err
}

func ask(path string, request Request, each func(*Answer, *fd.FD) error) error {
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
		if end, err := part(conn, request.Op, each); end || err != nil {
			return err
		}
	}
}

// part receives one part of an answer, and tells whether it is the end.
func part(conn *Conn, op string, each func(*Answer, *fd.FD) error) (end bool, err error) {
	var answer Answer
	f, err := conn.Receive(&answer)
	defer func() { _ = f.Close() }() // it was only read from
	switch {
	case err != nil:
		return false, fmt.Errorf("wait for the end of fdbridged's answer to %q: %w", op, err)
	case answer.Error != "":
		return false, fmt.Errorf("%w: %s", ErrRefused, answer.Error)
	case answer.End:
		return true, nil
	}
	return false, each(&answer, f)
}
