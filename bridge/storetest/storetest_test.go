// SPDX-License-Identifier: Apache-2.0

package storetest_test

import (
	"context"
	"strings"
	"testing"

	"github.com/fdbridge/fdbridge/bridge/storetest"
	"github.com/fdbridge/fdbridge/internal/conform"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/internal/fd/fdtest"
	"github.com/fdbridge/fdbridge/session/sessiontest"
	"github.com/fdbridge/fdbridge/units"
)

func TestMain(m *testing.M) { fdtest.Main(m) }

// A PID 1 that does nothing must not pass a single check.
func TestDeadPID1FailsEveryCheck(t *testing.T) {
	kernel, err := sessiontest.NewFake()
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	checks := storetest.Checks()
	var out strings.Builder
	failed := conform.Run(&out, storetest.Subject{Unit: "a.service", Keeper: dead{}, PID1: dead{}, Kernel: kernel}, checks)
	if failed != len(checks) {
		t.Errorf("%d of %d checks failed:\n%s", failed, len(checks), out.String())
	}
}

type dead struct{}

func (dead) Store(string, *fd.FD) error                               { return nil }
func (dead) Remove(string) error                                      { return nil }
func (dead) Barrier() error                                           { return nil }
func (dead) Entries(context.Context, string) ([]units.Entry, error)   { return nil, nil }
func (dead) Stored(context.Context, []string) (map[string]int, error) { return nil, nil }
