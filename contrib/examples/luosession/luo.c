// SPDX-License-Identifier: Apache-2.0
//
// luo lets a shell use a live-update session that it has as a descriptor:
//
//	luo get FD TOKEN    write the file under the token to standard output, if it came
//	luo finish FD       let go of a session that came
//	luo put FD TOKEN    preserve standard input, in a memfd
//
// It ends with status 1 when it cannot, and get and finish with 3 when the session is
// a new one.
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

// From linux/liveupdate.h, which is younger than most distributions.
struct file_by_token { uint32_t size; int32_t fd; uint64_t token; };
struct finish { uint32_t size; uint32_t reserved; };
#define SESSION_PRESERVE_FD _IO(0xBA, 0x40) // on a new session
#define SESSION_RETRIEVE_FD _IO(0xBA, 0x41) // on one that came
#define SESSION_FINISH      _IO(0xBA, 0x42) // on one that came

static int failed(const char *what)
{
	perror(what);
	return 1;
}

// Copies the rest of one file into another.
static int copy(int from, int to)
{
	char buffer[65536];
	ssize_t n;

	while ((n = read(from, buffer, sizeof(buffer))) > 0)
		if (write(to, buffer, (size_t)n) != n)
			return -1;
	return (int)n;
}

int main(int argc, char **argv)
{
	if (argc < 3) {
		fprintf(stderr, "usage: luo get|put FD TOKEN, or luo finish FD\n");
		return 1;
	}
	int session = atoi(argv[2]);
	struct finish finish = { .size = sizeof(finish) };
	struct file_by_token file = { .size = sizeof(file) };
	if (argc > 3)
		file.token = strtoull(argv[3], NULL, 0);

	if (strcmp(argv[1], "finish") == 0) {
		if (ioctl(session, SESSION_FINISH, &finish) < 0)
			return errno == EINVAL ? 3 : failed("finish");
		return 0;
	}
	if (strcmp(argv[1], "get") == 0) {
		if (ioctl(session, SESSION_RETRIEVE_FD, &file) < 0)
			return errno == EINVAL ? 3 : failed("retrieve");
		if (lseek(file.fd, 0, SEEK_SET) < 0 || copy(file.fd, STDOUT_FILENO) < 0)
			return failed("copy");
		return 0;
	}
	file.fd = memfd_create("state", MFD_CLOEXEC);
	if (file.fd < 0 || copy(STDIN_FILENO, file.fd) < 0)
		return failed("copy");
	if (ioctl(session, SESSION_PRESERVE_FD, &file) < 0)
		return failed("preserve");
	return 0;
}
