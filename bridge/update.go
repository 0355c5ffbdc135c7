// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/units"
	"github.com/fdbridge/fdbridge/units/unitfile"
)

const (
	// MessageTimeout bounds how long the service manager may take to take in a message,
	// while services are away.
	MessageTimeout = 80 * time.Second
	// StopTimeout is what the service manager is to grant each time that it says that
	// services still stop, which is every 20 s or so.
	StopTimeout = 90 * time.Second
	// EndTimeout bounds how long PreserveUnit is waited for when it ends, by others and by
	// itself.
	EndTimeout = 10 * time.Second
	// sealTimeout is what preserving may take beyond PreserveTimeoutSec=, after
	// which nothing new is begun: a system call or two, and the index, or a question
	// to PID 1 about what is lost.
	sealTimeout = 30 * time.Second
)

// PreparedDropIn is a drop-in of PreserveUnit as long as something is prepared.
const PreparedDropIn = "/run/systemd/system/" + PreserveUnit + ".d/zz-prepared.conf"

// ErrUnprepared says that no live update was under way, and that none is prepared.
var ErrUnprepared = errors.New("nothing is prepared")

// Update is one live update as PreserveUnit goes through it, from its preparation or its
// shutdown on.
type Update struct {
	Preserver *Preserver
	// Ahead is asked to look at the Preserver's Stores while services stop.
	Ahead Ahead
	// Reload reads the rules, which may change as long as services run: those of the
	// Preserver, and what it returns.
	Reload func() Limits
	// Wait waits until all services have stopped, as units.Shutdown does with its Within
	// and Meanwhile.
	Wait func(ctx context.Context, within time.Duration, meanwhile func(ctx context.Context)) error
	// Manager is the service manager, as the notify.Socket of PreserveUnit.
	Manager interface {
		ExtendTimeout(wait time.Duration) error
		Status(status string) error
	}
	// Stop has the service manager stop PreserveUnit, which ends Run's context.
	Stop func(ctx context.Context) error
	// Exit ends the process when preserving hangs.
	Exit func()
	// DropIn is PreparedDropIn but in tests.
	DropIn string
	Log    *journal.Log

	limits Limits
}

// Ahead looks at stores ahead; units.Ahead does it.
type Ahead interface {
	Look(ctx context.Context) error
	Close()
}

// Limits are the rules of an Update that are not its Preserver's.
type Limits struct {
	// Prepare is how long what is prepared is kept, PrepareTimeoutSec=.
	Prepare time.Duration
	// Preserve bounds how long preserving may take, PreserveTimeoutSec=.
	Preserve time.Duration
	// Masked says that fdbridge has no part in the live update.
	Masked bool
}

// Run waits until all services have stopped and preserves; the caller owns what is
// preserved, and keeps it open until the kexec. With an error nothing is preserved, and
// nothing prepared any more, and the live update is to be called off; with
// ErrUnprepared there was none. When ctx ends it is why.
func (u *Update) Run(ctx context.Context) (preserved *Preserved, err error) {
	u.limits = u.Reload()
	if err = u.await(ctx); err == nil {
		preserved, err = u.preserve(ctx)
	}
	u.Ahead.Close()
	if err != nil {
		return nil, errors.Join(err, u.Preserver.Abandon())
	}
	return preserved, nil
}

// await waits until all services have stopped. If no shutdown has begun yet it
// prepares one, and has the service stopped when none begins in time.
func (u *Update) await(ctx context.Context) error {
	defer func() { _ = os.Remove(u.DropIn) }() // it does no harm
	err := u.Wait(ctx, 0, u.look)
	if !errors.Is(err, units.ErrNoShutdown) {
		return err
	}
	if err := u.prepare(ctx); err != nil {
		if ctx.Err() != nil {
			return err
		}
		begun := u.Wait(ctx, 0, u.look)
		if errors.Is(begun, units.ErrNoShutdown) {
			return err
		}
		u.Log.Warning("%v", err)
		return begun // meanwhile, and all can be done then
	}
	reload := sync.OnceFunc(func() { u.limits = u.Reload() })
	look := func(ctx context.Context) { reload(); u.look(ctx) }
	err = u.Wait(ctx, u.limits.Prepare, look)
	if errors.Is(err, units.ErrNoShutdown) {
		u.Log.Warning("Nothing was made of what was prepared within PrepareTimeoutSec=%v: it is undone.", u.limits.Prepare)
		err = errors.Join(u.Preserver.Abandon(), u.end(ctx, look))
	}
	if err == nil {
		reload() // if it was too short to do anything meanwhile
	}
	return err
}

// look looks at stores. What it does not find out is asked when all services have stopped.
func (u *Update) look(ctx context.Context) { _ = u.Ahead.Look(ctx) }

// prepare prepares a live update.
func (u *Update) prepare(ctx context.Context) error {
	u.Ahead.Close() // of stores that may change until the shutdown
	// Preserving a terabyte takes more than TimeoutStartSec=.
	if err := u.Manager.ExtendTimeout(sum(u.limits.Prepare, StopTimeout)); err != nil {
		return err
	}
	if err := u.outlastReloads(); err != nil {
		u.Log.Warning("systemctl daemon-reload will undo what is prepared: %v", err)
	}
	prepared, err := u.Preserver.Prepare(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnprepared, err)
	}
	u.Log.Info("%s", prepared.Summary())
	return u.Manager.Status(prepared.Summary())
}

// sum is that of two times, of which the first can be without end, which is the
// greatest number that there is.
func sum(long, more time.Duration) time.Duration { return min(long, unitfile.Infinity-more) + more }

// outlastReloads keeps a daemon-reload from ending this service, which is still being
// started: then the service manager forgets by how much it has extended TimeoutStartSec=
// (service_coldplug_timeout in src/core/service.c, systemd 257). It reads the drop-in
// when it matters.
func (u *Update) outlastReloads() error {
	const text = "# Written by fdbridged, while something is prepared.\n[Service]\nTimeoutStartSec=infinity\n"
	err := os.MkdirAll(filepath.Dir(u.DropIn), 0o755)
	if err == nil {
		err = os.WriteFile(u.DropIn, []byte(text), 0o644)
	}
	return err
}

// end has the service manager stop this service, which ends ctx. A shutdown that begins before
// that takes the place of the stop, or has it refused: then all is done as if nothing had been
// prepared, and end returns when services have stopped.
func (u *Update) end(ctx context.Context, look func(ctx context.Context)) error {
	failed := u.Stop(ctx)
	err := u.Wait(ctx, EndTimeout, look)
	if errors.Is(err, units.ErrNoShutdown) {
		return errors.Join(fmt.Errorf("%w: the service manager does not stop %s", ErrUnprepared, PreserveUnit), failed)
	}
	return err
}

// preserve preserves, and fails only when the live update is to be called off.
func (u *Update) preserve(ctx context.Context) (*Preserved, error) {
	if u.limits.Masked { // which Reload has said
		return &Preserved{}, u.Preserver.Abandon()
	}
	bound := sum(u.limits.Preserve, sealTimeout)
	if err := u.Manager.ExtendTimeout(bound); err != nil {
		return nil, err
	}
	// The service manager has no bound of its own any more when it was reloaded while
	// something was prepared: see outlastReloads.
	late := time.AfterFunc(bound, func() {
		u.Log.Err("The live update is called off: preserving has not come to an end within %v.", bound)
		u.Exit()
	})
	defer late.Stop()
	u.Preserver.Sealed = func(left time.Duration) error {
		late.Stop()
		if left == 0 {
			return nil
		}
		return u.Manager.ExtendTimeout(left + 2*MessageTimeout) // with what it has to be told after that
	}
	limited, stop := context.WithTimeoutCause(ctx, u.limits.Preserve,
		fmt.Errorf("it has taken longer than PreserveTimeoutSec=%v", u.limits.Preserve))
	defer stop()
	preserved, err := u.Preserver.Run(limited)
	if err != nil && u.Preserver.Partly {
		u.Ahead.Close() // what was seen may be why
		u.Preserver.GiveUp(ctx, err)
		return &Preserved{}, nil
	}
	return preserved, err
}
