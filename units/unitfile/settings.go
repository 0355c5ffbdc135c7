// SPDX-License-Identifier: Apache-2.0

package unitfile

// Settings are assignments in the order in which systemd applies them.
type Settings []Assignment

// All returns the values of a setting that is a list: repeated assignments
// add up, and an empty one throws away those before it.
func (s Settings) All(section, key string) []string {
	var all []string
	for _, a := range s {
		switch {
		case a.Section != section || a.Key != key:
		case a.Value == "":
			all = nil
		default:
			all = append(all, a.Value)
		}
	}
	return all
}

// Last returns the value of a setting that holds one value: the last that
// valid accepts, because systemd ignores a value that it cannot parse and
// keeps the one before. It returns false when there is none.
func (s Settings) Last(section, key string, valid func(value string) bool) (string, bool) {
	for i := len(s) - 1; i >= 0; i-- {
		if a := s[i]; a.Section == section && a.Key == key && valid(a.Value) {
			return a.Value, true
		}
	}
	return "", false
}
