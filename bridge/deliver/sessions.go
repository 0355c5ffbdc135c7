// SPDX-License-Identifier: Apache-2.0

package deliver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
)

// sessionsTimeout bounds how long Sessions takes, but for what it waits for the service
// manager, and again each time that fdbridged says that it waits for that.
const sessionsTimeout = wire.WaitInterval + 10*time.Second

// Sessions puts the sessions of LUOSession= into the unit's store, in the order of
// the directive, as systemd 262 does by itself: there they are already, and nothing
// is done. It returns the names of those that have come through a live update, for
// Done. The error says which of them are missing and why; the unit can do without.
//
// It comes before Run, as systemd's sessions are there before what the unit stores.
func (d *Deliverer) Sessions(ctx context.Context, names []string) (came []string, err error) {
	d.sessions = len(names)
	if len(names) == 0 {
		return nil, nil
	}
	ctx, stop := d.within(ctx, sessionsTimeout)
	defer stop()
	if err := d.extend(); err != nil {
		return nil, err
	}
	var failed []error
	for _, name := range names {
		answer, err := d.session(ctx, name)
		if err != nil {
			failed = append(failed, fmt.Errorf("the session %q of LUOSession=: %w", name, err))
		} else if answer.Came {
			came = append(came, name)
		}
	}
	return came, errors.Join(failed...)
}

// session puts one session into the store, unless it is there.
func (d *Deliverer) session(ctx context.Context, name string) (*wire.Session, error) {
	answer, f, err := d.askSession(ctx, wire.OpLUOSession, name)
	if err != nil || f == nil {
		return answer, err
	}
	if answer.Replaces {
		err = d.take(name)
	}
	if err == nil {
		err = d.put(name, f)
	}
	return answer, errors.Join(err, f.Close())
}

// Done waits until what Sessions has stored is in the store, and tells fdbridged of what
// came: up to then fdbridged holds that on, and what Run has removed from there for longer.
// The error is that it may hold on all of it, or that some of the rest is missing.
func (d *Deliverer) Done(ctx context.Context, came []string) error {
	failed := d.takenIn()
	came = slices.DeleteFunc(slices.Clone(came), func(name string) bool { return d.removed[name] })
	if len(came) == 0 {
		return failed
	}
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), lastTimeout)
	defer stop()
	for _, name := range came {
		if failed == nil {
			_, _, failed = d.askSession(ctx, wire.OpDoneSession, name)
		}
	}
	if failed != nil {
		return fmt.Errorf("fdbridged holds on sessions that are delivered: %w", failed)
	}
	return nil
}

// askSession asks about a session: the next fdbridged, if the connection breaks.
func (d *Deliverer) askSession(ctx context.Context, op, name string) (*wire.Session, *fd.FD, error) {
	for {
		conn, err := dial(ctx, d.Socket)
		if err != nil {
			return nil, nil, fmt.Errorf("fdbridged cannot be reached: %w", err)
		}
		answer, f, err := await(ctx, d, conn, wire.Request{Op: op, Name: name}, func(a *wire.Session) bool { return a.Wait })
		_ = conn.Close() // fdbridged has answered, or never will
		switch {
		case errors.Is(err, errBroken) && ctx.Err() == nil:
			time.Sleep(wire.RetryDelay) // as in Run
		case err != nil:
			return nil, nil, err
		case answer.Error != "":
			return nil, nil, errors.Join(errors.New(answer.Error), f.Close())
		default:
			return answer, f, nil
		}
	}
}
