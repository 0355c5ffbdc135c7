// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"fmt"

	"github.com/godbus/dbus/v5"
)

func properties() *iface {
	return &iface{
		name: "org.freedesktop.DBus.Properties",
		methods: []member{
			{
				name: "Get", do: (*Service).get,
				in: []arg{{"s", "interface_name"}, {"s", "property_name"}}, out: []arg{{"v", "value"}},
			},
			{
				name: "GetAll", do: (*Service).getAll,
				in: []arg{{"s", "interface_name"}}, out: []arg{{"a{sv}", "props"}},
			},
			{
				name: "Set", do: (*Service).set,
				in: []arg{{"s", "interface_name"}, {"s", "property_name"}, {"v", "value"}},
			},
		},
		signals: []member{{
			name: "PropertiesChanged",
			out:  []arg{{"s", "interface_name"}, {"a{sv}", "changed_properties"}, {"as", "invalidated_properties"}},
		}},
	}
}

func objectManager() *iface {
	return &iface{
		name: "org.freedesktop.DBus.ObjectManager",
		methods: []member{{
			name: "GetManagedObjects", do: (*Service).managedObjects,
			out: []arg{{"a{oa{sa{sv}}}", "objects"}},
		}},
		signals: []member{
			{name: "InterfacesAdded", out: []arg{{"o", "object_path"}, {"a{sa{sv}}", "interfaces_and_properties"}}},
			{name: "InterfacesRemoved", out: []arg{{"o", "object_path"}, {"as", "interfaces"}}},
		},
	}
}

// interfaceOf returns the interface of an object that is named, with its state.
func (s *Service) interfaceOf(ctx context.Context, c *call) (*iface, *view, *dbus.Error) {
	v, wrong := s.known(ctx, c.path)
	if wrong != nil {
		return nil, nil, wrong
	}
	for _, i := range (object{s, c.path}).interfaces() {
		if i.name == c.text(0) {
			return i, v, nil
		}
	}
	return nil, nil, fault(errNoInterface, fmt.Sprintf("%s has no interface %q", c.path, c.text(0)))
}

// property returns that of an object that is named, with the state of the object.
func (s *Service) property(ctx context.Context, c *call) (*member, *view, *dbus.Error) {
	i, v, wrong := s.interfaceOf(ctx, c)
	if wrong != nil {
		return nil, nil, wrong
	}
	p := find(i.properties, c.text(1))
	if p == nil {
		return nil, nil, fault(errNoProperty, fmt.Sprintf("%s has no property %q in the interface %q", c.path, c.text(1), i.name))
	}
	return p, v, nil
}

func (s *Service) get(ctx context.Context, c *call) ([]any, *dbus.Error) {
	p, v, wrong := s.property(ctx, c)
	if wrong != nil {
		return nil, wrong
	}
	if p.value != nil {
		return []any{dbus.MakeVariant(p.value(v))}, nil
	}
	value, wrong := s.entries(ctx, v.unit.Unit)
	if wrong != nil {
		return nil, wrong
	}
	return []any{dbus.MakeVariant(value)}, nil
}

func (s *Service) getAll(ctx context.Context, c *call) ([]any, *dbus.Error) {
	i, v, wrong := s.interfaceOf(ctx, c)
	if wrong != nil {
		return nil, wrong
	}
	return []any{v.values(i)}, nil
}

func (s *Service) set(ctx context.Context, c *call) ([]any, *dbus.Error) {
	p, _, wrong := s.property(ctx, c)
	if wrong != nil {
		return nil, wrong
	}
	return nil, fault(errReadOnly, fmt.Sprintf("the property %q is read-only", p.name))
}

func (s *Service) managedObjects(ctx context.Context, _ *call) ([]any, *dbus.Error) {
	found, err := s.refresh(ctx)
	if err != nil {
		return nil, failed(err)
	}
	objects := map[dbus.ObjectPath]map[string]map[string]dbus.Variant{}
	for name, u := range found.units {
		v := &view{&s.Machine, found, u}
		objects[unitPath(name)] = map[string]map[string]dbus.Variant{unitInterface: v.values(unit())}
	}
	return []any{objects}, nil
}
