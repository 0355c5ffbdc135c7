// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"
)

func introspectable() *iface {
	return &iface{
		name:    "org.freedesktop.DBus.Introspectable",
		methods: []member{{name: "Introspect", out: []arg{{"s", "xml_data"}}, do: (*Service).introspect}},
	}
}

// peer is served by package dbus, for every object.
func peer() *iface {
	return &iface{
		name:    "org.freedesktop.DBus.Peer",
		methods: []member{{name: "Ping"}, {name: "GetMachineId", out: []arg{{"s", "machine_uuid"}}}},
	}
}

func (s *Service) introspect(ctx context.Context, c *call) ([]any, *dbus.Error) {
	children, wrong := s.children(ctx, c.path)
	if wrong != nil {
		return nil, wrong
	}
	var b strings.Builder
	b.WriteString("<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n" +
		"\"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n<node>\n")
	for _, i := range append([]*iface{peer()}, object{s, c.path}.interfaces()...) {
		i.describe(&b)
	}
	for _, child := range children {
		fmt.Fprintf(&b, " <node name=\"%s\"/>\n", child)
	}
	b.WriteString("</node>\n")
	return []any{b.String()}, nil
}

// children returns the names of the objects below one, which need no escaping; an
// error when there is no such object.
func (s *Service) children(ctx context.Context, path dbus.ObjectPath) ([]string, *dbus.Error) {
	if path == "/" {
		return []string{strings.Split(Path, "/")[1]}, nil
	}
	if below, ok := strings.CutPrefix(unitsPath, string(path)+"/"); ok {
		child, _, _ := strings.Cut(below, "/")
		return []string{child}, nil
	}
	if path != unitsPath {
		_, wrong := s.known(ctx, path)
		return nil, wrong
	}
	found, err := s.refresh(ctx)
	if err != nil {
		return nil, failed(err)
	}
	var names []string
	for name := range found.units {
		names = append(names, strings.TrimPrefix(string(unitPath(name)), unitsPath+"/"))
	}
	slices.Sort(names)
	return names, nil
}

func (i *iface) describe(b *strings.Builder) {
	fmt.Fprintf(b, " <interface name=\"%s\">\n", i.name)
	for _, m := range i.methods {
		fmt.Fprintf(b, "  <method name=\"%s\">\n", m.name)
		describe(b, m.in, "in")
		describe(b, m.out, "out")
		b.WriteString("  </method>\n")
	}
	for _, m := range i.signals {
		fmt.Fprintf(b, "  <signal name=\"%s\">\n", m.name)
		describe(b, m.out, "")
		b.WriteString("  </signal>\n")
	}
	for _, m := range i.properties {
		fmt.Fprintf(b, "  <property name=\"%s\" type=\"%s\" access=\"read\">\n", m.name, m.sig)
		annotate(b, "org.freedesktop.DBus.Property.EmitsChangedSignal", m.changes)
		if m.explicit {
			annotate(b, "org.freedesktop.systemd1.Explicit", "true")
		}
		b.WriteString("  </property>\n")
	}
	b.WriteString(" </interface>\n")
}

func describe(b *strings.Builder, args []arg, direction string) {
	if direction != "" {
		direction = fmt.Sprintf(" direction=\"%s\"", direction)
	}
	for _, a := range args {
		fmt.Fprintf(b, "   <arg type=\"%s\" name=\"%s\"%s/>\n", a.sig, a.name, direction)
	}
}

func annotate(b *strings.Builder, name, value string) {
	fmt.Fprintf(b, "   <annotation name=\"%s\" value=\"%s\"/>\n", name, value)
}
