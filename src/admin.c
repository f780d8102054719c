/*-------------------------------------------------------------------------
 *
 * admin.c
 *		What operators ask over HTTP: /metrics and /healthz.
 *
 * /metrics and the console are for programs on this machine, for addresses listed in
 * changefeed.admin_addresses, and for tokens of roles that may read statistics
 * in the database, too.  The address of a request that came through a proxy is
 * the proxy's and says nothing.
 *
 * /healthz is for everybody and has no secrets.  It does not look at numbers,
 * but tries: is everything that was committed before the request delivered
 * within changefeed.health_max_lag, and does a message come back through a
 * gateway?  One trial at a time serves all who ask meanwhile or shortly after,
 * so that asking often costs no more.
 *
 * Process: feed worker.  Memory: what waits for an answer in feed_context.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "admin.h"
#include "gateways.h"
#include "http.h"
#include "pause.h"
#include "revocations.h"
#include "stat.h"

#include <arpa/inet.h>

#include "catalog/pg_authid.h"
#include "utils/acl.h"
#include "utils/memutils.h"
#include "utils/varlena.h"

/* Scrapes that wait for the gateways' counters. */
#define MAX_SCRAPES		  20
#define GATEWAYS_PATIENCE 1000 /* ms */

/* The result of a trial serves those who ask so soon after. */
#define TRIAL_GOOD_MS 250

#define NO_STORE "Cache-Control: no-store\r\n"

/* ---- who may ---- */

/* "address" or "address/bits"; false: it is neither. */
static bool
ParseNetwork(const char *text, int *family, unsigned char *address, int *bits)
{
	char copy[INET6_ADDRSTRLEN + 8];
	char *slash;
	char *end;
	long n;

	if (strlen(text) >= sizeof(copy))
		return false;
	strcpy(copy, text);
	slash = strchr(copy, '/');
	if (slash != NULL)
		*slash++ = '\0';
	*family = strchr(copy, ':') != NULL ? AF_INET6 : AF_INET;
	*bits = *family == AF_INET6 ? 128 : 32;
	if (inet_pton(*family, copy, address) != 1)
		return false;
	if (slash == NULL)
		return true;
	n = strtol(slash, &end, 10);
	if (!isdigit((unsigned char) *slash) || *end != '\0' || n > *bits)
		return false;
	*bits = (int) n;
	return true;
}

bool
AdminAddressIsValid(const char *text)
{
	unsigned char address[16];
	int family;
	int bits;

	return ParseNetwork(text, &family, address, &bits);
}

static bool
IsIn(const char *peer, const char *network)
{
	unsigned char mine[16];
	unsigned char theirs[16];
	int family;
	int peer_family;
	int bits;
	int peer_bits;

	if (!ParseNetwork(peer, &peer_family, mine, &peer_bits) ||
		!ParseNetwork(network, &family, theirs, &bits) || family != peer_family)
		return false;
	if (memcmp(mine, theirs, bits / 8) != 0)
		return false;
	return bits % 8 == 0 || ((mine[bits / 8] ^ theirs[bits / 8]) >> (8 - bits % 8)) == 0;
}

static bool
AddressIsListed(const char *peer)
{
	char *copy = pstrdup(setting_admin_addresses);
	List *networks = NIL;
	ListCell *lc;

	if (!SplitGUCList(copy, ',', &networks))
		return false;
	foreach(lc, networks)
		if (IsIn(peer, lfirst(lc)))
			return true;
	return false;
}

bool
AdminAllows(Connection *connection, const HttpRequest *request, const char *what)
{
	IdentityInfo info;
	JwtResult error = {0};

	if (!request->proxied && (request->loopback || AddressIsListed(request->peer)))
		return true;
	if (request->token[0] != '\0')
	{
		if (!IdentityResolve(request->token, strlen(request->token), ChannelsRoleAllowed, &info,
							 &error) ||
			!RevocationsAllow(&info, &error))
		{
			CountError(NULL, error.sqlstate);
			HttpFail(connection, error.sqlstate, error.message, error.hint);
			return false;
		}
		if (has_privs_of_role(info.role, ROLE_PG_READ_ALL_STATS))
			return true;
	}
	CountError(NULL, "42501");
	HttpFail(connection, "42501", psprintf("permission denied for %s", what),
			 "It is for the server's own machine, for changefeed.admin_addresses, and for "
			 "tokens of roles that are members of pg_monitor.");
	return false;
}

/* ---- /metrics ---- */

typedef struct Scrape
{
	uint64 connection;
	TimestampTz since;
	GatewayQuestion question;
} Scrape;

static List *scrapes;

void
AdminMetrics(Connection *connection, const HttpRequest *request)
{
	Scrape *scrape;
	MemoryContext old;

	if (!AdminAllows(connection, request, "metrics"))
		return;
	if (list_length(scrapes) >= MAX_SCRAPES)
	{
		HttpFail(connection, "53400", "too many requests for metrics at once", NULL);
		return;
	}
	old = MemoryContextSwitchTo(feed_context);
	scrape = palloc0(sizeof(Scrape));
	scrapes = lappend(scrapes, scrape);
	MemoryContextSwitchTo(old);
	scrape->connection = connection->id;
	scrape->since = feed_now;
	GatewaysAskStats(&scrape->question);
}

static long
AdvanceScrapes(void)
{
	long wait = -1;
	ListCell *lc;

	foreach(lc, scrapes)
	{
		Scrape *scrape = lfirst(lc);
		Connection *connection = ConnectionById(scrape->connection);
		StringInfoData body;

		if (connection != NULL && !GatewaysAnswered(&scrape->question) &&
			!TimestampDifferenceExceeds(scrape->since, feed_now, GATEWAYS_PATIENCE))
		{
			wait = GATEWAYS_PATIENCE;
			continue;
		}
		if (connection != NULL)
		{
			initStringInfo(&body);
			MetricsWrite(&body);
			HttpRespond(connection, 200, "text/plain; version=0.0.4; charset=utf-8", NO_STORE,
						body.data, body.len);
			pfree(body.data);
		}
		scrapes = foreach_delete_current(scrapes, lc);
		pfree(scrape);
	}
	return wait;
}

/* ---- /healthz ---- */

static struct
{
	bool running;
	bool healthy;
	TimestampTz begun;
	TimestampTz ended; /* 0: there was none yet */
	XLogRecPtr lsn;
	GatewayQuestion probe;
	bool reached; /* everything up to lsn was delivered */
	bool probed;
	long reached_ms;
	long probed_ms;
	List *waiting; /* uint64 *: ids of connections */
} trial;

static void
AnswerHealth(Connection *connection)
{
	StringInfoData body;
	const char *reason = feed_paused	 ? "paused"
						 : trial.healthy ? NULL
						 : trial.reached ? "gateways_do_not_answer"
										 : "delivery_is_behind";

	initStringInfo(&body);
	if (reason == NULL)
		appendStringInfo(&body, "{\"status\":\"ok\",\"delivery_ms\":%ld,\"gateway_ms\":%ld}\n",
						 trial.reached_ms, trial.probed_ms);
	else
	{
		appendStringInfo(&body, "{\"status\":\"failing\",\"reason\":\"%s\",\"detail\":", reason);
		if (feed_paused)
			appendStringInfoString(&body, "\"The change feed is paused.\"}\n");
		else if (trial.reached)
			appendStringInfo(&body, "\"No message came back through a gateway within %d ms.\"}\n",
							 setting_health_max_lag);
		else
			appendStringInfo(&body,
							 "\"What was committed has not been delivered within %d ms.\"}\n",
							 setting_health_max_lag);
	}
	HttpRespond(connection, reason == NULL ? 200 : 503, "application/json", NO_STORE, body.data,
				body.len);
	pfree(body.data);
}

void
AdminHealth(Connection *connection, const HttpRequest *request)
{
	uint64 *id;
	MemoryContext old;

	if (!trial.running && trial.ended != 0 &&
		!TimestampDifferenceExceeds(trial.ended, feed_now, TRIAL_GOOD_MS))
	{
		AnswerHealth(connection);
		return;
	}
	if (!trial.running)
	{
		trial.running = true;
		trial.begun = feed_now;
		trial.lsn = SharedInsertLsn();
		trial.reached = false;
		trial.probed = false;
		GatewaysProbe(&trial.probe);
	}
	old = MemoryContextSwitchTo(feed_context);
	id = palloc(sizeof(uint64));
	*id = connection->id;
	trial.waiting = lappend(trial.waiting, id);
	MemoryContextSwitchTo(old);
}

static long
AdvanceTrial(void)
{
	TimestampTz due;
	ListCell *lc;

	if (!trial.running)
		return -1;
	if (!trial.reached && LogReached(trial.lsn))
	{
		trial.reached = true;
		trial.reached_ms = TimestampDifferenceMilliseconds(trial.begun, feed_now);
	}
	if (!trial.probed && GatewaysProbed(&trial.probe))
	{
		trial.probed = true;
		trial.probed_ms = TimestampDifferenceMilliseconds(trial.begun, feed_now);
	}
	due = TimestampTzPlusMilliseconds(trial.begun, setting_health_max_lag);
	if (!(trial.reached && trial.probed) && feed_now < due)
		return Max(TimestampDifferenceMilliseconds(feed_now, due), 1);

	trial.healthy = trial.reached && trial.probed;
	trial.running = false;
	trial.ended = feed_now;
	foreach(lc, trial.waiting)
	{
		Connection *connection = ConnectionById(*(uint64 *) lfirst(lc));

		if (connection != NULL)
			AnswerHealth(connection);
	}
	list_free_deep(trial.waiting);
	trial.waiting = NIL;
	return -1;
}

long
AdminAdvance(void)
{
	long scrape = AdvanceScrapes();
	long health = AdvanceTrial();

	if (scrape < 0 || health < 0)
		return Max(scrape, health);
	return Min(scrape, health);
}
