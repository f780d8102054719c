/*-------------------------------------------------------------------------
 *
 * console.c
 *		The console: the page, and what it asks for.
 *
 * Whoever may see /metrics may see the page and its data.  Scripts, styles and
 * the icon are the same everywhere and come from the gateway without a question,
 * since a browser sends no token with the requests for them.
 *
 * The data are the rows of the statistics views as JSON, made by the functions
 * that make them for backends, in portions.  A page asks every few seconds, so
 * an answer has a limit: of many connections it shows the newest.
 *
 * `explain` plans policies and may run functions that they call, so it is a job
 * for a query worker, where it runs as the role of the token that asks.
 *
 * Process: feed worker.  Memory: what waits for an answer has a context of its
 * own below feed_context.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "admin.h"
#include "console.h"
#include "feed_request.h"
#include "json_message.h"
#include "query_internal.h"
#include "revocations.h"
#include "stat.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/memutils.h"

#define MAX_WAITING	  20
#define DEFAULT_LIMIT 200
#define MAX_LIMIT	  1000

/* The gateways are not waited for that long. */
#define LOOK_MS 500

#define NO_STORE "Cache-Control: no-store\r\n"

/* ---- the page ---- */

bool
ConsoleRead(const char *name, StringInfo bytes)
{
	char share[MAXPGPATH];
	char buffer[8192];
	char *path;
	FILE *file;
	size_t n;

	get_share_path(my_exec_path, share);
	path = psprintf("%s/pg_changefeed/console/%s", share, name);
	file = AllocateFile(path, "r");
	if (file == NULL)
	{
		ereport(LOG, (errcode_for_file_access(),
					  errmsg("could not open file \"%s\" of the console: %m", path)));
		return false;
	}
	initStringInfo(bytes);
	while ((n = fread(buffer, 1, sizeof(buffer), file)) > 0)
		appendBinaryStringInfo(bytes, buffer, (int) n);
	FreeFile(file);
	return true;
}

void
ConsolePage(Connection *connection, const HttpRequest *request)
{
	StringInfoData bytes;

	if (!AdminAllows(connection, request, "the console"))
		return;
	if (!ConsoleRead("index.html", &bytes))
	{
		HttpFail(connection, "42704", "the console is not installed", NULL);
		return;
	}
	HttpRespond(connection, 200, "text/html; charset=utf-8", LINK_PAGE_HEADERS, bytes.data,
				bytes.len);
	pfree(bytes.data);
}

/* ---- lists ---- */

/* As the view's, in its order; `time`: a number that is a timestamptz. */
typedef struct ListColumn
{
	const char *name;
	enum
	{
		COLUMN_NUMBER,
		COLUMN_BOOLEAN,
		COLUMN_TIME,
		COLUMN_TEXT
	} type;
} ListColumn;

#define LIST_COLUMNS_MAX 17

static const struct
{
	const char *name;
	FeedRequestFunction function;
	ListColumn columns[LIST_COLUMNS_MAX + 1];
} lists[] = {
	{"connections",
	 StatConnections,
	 {{"id", COLUMN_NUMBER},
	  {"session", COLUMN_TEXT},
	  {"gateway", COLUMN_NUMBER},
	  {"transport", COLUMN_TEXT},
	  {"address", COLUMN_TEXT},
	  {"role", COLUMN_TEXT},
	  {"subject", COLUMN_TEXT},
	  {"connected_since", COLUMN_TIME},
	  {"expires_at", COLUMN_TIME},
	  {"state", COLUMN_TEXT},
	  {"subscriptions", COLUMN_NUMBER},
	  {"ready", COLUMN_NUMBER},
	  {"lag", COLUMN_NUMBER},
	  {"queued_bytes", COLUMN_NUMBER},
	  {"sent_frames", COLUMN_NUMBER},
	  {"sent_bytes", COLUMN_NUMBER},
	  {"heard_at", COLUMN_TIME}}},
	{"subscriptions",
	 StatSubscriptions,
	 {{"connection", COLUMN_NUMBER},
	  {"channel", COLUMN_TEXT},
	  {"name", COLUMN_TEXT},
	  {"state", COLUMN_TEXT},
	  {"subscribed_since", COLUMN_TIME},
	  {"recovered", COLUMN_BOOLEAN},
	  {"snapshot_rows", COLUMN_NUMBER},
	  {"lag", COLUMN_NUMBER},
	  {"resyncs", COLUMN_NUMBER},
	  {"resync_reason", COLUMN_TEXT}}},
	{"channels",
	 StatChannels,
	 {{"channel", COLUMN_TEXT},
	  {"instances", COLUMN_NUMBER},
	  {"subscriptions", COLUMN_NUMBER},
	  {"querying", COLUMN_NUMBER},
	  {"loading", COLUMN_NUMBER},
	  {"catching_up", COLUMN_NUMBER},
	  {"ready", COLUMN_NUMBER},
	  {"operations", COLUMN_NUMBER},
	  {"bytes", COLUMN_NUMBER},
	  {"snapshots", COLUMN_NUMBER},
	  {"snapshot_rows", COLUMN_NUMBER},
	  {"denials", COLUMN_NUMBER},
	  {"resyncs", COLUMN_NUMBER},
	  {"resync_reasons", COLUMN_TEXT}}},
	{"gateways",
	 StatGateways,
	 {{"gateway", COLUMN_NUMBER},
	  {"pid", COLUMN_NUMBER},
	  {"started_at", COLUMN_TIME},
	  {"connections", COLUMN_NUMBER},
	  {"accepted", COLUMN_NUMBER},
	  {"frames", COLUMN_NUMBER},
	  {"bytes", COLUMN_NUMBER},
	  {"received_bytes", COLUMN_NUMBER},
	  {"queued_bytes", COLUMN_NUMBER},
	  {"behind", COLUMN_NUMBER},
	  {"refused", COLUMN_NUMBER},
	  {"refused_by_code", COLUMN_TEXT},
	  {"throttled", COLUMN_NUMBER},
	  {"cpu_ms", COLUMN_NUMBER},
	  {"memory_bytes", COLUMN_NUMBER}}},
};

/* A list that is being made. */
typedef struct Waiting
{
	uint64 connection;
	int list;
	MemoryContext context;
	TimestampTz since;
	StatRange range; /* one more than the limit, to know whether there are more */
	FeedAnswer answer;
} Waiting;

static List *waiting; /* in feed_context */

static void
AppendNumber(StringInfo out, const ListColumn *column, uint64 value)
{
	char text[MAXDATELEN + 1];

	switch (column->type)
	{
		case COLUMN_BOOLEAN:
			appendStringInfoString(out, value != 0 ? "true" : "false");
			break;
		case COLUMN_TIME:
			appendStringInfo(out, "\"%s\"",
							 JsonEncodeDateTime(text, TimestampTzGetDatum((TimestampTz) value),
												TIMESTAMPTZOID, NULL));
			break;
		default:
			appendStringInfo(out, INT64_FORMAT, (int64) value);
	}
}

/* The answer's rows as JSON; those above the limit are left out, and it says so. */
static void
AppendRows(StringInfo out, const ListColumn *columns, const FeedAnswer *answer, uint32 limit)
{
	WireReader r = WireReaderInit(answer->bytes.data, answer->bytes.len);
	uint32 n = 0;

	appendStringInfoString(out, "{\"rows\":[");
	while (!WireAtEnd(&r) && n < limit)
	{
		const ListColumn *column;

		appendStringInfoString(out, n++ > 0 ? ",\n{" : "{");
		for (column = columns; column->name != NULL; column++)
		{
			StatTag tag = (StatTag) WireGetU8(&r);
			WireBytes text;

			appendStringInfo(out, "%s\"%s\":", column > columns ? "," : "", column->name);
			switch (tag)
			{
				case STAT_NULL:
					appendStringInfoString(out, "null");
					break;
				case STAT_NUMBER:
					AppendNumber(out, column, WireGetU64(&r));
					break;
				case STAT_TEXT:
					text = WireGetBytes(&r);
					EncodeString(out, text.data, text.length);
					break;
				case STAT_JSON:
					text = WireGetBytes(&r);
					appendBinaryStringInfo(out, text.data, (int) text.length);
					break;
			}
		}
		appendStringInfoChar(out, '}');
	}
	Assert(!r.failed);
	appendStringInfo(out, "],\"more\":%s}\n", WireAtEnd(&r) ? "false" : "true");
}

static uint64
NumberArgument(const HttpRequest *request, const char *name, uint64 standard)
{
	const char *text = HttpArgumentGet(request, name);

	return text != NULL ? strtou64(text, NULL, 10) : standard;
}

void
ConsoleData(Connection *connection, const HttpRequest *request)
{
	MemoryContext context;
	MemoryContext old;
	Waiting *w;
	int i;

	if (!AdminAllows(connection, request, "the console"))
		return;
	for (i = 0; i < (int) lengthof(lists); i++)
		if (strcmp(request->rest, lists[i].name) == 0)
			break;
	if (i == (int) lengthof(lists))
	{
		HttpFail(connection, "42704", "there is nothing at this path", NULL);
		return;
	}
	if (list_length(waiting) >= MAX_WAITING)
	{
		HttpFail(connection, "53400", "too many requests for statistics at once", NULL);
		return;
	}

	context = AllocSetContextCreate(feed_context, "changefeed console", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	w = palloc0(sizeof(Waiting));
	w->connection = connection->id;
	w->list = i;
	w->context = context;
	w->since = feed_now;
	w->range.limit = 1 + (uint32) Min(Max(NumberArgument(request, "limit", DEFAULT_LIMIT), 1),
									  MAX_LIMIT);
	w->range.connection = NumberArgument(request, "connection", 0);
	w->answer.arguments = (const char *) &w->range;
	w->answer.length = sizeof(StatRange);
	w->answer.context = context;
	initStringInfo(&w->answer.bytes);
	MemoryContextSwitchTo(feed_context);
	waiting = lappend(waiting, w);
	MemoryContextSwitchTo(old);
}

long
ConsoleAdvance(void)
{
	long wait = -1;
	ListCell *lc;

	foreach(lc, waiting)
	{
		Waiting *w = lfirst(lc);
		Connection *connection = ConnectionById(w->connection);
		RequestProgress progress = REQUEST_DONE;

		if (connection != NULL)
		{
			w->answer.waited_ms = TimestampDifferenceMilliseconds(w->since, feed_now);
			progress = lists[w->list].function(&w->answer);
		}
		if (progress != REQUEST_DONE)
		{
			wait = progress == REQUEST_MORE || wait == 0 ? 0 : LOOK_MS;
			continue;
		}
		if (connection != NULL)
		{
			StringInfoData body;

			initStringInfo(&body);
			AppendRows(&body, lists[w->list].columns, &w->answer, w->range.limit - 1);
			HttpRespond(connection, 200, "application/json", NO_STORE, body.data, body.len);
			pfree(body.data);
		}
		waiting = foreach_delete_current(waiting, lc);
		MemoryContextDelete(w->context);
	}
	return wait;
}

/* ---- explain ---- */

static int explaining; /* jobs in query workers */

static void
Explained(void *arg, uint64 job, QueryKind kind, WireReader *body)
{
	uint64 *id = arg;
	Connection *connection = ConnectionById(*id);

	if (kind == QUERY_RESULT && connection != NULL)
	{
		WireBytes rows = WireGetBytes(body);
		StringInfoData text;

		initStringInfo(&text);
		appendStringInfoString(&text, "{\"rows\":");
		appendBinaryStringInfo(&text, rows.data, (int) rows.length);
		appendStringInfoString(&text, ",\"more\":false}\n");
		HttpRespond(connection, 200, "application/json", NO_STORE, text.data, text.len);
		pfree(text.data);
	}
	if (kind == QUERY_ERROR && connection != NULL)
	{
		char *sqlstate = QueryCopyBytes(WireGetBytes(body));
		char *message = QueryCopyBytes(WireGetBytes(body));
		char *hint = QueryCopyBytes(WireGetBytes(body));

		HttpFail(connection, sqlstate, message, hint[0] != '\0' ? hint : NULL);
	}
	if (kind != QUERY_RESULT)
	{
		explaining--;
		pfree(id);
	}
}

/* The body: {"channel": "...", "claims": {...}} */
void
ConsoleExplain(Connection *connection, const HttpRequest *request)
{
	JsonMessage *body;
	const JsonField *claims;
	const char *channel;
	const char *problem;
	IdentityInfo info;
	JwtResult error = {0};
	StringInfoData job;
	uint64 *id;

	if (!AdminAllows(connection, request, "the console"))
		return;
	if (request->token[0] == '\0')
	{
		HttpFail(connection, "28000", "explain needs a token",
				 "It runs as the role of the token, which has to own the channel's tables, or the "
				 "database.");
		return;
	}
	if (!IdentityResolve(request->token, strlen(request->token), ChannelsRoleAllowed, &info,
						 &error) ||
		!RevocationsAllow(&info, &error))
	{
		HttpFail(connection, error.sqlstate, error.message, error.hint);
		return;
	}
	body = JsonMessageParse(request->body, request->body_length, &problem);
	if (body == NULL)
	{
		HttpFail(connection, "22P02", psprintf("request's body cannot be used: %s", problem), NULL);
		return;
	}
	channel = JsonMessageString(body, "channel");
	claims = JsonMessageGet(body, "claims");
	if (channel == NULL || claims == NULL || claims->type != JSON_TOKEN_OBJECT_START)
	{
		HttpFail(connection, "22023", "explain needs a \"channel\" and an object \"claims\"", NULL);
		return;
	}
	if (explaining >= MAX_WAITING)
	{
		HttpFail(connection, "53400", "too many requests for explain at once", NULL);
		return;
	}
	initStringInfo(&job);
	WirePutU32(&job, info.role);
	WirePutString(&job, info.claims);
	WirePutString(&job, channel);
	WirePutString(&job, claims->text);
	id = MemoryContextAlloc(feed_context, sizeof(uint64));
	*id = connection->id;
	explaining++;
	(void) QuerySubmit(QUERY_EXPLAIN, job.data, job.len, QUERY_LATER, Explained, id);
	pfree(job.data);
}
