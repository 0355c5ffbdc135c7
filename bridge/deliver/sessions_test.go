// SPDX-License-Identifier: Apache-2.0

package deliver

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
)

// recorder is a Store that tells what it was told.
type recorder struct {
	said []string
	busy time.Duration // how long each thing that is said takes
}

func (r *recorder) say(what string) error {
	time.Sleep(r.busy)
	r.said = append(r.said, what)
	return nil
}

func (r *recorder) Store(name string, _ *fd.FD) error { return r.say("store " + name) }
func (r *recorder) Remove(name string) error          { return r.say("remove " + name) }
func (r *recorder) Barrier() error                    { return r.say("barrier") }
func (r *recorder) ExtendTimeout(time.Duration) error { return r.say("extend") }

// give answers with a session that has an fd, or has none.
func give(t *testing.T, answer wire.Session, with bool) func(conn *wire.Conn) {
	return func(conn *wire.Conn) {
		var f *fd.FD
		if with {
			f = restored(t, "", 0, 0)
			defer f.Close()
		}
		if err := conn.Send(answer, f); err != nil {
			t.Errorf("send: %v", err)
		}
	}
}

func TestSessionsAreStoredInOrderAndWhatCameIsDoneWithLast(t *testing.T) {
	store := &recorder{}
	d := Deliverer{Store: store, Socket: listen(t,
		give(t, wire.Session{Came: true}, true),
		give(t, wire.Session{}, false), // systemd has made it
		func(*wire.Conn) {},            // a crash
		give(t, wire.Session{Error: "no such luck"}, false),
		func(conn *wire.Conn) {
			if err := conn.Send(wire.Session{Wait: true, Error: "wait"}, nil); err != nil {
				t.Errorf("send: %v", err)
			}
			give(t, wire.Session{}, true)(conn)
		},
		give(t, wire.Session{}, false),
	)}
	came, err := d.Sessions(t.Context(), []string{"a", "b", "c", "d"})
	if diff := cmp.Diff([]string{"a"}, came); diff != "" || err == nil || !strings.Contains(err.Error(), `the session "c" of LUOSession=: no such luck`) {
		t.Errorf("Sessions: %v, %s", err, diff)
	}
	if err := d.Done(t.Context(), came); err != nil {
		t.Errorf("Done: %v", err)
	}
	if diff := cmp.Diff([]string{"extend", "store a", "store d", "extend", "barrier"}, store.said); diff != "" {
		t.Errorf("the service manager was told (-want +got):\n%s", diff)
	}
}

// The session that is made anew is nowhere else.
func TestWhatIsStoredIsWaitedForWhenNothingCame(t *testing.T) {
	store := &recorder{}
	d := Deliverer{Store: store, Socket: listen(t, give(t, wire.Session{}, true))}
	came, err := d.Sessions(t.Context(), []string{"a"})
	if err != nil || len(came) > 0 || d.Done(t.Context(), came) != nil {
		t.Errorf("Sessions: %v, %v", came, err)
	}
	if diff := cmp.Diff([]string{"extend", "store a", "extend", "barrier"}, store.said); diff != "" {
		t.Errorf("the service manager was told (-want +got):\n%s", diff)
	}
}

func TestAUnitWithoutLUOSessionAsksForNone(t *testing.T) {
	d := Deliverer{Store: &recorder{}, Socket: filepath.Join(t.TempDir(), "none")}
	came, err := d.Sessions(t.Context(), nil)
	if err != nil || d.Done(t.Context(), came) != nil {
		t.Errorf("Sessions: %v, %v", came, err)
	}
}
