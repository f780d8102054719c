/*-------------------------------------------------------------------------
 *
 * call.c
 *		Clients call functions: what is waiting, running, and answered.
 *
 * The calls of a connection run one after the other, in the order in which they
 * came, and those of different connections beside each other, as many as there
 * are workers for calls.  So a client can take up one worker, whatever it sends.
 * Calls with the same key of the same identity run one after the other, too: the
 * second one finds the first one's result.
 *
 * A call that has begun goes on when its connection is gone, and is answered to
 * nobody; one that has not is forgotten.
 *
 * What the worker does is in query_call.c.
 *
 * Process: feed worker.  Memory: a call in feed_context until it is answered;
 * their number and size are bounded.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feed.h"
#include "selection.h"
#include "subscribe.h"
#include "wire_write.h"

#include "utils/builtins.h"
#include "utils/memutils.h"

/* Unanswered calls of one connection, of all, and bytes of all. */
#define MAX_CALLS_OF_CONNECTION 100
#define MAX_CALLS				2000
#define MAX_CALL_BYTES			(32 * 1024 * 1024)

#define MAX_KEY			 255
#define MAX_EXPECTATIONS 100

/* Old results are looked for this long after a start, and after a failure. */
#define EXPIRE_AT_START_MS	  (10 * 1000)
#define EXPIRE_AFTER_ERROR_MS (600 * 1000)

/* What a client said of a row that it has seen, as it said it. */
typedef struct Expected
{
	char *channel; /* NULL: not given */
	char *entity;
	char *key; /* JSON */
} Expected;

typedef struct Call
{
	dlist_node node; /* in `calls` */
	uint64 connection;
	uint64 identity; /* serial */
	char *id;		 /* JSON */
	char *key;		 /* empty: none */
	int nexpected;
	Expected *expected;
	char *body; /* of the job */
	int length;
	uint64 job; /* 0: waits */
	bool answered;
} Call;

/* In the order of their coming. */
static dlist_head calls = DLIST_STATIC_INIT(calls);
static int ncalls;
static int nrunning;
static Size call_bytes;
bool calls_again;

static uint64 expire_job;
static TimestampTz expire_at; /* 0: not before somebody uses a key */
static bool expire_begun;

static void
Free(Call *call)
{
	dlist_delete(&call->node);
	ncalls--;
	call_bytes -= call->length;
	if (call->job != 0)
		nrunning--;
	calls_again = true;
	if (call->nexpected > 0)
		pfree(call->expected);
	pfree(call->key);
	pfree(call->id);
	pfree(call->body);
	pfree(call);
}

/* ---- Answers ---- */

static Connection *
Caller(const Call *call)
{
	Connection *connection = ConnectionById(call->connection);

	return connection != NULL && !connection->closing ? connection : NULL;
}

static void
AppendMember(StringInfo out, const char *name, const char *text)
{
	if (text == NULL || text[0] == '\0')
		return;
	appendStringInfo(out, ",\"%s\":", name);
	EncodeString(out, text, strlen(text));
}

static char *
Text(WireReader *body)
{
	WireBytes bytes = WireGetBytes(body);

	return bytes.data != NULL ? pnstrdup(bytes.data, bytes.length) : pstrdup("");
}

static void
TellResult(Call *call, WireReader *body)
{
	Connection *connection = Caller(call);
	WireBytes result = WireGetBytes(body);
	uint64 xid = WireGetU64(body);
	StringInfoData m;

	if (connection == NULL || body->failed)
		return;
	initStringInfo(&m);
	appendStringInfo(&m, "{\"type\":\"result\",\"id\":%s,\"result\":", call->id);
	appendBinaryStringInfo(&m, result.data, (int) result.length);
	if (xid != 0)
		appendStringInfo(&m, ",\"txid\":\"" UINT64_FORMAT "\"}", xid);
	else
		appendStringInfoString(&m, ",\"txid\":null}");
	ProtocolSend(connection, m.data, m.len);
	pfree(m.data);
}

static void
TellError(Call *call, WireReader *body)
{
	Connection *connection = Caller(call);
	char *sqlstate = Text(body);
	char *message = Text(body);
	char *hint = Text(body);
	char *detail = WireAtEnd(body) ? NULL : Text(body);
	StringInfoData m;

	if (connection == NULL)
		return;
	initStringInfo(&m);
	appendStringInfo(&m, "{\"type\":\"error\",\"id\":%s,\"code\":\"%s\",\"message\":", call->id,
					 sqlstate);
	EncodeString(&m, message, strlen(message));
	AppendMember(&m, "detail", detail);
	AppendMember(&m, "hint", hint);
	appendStringInfoChar(&m, '}');
	ProtocolSend(connection, m.data, m.len);
	pfree(m.data);
}

static void
TellConflict(Call *call, WireReader *body)
{
	Connection *connection = Caller(call);
	uint16 index = WireGetU16(body);
	WireBytes row = WireGetBytes(body);
	uint64 version = WireGetU64(body);
	Expected *expected;
	StringInfoData m;

	if (connection == NULL || body->failed || index >= call->nexpected)
		return;
	expected = &call->expected[index];
	initStringInfo(&m);
	appendStringInfo(&m, "{\"type\":\"error\",\"id\":%s,\"code\":\"40001\",\"message\":", call->id);
	appendStringInfoString(&m, row.length > 0
								   ? "\"a row that the call expects has changed\""
								   : "\"a row that the call expects is not there any more\"");
	appendStringInfoString(&m, ",\"hint\":\"The call was not run. Decide with the row of now.\"");
	appendStringInfoString(&m, ",\"conflict\":{\"channel\":");
	EncodeString(&m, expected->channel, strlen(expected->channel));
	AppendMember(&m, "entity", expected->entity);
	appendStringInfo(&m, ",\"key\":%s,\"row\":", expected->key);
	if (row.length > 0)
	{
		appendBinaryStringInfo(&m, row.data, (int) row.length);
		appendStringInfo(&m, ",\"version\":\"" UINT64_FORMAT "\"}}", version);
	}
	else
		appendStringInfoString(&m, "null,\"version\":null}}");
	ProtocolSend(connection, m.data, m.len);
	pfree(m.data);
}

static void
NoteKept(void)
{
	TimestampTz due = feed_now + setting_idempotency_age * USECS_PER_SEC;

	if (expire_at == 0 || due < expire_at)
		expire_at = due;
}

static void
OnResult(void *arg, uint64 job, QueryKind kind, WireReader *body)
{
	Call *call = arg;

	switch (kind)
	{
		case QUERY_RESULT:
			call->answered = true;
			if (call->key[0] != '\0')
				NoteKept();
			TellResult(call, body);
			break;
		case QUERY_CONFLICT:
			call->answered = true;
			TellConflict(call, body);
			break;
		case QUERY_ERROR:
			/* What goes wrong behind the commit does not concern the caller. */
			if (!call->answered)
				TellError(call, body);
			Free(call);
			break;
		case QUERY_DONE:
			Free(call);
			break;
		default:
			break;
	}
}

/* ---- What clients say ---- */

static void
Refuse(Connection *connection, const char *id, const char *sqlstate, const char *message,
	   const char *hint)
{
	ProtocolError(connection, id, NULL, sqlstate, message, hint);
}

/* The elements of an array that the parser has accepted, as text. */
static List *
SplitArray(const char *text)
{
	List *elements = NIL;
	const char *start = text + 1;
	const char *p;
	bool quoted = false;
	int depth = 0;

	for (p = text; *p != '\0'; p++)
	{
		if (quoted)
		{
			if (*p == '\\')
				p++;
			else if (*p == '"')
				quoted = false;
			continue;
		}
		if (*p == '"')
			quoted = true;
		else if (*p == '[' || *p == '{')
			depth++;
		if (depth == 1 && (*p == ',' || *p == ']'))
		{
			char *element = pnstrdup(start, p - start);

			if (strspn(element, " \t\r\n") < strlen(element))
				elements = lappend(elements, element);
			start = p + 1;
		}
		if (*p == ']' || *p == '}')
			depth--;
	}
	return elements;
}

static Source *
SourceNamed(Channel *channel, const char *entity)
{
	int i;

	if (entity == NULL)
		return channel->nsources == 1 ? channel->sources[0] : NULL;
	for (i = 0; i < channel->nsources; i++)
		if (strcmp(channel->sources[i]->entity, entity) == 0)
			return channel->sources[i];
	return NULL;
}

static bool
ReadVersion(const char *text, uint64 *version)
{
	char *end;

	if (text == NULL || text[0] < '0' || text[0] > '9' || strlen(text) > 20)
		return false;
	errno = 0;
	*version = strtou64(text, &end, 10);
	return errno == 0 && *end == '\0';
}

typedef enum Reading
{
	READ_FINE,
	READ_REFUSED, /* the client was told */
	READ_POSTPONED
} Reading;

/* One expectation; its part of the job is appended to `body`. */
static Reading
ReadExpected(Connection *connection, const char *id, const char *text, bool may_wait,
			 Expected *expected, StringInfo body)
{
	const char *problem = NULL;
	JsonMessage *object = JsonMessageParse(text, strlen(text), &problem);
	char *values[CHANNEL_PARAMS_MAX] = {0};
	Selection *selection = NULL;
	SelectionError error;
	const JsonField *key;
	const char *name;
	Size length;
	Channel *channel;
	Source *source;
	uint64 version;

	name = object != NULL ? JsonMessageString(object, "channel") : NULL;
	key = object != NULL ? JsonMessageGet(object, "key") : NULL;
	if (name == NULL || name[0] == '\0' || key == NULL || key->type != JSON_TOKEN_OBJECT_START)
	{
		Refuse(
			connection, id, "08P01",
			"\"expect\" has to be an object, or an array of objects, with \"channel\", \"key\" and \"version\"",
			NULL);
		return READ_REFUSED;
	}
	if (!ReadVersion(JsonMessageString(object, "version"), &version))
	{
		Refuse(connection, id, "22023", "\"version\" of an expected row is not a version",
			   "Send what came with the row, as a string.");
		return READ_REFUSED;
	}
	length = strcspn(name, "?");
	if (name[length] == '?')
	{
		selection = SelectionParse(name + length + 1, strlen(name) - length - 1, &error);
		if (selection == NULL)
		{
			Refuse(connection, id, error.sqlstate, error.message, error.hint);
			return READ_REFUSED;
		}
	}
	channel = length <= CHANNEL_NAME_MAX ? ChannelsFind(name, length, values) : NULL;
	if (channel == NULL)
	{
		if (may_wait)
			return READ_POSTPONED;
		Refuse(connection, id, "42704",
			   psprintf("channel \"%s\" does not exist",
						pnstrdup(name, Min(length, CHANNEL_NAME_MAX))),
			   "The view changefeed.channels lists the channels of this database.");
		return READ_REFUSED;
	}
	expected->channel = pstrdup(name);
	expected->entity = pstrdup("");
	expected->key = pstrdup(key->text);
	if (JsonMessageString(object, "entity") != NULL)
		expected->entity = pstrdup(JsonMessageString(object, "entity"));
	source = SourceNamed(channel, JsonMessageString(object, "entity"));
	if (source == NULL)
	{
		Refuse(connection, id, "42704",
			   psprintf("channel \"%s\" has no such entity", pnstrdup(name, length)),
			   "Name one of those that \"subscribed\" lists as \"entity\".");
		return READ_REFUSED;
	}
	WirePutString(body, key->text);
	WirePutU64(body, version);
	SubscribePutCheck(body, channel, values);
	SubscribePutSource(body, channel, values, source);
	WirePutString(body, selection != NULL ? name + length + 1 : "");
	return READ_FINE;
}

/* All of them.  What is kept of them is one chunk in feed_context. */
static Reading
ReadExpectations(Connection *connection, const JsonMessage *message, const char *id,
				 const char *data, Size length, Call *call, StringInfo body)
{
	const JsonField *field = JsonMessageGet(message, "expect");
	List *texts = NIL;
	Expected *list;
	Size size = 0;
	char *p;
	ListCell *lc;
	int i;

	if (field != NULL && field->type == JSON_TOKEN_OBJECT_START)
		texts = list_make1(field->text);
	else if (field != NULL && field->type == JSON_TOKEN_ARRAY_START)
		texts = SplitArray(field->text);
	else if (field != NULL && field->type != JSON_TOKEN_NULL)
		texts = list_make1(pstrdup("null"));
	if (list_length(texts) > MAX_EXPECTATIONS)
	{
		Refuse(connection, id, "54000",
			   psprintf("a call has more than %d expectations", MAX_EXPECTATIONS), NULL);
		return READ_REFUSED;
	}
	WirePutU16(body, list_length(texts));
	list = palloc0(sizeof(Expected) * Max(list_length(texts), 1));
	foreach(lc, texts)
	{
		Expected *expected = &list[foreach_current_index(lc)];
		Reading reading = ReadExpected(connection, id, lfirst(lc), true, expected, body);

		if (reading == READ_POSTPONED && !Postpone(connection, data, length))
			reading = ReadExpected(connection, id, lfirst(lc), false, expected, body);
		if (reading != READ_FINE)
			return reading;
		size += strlen(expected->channel) + strlen(expected->entity) + strlen(expected->key) + 3;
	}
	call->nexpected = list_length(texts);
	if (call->nexpected == 0)
		return READ_FINE;
	size += sizeof(Expected) * call->nexpected;
	call->expected = MemoryContextAlloc(feed_context, size);
	p = (char *) (call->expected + call->nexpected);
	for (i = 0; i < call->nexpected; i++)
	{
		call->expected[i].channel = strcpy(p, list[i].channel);
		p += strlen(p) + 1;
		call->expected[i].entity = strcpy(p, list[i].entity);
		p += strlen(p) + 1;
		call->expected[i].key = strcpy(p, list[i].key);
		p += strlen(p) + 1;
	}
	return READ_FINE;
}

static int
CallsOf(const Connection *connection)
{
	dlist_iter iter;
	int n = 0;

	dlist_foreach(iter, &calls)
	{
		if (dlist_container(Call, node, iter.cur)->connection == connection->id)
			n++;
	}
	return n;
}

static bool
MayCome(Connection *connection, const char *id, Size length)
{
	if (setting_call_workers == 0)
		Refuse(connection, id, "0A000", "calls are turned off",
			   "The setting changefeed.call_workers is 0.");
	else if (CallsOf(connection) >= MAX_CALLS_OF_CONNECTION)
		Refuse(connection, id, "53400",
			   psprintf("connection has %d calls without an answer", MAX_CALLS_OF_CONNECTION),
			   "Wait for answers before sending more calls.");
	else if (ncalls >= MAX_CALLS || call_bytes + length > MAX_CALL_BYTES)
		Refuse(connection, id, "53400", "too many calls are waiting",
			   "Try again later, or raise changefeed.call_workers.");
	else if (feed_memory >= MEMORY_FULL)
		Refuse(connection, id, "53200", "the feed has no memory for calls",
			   "Try again later, or raise changefeed.worker_memory.");
	else
		return true;
	return false;
}

void
CallMessage(Connection *connection, const JsonMessage *message, const char *id, const char *data,
			Size length)
{
	const char *function = JsonMessageString(message, "function");
	const JsonField *args = JsonMessageGet(message, "args");
	const JsonField *key = JsonMessageGet(message, "key");
	StringInfoData body;
	Call new = {0};
	Call *call;

	if (function == NULL || function[0] == '\0')
	{
		Refuse(connection, id, "08P01", "\"function\" has to be a string", NULL);
		return;
	}
	if (args != NULL && args->type != JSON_TOKEN_OBJECT_START && args->type != JSON_TOKEN_NULL)
	{
		Refuse(connection, id, "08P01", "\"args\" has to be an object",
			   "Give arguments by name, such as {\"sku\":\"a1\"}.");
		return;
	}
	if (key != NULL && key->type != JSON_TOKEN_NULL &&
		(key->type != JSON_TOKEN_STRING || key->text[0] == '\0' || strlen(key->text) > MAX_KEY))
	{
		Refuse(connection, id, "22023",
			   psprintf("\"key\" has to be a string of 1 to %d bytes", MAX_KEY),
			   "A random UUID is a good key.");
		return;
	}
	if (!MayCome(connection, id, length))
		return;

	initStringInfo(&body);
	WirePutU32(&body, connection->identity->info.role);
	WirePutString(&body, connection->identity->info.claims);
	WirePutString(&body, function);
	WirePutString(&body, args != NULL && args->type != JSON_TOKEN_NULL ? args->text : "{}");
	WirePutString(&body, key != NULL && key->type == JSON_TOKEN_STRING ? key->text : "");
	if (ReadExpectations(connection, message, id, data, length, &new, &body) != READ_FINE)
		return;

	call = MemoryContextAlloc(feed_context, sizeof(Call));
	*call = new;
	call->connection = connection->id;
	call->identity = connection->identity->serial;
	call->id = MemoryContextStrdup(feed_context, id);
	call->key = MemoryContextStrdup(feed_context,
									key != NULL && key->type == JSON_TOKEN_STRING ? key->text : "");
	call->length = body.len;
	call->body = MemoryContextAlloc(feed_context, body.len);
	memcpy(call->body, body.data, body.len);
	dlist_push_tail(&calls, &call->node);
	ncalls++;
	call_bytes += call->length;
	calls_again = true;
}

/* ---- What may run ---- */

/* Does an earlier one have to be answered first? */
static bool
Waits(const Call *call)
{
	dlist_iter iter;

	dlist_foreach(iter, &calls)
	{
		const Call *other = dlist_container(Call, node, iter.cur);

		if (other == call)
			return false;
		if (other->connection == call->connection ||
			(call->key[0] != '\0' && other->identity == call->identity &&
			 strcmp(other->key, call->key) == 0))
			return true;
	}
	return false;
}

/* True: something was. */
static bool
Submit(void)
{
	dlist_mutable_iter iter;
	bool submitted = false;

	calls_again = false;
	dlist_foreach_modify(iter, &calls)
	{
		Call *call = dlist_container(Call, node, iter.cur);

		if (call->job != 0)
			continue;
		if (Caller(call) == NULL)
		{
			Free(call);
			continue;
		}
		if (nrunning >= setting_call_workers || Waits(call))
			continue;
		call->job = QuerySubmitCall(call->body, call->length, call->key[0] != '\0', OnResult, call);
		nrunning++;
		submitted = true;
	}
	return submitted;
}

static void
OnExpired(void *arg, uint64 job, QueryKind kind, WireReader *body)
{
	uint64 seconds;

	if (kind == QUERY_EXPIRED)
	{
		seconds = WireGetU64(body);
		expire_at = seconds > 0 ? feed_now + (int64) Min(seconds, 24 * 3600) * USECS_PER_SEC : 0;
	}
	else
	{
		if (kind == QUERY_ERROR)
			expire_at = TimestampTzPlusMilliseconds(feed_now, EXPIRE_AFTER_ERROR_MS);
		expire_job = 0;
	}
}

/* Results of calls that nobody repeats any more. */
static long
Expire(void)
{
	if (!expire_begun)
	{
		expire_begun = true;
		expire_at = TimestampTzPlusMilliseconds(feed_now, EXPIRE_AT_START_MS);
	}
	if (expire_at == 0 || expire_job != 0)
		return -1;
	if (expire_at > feed_now)
		return TimestampDifferenceMilliseconds(feed_now, expire_at);
	expire_at = 0;
	/* It is short; as one of the snapshots it would interrupt those that take long. */
	expire_job = QuerySubmit(QUERY_EXPIRE, "", 0, QUERY_FIRST, OnExpired, NULL);
	return 0;
}

long
CallsAdvance(void)
{
	/* What the pool cannot hand out at once may be due at some time. */
	if (calls_again && Submit())
		return 0;
	return Expire();
}
