// SPDX-License-Identifier: Apache-2.0

package generator

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/fdbridge/fdbridge/units/unitfile"
)

// registerName is the file beside the drop-ins that says what the units that
// have one are. It is as old as what PID 1 has loaded, and spares asking PID 1
// about each unit when time counts.
const registerName = ownUnit + ".d/units.json"

// Facts are what a unit's files say of it, as they say it: specifiers such as
// %i are not expanded.
type Facts struct {
	Fragment string `json:"fragment"` // path of the unit file
	User     string `json:"user,omitempty"`
	Group    string `json:"group,omitempty"`
	// Required says that the live update is to be called off when anything of
	// the unit cannot be carried, Required=yes in [X-FDBridge].
	Required bool `json:"required,omitempty"`
	// Early says what of the unit's store may be preserved while services still run,
	// Early= there; empty for the default: see EarlyOf.
	Early Early `json:"early,omitempty"`
	// Left says that the unit is left to systemd: Preserve=no there, or Exclude= in
	// fdbridge.conf, of which nothing else is said.
	Left bool `json:"left,omitempty"`
	// Identity is what of the unit has to be as it was, Identity= there; nil for
	// the default: see Compares.
	Identity []string `json:"identity,omitempty"`
	// Previous are names that the unit had before, PreviousName= there. A
	// template stands for that of the unit's own instance: see PreviousNames.
	Previous []string `json:"previous,omitempty"`
	// Unclear says that PID 1 may make something else of User and Group: they
	// have specifiers or are no plain names, or it makes the user up itself.
	Unclear bool `json:"unclear,omitempty"`
	// Masked is of fdbridged.service alone: see Register.Masked.
	Masked bool `json:"masked,omitempty"`
}

// Register has the facts of the units and templates that have opted in, and of
// those that are excluded, by their real names.
type Register map[string]Facts

// ownUnit is the unit of fdbridged.
const ownUnit = "fdbridged.service"

// Masked tells that fdbridged.service is masked. Then no unit has a drop-in, and what
// is carried into the next kernel would not be given back there.
func (r Register) Masked() bool { return r[ownUnit].Masked }

// ErrNotRun says that the generator has not run to its end when PID 1 has last
// loaded its units. PID 1 goes on with what is in the unit files when it cannot
// run the generators, as when a thousand stored fds that it closes, each in a
// process, have taken all processes it may have (seen with systemd 257).
var ErrNotRun = errors.New("the service manager did not run fdbridge's generator when it loaded the units last; " +
	"its log says why, and \"systemctl daemon-reload\" tries again")

// ReadRegister reads what the generator has last written to dir. It returns
// ErrNotRun when there is nothing.
func ReadRegister(dir string) (Register, error) {
	data, err := os.ReadFile(filepath.Join(dir, registerName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotRun
	}
	r := Register{}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return nil, fmt.Errorf("read what the generator knows of the units: %w", err)
	}
	return r, nil
}

// MakeRegister makes the Register that the generator would write, from the unit
// files below root. Problems are as Run has them.
func MakeRegister(root string, path []string, exclude func(unit string) bool) (r Register, problems []error) {
	set, unread := unitfile.Load(root, path)
	p := newPlan(set, exclude)
	return p.register, append(unread, p.problems...)
}

// Lookup returns the facts of a unit, which are those of its template when it
// has no files of its own.
func (r Register) Lookup(unit string) (Facts, bool) {
	facts, ok := r[unit]
	if template, is := unitfile.TemplateOf(unit); is && !ok {
		facts, ok = r[template]
	}
	return facts, ok
}

func (r Register) file() File {
	data, _ := json.Marshal(r) // strings cannot fail
	return File{Path: registerName, Data: append(data, '\n')}
}

// factsOf returns what the settings of a unit say, and what of it is no sense.
func factsOf(u *unitfile.Unit, settings unitfile.Settings) (facts Facts, problems []error) {
	facts.Fragment = u.Path
	facts.User, _ = settings.Last(service, "User", anything)
	facts.Group, _ = settings.Last(service, "Group", anything)
	// With DynamicUser= the unit's name becomes the user's (user_from_unit_name
	// in src/core/unit.c, systemd 257).
	facts.Unclear = isYes(settings, "DynamicUser") || !plainName(facts.User) || !plainName(facts.Group)
	return facts, facts.own(u.Name, settings)
}

// plainName tells whether a user or group is one that PID 1 takes as it is, or
// none (valid_user_group_name in src/basic/user-util.c, systemd 257, takes more).
func plainName(name string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"
	return len(name) <= 31 && strings.Trim(name, letters+"0123456789-") == "" &&
		(name == "" || strings.Contains(letters, name[:1]))
}
