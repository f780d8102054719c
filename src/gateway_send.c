/*-------------------------------------------------------------------------
 *
 * gateway_send.c
 *		What the feed worker tells its gateways about connections: messages,
 *		pages of snapshots, transactions.  See link_format.h.
 *
 * Everything is queued in the link's buffer and written at the end of the turn
 * (GatewaysFlush); what is for a gateway that is gone is left out.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "gateways.h"

/* Of snapshots on their way to one gateway: files, and bytes of anything. */
#define MAX_DESCRIPTORS 32
#define MAX_BYTES		((Size) 8 * 1024 * 1024)

/* ---- messages to one connection ---- */

static void
SendMessage(Connection *connection, LinkType type, const char *data, Size length)
{
	LinkFrame *link = connection->gateway->link;

	if (connection->closing || link == NULL)
		return;
	LinkFrameBegin(link, type);
	LinkFramePutU32(link, connection->number);
	LinkFramePutRaw(link, data, length);
	LinkFrameEnd(link);
}

void
GatewaySend(Connection *connection, const char *data, Size length)
{
	SendMessage(connection, LINK_SEND, data, length);
}

void
GatewaySynced(Connection *connection, const char *data, Size length)
{
	SendMessage(connection, LINK_SYNCED, data, length);
}

void
GatewayIdentity(Connection *connection)
{
	LinkFrame *link = connection->gateway->link;

	LinkFrameBegin(link, LINK_IDENTITY);
	LinkFramePutU32(link, connection->number);
	LinkFramePutRaw(link, connection->identity->tag, POSITION_TAG);
	LinkFrameEnd(link);
}

void
GatewayClose(Connection *connection, uint16 code, const char *reason)
{
	LinkFrame *link = connection->gateway->link;

	if (connection->closing || link == NULL)
		return;
	ConnectionSetClosing(connection);
	connection->closed = reason;
	LinkFrameBegin(link, LINK_CLOSE);
	LinkFramePutU32(link, connection->number);
	LinkFramePutU16(link, code);
	LinkFramePutBytes(link, reason, strlen(reason));
	LinkFrameEnd(link);
}

void
GatewayResume(Connection *connection)
{
	LinkFrameBegin(connection->gateway->link, LINK_RESUME);
	LinkFramePutU32(connection->gateway->link, connection->number);
	LinkFrameEnd(connection->gateway->link);
}

void
GatewayWaiting(Connection *connection)
{
	LinkFrameBegin(connection->gateway->link, LINK_WAITING);
	LinkFramePutU32(connection->gateway->link, connection->number);
	LinkFrameEnd(connection->gateway->link);
}

void
GatewayMark(Connection *connection, uint32 mark)
{
	LinkFrameBegin(connection->gateway->link, LINK_MARK);
	LinkFramePutU32(connection->gateway->link, connection->number);
	LinkFramePutU32(connection->gateway->link, mark);
	LinkFrameEnd(connection->gateway->link);
}

void
GatewayPing(Gateway *gateway, const uint32 *numbers, int count, const char *before,
			Size before_length, const char *after, Size after_length)
{
	int i;

	if (gateway->link == NULL || count == 0)
		return;
	LinkFrameBegin(gateway->link, LINK_PING);
	LinkFramePutU32(gateway->link, count);
	for (i = 0; i < count; i++)
		LinkFramePutU32(gateway->link, numbers[i]);
	LinkFramePutBytes(gateway->link, before, before_length);
	LinkFramePutBytes(gateway->link, after, after_length);
	LinkFrameEnd(gateway->link);
}

static void
SendToMany(Gateway *gateway, uint16 type, const uint32 *numbers, int count, const char *data,
		   Size length)
{
	if (gateway->link == NULL)
		return;
	LinkFrameBegin(gateway->link, type);
	LinkFramePutU32(gateway->link, count);
	LinkFramePutRaw(gateway->link, numbers, sizeof(uint32) * count);
	LinkFramePutRaw(gateway->link, data, length);
	LinkFrameEnd(gateway->link);
}

void
GatewayCast(Gateway *gateway, const uint32 *numbers, int count, const char *data, Size length)
{
	SendToMany(gateway, LINK_CAST, numbers, count, data, length);
}

void
GatewayShare(Gateway *gateway, const uint32 *numbers, int count, const char *data, Size length)
{
	SendToMany(gateway, LINK_SHARE, numbers, count, data, length);
}

void
GatewaySnapshot(Connection *connection, uint32 subscription, int nprefixes, StringInfo prefixes,
				int fd)
{
	LinkFrame *link = connection->gateway->link;
	int i;

	LinkFrameBegin(link, LINK_SNAPSHOT);
	LinkFramePutU32(link, connection->number);
	LinkFramePutU32(link, subscription);
	LinkFramePutU32(link, nprefixes);
	for (i = 0; i < nprefixes; i++)
		LinkFramePutBytes(link, prefixes[i].data, prefixes[i].len);
	LinkFrameEndWithDescriptor(link, fd);
}

bool
GatewayHasEnough(const Connection *connection)
{
	const LinkFrame *link = connection->gateway->link;

	return link != NULL &&
		   (LinkFrameDescriptors(link) >= MAX_DESCRIPTORS ||
			LinkFramePending(link) >= Min(MAX_BYTES, (Size) setting_worker_memory * 1024 / 8));
}

void
GatewaySnapshotStop(Connection *connection, uint32 subscription)
{
	LinkFrame *link = connection->gateway->link;

	if (link == NULL)
		return;
	LinkFrameBegin(link, LINK_SNAPSHOT_STOP);
	LinkFramePutU32(link, connection->number);
	LinkFramePutU32(link, subscription);
	LinkFrameEnd(link);
}

/* ---- transactions ---- */

void
GatewayTransactionTime(Gateway *gateway, TimestampTz committed)
{
	LinkFrameBegin(gateway->link, LINK_TX_TIME);
	LinkFramePutU64(
		gateway->link,
		(uint64) (committed + ((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)));
	LinkFrameEnd(gateway->link);
}

void
GatewayTransactionBegin(Gateway *gateway, uint64 number, uint8 flags, const char *before,
						Size before_length, const char *after, Size after_length)
{
	LinkFrameBegin(gateway->link, LINK_TX_BEGIN);
	LinkFramePutU64(gateway->link, number);
	LinkFramePutU8(gateway->link, flags);
	LinkFramePutBytes(gateway->link, before, before_length);
	LinkFramePutBytes(gateway->link, after, after_length);
	LinkFrameEnd(gateway->link);
}

static void
PutFragment(LinkFrame *link, const Spelling *name, const char *data, Size length)
{
	if (name != NULL)
	{
		LinkFramePutRaw(link, LINK_FRAGMENT_BEGIN, strlen(LINK_FRAGMENT_BEGIN));
		LinkFramePutRaw(link, name->json, name->length);
	}
	LinkFramePutRaw(link, data, length);
}

void
GatewayTransactionFragment(Gateway *gateway, const uint32 *numbers, int count, const Spelling *name,
						   const char *data, Size length)
{
	LinkFrameBegin(gateway->link, LINK_TX_FRAGMENT);
	LinkFramePutU32(gateway->link, count);

	/* The numbers are an array in host order already. */
	LinkFramePutRaw(gateway->link, numbers, sizeof(uint32) * count);
	PutFragment(gateway->link, name, data, length);
	LinkFrameEnd(gateway->link);
}

void
GatewayTransactionAudience(Gateway *gateway, const uint32 *numbers, int count)
{
	LinkFrameBegin(gateway->link, LINK_TX_AUDIENCE);
	LinkFramePutU32(gateway->link, count);
	LinkFramePutRaw(gateway->link, numbers, sizeof(uint32) * count);
	LinkFrameEnd(gateway->link);
}

void
GatewayTransactionShared(Gateway *gateway, int audience, const Spelling *name, const char *data,
						 Size length)
{
	LinkFrameBegin(gateway->link, LINK_TX_SHARED);
	LinkFramePutU32(gateway->link, audience);
	PutFragment(gateway->link, name, data, length);
	LinkFrameEnd(gateway->link);
}

void
GatewayTransactionMessage(Gateway *gateway, const uint32 *numbers, int count, uint8 flags,
						  const char *suffix, const char *data, Size length)
{
	LinkFrameBegin(gateway->link, LINK_TX_MESSAGE);
	LinkFramePutU32(gateway->link, count);
	LinkFramePutRaw(gateway->link, numbers, sizeof(uint32) * count);
	LinkFramePutU8(gateway->link, flags);
	LinkFramePutBytes(gateway->link, suffix, strlen(suffix));
	LinkFramePutRaw(gateway->link, data, length);
	LinkFrameEnd(gateway->link);
}

void
GatewayTransactionEnd(Gateway *gateway)
{
	LinkFrameBegin(gateway->link, LINK_TX_END);
	LinkFrameEnd(gateway->link);
}
