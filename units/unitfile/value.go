// SPDX-License-Identifier: Apache-2.0

package unitfile

import (
	"errors"
	"strconv"
	"strings"
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
