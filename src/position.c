/*-------------------------------------------------------------------------
 *
 * position.c
 *		Writing and reading positions.  See position.h.
 *
 * URL-safe base64 of multiples of three bytes, so there is no padding and the
 * two parts can be concatenated as text.  The server's own base64 has the
 * other alphabet.
 *
 * Process: feed worker.  Memory: none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "position.h"

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

static void
Encode(char *out, const unsigned char *data, int length)
{
	int i;

	for (i = 0; i < length; i += 3)
	{
		uint32 v = ((uint32) data[i] << 16) | ((uint32) data[i + 1] << 8) | data[i + 2];

		*out++ = alphabet[v >> 18];
		*out++ = alphabet[(v >> 12) & 63];
		*out++ = alphabet[(v >> 6) & 63];
		*out++ = alphabet[v & 63];
	}
}

static bool
Decode(unsigned char *out, const char *text, int length)
{
	int i;

	for (i = 0; i < length; i += 4)
	{
		uint32 v = 0;
		int k;

		for (k = 0; k < 4; k++)
		{
			const char *p = text[i + k] == '\0' ? NULL : strchr(alphabet, text[i + k]);

			if (p == NULL)
				return false;
			v = (v << 6) | (uint32) (p - alphabet);
		}
		*out++ = (unsigned char) (v >> 16);
		*out++ = (unsigned char) (v >> 8);
		*out++ = (unsigned char) v;
	}
	return true;
}

static void
Put(unsigned char *out, uint64 v, int bytes)
{
	int i;

	for (i = 0; i < bytes; i++)
		out[i] = (unsigned char) (v >> (8 * (bytes - 1 - i)));
}

static uint64
Get(const unsigned char *in, int bytes)
{
	uint64 v = 0;
	int i;

	for (i = 0; i < bytes; i++)
		v = (v << 8) | in[i];
	return v;
}

uint32
PositionTime(TimestampTz time)
{
	return (uint32) (uint64) time;
}

void
PositionWrite(char *out, uint64 epoch, XLogRecPtr lsn, uint64 xid, TimestampTz time)
{
	unsigned char bytes[24];

	Put(bytes, epoch, 8);
	Put(bytes + 8, lsn, 8);
	Put(bytes + 16, (uint32) xid, 4);
	Put(bytes + 20, PositionTime(time), 4);
	Encode(out, bytes, 24);
}

void
PositionTag(char *out, uint64 identity_hash)
{
	unsigned char bytes[6];

	Put(bytes, identity_hash, 6);
	Encode(out, bytes, 6);
}

/* ".0", ".<counter>" or ".<source>.<row>.<event>", in decimal. */
static bool
ParsePlace(const char *text, Size length, MessagePlace *place)
{
	uint32 numbers[MESSAGE_PLACE_PARTS];
	int n = 0;
	Size i = 0;

	while (i < length)
	{
		uint64 v = 0;
		Size start;

		if (text[i++] != '.' || n == MESSAGE_PLACE_PARTS)
			return false;
		for (start = i; i < length && text[i] >= '0' && text[i] <= '9'; i++)
		{
			v = v * 10 + (uint64) (text[i] - '0');
			if (v > PG_UINT32_MAX)
				return false;
		}
		if (i == start || (text[start] == '0' && i > start + 1))
			return false;
		numbers[n++] = (uint32) v;
	}
	memset(place, 0, sizeof(MessagePlace));
	if (n == 1)
		place->parts[1] = numbers[0];
	else if (n == MESSAGE_PLACE_PARTS && numbers[0] != 0)
		memcpy(place->parts, numbers, sizeof(numbers));
	else
		return false;
	return true;
}

bool
PositionParse(const char *text, Size length, Position *position)
{
	unsigned char bytes[24];

	if (length < POSITION_LENGTH || !Decode(bytes, text, POSITION_COMMON))
		return false;
	position->partial = length > POSITION_LENGTH;
	if (position->partial &&
		!ParsePlace(text + POSITION_LENGTH, length - POSITION_LENGTH, &position->place))
		return false;
	position->epoch = Get(bytes, 8);
	position->lsn = Get(bytes + 8, 8);
	position->xid = (uint32) Get(bytes + 16, 4);
	position->time = (uint32) Get(bytes + 20, 4);
	memcpy(position->tag, text + POSITION_COMMON, POSITION_TAG);
	return true;
}
