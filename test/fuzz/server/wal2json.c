/*-------------------------------------------------------------------------
 *
 * wal2json.c
 *		The text of wal2json (src/output_wal2json.c, included for its static
 *		functions).
 *
 * Input: the text of a change of the table fuzz_items (setup.sql).  It is read,
 * and rows are made of it and of a row of the table, as it would be in the WAL.
 *
 * Properties: what is accepted is JSON for the server; a row that comes out has a
 * value of each column's type, which can be written and read again, and is null
 * only where that of the WAL is.
 *
 *-------------------------------------------------------------------------
 */
#include "../../../src/output_wal2json.c"

#include "fuzz.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "executor/tuptable.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

static Oid items;
static HeapTuple sample; /* with a value in each column */

static void
Start(void)
{
	Relation rel;
	TableScanDesc scan;
	TupleTableSlot *slot;
	MemoryContext old;

	Initialize();
	items = RelnameGetRelid("fuzz_items");
	if (!OidIsValid(items))
		elog(ERROR, "there is no table fuzz_items");
	rel = table_open(items, AccessShareLock);
	slot = table_slot_create(rel, NULL);
	scan = table_beginscan(rel, GetActiveSnapshot(), 0, NULL);
	if (!table_scan_getnextslot(scan, ForwardScanDirection, slot))
		elog(ERROR, "the table fuzz_items is empty");
	old = MemoryContextSwitchTo(TopMemoryContext);
	sample = ExecCopySlotHeapTuple(slot);
	MemoryContextSwitchTo(old);
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
}

static void
CheckTuple(Relation rel, HeapTuple tuple)
{
	TupleDesc desc = RelationGetDescr(rel);
	Datum values[64];
	bool nulls[64];
	int i;

	heap_deform_tuple(tuple, desc, values, nulls);
	for (i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		Oid output;
		Oid input;
		Oid ioparam;
		bool varlena;
		char *text;

		if (nulls[i])
		{
			if (!heap_attisnull(sample, i + 1, desc))
				Fail("column \"%s\" has become null", NameStr(att->attname));
			continue;
		}
		getTypeOutputInfo(att->atttypid, &output, &varlena);
		text = OidOutputFunctionCall(output, values[i]);
		getTypeInputInfo(att->atttypid, &input, &ioparam);
		(void) OidInputFunctionCall(input, text, ioparam, -1);
	}
}

static void
Run(const char *data, Size size)
{
	StringInfoData json;
	TextChange text;
	Relation rel;
	TextRelation *known;

	/* The server's own output is text. */
	if (memchr(data, '\0', size) != NULL || !pg_verify_mbstr(PG_UTF8, data, (int) size, true))
		return;
	initStringInfo(&json);
	appendBinaryStringInfo(&json, data, (int) size);
	ParseText(&json, &text);
	if (!FuzzJsonIsValid(data, size))
		Fail("it is no JSON for the server");
	rel = table_open(items, AccessShareLock);
	known = LookUp(rel);
	if (known->problem != NULL)
		Fail("the table is not one: %s", known->problem);
	CheckTuple(rel, MakeRow(known, rel, &text.columns, sample, false));
	if (text.identity.present)
		CheckTuple(rel, MakeRow(known, rel, &text.identity, sample, false));
	table_close(rel, NoLock);
}

const FuzzTarget target_wal2json = {"wal2json", Start, Run, NULL};
