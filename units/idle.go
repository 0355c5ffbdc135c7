// SPDX-License-Identifier: Apache-2.0

package units

import "context"

// Idle returns those among units that are stopped and have nothing in their
// stores, which is then so until they are started. A unit that is not loaded is
// idle, too. The error is ErrManager when PID 1 does not answer.
//
// One question is enough: a service that is stopped and has something in its
// store is in another state than one that has not (service_determine_dead_state
// in src/core/service.c, systemd 254).
func (r *Reader) Idle(ctx context.Context, units []string) (map[string]bool, error) {
	idle := map[string]bool{}
	if len(units) == 0 {
		return idle, nil
	}
	for _, unit := range units {
		idle[unit] = true
	}
	err := r.connected(ctx, func(ctx context.Context, a asker) error {
		// All: PID 1 would compare each of its units with each name.
		services, err := a.services(ctx, []string{"*.service"})
		for _, service := range services {
			if !service.dead() {
				delete(idle, service.name)
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return idle, nil
}
