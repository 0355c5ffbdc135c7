// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/fdbridge/fdbridge/bridge/journal"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/kho"
)

const (
	// RecordFile has the index of a live update from just before the kexec until
	// the next boot has seen whether it arrived: after a power cut nothing else
	// knows of it. The package makes its directory.
	RecordFile = "/var/lib/fdbridge/index"
	// LostFile has the index of one that did not arrive, until the boot after.
	LostFile = "/run/fdbridge/lost"
)

// ErrUnsettled says that it is not known what the last live update has brought.
var ErrUnsettled = errors.New("it is not known what the last live update has brought")

// Record writes an index to the disk, and returns when it is there.
func Record(path string, index *kho.Index) error {
	data, err := index.Encode()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// Arrival finds out whether a live update that was recorded has arrived.
type Arrival struct {
	Record, Lost string // RecordFile and LostFile but in tests
	BootID       string // of the running kernel
	Device       string // session.Path but in tests
	// Status asks fdbridged; nil is an answer that says nothing of the last live update.
	Status func() (*wire.Status, error)
	Log    *journal.Log
}

// Review reports, once, what was lost with a live update that did not arrive:
// each unit, the number of its fds, the names of those that were not carried anyway, and the
// sessions of its own. It does so when nothing could be carried, the power was cut, or the
// kexec failed, or the next kernel could not take the state over; one that was
// called off has lost nothing. The error is that it could not be found out; the
// record then stays for the next try, as with ErrUnsettled and those of Status.
func (a *Arrival) Review() error {
	data, err := os.ReadFile(a.Record)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	index, err := kho.ParseIndex(data)
	if err != nil {
		a.Log.Warning("It is not known whether something was lost with the last live update, whose record is thrown away: %v", err)
		return os.Remove(a.Record)
	}
	arrived, err := a.arrived(index)
	if err != nil {
		return fmt.Errorf("find out whether the live update of %s has arrived: %w", began(index), err)
	}
	if !arrived {
		a.Log.ErrOf(journal.About{Kind: journal.Lost}, "%s", neverArrived(index))
		repeat(a.Log, index)
		for _, u := range index.Units {
			if u.Entries > 0 {
				a.Log.ErrOf(journal.About{Kind: journal.Lost, Unit: u.Unit}, "%s: %d fds are lost", u.Unit, u.Entries)
			}
		}
		for _, s := range index.Services {
			a.Log.ErrOf(journal.About{Kind: journal.Lost, Unit: s.Unit, Session: s.Session}, "%s: Its session %q is lost, and all that was in it", s.Unit, s.Name)
		}
		if err := keep(a.Lost, data); err != nil {
			a.Log.Warning("\"fdbridgectl status\" will not say what was lost: %v", err)
		}
	}
	return os.Remove(a.Record)
}

func (a *Arrival) arrived(index *kho.Index) (bool, error) {
	if index.Origin.BootID == a.BootID {
		return true, nil // it was called off: all is where it was
	}
	if _, err := os.Stat(a.Device); errors.Is(err, fs.ErrNotExist) {
		return false, nil // a kernel without live update has taken nothing over
	}
	status, err := a.Status()
	switch {
	case err != nil:
		return false, err
	case status == nil:
		return false, fmt.Errorf("%w: fdbridged's answer does not say", ErrUnsettled)
	case status.Unknown != "":
		return false, fmt.Errorf("%w: %s", ErrUnsettled, status.Unknown)
	}
	h := status.Handover
	return h != nil && h.BootID == index.Origin.BootID && h.Time.Equal(index.Origin.Time), nil
}

// keep writes a file whose directory may not be there.
func keep(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// maxNamed bounds how many units a sentence names.
const maxNamed = 10

// neverArrived says what was lost in a sentence.
func neverArrived(index *kho.Index) string {
	var named []string
	lost, of := 0, 0
	for _, u := range index.Totals() {
		n := u.Entries + u.Lost
		if n == 0 {
			continue
		}
		if lost, of = lost+n, of+1; len(named) < maxNamed {
			named = append(named, fmt.Sprintf("%s (%d)", u.Unit, n))
		}
	}
	text := fmt.Sprintf("The live update of %s from Linux %s has not arrived in this kernel: ", began(index), index.Origin.Kernel)
	if of == 0 {
		return text + "the log of fdbridge-arrival.service says what is lost"
	}
	text += fmt.Sprintf("%d fds of %d units are lost: %s", lost, of, strings.Join(named, ", "))
	if more := of - len(named); more > 0 {
		text += fmt.Sprintf(" and %d more, which the log of fdbridge-arrival.service names", more)
	}
	return text
}

func began(index *kho.Index) string { return index.Origin.Time.Format("2006-01-02 15:04:05 MST") }

// lostUpdate returns what Review has found, a sentence, for who asks in this boot.
func lostUpdate(path string) (string, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	index, err := kho.ParseIndex(data)
	if err != nil {
		return "", err
	}
	return neverArrived(index), nil
}
