// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"github.com/spf13/cobra"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/kho"
)

func anyUnit(*wire.Unit) bool       { return true }
func heldUnit(unit *wire.Unit) bool { return unit.State == wire.StateHeld }

// completeUnits completes an argument to the names of the units that a command
// is for; to nothing where fdbridged does not answer.
func (d daemon) completeUnits(is func(*wire.Unit) bool) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []cobra.Completion
		list, _ := d.units() // a shell has no place for an error
		for i := range list {
			if is(&list[i]) {
				names = append(names, list[i].Unit)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeSessions completes an argument to the sessions that are held, and to
// files.
func (d daemon) completeSessions(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := []cobra.Completion{kho.IndexSession}
	list, _ := d.units() // a shell has no place for an error
	for i := range list {
		if list[i].Session != "" {
			names = append(names, list[i].Session)
		}
	}
	return names, cobra.ShellCompDirectiveDefault
}
