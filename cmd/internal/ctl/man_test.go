// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"cmp"
	"encoding"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/fdbridge/fdbridge/bridge/check"
	"github.com/fdbridge/fdbridge/bridge/wire"
	"github.com/fdbridge/fdbridge/kho"
)

// manual is what fdbridgectl(1) has entries of.
type manual struct {
	flags map[string][]string // by command; those of section OPTIONS under ""
	json  map[string][][]string
}

// readManual reads the page's source, in which each entry is a line.
func readManual(t *testing.T) manual {
	t.Helper()
	page, err := os.ReadFile("../../../contrib/man/fdbridgectl.1")
	if err != nil {
		t.Fatal(err)
	}
	m := manual{map[string][]string{}, map[string][][]string{}}
	section, command, about := "", "", ""
	for line := range strings.Lines(string(page)) {
		words := append(strings.Fields(line), "", "", "")
		switch macro := strings.Join(words[:2], " "); {
		case words[0] == ".Sh":
			section, command = strings.Join(strings.Fields(line)[1:], " "), ""
		case words[0] == ".Ss":
			about = strings.Join(strings.Fields(line)[1:], " ")
		case section == "JSON" && words[0] == ".Bl":
			m.json[about] = append(m.json[about], nil)
		case macro == ".It Li":
			tables := m.json[about]
			tables[len(tables)-1] = append(tables[len(tables)-1], words[2]+" "+words[4])
		case macro == ".It Cm":
			command = words[2]
			m.flags[command] = nil
		case macro == ".It Fl":
			for i, word := range words {
				if word == "Fl" && strings.HasPrefix(words[i+1], "-") {
					m.flags[command] = append(m.flags[command], strings.TrimPrefix(words[i+1], "-"))
				}
			}
		}
	}
	return m
}

func TestTheManualHasAllCommandsAndOptions(t *testing.T) {
	root := command(daemon{}, host{}, screen{})
	root.InitDefaultHelpCmd()
	root.InitDefaultHelpFlag()
	root.InitDefaultVersionFlag()
	want := map[string][]string{"": nil}
	common := map[string]bool{} // those that stand in OPTIONS
	add := func(cmd *cobra.Command, name string) {
		for line := range strings.Lines(cmd.LocalFlags().FlagUsages()) {
			_, flag, _ := strings.Cut(line, "--")
			flag = strings.Fields(flag)[0]
			if cmd != root && flag != "full" {
				want[name] = append(want[name], flag)
			} else if !common[flag] {
				common[flag] = true
				want[""] = append(want[""], flag)
			}
		}
	}
	add(root, "")
	for _, cmd := range root.Commands() {
		if !cmd.Hidden {
			want[cmd.Name()] = nil
			add(cmd, cmd.Name())
		}
	}
	got := readManual(t).flags
	for _, flags := range []map[string][]string{want, got} {
		for name := range flags {
			slices.Sort(flags[name])
		}
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("fdbridgectl(1) and the program differ (-program +page):\n%s", diff)
	}
}

func TestTheManualHasAllMembersOfTheJSON(t *testing.T) {
	list := members[wire.Unit]()
	inCheck := [][]string{members[check.Result](), members[check.Unit](), members[check.Problem](), members[check.Kernel](), members[check.Memory]()}
	want := map[string][][]string{
		"list":   {list},
		"status": {members[report](), members[wire.Kernel](), members[wire.Handover](), members[wire.Carried]()},
		"status UNIT": {slices.DeleteFunc(members[unitReport](), func(m string) bool {
			return slices.Contains(list, m)
		})},
		"show":         {members[wire.Shown](), members[wire.Entry]()},
		"check, kexec": inCheck,
		"prepare":      {members[prepared]()},
		"deliver":      {members[wire.Assigned]()},
		"monitor":      {members[event](), members[wire.Change]()},
		"features":     {members[check.Features](), members[check.KernelFeatures]()},
	}
	want["inspect"] = documents(t)
	got := readManual(t).json
	for _, table := range got["inspect"] { // the order of a JSON object is no matter
		slices.Sort(table)
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("fdbridgectl(1) and the program differ (-program +page):\n%s", diff)
	}
}

// documents returns the members of a manifest and an index that have all there
// are, and those of their entries and units.
func documents(t *testing.T) (list [][]string) {
	t.Helper()
	full := kho.Entry{
		Name: "n", Kind: "later", Session: "fdbridge.a.service", Token: 1, Open: 1, Type: "t", Size: 1, Position: 1,
		Seals: 1, Flags: 1, Mode: 1, UID: 1, GID: 1, Reason: "r",
	}
	manifest := kho.Manifest{Unit: "a.service", Entries: []kho.Entry{full, {Kind: "later"}}}
	index := kho.Index{Units: []kho.IndexUnit{{
		Unit: "a.service", Sessions: []string{"fdbridge.a.service"}, Token: 1, Entries: 1, Bytes: 1,
		Lost: []kho.LostEntry{{Name: "n", Type: "t", Reason: "r"}},
	}, {Unit: "a.service"}}, Services: []kho.Service{kho.NewService("a.service", "n", kho.Identity{})}, Messages: []string{"m"}}
	for _, d := range []struct {
		elements     string
		encode, bare func() ([]byte, error)
	}{{"entries", manifest.Encode, (&kho.Manifest{Unit: "a.service"}).Encode}, {"units", index.Encode, (&kho.Index{}).Encode}} {
		data, err := d.encode()
		bare, failed := d.bare()
		if err = errors.Join(err, failed); err != nil {
			t.Fatal(err)
		}
		var whole, least map[string]json.RawMessage
		var parts []map[string]json.RawMessage
		err = errors.Join(json.Unmarshal(data, &whole), json.Unmarshal(bare, &least), json.Unmarshal(whole[d.elements], &parts))
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, kindsOf(whole, least), kindsOf(parts[0], parts[1]))
	}
	return list
}

// kindsOf is members of a JSON object; least is one without what can be missing.
func kindsOf(object, least map[string]json.RawMessage) (list []string) {
	for name, value := range object {
		if _, there := least[name]; !there {
			name += "?"
		}
		kind := map[byte]string{'"': "string", '[': "array", '{': "object"}[value[0]]
		list = append(list, name+" "+cmp.Or(kind, "number"))
	}
	slices.Sort(list)
	return list
}

// members returns the JSON members of a struct with their types, as the page has
// them.
func members[T any]() (list []string) {
	kinds := map[reflect.Kind]string{
		reflect.Bool: "boolean", reflect.String: "string", reflect.Slice: "array", reflect.Struct: "object",
		reflect.Int: "number", reflect.Int64: "number", reflect.Uint32: "number", reflect.Uint64: "number",
	}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[T]()) {
		name, option, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			continue
		}
		kind := f.Type
		if kind.Kind() == reflect.Pointer {
			kind, option = kind.Elem(), "omitempty"
		}
		if option != "" {
			name += "?"
		}
		said := kinds[kind.Kind()]
		if kind.Implements(reflect.TypeFor[encoding.TextMarshaler]()) {
			said = "string"
		}
		list = append(list, name+" "+said)
	}
	return list
}
