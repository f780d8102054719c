/*-------------------------------------------------------------------------
 *
 * presence_sql.c
 *		The function changefeed.presence.
 *
 * A row of the answer is bytes member, u32 n, n x bytes kind, bytes states, u32
 * n, n x bytes key, u32 connections, u64 since (a TimestampTz).  Who may call it is
 * decided by privileges on the function.
 *
 * Process: backends; PresenceAnswer the feed worker.  Memory: the answer's, the
 * call's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "feed_request.h"
#include "presence_internal.h"
#include "shared.h"
#include "template.h"
#include "wire_write.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(changefeed_presence);

#define PRESENCE_COLUMNS 6

/* Members of one portion. */
#define PORTION 200

/* The catalog of now is waited for, but not for ever (ms). */
#define CATALOG_WAIT 2000

/* ---- in the feed worker ---- */

static void
PutMember(StringInfo out, Member *member)
{
	Room *room = member->room;
	StringInfoData states;
	StringInfoData some;
	List *holds;
	ListCell *lc;
	uint32 n = 0;
	int i;

	WirePutString(out, member->user);
	initStringInfo(&some);
	for (i = 0; i < room->nkinds; i++)
	{
		if ((member->kinds & (UINT32_C(1) << i)) == 0)
			continue;
		WirePutString(&some, room->kinds[i].name);
		n++;
	}
	WirePutU32(out, n);
	appendBinaryStringInfo(out, some.data, some.len);

	initStringInfo(&states);
	MemberStates(member, &states);
	WirePutBytes(out, states.data, states.len);

	holds = MemberHolds(member);
	WirePutU32(out, (uint32) list_length(holds));
	foreach(lc, holds)
		WirePutString(out, ((PresenceKey *) lfirst(lc))->name);
	WirePutU32(out, (uint32) member->ntracks);
	WirePutU64(out, (uint64) member->since);
	pfree(some.data);
	pfree(states.data);
}

typedef struct AnswerState
{
	XLogRecPtr lsn; /* the end of WAL when it was asked */
	uint64 after;	/* serial of the last member */
} AnswerState;

RequestProgress
PresenceAnswer(FeedAnswer *answer)
{
	char *params[CHANNEL_PARAMS_MAX] = {0};
	char *name = pnstrdup(answer->arguments, answer->length);
	Channel *channel = ChannelsFind(name, strlen(name), params);
	AnswerState *state = answer->state;
	Room *room;
	dlist_iter iter;
	int n = 0;
	int i;

	if (state == NULL)
	{
		state = MemoryContextAllocZero(answer->context, sizeof(AnswerState));
		state->lsn = SharedInsertLsn();
		answer->state = state;
	}

	/* Perhaps it has just been created. */
	if ((channel == NULL || channel->presence == NULL) && !LogReached(state->lsn) &&
		answer->waited_ms < CATALOG_WAIT)
		return REQUEST_WAITS;
	if (channel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("channel \"%s\" does not exist", name)));
	if (channel->presence == NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("channel \"%s\" has no presence", name)));
	for (i = 0; i < channel->template->nparams; i++)
		if (params[i] == NULL)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("presence is that of one channel, without \"*\"")));
	room = RoomFind(channel, params);
	if (room == NULL)
		return REQUEST_DONE;
	dlist_foreach(iter, &room->members)
	{
		Member *member = dlist_container(Member, room_node, iter.cur);

		if (member->serial <= state->after || member->ntracks == 0)
			continue;
		if (n++ == PORTION)
			return REQUEST_MORE;
		PutMember(&answer->bytes, member);
		state->after = member->serial;
	}
	return REQUEST_DONE;
}

/* ---- in a backend ---- */

static text *
GetText(WireReader *r)
{
	WireBytes bytes = WireGetBytes(r);

	return cstring_to_text_with_len(r->failed ? "" : bytes.data, (int) bytes.length);
}

static ArrayType *
GetTexts(WireReader *r)
{
	uint32 n = WireGetU32(r);
	Datum *elements;
	uint32 i;

	if (n > r->length)
		r->failed = true;
	if (r->failed)
		n = 0;
	elements = palloc(sizeof(Datum) * Max(n, 1));
	for (i = 0; i < n; i++)
		elements[i] = PointerGetDatum(GetText(r));
	return construct_array(elements, (int) n, TEXTOID, -1, false, TYPALIGN_INT);
}

/* presence(channel) */
Datum
changefeed_presence(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	char *channel = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Size length;
	char *bytes;
	WireReader r;

	if (strlen(channel) > CHANNEL_NAME_MAX)
		ereport(ERROR, (errcode(ERRCODE_NAME_TOO_LONG),
						errmsg("channel name is longer than %d bytes", CHANNEL_NAME_MAX)));
	compat_materialize(fcinfo);
	if (result->setDesc->natts != PRESENCE_COLUMNS)
		elog(ERROR, "return type of presence is not what the library knows");
	bytes = FeedAsk(REQUEST_PRESENCE, channel, strlen(channel), &length);
	r = WireReaderInit(bytes, length);
	while (!WireAtEnd(&r))
	{
		Datum values[PRESENCE_COLUMNS];
		bool nulls[PRESENCE_COLUMNS] = {0};

		CHECK_FOR_INTERRUPTS();
		values[0] = PointerGetDatum(GetText(&r));
		values[1] = PointerGetDatum(GetTexts(&r));
		values[2] = PointerGetDatum(GetText(&r)); /* json is stored as text is */
		values[3] = PointerGetDatum(GetTexts(&r));
		values[4] = Int32GetDatum((int32) WireGetU32(&r));
		values[5] = TimestampTzGetDatum((TimestampTz) WireGetU64(&r));
		if (r.failed)
			elog(ERROR, "the feed worker's answer is malformed");
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	pfree(bytes);
	return (Datum) 0;
}
