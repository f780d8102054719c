/*-------------------------------------------------------------------------
 *
 * output_barriers.c
 *		What did a transaction change besides rows?
 *
 * Its invalidations say so: they are of relations, schemas, roles, functions, and
 * become barriers, which have the transaction's place in the order of commits.
 * What the extension's own tables say is output_catalog.c's, whether a relation
 * is the same as before output_state.c's.
 *
 * Process: decoder, inside the transaction that the reorder buffer has started.
 * Memory: that of the callback.  Locks: none, of our own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "output_plugin.h"
#include "output_state.h"
#include "record.h"
#include "relations.h"

#include "access/transam.h"
#include "catalog/pg_class.h"
#include "lib/qunique.h"
#include "miscadmin.h"
#include "storage/sinval.h"
#include "utils/syscache.h"

/* More relations than this changed by DDL in a transaction: BARRIER_ALL. */
#define MAX_BARRIERS 1000

/* So with more schemas, or more channels: all of them. */
#define MAX_NAMED CATALOG_CHANNELS

typedef struct Barriers
{
	bool any; /* nothing below is set without */
	bool all;
	bool roles;
	bool types;
	bool functions;
	int nschemas;
	uint32 schemas[MAX_NAMED];
	int nrelids;
	int space;
	Oid *relids;
} Barriers;

static int
CompareOids(const void *a, const void *b)
{
	Oid x = *(const Oid *) a;
	Oid y = *(const Oid *) b;

	return x < y ? -1 : (x > y ? 1 : 0);
}

static void
AddSchema(Barriers *barriers, uint32 hash)
{
	for (int i = 0; i < barriers->nschemas; i++)
		if (barriers->schemas[i] == hash)
			return;
	if (barriers->nschemas < MAX_NAMED)
		barriers->schemas[barriers->nschemas++] = hash;
	else
		barriers->all = true;
}

static void
CollectMessages(Barriers *barriers, const SharedInvalidationMessage *messages, uint32 nmessages)
{
	for (uint32 i = 0; i < nmessages; i++)
	{
		const SharedInvalidationMessage *message = &messages[i];

		if (message->id == SHAREDINVALRELCACHE_ID)
		{
			Oid relid = message->rc.relId;

			if (message->rc.dbId != MyDatabaseId && message->rc.dbId != InvalidOid)
				continue;
			if (!OidIsValid(relid))
				barriers->all = true;
			else if (relid >= FirstNormalObjectId)
			{
				if (barriers->nrelids == barriers->space)
				{
					barriers->space = barriers->space == 0 ? 64 : barriers->space * 2;
					barriers->relids = barriers->relids == NULL
										   ? palloc(barriers->space * sizeof(Oid))
										   : repalloc(barriers->relids,
													  barriers->space * sizeof(Oid));
				}
				barriers->relids[barriers->nrelids++] = relid;
			}
		}
		else if (message->id >= 0)
		{
			/*
			 * These name no object, and CREATE gives them as much as ALTER
			 * and DROP.  Types are left out: every table brings some, and
			 * what matters of them comes with the relcache message.
			 */
			switch (message->id)
			{
				case AUTHOID:
				case AUTHMEMROLEMEM:
				case AUTHMEMMEMROLE:
					barriers->roles = true;
					break;
				case CASTSOURCETARGET:
				case ENUMOID:
					/* What values of some types look like as JSON. */
					barriers->types = true;
					break;
				case PROCOID:
				case OPEROID:
					barriers->functions = true;
					break;
				case NAMESPACEOID:
					AddSchema(barriers, message->cc.hashValue);
					break;
				default:
					break;
			}
		}
	}
}

/* All of the transaction, which are known when its replay begins. */
static void
CollectBarriers(Barriers *barriers, ReorderBufferTXN *txn)
{
	dlist_iter iter;

	/* Of most transactions. */
	barriers->any = txn->ninvalidations > 0 || !dlist_is_empty(&txn->subtxns);
	if (!barriers->any)
		return;
	memset(barriers, 0, sizeof(Barriers));
	barriers->any = true;
	CollectMessages(barriers, txn->invalidations, txn->ninvalidations);
	dlist_foreach(iter, &txn->subtxns)
	{
		ReorderBufferTXN *subtxn = dlist_container(ReorderBufferTXN, node, iter.cur);

		CollectMessages(barriers, subtxn->invalidations, subtxn->ninvalidations);
	}

	if (barriers->nrelids > 0)
	{
		qsort(barriers->relids, barriers->nrelids, sizeof(Oid), CompareOids);
		barriers->nrelids = qunique(barriers->relids, barriers->nrelids, sizeof(Oid), CompareOids);
		if (barriers->nrelids > MAX_BARRIERS)
			barriers->all = true;
	}
}

static void
SendBarrier(RecordBarrierKind kind, Oid relid, uint64 state)
{
	StringInfoData record;

	initStringInfo(&record);
	RecordWriteBarrier(&record, kind, relid, state);
	PluginSend(record.data, record.len);
}

static void
SendCatalogBarriers(void)
{
	if (!catalog_changes.any)
	{
		if (OidIsValid(catalog_changes.revocations))
			SendBarrier(BARRIER_CATALOG, catalog_changes.revocations, 0);
	}
	else if (catalog_changes.nchannels < 0)
		SendBarrier(BARRIER_CATALOG, InvalidOid, 0);
	else if (catalog_changes.nchannels == 0)
		SendBarrier(BARRIER_CATALOG, InvalidOid, BARRIER_NO_CHANNEL);
	else
	{
		for (int i = 0; i < catalog_changes.nchannels; i++)
			SendBarrier(BARRIER_CATALOG, InvalidOid, (uint64) catalog_changes.channels[i]);
	}
}

void
BarriersBegin(LogicalDecodingContext *ctx, ReorderBufferTXN *txn)
{
	Barriers barriers;

	/* The snapshot is still that of before its own changes. */
	CollectBarriers(&barriers, txn);
	if (barriers.any && (barriers.all || barriers.nrelids > 0))
		StatesBefore(ctx, txn, barriers.relids, barriers.nrelids, barriers.all);
}

void
BarriersSend(ReorderBufferTXN *txn)
{
	Barriers barriers;

	CollectBarriers(&barriers, txn);
	SendCatalogBarriers();
	if (!barriers.any)
		return;
	if (barriers.roles)
		SendBarrier(BARRIER_ROLES, InvalidOid, 0);
	if (barriers.all)
	{
		SendBarrier(BARRIER_ALL, InvalidOid, 0);
		return;
	}
	if (barriers.types)
		SendBarrier(BARRIER_TYPES, InvalidOid, 0);
	if (barriers.functions)
		SendBarrier(BARRIER_FUNCTIONS, InvalidOid, 0);
	for (int i = 0; i < barriers.nschemas; i++)
		SendBarrier(BARRIER_SCHEMA, InvalidOid, barriers.schemas[i]);
	for (int i = 0; i < barriers.nrelids; i++)
		SendBarrier(StateUnchanged(barriers.relids[i]) ? BARRIER_SAME : BARRIER_RELATION,
					barriers.relids[i], RelationRights(barriers.relids[i]));
}
