/*-------------------------------------------------------------------------
 *
 * test_compress.c
 *		Tests of permessage-deflate.
 *
 *-------------------------------------------------------------------------
 */
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

#include "tests.h"

#define ROWS 60

/* Deflates as clients do: sync flush, its last four bytes cut off. */
static size_t
Deflate(const char *data, size_t length, char *out, size_t size)
{
	z_stream stream;

	memset(&stream, 0, sizeof(stream));
	if (deflateInit2(&stream, 9, Z_DEFLATED, -15, 9, Z_DEFAULT_STRATEGY) != Z_OK)
		Die("no deflater");
	stream.next_in = (unsigned char *) data;
	stream.avail_in = (unsigned int) length;
	stream.next_out = (unsigned char *) out;
	stream.avail_out = (unsigned int) size;
	if (deflate(&stream, Z_SYNC_FLUSH) != Z_OK)
		Die("could not deflate");
	deflateEnd(&stream);
	return size - stream.avail_out - 4;
}

static void
Row(char *text, size_t size, int i, int length)
{
	int n = snprintf(text, size, "{\"id\":%d,\"text\":\"", i);

	memset(text + n, 'a' + i % 26, (size_t) length);
	snprintf(text + n + length, size - (size_t) (n + length), "\"}");
}

/* A transaction of rows of that length, to two who inflate it and one who need not. */
static void
CheckTransaction(Client **clients, uint64_t number, int rows, int length, bool packed)
{
	static char expected[256 * 1024];
	static char row[128 * 1024];
	uint32_t c[3];
	size_t n = 0;
	int i;

	for (i = 0; i < 3; i++)
		c[i] = clients[i]->conn;
	TxBegin(number, 0);
	for (i = 0; i < rows; i++)
	{
		Row(row, sizeof(row), i, length);
		TxFragment(c, 3, row);
		n += (size_t) snprintf(expected + n, sizeof(expected) - n, "%s%s", i > 0 ? "," : "", row);
	}
	/* And one for the last only, whose frame is another one. */
	TxFragment(c + 2, 1, "{\"last\":1}");
	TxEnd();
	for (i = 0; i < 3; i++)
	{
		Frame frame = ReadFrame(clients[i]);
		const char *changes = frame.text != NULL ? strstr(frame.text, "\"changes\":[") : NULL;

		Ok(changes != NULL && strncmp(changes + 11, expected, n) == 0 &&
			   strcmp(changes + 11 + n, i == 2 ? ",{\"last\":1}]}" : "]}") == 0,
		   "%d rows of %d bytes for client %d", rows, length, i);
		Ok(frame.packed == (packed && i > 0), "%s", packed && i > 0 ? "compressed" : "as it is");
	}
}

static void
CheckSnapshot(Client *client)
{
	static const char *const prefixes[] = {"{\"type\":\"snapshot\",\"rows\":"};
	static char page[100 * 1024];
	int fd = memfd_create("pages", MFD_CLOEXEC);
	int i;

	for (i = 0; i < 2; i++)
	{
		uint32_t header[2] = {i == 0 ? 20 : sizeof(page), 0};

		memset(page, 'p', sizeof(page));
		if (write(fd, header, sizeof(header)) < 0 || write(fd, page, header[0]) < 0)
			Die("could not write pages");
	}
	SendSnapshot(client->conn, 1, fd, prefixes, 1);
	for (i = 0; i < 2; i++)
	{
		Frame frame = ReadFrame(client);
		size_t length = (i == 0 ? 20 : sizeof(page)) + strlen(prefixes[0]) + 1;

		Is(frame.length, length, "page %d is whole", i);
		Is(frame.packed, i == 1, "and compressed if that makes it smaller");
	}
	close(fd);
}

static void
CheckReceiving(void)
{
	static char data[20 * 1024 * 1024];
	static char packed[64 * 1024];
	static const char text[] = "{\"type\":\"x\",\"text\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}";
	Client *client = OpenPacking();
	size_t n = Deflate(text, strlen(text), packed, sizeof(packed));
	size_t i;
	Kept *kept;

	SendFrame(client, 0xc1, packed, n);
	kept = Take(LINK_MESSAGE, client->conn);
	Ok(kept->length == 4 + strlen(text) && memcmp(kept->data + 4, text, strlen(text)) == 0,
	   "a compressed message is told as it was");
	for (i = 0; i < n; i++)
		SendFrame(client, (i == 0 ? 0x41 : 0) | (i == n - 1 ? 0x80 : 0), packed + i, 1);
	kept = Take(LINK_MESSAGE, client->conn);
	Ok(kept->length == 4 + strlen(text) && memcmp(kept->data + 4, text, strlen(text)) == 0,
	   "one in many frames, too");
	SendMessage(client, text);
	kept = Take(LINK_MESSAGE, client->conn);
	Is(kept->length, 4 + strlen(text), "and one that is not compressed");

	memset(data, 'x', sizeof(data));
	n = Deflate(data, sizeof(data), packed, sizeof(packed));
	SendFrame(client, 0xc1, packed, n);
	Is(ReadFrame(client).close_code, 1009, "a bomb is refused");
	Disconnect(client);

	client = OpenPacking();
	SendFrame(client, 0xc1, "\xff\xff\xff\xff\xff", 5);
	Is(ReadFrame(client).close_code, 1007, "so is what does not inflate");
	Disconnect(client);
}

void
TestCompression(void)
{
	Settings settings = DefaultSettings();
	Client *clients[3];
	int i;

	settings.compression = true;
	StartGateway(&settings);
	clients[0] = OpenIdentified();
	for (i = 1; i < 3; i++)
		clients[i] = OpenPacking();
	CheckTransaction(clients, 1, 1, 10, false);
	CheckTransaction(clients, 2, 1, 1000, true);
	CheckTransaction(clients, 3, ROWS, 10, true);
	CheckTransaction(clients, 4, ROWS, 3000, true);
	CheckTransaction(clients, 5, 2, 100000, true);
	CheckSnapshot(clients[1]);
	CheckReceiving();
	for (i = 0; i < 3; i++)
		Disconnect(clients[i]);
	StopGateway();
}
