/*-------------------------------------------------------------------------
 *
 * dependency_rows.c
 *		Does a change of a row of a dependency make a difference?
 *
 * A change that alters none of the columns that the policies use makes none,
 * nor does one of a row that fulfils what they read neither before nor after.
 * What is not known of a row counts as fulfilled, and as altered.
 *
 * A condition that compares with a column of the judged row is checked with
 * that row if there is one, otherwise with the parameter of the channel's name
 * that the column is, which all rows of the channel have.
 *
 * Process: feed worker.  Only equality and input functions of built-in types
 * are called.  Memory: scratch, reset after each look at a transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "dependencies.h"

#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

static MemoryContext scratch;

/* ---- reading what a query worker has found out ---- */

static void
ReadValues(Condition *condition, WireReader *r)
{
	int16 length = (int16) WireGetU16(r);
	bool byval = WireGetU8(r) != 0;
	int i;

	condition->nvalues = WireGetU16(r);
	condition->values = palloc(sizeof(Datum) * Max(condition->nvalues, 1));
	for (i = 0; i < condition->nvalues; i++)
	{
		WireBytes bytes = WireGetBytes(r);

		if (r->failed || (byval && bytes.length != sizeof(Datum)) ||
			(length > 0 && !byval && bytes.length != (size_t) length))
		{
			r->failed = true;
			return;
		}
		if (byval)
			memcpy(&condition->values[i], bytes.data, sizeof(Datum));
		else
		{
			char *copy = palloc(bytes.length + 1);

			memcpy(copy, bytes.data, bytes.length);
			copy[bytes.length] = '\0';
			condition->values[i] = PointerGetDatum(copy);
		}
	}
}

static void
ReadCondition(Condition *condition, WireReader *r)
{
	Oid equality;
	Oid column_hash;
	Oid value_hash;

	condition->column = (int16) WireGetU16(r);
	condition->column_type = WireGetU32(r);
	equality = WireGetU32(r);
	column_hash = WireGetU32(r);
	value_hash = WireGetU32(r);
	condition->collation = WireGetU32(r);
	condition->row_column = (int16) WireGetU16(r);
	condition->type = WireGetU32(r);
	condition->row_param = -2;
	if (r->failed)
		return;
	fmgr_info(equality, &condition->equality);
	fmgr_info(column_hash, &condition->column_hash);
	fmgr_info(value_hash, &condition->value_hash);
	if (condition->row_column != 0)
	{
		Oid function;

		getTypeInputInfo(condition->type, &function, &condition->ioparam);
		fmgr_info(function, &condition->input);
	}
	else
		ReadValues(condition, r);
}

void
DependencyReadDetails(DependencyDetails *details, WireReader *r)
{
	int i;
	int k;

	details->kind = WireGetU8(r);
	if (details->kind != NARROW_SCANS)
		return;
	details->ncolumns = WireGetU16(r);
	details->all_columns = details->ncolumns == 0xFFFF;
	if (details->all_columns)
		details->ncolumns = 0;
	details->columns = palloc(sizeof(int16) * Max(details->ncolumns, 1));
	for (i = 0; i < details->ncolumns; i++)
		details->columns[i] = (int16) WireGetU16(r);
	details->nscans = WireGetU16(r);
	details->scans = palloc0(sizeof(DependencyScan) * Max(details->nscans, 1));
	for (i = 0; i < details->nscans && !r->failed; i++)
	{
		DependencyScan *scan = &details->scans[i];

		scan->nconditions = WireGetU16(r);
		scan->conditions = palloc0(sizeof(Condition) * Max(scan->nconditions, 1));
		for (k = 0; k < scan->nconditions && !r->failed; k++)
		{
			ReadCondition(&scan->conditions[k], r);
			if (scan->conditions[k].row_column != 0)
				details->compares_row = true;
		}
	}
}

/* ---- a changed row ---- */

static void
MakeImage(Image *image, int natts)
{
	image->exists = true;
	image->values = palloc0(sizeof(Datum) * Max(natts, 1));
	image->isnull = palloc0(sizeof(bool) * Max(natts, 1));
	image->known = palloc0(sizeof(bool) * Max(natts, 1));
}

/*
 * An UPDATE without an old row left the columns of the replica identity as they
 * are; of the others nothing is known, as of those that an old row lacks.
 */
void
DependencyMakeChange(RowChange *change, const LogChange *from)
{
	const RecordDescription *desc = from->desc;
	int natts = desc->tupdesc->natts;
	int i;

	memset(change, 0, sizeof(RowChange));
	change->desc = desc;
	change->unchanged = palloc0(sizeof(bool) * Max(natts, 1));
	if (from->has_new)
	{
		MakeImage(&change->new_row, natts);
		RecordDeform(desc, from->new_data, from->new_length, change->new_row.values,
					 change->new_row.isnull);
	}
	if (from->operation != 'I')
		MakeImage(&change->old_row, natts);
	if (from->has_old)
		RecordDeform(desc, from->old_data, from->old_length, change->old_row.values,
					 change->old_row.isnull);

	for (i = 0; i < natts; i++)
	{
		Image *old_row = &change->old_row;
		Image *new_row = &change->new_row;
		bool identity = (desc->flags[i] & RECORD_ATT_IDENTITY) != 0;

		if (from->has_old)
			old_row->known[i] = (from->has_old == 1 || identity) &&
								(old_row->isnull[i] ||
								 !RecordValueIsUnchanged(desc, i + 1, old_row->values[i]));
		if (!from->has_new)
			continue;
		new_row->known[i] = new_row->isnull[i] ||
							!RecordValueIsUnchanged(desc, i + 1, new_row->values[i]);
		if (!old_row->exists)
			continue;
		if (!new_row->known[i])
			change->unchanged[i] = true;
		else if (!from->has_old && identity)
		{
			change->unchanged[i] = true;
			old_row->values[i] = new_row->values[i];
			old_row->isnull[i] = new_row->isnull[i];
			old_row->known[i] = true;
		}
		if (!new_row->known[i] && old_row->known[i])
		{
			new_row->values[i] = old_row->values[i];
			new_row->isnull[i] = old_row->isnull[i];
			new_row->known[i] = true;
		}
	}
}

static bool
Alters(const RowChange *change, const DependencyDetails *details)
{
	int i;

	if (!change->old_row.exists || !change->new_row.exists || details->all_columns)
		return true;
	for (i = 0; i < details->ncolumns; i++)
	{
		int index = details->columns[i] - 1;
		Form_pg_attribute att;

		if (index < 0)
			return true;

		/* What was not there yet had the same value before and after. */
		if (index >= change->desc->tupdesc->natts || change->unchanged[index])
			continue;
		att = TupleDescAttr(change->desc->tupdesc, index);
		if (att->attisdropped)
			continue;
		if (!change->old_row.known[index] ||
			change->old_row.isnull[index] != change->new_row.isnull[index])
			return true;
		if (!change->old_row.isnull[index] &&
			!datum_image_eq(change->old_row.values[index], change->new_row.values[index],
							att->attbyval, att->attlen))
			return true;
	}
	return false;
}

/* ---- the judged row ---- */

static int
RowParam(const View *view, const Condition *condition, const ChannelTemplate *template)
{
	char *name = RelationColumnName(view->relid, condition->row_column);
	int i;

	for (i = 0; i < template->nparams; i++)
		if (strcmp(template->params[i], name) == 0)
			return i;
	return -1;
}

/* May a row that is judged have an equal value in its column? */
static bool
RowMayEqual(Condition *condition, Datum value, const View *view, const JudgedRow *row)
{
	Datum other;

	if (row->image != NULL)
	{
		MapImage *image = row->image;
		int index = condition->row_column - 1;

		if (!image->used || image->incomplete || index >= image->desc->tupdesc->natts ||
			getBaseType(TupleDescAttr(image->desc->tupdesc, index)->atttypid) != condition->type)
			return true;
		if (image->isnull[index])
			return false;
		other = image->values[index];
		if (RecordValueIsUnchanged(image->desc, index + 1, other))
			return true;
	}
	else if (row->subscription != NULL)
	{
		Instance *instance = row->subscription->instance;

		if (condition->row_param == -2)
			condition->row_param = RowParam(view, condition, instance->channel->template);
		if (condition->row_param < 0 || instance->params[condition->row_param] == NULL)
			return true;
		other = InputFunctionCall(&condition->input, instance->params[condition->row_param],
								  condition->ioparam, -1);
	}
	else
		return true;
	return DatumGetBool(
		FunctionCall2Coll(&condition->equality, condition->collation, value, other));
}

static bool
Fulfils(const RowChange *change, const Image *image, DependencyScan *scan, const View *view,
		const JudgedRow *row)
{
	int i;
	int k;

	for (i = 0; i < scan->nconditions; i++)
	{
		Condition *condition = &scan->conditions[i];
		int index = condition->column - 1;
		bool equal = false;

		if (index >= change->desc->tupdesc->natts || !image->known[index] ||
			TupleDescAttr(change->desc->tupdesc, index)->atttypid != condition->column_type)
			continue;
		if (image->isnull[index])
			return false;
		if (condition->row_column != 0)
			equal = RowMayEqual(condition, image->values[index], view, row);
		for (k = 0; k < condition->nvalues && !equal; k++)
			equal = DatumGetBool(FunctionCall2Coll(&condition->equality, condition->collation,
												   image->values[index], condition->values[k]));
		if (!equal)
			return false;
	}
	return true;
}

bool
DependencyChangeConcerns(const RowChange *change, DependencyDetails *details, const JudgedRow *row)
{
	int i;

	if (details->kind != NARROW_SCANS)
		return details->kind == NARROW_ANY;
	if (!Alters(change, details))
		return false;
	for (i = 0; i < details->nscans; i++)
		if ((change->old_row.exists &&
			 Fulfils(change, &change->old_row, &details->scans[i], details->view, row)) ||
			(change->new_row.exists &&
			 Fulfils(change, &change->new_row, &details->scans[i], details->view, row)))
			return true;
	return false;
}

/* ---- a transaction ---- */

static bool
Contains(const Oid *relids, int n, Oid relid)
{
	int i;

	for (i = 0; i < n; i++)
		if (relids[i] == relid)
			return true;
	return false;
}

/* Are all its changes of the table in the log? */
bool
DependencyIsTold(const LogTransaction *transaction, Oid relid)
{
	return !Contains(transaction->untold, transaction->nuntold, relid) &&
		   !Contains(transaction->lost, transaction->nlost, relid) &&
		   !Contains(transaction->lost, transaction->nlost, InvalidOid);
}

static bool
LooksConcerning(LogTransaction *transaction, DependencyDetails *details, const JudgedRow *row)
{
	Oid relid = details->table->relid;
	int i;

	if (details->kind == NARROW_NONE)
		return false;
	if (details->kind == NARROW_ANY || !DependencyIsTold(transaction, relid))
		return true;
	for (i = 0; i < transaction->nchanges; i++)
	{
		RowChange change;

		if (transaction->changes[i].desc->relid != relid)
			continue;
		DependencyMakeChange(&change, &transaction->changes[i]);
		if (DependencyChangeConcerns(&change, details, row))
			return true;
	}
	return false;
}

/* Type functions may raise errors; then nothing is known of the change. */
static bool
TransactionConcerns(LogTransaction *transaction, DependencyDetails *details, const JudgedRow *row)
{
	MemoryContext old;
	volatile bool result = true;

	if (scratch == NULL)
		scratch = AllocSetContextCreate(TopMemoryContext, "changefeed change of a dependency",
										ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(scratch);
	PG_TRY();
	{
		result = LooksConcerning(transaction, details, row);
	}
	PG_CATCH();
	{
		if (geterrcode() == ERRCODE_ADMIN_SHUTDOWN)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	MemoryContextReset(scratch);
	return result;
}

static bool
ViewIsConcerned(View *view, LogTransaction *transaction, const JudgedRow *row)
{
	int i;

	for (i = 0; i < view->ndependencies; i++)
		if (Contains(transaction->touched, transaction->ntouched, view->dependencies[i]) &&
			TransactionConcerns(transaction, &view->details[i], row))
			return true;
	return false;
}

bool
DependencyConcerns(Subscription *s, LogTransaction *transaction)
{
	JudgedRow row = {s, NULL};
	int i;

	if (s->views == NULL)
		return false;
	for (i = 0; i < s->instance->channel->nviews; i++)
		if (s->views[i] != NULL && ViewIsConcerned(s->views[i], transaction, &row))
			return true;
	return false;
}

/* ---- verdicts ---- */

/* The views of the identity that the verdict is for. */
static View *
FindView(Identity *identity, Oid relid, uint64 fingerprint)
{
	ListCell *lc;

	foreach(lc, identity->views)
	{
		View *view = lfirst(lc);

		if (view->relid == relid && view->fingerprint == fingerprint)
			return view;
	}
	return NULL;
}

bool
DependencyOutdates(Identity *identity, Oid relid, uint64 fingerprint, const Oid *dependencies,
				   int ndependencies, LogTransaction *transaction, int image, uint64 until)
{
	View *view = FindView(identity, relid, fingerprint);
	JudgedRow row = {NULL, NULL};
	bool touched = false;
	uint64 number;
	int i;

	for (i = 0; i < ndependencies && !touched; i++)
		touched = LogLastTouch(dependencies[i]) > transaction->commit.lsn;
	if (!touched)
		return false;
	if (view == NULL)
		return true;
	if (image >= 0 && transaction->map != NULL)
		row.image = &transaction->map->images[image];
	for (number = transaction->number + 1; number <= until; number++)
	{
		LogTransaction *later = LogGet(number);

		if (later == NULL)
			return true;

		/* Another plan may have read others, of which nothing is known. */
		for (i = 0; i < ndependencies; i++)
			if (!Contains(view->dependencies, view->ndependencies, dependencies[i]) &&
				Contains(later->touched, later->ntouched, dependencies[i]))
				return true;
		if (ViewIsConcerned(view, later, &row))
			return true;
	}
	return false;
}

static bool
Reads(Subscription *s, Oid relid)
{
	int i;

	for (i = 0; s->views != NULL && i < s->instance->channel->nsources; i++)
		if (s->views[i] != NULL && s->views[i]->relid == relid)
			return true;
	return false;
}

bool
DependencyResync(Identity *identity, Oid relid, uint64 from, uint64 until)
{
	List *concerned = NIL;
	dlist_iter iter;
	dlist_iter iter2;
	ListCell *lc;
	uint64 number;

	dlist_foreach(iter, &identity->connections)
	{
		Connection *connection = dlist_container(Connection, identity_node, iter.cur);

		dlist_foreach(iter2, &connection->subscriptions)
		{
			Subscription *s = dlist_container(Subscription, connection_node, iter2.cur);

			if (!Reads(s, relid))
				continue;

			/* Of what is published, those that are ready have been told. */
			number = Max(from, s->state == SUB_READY ? LogPublished() : s->cursor);
			while (++number <= until)
			{
				LogTransaction *transaction = LogGet(number);

				if (transaction == NULL || DependencyConcerns(s, transaction))
				{
					concerned = lappend(concerned, s);
					break;
				}
			}
		}
	}
	foreach(lc, concerned)
		SubscribeResync(lfirst(lc), "dependency_changed");
	return concerned != NIL;
}
