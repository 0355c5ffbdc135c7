// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCommandLine(t *testing.T) {
	complete := Config{
		Kernel: "/k/bzImage", Image: "/i,1/disk.img", Dir: "/run/a",
		Memory: 2048, CPUs: 2, Accel: TCG,
	}
	const common = " -nodefaults -display none -m 2048 -smp 2 -kernel /k/bzImage" +
		" -append 'kho=on liveupdate=on console=ttyS0 printk.time=1 root=/dev/vda rw panic=-1 no_timer_check' -device virtio-rng-pci"
	const (
		snapshot = " -drive if=virtio,format=raw,snapshot=on,file=/i,,1/disk.img"
		console  = " -chardev file,id=console,append=on,path=/run/a/console.log -serial chardev:console"
		agent    = " -device virtio-serial-pci -chardev socket,id=agent,server=on,wait=off,path=/run/a/agent.sock" +
			" -device virtserialport,chardev=agent,name=fdbridge.agent"
		tcg = "qemu-system-x86_64 -accel tcg,thread=multi,tb-size=128 -cpu " + tcgCPU
	)
	tests := map[string]struct {
		change func(*Config)
		want   string
	}{
		"default": {func(*Config) {}, tcg + common + snapshot + " -no-reboot" + console + agent},
		"kvm": {func(c *Config) { c.Accel = KVM },
			"qemu-system-x86_64 -accel kvm -cpu host" + common + snapshot + " -no-reboot" + console + agent},
		"reboots, kept disk": {func(c *Config) { c.AllowReboot, c.Disk = true, "/d/disk" },
			tcg + common + " -drive if=virtio,format=raw,cache=unsafe,file=/d/disk" + console + agent},
		"for a person": {func(c *Config) { c.Interactive = true },
			tcg + common + snapshot + " -no-reboot" +
				" -chardev stdio,id=console,mux=on,signal=off,logfile=/run/a/console.log" +
				" -serial chardev:console -mon chardev=console" + agent},
		"kernel arguments": {func(c *Config) { c.KernelArgs = []string{"a=b", "quiet"} },
			tcg + strings.Replace(common, "no_timer_check", "no_timer_check a=b quiet", 1) + snapshot + " -no-reboot" + console + agent},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := complete
			test.change(&cfg)
			if diff := cmp.Diff(test.want, quote(cfg.command())); diff != "" {
				t.Errorf("command line differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestQuoteIsReadBackByAShell(t *testing.T) {
	argv := []string{"a", "", "b c", `d'e"f`, "$g", "h=/i,j", "é\n"}
	want := `a '' 'b c' 'd'\''e"f' '$g' h=/i,j '` + "é\n'"
	if diff := cmp.Diff(want, quote(argv)); diff != "" {
		t.Errorf("quoted line differs (-want +got):\n%s", diff)
	}
}

func TestConfigGetsDefaultsAndADirectory(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	cfg, err := Config{Name: "Test/a b", Kernel: "k", Image: "i", Accel: TCG}.withDefaults(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Memory == 0 || cfg.CPUs == 0 || cfg.Log == nil {
		t.Errorf("no defaults: %+v", cfg)
	}
	if name := filepath.Base(cfg.Dir); !strings.HasPrefix(name, "Test_a_b-") {
		t.Errorf("directory is called %s", name)
	}
	if _, err := (Config{Kernel: "k"}).withDefaults(t.Context()); err == nil {
		t.Error("a configuration without an image was taken")
	}
}

func TestDiskIsCopiedOnceAndKept(t *testing.T) {
	dir := t.TempDir()
	image, disk := filepath.Join(dir, "image"), filepath.Join(dir, "disk")
	for _, contents := range []string{"first", "second"} {
		if err := os.WriteFile(image, []byte(contents), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := makeDisk(t.Context(), disk, image); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(disk); err != nil || string(got) != "first" {
		t.Errorf("disk holds %q, %v; want the first image", got, err)
	}
}
