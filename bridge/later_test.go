// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
)

// later has a unit's fds carried by a version of fdbridge that is not written yet.
func later(t *testing.T) *world {
	t.Helper()
	const unit = "a.service"
	w := newWorld(t)
	w.add(unit, "yes")
	is := w.units[unit].identity
	origin := w.preserver().Origin
	s := w.forgeSession(kho.SessionName(unit), &kho.Manifest{
		Unit: unit, Origin: origin, Identity: kho.Identity{Fragment: is.FragmentPath, User: is.User, Group: is.Group},
		Entries: []kho.Entry{
			{Name: "known", Kind: kho.KindLUO, Type: "memfd", Token: 1, Flags: 2},
			{Name: "new", Kind: "pipe-bytes", Type: "pipe"},
		},
		Unknown: []kho.Member{{Name: "future", Value: json.RawMessage(`{"is": "now"}`)}},
	})
	defer s.Close()
	index := kho.Index{Origin: origin, Units: []kho.IndexUnit{
		{Unit: unit, Sessions: []string{kho.SessionName(unit)}, Token: kho.ManifestToken, Entries: 2},
	}}
	of := w.forge(kho.IndexSession, &index)
	defer of.Close()
	w.kexec(&bridge.Preserved{})
	return w
}

func TestWhatALaterVersionHasCarriedIsDeliveredAsFarAsItIsKnown(t *testing.T) {
	w := later(t)
	d := w.daemon()
	if n, err := w.deliver(d.socket, "a.service"); n != 1 || err != nil {
		t.Errorf("deliver: %d, %v", n, err)
	}
	if diff := cmp.Diff([]string{"known"}, w.names("a.service")); diff != "" {
		t.Errorf("the store (-want +got):\n%s", diff)
	}
	const says = `The fd "new" of session fdbridge.a.service is lost: this version of fdbridge knows no entries of kind "pipe-bytes"`
	if len(d.holder.Held("a.service")) > 0 || !strings.Contains(w.logged(), says) {
		t.Errorf("held: %v; the log does not say %q:\n%s", d.holder.Held("a.service"), says, w.logged())
	}
}

func TestWhatALaterVersionHasCarriedIsCarriedOnAsFarAsItIsKnown(t *testing.T) {
	w := later(t)
	w.daemon().stop()
	w.kexec(w.preserve())
	const says = `The fd "new" (pipe) will be lost: this version cannot carry on an entry of kind "pipe-bytes"`
	if !strings.Contains(w.logged(), says) {
		t.Errorf("the log does not say %q:\n%s", says, w.logged())
	}
	d := w.daemon()
	var unknown []kho.Member
	err := wire.Inspect(d.socket, kho.SessionName("a.service"), func(f *fd.FD) error {
		m, err := kho.ReadManifest(f, "a.service")
		if err == nil {
			unknown = m.Unknown
		}
		return err
	})
	if diff := cmp.Diff([]kho.Member{{Name: "future", Value: json.RawMessage(`{"is": "now"}`)}}, unknown); diff != "" || err != nil {
		t.Errorf("what is not known of the manifest (-want +got): %v\n%s", err, diff)
	}
	if n, err := w.deliver(d.socket, "a.service"); n != 1 || err != nil {
		t.Errorf("deliver: %d, %v", n, err)
	}
}
