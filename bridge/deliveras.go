// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/units/generator"
	"github.com/fdbridge/fdbridge/units/unitfile"
)

// deliverAs answers OpDeliverAs. Whoever can open the socket is root.
func (s *Server) deliverAs(ctx context.Context, conn *wire.Conn, request *wire.Request) error {
	bounded, stop := context.WithTimeout(ctx, grantTimeout)
	defer stop()
	assigned, err := s.assign(bounded, request.Unit, request.As)
	if err := s.outcome(ctx, conn, err); err != nil {
		return err
	}
	s.Log.InfoOf(journal.About{Kind: journal.Assigned, Unit: assigned.Unit}, "%s: Its %d fds, which are held, will be delivered to %s: an administrator has decided so (by %s).",
		assigned.Unit, assigned.Held, assigned.As, peerName(conn))
	return errors.Join(conn.Send(wire.Answer{Assigned: assigned}, nil), conn.Send(wire.Answer{End: true}, nil))
}

// assign makes what is held for a unit to's, if that can have it when it starts.
func (s *Server) assign(ctx context.Context, unit, to string) (*wire.Assigned, error) {
	if !unitfile.ValidName(to) || unitfile.IsTemplate(to) {
		return nil, fmt.Errorf("%q is no name of a service", to)
	}
	done, err := s.turn(ctx, unit, to)
	if err != nil {
		return nil, err
	}
	defer done()
	assigned := &wire.Assigned{Unit: unit, As: to}
	for _, p := range s.Holder.Held(unit) {
		assigned.Held, assigned.HeldBytes = assigned.Held+p.Entries, assigned.HeldBytes+p.Bytes
	}
	if assigned.Held == 0 {
		if err := s.Holder.Known(ctx, unit); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("nothing is held for %s", unit)
	}
	if p := s.Holder.claimed(&claims{unit: to}); p != nil && p.Unit != unit {
		return nil, fmt.Errorf("%s is to have what is held for %s, and cannot have more; "+
			"let it be started first, or let go of that with \"fdbridgectl drop %s\"", to, p.Unit, p.Unit)
	}
	if to != unit {
		if err := s.asks(ctx, to); err != nil {
			return nil, err
		}
	}
	stored, err := s.PID1.Stored(ctx, []string{to})
	if err != nil {
		return nil, err
	}
	assigned.Stored = stored[to]
	return assigned, s.Holder.Assign(unit, to)
}

// errLeft says that a unit is excluded.
func errLeft(unit string) error {
	return fmt.Errorf("%s is left alone: Exclude= in fdbridge.conf or Preserve=no in its [X-FDBridge] says so", unit)
}

// asks returns why a unit would not ask for its fds when it starts. That it has
// the drop-in which makes it do so is not arranged here: PID 1 takes notice of a
// loaded unit's only when it is reloaded, which is not fdbridged's to do.
func (s *Server) asks(ctx context.Context, unit string) error {
	id, err := s.PID1.Identity(ctx, unit)
	switch {
	case err != nil:
		return err
	case id.Missing():
		return fmt.Errorf("there is no unit %s that could be started", unit)
	case id.Unit != unit:
		return fmt.Errorf("%s is another name of %s; say that", unit, id.Unit)
	case s.Excluded(unit):
		return errLeft(unit)
	case !id.OptedIn() || !id.HasDropIn(generator.DropInPrefix):
		return fmt.Errorf("%s does not ask for its fds when it starts: set FileDescriptorStoreMax= to their number and "+
			"FileDescriptorStorePreserve=yes in it, and run \"systemctl daemon-reload\"", unit)
	}
	return nil
}
