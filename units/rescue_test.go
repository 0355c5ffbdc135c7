// SPDX-License-Identifier: Apache-2.0

package units

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/units/bulk/bulktest"
)

func TestStoresAreEmptiedOnceFailuresAreForgotten(t *testing.T) {
	asked := make(chan string, 6)
	r := reader(t, func(p *bulktest.Peer) {
		for call := p.Call(); call != nil; call = p.Call() {
			asked <- fmt.Sprint(call.Headers[dbus.FieldMember].Value(), call.Body)
			if call.Body[0] == "busy.service" && len(call.Body) > 1 {
				p.Send(bulktest.Fail(call, "org.freedesktop.systemd1.UnitBusy", "it runs"))
			} else {
				p.Send(bulktest.Return(call))
			}
		}
	})
	err := r.Empty(t.Context(), []string{"a.service", "busy.service", "b.service"})
	if !errors.Is(err, ErrManager) || !strings.Contains(err.Error(), "busy.service") || strings.Contains(err.Error(), "b.service:") {
		t.Errorf("error: %v", err)
	}
	var got []string
	for range cap(asked) {
		got = append(got, <-asked)
	}
	want := []string{
		"ResetFailedUnit[a.service]", "CleanUnit[a.service [fdstore]]",
		"ResetFailedUnit[busy.service]", "CleanUnit[busy.service [fdstore]]",
		"ResetFailedUnit[b.service]", "CleanUnit[b.service [fdstore]]",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
	nobody := &Reader{Socket: t.TempDir() + "/nobody"}
	if err := nobody.Empty(t.Context(), nil); err != nil {
		t.Errorf("empty nothing: %v", err)
	}
	if err := nobody.Empty(t.Context(), []string{"a.service"}); !errors.Is(err, ErrManager) {
		t.Errorf("no answer: %v, want ErrManager", err)
	}
}

func TestSystemdCarriesStoresFrom261On(t *testing.T) {
	for version, want := range map[string]bool{
		"257.13-1~deb13u1": false, "260": false, "261~rc1": true, "262.1-1": true, "v262-3-gabc": true, "nonsense": false, "": false,
	} {
		r := reader(t, func(p *bulktest.Peer) {
			for call := p.Call(); call != nil; call = p.Call() {
				if diff := cmp.Diff([]any{managerInterface, "Version"}, call.Body); diff != "" {
					t.Errorf("asked (-want +got):\n%s", diff)
				}
				p.Send(bulktest.Return(call, dbus.MakeVariant(version)))
			}
		})
		if got, err := r.Carries(t.Context()); got != want || err != nil {
			t.Errorf("%q: %v, %v", version, got, err)
		}
	}
}

func TestSessionsAreKnownByTheirLinksAndDoNotCountAsStored(t *testing.T) {
	for path, want := range map[string]bool{
		"anon_inode:[luo_session] a": true, "": true, "anon_inode:[eventfd]": false,
	} {
		if e := (Entry{Path: path}); e.Session() != want {
			t.Errorf("%q: %v", path, e.Session())
		}
	}
	if e := (Entry{Mode: dumpedFile.Mode}); e.Session() {
		t.Error("a regular file is a session")
	}
	dumpedSession := dumped{Name: "s", Path: "anon_inode:[luo_session] a"}
	units := pid1{"a.service": service("yes", 8, dumpedSession, dumpedFile), "b.service": service("yes", 8, dumpedSession)}
	stored, err := reader(t, units.serve).Stored(t.Context(), []string{"a.service", "b.service"})
	if diff := cmp.Diff(map[string]int{"a.service": 1}, stored); diff != "" || err != nil {
		t.Errorf("%v, stored (-want +got):\n%s", err, diff)
	}
}
