/*-------------------------------------------------------------------------
 *
 * deliver.c
 *		From a published transaction to frames.
 *
 * For every row that a transaction changed (map.c) the subscriptions of the
 * channels concerned are looked up, and for each the four cases are decided on
 * what its identity may see before and after.  Subscriptions that get the same
 * bytes share one fragment; the gateway joins the fragments of a transaction
 * into one frame per connection.
 *
 * A connection takes part at once while it is live.  When a verdict is missing
 * (verdicts.c), the gateway is choked, or a subscription that catches up wants
 * it to wait, it stays behind with a cursor of its own and is moved later,
 * together with all that are at the same transaction: the order of commits
 * within a connection is never broken.
 *
 * Process: feed worker.  Memory: everything made here lives in the turn.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feed.h"
#include "gateways.h"

#include "utils/datum.h"
#include "utils/memutils.h"

/* Bytes that a connection which is behind gets before it has to drain. */
#define REPLAY_WINDOW (128 * 1024)

/* One change as JSON, and who gets it. */
typedef struct Fragment
{
	MapEntry *entry;
	View *view; /* any with these columns */
	Spelling *name;
	SourceAction action;
	bool complete; /* whole row, even for merge */
	StringInfoData json;
	int count[MAX_GATEWAYS];
	int room[MAX_GATEWAYS];
	uint32 *numbers[MAX_GATEWAYS];
} Fragment;

typedef struct Delivery
{
	LogTransaction *transaction;
	TransactionMap *map;
	List *removes; /* of Fragment */
	List *others;
	List *current;	  /* fragments of the entry at hand */
	List *unreadable; /* subscriptions that cannot get their change */

	/* Who takes part: the live ones, a group, or one subscription. */
	uint64 group;  /* 0: live connections */
	List *members; /* of the group: Connection */
	Subscription *only;

	uint64 run;	  /* number of this run, for those taken out */
	bool asking;  /* first pass: find missing verdicts */
	bool missing; /* `only` cannot be sent its changes yet */
	Size bytes;	  /* of fragments, per receiver */
} Delivery;

/* Groups and runs are numbered so that marks need not be cleared. */
static uint64 last_group;
static uint64 last_run;

static bool
TakesPart(Delivery *d, Subscription *s)
{
	Connection *connection = s->connection;

	if (d->only != NULL)
		return s == d->only;
	if (s->state != SUB_READY || s->since >= d->transaction->number || connection->closing)
		return false;

	/* All verdicts that it lacks are asked for at once. */
	if (d->asking && connection->taken_out == d->run)
		return true;
	return d->group == 0 ? connection->live : connection->group == d->group;
}

/* Is the image visible to the subscription's identity? */
static Verdict
Judge(Delivery *d, Subscription *s, View *view, int image)
{
	Verdict verdict;

	if (view->rls == 0)
		return VERDICT_VISIBLE;
	if (view->rls == 2)
		return VERDICT_HIDDEN;
	verdict = VerdictGet(d->map, s->connection->identity, view->relid, image);
	if (verdict == VERDICT_UNKNOWN)
		VerdictAsk(d->map, s->connection->identity, view, image);
	return verdict;
}

/* Which of the view's columns differ between the images, as sent. */
static int
ChangedColumns(MapEntry *entry, TransactionMap *map, View *view, int16 *changed)
{
	MapImage *before = &map->images[entry->old_image];
	MapImage *after = &map->images[entry->new_image];
	bool whole_before = !before->incomplete;
	int n = 0;
	int i;

	for (i = 0; i < view->ncolumns; i++)
	{
		int16 attno = view->columns[i];
		Form_pg_attribute att;
		Datum x = before->values[attno - 1];
		Datum y = after->values[attno - 1];
		bool xnull = before->isnull[attno - 1];
		bool ynull = after->isnull[attno - 1];
		StringInfoData a;
		StringInfoData b;

		if (attno > after->desc->tupdesc->natts)
			continue;
		att = TupleDescAttr(after->desc->tupdesc, attno - 1);

		/* Not in the WAL because it did not change. */
		if (!ynull && RecordValueIsUnchanged(after->desc, attno, y))
			continue;
		if (!whole_before || before->desc != after->desc)
		{
			changed[n++] = attno;
			continue;
		}
		if (xnull && ynull)
			continue;
		if (xnull != ynull)
		{
			changed[n++] = attno;
			continue;
		}
		if (datum_image_eq(x, y, att->attbyval, att->attlen))
			continue;

		/* Different bytes, such as a compressed copy, may be the same value. */
		initStringInfo(&a);
		initStringInfo(&b);
		EncodeValue(entry->layout->encoder, &a, attno, x, false);
		EncodeValue(entry->layout->encoder, &b, attno, y, false);
		if (a.len != b.len || memcmp(a.data, b.data, a.len) != 0)
			changed[n++] = attno;
		pfree(a.data);
		pfree(b.data);
	}
	return n;
}

/* Is every value that the view sends known in the new image? */
static bool
RowIsKnown(MapEntry *entry, TransactionMap *map, View *view)
{
	MapImage *after = &map->images[entry->new_image];
	int i;

	if (!after->incomplete)
		return true;
	for (i = 0; i < view->ncolumns; i++)
	{
		int16 attno = view->columns[i];

		if (!after->isnull[attno - 1] &&
			RecordValueIsUnchanged(after->desc, attno, after->values[attno - 1]))
			return false;
	}
	return true;
}

static const char *const action_names[] = {
	[ACTION_APPEND] = "append",
	[ACTION_MERGE] = "merge",
	[ACTION_REPLACE] = "replace",
	[ACTION_REMOVE] = "remove",
};

/* Writes the change.  False: nothing visible has changed. */
static bool
EncodeFragment(Delivery *d, Fragment *f, bool in_before)
{
	MapEntry *entry = f->entry;
	MapImage *after = entry->new_image >= 0 ? &d->map->images[entry->new_image] : NULL;
	int16 *columns = f->view->columns;
	int ncolumns = f->view->ncolumns;

	if (in_before && f->action != ACTION_REMOVE)
	{
		int16 *changed = palloc(sizeof(int16) * Max(ncolumns, 1));
		int nchanged = ChangedColumns(entry, d->map, f->view, changed);

		if (nchanged == 0)
			return false;
		if (f->action == ACTION_MERGE && !f->complete)
		{
			columns = changed;
			ncolumns = nchanged;
		}
	}

	initStringInfo(&f->json);
	appendStringInfoString(&f->json, "{\"channel\":");
	appendBinaryStringInfo(&f->json, f->name->json, f->name->length);
	appendStringInfoString(&f->json, ",\"entity\":");
	EncodeString(&f->json, entry->source->entity, strlen(entry->source->entity));
	appendStringInfo(&f->json, ",\"op\":\"%s\",\"key\":", action_names[f->action]);
	appendBinaryStringInfo(&f->json, entry->key, entry->key_length);
	if (f->action != ACTION_REMOVE)
	{
		appendStringInfoString(&f->json, f->action == ACTION_MERGE ? ",\"set\":" : ",\"row\":");
		EncodeRow(entry->layout->encoder, &f->json, columns, ncolumns, after->values,
				  after->isnull);
	}
	appendStringInfoChar(&f->json, '}');
	return true;
}

static bool
SameColumns(const View *a, const View *b)
{
	return a == b || (a->ncolumns == b->ncolumns &&
					  memcmp(a->columns, b->columns, sizeof(int16) * a->ncolumns) == 0);
}

static void
AddReceiver(Delivery *d, MapEntry *entry, Subscription *s, View *view, SourceAction action,
			bool in_before, bool complete)
{
	Fragment *f = NULL;
	ListCell *lc;
	int g = s->connection->gateway->index;

	foreach(lc, d->current)
	{
		Fragment *other = lfirst(lc);

		if (other->action == action && other->name == s->name && other->complete == complete &&
			SameColumns(other->view, view))
		{
			f = other;
			break;
		}
	}
	if (f == NULL)
	{
		f = palloc0(sizeof(Fragment));
		f->entry = entry;
		f->view = view;
		f->name = s->name;
		f->action = action;
		f->complete = complete;
		d->current = lappend(d->current, f);
		if (EncodeFragment(d, f, in_before))
		{
			if (action == ACTION_REMOVE)
				d->removes = lappend(d->removes, f);
			else
				d->others = lappend(d->others, f);
		}
	}
	if (f->json.data == NULL)
		return; /* nothing that they can see has changed */

	if (f->count[g] == f->room[g])
	{
		f->room[g] = Max(4, f->room[g] * 2);
		if (f->numbers[g] == NULL)
			f->numbers[g] = palloc(sizeof(uint32) * f->room[g]);
		else
			f->numbers[g] = repalloc_huge(f->numbers[g], sizeof(uint32) * f->room[g]);
	}
	f->numbers[g][f->count[g]++] = s->connection->number;
	d->bytes += f->json.len + 1;
}

/* One subscription, one changed row. */
static void
Consider(Delivery *d, MapEntry *entry, Subscription *s, bool in_before, bool in_after)
{
	Connection *connection = s->connection;
	Source *source = entry->source;
	View *view;
	Verdict before = VERDICT_HIDDEN;
	Verdict after = VERDICT_HIDDEN;
	SourceAction action;
	bool complete = false;

	if (!TakesPart(d, s))
		return;
	view = s->views[source->index];
	if (view->rls == 2)
		return;

	/* What is only partly known cannot be judged. */
	if (view->rls == 1 && ((in_before && d->map->images[entry->old_image].incomplete) ||
						   (in_after && d->map->images[entry->new_image].incomplete)))
	{
		if (!d->asking)
			d->unreadable = list_append_unique_ptr(d->unreadable, s);
		return;
	}

	if (in_before)
		before = Judge(d, s, view, entry->old_image);
	if (in_after)
		after = Judge(d, s, view, entry->new_image);
	if (before <= VERDICT_ASKED || after <= VERDICT_ASKED)
	{
		/* Its connection stays where it is until the verdict is there. */
		Assert(d->asking);
		if (d->only != NULL)
			d->missing = true;
		else
		{
			if (connection->live)
				ConnectionSetBehind(connection, d->transaction->number - 1);
			connection->group = 0;
			connection->taken_out = d->run;
			connection->waits_verdict = true;
		}
		return;
	}
	if (d->asking)
		return;

	in_before = before == VERDICT_VISIBLE;
	in_after = after == VERDICT_VISIBLE;
	if (in_before && in_after)
		action = source->on_update;
	else if (in_after)
		action = source->on_insert;
	else if (in_before)
		action = source->on_delete;
	else
		return;
	if (action == ACTION_IGNORE)
		return;

	if (action == ACTION_MERGE && !in_before)
		complete = true;
	if (s->no_snapshot && action != ACTION_REMOVE)
		action = ACTION_REPLACE;
	if (action != ACTION_REMOVE && (action != ACTION_MERGE || complete) &&
		!RowIsKnown(entry, d->map, view))
	{
		d->unreadable = list_append_unique_ptr(d->unreadable, s);
		return;
	}
	AddReceiver(d, entry, s, view, action, in_before && in_after, complete);
}

static bool
Concerns(MapEntry *entry, Instance *instance, bool *before, bool *after)
{
	*before = entry->old_in && InstanceMatches(instance, entry->old_params);
	*after = entry->new_in && InstanceMatches(instance, entry->new_params);
	return *before || *after;
}

static void
VisitInstance(Delivery *d, MapEntry *entry, Instance *instance)
{
	dlist_iter iter;
	bool before;
	bool after;

	if (!Concerns(entry, instance, &before, &after))
		return;
	dlist_foreach(iter, &instance->subscriptions)
		Consider(d, entry, dlist_container(Subscription, instance_node, iter.cur), before, after);
}

static void
VisitConnection(Delivery *d, MapEntry *entry, Connection *connection)
{
	dlist_iter iter;

	dlist_foreach(iter, &connection->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, connection_node, iter.cur);
		bool before;
		bool after;

		if (s->instance->channel == entry->source->channel &&
			Concerns(entry, s->instance, &before, &after))
			Consider(d, entry, s, before, after);
	}
}

/* All subscriptions that a changed row may concern. */
static void
VisitEntry(Delivery *d, MapEntry *entry)
{
	Channel *channel = entry->source->channel;
	Instance *old_instance = NULL;
	Instance *new_instance = NULL;
	ListCell *lc;

	if (d->only != NULL || d->members != NIL)
	{
		bool before;
		bool after;

		if (d->only != NULL)
		{
			if (d->only->instance->channel == channel &&
				Concerns(entry, d->only->instance, &before, &after))
				Consider(d, entry, d->only, before, after);
			return;
		}
		foreach(lc, d->members)
			VisitConnection(d, entry, lfirst(lc));
		return;
	}

	if (entry->old_in)
		old_instance = InstanceFind(channel, entry->old_params);
	if (entry->new_in)
		new_instance = InstanceFind(channel, entry->new_params);
	if (old_instance != NULL)
		VisitInstance(d, entry, old_instance);
	if (new_instance != NULL && new_instance != old_instance)
		VisitInstance(d, entry, new_instance);
	foreach(lc, InstancesStarred(channel))
		VisitInstance(d, entry, lfirst(lc));
}

static void
Visit(Delivery *d)
{
	int i;

	for (i = 0; i < d->map->nentries; i++)
	{
		d->current = NIL;
		VisitEntry(d, &d->map->entries[i]);
	}
}

/* Hands the fragments to the gateways. */
static void
Send(Delivery *d, uint8 flags)
{
	LogTransaction *transaction = d->transaction;
	char position[POSITION_COMMON + 1];
	StringInfoData before;
	StringInfoData after;
	pg_time_t seconds;
	struct pg_tm *tm;
	ListCell *lc;
	int g;

	if (d->removes == NIL && d->others == NIL)
		return;

	LogPosition(transaction->number, position);
	position[POSITION_COMMON] = '\0';
	initStringInfo(&before);
	initStringInfo(&after);

	/* Not the connection's place in the stream, but this channel's alone. */
	if (d->only != NULL)
	{
		appendStringInfoString(&before, "\"channel\":");
		appendBinaryStringInfo(&before, d->only->name->json, d->only->name->length);
		appendStringInfoChar(&before, ',');
	}
	appendStringInfo(&before, "\"txid\":\"" UINT64_FORMAT "\",\"position\":\"%s",
					 transaction->commit.xid, position);
	seconds = timestamptz_to_time_t(transaction->commit.time);
	tm = pg_gmtime(&seconds);
	appendStringInfo(
		&after, "\",\"committed_at\":\"%04d-%02d-%02dT%02d:%02d:%02d.%06dZ\",\"changes\":[",
		tm->tm_year + 1900, tm->tm_mon + 1, tm->tm_mday, tm->tm_hour, tm->tm_min, tm->tm_sec,
		(int) (((transaction->commit.time % USECS_PER_SEC) + USECS_PER_SEC) % USECS_PER_SEC));

	for (g = 0; g < gateway_count; g++)
	{
		Gateway *gateway = &gateways[g];
		bool begun = false;
		int part;

		if (gateway->link == NULL)
			continue;
		for (part = 0; part < 2; part++)
		{
			foreach(lc, part == 0 ? d->removes : d->others)
			{
				Fragment *f = lfirst(lc);

				if (f->count[g] == 0)
					continue;
				if (!begun)
				{
					GatewayTransactionBegin(gateway, transaction->number, flags, before.data,
											before.len, after.data, after.len);
					begun = true;
				}
				GatewayTransactionFragment(gateway, f->numbers[g], f->count[g], f->json.data,
										   f->json.len);
			}
		}
		if (begun)
		{
			GatewayTransactionEnd(gateway);
			pg_atomic_fetch_add_u64(&feed_shared->feed_frames, 1);
		}
	}
}

/*
 * Both passes: first everybody whose verdict is missing is taken out, then the
 * others get their frames.
 */
static void
Run(Delivery *d, uint8 flags)
{
	ListCell *lc;

	d->run = ++last_run;
	d->asking = true;
	Visit(d);
	d->asking = false;
	Visit(d);
	Send(d, flags);
	foreach(lc, d->unreadable)
		SubscribeResync(lfirst(lc), "value_not_in_wal");
}

static void
HoldBack(Connection *connection)
{
	if (connection->live && connection->held > 0)
		ConnectionSetBehind(connection, LogPublished() - 1);
}

void
DeliverPublish(LogTransaction *transaction)
{
	Delivery d = {0};
	dlist_iter iter;

	/* What it does to subscriptions as a whole comes first. */
	EventsApply(transaction);

	/* Connections that wait for one of their subscriptions stay behind. */
	dlist_foreach(iter, &all_subscriptions_working)
		HoldBack(dlist_container(Subscription, work_node, iter.cur)->connection);

	if (transaction->nchanges == 0 || SubscriptionCount() == 0)
		return;
	d.transaction = transaction;
	d.map = MapGet(transaction);
	EventsMapFailed(d.map);
	if (d.map->nentries > 0)
		Run(&d, 0);
}

bool
DeliverTo(Subscription *s, LogTransaction *transaction, Size *sent)
{
	Delivery d = {0};
	int i;

	if (transaction->nchanges == 0)
		return true;
	d.transaction = transaction;
	d.map = MapGet(transaction);
	for (i = 0; i < s->instance->channel->nsources; i++)
	{
		if (list_member_oid(d.map->failed, s->instance->channel->sources[i]->relid))
		{
			SubscribeResync(s, "change_not_readable");
			return false;
		}
	}
	d.only = s;
	d.run = ++last_run;
	d.asking = true;
	Visit(&d);
	if (d.missing)
		return false;
	d.asking = false;
	Visit(&d);
	if (d.unreadable != NIL)
	{
		SubscribeResync(s, "value_not_in_wal");
		return false;
	}
	Send(&d, LINK_TX_STREAM);
	*sent += d.bytes;
	return true;
}

/* ---- connections that are behind ---- */

static bool
MayMove(Connection *connection)
{
	return !connection->live && !connection->closing && !connection->choked &&
		   !connection->waits_verdict && connection->mark == 0 && connection->held == 0;
}

/* The log no longer has what it needs: all its subscriptions start again. */
static void
FellOff(Connection *connection)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &connection->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, connection_node, iter.cur);

		if (s->state == SUB_READY && s->since < LogPublished())
			SubscribeResync(s, "history_truncated");
	}
	ConnectionSetLive(connection);
}

/* Sends transaction `number` to those of `members` whose verdicts are there. */
static void
MoveGroup(List *members, uint64 number)
{
	Delivery d = {0};
	LogTransaction *transaction = LogGet(number);
	ListCell *lc;

	d.group = ++last_group;
	d.members = members;
	d.transaction = transaction;
	foreach(lc, members)
		((Connection *) lfirst(lc))->group = d.group;
	if (transaction->nchanges > 0)
	{
		d.map = MapGet(transaction);
		if (d.map->nentries > 0)
			Run(&d, 0);
	}
	foreach(lc, members)
	{
		Connection *connection = lfirst(lc);

		if (connection->group != d.group)
			continue;
		connection->cursor = number;
		connection->replayed += d.bytes / Max(list_length(members), 1);
		if (connection->replayed > REPLAY_WINDOW)
		{
			connection->replayed = 0;
			connection->mark = MARK_REPLAY;
			GatewayMark(connection, MARK_REPLAY);
		}
	}
}

static int
CompareCursors(const ListCell *a, const ListCell *b)
{
	uint64 x = ((Connection *) lfirst(a))->cursor;
	uint64 y = ((Connection *) lfirst(b))->cursor;

	return x < y ? -1 : x > y;
}

void
DeliverAdvance(void)
{
	List *ready = NIL;
	dlist_mutable_iter iter;
	int rounds = 0;

	/* A transaction at a time, those at the same one together. */
	for (;;)
	{
		List *group = NIL;
		uint64 cursor = 0;
		ListCell *lc;

		ready = NIL;
		dlist_foreach_modify(iter, &all_connections_behind)
		{
			Connection *connection = dlist_container(Connection, behind_node, iter.cur);

			if (connection->cursor < LogBase() && !connection->closing)
			{
				FellOff(connection);
				continue;
			}
			if (!MayMove(connection))
				continue;
			if (connection->cursor >= LogPublished())
				ConnectionSetLive(connection);
			else
				ready = lappend(ready, connection);
		}
		if (ready == NIL || GatewaysPending() > (Size) 8 * 1024 * 1024)
			return;
		if (rounds++ > 200)
		{
			/* Others want a turn, too. */
			SetLatch(MyLatch);
			return;
		}
		list_sort(ready, CompareCursors);
		foreach(lc, ready)
		{
			Connection *connection = lfirst(lc);

			if (group != NIL && connection->cursor != cursor)
			{
				MoveGroup(group, cursor + 1);
				group = NIL;
			}
			cursor = connection->cursor;
			group = lappend(group, connection);
		}
		MoveGroup(group, cursor + 1);
	}
}

void
DeliverForgetWaiting(void)
{
	dlist_iter iter;

	dlist_foreach(iter, &all_connections_behind)
		dlist_container(Connection, behind_node, iter.cur)->waits_verdict = false;
}

void
DeliverChoked(Connection *connection, uint64 last)
{
	uint64 cursor = connection->live ? LogPublished() : connection->cursor;

	/*
	 * The gateway has dropped what came behind `last`.  A connection that got
	 * nothing yet (0) is at the first transaction that it was ready for; going
	 * back to the log's base costs nothing, since every subscription skips
	 * what lies before its `since`.
	 */
	connection->choked = true;
	ProtocolSyncsLost(connection);
	ConnectionSetBehind(connection, Min(cursor, Max(last, connection->first)));
}

void
DeliverDrained(Connection *connection)
{
	if (!connection->choked)
		return;
	connection->choked = false;
	connection->waits_verdict = false;
	connection->replayed = 0;
	GatewayResume(connection);
}

void
DeliverFlushed(Connection *connection, uint32 mark)
{
	/* All that was sent before has gone out. */
	if (mark == MARK_SYNC)
		ProtocolSyncsFlushed(connection);
	else
		connection->mark = 0;
}
