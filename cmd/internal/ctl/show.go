// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/kho"
)

func showCommand(d daemon, v *view) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show UNIT",
		Short: "Show the fds that a unit has stored, and those that are held for it",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			shown, err := d.show(unitName(args[0]))
			if err != nil {
				return err
			}
			return output(cmd.OutOrStdout(), v.json, shown, func() string { return v.shownText(shown) })
		},
		ValidArgsFunction: d.completeUnits(anyUnit),
	}
	v.addFull(cmd)
	return cmd
}

func (d daemon) show(unit string) (*wire.Shown, error) {
	s, err := wire.Show(d.socket, unit)
	if errors.Is(err, unix.EACCES) {
		s = &wire.Shown{}
		err = d.describeUnit(unit, s)
	}
	return s, d.explain(err)
}

func (v *view) shownText(s *wire.Shown) string {
	var text strings.Builder
	if len(s.Entries) == 0 && len(s.Problems) == 0 {
		return fmt.Sprintf("%s has no fds stored, and none are held for it.\n", s.Unit)
	}
	var rows [][]string
	var missed []wire.Lost
	for i := range s.Entries {
		e := &s.Entries[i]
		where := e.Place
		if e.Place == wire.PlaceHeld {
			where = heldAt(s.Unit, e)
		}
		rows = append(rows, entryRow(e.Name, e.Type, e.Size, e.Position, e.Seals, where))
		if e.Place == wire.PlaceLost {
			missed = append(missed, wire.Lost{Unit: s.Unit, Name: e.Name, Type: e.Type, Reason: e.Reason})
		} else if e.Reason != "" {
			s.Problems = append(s.Problems, fmt.Sprintf("The fd %q cannot be looked at: %s", e.Name, e.Reason))
		}
	}
	if len(rows) > 0 {
		text.WriteString(v.entries(rows))
	}
	all := &view{screen: v.screen, full: true}
	all.lost(&text, missed)
	all.problems(&text, s.Problems)
	return text.String()
}

// entries returns a table of rows of entryRow.
func (v *view) entries(rows [][]string) string {
	const name, seals, where = 0, 4, 5
	return v.table([]string{"NAME", "TYPE", "SIZE", "POSITION", "SEALS", "WHERE"}, rows, name, seals, where)
}

// entryRow is an fd's; size and position are nil where there are none.
func entryRow(name, kind string, size, position *int64, seals []string, where string) []string {
	row := []string{name, kind, "-", "-", "-", where}
	if name == "" {
		row[0] = `""`
	}
	if size != nil {
		row[2] = formatBytes(*size)
	}
	if position != nil {
		row[3] = fmt.Sprint(*position)
	}
	if len(seals) > 0 {
		row[4] = strings.Join(seals, ",")
	}
	return row
}

// heldAt says where an entry is held; the unit's own session goes without saying.
func heldAt(unit string, e *wire.Entry) string {
	session := e.Session
	if e.Token == 0 && session != "" { // it is one itself
		return session
	}
	if session == kho.SessionName(unit) {
		session = wire.PlaceHeld
	}
	return place(session, e.Token, e.Kind)
}

// place says where a file is, or how it travels when it is in no session.
func place(session string, token uint64, kind string) string {
	switch {
	case token == 0:
		return kind
	case session == "":
		return fmt.Sprintf("token %d", token)
	}
	return fmt.Sprintf("%s, token %d", session, token)
}
