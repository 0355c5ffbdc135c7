// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/fdbridge/fdbridge/kho"
)

const (
	// What is around an embedded configuration (kernel/configs.c, Linux 7.2).
	configStart = "IKCFG_ST"
	configEnd   = "IKCFG_ED"
	gzipMagic   = "\x1f\x8b"

	// maxConfig is the longest configuration that is read, in bytes, unpacked.
	// Distributions' kernels have about 300 KiB.
	maxConfig = 8 << 20
)

// Config is a kernel's configuration: the value of each option that is named in
// it, such as "y" for "CONFIG_LIVEUPDATE", and "n" for an option that it says is
// not set. An option that the kernel's source does not know, or that depends on
// one that is not set, is absent.
type Config map[string]string

// text returns the value of an option that is a string, which is quoted in a
// configuration (conf_write in scripts/kconfig/confdata.c, Linux 7.2).
func (c Config) text(option string) string {
	quoted := strings.TrimSuffix(strings.TrimPrefix(c[option], `"`), `"`)
	return strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(quoted)
}

// embeddedConfig reads what follows configStart.
func embeddedConfig(b []byte) *kho.Fact[Config] {
	end := bytes.Index(b[:min(len(b), scanReach-len(configStart))], []byte(configEnd))
	if end < 0 {
		return &kho.Fact[Config]{Why: "the embedded configuration has no end"}
	}
	config, err := unpackConfig(b[:end])
	if err != nil {
		return &kho.Fact[Config]{Why: fmt.Sprintf("the embedded configuration cannot be read: %v", err)}
	}
	return &kho.Fact[Config]{Known: true, Value: config, Source: SourceImage}
}

func unpackConfig(packed []byte) (Config, error) {
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(r, maxConfig+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxConfig {
		return nil, fmt.Errorf("it unpacks to more than %d bytes", maxConfig)
	}
	return parseConfig(string(text))
}

// parseConfig reads lines as scripts/kconfig/confdata.c writes them (Linux 7.2).
func parseConfig(text string) (Config, error) {
	config := Config{}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if off, ok := strings.CutSuffix(line, " is not set"); ok {
			line = strings.TrimPrefix(off, "# ") + "=n"
		}
		if option, value, ok := strings.Cut(line, "="); ok && strings.HasPrefix(option, "CONFIG_") {
			config[option] = value
		}
	}
	if len(config) == 0 {
		return nil, errors.New("it has no options")
	}
	return config, nil
}
