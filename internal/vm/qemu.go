// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/fdbridge/fdbridge/internal/vm/wire"
)

// qemuProgram is what Debian's qemu-system-x86 installs.
const qemuProgram = "qemu-system-x86_64"

// Accel says what runs the guest's instructions.
type Accel string

// KVM is used only after a probe boot with it has passed; see Probe.
const (
	KVM Accel = "kvm"
	TCG Accel = "tcg"
)

// tcgBuffer is the size in MiB of TCG's buffer of translated code. What the
// kernel before a kexec left in it slows the next one down, which overwrites
// that code, so it must not be large; a boot fits. With QEMU's default of 1 GiB a
// kexec takes more than twice the time.
const tcgBuffer = 128

// tcgCPU leaves out the instructions that libraries choose because they are
// fast, and that TCG emulates slowly: without them a boot takes a fifth less.
const tcgCPU = "max,-avx,-avx2,-bmi1,-bmi2,-erms,-fsrm,-sha-ni"

func (a Accel) args() []string {
	if a == KVM {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	return []string{"-accel", fmt.Sprintf("tcg,thread=multi,tb-size=%d", tcgBuffer), "-cpu", tcgCPU}
}

// command returns the QEMU command line for a complete Config: one that went
// through withDefaults.
func (c Config) command() []string {
	argv := append([]string{qemuProgram}, c.Accel.args()...)
	argv = append(argv,
		"-nodefaults", "-display", "none",
		"-m", fmt.Sprint(c.Memory), "-smp", fmt.Sprint(c.CPUs),
		"-kernel", c.Kernel, "-append", c.cmdline(),
		"-device", "virtio-rng-pci",
		"-drive", c.drive(),
	)
	if !c.AllowReboot {
		argv = append(argv, "-no-reboot")
	}
	argv = append(argv, c.console()...)
	return append(argv,
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,server=on,wait=off,path="+escape(c.agentSocket()),
		"-device", "virtserialport,chardev=agent,name="+wire.PortName,
	)
}

func (c Config) cmdline() string {
	args := []string{
		"kho=on", "liveupdate=on", "console=ttyS0", "printk.time=1",
		"root=/dev/vda", "rw", "panic=-1",
		// A busy host has been seen to keep an emulated timer from ticking in the
		// moment in which the kernel tests it, upon which that panics.
		"no_timer_check",
	}
	return strings.Join(append(args, c.KernelArgs...), " ")
}

// drive attaches the disk that is kept, or throws away what is written to the
// image when QEMU ends. Neither waits for the host's disk: what QEMU wrote stays in
// the host's page cache also when QEMU is killed.
func (c Config) drive() string {
	if c.Disk != "" {
		return "if=virtio,format=raw,cache=unsafe,file=" + escape(c.Disk)
	}
	return "if=virtio,format=raw,snapshot=on,file=" + escape(c.Image)
}

func (c Config) console() []string {
	if c.Interactive {
		return []string{
			"-chardev", "stdio,id=console,mux=on,signal=off,logfile=" + escape(c.consoleLog()),
			"-serial", "chardev:console", "-mon", "chardev=console",
		}
	}
	return []string{"-chardev", "file,id=console,append=on,path=" + escape(c.consoleLog()), "-serial", "chardev:console"}
}

func (c Config) agentSocket() string { return filepath.Join(c.Dir, "agent.sock") }
func (c Config) stderrLog() string   { return filepath.Join(c.Dir, "qemu.err") }
func (c Config) consoleLog() string  { return filepath.Join(c.Dir, "console.log") }

// escape protects a comma from QEMU's option parser.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
