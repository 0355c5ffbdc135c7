// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
	"github.com/fdbridge/fdbridge/units/generator"
)

const (
	// OwnUnit is fdbridged's unit, in whose store the sessions are held.
	OwnUnit = "fdbridged.service"
	// PreserveUnit is the unit of what preserves, see Preserver.Rescue.
	PreserveUnit = "fdbridge-preserve.service"
	// ArrivalUnit is the unit of what reviews an Arrival.
	ArrivalUnit = "fdbridge-arrival.service"
)

// deviceTimeout bounds how long to wait for another process that has
// /dev/liveupdate open, which only one can.
const deviceTimeout = 10 * time.Second

// EmptyTimeout bounds how long it may take to empty stores. PID 1 has each fd closed by
// a process of its own (asynchronous_close in src/shared/async.c, systemd 262), which
// takes it some 3 ms on an emulated processor, and does nothing else meanwhile.
const EmptyTimeout = 40 * time.Second

// Stores is what a Preserver asks PID 1; units.Ahead does it, and says with its ErrStale
// that all is to be preserved anew.
type Stores interface {
	EachStore(ctx context.Context, each func(s *units.Store)) error
	Files(s *units.Store) []*units.File
	Entries(ctx context.Context, unit string) ([]units.Entry, error)
	Carries(ctx context.Context) (bool, error)
	Empty(ctx context.Context, units []string) error
}

// Duplicator duplicates fds that PID 1 holds; units.Duplicator does it.
type Duplicator interface {
	Dup(entries []units.Entry) ([]*units.File, []error)
	Sessions() ([]*fd.FD, error)
	Close() error
}

// Preserver puts the stores of all opted-in units into sessions.
type Preserver struct {
	Stores     Stores
	Duplicator func() (Duplicator, error)
	Kernel     session.Kernel
	Device     string                 // session.Path but in tests
	Excluded   func(unit string) bool // of fdbridge's own units, too
	// Required tells whether the live update is to be called off when anything
	// of a unit cannot be carried.
	Required func(unit string) bool
	// Early says what of a unit's store may be preserved ahead, by Prepare.
	Early func(unit string) generator.Early
	// Partly says that the rest is carried when PID 1 does not tell of all stores.
	Partly bool
	// Rescue is the fd store of this process's own unit, for what has to be
	// taken out of held sessions.
	Rescue Keeper
	// Record puts the index where it survives a power cut: see RecordFile.
	Record func(index *kho.Index) error
	// Sealed is called when all is preserved, and told how long what is left takes at most:
	// nothing, or to empty stores, from which there is no way back, and which an error prevents.
	Sealed func(left time.Duration) error
	Origin kho.Origin
	Log    *journal.Log
	// Warnings returns what Log was told that needs attention: the index takes it to
	// the next kernel.
	Warnings func() []string

	ahead  *packer // what Prepare has preserved
	drafts drafts
}

// errPrepared says that what was preserved ahead cannot be used.
var errPrepared = errors.New("what was prepared cannot be used")

// ErrRequired says that something would be lost that is required, and that the
// live update is to be called off.
var ErrRequired = errors.New("fds would be lost that may not be")

// Preserved is what a Preserver has done. It owns the sessions: the kernel
// carries what is in those that are open at the kexec. The zero value is of
// nothing.
type Preserved struct {
	Index    *kho.Index
	sessions []*session.Session
	files    []*fd.FD // those that are in the sessions, open for comparison
	// device is open where PID 1 would carry stores, too, and there is nothing for it to
	// carry: it finds it busy then. Otherwise finished are the units whose stores it is not
	// to carry, and rescued the names in this process's own; none where it carries nothing.
	device            *session.Device
	finished, rescued []string
}

// Close closes the sessions, which takes everything in them out again.
func (p *Preserved) Close() error {
	var failed []error
	if p.device != nil {
		failed = append(failed, p.device.Close())
	}
	for _, s := range p.sessions {
		failed = append(failed, s.Close())
	}
	for _, f := range p.files {
		failed = append(failed, f.Close())
	}
	return errors.Join(failed...)
}

// Summary says in a sentence what is preserved.
func (p *Preserved) Summary() string {
	if p.Index == nil {
		return "Nothing is preserved."
	}
	of := handover(p.Index)
	if n := len(p.Index.Services); n > 0 {
		return fmt.Sprintf("Preserved %d fds of %d units, and %d sessions of services.", of.Entries, of.Units, n)
	}
	return fmt.Sprintf("Preserved %d fds of %d units.", of.Entries, of.Units)
}

// Run captures and preserves the stores. An entry that cannot be carried is
// logged and stands in the index, and is no error. An error means that nothing
// is carried; the stores are as they were. Each question to PID 1 is bounded,
// and so is the wait for the device.
//
// The caller owns what is returned and keeps it open until the kexec.
func (p *Preserver) Run(ctx context.Context) (_ *Preserved, err error) {
	start := time.Now()
	defer p.drafts.close()
	packer := p.ahead
	if p.ahead = nil; packer == nil {
		packer = newPacker(&Preserved{})
	}
	index, err := p.fill(ctx, packer)
	if errors.Is(err, errPrepared) || errors.Is(err, units.ErrStale) {
		p.Log.Warning("What was preserved so far is preserved anew: %v", err)
		err = packer.done.Close()
		packer = newPacker(&Preserved{})
		if err == nil {
			index, err = p.fill(ctx, packer)
		}
	}
	done := packer.done
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("preserve the fd stores: %w", err), done.Close())
		}
	}()
	if err != nil {
		return nil, err
	}
	done.Index.Messages = p.Warnings()
	for i := range done.Index.Units { // which the index has by itself
		p.report(&done.Index.Units[i])
	}
	done.Index.Duration = time.Since(start)
	if err := seal(index, done.Index); err != nil {
		return nil, fmt.Errorf("the index of the sessions: %w", err)
	}
	p.record(done.Index)
	p.Log.Info("%s", done.Summary())
	var left time.Duration
	if len(done.finished)+len(done.rescued) > 0 {
		left = EmptyTimeout
	}
	prevented := p.Sealed(left)
	switch {
	case done.device != nil:
		p.Log.Info("Nothing is left for the service manager to carry, which will find %s busy.", p.Device)
	case left > 0 && prevented != nil:
		p.Log.Warning("The service manager will try to carry what is carried already: %v", prevented)
	case left > 0:
		p.empty(ctx, done)
	}
	return done, nil
}

// empty empties the stores that PID 1 would try to carry, too (systemd 261 and
// later), and fdbridged's, whose marks are true of one boot only. There is no way
// back after that, so it comes last, and is not broken off. The kernel takes no file twice: what a store
// has that cannot be emptied is carried once nevertheless.
func (p *Preserver) empty(ctx context.Context, done *Preserved) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), EmptyTimeout) // however long the rest has taken
	defer stop()
	err := p.Stores.Empty(ctx, done.finished)
	for _, name := range done.rescued {
		err = errors.Join(err, p.Rescue.Remove(name))
	}
	if len(done.rescued) > 0 {
		err = errors.Join(err, p.Rescue.Barrier())
	}
	if err != nil {
		p.Log.Warning("The service manager will try to carry what is carried already: %v", err)
	}
}

// record puts an index where the next boot finds it.
func (p *Preserver) record(index *kho.Index) {
	if err := p.Record(index); err != nil {
		p.Log.Warning("Should the live update not arrive, the next boot cannot say what was lost: %v", err)
	}
}

// fill puts all that there is to carry into sessions, and returns that of the
// index, which is still empty. It has the device open meanwhile, or up to the kexec: all
// services have stopped, and nobody else wants it but a PID 1 that carries stores.
func (p *Preserver) fill(ctx context.Context, packer *packer) (index *session.Session, err error) {
	done := packer.done
	done.Index = &kho.Index{Origin: p.Origin}
	wait, stop := context.WithTimeout(ctx, deviceTimeout)
	defer stop()
	packer.device, err = session.OpenWait(wait, p.Kernel, p.Device)
	if err != nil {
		return nil, err
	}
	defer func() {
		if done.device == nil {
			err = errors.Join(err, packer.device.Close())
		}
	}()
	index, err = packer.create(kho.IndexSession)
	if errors.Is(err, unix.ENOMEM) && len(packer.early) > 0 { // as Linux 6.19 to 7.1 say of too many sessions
		err = fmt.Errorf("%w: %w", errPrepared, err)
	}
	if err != nil {
		return nil, err
	}
	found, err := p.carry(ctx, packer)
	if err != nil {
		return nil, err
	}
	defer found.close()
	return index, p.complete(found, packer)
}

// complete adds to what was found in the stores what fdbridged holds, and the index, and
// notes how PID 1 is kept from what is carried.
func (p *Preserver) complete(found *stores, packer *packer) error {
	done := packer.done
	services, lost, err := p.services(found, done)
	if err == nil {
		err = p.require(lost)
	}
	if err != nil {
		return err
	}
	held, rescued, err := p.takeHeld(found)
	if err != nil {
		return err
	}
	packer.again()
	if done.Index.Units, err = p.written(packer, found.parcels); err != nil {
		closeAll(held)
		return err
	}
	for _, parcel := range held {
		packer.pack(parcel)
	}
	list, err := p.written(packer, held)
	if err != nil {
		return err
	}
	done.Index.Units = slices.Concat(done.Index.Units, list, lost)
	done.Index.Services = services
	switch {
	case !found.shared || len(done.Index.Units) == 0 && found.own == nil: // it carries nothing of it
	case found.nothingLeft():
		done.device = packer.device
	default:
		done.finished, done.rescued = found.finished(), rescued
	}
	return nil
}

// written writes the manifests of parcels, and returns the index of their units. It fails when
// something is lost that may not be.
func (p *Preserver) written(packer *packer, parcels []*parcel) ([]kho.IndexUnit, error) {
	list, err := packer.finish(parcels)
	if err != nil {
		return nil, err
	}
	return list, p.require(list)
}

// require fails when something is lost that may not be.
func (p *Preserver) require(list []kho.IndexUnit) error {
	var failed []error
	for i := range list {
		if u := &list[i]; len(u.Lost) > 0 && p.Required(u.Unit) {
			p.report(u)
			failed = append(failed, fmt.Errorf("%s: %d of its fds", u.Unit, len(u.Lost)))
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("%w: %w", ErrRequired, errors.Join(failed...))
	}
	return nil
}

// report logs what of a unit's store will be lost. What is carried is in the
// index: a message for each unit would take its time on a serial console.
func (p *Preserver) report(unit *kho.IndexUnit) {
	for _, lost := range unit.Lost {
		p.Log.Err("%s: The fd %q (%s) will be lost: %s", unit.Unit, lost.Name, lost.Type, lost.Reason)
	}
}

// seal preserves an index under the token that is its own.
func seal(s *session.Session, document interface{ Memfd() (*fd.FD, error) }) error {
	f, err := document.Memfd()
	if err != nil {
		return err
	}
	return errors.Join(s.Preserve(f, kho.ManifestToken), f.Close())
}
