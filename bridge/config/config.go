// SPDX-License-Identifier: Apache-2.0

// Package config reads fdbridge's own configuration, /etc/fdbridge/fdbridge.conf
// and its drop-ins. What a unit's file says about fdbridge does not belong
// here, nor anything that needs PID 1 or a kernel: the generator reads it, too.
package config

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/fdbridge/fdbridge/units/unitfile"
)

const (
	file    = "fdbridge/fdbridge.conf"
	section = "Bridge"
)

// The defaults of settings.
const (
	preserveTimeout = 60 * time.Second
	prepareTimeout  = 10 * time.Minute
	holdTimeout     = unitfile.Infinity
)

// Config is what the administrator wants. It does not change.
type Config struct {
	// Rollback says that a live update is called off when anything of any unit
	// would be lost, OnLoss=rollback.
	Rollback bool
	// PreserveTimeout bounds how long preserving may take, PreserveTimeoutSec=.
	PreserveTimeout time.Duration
	// PrepareTimeout is how long what is prepared is kept while no live update
	// begins, PrepareTimeoutSec=.
	PrepareTimeout time.Duration
	// HoldTimeout is how long what no unit has claimed is held,
	// HoldTimeoutSec=; unitfile.Infinity for ever.
	HoldTimeout time.Duration

	exclude    []string // globs
	excludeSet bool
}

// Load reads fdbridge.conf in /etc/fdbridge, or else in /run/fdbridge,
// /usr/local/lib/fdbridge or /usr/lib/fdbridge, all below root, and then the
// drop-ins of all four, fdbridge.conf.d/*.conf, as unitfile.LoadConfig says.
//
// The settings stand in the section [Bridge]:
//
// Exclude= names the units that are left alone whatever their own files say,
// separated by spaces, with the wildcards *, ? and [] of systemctl. Repeated
// assignments add up; an empty one throws away those before it. When Exclude= is
// never set, systemd's own journald and udevd are excluded; Exclude= with a
// value replaces that list, and with nothing else but an empty one no unit is
// excluded.
//
// OnLoss= is continue, the default, or rollback. PreserveTimeoutSec=, 60 s,
// PrepareTimeoutSec=, 10 min, and HoldTimeoutSec=, infinity, are time spans. Of
// these the last assignment counts, and an empty one brings the default back.
//
// The result is never nil. What could not be read, and sections, settings and
// values that fdbridge does not know, are ignored and returned as problems, one
// sentence each with file and line.
func Load(root string) (*Config, []error) {
	settings, problems := unitfile.LoadConfig(root, file)
	c := &Config{
		PreserveTimeout: preserveTimeout,
		PrepareTimeout:  prepareTimeout,
		HoldTimeout:     holdTimeout,
		exclude: []string{ // before everything else, and with nothing a kernel carries
			"systemd-journald.service", "systemd-journald@*.service", "systemd-udevd.service",
		},
	}
	unknown := map[string]bool{}
	for _, a := range settings {
		if strings.HasPrefix(a.Section, "X-") || strings.HasPrefix(a.Key, "X-") {
			continue
		}
		err := c.apply(a)
		if id := a.Path + " " + a.Section; a.Section != section {
			if unknown[id] {
				continue // named once for all its lines
			}
			unknown[id] = true
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s:%d: %w", a.Path, a.Line, err))
		}
	}
	return c, problems
}

// apply applies one assignment.
func (c *Config) apply(a unitfile.Assignment) error {
	if a.Section != section {
		return fmt.Errorf("the section [%s] is unknown and ignored", a.Section)
	}
	switch a.Key {
	case "Exclude":
		if !c.excludeSet {
			c.exclude, c.excludeSet = nil, true
		}
		return c.addExclude(a.Value)
	case "OnLoss":
		if a.Value != "rollback" && a.Value != "continue" && a.Value != "" {
			return fmt.Errorf("OnLoss=%s is ignored: it is continue or rollback", a.Value)
		}
		c.Rollback = a.Value == "rollback"
		return nil
	case "PreserveTimeoutSec":
		return span(a, &c.PreserveTimeout, preserveTimeout)
	case "PrepareTimeoutSec":
		return span(a, &c.PrepareTimeout, prepareTimeout)
	case "HoldTimeoutSec":
		return span(a, &c.HoldTimeout, holdTimeout)
	}
	return fmt.Errorf("the setting %s= is unknown and ignored", a.Key)
}

// span applies a setting that is a time span, for which zero is no value.
func span(a unitfile.Assignment, to *time.Duration, standard time.Duration) error {
	if a.Value == "" {
		*to = standard
		return nil
	}
	value, ok := unitfile.ParseTimeSpan(a.Value)
	if !ok || value == 0 {
		return fmt.Errorf("%s=%s is ignored: it is no time span", a.Key, a.Value)
	}
	*to = value
	return nil
}

// addExclude applies one assignment. Words that are no service are left out.
func (c *Config) addExclude(value string) error {
	if value == "" {
		c.exclude = nil
	}
	words, err := unitfile.Words(value)
	if err != nil {
		return fmt.Errorf("Exclude=%s is ignored: %w", value, err)
	}
	var bad []string
	for _, word := range words {
		glob, ok := parseGlob(word)
		if !ok {
			bad = append(bad, word)
			continue
		}
		c.exclude = append(c.exclude, glob)
	}
	if len(bad) > 0 {
		return fmt.Errorf("Exclude= names what is no service and ignored: %s", strings.Join(bad, " "))
	}
	return nil
}

// parseGlob turns the name of a service, or a pattern as fnmatch(3) has them
// with FNM_NOESCAPE, into one of package path: there a backslash, which unit
// names have, needs another one, and "[!" is "[^". It returns false when word
// is neither.
func parseGlob(word string) (string, bool) {
	if !strings.ContainsAny(word, "*?[") {
		return strings.ReplaceAll(word, `\`, `\\`), unitfile.ValidName(word)
	}
	glob := strings.NewReplacer(`\`, `\\`, "[!", "[^").Replace(word)
	_, err := path.Match(glob, "")
	return glob, err == nil
}

// Excluded reports whether a unit is to be left alone, whatever its own files
// say. fdbridge's own units always are: they could not wait for themselves.
func (c *Config) Excluded(unit string) bool {
	if unit == "fdbridged.service" || unit == "fdbridge-preserve.service" {
		return true
	}
	return slices.ContainsFunc(c.exclude, func(glob string) bool {
		matched, err := path.Match(glob, unit)
		return matched && err == nil
	})
}
