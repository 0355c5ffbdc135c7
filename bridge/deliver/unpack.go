// SPDX-License-Identifier: Apache-2.0

package deliver

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
)

// unpacking is the delivery of one parcel.
type unpacking struct {
	*Deliverer
	conn    *wire.Conn
	grant   *wire.Grant
	session *session.Session // that of the manifest; nil when it is gone

	names  map[string]bool // of the fds that may be in the store
	shared map[place]*file // what several entries are of
	stored int
	failed []wire.Lost
}

// place is where a file is.
type place struct {
	session string
	token   uint64
}

// file is a file with its seals, its owner and its mode as they were.
type file struct {
	f    *fd.FD
	left int // how many entries of it are still to come
}

// lostError is an error that will be the same whenever the same is tried.
type lostError struct{ error }

// unpack puts the parcel's files into the unit's store. They are stored in
// reverse, since the service manager puts each new one in front of the others
// (service_add_fd_store in src/core/service.c). When it returns without an
// error, the service manager has taken them in. What can never be delivered is
// counted and does not keep the rest from it.
func (u *unpacking) unpack(ctx context.Context) error {
	m, err := u.manifest(ctx)
	if err != nil {
		return err
	}
	entries := slices.DeleteFunc(m.Entries, func(e kho.Entry) bool { return e.Kind == kho.KindLost })
	if need := len(entries) + max(u.sessions, u.grant.Sessions); need > u.Max {
		return fmt.Errorf("its fd store has room for %d fds only, and %d are needed; raise FileDescriptorStoreMax= to that and restart the unit",
			u.Max, need)
	}
	if err := send(ctx, u.conn, wire.Request{Op: wire.OpStoring}); err != nil {
		return err
	}
	u.names, u.shared = map[string]bool{}, map[place]*file{}
	defer u.closeShared()
	for i := range entries {
		u.expect(&entries[i])
	}
	if u.grant.Clear {
		for i := range entries {
			u.names[entries[i].Name] = true
		}
		if err := u.clear(); err != nil {
			return err
		}
	}
	for i := range slices.Backward(entries) {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("there was no time to deliver all fds: %w", context.Cause(ctx))
		}
		if err := u.deliver(ctx, &entries[i]); err != nil {
			return fmt.Errorf("deliver the fd %q: %w", entries[i].Name, err)
		}
	}
	return u.takenIn()
}

func (u *unpacking) manifest(ctx context.Context) (m *kho.Manifest, err error) {
	f, err := u.fetch(ctx, place{u.grant.Session, u.grant.Token})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return kho.ReadManifest(f, u.grant.Unit)
}

// placeOf returns where an entry's file is.
func (u *unpacking) placeOf(e *kho.Entry) place {
	return place{e.SessionOf(u.grant.Session), e.Token}
}

// expect notes that there is an entry, so that a file that several are of is
// fetched and mended once.
func (u *unpacking) expect(e *kho.Entry) {
	at := u.placeOf(e)
	if u.shared[at] == nil {
		u.shared[at] = &file{}
	}
	u.shared[at].left++
}

func (u *unpacking) closeShared() {
	for _, s := range u.shared {
		_ = s.f.Close() // of a memfd, which has nothing to flush
	}
}

// deliver puts one entry into the store, or counts it as lost.
func (u *unpacking) deliver(ctx context.Context, e *kho.Entry) error {
	f, err := u.entry(ctx, e)
	if err == nil {
		defer func() { _ = f.Close() }() // of a memfd, which has nothing to flush
		u.names[e.Name] = true
		if err := u.put(e.Name, f); err != nil {
			return err
		}
		u.stored++
		return nil
	}
	if lost := (lostError{}); !errors.As(err, &lost) {
		return err
	}
	u.Lost(e.Name, err)
	u.failed = append(u.failed, wire.Lost{Name: e.Name, Type: e.Type, Reason: short(err.Error())})
	return nil
}

// maxReason bounds the reason in a wire.Lost in bytes: MaxFailed of them fit
// into a packet, even if each byte is written as six.
const maxReason = 300

func short(reason string) string { return reason[:min(len(reason), maxReason)] }

// entry returns an entry's open file, as it was before the live update.
func (u *unpacking) entry(ctx context.Context, e *kho.Entry) (*fd.FD, error) {
	if e.Kind != kho.KindLUO {
		return nil, lostError{fmt.Errorf("this version of fdbridge knows no entries of kind %q", e.Kind)}
	}
	at := u.placeOf(e)
	s := u.shared[at]
	if s.f == nil {
		f, err := u.fetch(ctx, at)
		if err != nil {
			return nil, err
		}
		u.work(func() { s.f, err = Reseal(ctx, f, e) })
		if err != nil {
			return nil, final(err)
		}
		if err := reown(s.f, e); err != nil {
			u.Altered(e.Name, err)
		}
	}
	f := s.f
	if s.left--; s.left > 0 {
		dup, err := f.Dup()
		if err != nil {
			return nil, err
		}
		f = dup
	} else {
		s.f = nil
	}
	f, err := reopen(f, e)
	return f, final(err)
}

// fetch gets a file out of the unit's session itself, so that its memory is
// charged to the unit, and what is not there from fdbridged.
func (u *unpacking) fetch(ctx context.Context, at place) (*fd.FD, error) {
	if at.session == u.grant.Session && u.session != nil && !slices.Contains(u.grant.Shared, at.token) {
		var f *fd.FD
		var err error
		u.work(func() { f, err = u.session.RetrieveFD(at.token) })
		if !errors.Is(err, session.ErrNoToken) {
			return f, final(err)
		}
	}
	request := wire.Request{Op: wire.OpFile, Session: at.session, Token: at.token}
	answer, f, err := await(ctx, u.Deliverer, u.conn, request, func(file *wire.File) bool { return file.Wait })
	switch {
	case err != nil && !errors.Is(err, errUnanswered): // the answer may come yet
		return nil, fmt.Errorf("%w: %w", errUnanswered, err)
	case err != nil:
		return nil, err
	case answer.Error == "" && f != nil:
		return f, nil
	}
	_ = f.Close()
	err = fmt.Errorf("fdbridged does not have it: %s", answer.Error)
	if answer.Lost {
		err = lostError{err}
	}
	return nil, err
}

// final makes an error that does not pass a lostError.
func final(err error) error {
	if err == nil || Passing(err) {
		return err
	}
	return lostError{err}
}

// clear removes what this delivery, or an earlier one, has put into the store.
// What is sent after it comes after it.
func (u *unpacking) clear() error {
	for name := range u.names {
		if u.removed == nil {
			u.removed = map[string]bool{}
		}
		u.removed[name] = true
		if err := u.take(name); err != nil {
			return err
		}
	}
	clear(u.names)
	return nil
}

// giveBack removes what was stored, so that the unit starts with an empty store
// and fdbridged holds on all of it, and tells fdbridged why. It returns an error
// that says all that went wrong.
func (u *unpacking) giveBack(ctx context.Context, why error) error {
	err := u.clear()
	if err == nil {
		err = u.takenIn()
	}
	if err != nil { // fdbridged must not forget that the delivery was begun
		return errors.Join(why, fmt.Errorf("remove from the store what was delivered: %w", err))
	}
	returned := wire.Request{
		Op: wire.OpReturned, Session: u.grant.Session, Token: u.grant.Token, Invocation: u.Invocation, Reason: short(why.Error()),
	}
	if errors.Is(why, errUnanswered) { // Run asks another fdbridged, or tells it
		u.returned = &returned
		return why
	}
	if err := u.settle(context.WithoutCancel(ctx), u.conn, returned); err != nil {
		why = fmt.Errorf("%w; fdbridged was not told: %v", why, err)
	}
	return why
}

// delivered is what to tell fdbridged when all is in the store.
func (u *unpacking) delivered() wire.Request {
	return wire.Request{
		Op: wire.OpDelivered, Session: u.grant.Session, Token: u.grant.Token, Invocation: u.Invocation,
		Stored: u.stored, Lost: len(u.failed), Failed: u.failed[:min(len(u.failed), wire.MaxFailed)],
	}
}
