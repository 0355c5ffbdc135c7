// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

const (
	// maxWatchers bounds how many clients watch at a time, so that they leave
	// most of maxConns to the units.
	maxWatchers = 16
	// watchRoom is how much a watcher may be behind before it is hung up on: more
	// than what happens at once when a thousand units are started.
	watchRoom = 4096
	// watchTimeout bounds how long a watcher may take to read when its socket is
	// full.
	watchTimeout = 10 * time.Second
)

// watchers are those who are told of what happens.
type watchers struct {
	mu  sync.Mutex
	all map[chan wire.Answer]bool
}

// add returns a channel of what happens from now on, which is closed when nobody
// reads it fast enough; nil when there are too many watchers. remove ends it.
func (w *watchers) add() chan wire.Answer {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.all) >= maxWatchers {
		return nil
	}
	if w.all == nil {
		w.all = map[chan wire.Answer]bool{}
	}
	news := make(chan wire.Answer, watchRoom)
	w.all[news] = true
	return news
}

func (w *watchers) remove(news chan wire.Answer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.all, news)
}

// tell tells all watchers, and waits for none: one that has no room is let go of.
func (w *watchers) tell(a wire.Answer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for news := range w.all {
		select {
		case news <- a:
		default:
			delete(w.all, news)
			close(news)
		}
	}
}

func change(unit, what string, fds int) wire.Answer {
	return wire.Answer{Change: &wire.Change{Unit: unit, What: what, FDs: fds}}
}

// settled notes what has become of a parcel that is held no longer.
func (h *Holder) settled(unit, what string, fds int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.outcome[unit] = what
	h.watchers.tell(change(unit, what, fds))
}

// outcomeOf returns what has become of what was held for a unit, as far as it has
// happened since Restore.
func (h *Holder) outcomeOf(unit string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.outcome[unit]
}

// errSlow says that a watcher has not read what it was sent.
var errSlow = errors.New("a client that watches is too slow, and was hung up on")

// watch answers OpWatch. It ends when ctx does, without an error.
func (s *Server) watch(ctx context.Context, conn *wire.Conn) error {
	news := s.Holder.watchers.add()
	if news == nil {
		return conn.Send(wire.Answer{Error: fmt.Sprintf("%d clients watch already", maxWatchers)}, nil)
	}
	defer s.Holder.watchers.remove(news)
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	gone := make(chan struct{})
	go func() { // the client has nothing to say but that it goes
		var request wire.Request
		stray, _ := conn.Receive(&request)
		_ = stray.Close() // if it says something nevertheless, it is hung up on
		close(gone)
	}()
	defer func() {
		_ = conn.CloseReceive() // it fails when the client has gone
		<-gone
	}()
	return s.pass(ctx, conn, news, gone)
}

// pass sends a watcher its news.
func (s *Server) pass(ctx context.Context, conn *wire.Conn, news <-chan wire.Answer, gone <-chan struct{}) error {
	next, more := wire.Answer{}, true
	for more {
		if err := conn.SetSendDeadline(time.Now().Add(watchTimeout)); err != nil {
			return err
		}
		if err := conn.Send(next, nil); err != nil {
			return fmt.Errorf("%w: %w", errSlow, err)
		}
		select {
		case next, more = <-news:
		case <-gone:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
	return errSlow
}
