/*-------------------------------------------------------------------------
 *
 * relation_rights.c
 *		A hash of what of a relation can be changed and changed back.
 *
 * The feed worker sees the catalogs of now, which may be further than the
 * transaction that it publishes: a REVOKE may have been taken back by then.
 * So the decoder, which sees the catalogs of its place in WAL, puts this hash
 * into the barrier.
 *
 * Process: decoder and feed worker.  Memory: garbage in CurrentMemoryContext.
 * Needs a transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "relations.h"

#include "access/htup_details.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "utils/syscache.h"

uint64
RelationMixBytes(uint64 state, const void *data, Size length)
{
	return hash_combine64(state, hash_bytes_extended(data, (int) length, 0));
}

uint64
RelationMixAcl(uint64 state, int cacheid, HeapTuple tuple, AttrNumber attno)
{
	bool isnull;
	Datum datum = SysCacheGetAttr(cacheid, tuple, attno, &isnull);
	struct varlena *acl;

	if (isnull)
		return RelationMixBytes(state, "n", 1);
	acl = PG_DETOAST_DATUM(datum);
	return RelationMixBytes(state, acl, VARSIZE(acl));
}

uint64
RelationRights(Oid relid)
{
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Form_pg_class form;
	uint64 state;
	int natts;
	int i;

	if (!HeapTupleIsValid(tuple))
		return 0;
	form = (Form_pg_class) GETSTRUCT(tuple);
	natts = form->relnatts;
	state = RelationMixBytes(1, &form->relowner, sizeof(Oid));
	state = hash_combine64(state, form->relrowsecurity + 2 * form->relforcerowsecurity);
	state = RelationMixAcl(state, RELOID, tuple, Anum_pg_class_relacl);
	ReleaseSysCache(tuple);
	for (i = 1; i <= natts; i++)
	{
		Form_pg_attribute att;

		tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(relid), Int16GetDatum(i));
		if (!HeapTupleIsValid(tuple))
			continue;
		att = (Form_pg_attribute) GETSTRUCT(tuple);
		if (!att->attisdropped)
		{
			state = RelationMixBytes(state, NameStr(att->attname), strlen(NameStr(att->attname)));
			state = RelationMixAcl(state, ATTNUM, tuple, Anum_pg_attribute_attacl);
		}
		ReleaseSysCache(tuple);
	}
	return state == 0 ? 1 : state;
}
