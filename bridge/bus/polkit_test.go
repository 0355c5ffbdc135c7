// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"errors"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/bridge/bus"
	"github.com/fdbridge/fdbridge/bridge/wire"
)

// polkit is an authority on the bus.
type polkit struct {
	authorized, challenge bool
	err                   *dbus.Error
	block                 chan struct{} // if not nil, it answers when this is closed
	asked                 chan question
}

type question struct {
	Kind, Sender, Action string
	Details              map[string]string
	Flags                uint32
}

type subject struct {
	Kind    string
	Details map[string]dbus.Variant
}

type answer struct {
	Authorized, Challenge bool
	Details               map[string]string
}

func (p *polkit) CheckAuthorization(who subject, action string, details map[string]string, flags uint32, _ string) (answer, *dbus.Error) {
	sender, _ := who.Details["name"].Value().(string)
	p.asked <- question{who.Kind, sender, action, details, flags}
	if p.block != nil {
		<-p.block
	}
	return answer{p.authorized, p.challenge, nil}, p.err
}

// polkit puts an authority on the bus, which stays until the test ends.
func (b *bed) polkit(p *polkit) {
	b.Helper()
	p.asked = make(chan question, 100)
	conn := dial(b.T, b.socket, 0)
	err := conn.Export(p, "/org/freedesktop/PolicyKit1/Authority", "org.freedesktop.PolicyKit1.Authority")
	if err == nil {
		_, err = conn.RequestName("org.freedesktop.PolicyKit1", dbus.NameFlagDoNotQueue)
	}
	if err != nil {
		b.Fatal(err)
	}
}

const (
	denied      = "org.freedesktop.DBus.Error.AccessDenied"
	interactive = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
)

// change calls a method of the manager as an ordinary user, with flags that package
// dbus does not let through by itself.
func (b *bed) change(flags dbus.Flags, method string, args ...any) error {
	b.Helper()
	call := b.user.Send(&dbus.Message{
		Type: dbus.TypeMethodCall, Flags: flags, Body: args,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(bus.Name),
			dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath(bus.Path)),
			dbus.FieldInterface:   dbus.MakeVariant(managerInterface),
			dbus.FieldMember:      dbus.MakeVariant(method),
			dbus.FieldSignature:   dbus.MakeVariant(dbus.SignatureOf(args...)),
		},
	}, make(chan *dbus.Call, 1))
	return b.answer(call.Done)
}

func TestChangesAreUpToPolkit(t *testing.T) {
	for name, test := range map[string]struct {
		polkit polkit
		flags  dbus.Flags
		want   string // the error
	}{
		"allowed":               {polkit{authorized: true}, 0, ""},
		"allowed after a while": {polkit{authorized: true}, dbus.FlagAllowInteractiveAuthorization, ""},
		"denied":                {polkit{}, 0, denied},
		"to be authenticated":   {polkit{challenge: true}, 0, interactive},
		"nobody to do so":       {polkit{challenge: true}, dbus.FlagAllowInteractiveAuthorization, interactive},
		"polkit fails":          {polkit{authorized: true, err: dbus.NewError("org.freedesktop.PolicyKit1.Error.Failed", nil)}, 0, denied},
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t)
			b.polkit(&test.polkit)
			for _, change := range []struct {
				method, action, done string
				args                 []any
				details              map[string]string
			}{
				{"Drop", "org.fdbridge.Bridge1.drop", "drop a.service", []any{"a.service"}, map[string]string{"unit": "a.service"}},
				{
					"Deliver", "org.fdbridge.Bridge1.deliver", "deliver a.service other.service", []any{"a.service", "other.service"},
					map[string]string{"unit": "a.service", "as": "other.service"},
				},
			} {
				b.set(func(b *backend) { b.done = nil })
				err := b.change(test.flags, change.method, change.args...)
				var done []string
				if test.want == "" {
					done = []string{change.done}
					if err != nil {
						t.Errorf("%s: %v", change.method, err)
					}
				} else {
					fault(t, change.method, err, test.want)
				}
				if diff := cmp.Diff(done, b.done); diff != "" {
					t.Errorf("%s was done (-want +got):\n%s", change.method, diff)
				}
				got := <-test.polkit.asked
				if got.Details["polkit.message"] == "" {
					t.Error("the user is not told what this is about")
				}
				delete(got.Details, "polkit.message")
				want := question{"system-bus-name", b.user.Names()[0], change.action, change.details, uint32(test.flags) >> 2}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("polkit was asked (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestWithoutPolkitRootAloneMayChangeAnything(t *testing.T) {
	b := start(t)
	fault(t, "Drop", b.call(b.user, bus.Path, managerInterface+".Drop", "a.service").Err, denied)
	fault(t, "Deliver", b.call(b.user, bus.Path, managerInterface+".Deliver", "a.service", "other.service").Err, denied)
	if len(b.done) > 0 {
		t.Errorf("done for an ordinary user: %q", b.done)
	}
	b.body(b.root, bus.Path, managerInterface+".Drop", "a.service")
	b.body(b.root, bus.Path, managerInterface+".Deliver", "a.service", "other.service")
	if diff := cmp.Diff([]string{"drop a.service", "deliver a.service other.service"}, b.done); diff != "" {
		t.Errorf("done for root (-want +got):\n%s", diff)
	}
}

func TestPolkitIsNotAskedAboutRoot(t *testing.T) {
	b := start(t)
	p := &polkit{}
	b.polkit(p)
	b.body(b.root, bus.Path, managerInterface+".Drop", "a.service")
	if len(p.asked) > 0 {
		t.Errorf("polkit was asked: %+v", <-p.asked)
	}
}

// Users who do not authenticate keep neither readers nor root from anything.
func TestThereIsABoundForUsersWhoAuthenticate(t *testing.T) {
	b := start(t)
	p := &polkit{authorized: true, block: make(chan struct{})}
	b.polkit(p)
	done := make(chan *dbus.Call, 100)
	for range 20 {
		b.user.Object(bus.Name, bus.Path).Go(managerInterface+".Drop", 0, done, "a.service")
	}
	for range 20 - 16 {
		fault(t, "a user too many", b.answer(done), "org.freedesktop.DBus.Error.LimitsExceeded")
	}
	b.body(b.user, bus.Path, managerInterface+".ListUnits")
	b.body(b.root, bus.Path, managerInterface+".Drop", "a.service")
	close(p.block)
	for range 16 {
		if err := b.answer(done); err != nil {
			t.Error(err)
		}
	}
}

func TestErrorsHaveTheNamesThatTheManualSays(t *testing.T) {
	b := start(t)
	const (
		standard    = "org.freedesktop.DBus.Error."
		invalid     = standard + "InvalidArgs"
		noObject    = standard + "UnknownObject"
		noInterface = standard + "UnknownInterface"
		noMethod    = standard + "UnknownMethod"
	)
	for _, test := range []struct {
		path, method string
		args         []any
		want         string
	}{
		{bus.Path, managerInterface + ".GetUnit", []any{"c.service"}, bus.Name + ".NoSuchUnit"},
		{bus.Path, managerInterface + ".Drop", []any{"c.service"}, bus.Name + ".NoSuchUnit"},
		{bus.Path, managerInterface + ".Deliver", []any{"c.service", "a.service"}, bus.Name + ".NoSuchUnit"},
		{bus.Path, managerInterface + ".Drop", []any{"b@1.service"}, bus.Name + ".NothingHeld"},
		{bus.Path, managerInterface + ".Deliver", []any{"b@1.service", "a.service"}, bus.Name + ".NothingHeld"},
		{bus.Path, managerInterface + ".Deliver", []any{"a.service", "a.socket"}, invalid},
		{bus.Path, managerInterface + ".GetUnit", nil, invalid},
		{bus.Path, managerInterface + ".GetUnit", []any{uint32(1)}, invalid},
		{bus.Path, managerInterface + ".GetUnit", []any{"a.service", "b.service"}, invalid},
		{bus.Path, managerInterface + ".ListUnits", []any{"a.service"}, invalid},
		{bus.Path, managerInterface + ".Drop", []any{[]string{"a.service"}}, invalid},
		{bus.Path, managerInterface + ".Nothing", nil, noMethod},
		{bus.Path, unitInterface + ".Describe", nil, noInterface},
		{bus.Path, bus.Name + ".Other.Drop", nil, denied}, // the bus's policy lets nobody try
		{bus.Path, properties + "Get", []any{managerInterface, "Nothing"}, standard + "UnknownProperty"},
		{bus.Path, properties + "Get", []any{unitInterface, "Name"}, noInterface},
		{bus.Path, properties + "GetAll", []any{"org.example.Other"}, noInterface},
		{bus.Path, properties + "Set", []any{managerInterface, "State", dbus.MakeVariant("idle")}, standard + "PropertyReadOnly"},
		{unitA, properties + "Set", []any{unitInterface, "Held", dbus.MakeVariant(uint32(0))}, standard + "PropertyReadOnly"},
		{unitA, getManaged, nil, noInterface},
		{unitA, managerInterface + ".Drop", []any{"a.service"}, noInterface},
		{unitA + "x", properties + "GetAll", []any{unitInterface}, noObject},
		{bus.Path + "/unit/a_2Eservice", properties + "GetAll", []any{unitInterface}, noInterface},
		{bus.Path + "/unit", properties + "GetAll", []any{unitInterface}, noInterface},
		{"/", managerInterface + ".ListUnits", nil, noInterface},
		{unitA + "/x", "org.freedesktop.DBus.Introspectable.Introspect", nil, noObject},
		{unitA + "x", "org.freedesktop.DBus.Introspectable.Introspect", nil, noObject},
		{"/org/example", "org.freedesktop.DBus.Introspectable.Introspect", nil, noObject},
	} {
		fault(t, test.method+" of "+test.path, b.call(b.user, test.path, test.method, test.args...).Err, test.want)
	}
	for err, want := range map[error]string{
		bus.ErrNotRunning:       bus.Name + ".NotRunning",
		wire.ErrRefused:         bus.Name + ".Refused",
		errors.New("x\x00\xff"): standard + "Failed",
	} {
		b.set(func(b *backend) { b.err = err })
		for _, method := range []string{"ListUnits", "Check"} {
			fault(t, method, b.call(b.user, bus.Path, managerInterface+"."+method).Err, want)
		}
		fault(t, "Entries", b.call(b.user, unitA, properties+"Get", unitInterface, "Entries").Err, want)
	}
}

// What is no name of a service that could run is refused before anything is asked.
func TestNamesThatAreNoneAreRefused(t *testing.T) {
	b := start(t)
	const asked = 2 // when it began, and when it began to watch
	for b.times() < asked {
		time.Sleep(time.Millisecond)
	}
	for _, name := range []string{
		"", ".", "a", "a.socket", ".service", "@.service", "@x.service", "a@.service", "a/b.service", "../a.service",
		"a b.service", "a\n.service", "ä.service", "a.service ", "a.service.", "$(unit).service",
		longName(256),
	} {
		for _, call := range []struct {
			method string
			args   []any
		}{{"GetUnit", []any{name}}, {"Drop", []any{name}}, {"Deliver", []any{name, "a.service"}}, {"Deliver", []any{"a.service", name}}} {
			err := b.call(b.root, bus.Path, managerInterface+"."+call.method, call.args...).Err
			fault(t, call.method, err, "org.freedesktop.DBus.Error.InvalidArgs")
		}
	}
	if n := b.times() - asked; n != 0 || len(b.done) > 0 {
		t.Errorf("fdbridged was asked %d times, and did %q", n, b.done)
	}
	fault(t, "GetUnit", b.call(b.root, bus.Path, managerInterface+".GetUnit", longName(255)).Err, bus.Name+".NoSuchUnit")
}

func longName(n int) string {
	name := make([]byte, n-len(".service"))
	for i := range name {
		name[i] = 'n'
	}
	return string(name) + ".service"
}

func TestAUnitsOwnSessionsCanBeDroppedAndNotDelivered(t *testing.T) {
	b := start(t)
	b.set(func(b *backend) { b.units = []wire.Unit{{Unit: "own.service", State: wire.StateHeld, Sessions: 1}} })
	b.body(b.root, bus.Path, managerInterface+".Drop", "own.service")
	fault(t, "Deliver", b.call(b.root, bus.Path, managerInterface+".Deliver", "own.service", "a.service").Err, bus.Name+".NothingHeld")
}
