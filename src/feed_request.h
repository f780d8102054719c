/*-------------------------------------------------------------------------
 *
 * feed_request.h
 *		A backend asks the feed worker of its database for what only that knows.
 *
 * Each database has a few slots in shared memory.  A backend takes a free one,
 * or stands in line for one, writes kind and arguments, and sleeps.  The feed
 * worker takes the requests in the order of their coming, makes the answer in
 * portions, a few milliseconds of each turn, and publishes it as a segment of
 * dynamic shared memory that is pinned until the backend has it.  Nothing that
 * a backend does or fails to do can make the feed worker wait: it gives a slot
 * up (FeedAsk's cleanup) at an error, a cancel, a time-out or its end, and who
 * finds the slot then throws the answer away.
 *
 * To add a kind: a number in FeedRequestKind, and its function in the table
 * `kinds` of feed_request.c.
 *
 * Process: backends and query workers (FeedAsk), feed worker (the rest).
 * Locks: shared_feeds->request_lock for the slots' states, held for a few
 * instructions only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_FEED_REQUEST_H
#define CHANGEFEED_FEED_REQUEST_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/dsm.h"

/* What a backend may ask; see `kinds` in feed_request.c. */
typedef enum FeedRequestKind
{
	REQUEST_CONNECTIONS = 0,
	REQUEST_SUBSCRIPTIONS,
	REQUEST_CHANNELS,
	REQUEST_GATEWAYS,
	REQUEST_METRICS,
	REQUEST_PRESENCE,
	REQUEST_KINDS /* how many there are */
} FeedRequestKind;

#define REQUEST_SLOTS	   8	/* of each database */
#define REQUEST_ARGUMENTS  1024 /* bytes */
#define REQUEST_MESSAGE	   256
#define REQUEST_TIMEOUT_MS 5000

/* A larger answer is an error. */
#define REQUEST_ANSWER_MAX ((Size) 64 * 1024 * 1024)

typedef enum RequestState
{
	REQUEST_FREE = 0,
	REQUEST_ASKED,	   /* the feed worker has not seen it */
	REQUEST_TAKEN,	   /* the feed worker is at it */
	REQUEST_ABANDONED, /* so it is, but nobody waits any more: it frees it */
	REQUEST_ANSWERED,  /* `segment` is pinned; the backend frees both */
	REQUEST_FAILED	   /* sqlerrcode and message say why */
} RequestState;

typedef struct RequestSlot
{
	RequestState state;
	uint64 serial; /* the order of coming */
	FeedRequestKind kind;
	uint32 length; /* of the arguments, then of the answer */
	dsm_handle segment;
	int sqlerrcode;
	char message[REQUEST_MESSAGE];
	ConditionVariable answered;
	char arguments[REQUEST_ARGUMENTS];
} RequestSlot;

/* Part of a database's entry in shared memory. */
typedef struct RequestBoard
{
	pg_atomic_uint32 asked; /* slots in that state; changed under the lock */
	uint64 last_serial;
	int waiting;			 /* backends that stand in line for a slot */
	ConditionVariable freed; /* they sleep here, in the order of their coming */
	RequestSlot slots[REQUEST_SLOTS];
} RequestBoard;

/* shared.c: when the server starts. */
extern void FeedRequestInit(RequestBoard *board);

/*
 * Asks, and returns the answer, palloc'ed.  Errors: 55000 when this database
 * has no feed, 57P03 when it is just starting or does not answer in time, and
 * what the feed worker says.  May be cancelled at any time.  The caller has
 * seen to who may ask.
 */
extern char *FeedAsk(FeedRequestKind kind, const void *arguments, Size length, Size *answer_length);

/* ---- the feed worker's side ---- */

typedef enum RequestProgress
{
	REQUEST_DONE,
	REQUEST_MORE, /* call again soon: this was a portion */
	REQUEST_WAITS /* call again when something has happened */
} RequestProgress;

typedef struct FeedAnswer
{
	const char *arguments;
	Size length;
	StringInfoData bytes;  /* the answer so far; append to it */
	MemoryContext context; /* for `state`: as long as the request */
	void *state;		   /* NULL at the first call; the function's own */
	int64 waited_ms;	   /* since the first call */
} FeedAnswer;

/*
 * Makes a portion of the answer: about a millisecond's work, since everybody's
 * changes wait for it.  Between calls whatever it looked at may be gone: keep
 * numbers, not pointers.  An ereport(ERROR) goes to the backend.
 */
typedef RequestProgress (*FeedRequestFunction)(FeedAnswer *answer);

/* Once a turn.  Returns 0: call again at once, -1, or ms until it has to be. */
extern long FeedRequestsAdvance(void);

/* At start; registers for the process's end, too. */
extern void FeedRequestsInit(void);

/* stat_collect.c */
extern RequestProgress StatConnections(FeedAnswer *answer);
extern RequestProgress StatSubscriptions(FeedAnswer *answer);
extern RequestProgress StatChannels(FeedAnswer *answer);
extern RequestProgress StatGateways(FeedAnswer *answer);
extern RequestProgress StatMetrics(FeedAnswer *answer);

/* presence_sql.c */
extern RequestProgress PresenceAnswer(FeedAnswer *answer);

#endif /* CHANGEFEED_FEED_REQUEST_H */
