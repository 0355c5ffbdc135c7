// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/bridge/bus"
	"github.com/fdbridge/fdbridge/bridge/wire"
)

const (
	unitA = bus.Path + "/unit/a_2eservice"
	unitB = bus.Path + "/unit/b_401_2eservice"

	managerInterface = bus.Name + ".Manager"
	unitInterface    = bus.Name + ".Unit"
	getManaged       = "org.freedesktop.DBus.ObjectManager.GetManagedObjects"
	properties       = "org.freedesktop.DBus.Properties."
)

// plain returns the values in a dictionary of variants.
func plain(v any) map[string]any {
	values := map[string]any{}
	for name, value := range v.(map[string]dbus.Variant) {
		values[name] = value.Value()
	}
	return values
}

var managerValues = map[string]any{
	"Version": "1.2", "State": "holding", "KernelSupported": true,
	"LiveUpdateNumber": uint64(7), "PreviousKernel": "7.2.13", "Held": uint32(1),
}

var unitValues = map[string]map[string]any{
	unitA: {
		"Name": "a.service", "State": "held", "Stored": uint32(1), "Held": uint32(2),
		"HeldBytes": uint64(8192), "Lost": uint32(3), "Session": "fdbridge.a.service",
	},
	unitB: {
		"Name": "b@1.service", "State": "opted-in", "Stored": uint32(4), "Held": uint32(0),
		"HeldBytes": uint64(0), "Lost": uint32(0), "Session": "",
	},
}

// encoded returns the JSON of a value.
func encoded(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(text), "\uFFFD", `\ufffd`)
}

func TestEverybodyMayRead(t *testing.T) {
	b := start(t)
	for _, test := range []struct {
		path, method string
		args         []any
		want         []any
	}{
		{bus.Path, managerInterface + ".ListUnits", nil, []any{[][]any{
			{"a.service", "held", uint32(1), uint32(2), uint64(8192), uint32(3), dbus.ObjectPath(unitA)},
			{"b@1.service", "opted-in", uint32(4), uint32(0), uint64(0), uint32(0), dbus.ObjectPath(unitB)},
		}}},
		{bus.Path, managerInterface + ".GetUnit", []any{"b@1.service"}, []any{dbus.ObjectPath(unitB)}},
		{bus.Path, managerInterface + ".Describe", nil, []any{encoded(t, wire.Report{
			Status: wire.Status{Held: 1}, Problems: []string{"y\x00\uFFFD"},
		})}},
		{unitA, unitInterface + ".Describe", nil, []any{encoded(t, wire.Shown{Unit: "a.service", Entries: []wire.Entry{
			{Place: wire.PlaceHeld, Name: "x", Type: "memfd", Size: b.entries[0].Size},
			{Place: wire.PlaceStored, Name: "y\x00\uFFFD", Type: "pipe"},
		}})}},
		{bus.Path, managerInterface + ".Check", nil, []any{"lossy", true, [][]any{
			{"lossy", "a.service", []string{"p"}, "pipe", "no", "yes"},
			{"carried", "", []string{}, "", "perhaps", ""},
		}}},
		{unitA, properties + "Get", []any{unitInterface, "Entries"}, []any{dbus.MakeVariantWithSignature([][]any{
			{"held", "x", "memfd", uint64(4096)},
			{"stored", "y\uFFFD\uFFFD", "pipe", uint64(math.MaxUint64)},
		}, dbus.ParseSignatureMust("a(ssst)"))}},
		{unitA, "org.freedesktop.DBus.Peer.Ping", nil, nil},
	} {
		got := b.body(b.user, test.path, test.method, test.args...)
		if diff := cmp.Diff(fmt.Sprint(test.want), fmt.Sprint(got)); diff != "" {
			t.Errorf("%s of %s (-want +got):\n%s", test.method, test.path, diff)
		}
	}
	b.stop()
}

func TestPropertiesAreReadOneByOneAndTogether(t *testing.T) {
	b := start(t)
	for path, values := range map[string]map[string]any{bus.Path: managerValues, unitA: unitValues[unitA], unitB: unitValues[unitB]} {
		name := unitInterface
		if path == bus.Path {
			name = managerInterface
		}
		if diff := cmp.Diff(values, plain(b.body(b.user, path, properties+"GetAll", name)[0])); diff != "" {
			t.Errorf("all properties of %s (-want +got):\n%s", path, diff)
		}
		for property, want := range values {
			got := b.body(b.user, path, properties+"Get", name, property)[0].(dbus.Variant).Value()
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s of %s (-want +got):\n%s", property, path, diff)
			}
		}
		for _, i := range b.introspect(path).Interfaces {
			for _, p := range i.Properties {
				got := b.body(b.user, path, properties+"Get", i.Name, p.Name)[0].(dbus.Variant)
				if got.Signature().String() != p.Type {
					t.Errorf("%s of %s has the type %s, and introspection says %s", p.Name, path, got.Signature(), p.Type)
				}
			}
		}
	}
	objects := map[string]map[string]any{}
	for path, interfaces := range b.body(b.user, bus.Path, getManaged)[0].(map[dbus.ObjectPath]map[string]map[string]dbus.Variant) {
		for name, values := range interfaces {
			if name != unitInterface {
				t.Errorf("%s has the interface %s", path, name)
			}
			objects[string(path)] = plain(values)
		}
	}
	if diff := cmp.Diff(unitValues, objects); diff != "" {
		t.Errorf("managed objects (-want +got):\n%s", diff)
	}
}

func TestStates(t *testing.T) {
	b := start(t)
	for want, u := range map[string]wire.Unit{
		"opted-in":  {State: wire.StateOptedIn, Lost: 1},
		"held":      {State: wire.StateHeld, Sessions: 1, Outcome: wire.ChangeDelivered},
		"delivered": {State: wire.StateOptedIn, Outcome: wire.ChangeDelivered},
		"lost":      {State: wire.StateOptedIn, Outcome: wire.ChangeDropped},
	} {
		u.Unit = "a.service"
		b.set(func(b *backend) { b.units = []wire.Unit{u} })
		if got := b.body(b.user, unitA, properties+"Get", unitInterface, "State")[0].(dbus.Variant).Value(); got != want {
			t.Errorf("State of %+v is %q, want %q", u, got, want)
		}
	}
	for want, set := range map[string]func(b *backend){
		"idle":        func(b *backend) { b.status = wire.Status{} },
		"unknown":     func(b *backend) { b.status = wire.Status{Unknown: "busy"} },
		"not-running": func(b *backend) { b.err = bus.ErrNotRunning },
	} {
		b.set(set)
		if got := b.body(b.user, bus.Path, properties+"Get", managerInterface, "State")[0].(dbus.Variant).Value(); got != want {
			t.Errorf("State of the manager is %q, want %q", got, want)
		}
		b.set(func(b *backend) { b.err = nil })
	}
}

func TestAKernelWithoutLiveUpdateIsUnsupported(t *testing.T) {
	b := startWith(t, &backend{err: bus.ErrNotRunning}, wire.Kernel{})
	want := map[string]any{
		"Version": "1.2", "State": "unsupported", "KernelSupported": false,
		"LiveUpdateNumber": uint64(math.MaxUint64), "PreviousKernel": "", "Held": uint32(0),
	}
	if diff := cmp.Diff(want, plain(b.body(b.user, bus.Path, properties+"GetAll", managerInterface)[0])); diff != "" {
		t.Errorf("properties (-want +got):\n%s", diff)
	}
	fault(t, "ListUnits", b.call(b.user, bus.Path, managerInterface+".ListUnits").Err, bus.Name+".NotRunning")
	b.stop()
}

// What changes is signalled once, and nothing else is.
func TestChangesAreSignalled(t *testing.T) {
	b := start(t)
	signals := b.signals(b.user, dbus.WithMatchSender(bus.Name))
	was := b.units
	b.set(func(b *backend) {
		b.units = []wire.Unit{
			{Unit: "a.service", State: wire.StateOptedIn, Stored: 5, Lost: 3, Outcome: wire.ChangeDelivered},
			{Unit: "c.service", State: wire.StateOptedIn, Stored: 6},
		}
		b.status.Held = 0
	})
	expect := func(path, name string, body ...any) {
		t.Helper()
		s := b.next(signals)
		if diff := cmp.Diff([]any{dbus.ObjectPath(path), "org.freedesktop.DBus." + name, fmt.Sprint(body...)},
			[]any{s.Path, s.Name, fmt.Sprint(s.Body...)}); diff != "" {
			t.Errorf("signal (-want +got):\n%s", diff)
		}
	}
	variants := func(values map[string]any) map[string]dbus.Variant {
		v := map[string]dbus.Variant{}
		for name, value := range values {
			v[name] = dbus.MakeVariant(value)
		}
		return v
	}
	expect(bus.Path, "Properties.PropertiesChanged", managerInterface,
		variants(map[string]any{"State": "idle", "Held": uint32(0)}), []string{})
	expect(bus.Path, "ObjectManager.InterfacesRemoved", dbus.ObjectPath(unitB), []string{unitInterface})
	expect(unitA, "Properties.PropertiesChanged", unitInterface,
		variants(map[string]any{"State": "delivered", "Held": uint32(0), "HeldBytes": uint64(0), "Session": ""}), []string{"Entries"})
	expect(bus.Path, "ObjectManager.InterfacesAdded", dbus.ObjectPath(bus.Path+"/unit/c_2eservice"), map[string]map[string]dbus.Variant{
		unitInterface: variants(map[string]any{
			"Name": "c.service", "State": "opted-in", "Stored": uint32(6), "Held": uint32(0),
			"HeldBytes": uint64(0), "Lost": uint32(0), "Session": "",
		}),
	})
	// A store that grows is nothing that fdbridged is told of, and not signalled.
	b.set(func(b *backend) { b.units[1].Stored = 7 })
	b.body(b.user, bus.Path, managerInterface+".ListUnits")
	b.set(func(b *backend) { b.err = bus.ErrNotRunning })
	expect(bus.Path, "Properties.PropertiesChanged", managerInterface, variants(map[string]any{"State": "not-running"}), []string{})
	fault(t, "ListUnits", b.call(b.user, bus.Path, managerInterface+".ListUnits").Err, bus.Name+".NotRunning")
	// What PID 1 is too busy to say changes nothing.
	b.set(func(b *backend) { b.err = errors.New("busy") })
	fault(t, "ListUnits", b.call(b.user, bus.Path, managerInterface+".ListUnits").Err, "org.freedesktop.DBus.Error.Failed")
	b.set(func(b *backend) { b.err, b.units = nil, was[:1] })
	expect(bus.Path, "Properties.PropertiesChanged", managerInterface, variants(map[string]any{"State": "idle"}), []string{})
	expect(bus.Path, "ObjectManager.InterfacesRemoved", dbus.ObjectPath(bus.Path+"/unit/c_2eservice"), []string{unitInterface})
}

func TestThereIsOneCheckAtATime(t *testing.T) {
	b := start(t)
	b.set(func(b *backend) { b.block = make(chan struct{}) })
	first := make(chan *dbus.Call, 1)
	b.user.Object(bus.Name, bus.Path).Go(managerInterface+".Check", 0, first)
	for n := 0; n == 0; {
		b.set(func(b *backend) { n = b.checks })
	}
	fault(t, "a second Check", b.call(b.root, bus.Path, managerInterface+".Check").Err, bus.Name+".CheckInProgress")
	b.set(func(b *backend) { close(b.block) })
	if err := b.answer(first); err != nil {
		t.Errorf("the first Check: %v", err)
	}
	b.body(b.root, bus.Path, managerInterface+".Check")
}

// Those who ask at a time share the answers, so that PID 1 is not asked for each of
// them, and there is a bound for how many may ask.
func TestManyWhoAskAreNoWorkForPID1(t *testing.T) {
	b := start(t)
	b.mu.Lock() // fdbridged does not answer
	before, done := b.asked, make(chan *dbus.Call, 100)
	for range cap(done) {
		b.user.Object(bus.Name, bus.Path).Go(managerInterface+".ListUnits", 0, done)
	}
	for range cap(done) - 64 {
		fault(t, "a call too many", b.answer(done), "org.freedesktop.DBus.Error.LimitsExceeded")
	}
	b.mu.Unlock()
	for range 64 {
		if err := b.answer(done); err != nil {
			t.Error(err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.asked - before; n > 10 {
		t.Errorf("for 64 calls fdbridged was asked %d times", n)
	}
}

func TestTheServiceEndsWithItsBus(t *testing.T) {
	b := start(t)
	b.stopBus()
	if err := <-b.ended; err == nil || !strings.Contains(err.Error(), "message bus") {
		t.Errorf("Serve: %v", err)
	}
}

func TestTheServiceDoesNotStartTwice(t *testing.T) {
	b := start(t)
	second := bus.Service{Backend: &backend{}}
	if err := second.Serve(t.Context(), b.socket); err == nil || !strings.Contains(err.Error(), bus.Name) {
		t.Errorf("Serve: %v", err)
	}
}

// Many callers, changes and checks at a time.
func TestCallersDoNotGetIntoEachOthersWay(t *testing.T) {
	b := start(t)
	var callers sync.WaitGroup
	for range 8 {
		conn := dial(t, b.socket, nobody)
		callers.Go(func() {
			for range 20 {
				for _, method := range []string{managerInterface + ".ListUnits", getManaged} {
					if err := b.call(conn, bus.Path, method).Err; err != nil {
						t.Error(err)
					}
				}
				b.set(func(b *backend) { b.status.Held++ })
			}
		})
	}
	callers.Wait()
	b.stop()
}
