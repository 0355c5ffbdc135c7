// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"time"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/units"
)

// retryDelay is how long to wait before PID 1 is asked again that did not
// answer, as while it re-executes itself.
const retryDelay = time.Second

// PinManager is what a Pinner asks the service manager; units.Manager answers.
type PinManager interface {
	OptedIn(ctx context.Context, units []string) ([]units.Store, error)
	Pin(ctx context.Context, dir, unit string) error
	News() <-chan struct{}
	Loaded() (services []string, reloaded bool)
	Done() <-chan struct{}
}

// Pinner pins the opted-in units that the generator could not know, such as
// instances of templates and transient units: see units.Manager.Pin.
type Pinner struct {
	PID1 func(ctx context.Context) (PinManager, error)
	// Covered returns the units that the generator has taken care of.
	Covered  func() (map[string]bool, error)
	Excluded func(unit string) bool
	Log      *journal.Log
}

// Run pins units as they are loaded, until ctx ends.
func (p *Pinner) Run(ctx context.Context) {
	for ctx.Err() == nil {
		pid1, err := p.PID1(ctx)
		if err == nil {
			err = p.follow(ctx, pid1)
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		p.Log.Warning("Units that nothing refers to may lose their fd store when they stop: %v", err)
		select {
		case <-time.After(retryDelay):
		case <-ctx.Done():
		}
	}
}

// follow pins what is loaded, and what is loaded later, until the connection
// ends, which is no error, or PID 1 does not answer.
func (p *Pinner) follow(ctx context.Context, pid1 PinManager) error {
	var covered map[string]bool
	services, all := []string(nil), true
	for {
		if all { // the generator has run again
			var err error
			if covered, err = p.Covered(); err != nil {
				return err
			}
			services = nil
		}
		if err := p.pin(ctx, pid1, services, covered); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-pid1.Done():
			return nil
		case <-pid1.News():
			services, all = pid1.Loaded()
		}
	}
}

// pin pins the opted-in units among services, all if nil, that are not covered.
func (p *Pinner) pin(ctx context.Context, pid1 PinManager, services []string, covered map[string]bool) error {
	if services != nil && len(services) == 0 {
		return nil
	}
	optedIn, err := pid1.OptedIn(ctx, services)
	if errors.Is(err, units.ErrManager) {
		return err
	}
	for _, store := range optedIn {
		if store.Unit == OwnUnit || covered[store.Unit] || p.Excluded(store.Unit) {
			continue
		}
		err = errors.Join(err, pid1.Pin(ctx, units.RuntimeDir, store.Unit))
	}
	return err
}
