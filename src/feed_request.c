/*-------------------------------------------------------------------------
 *
 * feed_request.c
 *		Questions of backends to the feed worker.  See feed_request.h.
 *
 * A slot's life: FREE, ASKED (backend), TAKEN (feed worker), then ANSWERED or
 * FAILED (feed worker) and FREE (backend).  A backend that gives up frees an
 * ASKED, ANSWERED or FAILED slot itself; of a TAKEN one it leaves word
 * (ABANDONED), and the feed worker frees it.  A feed worker that ends fails
 * what it had; if it could not, its backends notice that it is gone.
 *
 * Process: backends (first part), feed worker (second part).  Memory: the
 * answer in the caller's context; in the feed worker a context for each
 * request.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feed.h"
#include "feed_request.h"
#include "shared.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "utils/memutils.h"

/* How much of a turn may go to answers. */
#define TURN_BUDGET_MS 2

/* A backend looks so often whether the feed worker is still there. */
#define LOOK_MS 500

static const FeedRequestFunction kinds[REQUEST_KINDS] = {
	[REQUEST_CONNECTIONS] = StatConnections, [REQUEST_SUBSCRIPTIONS] = StatSubscriptions,
	[REQUEST_CHANNELS] = StatChannels,		 [REQUEST_GATEWAYS] = StatGateways,
	[REQUEST_METRICS] = StatMetrics,		 [REQUEST_PRESENCE] = PresenceAnswer,
};

void
FeedRequestInit(RequestBoard *board)
{
	int i;

	memset(board, 0, sizeof(*board));
	pg_atomic_init_u32(&board->asked, 0);
	ConditionVariableInit(&board->freed);
	for (i = 0; i < REQUEST_SLOTS; i++)
		ConditionVariableInit(&board->slots[i].answered);
}

/* The lock is held exclusively, here and in the next. */
static void
FreeSlot(RequestBoard *board, RequestSlot *slot)
{
	if (slot->state == REQUEST_ASKED)
		pg_atomic_fetch_sub_u32(&board->asked, 1);
	slot->state = REQUEST_FREE;
	ConditionVariableSignal(&board->freed);
}

static void
FailSlot(RequestBoard *board, RequestSlot *slot, int sqlerrcode, const char *message)
{
	if (slot->state == REQUEST_ABANDONED)
	{
		FreeSlot(board, slot);
		return;
	}
	if (slot->state == REQUEST_ASKED)
		pg_atomic_fetch_sub_u32(&board->asked, 1);
	slot->state = REQUEST_FAILED;
	slot->sqlerrcode = sqlerrcode;
	strlcpy(slot->message, message, sizeof(slot->message));
	ConditionVariableBroadcast(&slot->answered);
}

/* ---- backends ---- */

/* What this backend has asked for; it can ask for one thing at a time. */
static struct
{
	DatabaseFeed *feed;
	RequestSlot *slot; /* NULL: none yet */
	bool waiting;	   /* counted in the line */
	uint32 generation;
	uint32 proc; /* of the feed worker */
	TimestampTz deadline;
} asking;

static void
GiveUp(int code, Datum arg)
{
	RequestBoard *board = &asking.feed->requests;
	RequestSlot *slot = asking.slot;
	dsm_handle segment = DSM_HANDLE_INVALID;

	ConditionVariableCancelSleep();
	LWLockAcquire(shared_feeds->request_lock, LW_EXCLUSIVE);
	if (asking.waiting)
	{
		board->waiting--;

		/* The wake-up for a free slot may have been ours. */
		ConditionVariableSignal(&board->freed);
	}
	if (slot != NULL)
	{
		if (slot->state == REQUEST_TAKEN)
			slot->state = REQUEST_ABANDONED;
		else
		{
			if (slot->state == REQUEST_ANSWERED)
				segment = slot->segment;
			FreeSlot(board, slot);
		}
	}
	LWLockRelease(shared_feeds->request_lock);
	asking.waiting = false;
	asking.slot = NULL;
	if (segment != DSM_HANDLE_INVALID)
		dsm_unpin_segment(segment);
}

static bool
FeedWorkerIsThere(void)
{
	DatabaseFeed *feed = asking.feed;

	return pg_atomic_read_u32(&feed->feed_proc) == asking.proc &&
		   feed->generation == asking.generation && feed->database == MyDatabaseId;
}

static void
CheckPatience(void)
{
	if (!FeedWorkerIsThere())
		ereport(ERROR, (errcode(ERRCODE_CANNOT_CONNECT_NOW),
						errmsg("the feed of this database has ended while it was asked"),
						errhint("It is started again by itself; try again.")));
	if (GetCurrentTimestamp() >= asking.deadline)
		ereport(ERROR, (errcode(ERRCODE_CANNOT_CONNECT_NOW),
						errmsg("the feed of this database has not answered within %d ms",
							   REQUEST_TIMEOUT_MS),
						errhint("The feed worker is stopped, starting or too busy; the view "
								"changefeed.stat_feed has its process number.")));
}

/* The lock is held on return. */
static RequestSlot *
TakeSlot(RequestBoard *board)
{
	for (;;)
	{
		int i;

		LWLockAcquire(shared_feeds->request_lock, LW_EXCLUSIVE);

		/* Who comes now does not overtake those in line. */
		for (i = 0; i < REQUEST_SLOTS && (asking.waiting || board->waiting == 0); i++)
			if (board->slots[i].state == REQUEST_FREE)
			{
				if (asking.waiting)
					board->waiting--;
				asking.waiting = false;
				return &board->slots[i];
			}
		if (!asking.waiting)
			board->waiting++;
		asking.waiting = true;
		LWLockRelease(shared_feeds->request_lock);
		(void) ConditionVariableTimedSleep(&board->freed, LOOK_MS,
										   compat_wait_event("ChangefeedRequest"));
		CheckPatience();
	}
}

/* Returns with the segment mapped, and the slot free again. */
static dsm_segment *
Ask(FeedRequestKind kind, const void *arguments, Size length, Size *answer_length)
{
	RequestBoard *board = &asking.feed->requests;
	RequestSlot *slot = TakeSlot(board);
	RequestState state;
	dsm_segment *segment;

	slot->state = REQUEST_ASKED;
	slot->serial = ++board->last_serial;
	slot->kind = kind;
	slot->length = length;
	if (length > 0)
		memcpy(slot->arguments, arguments, length);
	asking.slot = slot;
	pg_atomic_fetch_add_u32(&board->asked, 1);
	LWLockRelease(shared_feeds->request_lock);
	ConditionVariableCancelSleep();

	ConditionVariablePrepareToSleep(&slot->answered);
	SharedWake(&asking.feed->feed_proc);
	for (;;)
	{
		LWLockAcquire(shared_feeds->request_lock, LW_SHARED);
		state = slot->state;
		LWLockRelease(shared_feeds->request_lock);
		if (state == REQUEST_ANSWERED || state == REQUEST_FAILED)
			break;
		(void) ConditionVariableTimedSleep(&slot->answered, LOOK_MS,
										   compat_wait_event("ChangefeedRequest"));
		LWLockAcquire(shared_feeds->request_lock, LW_SHARED);
		state = slot->state;
		LWLockRelease(shared_feeds->request_lock);
		if (state != REQUEST_ANSWERED && state != REQUEST_FAILED)
			CheckPatience();
	}
	ConditionVariableCancelSleep();

	/* From here on the slot's fields are ours alone. */
	if (state == REQUEST_FAILED)
		ereport(ERROR, (errcode(slot->sqlerrcode), errmsg_internal("%s", pstrdup(slot->message))));
	segment = dsm_attach(slot->segment);
	if (segment == NULL)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
						errmsg("the feed's answer is gone before it was read")));
	*answer_length = slot->length;

	/* Its cleanup unpins the segment, which lives on as it is mapped. */
	GiveUp(0, (Datum) 0);
	return segment;
}

static void
NotRunning(const DatabaseFeed *feed)
{
	bool wanted = feed != NULL && feed->state == FEED_WANTED;

	ereport(ERROR, (errcode(wanted ? ERRCODE_CANNOT_CONNECT_NOW
								   : ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					wanted ? errmsg("the feed of this database is starting")
						   : errmsg("the feed of this database does not run"),
					errhint("The view changefeed.stat_feed has its state, and the server's log "
							"the reason.")));
}

char *
FeedAsk(FeedRequestKind kind, const void *arguments, Size length, Size *answer_length)
{
	DatabaseFeed *feed;
	dsm_segment *volatile segment = NULL;
	char *answer;

	RequirePreload();
	if (length > REQUEST_ARGUMENTS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("arguments for the feed are longer than %d bytes", REQUEST_ARGUMENTS)));
	feed = SharedFeedOfMyDatabase();
	memset(&asking, 0, sizeof(asking));
	if (feed != NULL)
	{
		asking.feed = feed;
		asking.generation = feed->generation;
		asking.proc = pg_atomic_read_u32(&feed->feed_proc);
		asking.deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), REQUEST_TIMEOUT_MS);
	}
	if (feed == NULL || asking.proc == PG_UINT32_MAX)
		NotRunning(feed);

	PG_ENSURE_ERROR_CLEANUP(GiveUp, (Datum) 0);
	{
		segment = Ask(kind, arguments, length, answer_length);
	}
	PG_END_ENSURE_ERROR_CLEANUP(GiveUp, (Datum) 0);

	/* After an error the transaction's end unmaps it. */
	answer = palloc(Max(*answer_length, 1));
	memcpy(answer, dsm_segment_address(segment), *answer_length);
	dsm_detach(segment);
	return answer;
}

/* ---- feed worker ---- */

typedef struct Work
{
	bool active;
	FeedRequestFunction function;
	FeedAnswer answer;
	TimestampTz since;
} Work;

static Work works[REQUEST_SLOTS]; /* by slot */
static int nworks;
static int next_work; /* whose turn it is */

static void
AtExit(int code, Datum arg)
{
	RequestBoard *board = &feed_shared->requests;
	int i;

	LWLockAcquire(shared_feeds->request_lock, LW_EXCLUSIVE);
	for (i = 0; i < REQUEST_SLOTS; i++)
	{
		RequestSlot *slot = &board->slots[i];

		if (slot->state == REQUEST_ASKED || slot->state == REQUEST_TAKEN ||
			slot->state == REQUEST_ABANDONED)
			FailSlot(board, slot, ERRCODE_CANNOT_CONNECT_NOW,
					 "the feed of this database has ended while it was asked");
	}
	LWLockRelease(shared_feeds->request_lock);
}

void
FeedRequestsInit(void)
{
	RequestBoard *board = &feed_shared->requests;
	int i;

	/* What an earlier one was at, should it have ended without a word. */
	LWLockAcquire(shared_feeds->request_lock, LW_EXCLUSIVE);
	for (i = 0; i < REQUEST_SLOTS; i++)
		if (board->slots[i].state == REQUEST_TAKEN || board->slots[i].state == REQUEST_ABANDONED)
			FailSlot(board, &board->slots[i], ERRCODE_CANNOT_CONNECT_NOW,
					 "the feed of this database has ended while it was asked");
	LWLockRelease(shared_feeds->request_lock);
	before_shmem_exit(AtExit, (Datum) 0);
}

static void
EndWork(int i)
{
	MemoryContextDelete(works[i].answer.context);
	works[i].active = false;
	nworks--;
}

/* The oldest that nobody has taken; false: there is none. */
static bool
TakeRequest(void)
{
	RequestBoard *board = &feed_shared->requests;
	int first = -1;
	int i;
	Work *work;
	RequestSlot *slot;

	if (pg_atomic_read_u32(&board->asked) == 0)
		return false;
	LWLockAcquire(shared_feeds->request_lock, LW_EXCLUSIVE);
	for (i = 0; i < REQUEST_SLOTS; i++)
		if (board->slots[i].state == REQUEST_ASKED &&
			(first < 0 || board->slots[i].serial < board->slots[first].serial))
			first = i;
	if (first >= 0)
	{
		board->slots[first].state = REQUEST_TAKEN;
		pg_atomic_fetch_sub_u32(&board->asked, 1);
	}
	LWLockRelease(shared_feeds->request_lock);
	if (first < 0)
		return false;

	slot = &board->slots[first];
	work = &works[first];
	Assert(!work->active);
	memset(work, 0, sizeof(*work));
	work->active = true;
	nworks++;
	work->function = kinds[slot->kind];
	work->since = feed_now;
	work->answer.context = AllocSetContextCreate(feed_context, "changefeed answer",
												 ALLOCSET_DEFAULT_SIZES);
	work->answer.arguments = slot->arguments;
	work->answer.length = slot->length;
	return true;
}

/* May throw: no memory for the segment. */
static void
Publish(int i)
{
	RequestBoard *board = &feed_shared->requests;
	RequestSlot *slot = &board->slots[i];
	StringInfo bytes = &works[i].answer.bytes;
	dsm_segment *segment = dsm_create(Max(bytes->len, 1), DSM_CREATE_NULL_IF_MAXSEGMENTS);
	dsm_handle handle;
	bool wanted;

	if (segment == NULL)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_RESOURCES),
						errmsg("the server has no segment of shared memory left for the answer")));
	memcpy(dsm_segment_address(segment), bytes->data, bytes->len);
	handle = dsm_segment_handle(segment);
	dsm_pin_segment(segment);
	dsm_detach(segment);

	LWLockAcquire(shared_feeds->request_lock, LW_EXCLUSIVE);
	wanted = slot->state == REQUEST_TAKEN;
	if (wanted)
	{
		slot->segment = handle;
		slot->length = bytes->len;
		slot->state = REQUEST_ANSWERED;
		ConditionVariableBroadcast(&slot->answered);
	}
	else
		FreeSlot(board, slot);
	LWLockRelease(shared_feeds->request_lock);
	if (!wanted)
		dsm_unpin_segment(handle);
}

static bool
IsAbandoned(int i)
{
	RequestBoard *board = &feed_shared->requests;
	RequestSlot *slot = &board->slots[i];
	bool abandoned = slot->state == REQUEST_ABANDONED;

	if (!abandoned)
		return false;
	LWLockAcquire(shared_feeds->request_lock, LW_EXCLUSIVE);
	FreeSlot(board, slot);
	LWLockRelease(shared_feeds->request_lock);
	return true;
}

static void
Fail(int i, const ErrorData *error)
{
	RequestBoard *board = &feed_shared->requests;

	LWLockAcquire(shared_feeds->request_lock, LW_EXCLUSIVE);
	FailSlot(board, &board->slots[i], error->sqlerrcode, error->message);
	LWLockRelease(shared_feeds->request_lock);
	EndWork(i);
}

/* A portion of one answer. */
static RequestProgress
Advance(int i)
{
	Work *work = &works[i];
	MemoryContext context = CurrentMemoryContext;
	volatile RequestProgress progress = REQUEST_DONE;
	ErrorData *volatile error = NULL;

	if (IsAbandoned(i))
	{
		EndWork(i);
		return REQUEST_DONE;
	}
	PG_TRY();
	{
		if (work->answer.bytes.data == NULL)
		{
			MemoryContextSwitchTo(work->answer.context);
			initStringInfo(&work->answer.bytes);
			MemoryContextSwitchTo(context);
		}
		work->answer.waited_ms = TimestampDifferenceMilliseconds(work->since, feed_now);
		progress = work->function(&work->answer);
		MemoryContextSwitchTo(context);
		if ((Size) work->answer.bytes.len > REQUEST_ANSWER_MAX)
			ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
							errmsg("the feed's answer would be larger than %zu MB",
								   REQUEST_ANSWER_MAX / (1024 * 1024))));
		if (progress == REQUEST_DONE)
			Publish(i);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();

	if (error == NULL)
	{
		if (progress == REQUEST_DONE)
			EndWork(i);
		return progress;
	}

	/* Whatever the transaction holds goes with it. */
	AbortCurrentTransaction();
	StartTransactionCommand();
	MemoryContextSwitchTo(context);
	Fail(i, error);
	return REQUEST_DONE;
}

long
FeedRequestsAdvance(void)
{
	instr_time start;
	int tried = 0;

	while (TakeRequest())
		;
	if (nworks == 0)
		return -1;

	INSTR_TIME_SET_CURRENT(start);
	while (nworks > 0 && tried < REQUEST_SLOTS)
	{
		instr_time now;

		next_work = (next_work + 1) % REQUEST_SLOTS;
		if (!works[next_work].active || Advance(next_work) == REQUEST_WAITS)
			tried++;
		else
			tried = 0;
		INSTR_TIME_SET_CURRENT(now);
		INSTR_TIME_SUBTRACT(now, start);
		if (INSTR_TIME_GET_MILLISEC(now) >= TURN_BUDGET_MS)
			break;
	}
	if (nworks == 0)
		return -1;

	/* All that is left waits for something, or the budget is used up. */
	return tried >= REQUEST_SLOTS ? LOOK_MS : 0;
}
