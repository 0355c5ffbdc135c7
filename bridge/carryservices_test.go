// SPDX-License-Identifier: Apache-2.0

package bridge_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/bridge"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/session"
)

func TestAnUpdateThatIsCalledOffLeavesSessionsOpen(t *testing.T) {
	w := vm(t)
	if err := w.preserve().Close(); err != nil {
		t.Error(err)
	}
	s := w.gets(w.daemon().services(), "vm.service", wire.OpOpenSession, "guest")
	if err := s.Preserve(fdtest.MemfdWith(t, "x"), 77); !errors.Is(err, session.ErrTokenUsed) {
		t.Errorf("preserve under the token of before: %v", err)
	}
}

func TestWhatAServiceIsNotDoneWithIsNamedAsLost(t *testing.T) {
	w := vm(t)
	path := w.daemon().services()
	s := w.gets(path, "required.service", wire.OpOpenSession, "r")
	if err := s.Preserve(fdtest.MemfdWith(t, "r"), 1); err != nil {
		t.Fatal(err)
	}
	w.kexec(w.preserve())
	d := w.daemon()
	path = d.services()
	if _, err := w.preserver().Run(t.Context()); !errors.Is(err, bridge.ErrRequired) || !strings.Contains(fmt.Sprint(err), "required.service: 1 of its fds") {
		t.Errorf("preserve: %v", err)
	}
	holds(t, w.gets(path, "required.service", wire.OpClaimSession, "r"), 1, "r")
	w.asks(path, "required.service", wire.OpDoneSession, "r")
	preserved := w.preserve()
	var lost []string
	for _, u := range preserved.Index.Units {
		for _, l := range u.Lost {
			lost = append(lost, u.Unit+" "+l.Name+" "+l.Type)
		}
	}
	if diff := cmp.Diff([]string{"vm.service guest luo_session"}, lost); diff != "" || len(preserved.Index.Services) > 0 {
		t.Errorf("lost (-want +got):\n%s; carried: %+v", diff, preserved.Index.Services)
	}
	if !strings.Contains(w.logged(), `vm.service: The fd "guest" (luo_session) will be lost: it has come through the last live update`) {
		t.Errorf("it is not logged:\n%s", w.logged())
	}
}

// A PID 1 that carries stores is left no session of fdbridged's.
func TestSessionsAreCarriedBesideAPID1ThatCarriesStores(t *testing.T) {
	w := vm(t)
	w.carries = true
	preserved := w.preserve()
	if !w.busy() {
		t.Error("PID 1 finds the device")
	}
	w.kexec(preserved)
	holds(t, w.gets(w.daemon().services(), "vm.service", wire.OpClaimSession, "guest"), 77, "memory")
}

func TestAnUpdateThatGoesOnWithoutSessionsNamesThem(t *testing.T) {
	w := vm(t)
	w.preserver().GiveUp(t.Context(), errors.New("no time"))
	if !strings.Contains(w.logged(), "Not carried are 1 sessions that services have opened") {
		t.Errorf("the log does not say so:\n%s", w.logged())
	}
}
