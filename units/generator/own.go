// SPDX-License-Identifier: Apache-2.0

package generator

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fdbridge/fdbridge/units/unitfile"
)

// ownSection is where a unit's files say what is for fdbridge; systemd ignores
// sections whose names begin so.
//
// Required= and Preserve= are yes or no; the last assignment counts, and an
// empty one is no and yes.
//
// Early= is sealed, yes or no: which of the unit's memfds may be preserved while it
// still runs, those whose size is sealed and that cannot be sealed against writing any
// more, all, or none. The last assignment counts, and
// an empty one is sealed.
//
// Identity= is a list of the words unit, user, group and fragment: what of a unit
// has to be as it was before the live update, or it does not get what is held.
// It is unit, user and group when it is not set. The unit's name is compared in
// any case, whether the list has unit or not: it is all that leads from a unit to
// what is held for it, and without it any service could have anything. What a
// unit may have that was preserved under another name, PreviousName= and an
// administrator's word say.
//
// PreviousName= is a list of names that the unit had before. A template has
// templates there, each of which stands for the same instance of it.
//
// Assignments of lists add up, and an empty one throws away those before it.
const ownSection = "X-FDBridge"

// Early is a value of Early=.
type Early string

// The values of Early=.
const (
	EarlySealed Early = "sealed" // the default
	EarlyYes    Early = "yes"
	EarlyNo     Early = "no"
)

func (f *Facts) assignEarly(a unitfile.Assignment) error {
	if a.Value == "" || Early(a.Value) == EarlySealed {
		f.Early = ""
		return nil
	}
	yes, ok := unitfile.ParseBool(a.Value)
	if !ok {
		return fmt.Errorf("%s=%s is ignored: it is sealed, yes or no", a.Key, a.Value)
	}
	if f.Early = EarlyNo; yes {
		f.Early = EarlyYes
	}
	return nil
}

// EarlyOf returns the value of Early= that holds.
func (f Facts) EarlyOf() Early {
	if f.Early == "" {
		return EarlySealed
	}
	return f.Early
}

// The words of Identity=.
const (
	ByUnit     = "unit"
	ByUser     = "user"
	ByGroup    = "group"
	ByFragment = "fragment"
)

// Compares reports whether what one of the words of Identity= stands for has to
// be as it was before the live update.
func (f Facts) Compares(word string) bool {
	if f.Identity == nil {
		return word != ByFragment
	}
	return word == ByUnit || slices.Contains(f.Identity, word)
}

// PreviousNames returns the names that unit had before, whose facts, or whose
// template's, these are.
func (f Facts) PreviousNames(unit string) []string {
	var names []string
	for _, name := range f.Previous {
		if unitfile.IsTemplate(name) {
			name, _ = unitfile.InstanceOf(name, unit)
		}
		if name != "" {
			names = append(names, name)
		}
	}
	return names
}

// own applies the settings of ownSection, and returns what of them is ignored.
func (f *Facts) own(unit string, settings unitfile.Settings) (problems []error) {
	var identity identity
	for _, a := range settings {
		if a.Section != ownSection {
			continue
		}
		var err error
		switch a.Key {
		case "Required":
			err = boolean(a, func(yes bool) { f.Required = yes }, false)
		case "Preserve":
			err = boolean(a, func(yes bool) { f.Left = !yes }, true)
		case "Early":
			err = f.assignEarly(a)
		case "Identity":
			err = identity.assign(a.Value)
		case "PreviousName":
			err = f.addPrevious(unit, a.Value)
		default:
			err = fmt.Errorf("the setting %s= is unknown and ignored", a.Key)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s:%d: %w", a.Path, a.Line, err))
		}
	}
	f.Identity = identity.list()
	return problems
}

func boolean(a unitfile.Assignment, set func(yes bool), standard bool) error {
	yes, ok := unitfile.ParseBool(a.Value)
	switch {
	case a.Value == "":
		set(standard)
	case !ok:
		return fmt.Errorf("%s=%s is ignored: it is yes or no", a.Key, a.Value)
	default:
		set(yes)
	}
	return nil
}

// identity is Identity= as it is assigned.
type identity struct {
	words   []string
	unclear bool // there was a word that is none of them
}

func (i *identity) assign(value string) error {
	if value == "" {
		*i = identity{}
		return nil
	}
	for _, word := range strings.Fields(value) {
		if !slices.Contains([]string{ByUnit, ByUser, ByGroup, ByFragment}, word) {
			i.unclear = true
			return fmt.Errorf("Identity=%s is ignored, and the default holds: %q is none of unit, user, group and fragment", value, word)
		}
		i.words = append(i.words, word)
	}
	return nil
}

// list returns the words, sorted; nil when the default holds.
func (i *identity) list() []string {
	if i.unclear {
		return nil
	}
	return slices.Compact(slices.Sorted(slices.Values(i.words)))
}

// addPrevious applies an assignment of PreviousName=. What names no service, or
// none that can have been the unit's name, is left out.
func (f *Facts) addPrevious(unit, value string) error {
	if value == "" {
		f.Previous = nil
	}
	var failed []error
	for _, name := range strings.Fields(value) {
		_, instance := unitfile.TemplateOf(unit)
		switch template := unitfile.IsTemplate(name); {
		case !unitfile.ValidName(name):
			failed = append(failed, fmt.Errorf("PreviousName=%s is ignored: it is no name of a service", name))
		case name == unit:
			failed = append(failed, fmt.Errorf("PreviousName=%s is ignored: it is the unit's name", name))
		case template && !instance && !unitfile.IsTemplate(unit):
			failed = append(failed, fmt.Errorf("PreviousName=%s is ignored: it is a template, and the unit has no instances", name))
		case !template && unitfile.IsTemplate(unit):
			failed = append(failed, fmt.Errorf("PreviousName=%s is ignored: all instances of the template would have had it", name))
		default:
			f.Previous = append(f.Previous, name)
		}
	}
	return errors.Join(failed...)
}
