// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fdbridge/fdbridge/bridge/check"
)

func featuresCommand(h host, v *view) *cobra.Command {
	return &cobra.Command{
		Use:   "features",
		Short: "Show what this kernel, this systemd and fdbridge can do",
		Args:  cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, err := h.features(cmd.Context())
			if err != nil {
				return err
			}
			return output(cmd.OutOrStdout(), v.json, found, func() string { return v.featuresText(found) })
		},
	}
}

func featuresNow(ctx context.Context) (*check.Features, error) {
	return thisChecker().Features(ctx)
}

func (v *view) featuresText(f *check.Features) string {
	k := &f.Kernel
	list := []fact{{"fdbridge", f.Version}, {"Kernel", k.Release}, {"Live update", told(k.LiveUpdate, "on", "off")}}
	add := func(name, value string) { list = append(list, fact{name, value}) }
	if n := k.LiveUpdateNumber; n != nil {
		add("Number", fmt.Sprint(*n))
	}
	add("memfds", told(k.Memfd, "carried", "not carried"))
	add("Seals", told(k.Seals, "carried", "not carried"))
	add("Limits", limits(k))
	if s := f.Systemd; s.Carries == nil {
		add("systemd", "not known")
	} else {
		add("systemd", s.Version+", which carries "+told(s.Carries, "fd stores", "no fd stores")+" itself")
	}
	var text strings.Builder
	text.WriteString(facts(list) + "\n")
	wrap(&text, 0, 0, "FileDescriptorStoreMax= and FileDescriptorStorePreserve=yes let a unit keep its fd store when it is stopped. "+carriedText(&f.Directives))
	for i, note := range f.Notes {
		if i == 0 {
			text.WriteString("\n")
		}
		v.labelled(&text, yellow, "Note", note)
	}
	return text.String()
}

func told(fact *bool, yes, no string) string {
	switch {
	case fact == nil:
		return "not known"
	case *fact:
		return yes
	}
	return no
}

func limits(k *check.KernelFeatures) string {
	if k.SessionFiles == nil || k.Sessions == nil {
		return "none to meet"
	}
	return fmt.Sprintf("%d files in a session, which fdbridge makes more of then, and about %d sessions", *k.SessionFiles, *k.Sessions)
}

// carriedText says what the directives give in a live update.
func carriedText(d *check.Directives) string {
	if len(d.Carried) == 0 {
		return "Nothing would be carried through a live update."
	}
	return fmt.Sprintf("Through a live update %s carries of it: %s. All else is lost, and named.", d.By, strings.Join(d.Carried, ", "))
}
