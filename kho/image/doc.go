// SPDX-License-Identifier: Apache-2.0

// Package image looks into kernel images: what a kernel was configured with, and
// which layouts of handed-over state it reads. A kernel that is handed a state
// which it cannot read panics while it boots (luo_restore_fail in
// kernel/liveupdate/luo_internal.h, Linux 7.2), so the kernel to be booted is
// compared with the running one before the kexec.
//
// It reads bzImages for x86-64 with all compressions that the kernel's build
// knows, unified kernel images, and plain vmlinux files. Loading a kernel, and
// whether handover is on on a command line, do not belong here; nor does anything
// that fdbridge-inject needs, since the decompressors would make it large.
package image
