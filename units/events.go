// SPDX-License-Identifier: Apache-2.0

package units

import (
	"strings"
	"sync"

	"github.com/godbus/dbus/v5"
)

// events keeps, of all the signals that PID 1 sends, the names of the
// services it has loaded, and that it has reloaded. It never blocks the
// connection that delivers them and never loses one: what was not fetched yet
// waits in a set.
type events struct {
	mu       sync.Mutex
	services map[string]bool
	reloaded bool
	wake     chan struct{}
}

func newEvents() *events {
	return &events{services: map[string]bool{}, wake: make(chan struct{}, 1)}
}

// DeliverSignal implements dbus.SignalHandler.
func (e *events) DeliverSignal(iface, name string, signal *dbus.Signal) {
	if iface != managerInterface || len(signal.Body) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch name {
	case "UnitNew":
		unit, ok := signal.Body[0].(string)
		if !ok || !strings.HasSuffix(unit, ".service") {
			return
		}
		e.services[unit] = true
	case "Reloading":
		if started, ok := signal.Body[0].(bool); !ok || started {
			return
		}
		e.reloaded = true
	default:
		return
	}
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// AddSignal implements dbus.SignalRegistrar, which go-systemd needs to follow
// jobs. No job is followed here, so no channel is ever sent to.
func (e *events) AddSignal(chan<- *dbus.Signal) {}

// RemoveSignal implements dbus.SignalRegistrar.
func (e *events) RemoveSignal(chan<- *dbus.Signal) {}

// News gets a value when there is something to fetch with Loaded.
func (m *Manager) News() <-chan struct{} { return m.events.wake }

// Loaded returns the services that PID 1 has loaded since the last call, never
// nil, and whether it has reloaded all its units since.
func (m *Manager) Loaded() (services []string, reloaded bool) {
	e := m.events
	e.mu.Lock()
	defer e.mu.Unlock()
	services = []string{}
	for unit := range e.services {
		services = append(services, unit)
	}
	clear(e.services)
	reloaded, e.reloaded = e.reloaded, false
	return services, reloaded
}
