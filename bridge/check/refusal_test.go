// SPDX-License-Identifier: Apache-2.0

package check

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fdbridge/fdbridge/kho"
	"github.com/fdbridge/fdbridge/session"
	"github.com/fdbridge/fdbridge/units"
)

func TestFilesAreRefusedAsTheKernelDoes(t *testing.T) {
	unsupported := session.ErrUnsupported.Error()
	regular := func(fs int64, links uint64) kho.Inode {
		return kho.Inode{Mode: unix.S_IFREG | 0o600, FS: fs, Links: links}
	}
	broken := errors.New("broken")
	for _, test := range []struct {
		kind   string
		in     kho.Inode
		failed error
		want   string
	}{
		{"memfd", regular(unix.TMPFS_MAGIC, 0), nil, ""},
		{"file", regular(unix.TMPFS_MAGIC, 0), nil, ""}, // of O_TMPFILE
		{"file", regular(unix.TMPFS_MAGIC, 1), nil, "the kernel carries files in memory only if they have no name"},
		{"memfd", regular(unix.HUGETLBFS_MAGIC, 0), nil, "the kernel cannot carry huge pages"},
		{"file", regular(unix.SECRETMEM_MAGIC, 1), nil, "the kernel cannot carry secret memory"},
		{"file", regular(unix.EXT4_SUPER_MAGIC, 1), nil, unsupported},
		{"file", regular(unix.EXT4_SUPER_MAGIC, 0), nil, unsupported},
		{"memfd", regular(0, 0), units.ErrChanged, units.ErrChanged.Error()},
		{"memfd", regular(0, 0), broken, "it cannot be had from PID 1: broken"},
		{"socket", kho.Inode{Mode: unix.S_IFSOCK}, nil, unsupported},
		{"socket", kho.Inode{Mode: unix.S_IFSOCK}, broken, unsupported},
		{"pipe", kho.Inode{Mode: unix.S_IFIFO}, nil, unsupported},
		{"directory", kho.Inode{Mode: unix.S_IFDIR, FS: unix.TMPFS_MAGIC}, nil, unsupported},
		{"character device", kho.Inode{Mode: unix.S_IFCHR, FS: unix.TMPFS_MAGIC}, nil, unsupported},
		{"block device", kho.Inode{Mode: unix.S_IFBLK}, nil, unsupported},
		{"eventfd", kho.Inode{}, nil, unsupported},
		{"timerfd", kho.Inode{}, units.ErrAmbiguous, unsupported},
		{"inotify", kho.Inode{}, nil, unsupported},
		{"luo_session", kho.Inode{}, nil, unsupported},
	} {
		reason, remedy := refusal(test.kind, test.in, test.failed)
		if reason != test.want || (remedy == "") != (reason == "") {
			t.Errorf("%s %+v (%v): %q, %q, want %q", test.kind, test.in, test.failed, reason, remedy, test.want)
		}
	}
}
