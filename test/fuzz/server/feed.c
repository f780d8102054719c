/*-------------------------------------------------------------------------
 *
 * feed.c
 *		What clients and gateways say to the feed worker.
 *
 * The backend is a feed worker, but for the log, which is empty and always as far
 * as it has to be (log.c is included for that), and the query workers, which
 * cannot be started: the harness answers their jobs.  The channels and functions
 * are those of setup.sql.
 *
 * Input: lines.  The first character says what comes over the link, the second
 * is the number of a connection.
 *	oCT			a WebSocket opens, with token T (a digit) or none
 *	mCtext		it says that
 *	rCT fields	an HTTP request with token T: method (G, H or P), path,
 *				Last-Event-ID, If-None-Match, Idempotency-Key, arguments between
 *				"&", body; with tabs between them
 *	cC			it is closed
 *	bC dC sC fC kC p n	LINK_BEHIND, DRAINED, SNAPSHOT_DONE, FLUSHED, COLLECTED,
 *				PING_DUE, CONNECTIONS
 *	q e			query workers answer, or fail
 *	tD			time goes on by D times D times D seconds
 *	xTbytes		a message of the type T with any bytes: a gateway that lies
 *
 * Properties: whatever clients say, no error ends the feed worker; everything
 * that it sends is well-formed, and is JSON where it has to be; when everybody
 * has left nothing of them is left.
 *
 *-------------------------------------------------------------------------
 */
#include "../../../src/log.c"

#include "fuzz.h"

#include <sys/socket.h>
#include <unistd.h>

#include "admin.h"
#include "console.h"
#include "counters.h"
#include "feed.h"
#include "feed_request.h"
#include "gateways.h"
#include "identity.h"
#include "presence.h"
#include "publish.h"
#include "query_jobs.h"
#include "selection.h"
#include "shared.h"
#include "verdicts.h"
#include "wire_write.h"

#include "mb/pg_wchar.h"
#include "nodes/pg_list.h"

#define CONNECTIONS 4

static LinkFrame *gateway_link; /* the gateway's end */
static MemoryContext turn_context;
static bool lies; /* the gateway has said something that none says */
static TimestampTz now;
static char *tokens[10];
static uint64 answered;

/* ---- the feed worker ---- */

static void
StartLog(void)
{
	my_feed = feed_shared;
	log_context = AllocSetContextCreate(TopMemoryContext, "changefeed log", ALLOCSET_DEFAULT_SIZES);
	LogOpenInit(log_context);
	capacity = MIN_CAPACITY;
	transactions = MemoryContextAlloc(log_context, sizeof(LogTransaction *) * capacity);
	base_lsn = 1;
	base_time = 7;
	begun = true;
	drained_lsn = PG_UINT64_MAX;
}

static void
Start(void)
{
	MemoryContext old;

	LWLockAcquire(shared_feeds->lock, LW_EXCLUSIVE);
	SharedAssign(&shared_feeds->feeds[0], MyDatabaseId);
	LWLockRelease(shared_feeds->lock);
	feed_shared = &shared_feeds->feeds[0];
	feed_index = 0;
	pg_atomic_write_u64(&feed_shared->epoch, 42);

	feed_context = AllocSetContextCreate(TopMemoryContext, "changefeed feed worker",
										 ALLOCSET_DEFAULT_SIZES);
	turn_context = AllocSetContextCreate(TopMemoryContext, "changefeed turn",
										 ALLOCSET_DEFAULT_SIZES);
	now = feed_now = feed_started = GetCurrentTimestamp();
	EncodePinSettings();
	StartLog();
	RegistryInit();
	gateway_count = 1;
	FeedRequestsInit();
	QueryPoolStart(feed_shared, feed_index);
	old = MemoryContextSwitchTo(turn_context);
	if (!EventsReloadCatalog())
		elog(ERROR, "the catalog cannot be read");
	tokens[1] = JwtSign("{\"role\":\"fuzz_web\",\"sub\":\"alice\",\"aud\":\"fuzz\"}");
	tokens[2] = JwtSign(
		"{\"role\":\"fuzz_web\",\"sub\":\"bob\",\"aud\":\"fuzz\",\"exp\":4000000000,\"iat\":1}");
	tokens[3] = JwtSign("{\"role\":\"nobody\",\"aud\":\"fuzz\"}");
	tokens[4] = "no.such.token";
	tokens[5] = JwtSign("{\"role\":\"fuzz_admin\",\"sub\":\"root\",\"aud\":\"fuzz\"}");
	for (int i = 1; i < 6; i++)
		tokens[i] = MemoryContextStrdup(TopMemoryContext, tokens[i]);
	MemoryContextSwitchTo(old);
}

static void
Connect(void)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0)
		Fail("no socket pair");
	gateways[0].index = 0;
	gateways[0].link = LinkFrameCreate(pair[0]);
	gateways[0].serial++;
	/* Nobody's: it is sent a signal. */
	gateways[0].pid = PG_INT32_MAX - 1;
	gateways[0].stats_asked = gateways[0].stats_answered = 0;
	gateways[0].unfinished = false;
	list_free(gateways[0].zombies);
	gateways[0].zombies = NIL;
	gateway_link = LinkFrameCreate(pair[1]);
}

/* ---- what it sends ---- */

static void
CheckJson(const char *text, Size length, const char *more)
{
	char *whole = psprintf("%.*s%s", (int) length, text, more);

	if (!FuzzJsonIsValid(whole, strlen(whole)) || strlen(whole) != length + strlen(more))
		Fail("no JSON is sent: %s", whole);
}

static void
CheckSent(const LinkMessage *message)
{
	WireReader r = WireReaderInit(message->payload, message->length);
	WireBytes bytes;
	WireBytes after;
	uint32 n;
	uint32 i;

	switch ((int) message->type)
	{
		case LINK_SEND:
		case LINK_SYNCED:
			(void) WireGetU32(&r);
			CheckJson(message->payload + 4, message->length - 4, "");
			r.offset = r.length;
			break;
		case LINK_CAST:
		case LINK_SHARE:
			n = WireGetU32(&r);
			(void) WireTake(&r, (Size) n * sizeof(uint32));
			if (!r.failed)
				CheckJson(r.data + r.offset, r.length - r.offset, "");
			r.offset = r.length;
			break;
		case LINK_IDENTITY:
			(void) WireGetU32(&r);
			(void) WireTake(&r, LINK_TAG_LENGTH);
			break;
		case LINK_CLOSE:
			(void) WireGetU32(&r);
			(void) WireGetU16(&r);
			bytes = WireGetBytes(&r);
			if (bytes.length > 123)
				Fail("the reason for closing is too long");
			break;
		case LINK_PING:
			n = WireGetU32(&r);
			(void) WireTake(&r, (Size) n * sizeof(uint32));
			bytes = WireGetBytes(&r);
			after = WireGetBytes(&r);
			if (!r.failed)
				CheckJson(psprintf("%.*s%.*s", (int) bytes.length, bytes.data, (int) after.length,
								   after.data),
						  bytes.length + after.length, "");
			break;
		case LINK_RESUME:
		case LINK_WAITING:
		case LINK_BEGIN:
			(void) WireGetU32(&r);
			break;
		case LINK_MARK:
		case LINK_SNAPSHOT_STOP:
			(void) WireGetU32(&r);
			(void) WireGetU32(&r);
			break;
		case LINK_SNAPSHOT:
			(void) WireGetU32(&r);
			(void) WireGetU32(&r);
			n = WireGetU32(&r);
			for (i = 0; i < n && !r.failed; i++)
			{
				bytes = WireGetBytes(&r);
				CheckJson(bytes.data, bytes.length, "[]}");
			}
			if (message->descriptor < 0)
				Fail("a snapshot comes without its file");
			break;
		case LINK_RESPONSE:
		{
			WireBytes type;

			(void) WireGetU32(&r);
			n = WireGetU16(&r);
			type = WireGetBytes(&r);
			bytes = WireGetBytes(&r);
			if (r.failed || n < 200 || n > 599)
				Fail("the status is %u", n);
			for (i = 0; i < bytes.length; i++)
				if ((unsigned char) bytes.data[i] < 0x20 &&
					(bytes.data[i] != '\r' || i + 1 >= bytes.length || bytes.data[i + 1] != '\n') &&
					(bytes.data[i] != '\n' || i == 0 || bytes.data[i - 1] != '\r'))
					Fail("a header has a control character");
			if (type.length == 16 && memcmp(type.data, "application/json", 16) == 0)
				CheckJson(r.data + r.offset, r.length - r.offset, "");
			r.offset = r.length;
		}
		break;
		case LINK_STREAM:
			(void) WireGetU32(&r);
			(void) WireGetU8(&r);
			(void) WireGetU8(&r);
			(void) WireGetU32(&r);
			(void) WireGetU32(&r);
			(void) WireGetBytes(&r);
			(void) WireGetBytes(&r);
			n = WireGetU16(&r);
			if (n == 0)
				Fail("a stream has no channels");
			for (i = 0; i < n; i++)
				if (WireGetBytes(&r).length > LINK_POSITION_MAX)
					Fail("a position is too long");
			break;
		case LINK_EVENT_ID:
			(void) WireGetU32(&r);
			(void) WireGetU16(&r);
			(void) WireGetU8(&r);
			(void) WireGetU8(&r);
			(void) WireGetBytes(&r);
			break;
		case LINK_STATS_ASK:
			break;
		case LINK_CONNECTIONS_ASK:
			n = WireGetU32(&r);
			(void) WireTake(&r, (Size) n * sizeof(uint32));
			break;
		case LINK_PROBE:
			(void) WireGetU64(&r);
			break;
		default:
			Fail("message %d is sent", (int) message->type);
	}
	if (!WireAtEnd(&r))
		Fail("message %d is not as it should be", (int) message->type);
}

static void
ReadSent(void)
{
	LinkMessage message;
	LinkStatus status;

	while (gateway_link != NULL && LinkFrameFill(gateway_link, 1024 * 1024) == LINK_OK)
	{
		while ((status = LinkFrameNext(gateway_link, &message)) == LINK_OK)
		{
			if (getenv("FUZZ_LOG") != NULL)
				fprintf(stderr, "sent %d: %.*s\n", (int) message.type,
						message.length > 4 ? (int) message.length - 4 : 0, message.payload + 4);
			CheckSent(&message);
			if (message.descriptor >= 0)
				close(message.descriptor);
		}
		if (status == LINK_ERROR)
			Fail("the link is damaged");
	}
}

/* ---- query workers ---- */

static void
SkipTexts(WireReader *r, int each)
{
	int n;

	for (n = WireGetU16(r) * each; n > 0; n--)
		(void) WireGetBytes(r);
}

/* The number of a job's sources, and whether it has conditions; see QUERY_SUBSCRIBE in query.h. */
static int
SourcesOf(const PoolJob *job, bool *conditions)
{
	SelectionError error;
	Selection *selection;
	WireBytes text;
	int i;
	WireReader r = WireReaderInit(job->body, job->length);
	int n;

	(void) WireGetU32(&r);
	(void) WireGetBytes(&r);
	(void) WireGetU8(&r);
	(void) WireGetBytes(&r);
	for (n = WireGetU16(&r); n > 0; n--)
	{
		(void) WireGetU8(&r);
		(void) WireGetBytes(&r);
	}
	(void) WireGetU64(&r);
	n = WireGetU16(&r);
	for (i = 0; i < n; i++)
	{
		(void) WireGetU32(&r);
		(void) WireGetBytes(&r);
		SkipTexts(&r, 1);
		SkipTexts(&r, 1);
		SkipTexts(&r, 2);
	}
	text = WireGetBytes(&r);
	if (!WireAtEnd(&r))
		Fail("a job is not as it should be");
	selection = text.length > 0 ? SelectionParse(text.data, text.length, &error) : NULL;
	if (text.length > 0 && selection == NULL)
		Fail("a job has a selection that was refused");
	*conditions = selection != NULL && selection->sql[0] != '\0';
	return n;
}

static void
Describe(StringInfo out, int index, bool source, bool conditions)
{
	resetStringInfo(out);
	WirePutU16(out, (uint16) index);
	WirePutU16(out, source ? 2 : 0);
	if (source)
	{
		WirePutU16(out, 1);
		WirePutU16(out, 2);
		WirePutString(out, "id");
		WirePutString(out, "name");
	}
	WirePutU16(out, source ? 1 : 0);
	if (source)
		WirePutU16(out, 1);
	WirePutU8(out, 0);
	WirePutU64(out, 4711);
	WirePutU32(out, 0);
	WirePutU16(out, 0);
	WirePutString(out, "");
	WirePutU8(out, 0);
	WirePutU8(out, 0);
	WirePutString(out, "");
	WirePutString(out, source && conditions ? "(id > 0)" : "");
	WirePutU16(out, source && conditions ? 1 : 0);
	if (source && conditions)
		WirePutU16(out, 1);
	WirePutU16(out, 0);
	WirePutU32(out, 0);
	WirePutU32(out, 0);
	WirePutU32(out, 0);
	WirePutU32(out, 0);
}

static void
AnswerSubscribe(PoolJob *job)
{
	bool conditions;
	int n = SourcesOf(job, &conditions);
	StringInfoData body;
	int i;

	initStringInfo(&body);
	for (i = 0; i < Max(n, 1); i++)
	{
		Describe(&body, i, n > 0, conditions);
		JobDeliver(job, QUERY_DESCRIBE, body.data, body.len);
	}
	resetStringInfo(&body);
	WirePutU32(&body, 3);
	WirePutU32(&body, 3);
	WirePutU32(&body, 0);
	WirePutU64(&body, 1);
	JobDeliver(job, QUERY_SNAPSHOT, body.data, body.len);
	for (i = 0; i < n; i++)
	{
		resetStringInfo(&body);
		WirePutU16(&body, (uint16) i);
		WirePutString(&body, "[{\"id\":1,\"name\":\"a\"}]");
		JobDeliver(job, QUERY_PAGE, body.data, body.len);
	}
	JobDeliver(job, QUERY_DONE, "", 0);
}

static void
Answer(PoolJob *job, bool well)
{
	StringInfoData body;

	answered++;
	initStringInfo(&body);
	if (!well)
	{
		WirePutString(&body, answered % 2 == 0 ? "42501" : "55P03");
		WirePutString(&body, "it did not work");
		WirePutString(&body, "Try something else.");
		WirePutString(&body, "");
		JobDeliver(job, QUERY_ERROR, body.data, body.len);
		return;
	}
	switch (job->kind)
	{
		case QUERY_SUBSCRIBE:
			AnswerSubscribe(job);
			break;
		case QUERY_CALL:
		case QUERY_EXPLAIN:
			WirePutString(&body, "{\"n\":1}");
			WirePutU64(&body, answered % 2);
			JobDeliver(job, QUERY_RESULT, body.data, body.len);
			JobDeliver(job, QUERY_DONE, "", 0);
			break;
		case QUERY_EXPIRE:
			WirePutU64(&body, 0);
			JobDeliver(job, QUERY_EXPIRED, body.data, body.len);
			JobDeliver(job, QUERY_DONE, "", 0);
			break;
		default:
			Fail("a job of kind %c", (char) job->kind);
	}
}

static void
AnswerAll(bool well)
{
	int priority;
	int left = 100;

	for (priority = 0; priority <= QUERY_CALLS; priority++)
		while (!dlist_is_empty(&job_waiting[priority]) && left-- > 0)
			Answer(JobPop(&job_waiting[priority]), well);
}

/* ---- turns ---- */

static void
Turn(void)
{
	MemoryContext old = MemoryContextSwitchTo(turn_context);
	int i;

	/* Two: what one has begun the next one goes on with. */
	for (i = 0; i < 2; i++)
	{
		feed_now = now;
		if (gateways[0].link != NULL)
			while (GatewayReceive(&gateways[0]))
				;
		VerdictsAdvance();
		(void) RecheckAdvance();
		(void) SubscribeAdvance();
		ChecksAdvance();
		PublishAdvance();
		DeliverAdvance();
		(void) PaceAdvance();
		(void) PresenceAdvance();
		VerdictsAdvance();
		(void) CallsAdvance();
		(void) ProtocolAdvance();
		(void) FeedRequestsAdvance();
		(void) AdminAdvance();
		(void) ConsoleAdvance();
		PaceTrim();
		MapFreeAll();
		GatewaysFlush();
		ReadSent();
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(turn_context);
}

/* ---- what the gateway says ---- */

static void
PutText(const char *text, Size length)
{
	LinkFramePutBytes(gateway_link, text, length);
}

static void
PutToken(char which)
{
	const char *token = which >= '0' && which <= '9' ? tokens[which - '0'] : NULL;

	if (token == NULL)
		token = "";
	PutText(token, strlen(token));
}

/* The next field of a line: up to a tab. */
static const char *
Field(const char **at, const char *end, Size *length)
{
	const char *start = *at;
	const char *tab = memchr(start, '\t', end - start);

	*length = (tab != NULL ? tab : end) - start;
	*at = tab != NULL ? tab + 1 : end;
	return start;
}

/* The gateway has decoded it, and hands on whatever bytes there are. */
static void
PutArguments(const char *text, Size length)
{
	const char *end = text + length;
	uint32 n = 0;
	const char *p;

	if (length > 0)
		for (n = 1, p = text; p < end; p++)
			n += *p == '&';
	LinkFramePutU32(gateway_link, n);
	while (n-- > 0)
	{
		const char *stop = memchr(text, '&', end - text);

		if (stop == NULL)
			stop = end;
		PutText(text, stop - text);
		text = stop < end ? stop + 1 : end;
	}
}

static void
PutRequest(const char *at, const char *end, char token)
{
	const char *field;
	Size length;
	char method;

	field = Field(&at, end, &length);
	method = length > 0 ? field[0] : 'G';
	LinkFramePutU8(gateway_link, method == 'P' ? LINK_METHOD_POST : LINK_METHOD_GET);
	LinkFramePutU8(gateway_link, method == 'H'	 ? LINK_REQUEST_HEAD
								 : method == 'L' ? LINK_REQUEST_LOOPBACK
												 : 0);
	field = Field(&at, end, &length);
	PutText(field, length);
	PutText("192.0.2.1", 9);
	PutToken(token);
	for (int i = 0; i < 3; i++)
	{
		field = Field(&at, end, &length);
		PutText(field, length);
	}
	field = Field(&at, end, &length);
	PutArguments(field, length);
	LinkFramePutRaw(gateway_link, at, end - at);
}

/* Is the number in use?  A gateway never uses one twice. */
static bool
IsOpen(uint32 number)
{
	return ConnectionFind(&gateways[0], number) != NULL;
}

static uint32 numbers[CONNECTIONS];
static uint32 last_one;

static void
NewNumber(int i)
{
	/* Of a connection that is still there the gateway tells the end first. */
	if (IsOpen(numbers[i]))
	{
		LinkFrameBegin(gateway_link, LINK_CLOSED);
		LinkFramePutU32(gateway_link, numbers[i]);
		LinkFramePutU8(gateway_link, LINK_CAUSE_CLIENT);
		LinkFrameEnd(gateway_link);
	}
	numbers[i] = ++last_one;
}

static void
Line(const char *line, const char *end)
{
	char what = line[0];
	int i = line + 1 < end ? line[1] & (CONNECTIONS - 1) : 0;
	char third = line + 2 < end ? line[2] : ' ';
	int digit = line + 1 < end && line[1] >= '0' && line[1] <= '9' ? line[1] - '0' : 1;
	const char *rest = line + Min(2, end - line);
	Connection *connection;

	if (gateway_link == NULL)
		return;
	switch (what)
	{
		case 'o':
			NewNumber(i);
			LinkFrameBegin(gateway_link, LINK_OPEN);
			LinkFramePutU32(gateway_link, numbers[i]);
			LinkFramePutU8(gateway_link, LINK_TRANSPORT_WEBSOCKET);
			PutText("192.0.2.1", 9);
			PutToken(third);
			LinkFrameEnd(gateway_link);
			break;
		case 'm':
			/* The gateway has looked whether it is UTF-8. */
			if (!pg_verify_mbstr(PG_UTF8, rest, (int) (end - rest), true) &&
				memchr(rest, '\0', end - rest) == NULL)
				return;
			LinkFrameBegin(gateway_link, LINK_MESSAGE);
			LinkFramePutU32(gateway_link, numbers[i]);
			LinkFramePutRaw(gateway_link, rest, end - rest);
			LinkFrameEnd(gateway_link);
			break;
		case 'r':
			NewNumber(i);
			LinkFrameBegin(gateway_link, LINK_REQUEST);
			LinkFramePutU32(gateway_link, numbers[i]);
			PutRequest(rest + Min(2, end - rest), end, third);
			LinkFrameEnd(gateway_link);
			break;
		case 'c':
			LinkFrameBegin(gateway_link, LINK_CLOSED);
			LinkFramePutU32(gateway_link, numbers[i]);
			LinkFramePutU8(gateway_link, third & 15);
			LinkFrameEnd(gateway_link);
			break;
		case 'b':
			LinkFrameBegin(gateway_link, LINK_BEHIND);
			LinkFramePutU32(gateway_link, numbers[i]);
			LinkFramePutU64(gateway_link, 0);
			LinkFrameEnd(gateway_link);
			break;
		case 'd':
		case 'k':
			connection = ConnectionFind(&gateways[0], numbers[i]);
			/* Only a poll that is to be told is collected. */
			if (what == 'k' && (connection == NULL || connection->http == NULL ||
								connection->http->kind != LINK_STREAM_POLL))
				return;
			LinkFrameBegin(gateway_link, what == 'd' ? LINK_DRAINED : LINK_COLLECTED);
			LinkFramePutU32(gateway_link, numbers[i]);
			LinkFrameEnd(gateway_link);
			break;
		case 's':
			LinkFrameBegin(gateway_link, LINK_SNAPSHOT_DONE);
			LinkFramePutU32(gateway_link, numbers[i]);
			LinkFramePutU32(gateway_link, (uint32) (third & 15));
			LinkFramePutU8(gateway_link, 1);
			LinkFrameEnd(gateway_link);
			break;
		case 'f':
			LinkFrameBegin(gateway_link, LINK_FLUSHED);
			LinkFramePutU32(gateway_link, numbers[i]);
			LinkFramePutU32(gateway_link, (uint32) (third & 15));
			LinkFrameEnd(gateway_link);
			break;
		case 'p':
			LinkFrameBegin(gateway_link, LINK_PING_DUE);
			LinkFramePutU32(gateway_link, CONNECTIONS);
			for (i = 0; i < CONNECTIONS; i++)
				LinkFramePutU32(gateway_link, numbers[i]);
			LinkFrameEnd(gateway_link);
			break;
		case 'n':
			LinkFrameBegin(gateway_link, LINK_CONNECTIONS);
			LinkFramePutU32(gateway_link, CONNECTIONS);
			for (i = 0; i < CONNECTIONS; i++)
			{
				LinkFramePutU32(gateway_link, numbers[i]);
				for (int k = 0; k < 4; k++)
					LinkFramePutU64(gateway_link, k);
			}
			LinkFrameEnd(gateway_link);
			break;
		case 'q':
		case 'e':
			AnswerAll(what == 'q');
			break;
		case 't':
			now += (TimestampTz) digit * digit * digit * USECS_PER_SEC;
			break;
		case 'x':
			if (line + 1 == end || line[1] == 0)
				return;
			lies = true;
			LinkFrameBegin(gateway_link, (LinkType) (unsigned char) line[1]);
			LinkFramePutRaw(gateway_link, rest, end - rest);
			LinkFrameEnd(gateway_link);
			break;
		default:
			return;
	}
	if (gateways[0].link != NULL)
		(void) LinkFrameFlush(gateway_link);
	Turn();
}

/* The gateway ends, and what waits for its clients' return is over. */
static void
Finish(void)
{
	LinkFrameDestroy(gateway_link);
	gateway_link = NULL;
	Turn();
	if (gateways[0].link != NULL)
		Fail("the feed worker does not see that the gateway has ended");
	for (int i = 0; i < 3; i++)
	{
		now += 3600 * USECS_PER_SEC;
		AnswerAll(true);
		Turn();
	}
	if (ConnectionCount() != 0 || SubscriptionCount() != 0)
		Fail("%d connections and %d subscriptions are left", ConnectionCount(),
			 SubscriptionCount());
	if (!dlist_is_empty(&all_identities))
		Fail("identities are left");
	if (QueryPoolBacklog() != 0)
		Fail("%d jobs are left", QueryPoolBacklog());
}

static void
Run(const char *data, Size size)
{
	const char *end = data + size;

	lies = false;
	last_one = 0;
	answered = 0;
	memset(numbers, 0, sizeof(numbers));
	now = feed_started;
	Connect();
	while (data < end)
	{
		const char *stop = memchr(data, '\n', end - data);

		if (stop == NULL)
			stop = end;
		if (stop > data)
			Line(data, stop);
		data = stop + 1;
	}
	Finish();
}

/* The process would end here, and its clients with it. */
static void
Failed(void)
{
	ErrorData *error;

	if (!lies)
	{
		error = CopyErrorData();
		Fail("an error ends the feed worker: %s (%s:%d)", error->message, error->filename,
			 error->lineno);
	}
	MemoryContextReset(turn_context);
	if (gateway_link != NULL)
		LinkFrameDestroy(gateway_link);
	gateway_link = NULL;
	Turn();
}

const FuzzTarget target_feed = {"feed", Start, Run, Failed};
