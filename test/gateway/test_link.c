/*-------------------------------------------------------------------------
 *
 * test_link.c
 *		Tests of the framing of the link, without a gateway.
 *
 *-------------------------------------------------------------------------
 */
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests.h"

static int pair[2];

static void
MakePair(LinkFrame **a, LinkFrame **b)
{
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0)
		Die("socketpair");
	*a = LinkFrameCreate(pair[0]);
	if (b != NULL)
		*b = LinkFrameCreate(pair[1]);
}

/* Turns both ends until a message comes. */
static LinkStatus
Pump(LinkFrame *from, LinkFrame *to, LinkMessage *message, size_t budget)
{
	int turns = 0;
	LinkStatus status;

	while ((status = LinkFrameNext(to, message)) == LINK_AGAIN && turns++ < 1000000)
	{
		LinkFrameFlush(from);
		status = LinkFrameFill(to, budget);
		if (status == LINK_EOF || status == LINK_ERROR)
			return status;
	}
	return status;
}

static void
SendBytes(const void *data, size_t length)
{
	if (send(pair[0], data, length, 0) != (ssize_t) length)
		Die("send");
}

static void
SendWithDescriptors(const void *data, size_t length, int fd, int n)
{
	union
	{
		char space[CMSG_SPACE(8 * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec part = {(void *) data, length};
	struct msghdr header;
	struct cmsghdr *c;
	int i;

	memset(&header, 0, sizeof(header));
	memset(&control, 0, sizeof(control));
	header.msg_iov = &part;
	header.msg_iovlen = 1;
	header.msg_control = control.space;
	header.msg_controllen = CMSG_SPACE((size_t) n * sizeof(int));
	c = CMSG_FIRSTHDR(&header);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN((size_t) n * sizeof(int));
	for (i = 0; i < n; i++)
		memcpy(CMSG_DATA(c) + (size_t) i * sizeof(int), &fd, sizeof(int));
	if (sendmsg(pair[0], &header, 0) < 0)
		Die("sendmsg");
}

static void
TestRoundTrip(void)
{
	LinkFrame *a;
	LinkFrame *b;
	LinkMessage message;
	WireReader r;
	char *large = malloc(3000000);
	bool same = true;
	int i;

	MakePair(&a, &b);
	LinkFrameBegin(a, LINK_HELLO);
	LinkFramePutU8(a, 7);
	LinkFramePutU16(a, 1234);
	LinkFramePutU32(a, 123456789);
	LinkFramePutU64(a, UINT64_C(1234567890123456789));
	LinkFramePutBytes(a, "hello", 5);
	LinkFramePutRaw(a, "rest", 4);
	Ok(LinkFrameEnd(a), "a message can be queued");
	Is(LinkFramePending(a), 8 + 1 + 2 + 4 + 8 + 9 + 4, "its size is pending");
	Is(Pump(a, b, &message, 3), LINK_OK, "it arrives in reads of three bytes");
	Is(message.type, LINK_HELLO, "the type is kept");
	r = WireReaderInit(message.payload, message.length);
	Ok(WireGetU8(&r) == 7 && WireGetU16(&r) == 1234 && WireGetU32(&r) == 123456789 &&
		   WireGetU64(&r) == UINT64_C(1234567890123456789) && WireGetBytes(&r).length == 5 &&
		   memcmp(WireTake(&r, 4), "rest", 4) == 0 && WireAtEnd(&r),
	   "so are the fields");
	Is(message.descriptor, (uint64_t) -1, "no descriptor comes with it");
	Is(LinkFramePending(a), 0, "nothing is pending afterwards");
	Is(LinkFrameFill(b, 100), LINK_AGAIN, "an empty socket gives nothing");

	for (i = 0; i < 3000000; i++)
		large[i] = (char) (i * 7);
	for (i = 0; i < 200; i++)
	{
		LinkFrameBegin(a, LINK_MESSAGE);
		LinkFramePutU32(a, (uint32_t) i);
		LinkFramePutRaw(a, large, (size_t) i * 15000);
		LinkFrameEnd(a);
	}
	for (i = 0; i < 200 && same; i++)
	{
		uint32_t number;

		same = Pump(a, b, &message, 300000) == LINK_OK && message.length == 4 + (size_t) i * 15000;
		if (!same)
			break;
		memcpy(&number, message.payload, 4);
		same = number == (uint32_t) i &&
			   memcmp(message.payload + 4, large, message.length - 4) == 0;
	}
	Ok(same, "200 messages of up to 3 MB arrive in order and whole");

	LinkFrameBegin(a, LINK_SEND);
	LinkFramePutRaw(a, "never ended", 11);
	LinkFrameFlush(a);
	LinkFrameBegin(a, LINK_CLOSE);
	LinkFrameEnd(a);
	Ok(Pump(a, b, &message, 1000) == LINK_OK && message.type == LINK_CLOSE && message.length == 0,
	   "a message that is not ended is never sent");

	LinkFrameDestroy(a);
	Is(LinkFrameFill(b, 1000), LINK_EOF, "the other end's death is its end");
	LinkFrameBegin(b, LINK_SEND);
	LinkFrameEnd(b);
	Is(LinkFrameFlush(b), LINK_EOF, "writing says so too");
	LinkFrameDestroy(b);
	free(large);
}

static void
TestDescriptors(void)
{
	LinkFrame *a;
	LinkFrame *b;
	LinkMessage message;
	char text[8];
	char filler[100000];
	bool right = true;
	int i;

	MakePair(&a, &b);
	memset(filler, 'x', sizeof(filler));
	for (i = 0; i < 20; i++)
	{
		int fd[2];

		if (pipe(fd) < 0)
			Die("pipe");
		if (write(fd[1], &i, sizeof(i)) < 0)
			Die("write");
		LinkFrameBegin(a, LINK_SNAPSHOT);
		LinkFramePutU32(a, (uint32_t) i);
		LinkFramePutRaw(a, filler, (size_t) (i % 3) * 40000);
		LinkFrameEndWithDescriptor(a, fd[0]);
		close(fd[0]);
		close(fd[1]);
		LinkFrameBegin(a, LINK_SEND);
		LinkFramePutRaw(a, filler, (size_t) (i % 5) * 20000);
		LinkFrameEnd(a);
	}
	for (i = 0; i < 40 && right; i++)
	{
		int value = -1;

		right = Pump(a, b, &message, 70000) == LINK_OK;
		if (i % 2 == 1)
		{
			right = right && message.type == LINK_SEND && message.descriptor < 0;
			continue;
		}
		right = right && message.type == LINK_SNAPSHOT && message.descriptor >= 0 &&
				read(message.descriptor, &value, sizeof(value)) == sizeof(value) &&
				value == i / 2 && (fcntl(message.descriptor, F_GETFD) & FD_CLOEXEC) != 0;
		close(message.descriptor);
	}
	Ok(right, "descriptors come with their own messages, close-on-exec");
	LinkFrameDestroy(a);
	LinkFrameDestroy(b);

	/* Descriptors nobody announced. */
	MakePair(&a, NULL);
	b = LinkFrameCreate(pair[1]);
	memset(text, 0, sizeof(text));
	text[4] = LINK_SEND;
	SendWithDescriptors(text, 8, pair[0], 1);
	LinkFrameFill(b, 1000);
	LinkFrameNext(b, &message);
	Is(LinkFrameNext(b, &message), LINK_ERROR, "a descriptor that was not announced is an error");
	LinkFrameDestroy(a);
	LinkFrameDestroy(b);

	/* An announced one that does not come. */
	MakePair(&a, NULL);
	b = LinkFrameCreate(pair[1]);
	text[6] = 1;
	SendBytes(text, 8);
	LinkFrameFill(b, 1000);
	Is(LinkFrameNext(b, &message), LINK_ERROR, "a missing descriptor is an error");
	LinkFrameDestroy(a);
	LinkFrameDestroy(b);
}

static void
TestBrokenHeaders(void)
{
	static const LinkHeader headers[] = {
		{LINK_MAX_PAYLOAD + 1, LINK_SEND, 0},
		{0, 0, 0},
		{0, LINK_LISTEN, 2},
	};
	LinkFrame *a;
	LinkFrame *b;
	LinkMessage message;
	LinkHeader huge = {LINK_MAX_PAYLOAD, LINK_SEND, 0};
	size_t i;

	for (i = 0; i < sizeof(headers) / sizeof(headers[0]); i++)
	{
		MakePair(&a, &b);
		SendBytes(&headers[i], sizeof(LinkHeader));
		LinkFrameFill(b, 1000);
		Is(LinkFrameNext(b, &message), LINK_ERROR, "broken header %zu", i);
		Is(LinkFrameFill(b, 1000), LINK_ERROR, "the link stays broken");
		LinkFrameDestroy(a);
		LinkFrameDestroy(b);
	}

	MakePair(&a, &b);
	SendBytes(&huge, sizeof(huge));
	LinkFrameFill(b, 1000);
	Is(LinkFrameNext(b, &message), LINK_AGAIN, "an announced gigabyte allocates nothing");
	LinkFrameDestroy(a);
	LinkFrameDestroy(b);
}

void
TestLinkFrame(void)
{
	TestRoundTrip();
	TestDescriptors();
	TestBrokenHeaders();
}
