/*-------------------------------------------------------------------------
 *
 * query_snapshot.c
 *		What may an identity read of some tables, and what is in them now?
 *
 * Locks come before the snapshot, since a table that is rewritten in between
 * looks empty, and the tables that policies read count among them.  The rows
 * are read under the role and its claims, as any SELECT of the role would read
 * them, and encoded in batches under pinned settings.
 *
 * Rows leave the transaction as pages (query_pages.c).  Nothing is sent before
 * the transaction has ended: however long the receiver takes, no snapshot is
 * held for it.
 *
 * Process: query worker.  Locks: AccessShareLock on sources, partitions and
 * dependencies until the transaction's end.  Memory: the request and what is
 * to be sent in query_job_context, a batch of rows in a context of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"

#include "encode.h"
#include "log.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/params.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* A snapshot that meets a lock lets others go first and tries again. */
#define SNAPSHOT_LOCK_TIMEOUT 50 /* ms */
#define SNAPSHOT_TIME_FACTOR  60 /* times changefeed.policy_timeout */

#define PAGE_BYTES	(64 * 1024)
#define PAGE_ROWS	1000
#define BATCH_ROWS	1000
#define BATCH_BYTES (256 * 1024)

typedef struct Request
{
	Oid role;
	char *claims;
	uint8 flags;
	JoinCheck check;
	bool denied; /* with QUERY_PUBLISH that is an answer */
	uint64 seed;
	RowDigest digest; /* of all rows of sources with RECHECK_ROWS */
	uint64 rows;	  /* of all sources */
	int nsources;
	SourceQuery *sources;
	StringInfoData *describes; /* one message each */
	StringInfoData snapshot;   /* the message */
} Request;

static void
RowTooLarge(const SourceQuery *source)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("a row of table \"%s\" has more than %d MB as JSON",
					get_rel_name(source->relid), ENCODE_MAX_ROW / (1024 * 1024)),
			 errhint("Leave large columns out, with \"select\" or in the channel's \"columns\", or "
					 "exclude the row by a condition or filter.")));
}

/*
 * Encodes a batch.  Settings are pinned; casts may run, still as the client's
 * role and within the transaction's limits.
 */
static void
EncodeBatch(Request *request, int index, RowEncoder *encoder, TupleDesc tupdesc, HeapTuple *tuples,
			int ntuples, QueryPages *pages, int64 *left)
{
	SourceQuery *source = &request->sources[index];
	bool digest_only = (request->flags & QUERY_DIGEST_ONLY) != 0;
	int nestlevel = EncodePinnedBegin();
	MemoryContext row_context = AllocSetContextCreate(CurrentMemoryContext, "changefeed row",
													  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(row_context);
	Datum *values = MemoryContextAlloc(old, sizeof(Datum) * tupdesc->natts);
	bool *isnull = MemoryContextAlloc(old, sizeof(bool) * tupdesc->natts);
	int16 *attnos = MemoryContextAlloc(old, sizeof(int16) * (source->ncolumns + 1));
	int i;

	for (i = 0; i < source->ncolumns; i++)
		attnos[i] = i + 1;
	for (i = 0; i < ntuples; i++)
	{
		CHECK_FOR_INTERRUPTS();
		heap_deform_tuple(tuples[i], tupdesc, values, isnull);
		if (SourceQueryMatches(source, values, isnull) && *left > 0)
		{
			int start;

			--*left;
			request->rows++;
			if (pages->rows > 0)
				appendStringInfoChar(&pages->page, ',');
			start = pages->page.len;
			if (EncodeRowIsTooLarge(tupdesc, attnos, source->ncolumns, values, isnull))
				RowTooLarge(source);
			EncodeRow(encoder, &pages->page, attnos, source->ncolumns, values, isnull);
			if (pages->page.len - start > ENCODE_MAX_ROW)
				RowTooLarge(source);
			if ((source->recheck & RECHECK_ROWS) != 0)
				RowDigestAdd(&request->digest, request->seed, index, pages->page.data + start,
							 pages->page.len - start, true);
			if (digest_only)
				pages->page.len = start;
			else
			{
				if (source->system != SOURCE_PLAIN)
					QueryPageVersion(pages,
									 LogFullXid(DatumGetTransactionId(values[tupdesc->natts - 1])));
				if (++pages->rows >= PAGE_ROWS ||
					pages->page.len + pages->versions.len >= PAGE_BYTES)
				{
					QueryPageEnd(pages);
					QueryPageBegin(pages, index);
				}
			}
		}
		MemoryContextReset(row_context);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(row_context);
	EncodePinnedEnd(nestlevel);
}

static void
ReadRows(Request *request, int index, PlannedStmt *plan, const char *sql, ParamListInfo params,
		 QueryPages *pages)
{
	SourceQuery *source = &request->sources[index];
	QueryDesc *query = CreateQueryDesc(plan, sql, GetActiveSnapshot(), InvalidSnapshot,
									   None_Receiver, params, NULL, 0);
	MemoryContext batch_context = AllocSetContextCreate(CurrentMemoryContext, "changefeed batch",
														ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = CurrentMemoryContext;
	HeapTuple *tuples = palloc(sizeof(HeapTuple) * BATCH_ROWS);
	RowEncoder *encoder;
	int64 left = source->selection != NULL && source->selection->limit > 0
					 ? source->selection->limit
					 : PG_INT64_MAX;
	bool end = false;
	int i;
	int k;

	ExecutorStart(query, 0);
	encoder = EncoderCreate(query->tupDesc, old);
	for (i = 0; i < source->ncasts; i++)
		for (k = 0; k < source->ncolumns; k++)
			if (source->columns[k] == source->casts[i])
				EncoderUseCasts(encoder, k + 1);
	while (!end && left > 0)
	{
		int n = 0;
		Size bytes = 0;

		while (n < BATCH_ROWS && bytes < BATCH_BYTES)
		{
			TupleTableSlot *slot;

			CHECK_FOR_INTERRUPTS();
			MemoryContextSwitchTo(query->estate->es_query_cxt);
			ResetPerTupleExprContext(query->estate);
			slot = ExecProcNode(query->planstate);
			MemoryContextSwitchTo(batch_context);
			if (TupIsNull(slot))
			{
				end = true;
				break;
			}
			tuples[n] = ExecCopySlotHeapTuple(slot);
			bytes += tuples[n++]->t_len;
		}
		MemoryContextSwitchTo(batch_context);
		EncodeBatch(request, index, encoder, query->tupDesc, tuples, n, pages, &left);
		MemoryContextSwitchTo(old);
		MemoryContextReset(batch_context);
		if (!end)
			QueryCheckPeer();
	}
	ExecutorFinish(query);
	ExecutorEnd(query);
	FreeQueryDesc(query);
}

/*
 * Without `pages` nothing is read, but everything is checked that can be
 * refused: whoever resumes is treated like whoever begins.
 */
static void
SnapshotSource(Request *request, int index, QueryPages *pages)
{
	SourceQuery *source = &request->sources[index];
	Relation rel = table_open(source->relid, NoLock);
	Oid *types = palloc(sizeof(Oid) * (source->nparams + 1));
	ParamListInfo params = SourceQueryParameters(source, rel, types);
	char *sql = SourceQueryText(source, rel);
	PlannedStmt *plan;
	int nestlevel = NewGUCNestLevel();

	plan = SourceQueryPlan(source, rel, request->role, sql, types, params);
	if (pages != NULL)
	{
		QueryPageBegin(pages, index);
		if (!source->nothing &&
			((request->flags & QUERY_DIGEST_ONLY) == 0 || (source->recheck & RECHECK_ROWS) != 0))
			ReadRows(request, index, plan, sql, params, pages);
		/* Every source has a page. */
		QueryPageEnd(pages);
	}

	/* What policies of this one have set is not for those of others. */
	AtEOXact_GUC(false, nestlevel);
	table_close(rel, NoLock);
}

/* ---- The job ---- */

static int
CompareSources(const void *a, const void *b)
{
	return oid_cmp(&(*(SourceQuery *const *) a)->relid, &(*(SourceQuery *const *) b)->relid);
}

/* They may have been altered since they were made sources. */
static void
RequireNoChildren(Oid relid)
{
	if (has_subclass(relid) && find_inheritance_children(relid, NoLock) != NIL)
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("other tables inherit from table \"%s\"", get_rel_name(relid)),
						errdetail("Keys are not unique over all of them."),
						errhint("Use ALTER TABLE ... NO INHERIT on them, or use partitioning.")));
}

static void
RequireLogged(Oid relid)
{
	if (get_rel_persistence(relid) == RELPERSISTENCE_UNLOGGED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is unlogged, so its changes are not in the WAL",
						get_rel_name(relid)),
				 errhint("Use ALTER TABLE %s SET LOGGED.",
						 quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
													get_rel_name(relid)))));
}

/* In the order of their OIDs, so that two of us cannot wait for each other. */
static void
LockSources(Request *request)
{
	SourceQuery **order = palloc(sizeof(SourceQuery *) * Max(request->nsources, 1));
	int i;

	for (i = 0; i < request->nsources; i++)
		order[i] = &request->sources[i];
	qsort(order, request->nsources, sizeof(SourceQuery *), CompareSources);
	for (i = 0; i < request->nsources; i++)
	{
		Oid relid = order[i]->relid;
		char relkind;

		LockRelationOid(relid, AccessShareLock);
		relkind = get_rel_relkind(relid);
		if (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE)
			ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
							errmsg("table of the channel does not exist any more"),
							errdetail_internal("relation with OID %u", relid)));
		if (relkind == RELKIND_PARTITIONED_TABLE)
		{
			ListCell *lc;

			foreach(lc, find_all_inheritors(relid, AccessShareLock, NULL))
				RequireLogged(lfirst_oid(lc));
		}
		else
		{
			RequireLogged(relid);
			RequireNoChildren(relid);
		}
	}
}

/* All but its last part: see EndSnapshot. */
static void
PutSnapshot(Request *request, Snapshot snapshot)
{
	uint32 i;

	if (snapshot->takenDuringRecovery)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("snapshots are not supported on a standby server")));
	initStringInfo(&request->snapshot);
	QueryMessage(&request->snapshot, QUERY_SNAPSHOT);
	WirePutU32(&request->snapshot, snapshot->xmin);
	WirePutU32(&request->snapshot, snapshot->xmax);
	WirePutU32(&request->snapshot, snapshot->xcnt);
	for (i = 0; i < snapshot->xcnt; i++)
		WirePutU32(&request->snapshot, snapshot->xip[i]);
}

/*
 * Tables are locked; functions, types and roles are not, and queries are planned
 * and run behind the snapshot, with the catalogs of then.  Whoever uses the
 * answer has to know all that it can have seen, so N is noted when nothing is
 * looked at any more.
 */
static void
EndSnapshot(Request *request)
{
	if (request->snapshot.data != NULL)
		WirePutU64(&request->snapshot, SharedInsertLsn());
}

/* A channel without sources is described by what its check depends on. */
static void
DescribeChannel(Request *request, StringInfo out)
{
	MemoryContext old = MemoryContextSwitchTo(query_job_context);
	List *relids = request->sources[0].more;
	StringInfoData narrowing;
	ListCell *lc;

	initStringInfo(&narrowing);
	WirePutU8(&narrowing, 0);
	initStringInfo(out);
	QueryMessage(out, QUERY_DESCRIBE);
	WirePutU16(out, 0);
	WirePutU16(out, 0); /* columns */
	WirePutU16(out, 0); /* key */
	WirePutU8(out, request->denied ? 2 : 0);
	WirePutU64(out, 0);
	WirePutU32(out, list_length(relids));
	foreach(lc, relids)
	{
		WirePutU32(out, lfirst_oid(lc));
		WirePutU8(&narrowing, NARROW_ANY);
	}
	WirePutU16(out, 0); /* casts */
	WirePutBytes(out, narrowing.data, narrowing.len);
	WirePutU8(out, 0);
	WirePutU8(out, request->sources[0].recheck);
	WirePutBytes(out, NULL, 0); /* rule */
	SelectionQueryDescribeNothing(out);
	MemoryContextSwitchTo(old);
}

/* Is the identity admitted to the channel?  False: begin once more. */
static bool
CheckJoin(Request *request, bool last_attempt)
{
	JoinCheckResult result;

	if (request->check.text[0] == '\0')
		return true;
	QueryTimeLimit(setting_policy_timeout);
	result = JoinCheckEvaluate(&request->check, last_attempt, query_job_context);
	if (QueryTimedOut())
		ereport(ERROR, (errcode(ERRCODE_QUERY_CANCELED), errmsg("join_check took too long")));
	QueryTimeLimit((int64) setting_policy_timeout * SNAPSHOT_TIME_FACTOR);
	if (result == JOIN_DENIED)
	{
		if ((request->flags & QUERY_PUBLISH) == 0)
			JoinCheckRefuse();
		request->denied = true;
	}

	/* A table of the channel as a whole is one of its first source's. */
	request->sources[0].more = request->check.relids;
	request->sources[0].recheck = request->check.recheck != NULL ? RECHECK_CHANNEL : 0;
	return result != JOIN_UNKNOWN;
}

/*
 * Begins the transaction, with everything locked before the snapshot, and
 * finds out about the sources.  What policies read is known only when they
 * have been planned: then the transaction begins once more.
 */
static void
BeginSnapshot(Request *request)
{
	int attempt;

	for (attempt = 0;; attempt++)
	{
		bool known = true;
		bool joined;
		MemoryContext old;
		int i;

		QueryTransactionBegin(SNAPSHOT_LOCK_TIMEOUT,
							  (int64) setting_policy_timeout * SNAPSHOT_TIME_FACTOR);
		LockSources(request);
		JoinCheckLock(&request->check);
		for (i = 0; i < request->nsources; i++)
			if (!PolicyLockDependencies(request->sources[i].relid, request->role))
				known = false;

		QueryEnterIdentity(request->role, request->claims);
		PushActiveSnapshot(GetTransactionSnapshot());
		joined = CheckJoin(request, attempt >= 2);
		for (i = 0; i < request->nsources; i++)
			SourceQueryDescribe(&request->sources[i], i, request->role, &request->describes[i]);
		if (request->nsources == 0)
			DescribeChannel(request, &request->describes[0]);
		if ((request->flags & (QUERY_WITH_ROWS | QUERY_WITH_POSITION)) == 0 && joined)
			return;

		if ((request->flags & QUERY_WITH_KEYS) != 0)
			for (i = 0; i < request->nsources; i++)
				SourceQueryKeysOnly(&request->sources[i]);
		if ((joined && (known || (request->flags & QUERY_WITH_ROWS) == 0)) || attempt >= 2)
		{
			old = MemoryContextSwitchTo(query_job_context);
			PutSnapshot(request, GetActiveSnapshot());
			MemoryContextSwitchTo(old);
			return;
		}
		QueryTransactionEnd();
	}
}

static void
ReadRequest(Request *request, WireReader *body)
{
	Selection *selection;
	int i;

	memset(request, 0, sizeof(Request));
	request->role = WireGetU32(body);
	request->claims = QueryCopyBytes(WireGetBytes(body));
	request->flags = WireGetU8(body);
	JoinCheckRead(&request->check, body);
	request->seed = WireGetU64(body);
	request->nsources = WireGetU16(body);
	request->sources = palloc0(sizeof(SourceQuery) * Max(request->nsources, 1));
	request->describes = palloc0(sizeof(StringInfoData) * Max(request->nsources, 1));
	for (i = 0; i < request->nsources && !body->failed; i++)
	{
		SourceQueryRead(&request->sources[i], body);
		if ((request->flags & QUERY_WITH_VERSIONS) != 0)
			request->sources[i].system = SOURCE_VERSION;
	}
	selection = SourceQueryReadSelection(body);
	for (i = 0; i < request->nsources; i++)
		request->sources[i].selection = selection;
	if (!WireAtEnd(body))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED), errmsg("malformed job for a query worker")));
}

static void
SendDigest(Request *request)
{
	StringInfoData message;

	initStringInfo(&message);
	QueryMessage(&message, QUERY_DIGEST);
	WirePutU64(&message, request->digest.a);
	WirePutU64(&message, request->digest.b);
	WirePutU64(&message, (uint64) request->rows);
	QuerySendPart(&message);
}

void
QueryRunSubscribe(WireReader *body)
{
	Request request;
	QueryPages pages;
	bool with_rows;
	int i;

	ReadRequest(&request, body);
	with_rows = (request.flags & QUERY_WITH_ROWS) != 0;
	pgstat_report_activity(STATE_RUNNING,
						   with_rows ? "reading a snapshot" : "checking a subscription");

	if (with_rows && (request.flags & QUERY_DIGEST_ONLY) == 0)
		QueryPagesRequireSpace();
	BeginSnapshot(&request);
	if (with_rows)
	{
		QueryPagesInit(&pages, request.role);
		pages.with_versions = (request.flags & QUERY_WITH_VERSIONS) != 0;
	}
	if ((request.flags & QUERY_WITH_KEYS) != 0)
		pages.inline_bytes = (Size) setting_max_transaction * 1024;
	for (i = 0; i < request.nsources; i++)
		SnapshotSource(&request, i, with_rows ? &pages : NULL);
	EndSnapshot(&request);
	QueryTransactionEnd();

	for (i = 0; i < Max(request.nsources, 1); i++)
		QuerySendPart(&request.describes[i]);
	if (with_rows || (request.flags & QUERY_WITH_POSITION) != 0)
		QuerySendPart(&request.snapshot);
	if (with_rows)
	{
		SendDigest(&request);
		if ((request.flags & QUERY_DIGEST_ONLY) == 0)
			QueryPagesSend(&pages);
	}
}
