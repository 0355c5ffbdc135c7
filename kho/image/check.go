// SPDX-License-Identifier: Apache-2.0

package image

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Part is a part of the kernel that hands state over.
type Part string

// The parts. Each needs the ones before it.
const (
	KHO   Part = "kho"   // kexec handover: memory
	LUO   Part = "luo"   // the live update orchestrator: sessions
	Memfd Part = "memfd" // memfds in sessions
)

// Parts returns all parts, those first that others need.
func Parts() []Part { return []Part{KHO, LUO, Memfd} }

// Option is the configuration option that builds a part in (kernel/liveupdate/Kconfig,
// Linux 7.2). CONFIG_LIVEUPDATE_MEMFD is younger than memfds in sessions, which
// CONFIG_LIVEUPDATE alone built in at first.
func (p Part) Option() string {
	switch p {
	case KHO:
		return "CONFIG_KEXEC_HANDOVER"
	case LUO:
		return "CONFIG_LIVEUPDATE"
	}
	return "CONFIG_LIVEUPDATE_MEMFD"
}

// partOf returns the part that a format belongs to. "luo-v5" of
// include/linux/kho/abi/luo.h (Linux 7.2) stands for all that LUO hands over; older
// kernels also have "luo-session-v2" and "luo-flb-v1".
func partOf(format string) Part {
	part, _, _ := strings.Cut(format, "-")
	return Part(part)
}

// Switches returns what a kernel that is given a command line goes by when it looks
// for kho= and liveupdate=: what its configuration says, too (setup_arch in
// arch/x86/kernel/setup.c and kernel/liveupdate/Kconfig, Linux 7.2). Where the
// configuration is not known it is the line itself.
func (k *Kernel) Switches(cmdline string) string {
	config := k.Config.Value
	if config["CONFIG_CMDLINE_BOOL"] == "y" {
		if k.Overrides() {
			cmdline = ""
		}
		cmdline = config.text("CONFIG_CMDLINE") + " " + cmdline
	}
	if config["CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT"] == "y" {
		cmdline = "kho=on " + cmdline
	}
	return cmdline
}

// Overrides tells whether the kernel surely goes by nothing but the command line that is
// built in, whatever it is given.
func (k *Kernel) Overrides() bool { return k.Config.Value["CONFIG_CMDLINE_OVERRIDE"] == "y" }

// Answer is what can be said of a question.
type Answer string

// The answers.
const (
	Yes     Answer = "yes"
	No      Answer = "no"
	Unknown Answer = "unknown"
)

// Verdict is an answer, and a sentence for each reason why it is not Yes.
type Verdict struct {
	Answer  Answer
	Reasons []string
}

// CanRead says whether a kernel can take over what the running kernel hands over:
// No if it surely lacks a Part, or a format that the running kernel has; Unknown
// if that cannot be ruled out. It takes for granted that the code which reads a
// format has the format's name in it, and that two kernels with one banner are of
// one build.
func (k *Kernel) CanRead(running *Kernel) Verdict {
	verdict := Verdict{Answer: Yes}
	for _, part := range Parts() {
		answer, reason := k.canRead(running, part)
		if answer == Yes {
			continue
		}
		verdict.Reasons = append(verdict.Reasons, reason)
		if verdict.Answer != No {
			verdict.Answer = answer
		}
	}
	return verdict
}

func (k *Kernel) canRead(running *Kernel, part Part) (Answer, string) {
	if answer, reason := k.Has(part); answer == No {
		return answer, reason
	}
	reads, writes := k.Formats[part], running.Formats[part]
	switch {
	case !reads.Known:
		return Unknown, fmt.Sprintf("it is not known which %s format kernel %s reads: %s", part, k.Release, reads.Why)
	case len(reads.Value) == 0:
		return Unknown, fmt.Sprintf("kernel %s is built with %s, but does not say which %s format it reads",
			k.Release, part.Option(), part)
	case !writes.Known && k.Banner == running.Banner:
		return Yes, ""
	case !writes.Known:
		return Unknown, fmt.Sprintf("it is not known which %s format the running kernel %s hands over: %s",
			part, running.Release, writes.Why)
	}
	for _, format := range writes.Value {
		if !slices.Contains(reads.Value, format) {
			return No, fmt.Sprintf("the running kernel %s hands over %s, and kernel %s reads only %s",
				running.Release, format, k.Release, strings.Join(reads.Value, " and "))
		}
	}
	return Yes, ""
}

// Has says whether a part is built in, and if it surely is not or that is not known,
// why. A format in the kernel says more than an option that is absent, which may have
// come later.
func (k *Kernel) Has(part Part) (Answer, string) {
	option, formats := k.Config.Value[part.Option()], k.Formats[part]
	switch {
	case option == "n":
		return No, fmt.Sprintf("kernel %s is built without %s", k.Release, part.Option())
	case option == "y" || len(formats.Value) > 0:
		return Yes, ""
	case formats.Known:
		return No, fmt.Sprintf("kernel %s is built without %s: it has no %s format in it", k.Release, part.Option(), part)
	case part == Memfd && k.Config.Value[LUO.Option()] == "y": // it has no option of its own yet
		return Yes, ""
	}
	return Unknown, fmt.Sprintf("it is not known whether kernel %s is built with %s: %s",
		k.Release, part.Option(), cmp.Or(k.Config.Why, formats.Why))
}
