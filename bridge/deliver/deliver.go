// SPDX-License-Identifier: Apache-2.0

// Package deliver is the unit's side of a delivery: it runs as a control
// process of the unit that is being started, before its main process, gets the
// unit's session from fdbridged and puts the files into the unit's fd store.
//
// It goes into a program that runs before each start of a service, so it
// imports nothing large. Whether the unit may have the session is decided by
// fdbridged.
package deliver

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
)

const (
	// connectTimeout bounds how long the unit's start waits for a fdbridged
	// that is not there, because it crashed or was stopped; the unit then
	// starts without the fds, which are held on.
	connectTimeout = 10 * time.Second
	// answerTimeout bounds each wait for an answer of fdbridged.
	answerTimeout = 2 * time.Minute
	// retryDelay is between two tries to connect.
	retryDelay = 20 * time.Millisecond
)

// Store is the unit's fd store; notify.Socket is the way to it.
type Store interface {
	Store(name string, f *fd.FD) error
	Barrier() error
}

// Deliverer delivers to the unit that this process belongs to.
type Deliverer struct {
	Socket string // wire.Path but in tests
	Kernel session.Kernel
	Store  Store
	// Max is FileDescriptorStoreMax= of the unit, which the service manager
	// tells its processes in $FDSTORE (systemd 254).
	Max int
}

// Run delivers what is held for the unit. It returns the number of fds that
// were put into the store, 0 and no error when nothing is held. With an error,
// what was not delivered is held on.
func (d *Deliverer) Run() (int, error) {
	conn, err := dial(d.Socket)
	if err != nil {
		return 0, fmt.Errorf("fdbridged cannot be reached, and holds on what it may hold for this unit: %w", err)
	}
	defer func() { _ = conn.Close() }() // fdbridged has answered, or never will
	var grant wire.Grant
	f, err := ask(conn, wire.Request{Op: wire.OpDeliver}, &grant)
	if err != nil {
		return 0, fmt.Errorf("ask fdbridged for the unit's session: %w", err)
	}
	if grant.Error != "" {
		_ = f.Close()
		return 0, fmt.Errorf("fdbridged does not deliver: %s", grant.Error)
	}
	if f == nil {
		return 0, nil
	}
	s := session.Adopt(d.Kernel, f)
	defer func() { _ = s.Close() }() // fdbridged has its own, and decides
	delivered := d.unpack(s, grant.Unit)
	if err := d.Store.Barrier(); err != nil {
		return 0, err
	}
	var settled wire.Settled
	stray, err := ask(conn, delivered, &settled)
	_ = stray.Close() // no answer has an fd with it here
	if err == nil && settled.Error != "" {
		err = errors.New(settled.Error)
	}
	if err != nil {
		return delivered.Stored, fmt.Errorf("%s: session %s is held on: %w", grant.Unit, grant.Session, err)
	}
	return delivered.Stored, nil
}

// dial connects to fdbridged, which may be on its way up again.
func dial(path string) (*wire.Conn, error) {
	deadline := time.Now().Add(connectTimeout)
	for {
		conn, err := wire.Dial(path)
		if err == nil || time.Now().After(deadline) {
			return conn, err
		}
		time.Sleep(retryDelay)
	}
}

// ask sends a request and waits for the answer.
func ask(conn *wire.Conn, request wire.Request, answer any) (*fd.FD, error) {
	if err := conn.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return nil, err
	}
	if err := conn.Send(request, nil); err != nil {
		return nil, err
	}
	return conn.Receive(answer)
}

// unpack puts the session's files into the unit's store and says what became
// of them. They are stored in reverse, since the service manager puts each new
// one in front of the others (service_add_fd_store in src/core/service.c).
func (d *Deliverer) unpack(s *session.Session, unit string) wire.Request {
	delivered := wire.Request{Op: wire.OpDelivered, Max: d.Max}
	manifest, err := manifest(s, unit)
	if err != nil {
		delivered.Failed = []wire.Lost{{Unit: unit, Reason: err.Error()}}
		return delivered
	}
	for _, e := range slices.Backward(manifest.Entries) {
		if e.Kind == kho.KindLost {
			continue
		}
		if err := d.entry(s, &e); err != nil {
			lost := wire.Lost{Unit: unit, Name: e.Name, Type: e.Type, Reason: err.Error()}
			delivered.Failed = append(delivered.Failed, lost)
			continue
		}
		delivered.Stored++
	}
	return delivered
}

func manifest(s *session.Session, unit string) (m *kho.Manifest, err error) {
	f, err := s.RetrieveFD(kho.ManifestToken)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return kho.ReadManifest(f, unit)
}

// entry puts one file of the session into the unit's store.
func (d *Deliverer) entry(s *session.Session, e *kho.Entry) error {
	if e.Kind != kho.KindLUO {
		return fmt.Errorf("this version of fdbridge knows no entries of kind %q", e.Kind)
	}
	f, err := s.RetrieveFD(e.Token)
	if err == nil {
		f, err = mend(f, e)
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // of a memfd, which has nothing to flush
	return d.Store.Store(e.Name, f)
}
