// SPDX-License-Identifier: Apache-2.0

package unitfile

import "strings"

const (
	// maxName is the length of the longest unit name, UNIT_NAME_MAX - 1 in
	// systemd's src/basic/unit-name.h.
	maxName = 255

	suffix = ".service"
)

// unitName is a service name in its parts: "prefix.service",
// "prefix@.service" or "prefix@instance.service".
type unitName struct {
	prefix, instance string
	at               bool
}

// parseName splits a service name; false when it is not a valid one.
func parseName(name string) (unitName, bool) {
	stem, ok := strings.CutSuffix(name, suffix)
	if !ok || stem == "" || stem[0] == '@' || len(name) > maxName {
		return unitName{}, false
	}
	for i := range len(stem) {
		if !isNameChar(stem[i]) {
			return unitName{}, false
		}
	}
	prefix, instance, at := strings.Cut(stem, "@")
	return unitName{prefix: prefix, instance: instance, at: at}, true
}

// isNameChar knows VALID_CHARS_WITH_AT of systemd's src/basic/unit-name.c.
func isNameChar(c byte) bool {
	switch c {
	case ':', '-', '_', '.', '\\', '@':
		return true
	}
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

func (n unitName) isTemplate() bool { return n.at && n.instance == "" }
func (n unitName) isInstance() bool { return n.instance != "" }

func (n unitName) String() string {
	if n.at {
		return n.prefix + "@" + n.instance + suffix
	}
	return n.prefix + suffix
}

// with returns the name with another instance; none makes it the template.
func (n unitName) with(instance string) unitName {
	return unitName{prefix: n.prefix, instance: instance, at: true}
}

// ValidName reports whether name is a valid name of a service: plain, instance
// or template.
func ValidName(name string) bool {
	_, ok := parseName(name)
	return ok
}

// IsTemplate reports whether name is the name of a service template, such as
// "x@.service".
func IsTemplate(name string) bool {
	n, ok := parseName(name)
	return ok && n.isTemplate()
}

// TemplateOf returns the template of a service instance, "x@.service" for
// "x@i.service"; false when name is not an instance.
func TemplateOf(name string) (string, bool) {
	n, ok := parseName(name)
	if !ok || !n.isInstance() {
		return "", false
	}
	return n.with("").String(), true
}

// InstanceOf returns the instance of a template that unit is of its own, which is
// "y@i.service" for "y@.service" and "x@i.service"; false when template is none,
// unit is no instance, or the name would be too long.
func InstanceOf(template, unit string) (string, bool) {
	t, ok := parseName(template)
	u, valid := parseName(unit)
	if !ok || !valid || !t.isTemplate() || !u.isInstance() {
		return "", false
	}
	name := t.with(u.instance).String()
	return name, ValidName(name)
}
