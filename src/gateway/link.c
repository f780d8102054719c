/*-------------------------------------------------------------------------
 *
 * link.c
 *		The link to the feed worker: reading, dispatch, and what we say.
 *
 * The link is read in portions, so that a long transaction does not keep the
 * clients waiting; its back-pressure is the socket's own.  We never stop
 * reading it for the sake of one connection, because it carries all of them.
 * What we have to say is gathered and written once per turn of the loop, just
 * before the loop sleeps.
 *
 * Its end means that the feed worker is gone: we are nothing without it and
 * exit.  A message that makes no sense means a bug on one side; then a new
 * gateway is better than one that guesses.
 *
 * Process: gateway.  Memory: payloads are only borrowed; whoever wants to keep
 * something copies it.
 *
 *-------------------------------------------------------------------------
 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gateway.h"

/* Read per turn. */
#define READ_BUDGET ((size_t) 256 * 1024)

/* Above this much unwritten output no client is read, until below the other. */
#define OVERLOADED_BYTES ((size_t) 4 * 1024 * 1024)
#define RELIEVED_BYTES	 ((size_t) 1024 * 1024)

static uv_poll_t poll_handle;
static int poll_events;
static bool overloaded;
static bool started;

static void OnLink(uv_poll_t *handle, int status, int events);

/* ---- what we say ---- */

static void
End(void)
{
	if (!LinkFrameEnd(gateway.link))
		GatewayFatal(EXIT_FAILED, "out of memory for the link");
	if (!overloaded && LinkFramePending(gateway.link) > OVERLOADED_BYTES)
		overloaded = true;
}

void
LinkEndMessage(void)
{
	End();
}

/* Is the feed worker so far behind that no client should be read? */
bool
LinkIsOverloaded(void)
{
	return overloaded;
}

/* A message of numbers only. */
void
LinkSay(LinkType type, const uint32_t *numbers, int n)
{
	int i;

	LinkFrameBegin(gateway.link, type);
	for (i = 0; i < n; i++)
		LinkFramePutU32(gateway.link, numbers[i]);
	End();
}

void
LinkSayPingDue(const uint32_t *numbers, uint32_t n)
{
	LinkFrameBegin(gateway.link, LINK_PING_DUE);
	LinkFramePutU32(gateway.link, n);
	LinkFramePutRaw(gateway.link, numbers, (size_t) n * sizeof(uint32_t));
	End();
}

void
LinkSayOpen(const Connection *conn, const char *peer, const char *token, size_t token_length)
{
	LinkFrameBegin(gateway.link, LINK_OPEN);
	LinkFramePutU32(gateway.link, conn->number);
	LinkFramePutU8(gateway.link, LINK_TRANSPORT_WEBSOCKET);
	LinkFramePutBytes(gateway.link, peer, strlen(peer));
	LinkFramePutBytes(gateway.link, token, token_length);
	End();
}

void
LinkSayMessage(const Connection *conn, const void *data, size_t length)
{
	LinkFrameBegin(gateway.link, LINK_MESSAGE);
	LinkFramePutU32(gateway.link, conn->number);
	LinkFramePutRaw(gateway.link, data, length);
	End();
}

void
LinkSayClosed(const Connection *conn)
{
	LinkFrameBegin(gateway.link, LINK_CLOSED);
	LinkFramePutU32(gateway.link, conn->number);
	LinkFramePutU8(gateway.link, conn->cause);
	End();
}

void
LinkSayBehind(const Connection *conn, uint64_t last)
{
	LinkFrameBegin(gateway.link, LINK_BEHIND);
	LinkFramePutU32(gateway.link, conn->number);
	LinkFramePutU64(gateway.link, last);
	End();
}

/* `payload`: what follows the connection's number in LINK_REQUEST. */
void
LinkSayRequest(const Connection *conn, const void *payload, size_t length)
{
	LinkFrameBegin(gateway.link, LINK_REQUEST);
	LinkFramePutU32(gateway.link, conn->number);
	LinkFramePutRaw(gateway.link, payload, length);
	End();
}

void
LinkSaySnapshotDone(uint32_t conn, uint32_t sub, bool ok)
{
	LinkFrameBegin(gateway.link, LINK_SNAPSHOT_DONE);
	LinkFramePutU32(gateway.link, conn);
	LinkFramePutU32(gateway.link, sub);
	LinkFramePutU8(gateway.link, ok ? 1 : 0);
	End();
}

void
LinkSayProbed(uint64_t number)
{
	LinkFrameBegin(gateway.link, LINK_PROBED);
	LinkFramePutU64(gateway.link, number);
	End();
}

static void
SayHello(void)
{
	const char *version = lws_get_library_version();

	LinkFrameBegin(gateway.link, LINK_HELLO);
	LinkFramePutU32(gateway.link, LINK_VERSION);
	LinkFramePutU32(gateway.link, (uint32_t) getpid());
	LinkFramePutBytes(gateway.link, version, strlen(version));
	End();
}

/* ---- what we are told ---- */

/* Replaces a list of strings; names are compared in lower case. */
static void
ReadStrings(WireReader *r, StringList *list)
{
	uint32_t n = WireGetU32(r);
	uint32_t i;

	for (i = 0; i < list->n; i++)
		free(list->strings[i]);
	free(list->strings);
	list->strings = NULL;
	list->n = 0;
	for (i = 0; i < n && !r->failed; i++)
	{
		WireBytes b = WireGetBytes(r);
		char *string;
		size_t j;

		if (r->failed)
			return;
		string = GatewayAlloc(b.length + 1);
		for (j = 0; j < b.length; j++)
			string[j] = (char) tolower((unsigned char) b.data[j]);
		string[b.length] = '\0';
		list->strings = GatewayRealloc(list->strings, (list->n + 1) * sizeof(char *));
		list->strings[list->n++] = string;
	}
}

/* Replaces a list of networks, which the setting has checked. */
static bool
ReadNetworks(WireReader *r, NetworkList *list)
{
	StringList strings = {0, NULL};
	bool local = false;
	uint32_t i;

	ReadStrings(r, &strings);
	free(list->networks);
	list->networks = GatewayAlloc((strings.n + 1) * sizeof(Network));
	list->n = 0;
	for (i = 0; i < strings.n; i++)
	{
		const char *text = strings.strings[i];

		if (strcmp(text, "unix") == 0)
			local = true;
		else if (NetworkParse(text, strlen(text), &list->networks[list->n]) == NETWORK_OK)
			list->n++;
		else
			r->failed = true;
		free(strings.strings[i]);
	}
	free(strings.strings);
	return local;
}

static void
ReadLimits(WireReader *r)
{
	gateway.max_connections_per_address = WireGetU32(r);
	gateway.max_handshake_rate = WireGetU32(r);
	gateway.max_handshake_rate_per_address = WireGetU32(r);
	gateway.max_message_rate = WireGetU32(r);
	gateway.max_receive_rate = WireGetU64(r);
	gateway.handshake_timeout_ms = WireGetU32(r);
	gateway.forwarded_header = WireGetU8(r) != 0;
	gateway.trust_unix = ReadNetworks(r, &gateway.trusted_proxies);
	ReadNetworks(r, &gateway.allowed_addresses);
	ReadNetworks(r, &gateway.denied_addresses);
}

static void
ReadConfig(WireReader *r)
{
	WireBytes cookie;
	bool paused;

	gateway.max_connections = WireGetU32(r);
	gateway.send_buffer = WireGetU32(r);
	gateway.heartbeat_ms = WireGetU32(r);
	gateway.connect_timeout_ms = WireGetU32(r);
	gateway.max_message = WireGetU32(r);
	gateway.max_frame = WireGetU32(r);
	gateway.port = WireGetU16(r);
	ReadStrings(r, &gateway.allowed_origins);
	ReadStrings(r, &gateway.allowed_hosts);
	cookie = WireGetBytes(r);
	free(gateway.token_cookie);
	gateway.token_cookie = GatewayAlloc(cookie.length + 1);
	if (cookie.length > 0)
		memcpy(gateway.token_cookie, cookie.data, cookie.length);
	gateway.token_cookie[cookie.length] = '\0';
	gateway.compression = WireGetU8(r) != 0;
	ReadLimits(r);
	paused = WireGetU8(r) != 0;
	if (!WireAtEnd(r))
		r->failed = true;
	if (r->failed)
		return;
	if (paused && !gateway.paused)
		GatewayPause();
	gateway.paused = paused;
	if (gateway.max_connections > gateway.max_sockets)
		GatewayLog(LEVEL_WARNING,
				   "changefeed.max_connections is %u, but the "
				   "limit of open files allows only %zu connections",
				   gateway.max_connections, gateway.max_sockets);
	gateway.configured = true;
	ListenerUpdate();
	VisitorCheckAll();
}

static void
ReadPing(WireReader *r)
{
	uint32_t n = WireGetU32(r);
	const char *audience = WireTake(r, (size_t) n * sizeof(uint32_t));
	WireBytes before = WireGetBytes(r);
	WireBytes after = WireGetBytes(r);
	uint32_t i;

	if (!WireAtEnd(r))
	{
		r->failed = true;
		return;
	}
	for (i = 0; i < n; i++)
	{
		Connection *conn;
		uint32_t number;

		memcpy(&number, audience + (size_t) i * sizeof(number), sizeof(number));
		conn = ConnFind(number);
		if (conn != NULL)
			QueueAddText(conn, ITEM_PING, before.data, before.length, conn->tag,
						 before.length > 0 ? sizeof(conn->tag) : 0, after.data, after.length);
	}
}

/* A message that is about one connection; `conn` is NULL if it is gone. */
static void
ReadForConnection(LinkMessage *message, WireReader *r, Connection *conn)
{
	const char *tag;
	WireBytes reason;
	uint16_t code;
	uint32_t number;

	switch (message->type)
	{
		case LINK_SEND:
		case LINK_SYNCED:
			if (conn != NULL && !r->failed)
				QueueAddText(conn, message->type == LINK_SEND ? ITEM_TEXT : ITEM_SYNCED,
							 r->data + r->offset, r->length - r->offset, NULL, 0, NULL, 0);
			r->offset = r->length;
			break;
		case LINK_IDENTITY:
			tag = WireTake(r, LINK_TAG_LENGTH);
			if (conn != NULL && tag != NULL)
				ConnIdentify(conn, tag);
			break;
		case LINK_CLOSE:
			code = WireGetU16(r);
			reason = WireGetBytes(r);
			if (conn != NULL && !r->failed)
				ConnCloseAfterQueue(conn, code, reason.data, reason.length);
			break;
		case LINK_RESUME:
			if (conn != NULL)
				QueueResume(conn);
			break;
		case LINK_WAITING:
			if (conn != NULL)
				ConnWaits(conn);
			break;
		case LINK_MARK:
			number = WireGetU32(r);
			if (conn != NULL && !r->failed)
				QueueAddMark(conn, number);
			break;
		case LINK_STREAM:
			if (conn != NULL && conn->http != NULL)
				StreamOpen(conn, r);
			else
				r->offset = r->length;
			break;
		case LINK_BEGIN:
			if (conn != NULL && conn->http != NULL)
				StreamBegin(conn);
			break;
		case LINK_EVENT_ID:
			if (conn != NULL && conn->http != NULL)
				QueueAddPart(conn, r);
			else
				r->offset = r->length;
			break;
		case LINK_RESPONSE:
			if (conn != NULL && conn->http != NULL && !r->failed)
				RequestRespond(conn, r);
			r->offset = r->length;
			break;
		case LINK_SNAPSHOT:
			SnapshotAdd(conn, r, message->descriptor);
			message->descriptor = -1;
			r->offset = r->length;
			break;
		case LINK_SNAPSHOT_STOP:
			number = WireGetU32(r);
			if (conn != NULL && !r->failed)
				SnapshotStop(conn, number);
			break;
		default:
			GatewayFatal(EXIT_PROTOCOL, "unknown message %d on the link", (int) message->type);
	}
	if (!WireAtEnd(r))
		r->failed = true;
}

static void
Dispatch(LinkMessage *message)
{
	WireReader r = WireReaderInit(message->payload, message->length);
	WireBytes reason;
	uint32_t least;
	uint32_t most;

	if (message->type != LINK_TX_FRAGMENT && message->type != LINK_TX_SHARED)
		FanoutPassMerged();
	switch (message->type)
	{
		case LINK_CONFIG:
			ReadConfig(&r);
			break;
		case LINK_LISTEN:
			if (message->descriptor < 0)
				GatewayFatal(EXIT_PROTOCOL, "no listening socket came");
			ListenerTake(message->descriptor, WireGetU8(&r));
			message->descriptor = -1;
			break;
		case LINK_TLS:
			TlsTake(&r, message->descriptor);
			break;
		case LINK_BALANCE:
			BalanceTake(&r, message->descriptor);
			message->descriptor = -1;
			break;
		case LINK_ASSET:
			HttpSetAsset(&r);
			break;
		case LINK_PATHS:
			RequestSetPaths(&r);
			break;
		case LINK_TX_TIME:
			StatsNoteCommitTime(WireGetU64(&r));
			break;
		case LINK_CONNECTIONS_ASK:
			StatsSayConnections(&r);
			break;
		case LINK_PROBE:
			LinkSayProbed(WireGetU64(&r));
			break;
		case LINK_TX_BEGIN:
			FanoutBegin(&r);
			break;
		case LINK_TX_FRAGMENT:
			FanoutFragment(&r);
			break;
		case LINK_TX_AUDIENCE:
			FanoutAudience(&r);
			break;
		case LINK_TX_SHARED:
			FanoutShared(&r);
			break;
		case LINK_TX_MESSAGE:
			FanoutMessage(&r);
			break;
		case LINK_CAST:
			FanoutCast(&r, QueueAddCast);
			break;
		case LINK_SHARE:
			FanoutCast(&r, QueueAddShare);
			break;
		case LINK_TX_END:
			FanoutEnd();
			break;
		case LINK_PING:
			ReadPing(&r);
			break;
		case LINK_STATS_ASK:
			StatsSay();
			break;
		case LINK_SHUTDOWN:
			reason = WireGetBytes(&r);
			least = WireGetU32(&r);
			most = WireGetU32(&r);
			if (!r.failed)
				GatewayShutdown(reason.data, reason.length, least, most);
			break;
		default:
			ReadForConnection(message, &r, ConnFind(WireGetU32(&r)));
			break;
	}
	if (r.failed)
		GatewayFatal(EXIT_PROTOCOL, "message %d on the link is damaged", (int) message->type);
	if (message->descriptor >= 0)
		close(message->descriptor);

	if (!started && gateway.configured && ListenerIsTaken())
	{
		started = true;
		SandboxEnter();
		ListenerStart();
	}
}

/* ---- the socket ---- */

static void
Watch(int events)
{
	if (events == poll_events)
		return;
	poll_events = events;
	uv_poll_start(&poll_handle, events, OnLink);
}

/* Takes and passes on what has come, a portion. */
void
LinkLook(void)
{
	LinkMessage message;
	LinkStatus result;

	result = LinkFrameFill(gateway.link, READ_BUDGET);
	if (result == LINK_OK)
	{
		while ((result = LinkFrameNext(gateway.link, &message)) == LINK_OK)
			Dispatch(&message);
		QueueFlushDirty();
	}
	if (result == LINK_EOF)
		GatewayExit(EXIT_DONE);
	else if (result == LINK_ERROR)
		GatewayFatal(EXIT_PROTOCOL, "the link is damaged");
}

static void
OnLink(uv_poll_t *handle, int status, int events)
{
	(void) handle;
	if (status == 0 && (events & UV_READABLE) == 0)
		return; /* LinkEndTurn writes */
	LinkLook();
}

/* Before the loop sleeps: write what this turn has gathered. */
void
LinkEndTurn(void)
{
	LinkStatus status;

	if (gateway.link == NULL)
		return;
	status = LinkFrameFlush(gateway.link);
	if (status == LINK_EOF || status == LINK_ERROR)
	{
		GatewayExit(EXIT_DONE);
		return;
	}
	Watch(status == LINK_AGAIN ? UV_READABLE | UV_WRITABLE : UV_READABLE);
	if (overloaded && LinkFramePending(gateway.link) <= RELIEVED_BYTES)
	{
		overloaded = false;
		ConnResumeReading();
	}
	ListenerUpdate();
}

void
LinkStart(int fd)
{
	gateway.link = LinkFrameCreate(fd);
	if (gateway.link == NULL)
		GatewayFatal(EXIT_FAILED, "out of memory");
	if (uv_poll_init(&gateway.loop, &poll_handle, fd) != 0)
		GatewayFatal(EXIT_FAILED, "could not watch the link");
	Watch(UV_READABLE);
	SayHello();
}

void
LinkStop(void)
{
	uv_poll_stop(&poll_handle);
}
