/*-------------------------------------------------------------------------
 *
 * gateways.c
 *		Starting gateways and talking over their links.  See gateways.h.
 *
 * A gateway is an ordinary program in a process group of its own, with an
 * empty environment and no descriptor but the link and the server's log: the
 * postmaster does not know it, so its death costs nobody but its clients.  The
 * reliable sign of its end is end-of-file on the link; the pid is reaped when
 * the kernel has it.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "console.h"
#include "gateways.h"
#include "http.h"
#include "listen.h"
#include "pause.h"
#include "tls_files.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/hashfn.h"
#include "common/string.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "pgstat.h"
#include "postmaster/postmaster.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/varlena.h"

/* A link with more than this queued stops the publishing of transactions. */
#define READ_BUDGET (256 * 1024)

/*
 * Messages of clients may take so long in a turn (us), which is looked at after
 * so many of them: thousands may come back at the same time.
 */
#define HANDLE_SLICE 3000
#define HANDLE_LOOK	 8

/* What a gateway may say of one connection: its text of an address is shorter, headers are, too. */
#define TOKEN_MAX (64 * 1024)

/* It counts those that are being opened or closed a little differently. */
#define CONNECTIONS_SLACK 64

Gateway gateways[MAX_GATEWAYS];
int gateway_count;

static uint32 next_serial;
static WaitEventSet *wait_set;
static int link_event[MAX_GATEWAYS];

static const struct
{
	const char *path;
	const char *file;
	const char *type;
} assets[] = {
	{"/console.js", "console.js", "text/javascript; charset=utf-8"},
	{"/operate.js", "operate.js", "text/javascript; charset=utf-8"},
	{"/stats.js", "stats.js", "text/javascript; charset=utf-8"},
	{"/client.js", "client.js", "text/javascript; charset=utf-8"},
	{"/console.css", "console.css", "text/css; charset=utf-8"},
	{"/icon.svg", "icon.svg", "image/svg+xml"},
};

void
GatewaysInit(void)
{
	int i;

	gateway_count = Min(setting_gateways, MAX_GATEWAYS);
	for (i = 0; i < gateway_count; i++)
		gateways[i].index = i;
}

/* ---- starting ---- */

static void
PutList(LinkFrame *link, const char *setting, const char *more)
{
	char *a = pstrdup(setting);
	char *b = pstrdup(more);
	List *items = NIL;
	List *others = NIL;
	ListCell *lc;

	if (!SplitGUCList(a, ',', &items))
		items = NIL;
	if (SplitGUCList(b, ',', &others))
		items = list_concat(items, others);
	LinkFramePutU32(link, list_length(items));
	foreach(lc, items)
		LinkFramePutBytes(link, lfirst(lc), strlen(lfirst(lc)));
}

static void
PutLimits(LinkFrame *link)
{
	uint32 rate = (uint32) setting_max_handshake_rate;

	LinkFramePutU32(link, (uint32) setting_max_connections_per_address);
	LinkFramePutU32(link, rate > 0 ? Max(rate / (uint32) gateway_count, 1) : 0);
	LinkFramePutU32(link, (uint32) setting_max_handshake_rate_per_address);
	LinkFramePutU32(link, (uint32) setting_max_message_rate);
	LinkFramePutU64(link, (uint64) setting_max_receive_rate * 1024);
	LinkFramePutU32(link, (uint32) setting_handshake_timeout);
	LinkFramePutU8(link, setting_forwarded_header == FORWARDED_HEADER_STANDARD);
	PutList(link, setting_trusted_proxies, "");
	PutList(link, setting_allowed_addresses, "");
	PutList(link, setting_denied_addresses, "");
}

/* Memory in which they tell each other how many clients they have. */
static void
SendBalance(Gateway *gateway)
{
	static int fd = -1;

	if (gateway_count == 1)
		return;
	if (fd < 0)
	{
		fd = memfd_create("changefeed gateways", MFD_CLOEXEC);
		if (fd < 0 || ftruncate(fd, gateway_count * sizeof(uint32)) < 0)
		{
			ereport(LOG, (errcode_for_file_access(),
						  errmsg("could not make memory for the change feed's gateways: %m"),
						  errdetail("They may have different numbers of clients.")));
			if (fd >= 0)
				close(fd);
			fd = -1;
			return;
		}
	}
	LinkFrameBegin(gateway->link, LINK_BALANCE);
	LinkFramePutU32(gateway->link, gateway_count);
	LinkFramePutU32(gateway->link, gateway->index);
	LinkFrameEndWithDescriptor(gateway->link, fd);
}

static void
SendConfig(Gateway *gateway)
{
	LinkFrame *link = gateway->link;
	uint32 connections = (uint32) (setting_max_connections / gateway_count);

	/* Those that it has stay when the setting becomes smaller. */
	gateway->most_connections = Max(gateway->most_connections, connections);
	LinkFrameBegin(link, LINK_CONFIG);
	LinkFramePutU32(link, connections);
	LinkFramePutU32(link, (uint32) setting_send_buffer * 1024);
	LinkFramePutU32(link, setting_heartbeat);
	LinkFramePutU32(link, setting_connect_timeout);
	LinkFramePutU32(link, (uint32) setting_max_message * 1024);
	LinkFramePutU32(link, (uint32) setting_max_frame * 1024);
	LinkFramePutU16(link, (uint16) setting_port);
	PutList(link, setting_allowed_origins, "");
	PutList(link, setting_allowed_hosts,
			strcmp(setting_listen_addresses, "*") == 0 ? "" : setting_listen_addresses);
	LinkFramePutBytes(link, setting_token_cookie, strlen(setting_token_cookie));
	LinkFramePutU8(link, setting_compression ? 1 : 0);
	PutLimits(link);
	LinkFramePutU8(link, feed_paused ? 1 : 0);
	LinkFrameEnd(link);
}

static void
SendAssets(Gateway *gateway)
{
	int i;

	for (i = 0; i < (int) lengthof(assets); i++)
	{
		StringInfoData bytes;
		char *etag;

		if (!ConsoleRead(assets[i].file, &bytes))
			continue;
		etag = psprintf("\"%016llx\"", (unsigned long long) hash_bytes_extended(
										   (unsigned char *) bytes.data, bytes.len, 0));
		LinkFrameBegin(gateway->link, LINK_ASSET);
		LinkFramePutBytes(gateway->link, assets[i].path, strlen(assets[i].path));
		LinkFramePutBytes(gateway->link, assets[i].type, strlen(assets[i].type));
		LinkFramePutBytes(gateway->link, etag, strlen(etag));
		LinkFramePutRaw(gateway->link, bytes.data, bytes.len);
		LinkFrameEnd(gateway->link);
		pfree(bytes.data);
	}
}

static bool
Spawn(Gateway *gateway)
{
	char program[MAXPGPATH];
	char *argv[] = {"pg_changefeed_gateway", "--link-fd", "3", NULL};
	char *envp[] = {NULL};
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t set;
	int pair[2];
	pid_t pid;
	int rc;

	strlcpy(program, my_exec_path, sizeof(program));
	get_parent_directory(program);
	strlcat(program, "/pg_changefeed_gateway", sizeof(program));

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0)
	{
		ereport(LOG, (errcode_for_socket_access(),
					  errmsg("could not create a socket pair for a gateway: %m")));
		return false;
	}

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&actions, 2, 1);
	posix_spawn_file_actions_adddup2(&actions, pair[1], 3);
	posix_spawn_file_actions_addclosefrom_np(&actions, 4);

	/*
	 * A process group of its own, because the postmaster signals its
	 * children's groups; and none of our blocked signals and handlers.
	 */
	posix_spawnattr_init(&attributes);
	sigemptyset(&set);
	posix_spawnattr_setsigmask(&attributes, &set);
	sigfillset(&set);
	posix_spawnattr_setsigdefault(&attributes, &set);
	posix_spawnattr_setpgroup(&attributes, 0);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
											  POSIX_SPAWN_SETPGROUP);
	rc = posix_spawn(&pid, program, &actions, &attributes, argv, envp);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attributes);
	close(pair[1]);
	if (rc != 0)
	{
		errno = rc;
		ereport(LOG,
				(errcode_for_file_access(), errmsg("could not start gateway \"%s\": %m", program)));
		close(pair[0]);
		return false;
	}

	gateway->link = LinkFrameCreate(pair[0]);
	if (gateway->link == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	LinkFrameLimit(gateway->link, LINK_MAX_SAID);
	gateway->serial = ++next_serial;
	gateway->pid = pid;
	gateway->greeted = false;
	gateway->unfinished = false;
	gateway->started = feed_now;
	gateway->places = SubscribePagesPlaces();
	memset(&gateway->stats, 0, sizeof(gateway->stats));
	gateway->stats_asked = gateway->stats_answered = 0;
	gateway->probed = 0;
	gateway->connections = 0;
	gateway->most_connections = 0;
	pg_atomic_fetch_add_u64(&feed_shared->feed_gateway_starts, 1);
	if (gateway->index == 0)
		pg_atomic_write_u32(&feed_shared->feed_gateway_pid, (uint32) pid);
	SendConfig(gateway);
	SendAssets(gateway);
	HttpSendPaths(gateway->link);
	TlsSend(gateway->link);
	SendBalance(gateway);
	for (rc = 0; rc < listener_count; rc++)
	{
		LinkFrameBegin(gateway->link, LINK_LISTEN);
		LinkFramePutU8(gateway->link, listener_local[rc] ? LINK_LISTEN_LOCAL : 0);
		LinkFrameEndWithDescriptor(gateway->link, listener_sockets[rc]);
	}
	return true;
}

static Gateway *dying;

static List *lost_connections;

static void
CollectLost(Connection *connection)
{
	if (connection->gateway != dying)
		return;
	ConnectionSetClosing(connection);
	lost_connections = lappend(lost_connections, connection);
}

static void
GatewayLost(Gateway *gateway)
{
	bool lived = TimestampDifferenceExceeds(gateway->started, feed_now, 5000);
	ListCell *lc;
	MemoryContext old;

	ereport(LOG, (errmsg("changefeed gateway with PID %d has ended", (int) gateway->pid),
				  errdetail("Its clients have to connect again; the gateway is started again.")));

	dying = gateway;
	lost_connections = NIL;
	ConnectionForEach(CollectLost);
	foreach(lc, lost_connections)
	{
		CountClosed(((Connection *) lfirst(lc))->transport, 0, NULL);
		ConnectionFree(lfirst(lc));
	}
	list_free(lost_connections);

	LinkFrameDestroy(gateway->link);
	gateway->link = NULL;
	kill(gateway->pid, SIGKILL);
	old = MemoryContextSwitchTo(feed_context);
	gateway->zombies = lappend_int(gateway->zombies, (int) gateway->pid);
	MemoryContextSwitchTo(old);
	gateway->pid = 0;
	if (gateway->index == 0)
		pg_atomic_write_u32(&feed_shared->feed_gateway_pid, 0);
	gateway->failures = lived ? 0 : Min(gateway->failures + 1, 6);
	gateway->start_at = gateway->failures == 0
							? feed_now
							: TimestampTzPlusMilliseconds(feed_now, 250 << gateway->failures);
	if (wait_set != NULL)
		FreeWaitEventSet(wait_set);
	wait_set = NULL;

	/* GatewaysMaintain has had its say in this turn; there may be no other cause for one. */
	SetLatch(MyLatch);
}

long
GatewaysMaintain(bool may_listen)
{
	long wait = -1;
	int i;

	if (!may_listen)
		return -1;
	wait = Listen();
	if (wait >= 0)
		return wait;

	for (i = 0; i < gateway_count; i++)
	{
		Gateway *gateway = &gateways[i];
		ListCell *lc;

		foreach(lc, gateway->zombies)
		{
			int status;

			/* Not there yet: it is looked at again when something happens. */
			if (waitpid(lfirst_int(lc), &status, WNOHANG) != 0)
				gateway->zombies = foreach_delete_current(gateway->zombies, lc);
			else
				wait = wait < 0 ? 1000 : Min(wait, 1000);
		}
		if (gateway->link != NULL)
			continue;
		if (feed_now < gateway->start_at)
		{
			long ms = Max(TimestampDifferenceMilliseconds(feed_now, gateway->start_at), 1);

			wait = wait < 0 ? ms : Min(wait, ms);
			continue;
		}
		if (!Spawn(gateway))
		{
			gateway->start_at = TimestampTzPlusMilliseconds(feed_now, 10000);
			wait = wait < 0 ? 10000 : Min(wait, 10000);
		}
		else if (wait_set != NULL)
		{
			FreeWaitEventSet(wait_set);
			wait_set = NULL;
		}
	}
	return wait;
}

void
GatewaysConfigure(void)
{
	bool tls = listener_count > 0 && TlsReload();
	int i;

	for (i = 0; i < gateway_count; i++)
	{
		if (gateways[i].link == NULL)
			continue;
		SendConfig(&gateways[i]);
		if (tls)
			TlsSend(gateways[i].link);
	}
	ListenAgain();
}

void
GatewaysPause(void)
{
	int i;

	for (i = 0; i < gateway_count; i++)
		if (gateways[i].link != NULL)
			SendConfig(&gateways[i]);
}

/* ---- waiting, reading, writing ---- */

WaitEventSet *
GatewaysWaitSet(void)
{
	int i;

	if (wait_set == NULL)
	{
		/* A set cannot lose a descriptor, so it is made anew. */
		int event = SharedEvent(feed_shared, SHARED_FEED_WORKER);

		wait_set = compat_create_wait_set(GATEWAYS_EVENTS);
		AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
		AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
		if (event >= 0)
			AddWaitEventToSet(wait_set, WL_SOCKET_READABLE, event, NULL, feed_shared);
		for (i = 0; i < gateway_count; i++)
			if (gateways[i].link != NULL)
				link_event[i] = AddWaitEventToSet(wait_set, WL_SOCKET_READABLE,
												  LinkFrameSocket(gateways[i].link), NULL,
												  &gateways[i]);
	}
	for (i = 0; i < gateway_count; i++)
		if (gateways[i].link != NULL)
			ModifyWaitEvent(wait_set, link_event[i],
							WL_SOCKET_READABLE |
								(LinkFramePending(gateways[i].link) > 0 ? WL_SOCKET_WRITEABLE : 0),
							NULL);
	return wait_set;
}

void
GatewaysFlush(void)
{
	int i;

	for (i = 0; i < gateway_count; i++)
	{
		if (gateways[i].link == NULL)
			continue;
		switch (LinkFrameFlush(gateways[i].link))
		{
			case LINK_OK:
			case LINK_AGAIN:
				break;
			default:
				GatewayLost(&gateways[i]);
		}
	}
}

Size
GatewaysPending(void)
{
	Size most = 0;
	int i;

	for (i = 0; i < gateway_count; i++)
		if (gateways[i].link != NULL)
			most = Max(most, LinkFramePending(gateways[i].link));
	return most;
}

/* A new connection, unless it is one that no honest gateway announces. */
static const char *
Announce(Gateway *gateway, uint32 number, uint8 transport, const char *peer,
		 Connection **connection)
{
	if (ConnectionFind(gateway, number) != NULL)
		return psprintf("connection %u was opened twice", number);
	if (gateway->connections >= gateway->most_connections + CONNECTIONS_SLACK)
		return "there are more connections than it may have";
	*connection = ConnectionCreate(gateway, number, transport, peer);
	return NULL;
}

/*
 * NULL, or what is wrong.  A gateway talks to strangers, so one of them may have
 * taken it over: it can speak for its own connections, and whatever an honest one
 * would not say ends it.
 */
static const char *
Handle(Gateway *gateway, LinkMessage *message)
{
	WireReader r = WireReaderInit(message->payload, message->length);
	uint32 number = 0;
	Connection *connection = NULL;
	const char *problem = NULL;

	if (gateway->greeted == (message->type == LINK_HELLO))
		return gateway->greeted ? "it said twice who it is" : "it did not say who it is";
	if (message->type != LINK_HELLO && message->type != LINK_PING_DUE &&
		message->type != LINK_STATS && message->type != LINK_CONNECTIONS &&
		message->type != LINK_PROBED)
	{
		number = WireGetU32(&r);
		if (message->type != LINK_OPEN && message->type != LINK_REQUEST)
		{
			connection = ConnectionFind(gateway, number);

			/* We may have forgotten it while its messages were on their way. */
			if (connection == NULL)
				return r.failed ? "a message is too short" : NULL;
		}
	}

	switch (message->type)
	{
		case LINK_HELLO:
		{
			uint32 version = WireGetU32(&r);
			uint32 pid = WireGetU32(&r);
			WireBytes library = WireGetBytes(&r);

			if (r.failed || version != LINK_VERSION)
				ereport(
					ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("gateway speaks version %u of the link, not %d", version, LINK_VERSION),
					 errhint("Install the gateway program and the library of the same version.")));
			ereport(LOG, (errmsg("changefeed gateway started with PID %u, libwebsockets %.*s", pid,
								 (int) library.length, library.data)));
			gateway->greeted = true;
		}
		break;
		case LINK_OPEN:
		{
			uint8 transport = WireGetU8(&r);
			WireBytes peer = WireGetBytes(&r);
			WireBytes token = WireGetBytes(&r);
			char *address;

			if (r.failed || peer.length > GATEWAY_PEER_MAX || token.length > TOKEN_MAX)
			{
				r.failed = true;
				break;
			}
			address = pnstrdup(peer.data, peer.length);
			if (transport != LINK_TRANSPORT_WEBSOCKET || !pg_is_ascii(address))
				r.failed = true;
			else
				problem = Announce(gateway, number, transport, address, &connection);
			if (connection != NULL)
				ProtocolOpen(connection, token.data, token.length);
		}
		break;
		case LINK_REQUEST:
			problem = Announce(gateway, number, COUNTED_REQUEST, "", &connection);
			if (connection != NULL)
				HttpReceive(connection, &r);
			break;
		case LINK_COLLECTED:
			HttpCollected(connection);
			break;
		case LINK_MESSAGE:
			counters.messages++;
			if (!connection->closing)
				ProtocolMessage(connection, r.data + r.offset, r.length - r.offset);
			break;
		case LINK_CLOSED:
			CountClosed(connection->transport, WireGetU8(&r), connection->closed);
			ConnectionFree(connection);
			break;
		case LINK_STATS:
			GatewayReadStats(gateway, &r);
			break;
		case LINK_CONNECTIONS:
			GatewayReadConnections(gateway, &r);
			break;
		case LINK_PROBED:
			gateway->probed = WireGetU64(&r);
			break;
		case LINK_BEHIND:
		{
			uint64 last = WireGetU64(&r);

			if (!r.failed)
				DeliverChoked(connection, last);
		}
		break;
		case LINK_DRAINED:
			DeliverDrained(connection);
			break;
		case LINK_SNAPSHOT_DONE:
		{
			uint32 id = WireGetU32(&r);
			bool ok = WireGetU8(&r) != 0;
			Subscription *s = SubscriptionById(connection, id);

			if (s != NULL && !r.failed)
				SubscribeSnapshotDone(s, ok);
		}
		break;
		case LINK_FLUSHED:
		{
			uint32 mark = WireGetU32(&r);

			if (!r.failed)
				DeliverFlushed(connection, mark);
		}
		break;
		case LINK_PING_DUE:
		{
			uint32 count = WireGetU32(&r);
			uint32 *numbers;
			uint32 i;

			if (count > message->length / sizeof(uint32))
			{
				r.failed = true;
				break;
			}
			numbers = palloc(sizeof(uint32) * Max(count, 1));
			for (i = 0; i < count; i++)
				numbers[i] = WireGetU32(&r);
			if (!r.failed)
				ProtocolPing(gateway, numbers, count);
			pfree(numbers);
		}
		break;
		default:
			return psprintf("there are no messages of type %d", (int) message->type);
	}
	if (r.failed)
		return psprintf("a message of type %d is malformed", (int) message->type);
	return problem;
}

bool
GatewayReceive(Gateway *gateway)
{
	LinkStatus status;
	uint32 serial = gateway->serial;

	TimestampTz end = GetCurrentTimestamp() + HANDLE_SLICE;
	int handled = 0;

	if (gateway->link == NULL)
		return false;

	/* What did not fit into the last turns comes before what waits in the socket. */
	status = gateway->unfinished && LinkFrameWaiting(gateway->link) >= READ_BUDGET
				 ? LINK_AGAIN
				 : LinkFrameFill(gateway->link, READ_BUDGET);
	gateway->unfinished = false;
	for (;;)
	{
		LinkMessage message;
		LinkStatus next;

		/* One after which the link ends must not be left behind. */
		if (status != LINK_EOF && status != LINK_ERROR && ++handled % HANDLE_LOOK == 0 &&
			GetCurrentTimestamp() >= end)
		{
			gateway->unfinished = true;
			return true;
		}
		next = LinkFrameNext(gateway->link, &message);
		if (next == LINK_OK)
		{
			const char *problem = Handle(gateway, &message);

			if (message.descriptor >= 0)
				close(message.descriptor);
			if (problem != NULL)
			{
				ereport(LOG, (errcode(ERRCODE_PROTOCOL_VIOLATION),
							  errmsg("gateway with PID %d breaks the rules of the link: %s",
									 (int) gateway->pid, problem),
							  errdetail("It is ended.")));
				GatewayLost(gateway);
				return false;
			}
			if (gateway->link == NULL || gateway->serial != serial)
				return false;
			continue;
		}
		if (next != LINK_AGAIN)
			status = next;
		break;
	}
	if (status == LINK_EOF || status == LINK_ERROR)
	{
		GatewayLost(gateway);
		return false;
	}
	return status == LINK_OK;
}

void
GatewaysShutdown(const char *reason, int ms)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);
	int i;

	for (i = 0; i < gateway_count; i++)
	{
		if (gateways[i].link == NULL)
			continue;
		LinkFrameBegin(gateways[i].link, LINK_SHUTDOWN);
		LinkFramePutBytes(gateways[i].link, reason, strlen(reason));
		LinkFramePutU32(gateways[i].link, 500);
		LinkFramePutU32(gateways[i].link, 5000);
		LinkFrameEnd(gateways[i].link);
	}
	for (;;)
	{
		bool left = false;

		for (i = 0; i < gateway_count; i++)
		{
			int status;

			if (gateways[i].link == NULL)
				continue;
			(void) LinkFrameFlush(gateways[i].link);
			if (waitpid(gateways[i].pid, &status, WNOHANG) == 0)
				left = true;
			else
			{
				LinkFrameDestroy(gateways[i].link);
				gateways[i].link = NULL;
			}
		}
		if (!left || GetCurrentTimestamp() >= end)
			return;
		pg_usleep(5000L);
	}
}
