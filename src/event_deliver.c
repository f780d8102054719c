/*-------------------------------------------------------------------------
 *
 * event_deliver.c
 *		Events of a transaction's changed rows, and who gets them.
 *
 * An event is evaluated once for a changed row, on the images between which the
 * whole transaction has changed it, and only if somebody may get it: who sees
 * the new row (the old one of a delete), saw the old one if the event tells of
 * it, and receives all columns that it reads.
 *
 * An error of an evaluation costs that event only.  It is counted and logged,
 * and nobody is told.
 *
 * Process: feed worker.  Memory: expressions live with the channel, results in
 * the turn.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "deliver.h"
#include "event.h"

#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "optimizer/optimizer.h"
#include "nodes/nodeFuncs.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* It is said again after this time (ms) that events fail. */
#define ERROR_INTERVAL 60000

typedef enum EventResult
{
	EVENT_NOT_EVALUATED,
	EVENT_HAPPENS,
	EVENT_DOES_NOT,
	EVENT_UNKNOWN, /* a value is not in the WAL */
	EVENT_FAILED
} EventResult;

/* For one description of the table. */
typedef struct CompiledEvent
{
	bool usable;
	ExprState *condition; /* NULL: always */
	ExprState *payload;	  /* NULL: the key */
	Oid payload_type;
	EventColumns columns;
} CompiledEvent;

/* Of the entry at hand. */
typedef struct EventState
{
	EventResult result;
	TransactionMessage *message;
} EventState;

static void
NoteError(const SourceEvent *event, const char *message)
{
	static TimestampTz said = 0;
	TimestampTz now = feed_now;

	pg_atomic_fetch_add_u64(&feed_shared->feed_event_errors, 1);
	if (!TimestampDifferenceExceeds(said, now, ERROR_INTERVAL))
		return;
	said = now;
	ereport(LOG, (errmsg("event \"%s\" could not be evaluated: %s", event->name, message),
				  errdetail("It is not sent.")));
}

/*
 * Keeps what failed from raising further errors; its message.  Memory that an
 * expression wants and there is not is no reason to end the feed: it would meet
 * the same change again.
 */
static char *
Catch(MemoryContext context)
{
	ErrorData *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	if (error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN)
		PG_RE_THROW();
	FlushErrorState();
	return error->message;
}

static ExprState *
CompileExpression(Node *expr)
{
	expr = eval_const_expressions(NULL, expr);
	fix_opfuncids(expr);
	return ExecInitExpr((Expr *) expr, NULL);
}

static CompiledEvent *
Compile(Layout *layout, const SourceEvent *event)
{
	MemoryContext context = CurrentMemoryContext;
	CompiledEvent *compiled;

	MemoryContextSwitchTo(layout->events_context);
	compiled = palloc0(sizeof(CompiledEvent));
	PG_TRY();
	{
		if (event->condition != NULL)
			compiled->condition = CompileExpression(EventAnalyze(
				"condition", event->condition, layout->desc->tupdesc, true, &compiled->columns));
		if (event->payload != NULL)
		{
			Node *expr = EventAnalyze("payload", event->payload, layout->desc->tupdesc, false,
									  &compiled->columns);

			compiled->payload_type = exprType(expr);
			compiled->payload = CompileExpression(expr);
		}
		compiled->usable = true;
	}
	PG_CATCH();
	{
		/* Columns are gone, or a dump was edited. */
		NoteError(event, Catch(context));
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return compiled;
}

static CompiledEvent *
GetCompiled(Layout *layout, Source *source, int i)
{
	if (layout->events == NULL)
	{
		ExprContext *econtext;
		MemoryContext old;

		layout->events_context = AllocSetContextCreate(GetMemoryChunkContext(layout),
													   "changefeed events", ALLOCSET_SMALL_SIZES);
		old = MemoryContextSwitchTo(layout->events_context);
		econtext = CreateStandaloneExprContext();
		econtext->ecxt_outertuple = MakeSingleTupleTableSlot(layout->desc->tupdesc, &TTSOpsVirtual);
		econtext->ecxt_innertuple = MakeSingleTupleTableSlot(layout->desc->tupdesc, &TTSOpsVirtual);
		layout->events_econtext = econtext;
		layout->events = palloc0(sizeof(CompiledEvent *) * source->nevents);
		MemoryContextSwitchTo(old);
	}
	if (layout->events[i] == NULL)
		layout->events[i] = Compile(layout, &source->events[i]);
	return layout->events[i];
}

static bool
AllKnown(TransactionMap *map, int image, Bitmapset *attnos)
{
	int attno = -1;

	while ((attno = bms_next_member(attnos, attno)) >= 0)
		if (!MapKnows(map, image, (int16) attno))
			return false;
	return true;
}

/* The image as a row; none: all null. */
static void
Store(TupleTableSlot *slot, const MapImage *image)
{
	int natts = slot->tts_tupleDescriptor->natts;

	ExecClearTuple(slot);
	if (image == NULL)
	{
		memset(slot->tts_values, 0, sizeof(Datum) * natts);
		memset(slot->tts_isnull, true, sizeof(bool) * natts);
	}
	else
	{
		memcpy(slot->tts_values, image->values, sizeof(Datum) * natts);
		memcpy(slot->tts_isnull, image->isnull, sizeof(bool) * natts);
	}
	ExecStoreVirtualTuple(slot);
}

/*
 * False: the condition does not hold.  Raises errors of the evaluation.  Anything
 * is left in the memory of the expressions' context, the payload, too.
 */
static bool
Run(const CompiledEvent *compiled, ExprContext *econtext, const MapImage *old_row,
	const MapImage *new_row, char **payload)
{
	bool isnull;
	Datum value;

	Store(econtext->ecxt_outertuple, old_row);
	Store(econtext->ecxt_innertuple, new_row);
	if (compiled->condition != NULL)
	{
		value = ExecEvalExpr(compiled->condition, econtext, &isnull);
		if (isnull || !DatumGetBool(value))
			return false;
	}
	if (compiled->payload == NULL)
		return true;
	value = ExecEvalExpr(compiled->payload, econtext, &isnull);
	if (isnull)
		*payload = "null";
	else if (compiled->payload_type == JSONBOID)
	{
		Jsonb *jsonb = DatumGetJsonbP(value);

		*payload = JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb));
	}
	else
		*payload = TextDatumGetCString(value);
	return true;
}

/* Errors of it are noted, and it goes on. */
static EventResult
TryRun(const SourceEvent *event, const CompiledEvent *compiled, ExprContext *econtext,
	   const MapImage *old_row, const MapImage *new_row, char **payload)
{
	MemoryContext context = CurrentMemoryContext;
	volatile EventResult result = EVENT_FAILED;

	PG_TRY();
	{
		MemoryContextSwitchTo(econtext->ecxt_per_tuple_memory);
		result = Run(compiled, econtext, old_row, new_row, payload) ? EVENT_HAPPENS
																	: EVENT_DOES_NOT;
		if (result == EVENT_HAPPENS && *payload != NULL)
			*payload = MemoryContextStrdup(context, *payload);
	}
	PG_CATCH();
	{
		NoteError(event, Catch(context));
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	ResetExprContext(econtext);
	return result;
}

static EventResult
Evaluate(Delivery *d, MapEntry *entry, const SourceEvent *event, const CompiledEvent *compiled,
		 char **payload)
{
	TransactionMap *map = d->map;
	MapImage *old_row = entry->old_image >= 0 ? &map->images[entry->old_image] : NULL;
	MapImage *new_row = entry->new_image >= 0 ? &map->images[entry->new_image] : NULL;
	EventResult result;

	/* Of an older type of row the columns may be others. */
	if (old_row != NULL && old_row->desc != entry->layout->desc)
		return EVENT_UNKNOWN;
	if ((old_row != NULL && !AllKnown(map, entry->old_image, compiled->columns.of_old)) ||
		(new_row != NULL && !AllKnown(map, entry->new_image, compiled->columns.of_new)))
		return EVENT_UNKNOWN;

	result = TryRun(event, compiled, entry->layout->events_econtext, old_row, new_row, payload);
	if (result != EVENT_HAPPENS || *payload == NULL)
		return result;
	if (strlen(*payload) > (Size) setting_max_payload * 1024)
	{
		NoteError(event, "its payload is longer than \"changefeed.max_payload\" allows");
		return EVENT_FAILED;
	}
	return result;
}

/*
 * The how-manieth row of its table's changes is it?  From 1, the old one of a
 * change before the new one, as both may have events if the key has changed.
 */
static uint32
Ordinal(TransactionMap *map, int image)
{
	LogTransaction *transaction = map->transaction;

	if (map->ordinals == NULL)
	{
		typedef struct Counter
		{
			Oid relid;
			uint32 n;
		} Counter;
		List *counters = NIL;
		Counter *counter = NULL;
		ListCell *lc;
		int i;

		map->ordinals = MemoryContextAllocHuge(map->context,
											   sizeof(uint32) * transaction->nchanges);
		for (i = 0; i < transaction->nchanges; i++)
		{
			Oid relid = transaction->changes[i].desc->relid;

			if (counter == NULL || counter->relid != relid)
			{
				counter = NULL;
				foreach(lc, counters)
					if (((Counter *) lfirst(lc))->relid == relid)
						counter = lfirst(lc);
			}
			if (counter == NULL)
			{
				counter = palloc0(sizeof(Counter));
				counter->relid = relid;
				counters = lappend(counters, counter);
			}
			map->ordinals[i] = ++counter->n;
		}
	}
	return 2 * map->ordinals[image / 2] - (image % 2 == 0 ? 1 : 0);
}

static bool
Receives(const View *view, const Bitmapset *attnos)
{
	int attno = -1;
	int i = 0;

	/* Both ascend. */
	while ((attno = bms_next_member(attnos, attno)) >= 0)
	{
		while (i < view->ncolumns && view->columns[i] < attno)
			i++;
		if (i == view->ncolumns || view->columns[i] != attno)
			return false;
	}
	return true;
}

void
EventsConsider(Delivery *d, MapEntry *entry, Subscription *s, View *view, bool saw_old,
			   bool sees_new)
{
	Source *source = entry->source;
	EventState *states = d->current_events;
	uint8 change = entry->old_image < 0	  ? EVENT_INSERT
				   : entry->new_image < 0 ? EVENT_DELETE
										  : EVENT_UPDATE;
	int i;

	if (change == EVENT_DELETE ? !saw_old : !sees_new)
		return;
	if (states == NULL)
		states = d->current_events = palloc0(sizeof(EventState) * source->nevents);
	for (i = 0; i < source->nevents; i++)
	{
		const SourceEvent *event = &source->events[i];
		EventState *state = &states[i];
		CompiledEvent *compiled;

		if ((event->changes & change) == 0)
			continue;
		compiled = GetCompiled(entry->layout, source, i);
		if (!compiled->usable)
		{
			/* Counted for each change, not for each subscription. */
			if (state->result == EVENT_NOT_EVALUATED)
				pg_atomic_fetch_add_u64(&feed_shared->feed_event_errors, 1);
			state->result = EVENT_FAILED;
			continue;
		}
		if ((change == EVENT_UPDATE && !saw_old && compiled->columns.of_old != NULL) ||
			!Receives(view, compiled->columns.of_old) || !Receives(view, compiled->columns.of_new))
			continue;
		if (state->result == EVENT_NOT_EVALUATED)
		{
			char *payload = NULL;

			state->result = Evaluate(d, entry, event, compiled, &payload);
			if (state->result == EVENT_HAPPENS)
			{
				MessagePlace place = {
					{(uint32) source->id,
					 Ordinal(d->map, entry->new_image >= 0 ? entry->new_image : entry->old_image),
					 (uint32) event->id}};

				state->message = MessageAdd(
					d, &place, source->channel,
					change == EVENT_DELETE ? entry->old_params : entry->new_params, event->name,
					payload != NULL ? payload : entry->key,
					payload != NULL ? strlen(payload) : (Size) entry->key_length);
			}
		}
		if (state->result == EVENT_HAPPENS)
			MessageAddReceiver(d, state->message, s);
		else if (state->result == EVENT_UNKNOWN && !d->messages_only)
			(void) DeliverOut(d, s, OUT_UNREADABLE);
	}
}
