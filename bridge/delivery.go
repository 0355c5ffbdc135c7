// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/deliver"
	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/session"
)

// A client is told that it has to wait until its delivery begins: see admit.
const (
	// grantTimeout bounds how long it takes until it is known what is held, and no other
	// delivery to the unit is under way; and how long PID 1 may take to say, each time that
	// it is asked, whether the unit may have what is held.
	grantTimeout = 25 * time.Second
	// waitTimeout is more than all of that and queueTimeout together.
	waitTimeout = queueTimeout + 4*grantTimeout
	// deliveryTimeout bounds a delivery, in which the client takes the files out of the
	// session, waits until PID 1 has room for them, and then until it has taken them in:
	// ten minutes at most each. A delivery that takes longer is broken off.
	deliveryTimeout = 25 * time.Minute
)

// deliver hands the peer's unit the parcel that is held for it, and lets go of
// it when the peer says that its fds are where they belong.
func (s *Server) deliver(ctx context.Context, conn *wire.Conn, request *wire.Request) error {
	unit, err := s.peerUnit(conn)
	if err != nil {
		return errors.Join(err, conn.Send(wire.Grant{Error: err.Error()}, nil))
	}
	s.Started(unit)
	p, d, leave, err := s.admit(ctx, conn, s.applicant(unit, invocation(request.Invocation)))
	defer leave()
	if err == nil && p == nil { // or it was delivered while this client waited for its turn
		return conn.Send(wire.Grant{}, nil)
	}
	if err == nil {
		err = limit(ctx, conn, deliveryTimeout)
	}
	if err == nil {
		err = s.send(conn, d)
	}
	if err != nil {
		if d != nil && !d.storing { // it was granted nothing
			err = errors.Join(err, s.unbegun(p))
		}
		return s.refuse(ctx, conn, unit, p, err)
	}
	err = s.attend(ctx, conn, d)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil && (d.storing || !errors.Is(err, io.EOF)):
		return fmt.Errorf("%s: The delivery of session %s goes on with the next fdbridged: %w", unit, d.Sessions[0], err)
	}
	return s.brokenOff(d, err)
}

// brokenOff is the end of a delivery whose client has gone without a word, as one that was
// killed. It is no problem: it is what happens when a unit is stopped while it starts.
func (s *Server) brokenOff(d *delivery, why error) error {
	about := journal.About{Kind: journal.Held, Unit: d.to, Session: d.Sessions[0]}
	if d.storing {
		s.Log.WarningOf(about, "%s: The delivery of session %s was broken off, and it is held on: %v; the unit may have been started with some of its fds: %s",
			d.to, d.Sessions[0], why, advice(d.to, d.Unit, true))
		return nil
	}
	s.Log.WarningOf(about, "%s: The delivery of session %s was broken off before anything of it was in the unit's store, and it is held on for the next start: %v",
		d.to, d.Sessions[0], why)
	return s.unbegun(d.holding)
}

// unbegun notes that nothing of a parcel is in a unit's store, though its delivery was begun.
func (s *Server) unbegun(p *holding) error {
	return errors.Join(s.Holder.ended(p), s.Holder.Keeper.Flush())
}

// advice is how a unit gets what is held that may have fds of it already, or has others.
// Only an administrator can say so when a delivery was begun: the unit may have done its
// work with these fds.
func advice(unit, held string, begun bool) string {
	decide := ""
	if begun {
		decide = fmt.Sprintf("decide so with \"fdbridgectl deliver %s --as %s\", ", held, unit)
	}
	return fmt.Sprintf("to give it all that is held, stop it (\"systemctl reset-failed\" if it has failed), empty its store with "+
		"\"systemctl clean --what=fdstore %s\", %sand start it; or let go of that with \"fdbridgectl drop %s\"", unit, decide, held)
}

// refuse says why a parcel is not granted, but for a server that is being stopped:
// the client is to ask the next one, which it does when it is hung up on.
func (s *Server) refuse(ctx context.Context, conn *wire.Conn, unit string, p *holding, err error) error {
	if ctx.Err() != nil {
		return err
	}
	if p == nil { // it is not known what is held
		return conn.Send(wire.Grant{Error: err.Error()}, nil)
	}
	held := "it"
	if p.Unit != unit {
		held = p.Unit
	}
	about := journal.About{Kind: journal.Held, Unit: unit, Session: p.Sessions[0]}
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) { // as when the unit was stopped while it started
		s.Log.WarningOf(about, "%s: It did not wait for what is held for %s, which is held on: %v", unit, held, err)
		return nil
	}
	s.Holder.Refusal(about, peerName(conn), "%s: What is held for %s was not delivered and is held on: %v", unit, held, err)
	return conn.Send(wire.Grant{Error: err.Error()}, nil)
}

// applicant is a unit that asks for its fds, in an invocation of it. idle says
// that its store is known to be empty.
type applicant struct {
	unit       string
	idle       bool
	invocation string
}

func (s *Server) applicant(unit, invocation string) *applicant {
	idle, err := s.idle.First(unit, invocation)
	if err != nil {
		s.Log.Warning("Units will start more slowly: %v", err)
	}
	return &applicant{unit, idle, invocation}
}

// invocation returns what can be in the name of a mark, or nothing.
func invocation(id string) string {
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return ""
		}
	}
	if len(id) != 32 {
		return ""
	}
	return id
}

// permit returns the delivery of a parcel to a unit, which has begun, if the unit may have it.
func (s *Server) permit(ctx context.Context, to *applicant, p *holding) (*delivery, error) {
	if err := s.rightful(ctx, to.unit, p); err != nil {
		return nil, err
	}
	fds, sessions, err := s.inStore(ctx, to)
	if err == nil {
		err = s.mayBegin(p, to, fds)
	}
	if err != nil {
		return nil, err
	}
	d := &delivery{holding: p}
	if s.Holder.isShared(p) {
		if d, err = s.Holder.inspect(p); err != nil {
			return nil, err
		}
	}
	d.to, d.clear, d.storing, d.inStore = to.unit, fds > 0, fds > 0, sessions
	return d, s.Holder.begin(p, to.invocation)
}

// maxShared bounds how many tokens a Grant names, so that it fits into a packet.
const maxShared = 2000

// send sends a Grant for a parcel.
func (s *Server) send(conn *wire.Conn, d *delivery) error {
	at := d.manifest()
	grant := wire.Grant{Unit: d.Unit, Session: at.session, Token: at.token, Clear: d.clear, Sessions: d.inStore}
	for a := range d.shared {
		if a.session == at.session {
			grant.Shared = append(grant.Shared, a.token)
		}
	}
	if len(grant.Shared) > maxShared { // then the client has to ask for all
		grant.Shared = nil
		return conn.Send(grant, nil)
	}
	return conn.Send(grant, s.Holder.descriptor(at.session))
}

// inStore returns how many fds, and how many sessions beside them, a unit has in its store.
func (s *Server) inStore(ctx context.Context, to *applicant) (fds, sessions int, err error) {
	if to.idle {
		return 0, 0, nil
	}
	entries, err := s.PID1.Entries(ctx, to.unit)
	for i := range entries {
		if entries[i].Session() {
			sessions++
		} else {
			fds++
		}
	}
	return fds, sessions, err
}

// mayBegin refuses to mix what is held with n fds that the unit has stored since it
// was started without it: the unit could not tell old from new. After a delivery that was
// interrupted it refuses to give a unit twice what it may have had, and taken out of its
// store. Where it refuses neither, what is in the store is what an interrupted delivery has
// left there, as the unit itself has not run since.
func (s *Server) mayBegin(p *holding, to *applicant, n int) error {
	begun := s.Holder.begunIn(p)
	switch {
	case begun == "" && n > 0:
		return fmt.Errorf("its fd store has %d fds already, and fds of before the live update are not mixed with them; %s", n, advice(to.unit, p.Unit, false))
	case begun != "" && begun != to.invocation && n > 0:
		return fmt.Errorf("an earlier delivery was interrupted, the unit ran with what had arrived, and its fd store has %d fds; %s", n, advice(to.unit, p.Unit, true))
	case begun != "" && begun != to.invocation:
		return fmt.Errorf("an earlier delivery was interrupted, and the unit ran with what had arrived, which it may have used up; %s", advice(to.unit, p.Unit, true))
	}
	return nil
}

// attend serves a client to which a parcel was granted, until that is settled.
func (s *Server) attend(ctx context.Context, conn *wire.Conn, d *delivery) error {
	start := time.Now()
	for {
		var request wire.Request
		stray, err := conn.Receive(&request)
		_ = stray.Close() // no request has an fd with it
		if err != nil {
			return err
		}
		switch request.Op {
		case wire.OpStoring:
			d.storing = true
		case wire.OpFile:
			err = s.file(ctx, conn, d, address{request.Session, request.Token})
		case wire.OpDelivered:
			err := s.settle(d.holding, d.to, &request)
			if err == nil {
				s.note(d.Unit, time.Since(start))
			}
			_ = conn.Send(wire.Settled{Error: text(err)}, nil) // it is noted and logged, who else wants to know or not
			return nil
		case wire.OpReturned:
			err := s.takeBack(d.holding, d.to, request.Reason)
			_ = conn.Send(wire.Settled{Error: text(err)}, nil) // as above
			return err
		default:
			err = fmt.Errorf("%w: %q in a delivery", wire.ErrPacket, request.Op)
		}
		if err != nil {
			return err
		}
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// file answers OpFile with a file of the parcel's, and nobody else's. One that is not had
// before fdbridged is stopped is asked of the next.
func (s *Server) file(ctx context.Context, conn *wire.Conn, d *delivery, a address) error {
	if d.files == nil {
		inspected, err := s.Holder.inspect(d.holding)
		if err != nil {
			return conn.Send(s.refused(d, err), nil)
		}
		d.files, d.shared = inspected.files, inspected.shared
	}
	if _, named := d.files[a]; !named {
		err := fmt.Errorf("%w: %v is not in the manifest of %s", wire.ErrPacket, a, d.Unit)
		return errors.Join(err, conn.Send(s.refused(d, err), nil))
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	told := s.tellToWait(conn, stop)
	f, err := s.Holder.file(ctx, d, a)
	if gone := told(); gone != nil {
		return errors.Join(gone, f.Close())
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	if err != nil {
		return conn.Send(s.refused(d, err), nil)
	}
	return errors.Join(conn.Send(wire.File{}, f), f.Close())
}

// refused is the answer that there is no file. One in a session that is not there may
// come with the next fdbridged.
func (s *Server) refused(d *delivery, err error) wire.File {
	lost := !deliver.Passing(err)
	if errors.Is(err, session.ErrNoSession) {
		lost = s.Holder.allCame(d.Unit)
	}
	return wire.File{Error: err.Error(), Lost: lost}
}

// settle lets go of a parcel whose fds are in the store of its unit, but for
// those that are lost.
func (s *Server) settle(p *holding, unit string, delivered *wire.Request) error {
	for _, lost := range delivered.Failed {
		s.Holder.Problem(journal.About{Kind: journal.Lost, Unit: unit, Session: p.Sessions[0], FD: lost.Name}, "%s: The fd %q of session %s is lost: %s", unit, lost.Name, p.Sessions[0], lost.Reason)
	}
	if n := delivered.Lost - len(delivered.Failed); n > 0 {
		s.Holder.Problem(journal.About{Kind: journal.Lost, Unit: unit, Session: p.Sessions[0]}, "%s: %d more fds of session %s are lost, and named in the log of the unit", unit, n, p.Sessions[0])
	}
	if err := s.Holder.release(p); err != nil {
		s.Holder.Problem(journal.About{Unit: unit, Session: p.Sessions[0]}, "%s: %v; the session %s is held on", unit, err, p.Sessions[0])
		return err
	}
	s.Holder.settled(p.Unit, wire.ChangeDelivered, delivered.Stored)
	s.Log.InfoOf(journal.About{Kind: journal.Delivered, Unit: unit, Session: p.Sessions[0]}, "%s: Delivered %d fds of session %s.", unit, delivered.Stored, p.Sessions[0])
	return nil
}

// takeBack holds on to a parcel of which nothing could be delivered.
func (s *Server) takeBack(p *holding, unit, reason string) error {
	s.Holder.Problem(journal.About{Kind: journal.Held, Unit: unit, Session: p.Sessions[0]}, "%s: %s; session %s is held on", unit, reason, p.Sessions[0])
	return s.unbegun(p)
}

// delivered settles a delivery that was begun over another connection, with another fdbridged
// maybe.
func (s *Server) delivered(ctx context.Context, conn *wire.Conn, request *wire.Request) error {
	ctx, stop := context.WithTimeout(ctx, grantTimeout)
	defer stop()
	unit, err := s.peerUnit(conn)
	if err == nil {
		err = s.settleLate(ctx, unit, request)
	}
	return errors.Join(err, conn.Send(wire.Settled{Error: text(err)}, nil))
}

func (s *Server) settleLate(ctx context.Context, unit string, request *wire.Request) error {
	at := address{request.Session, request.Token}
	p := s.Holder.at(at)
	if p == nil {
		return s.Holder.Known(ctx, unit) // it was settled before the connection broke
	}
	if !s.Holder.mayClaim(s.claimsOf(unit), p) {
		return fmt.Errorf("%v is the manifest of another unit than %s", at, unit)
	}
	done, err := s.turn(ctx, unit, p.Unit)
	if err != nil {
		return err
	}
	defer done()
	if s.Holder.at(at) == nil {
		return nil
	}
	// Where it is this very delivery whose beginning was noted, it was found rightful then.
	begun := s.Holder.begunIn(p)
	same := begun != "" && begun == request.Invocation
	switch {
	case request.Op == wire.OpReturned && same:
		return s.takeBack(p, unit, request.Reason)
	case request.Op == wire.OpReturned:
		return nil // nobody says that anything of it was delivered
	case !same:
		if err := s.rightful(ctx, unit, p); err != nil {
			return err
		}
	}
	return s.settle(p, unit, request)
}
