/*-------------------------------------------------------------------------
 *
 * wal2json_subset.c
 *		Which tables wal2json can decode without loss: those whose columns have
 *		types of which text and value are the same thing.
 *
 * The list names what is known to be good.  A type of an extension may be so
 * as well, but its input function is code that we know nothing of, and it
 * would run in the decoder.
 *
 * Process: any, in a transaction; in the decoder with the catalogs of the
 * past.  Memory: CurrentMemoryContext.  Locks: none of our own, but for those
 * of the shared entry and the slot while they are copied.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "shared.h"
#include "wal2json.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_range.h"
#include "catalog/pg_type.h"
#include "replication/slot.h"
#include "storage/spin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

bool
Wal2jsonInUse(void)
{
	DatabaseFeed *feed = SharedFeedOfMyDatabase();
	bool in_use = setting_decoder == DECODER_WAL2JSON;
	ReplicationSlot *slot;
	NameData name;

	if (feed == NULL || pg_atomic_read_u64(&feed->epoch) == 0)
		return in_use;

	LWLockAcquire(shared_feeds->lock, LW_SHARED);
	name = feed->slot_name;
	LWLockRelease(shared_feeds->lock);

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	slot = SearchNamedReplicationSlot(NameStr(name), false);
	if (slot != NULL)
	{
		SpinLockAcquire(&slot->mutex);
		in_use = strcmp(NameStr(slot->data.plugin), WAL2JSON_PLUGIN) == 0;
		SpinLockRelease(&slot->mutex);
	}
	LWLockRelease(ReplicationSlotControlLock);
	return in_use;
}

/*
 * Built-in base types whose output, under the settings that the decoder pins,
 * gives back the value when it is read.  Left out are those whose text names
 * objects of the database (regclass and the like, aclitem), and xml, whose
 * output drops the declaration.
 */
static bool
BaseTypeIsExact(Oid type)
{
	switch (type)
	{
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case OIDOID:
		case FLOAT4OID:
		case FLOAT8OID:
		case NUMERICOID:
		case CASHOID:
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case CHAROID:
		case NAMEOID:
		case BYTEAOID:
		case JSONOID:
		case JSONBOID:
		case UUIDOID:
		case DATEOID:
		case TIMEOID:
		case TIMETZOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
		case INTERVALOID:
		case BITOID:
		case VARBITOID:
		case INETOID:
		case CIDROID:
		case MACADDROID:
		case MACADDR8OID:
		case POINTOID:
		case LINEOID:
		case LSEGOID:
		case BOXOID:
		case PATHOID:
		case POLYGONOID:
		case CIRCLEOID:
		case TSVECTOROID:
		case TSQUERYOID:
		case XIDOID:
		case XID8OID:
		case CIDOID:
		case TIDOID:
		case LSNOID:
			return true;
		default:
			return false;
	}
}

static char *TypeProblem(Oid type, bool nested);

static char *
CompositeProblem(Oid type)
{
	TupleDesc tupdesc = lookup_rowtype_tupdesc(type, -1);
	char *problem = NULL;

	for (int i = 0; i < tupdesc->natts && problem == NULL; i++)
	{
		if (!TupleDescAttr(tupdesc, i)->attisdropped)
			problem = TypeProblem(TupleDescAttr(tupdesc, i)->atttypid, true);
	}
	ReleaseTupleDesc(tupdesc);
	return problem;
}

/* Reading a range compares its bounds, and may bring them into another form. */
static char *
RangeProblem(Oid type)
{
	HeapTuple tuple = SearchSysCache1(RANGETYPE, ObjectIdGetDatum(type));
	Form_pg_range form;
	char *problem;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for range type %u", type);
	form = (Form_pg_range) GETSTRUCT(tuple);
	if (form->rngsubopc >= FirstNormalObjectId || form->rngcanonical >= FirstNormalObjectId)
		problem = psprintf("Values of type %s are compared by user-defined functions.",
						   format_type_be(type));
	else
		problem = TypeProblem(form->rngsubtype, true);
	ReleaseSysCache(tuple);
	return problem;
}

/* `nested`: as part of a value of another type. */
static char *
TypeProblem(Oid type, bool nested)
{
	Oid element = get_element_type(type);

	check_stack_depth();
	if (OidIsValid(element))
		return TypeProblem(element, true);

	switch (get_typtype(type))
	{
		case TYPTYPE_ENUM:
			return NULL;
		case TYPTYPE_DOMAIN:
			/* At the top its base type's input function is called instead. */
			if (nested)
				return psprintf("Reading a value of domain %s would run its constraints.",
								format_type_be(type));
			return TypeProblem(getBaseType(type), false);
		case TYPTYPE_COMPOSITE:
			return CompositeProblem(type);
		case TYPTYPE_RANGE:
			return RangeProblem(type);
		case TYPTYPE_MULTIRANGE:
			return RangeProblem(get_multirange_range(type));
		case TYPTYPE_BASE:
			if (BaseTypeIsExact(type))
				return NULL;
			break;
		default:
			break;
	}
	return psprintf("A value of type %s cannot be told with certainty from its text.",
					format_type_be(type));
}

char *
Wal2jsonTypeProblem(Oid type)
{
	return TypeProblem(type, false);
}

Form_pg_attribute
Wal2jsonFindProblem(TupleDesc tupdesc, char **problem)
{
	for (int i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);

		/* A virtual column is always null in the WAL. */
		if (att->attisdropped || att->attgenerated == COMPAT_GENERATED_VIRTUAL)
			continue;
		*problem = Wal2jsonTypeProblem(att->atttypid);
		if (*problem != NULL)
			return att;
	}
	return NULL;
}

void
Wal2jsonCheckTable(Relation relation)
{
	char *problem;
	Form_pg_attribute att = Wal2jsonFindProblem(RelationGetDescr(relation), &problem);

	if (att == NULL)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("column \"%s\" of table \"%s.%s\" cannot be decoded with wal2json",
					NameStr(att->attname), get_namespace_name(RelationGetNamespace(relation)),
					RelationGetRelationName(relation)),
			 errdetail_internal("%s", problem),
			 errhint("Set \"changefeed.decoder\" to \"native\" for this database.")));
}
