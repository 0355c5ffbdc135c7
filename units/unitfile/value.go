// SPDX-License-Identifier: Apache-2.0

package unitfile

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
)

// errQuote is what Words says about a quote that is not closed.
var errQuote = errors.New("a quote is not closed")

// ParseBool reads a boolean; ok is false when value is none. See
// parse_boolean() in systemd's src/basic/parse-util.c.
func ParseBool(value string) (yes, ok bool) {
	switch strings.ToLower(value) {
	case "1", "yes", "y", "true", "t", "on":
		return true, true
	case "0", "no", "n", "false", "f", "off":
		return false, true
	}
	return false, false
}

// ParseUnsigned reads a 32-bit number: decimal, or with a prefix hexadecimal
// (0x), octal (0, 0o) or binary (0b); ok is false when value is none. See
// safe_atou_full() in systemd's src/basic/parse-util.c.
func ParseUnsigned(value string) (n uint32, ok bool) {
	value = strings.TrimPrefix(strings.TrimLeft(value, whitespace), "+")
	if strings.Contains(value, "_") { // Go's own digit separator
		return 0, false
	}
	parsed, err := strconv.ParseUint(value, 0, 32)
	return uint32(parsed), err == nil
}

// Infinity is the time span "infinity".
const Infinity = time.Duration(math.MaxInt64)

// timeUnits are those of systemd.time(7) that a setting of fdbridge can need;
// without one, seconds are meant.
var timeUnits = map[string]time.Duration{
	"": time.Second, "s": time.Second, "sec": time.Second, "second": time.Second, "seconds": time.Second,
	"us": time.Microsecond, "usec": time.Microsecond, "ms": time.Millisecond, "msec": time.Millisecond,
	"m": time.Minute, "min": time.Minute, "minute": time.Minute, "minutes": time.Minute,
	"h": time.Hour, "hr": time.Hour, "hour": time.Hour, "hours": time.Hour,
	"d": 24 * time.Hour, "day": 24 * time.Hour, "days": 24 * time.Hour,
	"w": 7 * 24 * time.Hour, "week": 7 * 24 * time.Hour, "weeks": 7 * 24 * time.Hour,
}

// ParseTimeSpan reads a time span such as "90", "1min 30s" or "infinity"; ok is
// false when value is none, or more than 292 years. Fractions, months and years
// are not read. See parse_time() in systemd's src/basic/time-util.c.
func ParseTimeSpan(value string) (span time.Duration, ok bool) {
	value = strings.Trim(value, whitespace)
	if value == "infinity" {
		return Infinity, true
	}
	for value != "" {
		digits := len(value) - len(strings.TrimLeft(value, "0123456789"))
		n, err := strconv.ParseInt(value[:digits], 10, 64)
		if err != nil {
			return 0, false
		}
		value = strings.TrimLeft(value[digits:], whitespace)
		letters := len(value) - len(strings.TrimLeft(value, "abcdefghijklmnopqrstuvwxyz"))
		unit, known := timeUnits[value[:letters]]
		if !known || n > int64(Infinity-span)/int64(unit) {
			return 0, false
		}
		span += time.Duration(n) * unit
		value, ok = strings.TrimLeft(value[letters:], whitespace), true
	}
	return span, ok
}

// Words splits a value at white space. Quotes, single or double, keep white
// space together and are taken away; a backslash stands for itself. It fails
// on a quote that is not closed. See extract_first_word() in systemd's
// src/basic/extract-word.c with the flags for lists of strings.
func Words(value string) ([]string, error) {
	var (
		words  []string
		word   strings.Builder
		quote  byte
		inWord bool
	)
	for i := range len(value) {
		switch c := value[i]; {
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteByte(c)
		case c == '"' || c == '\'':
			quote, inWord = c, true
		case strings.IndexByte(whitespace, c) < 0:
			word.WriteByte(c)
			inWord = true
		case inWord:
			words = append(words, word.String())
			word.Reset()
			inWord = false
		}
	}
	if quote != 0 {
		return nil, errQuote
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}
