/* SPDX-License-Identifier: Apache-2.0 */

/* What a package that looks into kernels finds in one, and some calls, which the
 * x86 filter of xz changes. */

	.section .rodata, "a"
	.asciz "LUO"
	.asciz "luo-v5"
	.asciz "kho-v4"
	.asciz "no luo-v6"
	.ascii "Linux version 7.2.12-sample (builder@host) (gcc, ld) # SMP \n\0"
	.ascii "Linux version 7.2.12-sample (builder@host) (gcc, ld) #1 SMP Thu Jan 1 00:00:00 UTC 1970\n\0"
	.ascii "IKCFG_ST"
	.incbin "config.gz"
	.ascii "IKCFG_ED"

	.data
	.quad 0xffffffff81a328c0
	.asciz "memfd-v2"

	.text
	.globl _start
_start:
	.rept 200
	call _start
	call last
	.endr
last:
	ret
