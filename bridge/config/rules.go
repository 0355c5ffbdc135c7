// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/fdbridge/fdbridge/units/generator"
	"github.com/fdbridge/fdbridge/units/unitfile"
)

// Rules are what fdbridge.conf and the units' own files, which the generator has
// registered, say together.
type Rules struct {
	*Config
	Register generator.Register
	// loaded says that PID 1 has loaded the units from the files that Register is
	// from, which may have changed since then where the generator has not run.
	loaded bool
}

// errMasked says that nothing is carried.
var errMasked = errors.New("fdbridged.service is masked: fdbridge carries no fd store into the next kernel")

// LoadRules reads both, all below root. Where the generator has not run, it reads
// the unit files themselves, as the generator would have. Problems are as Load
// has them, and that fdbridged.service is masked; the result is never nil.
func LoadRules(root string) (*Rules, []error) {
	c, problems := Load(root)
	r := &Rules{Config: c}
	var err error
	r.Register, err = generator.ReadRegister(filepath.Join(root, generator.Dir))
	if err != nil {
		problems = append(problems, err)
	}
	if errors.Is(err, generator.ErrNotRun) {
		var bad []error
		r.Register, bad = generator.MakeRegister(root, unitfile.SearchPath(os.LookupEnv("SYSTEMD_UNIT_PATH")), c.Excluded)
		problems = append(problems, bad...)
	}
	if r.Register.Masked() {
		problems = append(problems, errMasked)
	}
	r.loaded = err == nil && !r.Register.Masked()
	return r, problems
}

// Facts returns what the files of a unit say, or those of its template. loaded reports whether
// PID 1 has made of them just what the facts say. Of an instance of a template that it has
// loaded later that is not true if they were changed and no daemon-reload followed, which PID 1
// has to be asked for.
func (r *Rules) Facts(unit string) (facts generator.Facts, loaded bool) {
	facts, found := r.Register.Lookup(unit)
	return facts, found && r.loaded && !facts.Unclear
}

// Excluded reports whether a unit is to be left alone, by either, or with all others
// because fdbridged.service is masked.
func (r *Rules) Excluded(unit string) bool {
	facts, _ := r.Register.Lookup(unit)
	return r.Register.Masked() || r.leaves(unit, facts)
}

// leaves tells whether a unit with these facts is to be left alone.
func (c *Config) leaves(unit string, facts generator.Facts) bool {
	return facts.Left || c.Excluded(unit)
}

// Required reports whether the live update is to be called off when anything of
// a unit would be lost.
func (r *Rules) Required(unit string) bool {
	facts, _ := r.Register.Lookup(unit)
	return (facts.Required || r.Rollback) && !r.Register.Masked()
}

// Early returns what of a unit's store may be preserved while services still run.
func (r *Rules) Early(unit string) generator.Early {
	facts, _ := r.Register.Lookup(unit)
	return facts.EarlyOf()
}

// AnyRequired reports whether there is any such unit.
func (r *Rules) AnyRequired() bool {
	required := r.Rollback || slices.ContainsFunc(slices.Collect(maps.Values(r.Register)),
		func(facts generator.Facts) bool { return facts.Required })
	return required && !r.Register.Masked()
}

// Current is Rules for who runs on while PID 1 loads its units anew.
type Current struct {
	*Config
	generator.Current
}

// Excluded is that of Rules, but that fdbridged.service is masked does not matter: it
// runs all the same.
func (c *Current) Excluded(unit string) bool {
	facts, _ := c.Facts(unit)
	return c.leaves(unit, facts)
}
