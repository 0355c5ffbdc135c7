// SPDX-License-Identifier: Apache-2.0

package generator_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/fdbridge/fdbridge/units/generator"
	"github.com/fdbridge/fdbridge/units/unitfile"
)

func TestAHeldUnitGetsTheDropInThatTheGeneratorCouldNotWrite(t *testing.T) {
	const generated = "run/systemd/generator/"
	files := []txtar.File{device,
		{Name: generated + "quadlet.service", Data: []byte(optIn + "NotifyAccess=all\n")},
		{Name: generated + "narrow.service", Data: []byte(optIn)},
		{Name: "etc/systemd/system/opted-out.service", Data: []byte("[Service]\nExecStart=/bin/x\nNotifyAccess=all\n")},
		{Name: "etc/systemd/system/excluded.service", Data: []byte(optIn)},
		{Name: "etc/systemd/system/left.service", Data: []byte(optIn + "[X-FDBridge]\nPreserve=no\n")},
		{Name: "etc/systemd/system/masked.service"},
		{Name: "etc/systemd/system/dash-@.service", Data: []byte(optIn)},
		{Name: generated + "opted-out-.service", Data: []byte("[Service]\nExecStart=/bin/x\n")},
		{Name: generated + "generated-.service", Data: []byte(optIn)},
	}
	held := []string{"x.service", "quadlet.service", "narrow.service", "opted-out.service", "excluded.service", "left.service",
		"masked.service", "transient.service", "excluded-transient.service", "ends-.service", "dash-@i.service",
		"opted-out-.service", "excluded-.service", "generated-.service"}
	const noPlace = ": it will not get its fds back, because its name leaves no drop-in of its own"
	all := strings.ReplaceAll(dropIn, "=exec", "=all")
	for name, test := range map[string]struct {
		run     bool
		want    map[string]string
		nowhere []string // the units whose drop-in has no place
	}{
		"the generator has run": {true, map[string]string{
			"quadlet.service": keptAccess, "narrow.service": dropIn, "transient.service": all,
		}, []string{"unit ends-.service", "unit generated-.service"}},
		"it has not": {false, map[string]string{
			"quadlet.service": keptAccess, "narrow.service": dropIn, "transient.service": all, "x.service": dropIn,
		}, []string{"unit ends-.service", "unit dash-@i.service", "unit generated-.service"}},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, files...)
			if test.run {
				if _, err := generator.Run(o); err != nil {
					t.Fatal(err)
				}
			}
			o.Path = unitfile.LoadedPath("", false)
			dropIns, problems := generator.ForHeld(o, held)
			got := map[string]string{}
			for unit, text := range dropIns {
				got[unit] = string(text)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("drop-ins (-want +got):\n%s", diff)
			}
			var said []string
			for _, problem := range problems {
				if !errors.Is(problem, generator.ErrNotRun) {
					said = append(said, strings.TrimSuffix(problem.Error(), noPlace))
				}
			}
			if diff := cmp.Diff(test.nowhere, said); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWithNothingMissingNoUnitFileIsRead(t *testing.T) {
	o := options(t, device)
	if _, err := generator.Run(o); err != nil {
		t.Fatal(err)
	}
	o.Root = "/nonexistent"
	if dropIns, problems := generator.ForHeld(o, []string{"x.service"}); len(dropIns) > 0 || len(problems) > 0 {
		t.Errorf("ForHeld: %v, %v", dropIns, problems)
	}
}
