// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"fmt"
	"strings"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/units"
	"github.com/fdbridge/fdbridge/units/generator"
)

// peerUnit returns the unit of the process at the other end.
func (s *Server) peerUnit(conn *wire.Conn) (string, error) {
	peer, err := conn.Peer()
	if err != nil {
		return "", err
	}
	defer func() { _ = peer.Close() }() // a pidfd has nothing to flush
	return s.UnitOf(peer)
}

// peerName names the process at the other end for the log.
func peerName(conn *wire.Conn) string {
	peer, err := conn.Peer()
	if err != nil {
		return "a process that cannot be identified"
	}
	defer func() { _ = peer.Close() }() // as above
	pid, err := units.PID(peer)
	if err != nil {
		return "a process that has ended"
	}
	return fmt.Sprintf("process %d", pid)
}

// claimsOf returns the names that what is held for a unit can have.
func (s *Server) claimsOf(unit string) *claims {
	facts, _ := s.Facts(unit)
	return &claims{unit: unit, previous: facts.PreviousNames(unit)}
}

// rightful returns why a parcel that a unit claims is not to be given to it: the
// unit is not what it was when its store was preserved, or the parcel is
// another unit's, which is there still. What an administrator has decided is not
// questioned, but the manifest has to be that of the unit that the index says.
func (s *Server) rightful(ctx context.Context, unit string, p *holding) error {
	m, err := s.Holder.readManifest(p)
	if err != nil {
		return fmt.Errorf("whose session %s is cannot be read: %w", p.Sessions[0], err)
	}
	if s.Holder.assignedTo(p.Unit) == unit {
		return nil
	}
	if p.Unit != unit {
		if err := s.renamed(ctx, unit, p.Unit); err != nil {
			return err
		}
	}
	differ, err := s.changes(ctx, unit, &m.Identity)
	if err == nil && differ != "" {
		err = fmt.Errorf("it is not the unit that it was before the live update: %s; if it is to have what is held nevertheless, "+
			"\"fdbridgectl deliver %s --as %s\" gives it that when it is started next", differ, p.Unit, unit)
	}
	return err
}

// changes says what of a unit has to be as it was before the live update, and is not;
// empty when nothing.
func (s *Server) changes(ctx context.Context, unit string, was *kho.Identity) (string, error) {
	facts, loaded := s.Facts(unit)
	now := &kho.Identity{Fragment: facts.Fragment, User: facts.User, Group: facts.Group}
	if !loaded {
		id, err := s.PID1.Identity(ctx, unit)
		if err != nil {
			return "", err
		}
		now = &kho.Identity{Fragment: id.FragmentPath, User: id.User, Group: id.Group}
	}
	return strings.Join(differences(facts, was, now), ", "), nil
}

// renamed returns why a unit cannot have had a name before: a unit of that name
// is there. PID 1 is asked, because it may have been made since this one was.
func (s *Server) renamed(ctx context.Context, unit, previous string) error {
	was, err := s.PID1.Identity(ctx, previous)
	if err != nil {
		return err
	}
	if was.Missing() || was.Unit == unit { // an alias that it has kept
		return nil
	}
	return fmt.Errorf("it has PreviousName=%s, but %s is a unit of its own and alone may have what is held for it; "+
		"remove that, or \"fdbridgectl deliver %s --as %s\" decides otherwise", previous, previous, previous, unit)
}

// differences names what of a unit has to be as it was and is not.
func differences(facts generator.Facts, was, is *kho.Identity) (differ []string) {
	compare := func(word, what, was, is string) {
		if was != is && facts.Compares(word) {
			differ = append(differ, fmt.Sprintf("its %s was %s and is %s", what, shown(was), shown(is)))
		}
	}
	compare(generator.ByUser, "user", userOf(was), userOf(is))
	compare(generator.ByGroup, "group", groupOf(was), groupOf(is))
	compare(generator.ByFragment, "unit file", was.Fragment, is.Fragment)
	return differ
}

// identityOf is who the unit of a store is.
func identityOf(store *units.Store) kho.Identity {
	return kho.Identity{Fragment: store.FragmentPath, User: store.User, Group: store.Group}
}

// userOf returns the user that a unit runs as: root unless it says otherwise.
func userOf(i *kho.Identity) string {
	if i.User == "" || i.User == "0" {
		return "root"
	}
	return i.User
}

// groupOf returns the group that a unit runs as; empty for that of its user,
// where it is not known to be root's.
func groupOf(i *kho.Identity) string {
	if i.Group == "0" || i.Group == "" && userOf(i) == "root" {
		return "root"
	}
	return i.Group
}

func shown(value string) string {
	if value == "" {
		return "not set"
	}
	return fmt.Sprintf("%q", value)
}
