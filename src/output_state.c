/*-------------------------------------------------------------------------
 *
 * output_state.c
 *		Has a transaction changed anything of a relation that matters?
 *
 * Most invalidations of a table change nothing that a client could ever see:
 * ANALYZE, VACUUM, a new index.  The feed worker finds that out by comparing
 * catalogs (relations.c), but not for transactions from before it was started,
 * which it has decoded once more: it sees the catalogs of now only.  Here they
 * are seen as of before and behind each transaction, so a barrier that is none
 * says so (BARRIER_SAME).
 *
 * What is compared are bytes, the contents of catalog rows, and not a hash of
 * them: "unchanged" has to be true.  It is said only if the state in front of
 * the transaction, in the order of commits, is known for certain.  That is
 *
 * - the state behind the last transaction that invalidated the relation,
 *   which this process has seen (each one that changes what is compared
 *   invalidates it); or, if there was none since decoding began,
 * - what is visible at the transaction's begin.  The snapshot is then that of
 *   its first change, its "base snapshot", and shows nothing of the
 *   transaction itself; and nobody else has changed the relation between the
 *   two, if the base snapshot was made where we decode already.  An older one
 *   is not used: a commit between it and the place where decoding began is
 *   not replayed to us.
 *
 * At the commit the snapshot is the one that the last catalog change in front
 * of it has handed out to all transactions, together with all changes of the
 * transaction itself, so that is the state behind it.
 *
 * The catalogs are scanned, not the caches: these may hold what belongs to
 * the snapshot of the transaction that was replayed before.
 *
 * Process: decoder, inside the transaction that the reorder buffer has started
 * and with its historic snapshot.
 *
 * Memory: states_context (whole life of the process; emptied when it becomes
 * large) holds the hash and the bytes.
 *
 * Locks: none, of our own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "output_state.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_policy.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "replication/snapbuild.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/rel.h"

/* More than this (bytes) is not remembered. */
#define MAX_STATES (8 * 1024 * 1024)

/* A transaction that invalidates more relations is not looked at. */
#define MAX_COMPARED 64

typedef struct State
{
	Oid relid; /* hash key */
	char kind; /* 0: there is no such relation */
	Oid filenode;
	StringInfoData contents;
	StringInfoData columns; /* which versions of their catalog rows */
} State;

static MemoryContext states_context = NULL;
static HTAB *states = NULL;
static Size states_bytes = 0;

/*
 * What has been invalidated by transactions that were committed behind this is
 * in the hash (0: behind where decoding began).
 */
static XLogRecPtr known_since = InvalidXLogRecPtr;

/* The transaction that is being replayed is looked at. */
static bool comparing = false;

/* ---- reading the catalogs ---- */

#define ADD(out, field) appendBinaryStringInfo(out, (const char *) &(field), sizeof(field))

static void
AddXmin(StringInfo out, HeapTuple tuple)
{
	TransactionId xmin = HeapTupleHeaderGetRawXmin(tuple->t_data);

	ADD(out, xmin);
}

/* A value of variable length. */
static void
AddValue(StringInfo out, Relation catalog, HeapTuple tuple, AttrNumber attno)
{
	bool isnull;
	Datum datum = heap_getattr(tuple, attno, RelationGetDescr(catalog), &isnull);
	int32 length = -1;
	struct varlena *value;

	if (isnull)
	{
		ADD(out, length);
		return;
	}
	value = PG_DETOAST_DATUM(datum);
	length = VARSIZE(value);
	ADD(out, length);
	appendBinaryStringInfo(out, (const char *) value, length);
}

/* One of these lies in front of the rows of each catalog. */
static SysScanDesc
BeginScan(StringInfo out, Relation catalog, Oid index, AttrNumber attno, Oid relid)
{
	ScanKeyData key;

	ADD(out, index);
	ScanKeyInit(&key, attno, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(relid));
	return systable_beginscan(catalog, index, true, NULL, 1, &key);
}

/*
 * Not here: what is updated in place (statistics, relhasindex and the like),
 * and where the rows lie, which counts only together with changed columns.
 */
static void
ReadClass(State *state)
{
	Relation catalog = table_open(RelationRelationId, AccessShareLock);
	StringInfo out = &state->contents;
	SysScanDesc scan = BeginScan(out, catalog, ClassOidIndexId, Anum_pg_class_oid, state->relid);
	HeapTuple tuple = systable_getnext(scan);

	if (HeapTupleIsValid(tuple))
	{
		Form_pg_class form = (Form_pg_class) GETSTRUCT(tuple);

		state->kind = form->relkind;
		state->filenode = form->relfilenode;
		ADD(out, form->relname);
		ADD(out, form->relnamespace);
		ADD(out, form->reloftype);
		ADD(out, form->relowner);
		ADD(out, form->relam);
		ADD(out, form->relpersistence);
		ADD(out, form->relnatts);
		ADD(out, form->relrowsecurity);
		ADD(out, form->relforcerowsecurity);
		ADD(out, form->relreplident);
		ADD(out, form->relispartition);
		AddValue(out, catalog, tuple, Anum_pg_class_relacl);
		AddValue(out, catalog, tuple, Anum_pg_class_relpartbound);
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
}

/* Without what new rows get: defaults, storage, statistics targets. */
static void
ReadColumns(State *state)
{
	Relation catalog = table_open(AttributeRelationId, AccessShareLock);
	StringInfo out = &state->contents;
	SysScanDesc scan = BeginScan(out, catalog, AttributeRelidNumIndexId, Anum_pg_attribute_attrelid,
								 state->relid);
	HeapTuple tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_attribute form = (Form_pg_attribute) GETSTRUCT(tuple);

		if (form->attnum <= 0)
			continue;
		AddXmin(&state->columns, tuple);
		ADD(out, form->attnum);
		ADD(out, form->attname);
		ADD(out, form->atttypid);
		ADD(out, form->atttypmod);
		ADD(out, form->attlen);
		ADD(out, form->attbyval);
		ADD(out, form->attalign);
		ADD(out, form->attnotnull);
		ADD(out, form->atthasmissing);
		ADD(out, form->attgenerated);
		ADD(out, form->attisdropped);
		ADD(out, form->attcollation);
		AddValue(out, catalog, tuple, Anum_pg_attribute_attacl);
		AddValue(out, catalog, tuple, Anum_pg_attribute_attmissingval);

		/* Its expression is elsewhere. */
		if (form->attgenerated != '\0')
			AddXmin(out, tuple);
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
}

static void
ReadPolicies(State *state)
{
	Relation catalog = table_open(PolicyRelationId, AccessShareLock);
	StringInfo out = &state->contents;
	SysScanDesc scan = BeginScan(out, catalog, PolicyPolrelidPolnameIndexId,
								 Anum_pg_policy_polrelid, state->relid);
	HeapTuple tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		ADD(out, ((Form_pg_policy) GETSTRUCT(tuple))->oid);
		AddXmin(out, tuple);
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
}

/* What it consists of, and what it is part of. */
static void
ReadInheritance(State *state)
{
	static const struct
	{
		Oid index;
		AttrNumber attno;
	} sides[] = {{InheritsParentIndexId, Anum_pg_inherits_inhparent},
				 {InheritsRelidSeqnoIndexId, Anum_pg_inherits_inhrelid}};
	Relation catalog = table_open(InheritsRelationId, AccessShareLock);
	StringInfo out = &state->contents;

	for (int i = 0; i < (int) lengthof(sides); i++)
	{
		SysScanDesc scan = BeginScan(out, catalog, sides[i].index, sides[i].attno, state->relid);
		HeapTuple tuple;

		while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		{
			Form_pg_inherits form = (Form_pg_inherits) GETSTRUCT(tuple);

			ADD(out, form->inhrelid);
			ADD(out, form->inhparent);
			ADD(out, form->inhseqno);
			ADD(out, form->inhdetachpending);
		}
		systable_endscan(scan);
	}
	table_close(catalog, AccessShareLock);
}

/* Those that make up keys; which index it is does not matter. */
static void
ReadKeys(State *state)
{
	Relation catalog = table_open(IndexRelationId, AccessShareLock);
	StringInfo out = &state->contents;
	SysScanDesc scan = BeginScan(out, catalog, IndexIndrelidIndexId, Anum_pg_index_indrelid,
								 state->relid);
	HeapTuple tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_index form = (Form_pg_index) GETSTRUCT(tuple);

		if (!form->indisprimary && !form->indisreplident)
			continue;
		ADD(out, form->indisprimary);
		ADD(out, form->indisreplident);
		ADD(out, form->indnkeyatts);
		appendBinaryStringInfo(out, (const char *) form->indkey.values,
							   form->indkey.dim1 * (int) sizeof(int16));
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
}

static inline bool
IsCompared(char kind)
{
	return kind == RELKIND_RELATION || kind == RELKIND_PARTITIONED_TABLE ||
		   kind == RELKIND_COMPOSITE_TYPE;
}

/* As the current snapshot shows it. */
static void
ReadState(State *state, Oid relid)
{
	memset(state, 0, sizeof(State));
	state->relid = relid;
	initStringInfo(&state->contents);
	initStringInfo(&state->columns);
	ReadClass(state);
	if (!IsCompared(state->kind))
		return;
	ReadColumns(state);
	ReadPolicies(state);
	ReadInheritance(state);
	ReadKeys(state);
}

/* ---- what is remembered ---- */

static void
Initialize(void)
{
	HASHCTL control;

	if (states_context == NULL)
		states_context = AllocSetContextCreate(TopMemoryContext, "changefeed states",
											   ALLOCSET_DEFAULT_SIZES);
	else
		MemoryContextReset(states_context);
	control.keysize = sizeof(Oid);
	control.entrysize = sizeof(State);
	control.hcxt = states_context;
	states = hash_create("changefeed states", 64, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	states_bytes = 0;
}

void
StatesBegin(void)
{
	Initialize();
	known_since = InvalidXLogRecPtr;
}

static StringInfoData
Keep(StringInfo bytes)
{
	StringInfoData copy = *bytes;

	copy.data = MemoryContextAlloc(states_context, Max(bytes->len, 1));
	memcpy(copy.data, bytes->data, bytes->len);
	copy.maxlen = Max(bytes->len, 1);
	states_bytes += copy.maxlen;
	return copy;
}

static void
Remember(State *entry, State *state, bool found)
{
	if (found)
	{
		states_bytes -= entry->contents.maxlen + entry->columns.maxlen;
		pfree(entry->contents.data);
		pfree(entry->columns.data);
	}
	else
		states_bytes += sizeof(State);
	entry->kind = state->kind;
	entry->filenode = state->filenode;
	entry->contents = Keep(&state->contents);
	entry->columns = Keep(&state->columns);
}

void
StatesBefore(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, const Oid *relids, int nrelids,
			 bool all)
{
	comparing = !all && nrelids <= MAX_COMPARED;
	if (!comparing || states_bytes > MAX_STATES)
	{
		/* Whoever began behind its commit sees what it did. */
		Initialize();
		known_since = txn->final_lsn;
	}

	/* Is the base snapshot from where we saw everything that was committed? */
	if (!comparing || txn->base_snapshot_lsn <= known_since ||
		SnapBuildXactNeedsSkip(ctx->snapshot_builder, txn->base_snapshot_lsn))
		return;

	for (int i = 0; i < nrelids; i++)
	{
		bool found;
		State *entry;
		State state;

		if (hash_search(states, &relids[i], HASH_FIND, NULL) != NULL)
			continue;
		ReadState(&state, relids[i]);
		entry = hash_search(states, &relids[i], HASH_ENTER, &found);
		Remember(entry, &state, found);
	}
}

static bool
SameBytes(const StringInfoData *a, const StringInfoData *b)
{
	return a->len == b->len && memcmp(a->data, b->data, a->len) == 0;
}

bool
StateUnchanged(Oid relid)
{
	bool found;
	bool unchanged;
	State *entry;
	State state;

	if (!comparing)
		return false;
	ReadState(&state, relid);
	entry = hash_search(states, &relid, HASH_ENTER, &found);

	/*
	 * New storage is a copy of the rows (VACUUM FULL, CLUSTER) or empty
	 * (TRUNCATE, which is reported by itself), unless a column was changed
	 * with it.  A partitioned table has none that would tell.
	 */
	unchanged = found && entry->kind == state.kind && (state.kind == 0 || IsCompared(state.kind)) &&
				SameBytes(&entry->contents, &state.contents) &&
				(SameBytes(&entry->columns, &state.columns) ||
				 (OidIsValid(state.filenode) && entry->filenode == state.filenode));
	Remember(entry, &state, found);
	return unchanged;
}
