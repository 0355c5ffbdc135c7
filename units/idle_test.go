// SPDX-License-Identifier: Apache-2.0

package units

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/units/bulk/bulktest"
)

func TestOnlyStoppedUnitsWithoutAStoreAreIdle(t *testing.T) {
	list := pid1{}
	for name, state := range map[string][2]string{
		"running.service":     {"active", "running"},
		"starting.service":    {"activating", "start-pre"},
		"restarting.service":  {"activating", "auto-restart"},
		"stopped.service":     {"inactive", "dead"},
		`s\x2dtopped.service`: {"inactive", "dead"},
		`p\x2dinned.service`:  {"inactive", "dead-resources-pinned"},
		"failed.service":      {"failed", "failed"},
		"other.service":       {"inactive", "dead"},
	} {
		list[name] = fakeUnit{state: state}
	}
	reader := Reader{Socket: bulktest.Serve(t, list.serve)}
	asked := []string{"unloaded.service"}
	for name := range list {
		if name != "other.service" {
			asked = append(asked, name)
		}
	}
	got, err := reader.Idle(t.Context(), asked)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"unloaded.service": true, "stopped.service": true, `s\x2dtopped.service`: true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("idle (-want +got):\n%s", diff)
	}
}

func TestWithoutAnAnswerNothingIsIdle(t *testing.T) {
	reader := Reader{Socket: t.TempDir() + "/none"}
	if got, err := reader.Idle(t.Context(), []string{"a.service"}); got != nil || err == nil {
		t.Errorf("Idle: %v, %v", got, err)
	}
	if got, err := reader.Idle(t.Context(), nil); len(got) != 0 || err != nil {
		t.Errorf("Idle of nothing: %v, %v", got, err)
	}
}
