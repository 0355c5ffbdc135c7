// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/fdbridge/fdbridge/internal/fd"
)

// Device is the opened live-update device. While it is open nobody else can
// open it. Its methods may be called from several goroutines.
type Device struct {
	k Kernel
	f *fd.FD
}

// Open opens the device at path, which is Path but in tests. The caller
// closes it, soon. The first Open after a kexec makes the kernel read what the
// old one left.
//
// Errors: ErrNoDevice, ErrBusy, ErrBroken, or an errno alone, EACCES say.
func Open(k Kernel, path string) (*Device, error) {
	f, err := k.Open(path)
	if err != nil {
		return nil, &Error{Op: opOpen + " " + path, Kind: kindOf(opOpen, err), Err: err}
	}
	return &Device{k: k, f: f}, nil
}

// Another opener, systemd 261 and later for one, is done within milliseconds,
// and nothing tells when: OpenWait asks again after minPause, then after twice
// as long, up to maxPause.
const (
	minPause = time.Millisecond
	maxPause = 32 * time.Millisecond
)

// OpenWait is Open, tried again for as long as it gives ErrBusy and ctx has not
// ended; ctx is the only bound, so give it a deadline. An error after ctx has
// ended wraps both ErrBusy and the cause of ctx.
func OpenWait(ctx context.Context, k Kernel, path string) (*Device, error) {
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		d, err := Open(k, path)
		if !errors.Is(err, ErrBusy) {
			return d, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w; gave up waiting for it: %w", err, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}

// Create makes an outgoing session. The caller closes it; when its last
// descriptor is closed before the kexec, or its owner becomes garbage, the kernel
// lets go of its files.
//
// Errors: ErrBadName, ErrExist, ErrLimit, or an errno alone.
func (d *Device) Create(name string) (*Session, error) {
	return d.named(opCreate, ReqCreateSession, name)
}

// Retrieve takes over the incoming session of exactly that name. The caller
// closes it; when its last descriptor is closed the session is finished, and
// the files that were not retrieved are gone.
//
// Errors: ErrBadName, ErrNoSession, ErrRetrieved, or an errno alone.
func (d *Device) Retrieve(name string) (*Session, error) {
	return d.named(opRetrieve, ReqRetrieveSession, name)
}

// HasOutgoing tells whether there is an outgoing session of that name: the kernel makes
// no second one (luo_session_insert). It changes nothing.
//
// Errors: those of Create but ErrExist.
func (d *Device) HasOutgoing(name string) (bool, error) {
	made, err := d.Create(name)
	if errors.Is(err, ErrExist) {
		return true, nil
	}
	return false, errors.Join(err, made.Close())
}

// named makes the request that answers a session's name with its descriptor,
// which the kernel makes close-on-exec.
func (d *Device) named(op string, req uint, name string) (*Session, error) {
	if len(name) == 0 || len(name) > MaxName || strings.IndexByte(name, 0) >= 0 {
		return nil, &Error{Op: op, Session: name, Kind: ErrBadName}
	}
	var arg namedSession
	copy(arg.name[:], name)
	if err := call(d.k, d.f, req, &arg); err != nil {
		return nil, &Error{Op: op, Session: name, Kind: kindOf(op, err), Err: err}
	}
	return &Session{k: d.k, f: fd.New(int(arg.fd)), name: name}, nil
}

// Close closes the device. Sessions are not touched. Closing twice does nothing.
func (d *Device) Close() error {
	if err := d.f.Close(); err != nil {
		return &Error{Op: opClose + " the live-update device", Err: err}
	}
	return nil
}
