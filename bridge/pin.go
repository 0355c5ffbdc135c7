// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"time"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/units"
)

// retryDelay is how long to wait before PID 1 is asked again that did not
// answer, as while it re-executes itself.
const retryDelay = time.Second

// Pinner pins the opted-in units that the generator could not know, such as
// instances of templates and transient units: see units.Manager.Pin.
type Pinner struct {
	// OptedIn is that of units.Reader.
	OptedIn func(ctx context.Context, units []string) ([]units.Store, error)
	// Pin pins units; one that is pinned already stays so.
	Pin func(ctx context.Context, units []string) error
	// Covered returns the units that the generator has taken care of; with an
	// error, none.
	Covered func() (map[string]bool, error)
	// Excluded is that of config.Current.
	Excluded func(unit string) bool
	Log      *journal.Log

	news   chan news
	missed atomic.Bool // news that had no room
}

// news is what may have to be pinned: services, or everything.
type news struct {
	services []string
	all      bool
}

// NewPinner returns a Pinner whose fields are to be set.
func NewPinner() *Pinner { return &Pinner{news: make(chan news, 1024)} }

// Notice makes the Pinner look at a unit that is being started. It does not
// wait: with very many at a time, everything is looked at instead.
func (p *Pinner) Notice(unit string) { p.tell(news{services: []string{unit}}) }

func (p *Pinner) tell(n news) {
	select {
	case p.news <- n:
	default: // there is no room, so Run has something to read, and then looks here
		p.missed.Store(true)
	}
}

// Follow makes the Pinner look at what watcher sees, until that is closed.
func (p *Pinner) Follow(watcher *units.Watcher) {
	for {
		services, all, err := watcher.Next()
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			p.Log.Err("Transient units that are started from now on may lose their fd store when they stop: %v", err)
			return
		}
		p.tell(news{services, all})
	}
}

// Run pins what is loaded, and what it is told of, until ctx ends. PID 1 that does not
// answer, as while it starts the services of a boot, is asked until it does.
func (p *Pinner) Run(ctx context.Context) {
	pinned := map[string]bool{}
	next := news{all: true}
	answers := true // PID 1
	for {
		err := p.look(ctx, next, pinned)
		silent := errors.Is(err, units.ErrManager)
		switch {
		case ctx.Err() != nil:
		case silent && answers:
			p.Log.Warning("Units that nothing refers to may lose their fd store when they stop, until PID 1 answers, which it is asked to again and again: %v", err)
		case err != nil && !silent:
			p.Log.Warning("Units that nothing refers to may lose their fd store when they stop: %v", err)
		case err == nil && !answers:
			p.Log.Info("PID 1 answers again: units that nothing refers to keep their fd store when they stop.")
		}
		if answers = !silent; silent {
			p.again(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case next = <-p.news:
		}
	}
}

// again makes everything be looked at after a while.
func (p *Pinner) again(ctx context.Context) {
	select {
	case <-time.After(retryDelay):
		p.tell(news{all: true})
	case <-ctx.Done():
	}
}

// look pins the opted-in units among the news that are neither covered nor
// pinned, and takes along what other news there are.
func (p *Pinner) look(ctx context.Context, next news, pinned map[string]bool) error {
	for more := true; more; {
		select {
		case n := <-p.news:
			next.services, next.all = append(next.services, n.services...), next.all || n.all
		default:
			more = false
		}
	}
	next.all = p.missed.Swap(false) || next.all
	var ask []string // nil for everything
	if !next.all {
		for _, unit := range next.services {
			if !pinned[unit] {
				ask = append(ask, unit)
			}
		}
		if len(ask) == 0 {
			return nil
		}
	}
	optedIn, failed := p.OptedIn(ctx, ask)
	if errors.Is(failed, units.ErrManager) {
		return failed
	}
	// After a reload that answer comes when the generator has run again.
	covered, err := p.Covered()
	if err != nil {
		p.Log.Err("All units that have opted in are pinned: %v", err)
	}
	var wanted []string
	for _, store := range optedIn {
		if unit := store.Unit; unit != OwnUnit && !covered[unit] && !pinned[unit] && !p.Excluded(unit) {
			wanted = append(wanted, unit)
		}
	}
	if len(wanted) == 0 {
		return failed
	}
	if err := p.Pin(ctx, wanted); err != nil {
		return err
	}
	for _, unit := range wanted {
		pinned[unit] = true
	}
	return failed
}
