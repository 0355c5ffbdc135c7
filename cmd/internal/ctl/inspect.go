// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/internal/fd"
	"github.com/fdbridge/fdbridge/kho"
	"github.com/spf13/cobra"
)

func inspectCommand(d daemon, v *view) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect FILE|SESSION",
		Short: "Show what a manifest or an index says",
		Long: "Show what a manifest or an index says: that in a file, or those in a session\n" +
			"that fdbridged holds. \"fdbridge\" is the session of the index, and names of the\n" +
			"others begin with \"fdbridge.\"; a file of such a name is given as ./NAME.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			documents, err := d.documents(args[0])
			if err != nil {
				return err
			}
			for i, data := range documents {
				if i > 0 && !v.json {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				if err := v.document(cmd.OutOrStdout(), args[0], data); err != nil {
					return err
				}
			}
			return nil
		},
		ValidArgsFunction: d.completeSessions,
	}
	v.addFull(cmd)
	return cmd
}

// documents returns what is in a file, or in the manifests of a session.
func (d daemon) documents(name string) (documents [][]byte, err error) {
	if !kho.IsSession(name) {
		f, err := os.Open(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("%w; the sessions that are held are named fdbridge and fdbridge.UNIT, see fdbridgectl list --json", err)
		case errors.Is(err, fs.ErrPermission):
			return nil, fmt.Errorf("%w: only root may read it", err)
		case err != nil:
			return nil, err
		}
		defer f.Close()
		data, err := io.ReadAll(io.LimitReader(f, kho.MaxManifest+1))
		return [][]byte{data}, err
	}
	err = wire.Inspect(d.socket, name, func(f *fd.FD) error {
		data, err := kho.Contents(f, kho.MaxManifest+1)
		documents = append(documents, data)
		return err
	})
	return documents, d.explain(err)
}

// document prints a manifest or an index; the JSON is what is in it.
func (v *view) document(w io.Writer, name string, data []byte) error {
	var head struct{ Format string }
	_ = json.Unmarshal(data, &head) // what is no JSON is no manifest, which the parser says
	text := ""
	if head.Format == kho.IndexFormat {
		index, err := kho.ParseIndex(data)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		text = v.indexText(index)
	} else {
		manifest, err := kho.ParseManifest(data)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		text = v.manifestText(manifest)
	}
	if v.json {
		var indented bytes.Buffer
		if err := json.Indent(&indented, bytes.TrimSpace(data), "", "\t"); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		text = indented.String() + "\n"
	}
	_, err := io.WriteString(w, text)
	return err
}

func origin(o *kho.Origin) []fact {
	return []fact{
		{"Written", o.Time.Format(time.RFC3339)},
		{"Kernel", o.Kernel},
		{"Boot ID", o.BootID},
	}
}

func (v *view) manifestText(m *kho.Manifest) string {
	list := []fact{{"Manifest of", m.Unit}}
	for _, f := range []fact{{"Unit file", m.Identity.Fragment}, {"User", m.Identity.User}, {"Group", m.Identity.Group}} {
		if f.value != "" {
			list = append(list, f)
		}
	}
	list = append(list, origin(&m.Origin)...)
	var rows [][]string
	var missed []wire.Lost
	size := int64(0)
	for i := range m.Entries {
		e := &m.Entries[i]
		if e.Kind == kho.KindLost {
			rows = append(rows, entryRow(e.Name, e.Type, nil, nil, nil, "lost"))
			missed = append(missed, wire.Lost{Unit: m.Unit, Name: e.Name, Type: e.Type, Reason: e.Reason})
			continue
		}
		size += e.Size
		rows = append(rows, entryRow(e.Name, e.Type, &e.Size, &e.Position, e.Seals.Names(), place(e.Session, e.Token, string(e.Kind))))
	}
	list = append(list, fact{"Carried", fmt.Sprintf("%s, %s", count(len(rows)-len(missed), "fd"), formatBytes(size))},
		fact{"Lost", count(len(missed), "fd")})
	var text strings.Builder
	text.WriteString(facts(list))
	if len(rows) > 0 {
		text.WriteString("\n" + v.entries(rows))
	}
	(&view{screen: v.screen, full: true}).lost(&text, missed)
	return text.String()
}

func (v *view) indexText(x *kho.Index) string {
	var rows [][]string
	var missed []wire.Lost
	names := map[string]bool{}
	for i := range x.Units {
		u := &x.Units[i]
		names[u.Unit] = true
		where := "-"
		if len(u.Sessions) > 0 {
			where = strings.Join(u.Sessions, " ")
		}
		rows = append(rows, []string{u.Unit, fmt.Sprint(u.Entries), formatBytes(u.Bytes), fmt.Sprint(len(u.Lost)), where})
		for _, l := range u.Lost {
			missed = append(missed, wire.Lost{Unit: u.Unit, Name: l.Name, Type: l.Type, Reason: l.Reason})
		}
	}
	list := append([]fact{{"Index of", count(len(names), "unit")}}, origin(&x.Origin)...)
	list = append(list, fact{"Preserved", "in " + duration(x.Duration.Microseconds())})
	var text strings.Builder
	text.WriteString(facts(list))
	if len(rows) > 0 {
		const unit, sessions = 0, 4
		text.WriteString("\n" + v.table([]string{"UNIT", "FDS", "SIZE", "LOST", "SESSIONS"}, rows, unit, sessions))
	}
	rows = nil
	for _, s := range x.Services {
		rows = append(rows, []string{s.Unit, s.Name, s.Session})
	}
	if len(rows) > 0 {
		text.WriteString("\n" + v.table([]string{"SERVICE", "NAME", "SESSION"}, rows, 0, 1, 2))
	}
	(&view{screen: v.screen, full: true}).lost(&text, missed)
	return text.String()
}
