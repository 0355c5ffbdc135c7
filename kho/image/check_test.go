// SPDX-License-Identifier: Apache-2.0

package image

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fdbridge/fdbridge/kho"
)

// target returns a kernel 7.9 with these formats; a nil configuration is none.
func target(config Config, names ...string) *Kernel {
	k := &Kernel{Release: "7.9", Banner: "Linux version 7.9 (b) #1", Formats: formats(SourceImage, names...)}
	k.Config = kho.Fact[Config]{Known: config != nil, Value: config, Source: SourceImage}
	return k
}

// running returns a kernel 7.2 with these formats; of the other parts nothing is
// known.
func running(names ...string) *Kernel {
	k := &Kernel{Release: "7.2", Banner: "Linux version 7.2 (b) #1", Formats: formats(kho.SourceDebugfs, names...)}
	for part, fact := range k.Formats {
		if fact.Value == nil {
			k.Formats[part] = kho.Fact[[]string]{Why: "nobody said"}
		}
	}
	return k
}

func TestTheConfigurationHasAWordInTheCommandLine(t *testing.T) {
	built := Config{"CONFIG_CMDLINE_BOOL": "y", "CONFIG_CMDLINE": `"liveupdate=on a=\"b\\c\""`}
	override := Config{"CONFIG_CMDLINE_BOOL": "y", "CONFIG_CMDLINE": `""`, "CONFIG_CMDLINE_OVERRIDE": "y"}
	for name, test := range map[string]struct {
		config Config
		want   string
	}{
		"none":                {nil, "kho=0 x"},
		"empty":               {Config{"CONFIG_CMDLINE_BOOL": "n"}, "kho=0 x"},
		"built in":            {built, `liveupdate=on a="b\c" kho=0 x`},
		"nothing else counts": {override, " "},
		"on without a word":   {Config{"CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT": "y"}, "kho=on kho=0 x"},
	} {
		if got := target(test.config).Switches("kho=0 x"); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

func TestCanReadComparesFormats(t *testing.T) {
	on := Config{"CONFIG_KEXEC_HANDOVER": "y", "CONFIG_LIVEUPDATE": "y", "CONFIG_LIVEUPDATE_MEMFD": "y"}
	noMemfd := Config{"CONFIG_KEXEC_HANDOVER": "y", "CONFIG_LIVEUPDATE": "y", "CONFIG_LIVEUPDATE_MEMFD": "n"}
	old := Config{"CONFIG_KEXEC_HANDOVER": "y", "CONFIG_LIVEUPDATE": "y"}
	all := []string{"kho-v4", "luo-v5", "memfd-v2"}
	withoutMemfd := running(all...)
	withoutMemfd.Formats[Memfd] = kho.Fact[[]string]{Known: true}
	sameBuild := running("kho-v4", "luo-v5")
	sameBuild.Banner = target(nil).Banner
	sameBanner := running("kho-v4", "luo-v4", "memfd-v2")
	sameBanner.Banner = target(nil).Banner

	tests := map[string]struct {
		target, running *Kernel
		want            Verdict
	}{
		"same formats":                {target(on, all...), running(all...), Verdict{Answer: Yes}},
		"same formats, no config":     {target(nil, all...), running(all...), Verdict{Answer: Yes}},
		"option not invented yet":     {target(old, all...), running(all...), Verdict{Answer: Yes}},
		"reads old and new":           {target(on, append(all, "memfd-v3")...), running(all...), Verdict{Answer: Yes}},
		"running hands over no memfd": {target(on, all...), withoutMemfd, Verdict{Answer: Yes}},
		"running has more than one format": {target(on, all...), running(append(all, "memfd-v1")...), Verdict{No, []string{
			"the running kernel 7.2 hands over memfd-v1, and kernel 7.9 reads only memfd-v2"}}},
		"another format": {target(on, "kho-v4", "luo-v5", "luo-v6", "memfd-v2"), running("kho-v4", "luo-v4", "memfd-v2"),
			Verdict{No, []string{"the running kernel 7.2 hands over luo-v4, and kernel 7.9 reads only luo-v5 and luo-v6"}}},
		"the older formats of LUO": {target(nil, "kho-v4", "luo-v1", "luo-session-v3", "memfd-v2"),
			running("kho-v4", "luo-v1", "luo-session-v2", "memfd-v2"),
			Verdict{No, []string{"the running kernel 7.2 hands over luo-session-v2, and kernel 7.9 reads only luo-v1 and luo-session-v3"}}},
		"nothing built in, no config": {target(nil), running(all...), Verdict{No, []string{
			"kernel 7.9 is built without CONFIG_KEXEC_HANDOVER: it has no kho format in it",
			"kernel 7.9 is built without CONFIG_LIVEUPDATE: it has no luo format in it",
			"kernel 7.9 is built without CONFIG_LIVEUPDATE_MEMFD: it has no memfd format in it"}}},
		"nothing built in, nothing known of running": {target(nil, "kho-v4"), running(), Verdict{No, []string{
			"it is not known which kho format the running kernel 7.2 hands over: nobody said",
			"kernel 7.9 is built without CONFIG_LIVEUPDATE: it has no luo format in it",
			"kernel 7.9 is built without CONFIG_LIVEUPDATE_MEMFD: it has no memfd format in it"}}},
		"off in the config": {target(noMemfd, "kho-v4", "luo-v5"), running(all...), Verdict{No, []string{
			"kernel 7.9 is built without CONFIG_LIVEUPDATE_MEMFD"}}},
		"off in the config, whatever else has the format": {target(noMemfd, all...), running(all...), Verdict{No, []string{
			"kernel 7.9 is built without CONFIG_LIVEUPDATE_MEMFD"}}},
		"on in the config, but no format": {target(on, "kho-v4", "memfd-v2"), running(all...), Verdict{Unknown, []string{
			"kernel 7.9 is built with CONFIG_LIVEUPDATE, but does not say which luo format it reads"}}},
		"running does not say": {target(on, all...), running("kho-v4", "luo-v5"), Verdict{Unknown, []string{
			"it is not known which memfd format the running kernel 7.2 hands over: nobody said"}}},
		"running does not say, but is the same":       {target(on, all...), sameBuild, Verdict{Answer: Yes}},
		"the same lacks a part":                       {target(on, "luo-v5", "memfd-v2"), sameBuild, Verdict{Unknown, []string{"kernel 7.9 is built with CONFIG_KEXEC_HANDOVER, but does not say which kho format it reads"}}},
		"running says it is not what the banner says": {target(on, all...), sameBanner, Verdict{No, []string{"the running kernel 7.2 hands over luo-v4, and kernel 7.9 reads only luo-v5"}}},
		"nothing known at all": {running(), running(), Verdict{Unknown, []string{
			"it is not known which kho format kernel 7.2 reads: nobody said",
			"it is not known which luo format kernel 7.2 reads: nobody said",
			"it is not known which memfd format kernel 7.2 reads: nobody said"}}},
		"unknown after no": {target(on, "luo-v5", "memfd-v2"), running("kho-v4", "luo-v4"), Verdict{No, []string{
			"kernel 7.9 is built with CONFIG_KEXEC_HANDOVER, but does not say which kho format it reads",
			"the running kernel 7.2 hands over luo-v4, and kernel 7.9 reads only luo-v5",
			"it is not known which memfd format the running kernel 7.2 hands over: nobody said"}}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, test.target.CanRead(test.running)); diff != "" {
				t.Errorf("verdict (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAPartIsBuiltInByItsOptionOrItsFormat(t *testing.T) {
	tests := map[string]struct {
		config Config
		format string // "?" when that is not known
		want   Answer
		reason string
	}{
		"both":                          {Config{"CONFIG_LIVEUPDATE_MEMFD": "y"}, "memfd-v2", Yes, ""},
		"only the option":               {Config{"CONFIG_LIVEUPDATE_MEMFD": "y"}, "?", Yes, ""},
		"a format that is hidden":       {Config{"CONFIG_LIVEUPDATE_MEMFD": "y"}, "", Yes, ""},
		"only the format":               {nil, "memfd-v2", Yes, ""},
		"before there was an option":    {Config{"CONFIG_LIVEUPDATE": "y"}, "?", Yes, ""},
		"no live update":                {Config{"CONFIG_LIVEUPDATE": "n"}, "?", Unknown, "it is not known whether kernel 7.9 is built with CONFIG_LIVEUPDATE_MEMFD: no image"},
		"an option that is off":         {Config{"CONFIG_LIVEUPDATE_MEMFD": "n"}, "memfd-v2", No, "kernel 7.9 is built without CONFIG_LIVEUPDATE_MEMFD"},
		"neither option nor format":     {Config{"CONFIG_LIVEUPDATE": "y"}, "", No, "kernel 7.9 is built without CONFIG_LIVEUPDATE_MEMFD: it has no memfd format in it"},
		"neither is known":              {nil, "?", Unknown, "it is not known whether kernel 7.9 is built with CONFIG_LIVEUPDATE_MEMFD: no configuration"},
		"no configuration, and no word": {nil, "", No, "kernel 7.9 is built without CONFIG_LIVEUPDATE_MEMFD: it has no memfd format in it"},
	}
	for name, test := range tests {
		k := target(test.config, test.format)
		if !k.Config.Known {
			k.Config.Why = "no configuration"
		}
		if test.format == "?" {
			k.Formats[Memfd] = kho.Fact[[]string]{Why: "no image"}
		}
		if got, reason := k.Has(Memfd); got != test.want || reason != test.reason {
			t.Errorf("%s: %s, %q, want %s, %q", name, got, reason, test.want, test.reason)
		}
	}
}
