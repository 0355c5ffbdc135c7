// SPDX-License-Identifier: Apache-2.0
//
// A service that counts its starts in a memfd, which it carries through live updates
// itself, in a session that it has from fdbridged. It needs no privileges; its unit,
// guest.service, has opted in. What the packets mean is in bridge/wire/messages.go.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

// From linux/liveupdate.h, which is younger than most distributions.
struct file_by_token { uint32_t size; int32_t fd; uint64_t token; };
struct finish { uint32_t size; uint32_t reserved; };
#define SESSION_PRESERVE_FD _IO(0xBA, 0x40) // file_by_token, fd in
#define SESSION_RETRIEVE_FD _IO(0xBA, 0x41) // file_by_token, fd out
#define SESSION_FINISH      _IO(0xBA, 0x42)

enum { TOKEN = 1 }; // any number, for each file its own

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

// Asks fdbridged, and returns the session that comes with the answer; -1 without one.
static int ask(const char *op, const char *name)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX, .sun_path = "/run/fdbridge/sessions" };
	union { struct cmsghdr header; char room[CMSG_SPACE(sizeof(int))]; } control;
	char packet[65536];
	struct iovec data = { .iov_base = packet, .iov_len = sizeof(packet) - 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control) };

	int conn = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (conn < 0 || connect(conn, (struct sockaddr *)&to, sizeof(to)) < 0)
		fail(to.sun_path);
	// A name with a quote or a backslash would have to be escaped.
	int n = snprintf(packet, sizeof(packet), "{\"op\":\"%s\",\"name\":\"%s\"}", op, name);
	if (send(conn, packet, (size_t)n, MSG_NOSIGNAL) != n)
		fail("send");
	ssize_t got = recvmsg(conn, &message, MSG_CMSG_CLOEXEC);
	if (got == 0) { // an end is believed when it has been read twice: an answer may have come with it
		message.msg_controllen = sizeof(control);
		got = recvmsg(conn, &message, MSG_CMSG_CLOEXEC);
	}
	if (got <= 0 || message.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
		fail("recvmsg"); // fdbridged may have been restarted: ask again
	packet[got] = '\0';
	close(conn);

	int session = -1;
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
		memcpy(&session, CMSG_DATA(header), sizeof(session));
	if (strstr(packet, "\"error\":") != NULL) {
		fprintf(stderr, "%s %s: %s\n", op, name, packet);
		exit(1);
	}
	return session;
}

// Returns the memfd that came through a live update, or a new one.
static int restore(const char *name)
{
	struct file_by_token file = { .size = sizeof(file), .token = TOKEN };
	struct finish finish = { .size = sizeof(finish) };

	int session = ask("claim-session", name);
	if (session < 0) {
		// What an earlier process has preserved in this boot is of no use here.
		ask("done-session", name);
		return memfd_create("count", MFD_CLOEXEC);
	}
	if (ioctl(session, SESSION_RETRIEVE_FD, &file) < 0)
		fail("retrieve");
	if (ioctl(session, SESSION_FINISH, &finish) < 0)
		fail("finish");
	close(session);
	ask("done-session", name); // from here on it cannot be claimed again
	return file.fd;
}

int main(void)
{
	const char *name = "guest";
	struct file_by_token file = { .size = sizeof(file), .token = TOKEN };
	uint64_t count = 0;
	sigset_t stop;
	int signal;

	sigemptyset(&stop);
	sigaddset(&stop, SIGTERM);
	sigprocmask(SIG_BLOCK, &stop, NULL);
	file.fd = restore(name);
	if (file.fd < 0 || pread(file.fd, &count, sizeof(count), 0) < 0)
		fail("memfd");
	printf("start %llu\n", (unsigned long long)++count);
	fflush(stdout);
	if (pwrite(file.fd, &count, sizeof(count), 0) != sizeof(count))
		fail("pwrite");
	// The service works here. What is in the memfd may change up to the live update,
	// its size not: this can wait until the service is told to stop.
	sigwait(&stop, &signal);
	int session = ask("open-session", name);
	if (ioctl(session, SESSION_PRESERVE_FD, &file) < 0)
		fail("preserve");
	return 0;
}
