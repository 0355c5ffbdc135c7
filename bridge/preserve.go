// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
)

// OwnUnit is fdbridged's unit, in whose store the sessions are held.
const OwnUnit = "fdbridged.service"

// deviceTimeout bounds how long to wait for another process that has
// /dev/liveupdate open, which only one can.
const deviceTimeout = 10 * time.Second

// Stores is what a Preserver asks PID 1; units.Reader does it.
type Stores interface {
	Stores(ctx context.Context) ([]units.Store, error)
	Entries(ctx context.Context, unit string) ([]units.Entry, error)
}

// Duplicator duplicates fds that PID 1 holds; units.Duplicator does it.
type Duplicator interface {
	Dup(e *units.Entry) (*units.File, error)
	Sessions() ([]*fd.FD, error)
	Close() error
}

// Preserver puts the stores of all opted-in units into sessions.
type Preserver struct {
	Stores     Stores
	Duplicator func() (Duplicator, error)
	Kernel     session.Kernel
	Device     string // session.Path but in tests
	Excluded   func(unit string) bool
	Origin     kho.Origin
	Log        *journal.Log
}

// Preserved is what a Preserver has done. It owns the sessions: the kernel
// carries what is in those that are open at the kexec.
type Preserved struct {
	Index    *kho.Index
	sessions []*session.Session
}

// Close closes the sessions, which takes everything in them out again.
func (p *Preserved) Close() error {
	var failed []error
	for _, s := range p.sessions {
		failed = append(failed, s.Close())
	}
	return errors.Join(failed...)
}

// Run captures and preserves the stores. An entry that cannot be carried is
// logged and stands in the index, and is no error. An error means that nothing
// is carried; the stores are as they were. Each question to PID 1 is bounded,
// and so is the wait for the device.
//
// The caller owns what is returned and keeps it open until the kexec.
func (p *Preserver) Run(ctx context.Context) (_ *Preserved, err error) {
	start := time.Now()
	parcels, duplicator, err := p.parcels(ctx)
	if err != nil {
		return nil, fmt.Errorf("capture the fd stores: %w", err)
	}
	defer func() { _ = duplicator.Close() }() // it was only read from
	done := &Preserved{Index: &kho.Index{Origin: p.Origin}}
	if err := p.preserve(ctx, done, parcels); err != nil {
		return nil, errors.Join(fmt.Errorf("preserve the fd stores: %w", err), done.Close())
	}
	done.Index.Duration = time.Since(start)
	if err := seal(done.sessions[0], done.Index); err != nil {
		return nil, errors.Join(fmt.Errorf("preserve the index of the sessions: %w", err), done.Close())
	}
	units, entries := 0, 0
	for _, u := range done.Index.Units {
		units, entries = units+len(u.Sessions), entries+u.Entries
	}
	p.Log.Info("Preserved %d fds in the sessions of %d units.", entries, units)
	return done, nil
}

// preserve fills done: the index's session, first and still empty, and those
// of the parcels.
func (p *Preserver) preserve(ctx context.Context, done *Preserved, parcels []*parcel) error {
	if err := p.createSessions(ctx, done, parcels); err != nil {
		return err
	}
	for i, parcel := range parcels {
		unit := p.pack(ctx, parcel, done.sessions[1+i])
		if len(unit.Sessions) == 0 {
			if err := done.sessions[1+i].Close(); err != nil {
				return err
			}
		}
		done.add(unit)
	}
	return nil
}

// createSessions creates the index's session and one for each parcel, nil
// where that fails, and closes the device again: nobody else can open it
// meanwhile.
func (p *Preserver) createSessions(ctx context.Context, done *Preserved, parcels []*parcel) (err error) {
	ctx, stop := context.WithTimeout(ctx, deviceTimeout)
	defer stop()
	device, err := session.OpenWait(ctx, p.Kernel, p.Device)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	index, err := device.Create(kho.IndexSession)
	if err != nil {
		return err
	}
	done.sessions = append(done.sessions, index)
	for _, parcel := range parcels {
		s, err := device.Create(parcel.session)
		if err != nil {
			parcel.lose(fmt.Errorf("there is no session for the unit: %w", err))
		}
		done.sessions = append(done.sessions, s)
	}
	return nil
}

// pack puts a parcel's files into its session s, which is nil when the parcel
// is lost already, and the manifest with them. It returns the unit's part of
// the index, without a session when nothing is carried.
func (p *Preserver) pack(ctx context.Context, parcel *parcel, s *session.Session) kho.IndexUnit {
	if s != nil {
		parcel.open(ctx, parcel)
		defer parcel.close()
	}
	manifest := &kho.Manifest{Unit: parcel.unit, Identity: parcel.identity, Origin: parcel.origin}
	for i := range parcel.items {
		manifest.Entries = append(manifest.Entries, parcel.items[i].preserve(s, uint64(i)+1))
	}
	unit := summary(manifest)
	if unit.Entries > 0 {
		if err := seal(s, manifest); err != nil {
			unit = allLost(manifest, err)
		} else {
			unit.Sessions = []string{parcel.session}
		}
	}
	p.report(&unit)
	return unit
}

// preserve puts one file into a session and returns its manifest entry.
func (it *item) preserve(s *session.Session, token uint64) kho.Entry {
	if it.lost == nil {
		it.lost = s.Preserve(it.file, token)
	}
	if it.lost != nil {
		it.entry.Kind, it.entry.Token, it.entry.Reason = kho.KindLost, 0, reason(it.lost)
	} else {
		it.entry.Kind, it.entry.Token = kho.KindLUO, token
	}
	return it.entry
}

// report logs what of a unit's store will be lost. What is carried is in the
// index: a message for each unit would take its time on a serial console.
func (p *Preserver) report(unit *kho.IndexUnit) {
	for _, lost := range unit.Lost {
		p.Log.Err("%s: The fd %q (%s) will be lost: %s", unit.Unit, lost.Name, lost.Type, lost.Reason)
	}
}

// add puts a unit into the index, where an older session of a unit follows
// the newer one.
func (p *Preserved) add(unit kho.IndexUnit) {
	for i := range p.Index.Units {
		if same := &p.Index.Units[i]; same.Unit == unit.Unit {
			same.Sessions = append(same.Sessions, unit.Sessions...)
			same.Lost = append(same.Lost, unit.Lost...)
			same.Entries += unit.Entries
			same.Bytes += unit.Bytes
			return
		}
	}
	p.Index.Units = append(p.Index.Units, unit)
}

// seal preserves a manifest or an index under the token that is theirs.
func seal(s *session.Session, document interface{ Memfd() (*fd.FD, error) }) error {
	f, err := document.Memfd()
	if err != nil {
		return err
	}
	return errors.Join(s.Preserve(f, kho.ManifestToken), f.Close())
}

// summary is a manifest's part of the index, but for the session.
func summary(m *kho.Manifest) kho.IndexUnit {
	unit := kho.IndexUnit{Unit: m.Unit}
	for _, e := range m.Entries {
		if e.Kind == kho.KindLost {
			unit.Lost = append(unit.Lost, kho.LostEntry{Name: e.Name, Type: e.Type, Reason: e.Reason})
			continue
		}
		unit.Entries++
		unit.Bytes += e.Size
	}
	return unit
}

// allLost is the part of the index of a unit whose manifest cannot be preserved.
func allLost(m *kho.Manifest, err error) kho.IndexUnit {
	for i := range m.Entries {
		if e := &m.Entries[i]; e.Kind != kho.KindLost {
			e.Kind, e.Token, e.Reason = kho.KindLost, 0, fmt.Sprintf("the manifest of its session cannot be preserved: %v", err)
		}
	}
	return summary(m)
}

// reason says to an operator why an entry is lost.
func reason(err error) string {
	switch {
	case errors.Is(err, session.ErrUnsupported):
		return session.ErrUnsupported.Error()
	case errors.Is(err, session.ErrPreserved):
		return "the same file is stored more than once, and the kernel carries it once"
	}
	return err.Error()
}
