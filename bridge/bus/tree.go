// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"
)

// callTimeout bounds a method call, but for the time that a user takes to
// authenticate: fdbridged may have to wait for PID 1, and a check takes two minutes
// at most.
const callTimeout = 150 * time.Second

// member is a method, a signal or a property, as its introspection tells of it.
type member struct {
	name    string
	in, out []arg  // of a method; a signal has only out
	sig     string // of a property
	// changes is the property's EmitsChangedSignal, explicit systemd's Explicit:
	// it is not among what GetAll and InterfacesAdded tell.
	changes  string
	explicit bool
	value    func(v *view) any
	do       func(s *Service, ctx context.Context, c *call) ([]any, *dbus.Error) // of a method
}

type arg struct{ sig, name string }

// signature is that of a method's arguments.
func signature(args []arg) (sig string) {
	for _, a := range args {
		sig += a.sig
	}
	return sig
}

type iface struct {
	name                         string
	methods, signals, properties []member
}

func find(members []member, name string) *member {
	for i := range members {
		if members[i].name == name {
			return &members[i]
		}
	}
	return nil
}

// call is a method call.
type call struct {
	path        dbus.ObjectPath
	sender      string
	interactive bool // the caller may be asked to authenticate
	args        []any
}

// text returns an argument that the signature says is a string.
func (c *call) text(i int) string { return c.args[i].(string) }

// tree finds objects for package dbus, whose own tree is for objects that are known
// beforehand. That one exists is found out when it is called.
type tree struct{ s *Service }

func (t tree) LookupObject(path dbus.ObjectPath) (dbus.ServerObject, bool) {
	return object{t.s, path}, true
}

type object struct {
	s    *Service
	path dbus.ObjectPath
}

// interfaces are those of the objects that can be at a path.
func (o object) interfaces() []*iface {
	if o.path == Path {
		return []*iface{manager(), objectManager(), properties(), introspectable()}
	}
	if _, ok := unitAt(o.path); ok {
		return []*iface{unit(), properties(), introspectable()}
	}
	return []*iface{introspectable()}
}

func (o object) LookupInterface(name string) (dbus.Interface, bool) {
	return members{o, name}, true
}

// members are those of one interface of an object, or of all when a caller names
// none.
type members struct {
	object
	name string
}

func (m members) LookupMethod(name string) (dbus.Method, bool) {
	known := m.name == ""
	for _, i := range m.interfaces() {
		if m.name != "" && m.name != i.name {
			continue
		}
		known = true
		if found := find(i.methods, name); found != nil {
			return method{m.s, found, nil}, true
		}
	}
	if !known {
		return method{m.s, nil, fault(errNoInterface, fmt.Sprintf("%s has no interface %q", m.path, m.name))}, true
	}
	return method{m.s, nil, fault(errNoMethod, fmt.Sprintf("%s has no method %q in the interface %q", m.path, name, m.name))}, true
}

// method is one that is called: a member, or an error instead.
type method struct {
	s *Service
	*member
	wrong *dbus.Error
}

// DecodeArguments demands the arguments that the introspection tells of.
func (m method) DecodeArguments(_ *dbus.Conn, sender string, msg *dbus.Message, args []any) ([]any, error) {
	if m.wrong != nil {
		return nil, m.wrong
	}
	got, _ := msg.Headers[dbus.FieldSignature].Value().(dbus.Signature)
	if want := signature(m.in); got.String() != want {
		return nil, fault(errInvalidArgs, fmt.Sprintf("%s takes arguments of the types %q, not %q", m.name, want, got.String()))
	}
	path, _ := msg.Headers[dbus.FieldPath].Value().(dbus.ObjectPath)
	return []any{&call{path, sender, msg.Flags&dbus.FlagAllowInteractiveAuthorization != 0, args}}, nil
}

func (m method) Call(args ...any) ([]any, error) {
	select {
	case m.s.calls <- struct{}{}:
		defer func() { <-m.s.calls }()
	default:
		return nil, fault(errLimits, fmt.Sprintf("%d calls are being served already", maxCalls))
	}
	ctx, stop := context.WithTimeout(m.s.conn.Context(), callTimeout)
	defer stop()
	reply, wrong := m.do(m.s, ctx, args[0].(*call))
	if wrong != nil {
		return nil, wrong
	}
	return reply, nil
}

// What package dbus does not ask a method that decodes its own arguments.
func (m method) NumArguments() int     { return 1 }
func (m method) ArgumentValue(int) any { return &call{} }
func (m method) NumReturns() int       { return len(m.out) }
func (m method) ReturnValue(int) any   { return nil }
