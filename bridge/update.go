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

	"github.com/fdbridge/fdbridge/bridge/config"
	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/units"
	"github.com/fdbridge/fdbridge/units/unitfile"
)

const (
	// PreserveMessageTimeout bounds how long the service manager may take to take in a
	// message, while services are away.
	PreserveMessageTimeout = 80 * time.Second
	// AliveTimeout is what the service manager is to grant each time that it is told that
	// services still stop, which is every 20 s or so.
	AliveTimeout = 90 * time.Second
	// PreserveEndTimeout bounds how long PreserveUnit is waited for when it ends, by others and
	// by itself.
	PreserveEndTimeout = 10 * time.Second
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
	// Preserver is one to which the rules are not given yet.
	Preserver *Preserver
	// Ahead looks at the Preserver's Stores while services stop; units.Ahead does it.
	Ahead interface {
		Look(ctx context.Context) error
		Close()
	}
	// Reload reads the rules, which may change as long as services run.
	Reload func() *config.Rules
	// Wait waits until all services have stopped: units.Shutdown does it.
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

	rules *config.Rules
}

// Run waits until all services have stopped and preserves; the caller owns what is
// preserved, and keeps it open until the kexec. It is nothing, without an Index, when
// fdbridge has no part in the live update, or when preserving has failed and the live update
// goes on nevertheless.
//
// With an error nothing is preserved, and nothing prepared any more, and the live update is
// to be called off; with ErrUnprepared there was none. When ctx has ended it is why.
func (u *Update) Run(ctx context.Context) (preserved *Preserved, err error) {
	u.reload()
	if err = u.await(ctx); err == nil {
		preserved, err = u.preserve(ctx)
	}
	u.Ahead.Close()
	if err != nil {
		return nil, errors.Join(err, u.Preserver.Abandon())
	}
	return preserved, nil
}

// reload goes by the rules of the moment.
func (u *Update) reload() {
	u.rules = u.Reload()
	p := u.Preserver
	p.Excluded, p.Required, p.Early = u.rules.Excluded, u.rules.Required, u.rules.Early
	p.Partly = !u.rules.AnyRequired()
}

// await waits until all services have stopped. If no shutdown has begun yet it
// prepares one, and has the service stopped when none begins in time.
func (u *Update) await(ctx context.Context) error {
	defer func() { _ = os.Remove(u.DropIn) }() // it does no harm
	err := u.Wait(ctx, 0, u.look)
	if !errors.Is(err, units.ErrNoShutdown) {
		return err
	}
	reload := sync.OnceFunc(u.reload)
	look := func(ctx context.Context) { reload(); u.look(ctx) }
	if err = u.prepare(ctx); err != nil {
		err = u.unprepared(ctx, err, look)
	} else if err = u.Wait(ctx, u.rules.PrepareTimeout, look); errors.Is(err, units.ErrNoShutdown) {
		u.Log.Warning("Nothing was made of what was prepared within PrepareTimeoutSec=%v: it is undone.", u.rules.PrepareTimeout)
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
	if err := u.Manager.ExtendTimeout(sum(u.rules.PrepareTimeout, AliveTimeout)); err != nil {
		return err
	}
	if err := u.outlastReloads(); err != nil {
		u.Log.Warning("systemctl daemon-reload will undo what is prepared: %v", err)
	}
	prepared, err := u.Preserver.Prepare(ctx)
	if err != nil {
		return err
	}
	u.Log.Info("%s", prepared.Summary())
	return u.Manager.Status(prepared.Summary())
}

// unprepared goes on when preparing has failed: all can be done yet if a shutdown has begun
// meanwhile, and it returns when services have stopped.
func (u *Update) unprepared(ctx context.Context, why error, look func(ctx context.Context)) error {
	why = fmt.Errorf("%w: %w", ErrUnprepared, why)
	if ctx.Err() != nil {
		return why
	}
	err := u.Wait(ctx, 0, look)
	if errors.Is(err, units.ErrNoShutdown) {
		return why
	}
	u.Log.Warning("%v", why)
	return err
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
	err := u.Wait(ctx, PreserveEndTimeout, look)
	if errors.Is(err, units.ErrNoShutdown) {
		return errors.Join(fmt.Errorf("%w: the service manager does not stop %s", ErrUnprepared, PreserveUnit), failed)
	}
	return err
}

// preserve preserves, and fails only when the live update is to be called off.
func (u *Update) preserve(ctx context.Context) (*Preserved, error) {
	if u.rules.Register.Masked() { // which Reload has said
		return &Preserved{}, u.Preserver.Abandon()
	}
	bound := sum(u.rules.PreserveTimeout, sealTimeout)
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
		return u.Manager.ExtendTimeout(left + 2*PreserveMessageTimeout) // with what it has to be told after that
	}
	limited, stop := context.WithTimeoutCause(ctx, u.rules.PreserveTimeout,
		fmt.Errorf("it has taken longer than PreserveTimeoutSec=%v", u.rules.PreserveTimeout))
	defer stop()
	preserved, err := u.Preserver.Run(limited)
	if err != nil && u.Preserver.Partly && ctx.Err() == nil {
		u.Ahead.Close() // what was seen may be why
		u.Preserver.GiveUp(ctx, err)
		return &Preserved{}, nil
	}
	return preserved, err
}
