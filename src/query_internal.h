/*-------------------------------------------------------------------------
 *
 * query_internal.h
 *		What the parts of the query machinery share with each other: the pool's
 *		segment, the worker's transactions and identities, the policies.
 *
 * Process: query_pool.c runs in the feed worker, everything else in query
 * workers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_QUERY_INTERNAL_H
#define CHANGEFEED_QUERY_INTERNAL_H

#include "query.h"
#include "call_function.h"
#include "compat.h"
#include "selection.h"
#include "wire_write.h"

#include "nodes/parsenodes.h"
#include "parser/parse_relation.h"
#include "rewrite/rewriteHandler.h"
#include "utils/jsonb.h"
#include "utils/rel.h"

#include "access/tupdesc.h"
#include "catalog/pg_proc.h"
#include "common/file_utils.h"
#include "fmgr.h"
#include "nodes/bitmapset.h"
#include "nodes/params.h"
#include "nodes/plannodes.h"
#include "port/atomics.h"
#include "storage/fd.h"

/* ---- The segment of one worker ---- */

#define QUERY_SEGMENT_MAGIC 0x43465131 /* "CFQ1" */
#define QUERY_JOBS_SIZE		(256 * 1024)
#define QUERY_RESULTS_SIZE	(1024 * 1024)

typedef struct QuerySegment
{
	uint32 magic; /* set once by the pool */

	/*
	 * The worker ends because somebody's code went on after its time was up (0
	 * or 1).  Written by the worker, read by the pool after its end.
	 */
	pg_atomic_uint32 timed_out;

	/*
	 * Of a job of verdicts: the identity that the worker takes next.  Set with
	 * the job; the pool puts in QUERY_NO_MORE to have the rest done elsewhere.
	 */
	pg_atomic_uint32 next;

	/* Likewise: a worker has died over the job.  Written by the pool. */
	pg_atomic_uint32 one_by_one;
} QuerySegment;

#define QUERY_NO_MORE 0x40000000

#define QUERY_JOBS_OFFSET	 MAXALIGN(sizeof(QuerySegment))
#define QUERY_RESULTS_OFFSET (QUERY_JOBS_OFFSET + QUERY_JOBS_SIZE)
#define QUERY_SEGMENT_SIZE	 (QUERY_RESULTS_OFFSET + QUERY_RESULTS_SIZE)

/* bgw_extra of a query worker.  SharedFeedOfWorker wants generation first. */
typedef struct QueryWorkerExtra
{
	uint32 generation;
	dsm_handle segment;
	uint32 number; /* within the pool */
} QueryWorkerExtra;

/*
 * First message of a worker, with job id 0 and no body: it takes jobs from now
 * on.
 */
#define QUERY_HELLO 'H'

/*
 * Spool files of snapshots.  The prefix makes the server remove them when it
 * starts; the pool removes those of earlier generations of its database.
 */
#define QUERY_SPOOL_DIRECTORY "base/" PG_TEMP_FILES_DIR
#define QUERY_SPOOL_PREFIX	  PG_TEMP_FILE_PREFIX "_changefeed."

/* Errors of others' code go over the wire; they need not be novels. */
#define QUERY_ERROR_LENGTH		1000
#define QUERY_CALL_ERROR_LENGTH 8000

/* ---- query_worker.c ---- */

extern DatabaseFeed *query_feed;
extern uint32 query_generation;
extern uint64 query_job; /* id of the job that runs */

/* The identity of the job of verdicts that is mine to judge next. */
extern uint32 QueryNextIdentity(void);

/* Are they to be judged one by one, because a worker died over one of them? */
extern bool QueryOneByOne(void);
extern MemoryContext query_job_context; /* lives until the job's end */

/* A copy of a string in a message; a missing one is empty. */
extern char *QueryCopyBytes(WireBytes bytes);

/* Starts a result message of the running job in `out`, which is reset. */
extern void QueryMessage(StringInfo out, QueryKind kind);

/* Waits while the queue is full; outside transactions and time limits only. */
extern void QuerySend(StringInfo message);

/* The same for one that more follow at once: the receiver is woken by the last. */
extern void QuerySendPart(StringInfo message);

/* Exits when the feed worker is gone: for long loops. */
extern void QueryCheckPeer(void);

/*
 * A transaction that sees one snapshot and writes nothing.  Always ended by
 * QueryTransactionEnd, which aborts it and takes back whatever an identity
 * may have left in the session.  `time_limit` in ms is for everything in it.
 */
extern void QueryTransactionBegin(int lock_timeout, int64 time_limit);
extern void QueryTransactionEnd(void);

/*
 * A transaction that may write, as a session of the role would begin it, and its
 * commit.  Whatever is not ours has to have happened before QueryLeaveIdentity.
 */
extern void QueryTransactionBeginWriting(Oid role, int64 time_limit);
extern void QueryTransactionCommit(void);

/* Did a time limit interrupt the transaction?  Until the next one begins. */
extern bool QueryTimedOut(void);

/* What a function can leave in the session in spite of a transaction's end. */
extern void QueryForgetSession(void);

/* Gives what is under way that much time from now (ms). */
extern void QueryTimeLimit(int64 time_limit);

/*
 * The same for what will be tried again alone if that was not enough: whoever
 * ignores it is not found guilty.
 */
extern void QueryTrialLimit(int time_limit);

/* ---- query_identity.c ---- */

/* In a query worker, before its first transaction. */
extern void QueryIdentityInit(void);

/*
 * Become that role with those claims until the transaction's end.  Refuses
 * roles that are above the law (ERRCODE_INSUFFICIENT_PRIVILEGE).
 */
extern void QueryEnterIdentity(Oid role, const char *claims);

/*
 * The same in a transaction that may write, without the restrictions that keep
 * deferred triggers and temporary tables away; and as a session of the role,
 * which can become what it is a member of.
 */
extern void QueryEnterCaller(Oid role, const char *claims);
extern void QueryEnterOperator(Oid role, const char *claims);

/* Runs what a commit would run of others, takes back settings, leaves the role. */
extern void QueryLeaveIdentity(void);

/*
 * Another identity of the same role in the same transaction.  Only if nothing
 * that was run for the one before can have left anything behind.
 */
extern void QueryChangeClaims(const char *claims);

/*
 * Have its role and claims been left as they were?  SQL that ran can set them.
 * Who enters an identity in another way notes it.
 */
extern bool QueryIdentityIsIntact(void);
extern void QueryNoteIdentity(Oid role, const char *claims);

/* A setting, until the end of the transaction. */
extern void QuerySetLocal(const char *name, const char *value);

/* The search_path that sessions of the role have; valid in the transaction. */
extern const char *QuerySearchPath(Oid role);
extern void QueryForgetSearchPath(void); /* a transaction begins or has ended */

/* A setting that ALTER ROLE or ALTER DATABASE made for the role, or NULL. */
extern char *QueryRoleSetting(Oid role, const char *name);

/* For a backend that explains instead of a worker; once per call. */
extern void QueryInitBackend(MemoryContext context);

/* ---- query_reads.c ---- */

/* What an expression depends on besides the row and the claims. */
typedef struct Reads
{
	List *relids;	 /* Oid: tables, also in functions and declared */
	List *functions; /* Oid: all that are called and do not come with the
								 * server */
	List *declared;	 /* Oid: those of them whose tables were declared */
	List *unknown;	 /* Oid: those that may read anything */
	List *unsteady;	 /* char *: what changes without a trace in the WAL */
	bool domains;	 /* values are checked by domains, which may get other constraints */
} Reads;

/* Adds what the expression, or the rewritten query, depends on. */
extern void ReadsOfExpression(Node *expression, Reads *reads);
extern void ReadsOfQuery(Query *query, Reads *reads);

/*
 * The queries of an SQL function's body, rewritten; names are found as in the
 * call, if there is one.
 */
extern List *FunctionBody(HeapTuple tuple, Node *call);
extern bool FunctionIsPolymorphic(const FormData_pg_proc *form);

/* Why it has to be looked at now and then, or NULL. */
extern char *ReadsRecheckReason(const Reads *reads);

/* ---- query_check.c ---- */

typedef struct JoinCheck
{
	char *text; /* canonical; empty: none */
	int nparams;
	char **params; /* NULL entries: any ("*") */
	/* found out: */
	List *relids;  /* Oid: tables that it reads, sorted */
	char *recheck; /* as ReadsRecheckReason gives it */
} JoinCheck;

typedef enum JoinCheckResult
{
	JOIN_ALLOWED,
	JOIN_DENIED,
	JOIN_UNKNOWN /* its tables had not been locked: begin once more */
} JoinCheckResult;

/* Locks what it read when it was planned last; before the snapshot. */
extern void JoinCheckLock(const JoinCheck *check);

/*
 * Evaluates it as the identity that was entered, on the active snapshot; what
 * is found out goes to `context`.
 */
extern JoinCheckResult
JoinCheckEvaluate(JoinCheck *check, bool last_attempt, MemoryContext context);

/* The error that whoever is denied gets. */
pg_noreturn extern void JoinCheckRefuse(void);

/* ---- query_source.c ---- */

/* A parameter of the channel's name with the value that the client gave. */
typedef struct SourceParameter
{
	char *column;
	char *text;
	int16 attno;
	int output_index; /* of the column in the query's result */
	Oid type;		  /* base type */
	int32 typmod;
	Oid column_type;
	Datum value;
	bool recheck; /* equal values may have different texts */
	FmgrInfo output;
} SourceParameter;

/* What the query gives behind the columns, whoever may read that. */
typedef enum SourceSystem
{
	SOURCE_PLAIN = 0,
	SOURCE_VERSION, /* xmin */
	SOURCE_PLACE	/* xmin, ctid, tableoid */
} SourceSystem;

/* A source as the job names it, and what was found out about it. */
typedef struct SourceQuery
{
	Oid relid;
	char *filter; /* empty: none */
	int nkeys;
	char **keys;
	int npublished; /* 0: all */
	char **published;
	int nparams;
	SourceParameter *params;
	Selection *selection; /* of the client, or NULL */
	/* found out: */
	char *conditions; /* of the selection, canonical; "" for none */
	int ncolumns;
	int16 *columns;
	int nextra; /* columns of parameters that are not sent */
	int16 *extra;
	bool nothing; /* no row may be read */
	int ncasts;	  /* columns that user-defined casts make JSON of */
	int16 *casts;
	List *more;	   /* Oid: tables that decide about the channel as a whole */
	uint8 recheck; /* RECHECK_* */
	int16 *key;
	SourceSystem system;
} SourceQuery;

/* Reads a source of a job. */
extern void SourceQueryRead(SourceQuery *source, WireReader *body);
extern Selection *SourceQueryReadSelection(WireReader *body);
extern void JoinCheckRead(JoinCheck *check, WireReader *body);

/* Finds the columns; writes the QUERY_DESCRIBE message into `out`. */
extern void SourceQueryDescribe(SourceQuery *source, int index, Oid role, StringInfo out);

/*
 * The number of a column that a client has named: `what` it is named as.  It
 * exists, is published and readable.
 */
extern int16 SourceQueryRequire(const SourceQuery *source, Relation rel, const char *column,
								Oid role, const char *what);
/* Behind the description: the query is to give the key alone. */
extern void SourceQueryKeysOnly(SourceQuery *source);

/* The parameters as values; `types` gets their types. */
extern ParamListInfo SourceQueryParameters(SourceQuery *source, Relation rel, Oid *types);

/* The text of the query for the source's rows, and its plan. */
extern char *SourceQueryText(const SourceQuery *source, Relation rel);
extern PlannedStmt *SourceQueryPlan(const SourceQuery *source, Relation rel, Oid role,
									const char *sql, const Oid *types, ParamListInfo params);

/* Does the row of the query belong to the channel to the letter? */
extern bool SourceQueryMatches(SourceQuery *source, const Datum *values, const bool *isnull);

/* ---- query_selection.c ---- */

/* A column that rows are found by, and hashes of the values that pass. */
typedef struct SelectionLookup
{
	int16 attno; /* 0: there is none */
	Oid column_type;
	Oid type; /* whose hash function was used */
	Oid collation;
	int nhashes;
	uint32 *hashes;
	double selectivity;
} SelectionLookup;

extern void SelectionQueryCheck(SourceQuery *source, Relation rel, Oid role);

/* Appends its part of QUERY_DESCRIBE. */
extern void SelectionQueryDescribe(SourceQuery *source, Relation rel, StringInfo out);

/* The same where there is no source. */
extern void SelectionQueryDescribeNothing(StringInfo out);
extern void SelectionQueryAppendOrder(StringInfo sql, const SourceQuery *source);

/* ---- query_call.c ---- */

extern void QueryRunCall(WireReader *body);
extern void QueryRunExpire(void);

/* ---- query_explain.c ---- */

extern void QueryRunExplain(WireReader *body);

/* ---- query_arguments.c ---- */

/* A JSON object; `what` it is, for errors. */
extern Jsonb *QueryJsonObject(const char *text, const char *what);
extern bool QueryJsonHas(Jsonb *object, const char *name);

/* The object's member as a value of the type; `what` it is, for errors. */
extern Datum QueryJsonValue(Jsonb *object, const char *name, const char *what, Oid type,
							int32 typmod, bool *isnull);

/* An expression that calls the function with the members of the object. */
extern Query *QueryMakeCall(const CallFunction *function, Jsonb *object, ParamListInfo *params);

/* ---- query_expect.c ---- */

/* A row that a caller has seen. */
typedef struct Expectation
{
	char *key; /* JSON */
	uint64 version;
	JoinCheck check;
	SourceQuery source;
	/* found out when it is not true: */
	StringInfoData row; /* JSON; empty: there is none */
	uint64 now;
} Expectation;

extern void ExpectationRead(Expectation *expectation, WireReader *body);

/*
 * Is the row what the caller has seen?  Then nobody else changes it until the
 * transaction's end.  The identity was entered.
 */
extern bool ExpectationHolds(Expectation *expectation, Oid role);

/* ---- query_snapshot.c ---- */

extern void QueryRunSubscribe(WireReader *body);

/* ---- query_pages.c ---- */

/* Pages on their way out: each is u32 length, u32 index of source, text. */
typedef struct QueryPages
{
	uint32 source;
	StringInfoData page; /* begun with "[" */
	int rows;
	bool with_versions;
	StringInfoData versions; /* of the page's rows */
	StringInfoData buffer;
	bool spooled;
	uint64 size;	   /* of the file */
	int64 limit;	   /* of its size, -1: none */
	Size inline_bytes; /* beyond it a file is used */
} QueryPages;

/* An error if there is no disk space for more of them now. */
extern void QueryPagesRequireSpace(void);

/* `role`: whose temp_file_limit counts. */
extern void QueryPagesInit(QueryPages *pages, Oid role);

/* Rows are appended to `page`, with commas, and counted in `rows`. */
extern void QueryPageBegin(QueryPages *pages, int source);
extern void QueryPageVersion(QueryPages *pages, uint64 version); /* of the last row */
extern void QueryPageEnd(QueryPages *pages);

/* Outside transactions: it may take long. */
extern void QueryPagesSend(QueryPages *pages);

/* After an error: closes and removes what was spooled. */
extern void QueryPagesCleanup(void);

/* ---- query_policy.c ---- */

/* How a role sees the rows of a table. */
typedef enum PolicyState
{
	POLICY_NONE = 0,   /* every row may be read */
	POLICY_JUDGED = 1, /* rows have to be judged */
	POLICY_NOTHING = 2 /* no row may be read */
} PolicyState;

typedef struct Policy
{
	struct
	{
		Oid relid;
		Oid role;
	} key;		   /* hash key: must be first */
	bool valid;	   /* reset by invalidations */
	bool reusable; /* false: planned anew for every identity */
	PolicyState state;
	bool may_select;				/* USAGE on the schema, SELECT on a column */
	uint64 fingerprint;				/* of the catalogs, without the search_path */
	char *search_path;				/* that it was planned with */
	MemoryContext context;			/* everything below */
	PlannedStmt *plan;				/* POLICY_JUDGED: one row with one boolean */
	Node *expression;				/* what was planned */
	struct RepeatedPlans *repeated; /* query_repeat.c; NULL: not tried yet */
	int natts;						/* params 1..natts are the columns, natts + 1
								 * is the whole row */
	Oid *param_types;
	Bitmapset *needed;	 /* attribute numbers that the plan reads */
	bool whole_row;		 /* and the row as a whole */
	bool virtual_column; /* it reads one */
	bool functions;		 /* it calls some that are not built in */
	bool named;			 /* it may find by name what is in no fingerprint */
	int ndependencies;
	Oid *dependencies;			 /* tables that the plan reads, sorted */
	bool opaque;				 /* it calls functions whose reads are not known */
	struct Narrowing *narrowing; /* which of their rows matter; NULL: all */
	List *declared;				 /* as in Reads */
	List *unknown;
	char *recheck; /* as ReadsRecheckReason gives it */
	bool domains;  /* as in Reads */

	/* POLICY_JUDGED: what the feed worker could do itself, or why not. */
	struct InlinePolicy *inlined;
} Policy;

/*
 * Lock the tables that the policy read when it was last planned.  False: not
 * known.  Called before the snapshot is taken, as a table that is rewritten
 * between snapshot and lock looks empty.
 */
extern bool PolicyLockDependencies(Oid relid, Oid role);

/*
 * The policy of the identity that was entered.  The table must be locked and a
 * snapshot be active.  Valid until the next call.
 */
extern Policy *PolicyGet(Oid relid, Oid role);

/* The same if it need not be planned, else NULL: nobody's code runs. */
extern Policy *PolicyKept(Oid relid, Oid role);

/* A plan that gives the expression's value as one row. */
extern PlannedStmt *PolicyPlanExpression(Node *expression);

/* The fingerprint as subscriptions know it. */
extern uint64 PolicyFingerprint(Policy *policy);

/* Registers the invalidation callbacks. */
extern void PolicyInit(void);

/* The value of an expression without columns, in the current context. */
extern Datum PolicyEvaluate(Node *expression, bool *isnull);

/* ---- query_inline.c ---- */

/* A policy in a form that can be evaluated apart from SQL. */
typedef struct InlinePolicy InlinePolicy;

/*
 * Looks whether there is one: `expression` is the policies' on the table's
 * columns, of which everything else is known.  In CurrentMemoryContext.
 */
extern InlinePolicy *InlinePrepare(const Policy *policy, Relation rel, Node *expression);

/*
 * The rule for the identity that was entered into `out`: bytes expression
 * (nodeToString; parameters stand for constants), u16 n + n x (u32 type, bytes
 * value; one by value as 8).  Nothing if there is none: then the result says
 * why, as a sentence behind "because", or is NULL when none is needed.
 */
extern char *InlineRule(const Policy *policy, StringInfo out);

/* The rule as SQL; what depends on the identity are parameters. */
extern char *InlineText(const Policy *policy, Relation rel);

/* ---- query_reduce.c ---- */

/* The value of a part of a policy that depends on claims and role alone. */
typedef struct PartValue
{
	Datum value;
	bool isnull;
} PartValue;

/*
 * A copy of the expression with the values of its parameters as far as they
 * shorten it.  It may be false where the expression is null.
 */
extern Node *InlineReduce(Node *node, const PartValue *values);

/* ---- query_narrow.c ---- */

/*
 * What of the tables that a policy reads can make a difference to it.  Filled
 * from the plan, for a role; values are found out for an identity when it is
 * described.
 */
typedef struct Narrowing Narrowing;

/*
 * Reads the plan.  `relids` and `functions` get what SQL functions that the
 * plan calls read and call in turn.  In CurrentMemoryContext.
 */
extern Narrowing *
NarrowPlan(PlannedStmt *plan, int nparams, List **relids, List **functions, bool *opaque);

/*
 * Appends it in the format of QUERY_DESCRIBE; the identity was entered.  Of
 * `others` (Oid), which follow the policy's dependencies, every change matters.
 */
extern void NarrowDescribe(Policy *policy, List *others, StringInfo out);

/* ---- query_repeat.c ---- */

/* A plan that can be run again for another row or identity, once begun. */
typedef struct RepeatedPlan
{
	PlannedStmt *plan;
	int row_param;		/* changes with the row */
	int identity_param; /* changes with the identity */
	Cost cost;
} RepeatedPlan;

typedef struct RepeatedPlans
{
	RepeatedPlan *whole; /* looks at all that an identity may see; NULL: it cannot be repeated */
	RepeatedPlan *probe; /* looks for each row, or NULL: that is the same */
} RepeatedPlans;

/* Of a policy that was kept; what they call leaves nothing behind. */
extern RepeatedPlans *RepeatedPlansGet(Policy *policy);

/* One of them that was begun. */
typedef struct RepeatedRun RepeatedRun;

/* `params` are changed in place before each row. */
extern RepeatedRun *RepeatedBegin(const RepeatedPlan *plan, ParamListInfo params);
extern void RepeatedNextIdentity(RepeatedRun *run);
extern bool RepeatedRow(RepeatedRun *run);

/* ---- query_verdicts.c ---- */

extern void QueryRunVerdicts(WireReader *body);

/* ---- query_fingerprint.c ---- */

/*
 * Hash of what the catalogs say about the visibility of a table's rows to a
 * role: the table, the role and its memberships, the policies and functions,
 * and the same of the tables that the policies read.
 */
extern uint64 FingerprintCompute(Oid relid, Oid role, bool whole_row, const Oid *dependencies,
								 int ndependencies, List **functions);

/* Adds the OIDs of the functions that the expression calls to the list. */
extern List *FingerprintFunctions(List *functions, Node *expression);

#endif /* CHANGEFEED_QUERY_INTERNAL_H */
