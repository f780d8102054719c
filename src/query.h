/*-------------------------------------------------------------------------
 *
 * query.h
 *		Query workers: SQL that may be slow or is somebody's own.
 *
 * The feed worker never runs SQL that a client, a table owner or a policy can
 * influence.  It submits jobs to a pool of query workers, which run them under
 * the subscriber's role and claims, and gets results by callback.  This header
 * has both the pool's interface (feed worker: query_pool.c) and the messages
 * that pool and workers exchange (query_worker.c, query_snapshot.c,
 * query_policy.c).
 *
 * Every query worker has a segment of its own with two shm_mq: jobs and
 * results.  A worker runs one job at a time.  Messages are written with
 * StringInfo in host order and read with wire.h; `bytes` is u32 length + data.
 *
 * Process: feed worker and query workers.  Locks: none of ours; a query worker
 * takes ordinary relation locks, always with a lock time-out.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_QUERY_H
#define CHANGEFEED_QUERY_H

#include "pg_changefeed.h"
#include "shared.h"
#include "wire.h"

#include "lib/stringinfo.h"

/*
 * Code of the error that there is no space for a snapshot now.  PL/pgSQL's RAISE takes
 * no small letters, so that it is nobody else's.
 */
#define QUERY_NO_SPACE "cf001"

/*
 * A job is: u64 id, u8 kind, body.  A result message is: u64 id, u8 kind,
 * body.  The last message of every job is QUERY_DONE or QUERY_ERROR.
 */
typedef enum QueryKind
{
	/* ---- jobs ---- */

	/*
	 * What may this identity read of these sources, and what is in them now?
	 *
	 * u32 role, bytes claims (JSON text, empty: none), u8 flags
	 * (QUERY_WITH_ROWS: take the snapshot; otherwise only DESCRIBE;
	 * QUERY_WITH_POSITION: and SNAPSHOT; QUERY_WITH_KEYS: with the rows, which
	 * have only the key, in the order of its columns), bytes
	 * join_check (empty: none), u16 n + n x (u8 given, bytes text) values of
	 * the template's parameters for it, u64 seed of digests, u16 n sources,
	 * each: u32 relid, bytes filter (SQL boolean expression on the
	 * table's columns, checked at creation; empty: none), u16 n + n x bytes
	 * names of key columns, u16 n + n x bytes names of published columns (0:
	 * all), u16 n + n x (bytes column, bytes text) template parameters: the
	 * column's output text has to equal the text.  Then bytes selection: what
	 * the client wrote behind "?" (empty: nothing).
	 */
	QUERY_SUBSCRIBE = 'S',

	/*
	 * Which of these rows may these identities see?  The rows need not be in
	 * the table.
	 *
	 * u32 n identities, u32 relid, bytes description (a RECORD_DESCRIPTION
	 * message), u32 n rows, each bytes (HeapTupleHeader bytes of a record),
	 * then for each identity: u32 role, bytes claims, u64 fingerprint that the
	 * subscription knows, u16 n + n x u16 attno of columns whose JSON is made
	 * by user-defined casts, u32 n + n x u32 index of a row.  Then, optional:
	 * u32 n + n x u32 index of a row that has only the columns of the replica
	 * identity (has_old 2); its other columns are missing, not null.
	 *
	 * The worker answers identity by identity and takes the next one from the
	 * counter in its segment, so that the pool can take the rest away.
	 */
	QUERY_VERDICTS = 'V',

	/*
	 * Call a function for an identity.
	 *
	 * u32 role, bytes claims, bytes name that the function is exposed by, bytes
	 * arguments (a JSON object), bytes key (empty: none), u16 n expectations,
	 * each: bytes key of the row (a JSON object), u64 version, then of
	 * QUERY_SUBSCRIBE join_check with the values of its parameters, one source,
	 * and bytes selection.
	 */
	QUERY_CALL = 'C',

	/* Remove the results of calls that are older than idempotency_age. */
	QUERY_EXPIRE = 'X',

	/*
	 * changefeed.explain for the console: u32 role that asks, bytes its claims,
	 * bytes channel, bytes claims that are asked about
	 */
	QUERY_EXPLAIN = 'W',

	/* ---- results ---- */

	/*
	 * Of QUERY_SUBSCRIBE, once for each source in order (without any, once for the
	 * channel: only with what the check depends on): u16 index of source,
	 * u16 n + n x u16 attno of the columns to send (published and readable by
	 * the role, in attno order), n x bytes their names, u16 n + n x u16 attno of key columns, u8 rls
	 * (0: every row may be read, 1: rows have to be judged by QUERY_VERDICTS,
	 * 2: no row may be read), u64 fingerprint, u32 n + n x u32 relid of tables
	 * that the policies read (dependencies; of the first source also those
	 * that join_check reads), u16 n + n x u16 attno of those
	 * columns to send whose JSON is made by user-defined casts, bytes
	 * narrowing, u8 1 if the policies call functions that are not built in,
	 * u8 recheck (RECHECK_*: it depends on something that
	 * changes without a trace in the WAL), bytes rule that the feed worker
	 * judges rows by (policy_rule.c; empty: none), and of the
	 * selection: bytes conditions (SQL boolean expression, canonical; empty:
	 * none), u16 n + n x u16 attno of columns that it reads, u16 attno of the
	 * column that rows are found by (0: none), u32 type of that column, u32
	 * type whose hash function is used, u32 collation, u32 n + n x u32 hash of
	 * a value.
	 *
	 * The narrowing says which changes of the dependencies can make a
	 * difference to this identity: u8 opaque (1: the policies call functions
	 * whose reads are not known), then for each dependency in order u8
	 * NARROW_*; for NARROW_SCANS: u16 n + n x u16 attno of the columns that are
	 * used (n 0xFFFF: all), u16 n scans, each: u16 n conditions, all of which a
	 * row has to fulfil to be read by it, each: u16 attno, u32 type of the
	 * column, u32 equality function, u32 hash function of the column, u32 hash
	 * function of the values, u32 collation, u16 row attno (0: none), then:
	 * u32 type; without a row attno: u16 length and u8 whether by value of that
	 * type, u16 n + n x bytes values, one of which it has to equal (a Datum by
	 * reference as its bytes, one by value as 8).
	 */
	QUERY_DESCRIBE = 'D',

	/*
	 * Of QUERY_SUBSCRIBE with rows or position, before the first page: u32 xmin, u32 xmax,
	 * u32 n + n x u32 xip (top-level), u64 LSN N: the WAL insert position
	 * noted after the snapshot was taken
	 */
	QUERY_SNAPSHOT = 'N',

	/*
	 * A page of rows, small snapshots only: u16 index of source, bytes JSON
	 * array of row objects.  Every source has at least one page, which may be
	 * empty: [].  With QUERY_WITH_VERSIONS ,"versions":[...] follows the array.
	 */
	QUERY_PAGE = 'P',

	/*
	 * All pages are in this file (of the format of LINK_SNAPSHOT, prefix index
	 * = index of source): bytes path, u64 size.  The receiver opens and
	 * unlinks it.
	 */
	QUERY_FILE = 'F',

	/*
	 * Of QUERY_SUBSCRIBE with rows, behind QUERY_SNAPSHOT, u64, u64: sum of
	 * the hashes of the rows of sources with RECHECK_ROWS (recheck.c), u64
	 * number of rows
	 */
	QUERY_DIGEST = 'G',

	/*
	 * Of QUERY_VERDICTS, for some identities, in order, each: u32 length and u32 index of
	 * the identity, u32 microseconds that it took, u64 LSN noted after the last
	 * snapshot used, u8 QueryVerdictStatus.  OK: u64 fingerprint, u8 1 if the policies
	 * may find labels or functions by name (the LSN was noted behind that then), u32 n + n x
	 * u32 dependencies, bytes bitmap (bit i: the i-th of its rows is visible),
	 * and for each visible row in order, for each column with a cast, bytes
	 * JSON; ERROR: bytes SQLSTATE, bytes message
	 */
	QUERY_VERDICT = 'R',

	/* Of QUERY_CALL, QUERY_EXPLAIN: bytes JSON, u64 xid with its epoch (0: it got none) */
	QUERY_RESULT = 'A',

	/*
	 * Of QUERY_CALL, which was rolled back: u16 index of an expectation that is
	 * not true, bytes row as it is now (JSON; empty: there is none), u64 version
	 */
	QUERY_CONFLICT = 'K',

	/* Of QUERY_EXPIRE: u64 seconds until there is more to remove (0: nothing) */
	QUERY_EXPIRED = 'Y',

	/* bytes SQLSTATE, bytes message, bytes hint, bytes detail */
	QUERY_ERROR = 'E',
	QUERY_DONE = 'Z' /* no body */
} QueryKind;

typedef enum QueryVerdictStatus
{
	QUERY_VERDICT_OK = 0,
	QUERY_VERDICT_ERROR = 1,	/* of the identity's policies or casts */
	QUERY_VERDICT_OUTDATED = 2, /* another fingerprint, nothing was judged */
	QUERY_VERDICT_LOCKED = 3,	/* somebody holds a lock: try again */
	QUERY_VERDICT_UNDECIDED = 4 /* the job failed as a whole */
} QueryVerdictStatus;

#define NARROW_ANY	 0 /* every change concerns */
#define NARROW_SCANS 1 /* those that are described */
#define NARROW_NONE	 2 /* it has no rows of its own */

#define QUERY_WITH_ROWS		1
#define QUERY_WITH_VERSIONS 2 /* pages end with "versions", of the rows in order */
#define QUERY_DIGEST_ONLY	4 /* read the rows, but send only their digest */
#define QUERY_WITH_POSITION 8
#define QUERY_WITH_KEYS		16
#define QUERY_PUBLISH		32 /* no sources; denied is an answer: rls is 2 then */

/* What of a source has to be looked at again now and then; see recheck.c. */
#define RECHECK_ROWS	1
#define RECHECK_CHANNEL 2 /* join_check */

/* An order-independent hash of rows as JSON. */
typedef struct RowDigest
{
	uint64 a;
	uint64 b;
} RowDigest;

extern void
RowDigestAdd(RowDigest *digest, uint64 seed, int source, const char *row, int length, bool add);

/* ---- The pool, for the feed worker ---- */

typedef enum QueryPriority
{
	QUERY_FIRST,  /* verdicts: live changes wait for them */
	QUERY_LATER,  /* snapshots */
	QUERY_COSTLY, /* verdicts of an identity that is known to be slow */
	QUERY_CALLS	  /* calls, in workers of their own */
} QueryPriority;

/*
 * Called for every result message of the job, the last one included, from
 * QueryPoolPoll.  When the worker died twice over a job, or it cannot be
 * started, the callback gets a QUERY_ERROR made here (SQLSTATE 57P01).  The
 * callback may submit and cancel jobs.
 */
typedef void (*QueryCallback)(void *arg, uint64 job, QueryKind kind, WireReader *body);

/* Starts setting_query_workers workers for my database. */
extern void QueryPoolStart(DatabaseFeed *feed, int feed_index);

/*
 * Takes results, hands out waiting jobs, restarts dead workers with back-off.
 * Never blocks.  Returns true when there was something to do (call again).
 */
extern bool QueryPoolPoll(void);

/* Milliseconds until QueryPoolPoll has something to do by time, or -1. */
extern long QueryPoolTimeout(void);

/* Copies the body.  Returns the job's id, never 0. */
extern uint64 QuerySubmit(QueryKind kind, const char *body, Size length, QueryPriority priority,
						  QueryCallback callback, void *arg);

/* Has the job that body, and has no worker begun with it? */
extern bool QueryMayJoin(uint64 job, const char *body, Size length);

/*
 * A job of verdicts.  `cost` is how many microseconds it is expected to take if
 * its identity is known to be slow, else 0.  The callback gets one
 * QUERY_VERDICT for each identity, whatever happens, and nothing else.
 */
extern uint64
QuerySubmitVerdicts(const char *body, Size length, uint32 cost, QueryCallback callback, void *arg);

/*
 * A call.  `repeatable`: if its worker dies, it may be run again, since nothing
 * is done twice; otherwise the callback gets an error that says that it is not
 * known what has been done (40003).
 */
extern uint64
QuerySubmitCall(const char *body, Size length, bool repeatable, QueryCallback callback, void *arg);

/*
 * The callback will not be called again.  A waiting job is dropped; a running
 * one is interrupted if it takes rows, otherwise its result is ignored.
 */
extern void QueryCancel(uint64 job);

/* Jobs waiting and running, for the views. */
extern int QueryPoolBacklog(void);

/* Workers that have one. */
extern int QueryPoolBusy(void);

#endif /* CHANGEFEED_QUERY_H */
