// SPDX-License-Identifier: Apache-2.0

package config

import (
	"maps"
	"slices"

	"github.com/fdbridge/fdbridge/units/generator"
)

// Rules are what fdbridge.conf and the units' own files, which the generator has
// registered, say together.
type Rules struct {
	*Config
	Register generator.Register
}

// Excluded reports whether a unit is to be left alone, by either.
func (r Rules) Excluded(unit string) bool {
	facts, _ := r.Register.Lookup(unit)
	return facts.Left || r.Config.Excluded(unit)
}

// Required reports whether the live update is to be called off when anything of
// a unit would be lost.
func (r Rules) Required(unit string) bool {
	facts, _ := r.Register.Lookup(unit)
	return facts.Required || r.Rollback
}

// AnyRequired reports whether there is any such unit.
func (r Rules) AnyRequired() bool {
	return r.Rollback || slices.ContainsFunc(slices.Collect(maps.Values(r.Register)),
		func(facts generator.Facts) bool { return facts.Required })
}
