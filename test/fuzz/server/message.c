/*-------------------------------------------------------------------------
 *
 * message.c
 *		Messages in WAL (src/message_wal.c), which everybody can write.
 *
 * Input: a byte, and
 *	r	the bytes of a message
 *	w	channel, event and payload with line ends between them, which are
 *		written and read again; then with one byte changed, which the next two
 *		bytes of the input choose
 *
 * Properties: what was written is read as it was; what was changed, and what
 * nobody of ours has written, is not.
 *
 *-------------------------------------------------------------------------
 */
#include "fuzz.h"

#include "message_wal.h"

static WireBytes
Line(const char **data, const char *end)
{
	const char *stop = memchr(*data, '\n', end - *data);
	WireBytes bytes = {*data, (stop != NULL ? stop : end) - *data};

	*data = stop != NULL ? stop + 1 : end;
	return bytes;
}

static bool
Same(WireBytes a, WireBytes b)
{
	return a.length == b.length && (a.length == 0 || memcmp(a.data, b.data, a.length) == 0);
}

static void
Run(const char *data, Size size)
{
	WalMessage message = {0};
	WalMessage again;
	StringInfoData out;
	const char *at;
	uint16 place;
	uint8 bits;

	if (size < 5)
		return;
	if (data[0] != 'w')
	{
		if (MessageRead(data + 1, size - 1, &again))
			Fail("a message is believed that nobody has written");
		return;
	}
	place = (uint16) ((unsigned char) data[1] << 8 | (unsigned char) data[2]);
	bits = (uint8) data[3];
	at = data + 4;
	message.transactional = (bits & 1) != 0;
	message.xid = place;
	message.counter = bits;
	message.time = place * 1000;
	message.channel = Line(&at, data + size);
	message.event = Line(&at, data + size);
	message.payload = Line(&at, data + size);
	initStringInfo(&out);
	MessageWrite(&out, &message);
	if (!MessageRead(out.data, out.len, &again))
		Fail("a message is not believed");
	if (again.transactional != message.transactional || again.xid != message.xid ||
		again.counter != message.counter || again.time != message.time ||
		!Same(again.channel, message.channel) || !Same(again.event, message.event) ||
		!Same(again.payload, message.payload))
		Fail("a message is read as another one");
	if (bits == 0)
		return;
	out.data[place % out.len] ^= (char) bits;
	if (MessageRead(out.data, out.len, &again))
	{
		/* Of what says yes or no, not the number counts. */
		if (place % out.len != 1)
			Fail("a message is believed although byte %d was changed", place % out.len);
	}
}

const FuzzTarget target_message = {"message", NULL, Run, NULL};
