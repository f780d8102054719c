/*-------------------------------------------------------------------------
 *
 * subscribe_query.c
 *		A subscription's question to the query workers, and their answer.
 *
 * The question is what its identity may see, and unless the client resumes or
 * wants no snapshot, which rows there are.  The answer is kept with the
 * subscription until subscribe.c uses it.
 *
 * Process: feed worker.  Memory: what is kept is in feed_context.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "audience.h"
#include "policy_rule.h"
#include "subscribe.h"
#include "wire_write.h"

#include "utils/builtins.h"
#include "utils/memutils.h"

/* A snapshot that keeps failing for passing reasons is tried this often. */
#define MAX_ATTEMPTS 30

/* ---- asking ---- */

/*
 * The source's filter for a query.  A row whose template column is null belongs
 * to no channel, so not to "*" either.
 */
static char *
FilterOf(Channel *channel, char *const *params, Source *source)
{
	StringInfoData filter;
	int k;

	initStringInfo(&filter);
	if (source->filter != NULL)
		appendStringInfo(&filter, "(%s)", source->filter);
	for (k = 0; k < channel->template->nparams; k++)
	{
		if (params[k] != NULL)
			continue;
		if (filter.len > 0)
			appendStringInfoString(&filter, " AND ");
		appendStringInfo(&filter, "%s IS NOT NULL", quote_identifier(channel->template->params[k]));
	}
	return filter.data;
}

static void
PutCheck(StringInfo body, Channel *channel, char *const *params, const char *check)
{
	int nparams = channel->template->nparams;
	int i;

	WirePutString(body, check != NULL ? check : "");
	WirePutU16(body, nparams);
	for (i = 0; i < nparams; i++)
	{
		WirePutU8(body, params[i] != NULL);
		WirePutString(body, params[i] != NULL ? params[i] : "");
	}
}

void
SubscribePutCheck(StringInfo body, Channel *channel, char *const *params)
{
	PutCheck(body, channel, params, channel->join_check);
}

void
SubscribePutSource(StringInfo body, Channel *channel, char *const *params, Source *source)
{
	int nparams = 0;
	int k;

	WirePutU32(body, source->relid);
	WirePutString(body, FilterOf(channel, params, source));
	WirePutU16(body, source->nkey);
	for (k = 0; k < source->nkey; k++)
		WirePutString(body, source->key[k]);
	WirePutU16(body, source->ncolumns);
	for (k = 0; k < source->ncolumns; k++)
		WirePutString(body, source->columns[k]);
	for (k = 0; k < channel->template->nparams; k++)
		if (params[k] != NULL)
			nparams++;
	WirePutU16(body, nparams);
	for (k = 0; k < channel->template->nparams; k++)
	{
		if (params[k] == NULL)
			continue;
		WirePutString(body, channel->template->params[k]);
		WirePutString(body, params[k]);
	}
}

void
SubscribeBeginQuestion(Channel *channel, char *const *params, const char *check, Identity *identity,
					   uint8 flags, StringInfo body)
{
	initStringInfo(body);
	WirePutU32(body, identity->info.role);
	WirePutString(body, identity->info.claims);
	WirePutU8(body, flags);
	PutCheck(body, channel, params, check);
	WirePutU64(body, RecheckSeed());
}

void
SubscribeQuestion(Instance *instance, Identity *identity, const char *selection, uint8 flags,
				  StringInfo body)
{
	Channel *channel = instance->channel;
	int i;

	SubscribeBeginQuestion(channel, instance->params, channel->join_check, identity, flags, body);
	WirePutU16(body, channel->nsources);
	for (i = 0; i < channel->nsources; i++)
	{
		/* From now on a barrier of this table is noticed. */
		RelationNote(channel->sources[i]->relid);
		SubscribePutSource(body, channel, instance->params, channel->sources[i]);
	}
	WirePutString(body, selection != NULL ? selection : "");
}

void
SubscribeAsk(Subscription *s)
{
	bool rows = !s->no_snapshot && !s->load->from_position;
	uint8 flags = rows ? QUERY_WITH_ROWS : QUERY_WITH_POSITION;
	StringInfoData body;

	if (rows && s->versions)
		flags |= QUERY_WITH_VERSIONS;

	SubscribeQuestion(s->instance, s->connection->identity, s->selection, flags, &body);
	s->load->start = LogPublished();
	s->load->asked_at = feed_now;
	SubscribeAnswerAsk(s, &body);
	if (rows)
		SubscribeFetchBegin(s);
	pfree(body.data);
}

/* ---- answers ---- */

/*
 * A description from a query worker, as a view in the current context; its rule
 * and its names are referenced.
 */
static int
ReadView(Channel *channel, Audience *audience, WireReader *r, View *result)
{
	uint16 index = WireGetU16(r);
	View view = {0};
	int ncasts;
	int16 *casts;
	WireBytes narrowing;
	WireBytes rule;
	StringInfoData names;
	int i;

	if (r->failed || index >= channel->nviews)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("malformed description from a query worker")));
	if (channel->nsources > 0)
	{
		view.source_id = channel->sources[index]->id;
		view.relid = channel->sources[index]->relid;
	}
	else
		audience = NULL; /* nothing could be selected from */
	view.ncolumns = WireGetU16(r);
	view.columns = palloc(sizeof(int16) * Max(view.ncolumns, 1));
	for (i = 0; i < view.ncolumns; i++)
		view.columns[i] = (int16) WireGetU16(r);
	initStringInfo(&names);
	for (i = 0; i < view.ncolumns; i++)
	{
		WireBytes name = WireGetBytes(r);

		appendBinaryStringInfo(&names, name.data, (int) name.length);
		appendStringInfoChar(&names, '\0');
	}
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
	{
		view.dependencies[i] = WireGetU32(r);
		RelationNote(view.dependencies[i]);
	}
	ncasts = WireGetU16(r);
	casts = palloc(sizeof(int16) * Max(ncasts, 1));
	for (i = 0; i < ncasts; i++)
		casts[i] = (int16) WireGetU16(r);
	narrowing = WireGetBytes(r);
	view.functions = WireGetU8(r) != 0;
	view.recheck = WireGetU8(r);
	rule = WireGetBytes(r);
	AudienceDescribe(audience, index, r);
	if (!WireAtEnd(r))
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("malformed description from a query worker")));
	view.narrowing = unconstify(char *, narrowing.data);
	view.narrowing_length = (int) narrowing.length;
	view.casts = CastListIntern(casts, ncasts);
	view.rule = PolicyRuleIntern(view.relid, rule.data, (int) rule.length);
	view.names = ColumnNamesIntern(names.data, names.len);

	/* Their values come with the verdict. */
	if (view.casts != NULL && view.rls == 0)
		view.rls = 1;
	*result = view;
	return index;
}

void
SubscribeReadView(Identity *identity, Channel *channel, Audience *audience, View **views,
				  WireReader *r)
{
	MemoryContext work = AllocSetContextCreate(CurrentMemoryContext, "changefeed description",
											   ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(work);
	View view;
	int index = ReadView(channel, audience, r, &view);

	if (views[index] != NULL)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("malformed description from a query worker")));
	views[index] = ViewIntern(identity, &view);
	PolicyRuleRelease(view.rule);
	ColumnNamesRelease(view.names);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(work);
}

int
SubscribeReadChannel(WireReader *r, bool *allowed, Oid **relids, bool *recheck)
{
	int n;
	int i;

	(void) WireGetU16(r); /* index */
	(void) WireGetU16(r); /* columns */
	(void) WireGetU16(r); /* key */
	*allowed = WireGetU8(r) == 0;
	(void) WireGetU64(r);
	n = WireGetU32(r);
	if (r->failed || n < 0 || n > r->length)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("malformed description from a query worker")));
	*relids = palloc(sizeof(Oid) * Max(n, 1));
	for (i = 0; i < n; i++)
		(*relids)[i] = WireGetU32(r);
	(void) WireGetU16(r); /* casts */
	(void) WireGetBytes(r);
	(void) WireGetU8(r);
	*recheck = WireGetU8(r) != 0;
	if (r->failed)
		*allowed = false;
	return n;
}

bool
SubscribeSameView(Subscription *s, WireReader *r)
{
	View view;
	View *mine = s->views[ReadView(s->instance->channel, NULL, r, &view)];

	PolicyRuleRelease(view.rule);
	ColumnNamesRelease(view.names);
	if (view.rule != NULL && mine->rule != NULL && view.rule != mine->rule)
		return false;
	return view.fingerprint == mine->fingerprint && view.rls == mine->rls &&
		   view.ncolumns == mine->ncolumns &&
		   memcmp(view.columns, mine->columns, sizeof(int16) * view.ncolumns) == 0;
}

void
SubscribeSetViews(Subscription *s, View **views)
{
	Identity *identity = s->connection->identity;
	int n = s->instance->channel->nviews;
	View **before = s->views;
	int i;

	s->views = NULL;
	if (views != NULL)
	{
		/* With one source, as nearly always, they need no memory of their own. */
		Assert(before == NULL);
		s->views = n == 1 ? &s->view : MemoryContextAlloc(feed_context, sizeof(View *) * n);
		for (i = 0; i < n; i++)
		{
			s->views[i] = views[i];
			if (views[i] != NULL)
				ViewKeep(identity, views[i]);
		}
	}
	if (before == NULL)
		return;
	for (i = 0; i < n; i++)
		if (before[i] != NULL)
			ViewRelease(identity, before[i]);
	if (before != &s->view)
		pfree(before);
}

void
SubscribeReadSnapshot(SubscribeSnapshot *snapshot, WireReader *r)
{
	int i;

	snapshot->xmin = WireGetU32(r);
	snapshot->xmax = WireGetU32(r);
	snapshot->nxip = WireGetU32(r);
	if (r->failed || snapshot->nxip > r->length)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("malformed snapshot from a query worker")));
	snapshot->xip = palloc(sizeof(TransactionId) * Max(snapshot->nxip, 1));
	for (i = 0; i < snapshot->nxip; i++)
		snapshot->xip[i] = WireGetU32(r);
	snapshot->lsn = WireGetU64(r);
}

/* Others' snapshots take the space: it waits for as long as they do. */
static bool
NoSpace(const char *sqlstate)
{
	return strcmp(sqlstate, QUERY_NO_SPACE) == 0;
}

/* Passing reasons: somebody's lock, a worker that died, a cancelled job. */
bool
SubscribeMayRetry(const char *sqlstate)
{
	return NoSpace(sqlstate) || strcmp(sqlstate, "55P03") == 0 || strcmp(sqlstate, "57P01") == 0 ||
		   strncmp(sqlstate, "40", 2) == 0;
}

void
SubscribeDelay(Subscription *s)
{
	s->load->retry_delay = s->load->retry_delay == 0 ? 20 : Min(s->load->retry_delay * 2, 2000);
	s->load->retry_at = TimestampTzPlusMilliseconds(feed_now, s->load->retry_delay);
	subscribe_again = true;
}

void
SubscribeFailed(Subscription *s, const char *sqlstate, const char *message, const char *hint)
{
	SubscribeForget(s);
	if (NoSpace(sqlstate) || (SubscribeMayRetry(sqlstate) && ++s->load->attempts < MAX_ATTEMPTS))
		SubscribeDelay(s);
	else
		SubscribeEnd(s, "error", sqlstate, message, hint);
}

void
SubscribeReadAnswer(SubscribeAnswer *answer, QueryKind kind, WireReader *body)
{
	MemoryContext turn = MemoryContextSwitchTo(GetMemoryChunkContext(answer));

	switch (kind)
	{
		case QUERY_DESCRIBE:
		{
			/* All who wait for it are on the instance, with the same conditions. */
			SubscriptionLoad *load = dlist_head_element(SubscriptionLoad, answer_node,
														&answer->subscriptions);
			Channel *channel = answer->instance->channel;

			if (answer->views == NULL)
			{
				answer->nviews = channel->nviews;
				answer->views = palloc0(sizeof(View *) * channel->nviews);
			}

			/* What it leaves behind goes with the turn, not with the last answer. */
			MemoryContextSwitchTo(turn);
			SubscribeReadView(answer->identity, channel, load->subscription->audience,
							  answer->views, body);
		}
		break;
		case QUERY_SNAPSHOT:
			SubscribeReadSnapshot(&answer->snapshot, body);
			break;
		case QUERY_DIGEST:
			answer->digest.a = WireGetU64(body);
			answer->digest.b = WireGetU64(body);
			answer->rows = WireGetU64(body);
			break;
		case QUERY_PAGE:
		{
			uint16 index = WireGetU16(body);
			WireBytes rows = WireGetBytes(body);

			if (answer->pages.data == NULL)
				initStringInfo(&answer->pages);
			WirePutU32(&answer->pages, index);
			WirePutU32(&answer->pages, rows.length);
			appendBinaryStringInfo(&answer->pages, rows.data, (int) rows.length);
		}
		break;
		case QUERY_FILE:
		{
			WireBytes path = WireGetBytes(body);

			answer->file = pnstrdup(path.data, path.length);
			SubscribePagesFile(answer, WireGetU64(body));
		}
		break;
		default:
			break;
	}
	MemoryContextSwitchTo(turn);
}
