/*-------------------------------------------------------------------------
 *
 * frames.c
 *		The framing of the link, for both of its ends (src/linkframe.c).
 *
 * Input: operations.  Messages with and without a descriptor are written and
 * flushed, read with any budget, and bytes that are no messages come between.
 *
 * Properties: as long as nothing else was written, what comes out is what went
 * in, message by message, with its descriptor; no message is larger than it
 * may be; after an error nothing comes any more; no descriptor is left open.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../fail.h"
#include "linkframe.h"

#define SENT_MAX 512

static struct
{
	uint16_t type;
	size_t length;
	const uint8_t *data;
	bool descriptor;
} sent[SENT_MAX];

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int
LowestFree(void)
{
	int fd = dup(2);

	close(fd);
	return fd;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int lowest = LowestFree();
	const uint8_t *end = data + size;
	int n_sent = 0;
	int n_received = 0;
	bool honest = true;
	bool over = false;
	int pair[2];
	int probe[2];
	LinkFrame *a;
	LinkFrame *b;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0 ||
		pipe2(probe, O_CLOEXEC) < 0)
		Fail("no sockets");
	a = LinkFrameCreate(pair[0]);
	b = LinkFrameCreate(pair[1]);
	while (data + 3 <= end && n_sent < SENT_MAX)
	{
		uint8_t what = data[0];
		size_t n = (size_t) data[1] << 8 | data[2];
		LinkMessage message;
		LinkStatus status;

		data += 3;
		switch (what % 5)
		{
			case 0:
			case 1:
				if (n > (size_t) (end - data))
					n = (size_t) (end - data);
				sent[n_sent].type = (uint16_t) (what | 1);
				sent[n_sent].length = n;
				sent[n_sent].data = data;
				sent[n_sent].descriptor = what % 5 == 1 && LinkFrameDescriptors(a) < 16;
				LinkFrameBegin(a, (LinkType) (what | 1));
				LinkFramePutRaw(a, data, n);
				if (sent[n_sent].descriptor ? !LinkFrameEndWithDescriptor(a, probe[0])
											: !LinkFrameEnd(a))
					Fail("a message cannot be written");
				n_sent++;
				data += n;
				break;
			case 2:
				status = LinkFrameFlush(a);
				if (status == LINK_ERROR)
					Fail("messages cannot be sent");
				break;
			case 3:
				/* Somebody else's bytes, with descriptors or without. */
				if (n > (size_t) (end - data))
					n = (size_t) (end - data);
				if (n == 0)
					break;
				honest = false;
				if ((what & 0x80) == 0)
					(void) !send(pair[0], data, n, MSG_DONTWAIT | MSG_NOSIGNAL);
				else
				{
					union
					{
						char space[CMSG_SPACE(3 * sizeof(int))];
						struct cmsghdr align;
					} control;
					struct iovec part = {(void *) data, n};
					struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
					struct cmsghdr *c;
					int fds[3] = {probe[0], probe[1], probe[0]};
					int count = (what >> 5 & 3) % 3 + 1;

					memset(&control, 0, sizeof(control));
					header.msg_control = control.space;
					header.msg_controllen = CMSG_SPACE((size_t) count * sizeof(int));
					c = CMSG_FIRSTHDR(&header);
					c->cmsg_level = SOL_SOCKET;
					c->cmsg_type = SCM_RIGHTS;
					c->cmsg_len = CMSG_LEN((size_t) count * sizeof(int));
					memcpy(CMSG_DATA(c), fds, (size_t) count * sizeof(int));
					(void) !sendmsg(pair[0], &header, MSG_DONTWAIT | MSG_NOSIGNAL);
				}
				data += n;
				break;
			case 4:
				status = LinkFrameFill(b, n);
				if (status == LINK_ERROR && honest)
					Fail("messages cannot be read");
				while ((status = LinkFrameNext(b, &message)) == LINK_OK)
				{
					struct stat st;

					if (over)
						Fail("a message comes after an error");
					if (message.length > LINK_MAX_PAYLOAD)
						Fail("a message is too large");
					if (message.descriptor >= 0)
					{
						if (fstat(message.descriptor, &st) < 0)
							Fail("what comes is no descriptor");
						close(message.descriptor);
					}
					if (!honest)
						continue;
					if (n_received == n_sent || message.type != sent[n_received].type ||
						message.length != sent[n_received].length ||
						(message.length > 0 &&
						 memcmp(message.payload, sent[n_received].data, message.length) != 0) ||
						(message.descriptor >= 0) != sent[n_received].descriptor)
						Fail("another message comes than was sent");
					n_received++;
				}
				if (status == LINK_ERROR)
				{
					if (honest)
						Fail("an honest link is found to be damaged");
					over = true;
				}
				break;
		}
	}
	LinkFrameDestroy(a);
	LinkFrameDestroy(b);
	close(probe[0]);
	close(probe[1]);

	if (LowestFree() != lowest)
		Fail("a descriptor is left open");
	return 0;
}
