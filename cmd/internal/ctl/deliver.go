// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/wire"
)

func deliverCommand(d daemon, v *view) *cobra.Command {
	var as string
	cmd := &cobra.Command{
		Use:   "deliver UNIT --as OTHER",
		Short: "Decide that another unit gets the fds that are held for a unit",
		Long: "Decide that OTHER gets the fds that are held for UNIT when it starts next, in\n" +
			"this boot. When OTHER is UNIT, the unit gets them though it has become another\n" +
			"since the live update, as with another User=, or though a delivery that was\n" +
			"interrupted may have given it some or all of them.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if as == "" {
				return errors.New("say with --as which unit is to get the fds, which may be the same")
			}
			assigned, err := d.deliver(unitName(args[0]), unitName(as))
			if err != nil {
				return err
			}
			return output(cmd.OutOrStdout(), v.json, assigned, func() string { return assignedText(assigned) })
		},
		ValidArgsFunction: d.completeUnits(func(unit *wire.Unit) bool { return unit.Held > 0 }),
	}
	cmd.Flags().StringVar(&as, "as", "", "the `unit` that gets them")
	return cmd
}

// deliver makes fdbridged do so, and returns what will happen.
func (d daemon) deliver(unit, as string) (*wire.Assigned, error) {
	assigned, err := wire.DeliverAs(d.socket, unit, as)
	if !errors.Is(err, unix.EACCES) {
		return assigned, d.explain(err)
	}
	if err := d.change("Deliver", unit, as); err != nil {
		return nil, err
	}
	list, err := d.unitsOnBus()
	assigned = &wire.Assigned{Unit: unit, As: as}
	for _, u := range list {
		if u.Unit == unit {
			assigned.Held, assigned.HeldBytes = u.Held, u.HeldBytes
		}
		if u.Unit == as {
			assigned.Stored = u.Stored
		}
	}
	return assigned, err
}

func assignedText(a *wire.Assigned) string {
	text := fmt.Sprintf("%s of %s will be delivered to %s when it starts.\n", count(a.Held, "fd"), a.Unit, a.As)
	if a.Stored > 0 {
		text += fmt.Sprintf("Its fd store has %s, which are not mixed with these. Before that, stop it, and run:\n"+
			"  systemctl clean --what=fdstore %s\n", count(a.Stored, "fd"), a.As)
	}
	return text
}
