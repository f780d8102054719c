/*-------------------------------------------------------------------------
 *
 * subscribe.c
 *		The life of a subscription until it is ready.
 *
 *	QUERYING	a query worker finds out what the identity may see and, unless
 *				the client resumes, takes a snapshot and notes N, the WAL
 *				position behind it
 *	LOADING		the pages go to the client at its own speed
 *	CATCHUP		the transactions that the snapshot does not contain are sent,
 *				until the subscription is where its connection is
 *	READY		it takes part in the connection's frames
 *
 * Whatever shows that what it has is not usable (a barrier, a truncation, a
 * change of a table that its policies read) sends it back to QUERYING; once
 * the client was told anything, by a `resync`.  Whether a transaction is in
 * the snapshot is decided by its xid alone, never by LSN.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feed.h"
#include "gateways.h"
#include "wire_write.h"

#include <fcntl.h>
#include <unistd.h>

#include "access/transam.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* A snapshot that keeps failing for passing reasons is tried this often. */
#define MAX_ATTEMPTS 30

/* Bytes of catching up before the client has to have taken them. */
#define CATCHUP_WINDOW (64 * 1024)

/* So close to its connection, it makes it wait rather than chase it. */
#define CHASE_LIMIT 1000

static void OnResult(void *arg, uint64 job, QueryKind kind, WireReader *body);

/* ---- asking ---- */

/*
 * The source's filter for a query.  A row whose template column is null belongs
 * to no channel, so not to "*" either.
 */
static char *
FilterOf(Instance *instance, Source *source)
{
	StringInfoData filter;
	int k;

	initStringInfo(&filter);
	if (source->filter != NULL)
		appendStringInfo(&filter, "(%s)", source->filter);
	for (k = 0; k < instance->channel->template->nparams; k++)
	{
		if (instance->params[k] != NULL)
			continue;
		if (filter.len > 0)
			appendStringInfoString(&filter, " AND ");
		appendStringInfo(&filter, "%s IS NOT NULL",
						 quote_identifier(instance->channel->template->params[k]));
	}
	return filter.data;
}

static void
Submit(Subscription *s)
{
	Instance *instance = s->instance;
	Channel *channel = instance->channel;
	Identity *identity = s->connection->identity;
	StringInfoData body;
	bool rows = !s->no_snapshot && !s->from_position;
	int i;
	int k;

	initStringInfo(&body);
	WirePutU32(&body, identity->info.role);
	WirePutString(&body, identity->info.claims);
	WirePutU8(&body, rows ? QUERY_WITH_ROWS : 0);
	WirePutU16(&body, channel->nsources);
	for (i = 0; i < channel->nsources; i++)
	{
		Source *source = channel->sources[i];
		int nparams = 0;

		/* From now on a barrier of this table is noticed. */
		RelationNote(source->relid);
		WirePutU32(&body, source->relid);
		WirePutString(&body, FilterOf(instance, source));
		WirePutU16(&body, source->nkey);
		for (k = 0; k < source->nkey; k++)
			WirePutString(&body, source->key[k]);
		WirePutU16(&body, source->ncolumns);
		for (k = 0; k < source->ncolumns; k++)
			WirePutString(&body, source->columns[k]);
		for (k = 0; k < channel->template->nparams; k++)
			if (instance->params[k] != NULL)
				nparams++;
		WirePutU16(&body, nparams);
		for (k = 0; k < channel->template->nparams; k++)
		{
			if (instance->params[k] == NULL)
				continue;
			WirePutString(&body, channel->template->params[k]);
			WirePutString(&body, instance->params[k]);
		}
	}
	s->start = LogPublished();
	s->answered = false;
	s->restart = false;
	s->job = QuerySubmit(QUERY_SUBSCRIBE, body.data, body.len, QUERY_LATER, OnResult, s);
	pfree(body.data);
}

void
SubscribeStart(Subscription *s, const Position *from)
{
	const char *reason;

	s->from_position = false;
	if (from != NULL && memcmp(from->tag, s->connection->identity->tag, POSITION_TAG) == 0 &&
		LogFind(from, &s->from, &reason))
		s->from_position = true;
}

/* ---- answers ---- */

static void
ReadDescribe(Subscription *s, WireReader *r)
{
	Channel *channel = s->instance->channel;
	uint16 index = WireGetU16(r);
	View view = {0};
	int i;

	if (s->views == NULL)
		s->views = MemoryContextAllocZero(feed_context, sizeof(View *) * Max(channel->nsources, 1));
	if (r->failed || index >= channel->nsources || s->views[index] != NULL)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("malformed description from a query worker")));
	view.source_id = channel->sources[index]->id;
	view.relid = channel->sources[index]->relid;
	view.ncolumns = WireGetU16(r);
	view.columns = palloc(sizeof(int16) * Max(view.ncolumns, 1));
	for (i = 0; i < view.ncolumns; i++)
		view.columns[i] = (int16) WireGetU16(r);
	view.nkey = WireGetU16(r);
	view.key = palloc(sizeof(int16) * Max(view.nkey, 1));
	for (i = 0; i < view.nkey; i++)
		view.key[i] = (int16) WireGetU16(r);
	view.rls = WireGetU8(r);
	view.fingerprint = WireGetU64(r);
	view.ndependencies = WireGetU32(r);
	if (r->failed || view.ndependencies > r->length)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("malformed description from a query worker")));
	view.dependencies = palloc(sizeof(Oid) * Max(view.ndependencies, 1));
	for (i = 0; i < view.ndependencies; i++)
		view.dependencies[i] = WireGetU32(r);
	s->views[index] = ViewIntern(s->connection->identity, &view);
}

static void
ReadSnapshot(Subscription *s, WireReader *r)
{
	int i;

	s->xmin = WireGetU32(r);
	s->xmax = WireGetU32(r);
	s->nxip = WireGetU32(r);
	if (r->failed || s->nxip > r->length)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("malformed snapshot from a query worker")));
	s->xip = MemoryContextAlloc(feed_context, sizeof(TransactionId) * Max(s->nxip, 1));
	for (i = 0; i < s->nxip; i++)
		s->xip[i] = WireGetU32(r);
	s->snapshot_lsn = WireGetU64(r);
	s->has_snapshot = true;
}

/* Passing reasons: somebody's lock, a worker that died, a cancelled job. */
static bool
MayRetry(const char *sqlstate)
{
	return strcmp(sqlstate, "55P03") == 0 || strcmp(sqlstate, "57P01") == 0 ||
		   strncmp(sqlstate, "40", 2) == 0;
}

static void
Delay(Subscription *s)
{
	s->retry_delay = s->retry_delay == 0 ? 20 : Min(s->retry_delay * 2, 2000);
	s->retry_at = TimestampTzPlusMilliseconds(feed_now, s->retry_delay);
}

static void
OnResult(void *arg, uint64 job, QueryKind kind, WireReader *body)
{
	Subscription *s = arg;

	switch (kind)
	{
		case QUERY_DESCRIBE:
			ReadDescribe(s, body);
			break;
		case QUERY_SNAPSHOT:
			ReadSnapshot(s, body);
			break;
		case QUERY_PAGE:
		{
			uint16 index = WireGetU16(body);
			WireBytes rows = WireGetBytes(body);
			MemoryContext old = MemoryContextSwitchTo(feed_context);

			if (s->pages.data == NULL)
				initStringInfo(&s->pages);
			WirePutU32(&s->pages, index);
			WirePutU32(&s->pages, rows.length);
			appendBinaryStringInfo(&s->pages, rows.data, (int) rows.length);
			s->npages++;
			MemoryContextSwitchTo(old);
		}
		break;
		case QUERY_FILE:
		{
			WireBytes path = WireGetBytes(body);

			s->file = MemoryContextAllocZero(feed_context, path.length + 1);
			memcpy(s->file, path.data, path.length);
		}
		break;
		case QUERY_ERROR:
		{
			WireBytes sqlstate = WireGetBytes(body);
			WireBytes message = WireGetBytes(body);
			WireBytes hint = WireGetBytes(body);
			char *state = pnstrdup(sqlstate.data, sqlstate.length);

			s->job = 0;
			SubscribeForget(s);
			if (MayRetry(state) && ++s->attempts < MAX_ATTEMPTS)
				Delay(s);
			else
				SubscribeEnd(s, "error", state, pnstrdup(message.data, message.length),
							 hint.length > 0 ? pnstrdup(hint.data, hint.length) : NULL);
		}
		break;
		case QUERY_DONE:
			s->job = 0;
			s->answered = true;
			break;
		default:
			break;
	}
}

/* ---- telling the client ---- */

/* `"entities":{...}` from the views and the catalog of now. */
static void
AppendEntities(Subscription *s, StringInfo m)
{
	Channel *channel = s->instance->channel;
	int i;
	int k;

	appendStringInfoString(m, "\"entities\":{");
	for (i = 0; i < channel->nsources; i++)
	{
		Source *source = channel->sources[i];
		View *view = s->views[i];

		if (i > 0)
			appendStringInfoChar(m, ',');
		EncodeString(m, source->entity, strlen(source->entity));
		appendStringInfoString(m, ":{\"key\":[");
		for (k = 0; k < source->nkey; k++)
		{
			if (k > 0)
				appendStringInfoChar(m, ',');
			EncodeString(m, source->key[k], strlen(source->key[k]));
		}
		appendStringInfoString(m, "],\"columns\":[");
		for (k = 0; k < view->ncolumns; k++)
		{
			char *name = RelationColumnName(source->relid, view->columns[k]);

			if (k > 0)
				appendStringInfoChar(m, ',');
			EncodeString(m, name, strlen(name));
		}
		appendStringInfoString(m, "]}");
	}
	appendStringInfoChar(m, '}');
}

static void
SendSubscribed(Subscription *s, bool recovered)
{
	StringInfoData m;

	initStringInfo(&m);
	appendStringInfo(&m, "{\"type\":\"subscribed\",\"id\":%s,\"channel\":", s->request_id);
	appendBinaryStringInfo(&m, s->name->json, s->name->length);
	appendStringInfo(&m, ",\"recovered\":%s,", recovered ? "true" : "false");
	AppendEntities(s, &m);
	appendStringInfoChar(&m, '}');
	ProtocolSend(s->connection, m.data, m.len);
	s->announced = true;
	s->announced_entities = true;
	pfree(s->request_id);
	s->request_id = NULL;
}

static void
PagePrefix(Subscription *s, int source, StringInfo out)
{
	const char *entity = s->instance->channel->sources[source]->entity;

	initStringInfo(out);
	appendStringInfoString(out, "{\"type\":\"snapshot\",\"channel\":");
	appendBinaryStringInfo(out, s->name->json, s->name->length);
	appendStringInfoString(out, ",\"entity\":");
	EncodeString(out, entity, strlen(entity));
	appendStringInfoString(out, ",\"rows\":");
}

static void
SendPages(Subscription *s)
{
	Channel *channel = s->instance->channel;
	StringInfo prefixes = palloc(sizeof(StringInfoData) * Max(channel->nsources, 1));
	int i;

	for (i = 0; i < channel->nsources; i++)
		PagePrefix(s, i, &prefixes[i]);

	if (s->file != NULL)
	{
		int fd = OpenTransientFile(s->file, O_RDONLY | PG_BINARY);

		if (fd < 0)
		{
			ereport(LOG, (errcode_for_file_access(),
						  errmsg("could not open snapshot file \"%s\": %m", s->file)));
			SubscribeForget(s);
			SubscriptionSetState(s, SUB_QUERYING);
			Delay(s);
			return;
		}
		unlink(s->file);
		GatewaySnapshot(s->connection, s->id, channel->nsources, prefixes, fd);
		CloseTransientFile(fd);
		pfree(s->file);
		s->file = NULL;
		SubscriptionSetState(s, SUB_LOADING);
		return;
	}

	if (s->pages.data != NULL)
	{
		WireReader r = WireReaderInit(s->pages.data, s->pages.len);

		while (!WireAtEnd(&r))
		{
			uint32 source = WireGetU32(&r);
			WireBytes rows = WireGetBytes(&r);
			StringInfoData m;

			if (r.failed || source >= (uint32) channel->nsources)
				elog(ERROR, "malformed pages");
			initStringInfo(&m);
			appendBinaryStringInfo(&m, prefixes[source].data, prefixes[source].len);
			appendBinaryStringInfo(&m, rows.data, (int) rows.length);
			appendStringInfoChar(&m, '}');
			ProtocolSend(s->connection, m.data, m.len);
			pfree(m.data);
		}
		pfree(s->pages.data);
		memset(&s->pages, 0, sizeof(s->pages));
	}
	SubscriptionSetState(s, SUB_CATCHUP);
}

static void
SendReady(Subscription *s)
{
	StringInfoData m;
	char position[POSITION_LENGTH + 1];
	uint64 number = Max(s->cursor, s->since);
	int i;

	LogPosition(number, position);
	memcpy(position + POSITION_COMMON, s->connection->identity->tag, POSITION_TAG);
	position[POSITION_LENGTH] = '\0';
	initStringInfo(&m);
	appendStringInfoString(&m, "{\"type\":\"ready\",\"channel\":");
	appendBinaryStringInfo(&m, s->name->json, s->name->length);
	appendStringInfo(&m, ",\"position\":\"%s\"", position);
	if (s->has_snapshot)
	{
		appendStringInfo(&m,
						 ",\"snapshot\":{\"xmin\":\"" UINT64_FORMAT "\",\"xmax\":\"" UINT64_FORMAT
						 "\",\"xip\":[",
						 LogFullXid(s->xmin), LogFullXid(s->xmax));
		for (i = 0; i < s->nxip; i++)
			appendStringInfo(&m, "%s\"" UINT64_FORMAT "\"", i > 0 ? "," : "",
							 LogFullXid(s->xip[i]));
		appendStringInfoString(&m, "]}");
	}

	/* After a resync there may be other columns than `subscribed` told. */
	if (!s->announced_entities)
	{
		appendStringInfoChar(&m, ',');
		AppendEntities(s, &m);
		s->announced_entities = true;
	}
	appendStringInfoChar(&m, '}');
	ProtocolSend(s->connection, m.data, m.len);
	pfree(m.data);
}

/* ---- starting over and ending ---- */

void
SubscribeForget(Subscription *s)
{
	int i;

	if (s->job != 0)
	{
		QueryCancel(s->job);
		s->job = 0;
	}
	if (s->views != NULL)
	{
		for (i = 0; i < s->instance->channel->nsources; i++)
			if (s->views[i] != NULL)
				ViewRelease(s->connection->identity, s->views[i]);
		pfree(s->views);
		s->views = NULL;
	}
	if (s->pages.data != NULL)
		pfree(s->pages.data);
	memset(&s->pages, 0, sizeof(s->pages));
	s->npages = 0;
	if (s->file != NULL)
	{
		unlink(s->file);
		pfree(s->file);
		s->file = NULL;
	}
	if (s->state == SUB_LOADING)
		GatewaySnapshotStop(s->connection, s->id);
	if (s->xip != NULL)
		pfree(s->xip);
	s->xip = NULL;
	s->has_snapshot = false;
	s->answered = false;
}

void
SubscribeResync(Subscription *s, const char *reason)
{
	/* Told once per episode: until `ready` nothing is promised anyway. */
	if (s->announced && (s->state == SUB_READY || s->told_rows))
	{
		StringInfoData m;

		initStringInfo(&m);
		appendStringInfoString(&m, "{\"type\":\"resync\",\"channel\":");
		appendBinaryStringInfo(&m, s->name->json, s->name->length);
		appendStringInfo(&m, ",\"reason\":\"%s\"}", reason);
		ProtocolSend(s->connection, m.data, m.len);
		pfree(m.data);
		pg_atomic_fetch_add_u64(&feed_shared->feed_resyncs, 1);
	}
	s->told_rows = false;
	s->announced_entities = false;
	SubscribeForget(s);
	SubscriptionSetState(s, SUB_QUERYING);
	s->from_position = false;

	/*
	 * The first one at once; what keeps happening (a policy that reads a table
	 * which changes all the time) must not keep the query workers busy.
	 */
	if (TimestampDifferenceExceeds(s->resynced_at, feed_now, 5000))
	{
		s->retry_delay = 0;
		s->retry_at = 0;
	}
	else
		Delay(s);
	s->resynced_at = feed_now;
}

void
SubscribeEnd(Subscription *s, const char *reason, const char *sqlstate, const char *message,
			 const char *hint)
{
	StringInfoData m;

	if (!s->announced)
		ProtocolError(s->connection, s->request_id, s->name, sqlstate, message, hint);
	else
	{
		initStringInfo(&m);
		appendStringInfoString(&m, "{\"type\":\"revoked\",\"channel\":");
		appendBinaryStringInfo(&m, s->name->json, s->name->length);
		appendStringInfo(&m, ",\"reason\":\"%s\"",
						 strcmp(sqlstate, "42501") == 0 ? "permission_denied" : reason);
		appendStringInfo(&m, ",\"code\":\"%s\",\"message\":", sqlstate);
		EncodeString(&m, message, strlen(message));
		if (hint != NULL)
		{
			appendStringInfoString(&m, ",\"hint\":");
			EncodeString(&m, hint, strlen(hint));
		}
		appendStringInfoChar(&m, '}');
		ProtocolSend(s->connection, m.data, m.len);
		pfree(m.data);
	}
	pg_atomic_fetch_add_u64(&feed_shared->feed_denials, 1);
	SubscriptionFree(s);
}

static void
MoveOrEnd(Subscription *s, void *arg)
{
	Channel *old = arg;
	Channel *replacement = old->replacement;
	bool was_ready = s->state == SUB_READY;

	if (replacement == NULL || strcmp(replacement->name, old->name) != 0)
	{
		SubscribeEnd(s, "channel_dropped", "42704",
					 psprintf("channel \"%s\" was dropped", old->name), NULL);
		return;
	}
	SubscribeResync(s, "channel_changed");
	if (was_ready)
		s->retry_at = 0;
	SubscriptionMove(s, InstanceIntern(replacement, s->instance->params));
}

void
SubscribeChannelChanged(Channel *channel)
{
	SubscriptionForEach(channel, MoveOrEnd, channel);
}

void
SubscribeSnapshotDone(Subscription *s, bool ok)
{
	if (s->state != SUB_LOADING)
		return;
	if (!ok)
	{
		SubscribeResync(s, "snapshot_failed");
		return;
	}
	SubscriptionSetState(s, SUB_CATCHUP);
}

/* ---- moving on ---- */

/* Was the transaction committed for the snapshot? */
static bool
InSnapshot(Subscription *s, LogTransaction *transaction)
{
	TransactionId xid = (TransactionId) transaction->commit.xid;
	int i;

	if (TransactionIdPrecedes(xid, s->xmin))
		return true;
	if (TransactionIdFollowsOrEquals(xid, s->xmax))
		return false;
	for (i = 0; i < s->nxip; i++)
		if (s->xip[i] == xid)
			return false;
	return true;
}

/* Were channels or sources defined anew? */
static bool
ChangesCatalog(const LogTransaction *transaction)
{
	int i;

	for (i = 0; i < transaction->nbarriers; i++)
		if (transaction->barriers[i].kind == BARRIER_CATALOG)
			return true;
	return false;
}

/*
 * The answer is complete.  Before the client is told anything: is it still
 * good, given all that has been published since the question?
 */
static void
UseAnswer(Subscription *s)
{
	uint64 number;

	if (s->from_position)
	{
		/* A resume: nothing since the position may concern it as a whole. */
		for (number = s->from + 1; number <= LogPublished(); number++)
		{
			LogTransaction *transaction = LogGet(number);

			/* The client's rows are those of the definition of then. */
			if (transaction == NULL || ChangesCatalog(transaction) ||
				EventConcerns(s, transaction, false) != NULL)
			{
				SubscribeForget(s);
				s->from_position = false;
				return; /* asks for a snapshot in the next turn */
			}
		}
		s->cursor = s->from;
		s->since = s->from;
		s->attempts = 0;
		if (!s->announced)
			SendSubscribed(s, true);
		SubscriptionSetState(s, SUB_CATCHUP);
		return;
	}

	if (s->has_snapshot)
	{
		uint64 until;

		if (!LogReached(s->snapshot_lsn))
			return;
		until = LogNumberAt(s->snapshot_lsn);
		for (number = s->start + 1; number <= until; number++)
		{
			LogTransaction *transaction = LogGet(number);

			if (transaction == NULL ||
				EventConcerns(s, transaction, InSnapshot(s, transaction)) != NULL)
			{
				SubscribeForget(s);
				Delay(s);
				return;
			}
		}
		s->since = until;
	}
	else
		s->since = s->start;
	s->cursor = s->start;
	s->attempts = 0;
	if (!s->announced)
		SendSubscribed(s, false);
	s->told_rows = true;
	if (s->has_snapshot)
		SendPages(s);
	else
		SubscriptionSetState(s, SUB_CATCHUP);
}

static void
CatchUp(Subscription *s)
{
	Connection *connection = s->connection;
	uint64 target = connection->live ? LogPublished() : connection->cursor;
	Size sent = 0;

	/* The connection itself is further back: it has to come here first. */
	if (target < s->since || connection->mark != 0)
		return;

	while (s->cursor < target)
	{
		LogTransaction *transaction = LogGet(s->cursor + 1);

		if (transaction == NULL)
		{
			SubscribeResync(s, "history_truncated");
			return;
		}
		if (!(s->has_snapshot && transaction->number <= s->since && InSnapshot(s, transaction)))
		{
			const char *reason = EventConcerns(s, transaction, false);

			if (reason != NULL)
			{
				SubscribeResync(s, reason);
				return;
			}
			if (!DeliverTo(s, transaction, &sent))
			{
				/* Close behind: the connection waits for it. */
				if (s->state == SUB_CATCHUP && !s->holds && target - s->cursor < CHASE_LIMIT)
				{
					s->holds = true;
					connection->held++;
				}
				return;
			}
		}
		s->cursor++;
		if (sent > CATCHUP_WINDOW)
		{
			connection->mark = MARK_REPLAY;
			GatewayMark(connection, MARK_REPLAY);
			return;
		}
	}

	s->since = Max(s->since, s->cursor);
	SendReady(s);
	s->told_rows = true;
	s->retry_delay = 0;
	SubscriptionSetState(s, SUB_READY);
}

long
SubscribeAdvance(void)
{
	long wait = -1;
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &all_subscriptions_working)
	{
		Subscription *s = dlist_container(Subscription, work_node, iter.cur);

		if (s->connection->closing || s->connection->identity == NULL)
			continue;
		if (s->state == SUB_QUERYING)
		{
			if (s->answered)
				UseAnswer(s);
			else if (s->job == 0)
			{
				if (s->retry_at <= feed_now)
					Submit(s);
				else
				{
					long ms = Max(TimestampDifferenceMilliseconds(feed_now, s->retry_at), 1);

					wait = wait < 0 ? ms : Min(wait, ms);
				}
			}
		}
		if (s->state == SUB_CATCHUP)
			CatchUp(s);
	}
	return wait;
}
