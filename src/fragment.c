/*-------------------------------------------------------------------------
 *
 * fragment.c
 *		Operations as bytes: encoded once, shared by all who get the same.
 *
 * An operation is what a transaction did to one row, as JSON.  With the name
 * of a channel in front of it, and the connections that get it, it is a
 * fragment; who wrote the channel's name in another way gets another fragment
 * of the same operation.  The gateway joins a connection's fragments of a
 * transaction into one frame.
 *
 * Process: feed worker.  Memory: the turn's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "deliver.h"
#include "extend.h"
#include "receivers.h"
#include "http.h"

#include "utils/datum.h"
#include "utils/memutils.h"

/* The place of a column in the view's casts, or -1. */
static int
CastIndex(const View *view, int16 attno)
{
	int i;

	for (i = 0; view->casts != NULL && i < view->casts->n; i++)
		if (view->casts->attnos[i] == attno)
			return i;
	return -1;
}

static bool
IsKey(const Layout *layout, int16 attno)
{
	int i;

	for (i = 0; i < layout->nkey; i++)
		if (layout->key[i] == attno)
			return true;
	return false;
}

/* Of an incomplete old row there are the columns of the replica identity. */
static bool
IsKnown(const MapImage *image, int16 attno)
{
	return !image->incomplete || (attno <= image->desc->tupdesc->natts &&
								  (image->desc->flags[attno - 1] & RECORD_ATT_IDENTITY) != 0);
}

/* Can values of both be compared by their bytes, and with one encoder? */
static bool
SameColumn(const RecordDescription *before, const RecordDescription *after, int16 attno)
{
	Form_pg_attribute x;
	Form_pg_attribute y;

	if (before == after)
		return true;
	if (attno > before->tupdesc->natts)
		return false;
	x = TupleDescAttr(before->tupdesc, attno - 1);
	y = TupleDescAttr(after->tupdesc, attno - 1);
	return !x->attisdropped && !y->attisdropped && x->atttypid == y->atttypid &&
		   x->attcollation == y->attcollation;
}

/* Which of the view's columns differ between the images, as sent. */
static int
ChangedColumns(MapEntry *entry, TransactionMap *map, const Operation *f, int16 *changed)
{
	View *view = f->view;
	MapImage *before = &map->images[entry->old_image];
	MapImage *after = &map->images[entry->new_image];
	int n = 0;
	int i;

	for (i = 0; i < view->ncolumns; i++)
	{
		int16 attno = view->columns[i];
		Form_pg_attribute att;
		Datum x;
		Datum y;
		bool xnull;
		bool ynull;
		StringInfoData a;
		StringInfoData b;
		int cast = CastIndex(view, attno);

		if (attno > after->desc->tupdesc->natts)
			continue;
		y = after->values[attno - 1];
		ynull = after->isnull[attno - 1];
		if (f->before != NULL && i >= f->before->ncolumns)
		{
			changed[n++] = attno;
			continue;
		}
		att = TupleDescAttr(after->desc->tupdesc, attno - 1);

		/* Not in the WAL because it did not change. */
		if (!ynull && RecordValueIsUnchanged(after->desc, attno, y))
			continue;
		if (cast >= 0)
		{
			/* A cast may give the same for other values, or not. */
			if (strcmp(f->old_texts[cast], f->new_texts[cast]) != 0)
				changed[n++] = attno;
			continue;
		}
		if (!IsKnown(before, attno) || !SameColumn(before->desc, after->desc, attno))
		{
			/* The key has not changed, whatever else is not known. */
			if (!IsKey(entry->layout, attno))
				changed[n++] = attno;
			continue;
		}
		x = before->values[attno - 1];
		xnull = before->isnull[attno - 1];
		if (xnull && ynull)
			continue;
		if (!xnull && !ynull && datum_image_eq(x, y, att->attbyval, att->attlen))
			continue;

		/*
		 * Different bytes, such as a compressed copy, may be the same value,
		 * and null looks like the null of JSON.
		 */
		initStringInfo(&a);
		initStringInfo(&b);
		EncodeValue(entry->layout->encoder, &a, attno, x, xnull);
		EncodeValue(entry->layout->encoder, &b, attno, y, ynull);
		if (a.len != b.len || memcmp(a.data, b.data, a.len) != 0)
			changed[n++] = attno;
		pfree(a.data);
		pfree(b.data);
	}
	return n;
}

bool
FragmentRowFits(MapEntry *entry, TransactionMap *map, View *view)
{
	return view->ncolumns == 0 ||
		   view->columns[view->ncolumns - 1] <= map->images[entry->new_image].desc->tupdesc->natts;
}

bool
FragmentRowIsKnown(MapEntry *entry, TransactionMap *map, View *view)
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

/* EncodeRow, with the texts of casts. */
static void
EncodeColumns(Operation *f, const MapImage *image, const int16 *columns, int ncolumns)
{
	RowEncoder *encoder = f->entry->layout->encoder;
	int i;

	if (f->view->casts == NULL)
	{
		EncodeRow(encoder, &f->json, columns, ncolumns, image->values, image->isnull);
		return;
	}
	appendStringInfoChar(&f->json, '{');
	for (i = 0; i < ncolumns; i++)
	{
		int16 attno = columns[i];
		int cast = CastIndex(f->view, attno);

		if (i > 0)
			appendStringInfoChar(&f->json, ',');
		EncodeLabel(encoder, &f->json, attno);
		if (cast >= 0)
			appendStringInfoString(&f->json, f->new_texts[cast]);
		else
			EncodeValue(encoder, &f->json, attno, image->values[attno - 1],
						image->isnull[attno - 1]);
	}
	appendStringInfoChar(&f->json, '}');
}

/*
 * The version of the row, if it is not the frame's txid: it was written in a
 * subtransaction, or the frame is of several transactions.
 */
static void
AppendVersion(StringInfo json, const LogTransaction *transaction, int image)
{
	uint64 xid = transaction->changes[image / 2].xid;

	if (xid != transaction->commit.xid)
		appendStringInfo(json, ",\"version\":\"" UINT64_FORMAT "\"", xid);
}

/* Writes the change.  False: nothing visible has changed. */
static bool
EncodeOperation(Delivery *d, Operation *f)
{
	MapEntry *entry = f->entry;
	MapImage *after = entry->new_image >= 0 ? &d->map->images[entry->new_image] : NULL;
	int16 *columns = f->view->columns;
	int ncolumns = f->view->ncolumns;
	char *buffer;

	if (f->in_before && f->action != ACTION_REMOVE)
	{
		int16 *changed = palloc(sizeof(int16) * Max(ncolumns, 1));
		int nchanged = ChangedColumns(entry, d->map, f, changed);

		if (nchanged == 0)
			return false;
		if (f->action == ACTION_MERGE && !f->complete)
		{
			columns = changed;
			ncolumns = nchanged;
		}
	}

	initStringInfo(&f->json);
	appendStringInfoString(&f->json, ",\"entity\":");
	EncodeString(&f->json, entry->source->entity, strlen(entry->source->entity));
	appendStringInfoString(&f->json, ",\"op\":\"");
	appendStringInfoString(&f->json, action_names[f->action]);
	appendStringInfoString(&f->json, "\",\"key\":");
	appendBinaryStringInfo(&f->json, entry->key, entry->key_length);
	if (f->action != ACTION_REMOVE)
	{
		appendStringInfoString(&f->json, f->action == ACTION_MERGE ? ",\"set\":" : ",\"row\":");
		EncodeColumns(f, after, columns, ncolumns);
		if (f->json.len > ENCODE_MAX_ROW)
			ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
							errmsg("it has more than %d MB", ENCODE_MAX_ROW / (1024 * 1024))));
		AppendVersion(&f->json, d->map->transaction, entry->new_image);
	}
	appendStringInfoChar(&f->json, '}');

	/* As keys in map.c: no room that is not used. */
	buffer = f->json.data;
	f->json.data = pnstrdup(buffer, f->json.len);
	f->json.maxlen = f->json.len + 1;
	pfree(buffer);
	return true;
}

/*
 * EncodeOperation, false when it failed.  The types of a row are those of now and
 * may be gone since it was written, or a value may be beyond what their output
 * functions can do: that costs a snapshot, not the feed.  Nothing is held that
 * an abort would have to release.
 */
static bool
TryEncodeOperation(Delivery *d, Operation *f, bool *changed)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool good = true;

	PG_TRY();
	{
		*changed = EncodeOperation(d, f);
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN)
			PG_RE_THROW();
		FlushErrorState();
		ereport(LOG, (errcode(error->sqlerrcode),
					  errmsg("could not write a changed row as JSON: %s", error->message),
					  errdetail("The subscriptions concerned get fresh snapshots.")));
		good = false;
	}
	PG_END_TRY();
	return good;
}

static bool
SameColumns(const View *a, const View *b)
{
	return a == b || (a->ncolumns == b->ncolumns && a->casts == b->casts &&
					  memcmp(a->columns, b->columns, sizeof(int16) * a->ncolumns) == 0);
}

/* Casts run as the identity and may give each another text. */
static bool
SameTexts(const View *view, const char *const *a, const char *const *b)
{
	int i;

	if (a == b)
		return true;
	if (a == NULL || b == NULL)
		return false;
	for (i = 0; i < view->casts->n; i++)
		if (strcmp(a[i], b[i]) != 0)
			return false;
	return true;
}

static void
AddReceivers(Delivery *d, Fragment *f, const void *whom, int g, const uint32 *numbers, int n)
{
	AddresseesAdd(f->addressees, whom, g, numbers, n);
	d->bytes += (Size) n * (f->length + 1);
}

/* What the transaction has sent for the fragment's channel. */
static void
CountOperations(const Fragment *f)
{
	ChannelCounters *channel;
	uint64 n = 0;
	int g;

	for (g = 0; g < gateway_count; g++)
		if (gateways[g].link != NULL)
			n += f->addressees->parts[g].count;
	counters.operations += n;
	counters.operation_bytes += n * f->length;
	if (f->operation->entry == NULL)
		return;
	channel = f->operation->entry->source->channel->counters;
	channel->operations += n;
	channel->bytes += n * f->length;
}

/* Equal texts to the same channel are shared. */
void
FragmentAddText(Delivery *d, Subscription *s, const char *json, int length)
{
	Fragment *f = NULL;
	ListCell *lc;

	foreach(lc, d->texts)
	{
		Fragment *other = lfirst(lc);

		if (other->length == length && memcmp(other->operation->json.data, json, length) == 0)
			f = other;
	}
	if (f == NULL)
	{
		f = palloc0(sizeof(Fragment));
		f->name = s->name;
		f->operation = palloc0(sizeof(Operation));
		f->length = length;
		f->addressees = AddresseesNew();
		initStringInfo(&f->operation->json);
		appendBinaryStringInfo(&f->operation->json, json, length);
		d->texts = lappend(d->texts, f);
		d->others = lappend(d->others, f);
	}
	AddReceivers(d, f, s, s->connection->gateway->index, &s->connection->number, 1);
}

/* The operation, written when nobody has got it yet. */
static Operation *
FindOperation(Delivery *d, MapEntry *entry, View *view, SourceAction action, bool in_before,
			  bool complete, View *before, const char *const *old_texts,
			  const char *const *new_texts)
{
	Operation *op;
	bool changed = false;
	ListCell *lc;

	foreach(lc, d->current)
	{
		op = lfirst(lc);
		if (op->action == action && op->complete == complete && op->in_before == in_before &&
			op->before == before && SameColumns(op->view, view) &&
			SameTexts(view, op->old_texts, old_texts) && SameTexts(view, op->new_texts, new_texts))
			return op;
	}
	op = palloc0(sizeof(Operation));
	op->entry = entry;
	op->view = view;
	op->action = action;
	op->complete = complete;
	op->in_before = in_before;
	op->old_texts = old_texts;
	op->new_texts = new_texts;
	op->before = before;
	d->current = lappend(d->current, op);
	op->failed = !TryEncodeOperation(d, op, &changed);
	return op;
}

static Fragment *
FindFragment(Delivery *d, Operation *op, Spelling *name)
{
	Fragment *f;

	if (name->visit != d->visit)
	{
		name->visit = d->visit;
		name->fragments = NULL;
	}
	for (f = name->fragments; f != NULL; f = f->next)
		if (f->operation == op)
			return f;
	f = palloc0(sizeof(Fragment));
	f->operation = op;
	f->name = name;
	f->length = (int) strlen(LINK_FRAGMENT_BEGIN) + name->length + op->json.len;
	f->addressees = AddresseesNew();
	f->next = name->fragments;
	name->fragments = f;

	/* The same row once more, with another name or as others see it. */
	if (d->open != NULL)
		AddresseesHold(d, sizeof(Fragment) + sizeof(Addressees) + f->length);
	f->next_open = d->open;
	d->open = f;
	if (op->action == ACTION_REMOVE)
		d->removes = lappend(d->removes, f);
	else
		d->others = lappend(d->others, f);
	return f;
}

void
FragmentsClose(Delivery *d)
{
	Fragment *f;

	for (f = d->open; f != NULL; f = f->next_open)
		f->addressees = AddresseesShare(d, f->name, f->addressees);
	d->open = NULL;
}

bool
FragmentAdd(Delivery *d, MapEntry *entry, Subscription *s, Receivers *receivers,
			SourceAction action, bool in_before, bool complete)
{
	int source = entry->source->index;
	View *view = s != NULL ? s->views[source] : receivers->sources[source].view;
	View *before = s != NULL ? ExtensionBefore(s, d->transaction->number, source) : NULL;
	Identity *identity = s != NULL ? s->connection->identity : receivers->identity;
	const char *const *old_texts = NULL;
	const char *const *new_texts = NULL;
	Operation *op;
	Fragment *f;
	int g;

	if (view->casts != NULL && action != ACTION_REMOVE)
	{
		if (in_before)
			old_texts = VerdictTexts(d->map, identity, view, entry->old_image);
		new_texts = VerdictTexts(d->map, identity, view, entry->new_image);
	}
	op = FindOperation(d, entry, view, action, in_before, complete, before, old_texts, new_texts);
	if (op->failed)
		return false;
	if (op->json.data == NULL)
		return true; /* nothing that they can see has changed */
	f = FindFragment(d, op, s != NULL ? s->name : receivers->name);
	if (s != NULL)
		AddReceivers(d, f, s, s->connection->gateway->index, &s->connection->number, 1);
	else
		for (g = 0; g < gateway_count; g++)
			if (receivers->parts[g].n > 0)
				AddReceivers(d, f, receivers, g, receivers->parts[g].numbers,
							 receivers->parts[g].n);
	return true;
}

/* A subscription as fragments know it: a connection has each name once. */
typedef struct Receiver
{
	Spelling *name;
	uint32 gateway;
	uint32 number;
} Receiver;

static void
TakeReceivers(List *fragments, HTAB *receivers, uint64 run)
{
	ListCell *lc;
	int g;
	int i;

	foreach(lc, fragments)
	{
		Fragment *f = lfirst(lc);

		if (f->name->taken != run || f->addressees->taken)
			continue;
		f->addressees->taken = true;
		for (g = 0; g < gateway_count; g++)
		{
			AddresseesPart *part = &f->addressees->parts[g];
			int n = 0;

			for (i = 0; i < part->count; i++)
			{
				Receiver key = {f->name, (uint32) g, part->numbers[i]};

				if (hash_search(receivers, &key, HASH_FIND, NULL) == NULL)
					part->numbers[n++] = part->numbers[i];
			}
			part->count = n;
		}
	}
}

void
FragmentsTake(Delivery *d, const List *subscriptions)
{
	HTAB *receivers;
	HASHCTL ctl;
	ListCell *lc;

	ctl.keysize = sizeof(Receiver);
	ctl.entrysize = sizeof(Receiver);
	ctl.hcxt = CurrentMemoryContext;
	receivers = hash_create("changefeed taken", 16, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	foreach(lc, subscriptions)
	{
		Subscription *s = lfirst(lc);
		Receiver key = {s->name, (uint32) s->connection->gateway->index, s->connection->number};

		(void) hash_search(receivers, &key, HASH_ENTER, NULL);
		s->name->taken = d->run;
	}
	TakeReceivers(d->removes, receivers, d->run);
	TakeReceivers(d->others, receivers, d->run);
	hash_destroy(receivers);
	MessagesTake(d);
}

/*
 * What catches up on from where its client was is there with each of its
 * frames; what has a snapshot is nowhere until it is ready.
 */
static void
TellPosition(Delivery *d, const char *common)
{
	char position[POSITION_LENGTH + 1];

	if (d->only == NULL || d->only->connection->http == NULL || !SubscribeResumes(d->only))
		return;
	memcpy(position, common, POSITION_COMMON);
	memcpy(position + POSITION_COMMON, d->only->connection->identity->tag, POSITION_TAG);
	position[POSITION_LENGTH] = '\0';
	HttpMoves(d->only, LINK_PART_OWN, position, false);
}

/* Those of the gateway that get the step over HTTP are behind it then. */
static void
TellPaced(Delivery *d, List *fragments, Gateway *gateway, const char *common)
{
	char position[POSITION_LENGTH + 1];
	ListCell *lc;
	int i;

	memcpy(position, common, POSITION_COMMON);
	position[POSITION_LENGTH] = '\0';
	foreach(lc, fragments)
	{
		Fragment *f = lfirst(lc);

		const AddresseesPart *to = &f->addressees->parts[gateway->index];

		for (i = 0; i < to->count; i++)
		{
			Connection *connection = ConnectionFind(gateway, to->numbers[i]);
			dlist_iter iter;

			if (connection == NULL || connection->http == NULL || connection->http->moved == d->run)
				continue;
			connection->http->moved = d->run;
			memcpy(position + POSITION_COMMON, connection->identity->tag, POSITION_TAG);
			dlist_foreach(iter, &connection->subscriptions)
			{
				Subscription *s = dlist_container(Subscription, connection_node, iter.cur);

				if (s->name == f->name)
					HttpMoves(s, LINK_PART_PACED, position, false);
			}
		}
	}
}

/* The name that all receivers have; NULL: there are none any more. */
static Spelling *
NameOfReceivers(Delivery *d)
{
	ListCell *lc;
	int part;
	int g;

	for (part = 0; part < 2; part++)
		foreach(lc, part == 0 ? d->removes : d->others)
		{
			Fragment *f = lfirst(lc);

			for (g = 0; g < gateway_count; g++)
				if (f->addressees->parts[g].count > 0)
					return f->name;
		}
	return NULL;
}

/* With the numbers of the connections, or behind them if others are for the same. */
static void
SendFragment(Gateway *gateway, const Fragment *f, int *naudiences)
{
	AddresseesPart *to = &f->addressees->parts[gateway->index];
	const Spelling *name = f->operation->entry != NULL ? f->name : NULL;
	StringInfo json = &f->operation->json;

	if (f->addressees->uses == 1)
	{
		GatewayTransactionFragment(gateway, to->numbers, to->count, name, json->data, json->len);
		return;
	}
	if (to->place < 0)
	{
		to->place = (*naudiences)++;
		GatewayTransactionAudience(gateway, to->numbers, to->count);
	}
	GatewayTransactionShared(gateway, to->place, name, json->data, json->len);
}

void
FragmentsSend(Delivery *d, uint8 flags)
{
	LogTransaction *transaction = d->transaction;
	Spelling *name = NULL;
	bool http = counters.open[COUNTED_EVENTS] + counters.open[COUNTED_POLL] > 0;
	char position[POSITION_COMMON + 1];
	StringInfoData before;
	StringInfoData after;
	pg_time_t seconds;
	struct pg_tm *tm;
	ListCell *lc;
	int g;
	char committed_at[32];

	if (!MessagesPrepare(d) && d->removes == NIL && d->others == NIL)
		return;

	/* The subscription itself may have ended just now. */
	if (d->only != NULL || d->paced != NIL)
		name = NameOfReceivers(d);

	LogPosition(transaction->number, position);
	position[POSITION_COMMON] = '\0';
	initStringInfo(&before);
	initStringInfo(&after);

	/* Not the connection's place in the stream, but this channel's alone. */
	if (name != NULL)
	{
		appendStringInfoString(&before, "\"channel\":");
		appendBinaryStringInfo(&before, name->json, name->length);
		appendStringInfoChar(&before, ',');
	}
	appendStringInfo(&before, "\"txid\":\"" UINT64_FORMAT "\",\"position\":\"%s",
					 transaction->commit.xid, position);
	seconds = timestamptz_to_time_t(transaction->commit.time);
	tm = pg_gmtime(&seconds);
	snprintf(committed_at, sizeof(committed_at), "%04d-%02d-%02dT%02d:%02d:%02d.%06dZ",
			 tm->tm_year + 1900, tm->tm_mon + 1, tm->tm_mday, tm->tm_hour, tm->tm_min, tm->tm_sec,
			 (int) (((transaction->commit.time % USECS_PER_SEC) + USECS_PER_SEC) % USECS_PER_SEC));
	appendStringInfo(&after, "\",\"committed_at\":\"%s\",\"changes\":[", committed_at);

	foreach(lc, d->removes)
		CountOperations(lfirst(lc));
	foreach(lc, d->others)
		CountOperations(lfirst(lc));
	for (g = 0; g < gateway_count; g++)
	{
		Gateway *gateway = &gateways[g];
		bool begun = false;
		int naudiences = 0;
		int part;

		if (gateway->link == NULL)
			continue;
		for (part = 0; part < 2; part++)
		{
			foreach(lc, part == 0 ? d->removes : d->others)
			{
				Fragment *f = lfirst(lc);

				if (f->addressees->parts[g].count == 0)
					continue;
				if (!begun)
				{
					if ((flags & LINK_TX_STREAM) == 0)
						GatewayTransactionTime(gateway, transaction->commit.time);
					TellPosition(d, position);
					if (d->paced != NIL && http)
					{
						TellPaced(d, d->removes, gateway, position);
						TellPaced(d, d->others, gateway, position);
					}
					GatewayTransactionBegin(gateway, transaction->number, flags, before.data,
											before.len, after.data, after.len);
					begun = true;
				}
				SendFragment(gateway, f, &naudiences);
			}
		}
		if (MessagesForGateway(d, gateway))
		{
			if (!begun)
			{
				TellPosition(d, position);
				GatewayTransactionBegin(gateway, transaction->number, flags, before.data,
										before.len, after.data, after.len);
			}
			MessagesSend(d, gateway, committed_at);
			begun = true;
		}
		if (begun)
		{
			GatewayTransactionEnd(gateway);
			pg_atomic_fetch_add_u64(&feed_shared->feed_frames, 1);
		}
	}
}
