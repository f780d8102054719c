/*-------------------------------------------------------------------------
 *
 * listen.c
 *		The port: bound once, by the feed worker, for all its gateways.
 *
 * The sockets outlive the gateways, so clients that come while one is started
 * again wait in the backlog; and a second database or cluster on the same port
 * gets an error instead of a share of the clients.
 *
 * Process: feed worker.  Memory: none but the turn's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "listen.h"
#include "feed.h"
#include "listen_unix.h"
#include "tls_files.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/varlena.h"

/* A port that is taken is tried again at this interval. */
#define RETRY_MS 10000

int listener_sockets[MAX_LISTENERS];
bool listener_local[MAX_LISTENERS];
int listener_count;

static TimestampTz next_try; /* after a failure */
static bool failed;			 /* said so in the log */
static bool tls_failed;		 /* the same of TLS */
static bool in_use;			 /* an address of this try is taken */

static void
ListenOn(const char *host, int port)
{
	struct addrinfo hint = {0};
	struct addrinfo *addresses = NULL;
	struct addrinfo *a;
	char service[16];
	int rc;

	hint.ai_family = AF_UNSPEC;
	hint.ai_socktype = SOCK_STREAM;
	hint.ai_flags = AI_PASSIVE;
	snprintf(service, sizeof(service), "%d", port);
	rc = getaddrinfo(strcmp(host, "*") == 0 ? NULL : host, service, &hint, &addresses);
	if (rc != 0)
	{
		ereport(LOG, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					  errmsg("could not resolve \"%s\" of changefeed.listen_addresses: %s", host,
							 gai_strerror(rc))));
		return;
	}
	for (a = addresses; a != NULL && listener_count < MAX_LISTENERS - 1; a = a->ai_next)
	{
		int fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		int one = 1;

		/* A machine without IPv6: "localhost" still means something. */
		if (fd < 0)
			continue;

		/*
		 * SO_REUSEADDR lets us follow our own predecessor; another listener on
		 * the port is refused all the same.
		 */
		(void) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		if (a->ai_family == AF_INET6)
			(void) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
		if (bind(fd, a->ai_addr, a->ai_addrlen) < 0 || listen(fd, 4096) < 0)
		{
			/* Half of "localhost" with somebody else's clients helps nobody. */
			if (errno == EADDRINUSE)
				in_use = true;
			if (errno != EADDRNOTAVAIL && errno != EAFNOSUPPORT && !failed)
			{
				bool taken = errno == EADDRINUSE;

				ereport(
					LOG,
					(errcode_for_socket_access(),
					 errmsg("could not listen on \"%s\", port %d: %m", host, port),
					 !taken
						 ? 0
						 : errhint(
							   "Another server uses the port. Set changefeed.port to a free one, in postgresql.conf or with ALTER DATABASE \"%s\" SET changefeed.port = ..., and restart.",
							   get_database_name(MyDatabaseId))));
			}
			close(fd);
			continue;
		}
		listener_sockets[listener_count++] = fd;
	}
	freeaddrinfo(addresses);
}

long
Listen(void)
{
	char *list;
	List *hosts;
	ListCell *lc;
	bool tcp;

	if (listener_count > 0)
		return -1;
	if (feed_now < next_try)
		return Max(TimestampDifferenceMilliseconds(feed_now, next_try), 1);
	if (!TlsPrepare(tls_failed))
	{
		tls_failed = true;
		next_try = TimestampTzPlusMilliseconds(feed_now, RETRY_MS);
		return RETRY_MS;
	}
	tls_failed = false;
	list = pstrdup(setting_listen_addresses);
	if (setting_port == 0 || !SplitGUCList(list, ',', &hosts))
		hosts = NIL;
	foreach(lc, hosts)
		ListenOn(lfirst(lc), setting_port);
	tcp = listener_count > 0 && !in_use;
	if (setting_unix_socket[0] != '\0' && (tcp || hosts == NIL))
	{
		int fd = ListenUnix(failed);

		/* One that is wanted and missing would be noticed by nobody here. */
		if (fd < 0)
			in_use = true;
		else
		{
			listener_local[listener_count] = true;
			listener_sockets[listener_count++] = fd;
		}
	}
	if (in_use)
	{
		while (listener_count > 0)
		{
			close(listener_sockets[--listener_count]);
			listener_local[listener_count] = false;
		}
		in_use = false;
	}
	if (listener_count == 0)
	{
		failed = true;
		next_try = TimestampTzPlusMilliseconds(feed_now, RETRY_MS);
		return RETRY_MS;
	}
	failed = false;
	if (tcp)
	{
		ereport(LOG,
				(errmsg("changefeed listens on \"%s\", port %d, for database \"%s\"",
						setting_listen_addresses, setting_port, get_database_name(MyDatabaseId))));
		pg_atomic_write_u32(&feed_shared->feed_port, setting_port);
	}
	if (setting_unix_socket[0] != '\0')
		ereport(LOG, (errmsg("changefeed listens on Unix socket \"%s\", for database \"%s\"",
							 setting_unix_socket, get_database_name(MyDatabaseId))));
	return -1;
}

void
ListenAgain(void)
{
	next_try = 0;
	failed = false;
	tls_failed = false;
}
