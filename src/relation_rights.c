/*-------------------------------------------------------------------------
 *
 * relation_rights.c
 *		Hashes of rights: of what of a relation can be changed and changed back,
 *		and of a role's memberships.
 *
 * The feed worker sees the catalogs of now, which may be further than the
 * transaction that it publishes: a REVOKE may have been taken back by then.
 * So the decoder, which sees the catalogs of its place in WAL, puts this hash
 * into the barrier.
 *
 * Process: decoder, feed worker and query workers.  Memory: garbage in CurrentMemoryContext.
 * Needs a transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "relations.h"

#include "access/htup_details.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_auth_members.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "nodes/pg_list.h"
#include "utils/catcache.h"
#include "utils/syscache.h"

uint64
RelationMixBytes(uint64 state, const void *data, Size length)
{
	return hash_combine64(state, hash_bytes_extended(data, (int) length, 0));
}

uint64
RelationMixArray(uint64 state, int cacheid, HeapTuple tuple, AttrNumber attno)
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
	state = RelationMixArray(state, RELOID, tuple, Anum_pg_class_relacl);
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
			state = RelationMixArray(state, ATTNUM, tuple, Anum_pg_attribute_attacl);
		}
		ReleaseSysCache(tuple);
	}
	return state == 0 ? 1 : state;
}

typedef struct Membership
{
	Oid member;
	Oid roleid;
	TransactionId xmin;
} Membership;

static int
CompareMemberships(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(Membership));
}

uint64
RelationMixRole(uint64 state, Oid role)
{
	HeapTuple tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	List *todo = list_make1_oid(role);
	StringInfoData memberships;
	ListCell *lc;
	int i;

	state = RelationMixBytes(state, &role, sizeof(Oid));
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_authid form = (Form_pg_authid) GETSTRUCT(tuple);
		bool flags[3] = {form->rolsuper, form->rolinherit, form->rolbypassrls};

		/* Not its xmin: a new password is no new right. */
		state = RelationMixBytes(state, NameStr(form->rolname), strlen(NameStr(form->rolname)));
		state = RelationMixBytes(state, flags, sizeof(flags));
		ReleaseSysCache(tuple);
	}

	/* The list grows while it is walked through. */
	initStringInfo(&memberships);
	foreach(lc, todo)
	{
		CatCList *list = SearchSysCacheList1(AUTHMEMMEMROLE, ObjectIdGetDatum(lfirst_oid(lc)));

		for (i = 0; i < list->n_members; i++)
		{
			HeapTuple member = &list->members[i]->tuple;
			Form_pg_auth_members form = (Form_pg_auth_members) GETSTRUCT(member);
			Membership entry = {form->member, form->roleid,
								HeapTupleHeaderGetRawXmin(member->t_data)};

			appendBinaryStringInfo(&memberships, (char *) &entry, sizeof(entry));
			todo = list_append_unique_oid(todo, form->roleid);
		}
		ReleaseSysCacheList(list);
	}
	qsort(memberships.data, memberships.len / sizeof(Membership), sizeof(Membership),
		  CompareMemberships);
	state = RelationMixBytes(state, memberships.data, memberships.len);
	pfree(memberships.data);
	list_free(todo);
	return state;
}
