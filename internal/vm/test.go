// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"os"
	"testing"
)

// Test starts a machine for a test, waits for its boot, and ends it with the
// test. When the test fails its directory, with the console log and the exact
// QEMU command line, is kept and named; otherwise it is removed. The name of the
// machine is that of the test.
func Test(t testing.TB, cfg Config) *Machine {
	t.Helper()
	cfg.Name = t.Name()
	m, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Kill()
		if t.Failed() {
			t.Logf("console log and QEMU command line are kept in %s", m.Dir())
		} else if err := os.RemoveAll(m.Dir()); err != nil {
			t.Error(err)
		}
	})
	if err := m.WaitBoot(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}
