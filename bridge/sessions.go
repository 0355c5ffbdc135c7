// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/units"
)

const (
	// serviceTimeout bounds how long a service may take to say what it wants,
	// and to take its answer.
	serviceTimeout = 5 * time.Second
	// maxVisits bounds how many connections of one unit are served at a time, so
	// that it leaves room for the others. A further one is closed at once.
	maxVisits = 16
	// maxComplaints bounds what is logged about one unit's requests in a minute: the
	// journal drops messages of a service that has too many, whatever they say.
	maxComplaints = 20
)

// complaints counts what was logged about units since a minute began.
type complaints struct {
	mu    sync.Mutex
	begun time.Time
	of    map[string]int
}

// another counts one, and tells which of the unit's it is in this minute.
func (c *complaints) another(unit string, now time.Time) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil || now.Sub(c.begun) >= time.Minute {
		c.begun, c.of = now, map[string]int{}
	}
	c.of[unit]++
	return c.of[unit]
}

// complain logs what is wrong with a request of a service, but not without end.
func (s *Server) complain(unit, format string, args ...any) {
	about := journal.About{Unit: unit}
	switch n := s.complaints.another(unit, time.Now()); {
	case n < maxComplaints:
		s.Log.WarningOf(about, format, args...)
	case n == maxComplaints:
		s.Log.WarningOf(about, "%s: More of its requests on the socket are wrong or refused, which is not logged for a minute", unit)
	}
}

// ServeSessions is Serve for what services of any user ask: see wire.SessionsPath.
// They have their connections beside those of Serve.
func (s *Server) ServeSessions(ctx context.Context, listener *wire.Listener) error {
	return s.serveAll(ctx, listener, s.serveService)
}

// serveService serves one connection of a service. What is wrong with it is logged.
func (s *Server) serveService(ctx context.Context, conn *wire.Conn) error {
	unit, unknown := s.peerUnit(conn)
	leave, ok := s.visit(unit)
	if !ok {
		return nil
	}
	defer leave()
	if err := s.serveVisit(ctx, conn, unit, unknown); err != nil {
		s.complain(unit, "A request of %s of unit %q on the socket for services failed: %v", peerName(conn), unit, err)
	}
	return nil
}

// serveVisit serves a connection of a unit, or of a process of which it is unknown.
func (s *Server) serveVisit(ctx context.Context, conn *wire.Conn, unit string, unknown error) error {
	if err := limit(ctx, conn, serviceTimeout); err != nil {
		return err
	}
	var request wire.Request
	stray, err := conn.Receive(&request)
	_ = stray.Close() // no request has an fd with it
	if err != nil {
		return err
	}
	if unknown != nil {
		return errors.Join(unknown, conn.Send(wire.Session{Error: unknown.Error()}, nil))
	}
	switch request.Op {
	case wire.OpOpenSession, wire.OpClaimSession, wire.OpDoneSession:
		return s.session(ctx, conn, unit, &request)
	}
	return conn.Send(wire.Session{Error: fmt.Sprintf("there is no operation %q for services", request.Op)}, nil)
}

// visit counts a connection of a unit, and returns what ends it; not ok when there
// are too many.
func (s *Server) visit(unit string) (leave func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.visits[unit] >= maxVisits {
		return nil, false
	}
	s.visits[unit]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.visits[unit]--; s.visits[unit] == 0 {
			delete(s.visits, unit)
		}
	}, true
}

// ownSession answers what fdbridge-inject asks about a session of its unit, which waits for
// the answer as for a Grant.
func (s *Server) ownSession(ctx context.Context, conn *wire.Conn, request *wire.Request) error {
	unit, err := s.peerUnit(conn)
	if err != nil {
		return errors.Join(err, conn.Send(wire.Session{Error: err.Error()}, nil))
	}
	var answer wire.Session
	var f *fd.FD
	err = s.meanwhile(ctx, conn, func(ctx context.Context) error {
		return answered(ctx, func(ctx context.Context) (err error) {
			answer = wire.Session{Unit: unit}
			f, err = s.answerSession(ctx, unit, request, &answer)
			return err
		})
	})
	return s.sendSession(ctx, conn, request, &answer, f, err)
}

// session answers a request about a session of the peer's unit.
func (s *Server) session(ctx context.Context, conn *wire.Conn, unit string, request *wire.Request) error {
	waiting, stop := context.WithTimeout(ctx, grantTimeout)
	defer stop()
	var answer wire.Session
	var f *fd.FD
	err := answered(waiting, func(ctx context.Context) (err error) {
		answer = wire.Session{Unit: unit}
		f, err = s.answerSession(ctx, unit, request, &answer)
		return err
	})
	return s.sendSession(ctx, conn, request, &answer, f, err)
}

// sendSession sends an answer, with f beside it, which it takes over, or why there is none.
func (s *Server) sendSession(ctx context.Context, conn *wire.Conn, request *wire.Request, answer *wire.Session, f *fd.FD, err error) error {
	defer func() { _ = f.Close() }() // the peer has its own
	if err != nil {
		*answer = wire.Session{Unit: answer.Unit, Error: oneSentence(err)}
		s.complain(answer.Unit, "%s: %s of the session %.255q is refused: %s", answer.Unit, request.Op, request.Name, answer.Error)
	}
	if err := limit(ctx, conn, serviceTimeout); err != nil {
		return err
	}
	if answer.Error != "" {
		return conn.Send(answer, nil)
	}
	return conn.Send(answer, f)
}

// oneSentence keeps an error of several within a line.
func oneSentence(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// answerSession fills in the answer, and returns what goes with it.
func (s *Server) answerSession(ctx context.Context, unit string, request *wire.Request, answer *wire.Session) (f *fd.FD, err error) {
	if err := kho.CheckServiceName(request.Name); err != nil {
		return nil, err
	}
	answer.Session = kho.ServiceSession(unit, request.Name)
	switch request.Op {
	case wire.OpDoneSession:
		return nil, s.endSession(ctx, unit, answer.Session)
	case wire.OpClaimSession:
		if f, err = s.claimSession(ctx, unit, answer.Session); f == nil {
			answer.Session = ""
		}
		return f, err
	}
	store, err := s.PID1.Store(ctx, unit)
	if err != nil {
		return nil, err
	}
	if request.Op == wire.OpOpenSession {
		return s.openSession(ctx, store, request.Name)
	}
	return s.luoSession(ctx, store, request.Name, answer)
}

// openSession opens a session, or finds the one that is open. The opt-in is the
// administrator's word that the unit may have its files kept; it also orders the
// unit after fdbridged.
func (s *Server) openSession(ctx context.Context, store *units.Store, name string) (*fd.FD, error) {
	switch {
	case s.Excluded(store.Unit):
		return nil, errLeft(store.Unit)
	case !store.OptedIn():
		return nil, fmt.Errorf("%s has not opted in, which takes FileDescriptorStoreMax= above zero and FileDescriptorStorePreserve=yes", store.Unit)
	}
	return s.Holder.openSession(ctx, kho.NewService(store.Unit, name, identityOf(store)))
}

// claimSession returns a session that came for a unit; nil when there is none.
func (s *Server) claimSession(ctx context.Context, unit, name string) (*fd.FD, error) {
	came, held := s.Holder.came(unit, name)
	if !held {
		if err := s.Holder.Known(ctx, name); err != nil {
			return nil, err
		}
		// It may have come while this one waited.
		if came, held = s.Holder.came(unit, name); !held {
			return nil, nil
		}
	}
	if err := s.mayHave(ctx, &came); err != nil {
		return nil, err
	}
	return s.Holder.claim(name)
}

// mayHave returns why a unit may not have a session that came for it, nor end it.
func (s *Server) mayHave(ctx context.Context, service *kho.Service) error {
	differ, err := s.changes(ctx, service.Unit, &service.Identity)
	if err == nil && differ != "" {
		err = fmt.Errorf("%s is not the unit that it was before the live update: %s; \"fdbridgectl drop %s\" lets go of the session",
			service.Unit, differ, service.Unit)
	}
	return err
}

// endSession lets go of a session that a unit is done with.
func (s *Server) endSession(ctx context.Context, unit, name string) error {
	came, held := s.Holder.came(unit, name)
	if held {
		if err := s.mayHave(ctx, &came); err != nil {
			return err
		}
	}
	err := s.Holder.endSession(unit, name)
	if held && err == nil {
		s.Log.InfoOf(journal.About{Kind: journal.Delivered, Unit: unit, Session: name}, "%s: Delivered session %s.", unit, name)
	}
	return err
}

// luoSession answers OpLUOSession as systemd 262 does what the directive says
// (service_setup_luo_sessions in src/core/service.c): what the unit's store has
// under that name it keeps, and else it gets what came, or else a new one.
//
// If it has what came, nobody has said so yet: whoever put it there has not come to
// that. If it has another one though one came, systemd 262 has made that in this
// boot, of a unit that was carried from an earlier version.
func (s *Server) luoSession(ctx context.Context, store *units.Store, name string, answer *wire.Session) (*fd.FD, error) {
	for i := range store.Entries {
		e := &store.Entries[i]
		switch {
		case e.Name != name || !e.Session():
			continue
		case !s.Holder.holdsSession(answer.Session):
			return nil, nil
		case e.IsSession(answer.Session):
			answer.Came = true
			return nil, nil
		}
		f, err := s.claimSession(ctx, store.Unit, answer.Session)
		answer.Came, answer.Replaces = f != nil, f != nil
		return f, err
	}
	f, err := s.claimSession(ctx, store.Unit, answer.Session)
	answer.Came = f != nil
	if f != nil || err != nil && !s.Holder.lost(answer.Session) {
		return f, err
	}
	return s.Holder.newSession(ctx, answer.Session)
}
