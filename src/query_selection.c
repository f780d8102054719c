/*-------------------------------------------------------------------------
 *
 * query_selection.c
 *		A client's selection on one source: may it, what does it mean, and how
 *		will the feed worker find the rows?
 *
 * Each column that it names has to exist, be published by the source and be
 * readable by the identity, and that is found out before anything else.  Then
 * the conditions are read the way the server reads `column = 'value'`, under
 * pinned settings, and written in canonical form.  The snapshot's query and the
 * feed worker use that same text, so they cannot disagree.
 *
 * Process: query worker, as the identity.  Reading a value may run the input
 * function of a user's type.  Locks: the caller has locked the table.  Memory:
 * what outlives the transaction in query_job_context.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"

#include "channel_check.h"
#include "encode.h"
#include "filter_compile.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/transam.h"
#include "catalog/pg_class.h"
#include "catalog/pg_statistic.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

/* ---- Columns ---- */

static void
RequireOldValue(Relation rel, int16 attno)
{
	Bitmapset *identity;

	/* Of a partitioned table, it is the partitions' that counts. */
	if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE ||
		rel->rd_rel->relreplident == REPLICA_IDENTITY_FULL)
		return;
	identity = RelationGetIndexAttrBitmap(rel, INDEX_ATTR_BITMAP_IDENTITY_KEY);
	if (bms_is_member(attno - FirstLowInvalidHeapAttributeNumber, identity))
		return;
	ereport(
		ERROR,
		(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		 errmsg("column \"%s\" of table \"%s\" cannot be used in conditions",
				get_attname(RelationGetRelid(rel), attno, false), RelationGetRelationName(rel)),
		 errhint("Its old values are not in the WAL: use ALTER TABLE ... REPLICA IDENTITY FULL.")));
}

static void
RequireType(Relation rel, int16 attno)
{
	Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), attno - 1);

	if (!ChannelFilterTypeAllowed(att->atttypid))
		ereport(
			ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("filter column \"%s\" has the type %s, which conditions cannot use",
					NameStr(att->attname), format_type_be(att->atttypid)),
			 errhint(
				 "Types that come with PostgreSQL, enums, and arrays and domains of these are possible.")));
}

static void
RequireNodes(SourceQuery *source, Relation rel, Oid role, const List *nodes)
{
	ListCell *lc;

	foreach(lc, nodes)
	{
		SelectionNode *node = lfirst(lc);

		if (node->kind == SELECTION_AND || node->kind == SELECTION_OR)
			RequireNodes(source, rel, role, node->children);
		else
		{
			int16 attno = SourceQueryRequire(source, rel, node->field.column, role,
											 "filter column");

			RequireType(rel, attno);
			RequireOldValue(rel, attno);
		}
	}
}

/* Leaves the key and what the client named among the columns to send. */
static void
Project(SourceQuery *source, Relation rel, Oid role)
{
	int16 *wanted = palloc(sizeof(int16) * (list_length(source->selection->columns) + 1));
	int nwanted = 0;
	int n = 0;
	ListCell *lc;
	int i;
	int k;

	foreach(lc, source->selection->columns)
		wanted[nwanted++] = SourceQueryRequire(source, rel, lfirst(lc), role, "column");
	if (nwanted == 0)
		return;
	for (i = 0; i < source->ncolumns; i++)
	{
		bool keep = false;

		for (k = 0; k < nwanted; k++)
			keep = keep || wanted[k] == source->columns[i];
		for (k = 0; k < source->nkeys; k++)
			keep = keep || get_attnum(RelationGetRelid(rel), source->keys[k]) == source->columns[i];
		if (keep)
			source->columns[n++] = source->columns[i];
	}
	source->ncolumns = n;

	for (i = 0, n = 0; i < source->ncasts; i++)
		for (k = 0; k < source->ncolumns; k++)
			if (source->columns[k] == source->casts[i])
				source->casts[n++] = source->casts[i];
	source->ncasts = n;
}

/* ---- What cannot be left to the evaluation ---- */

static bool
IsDateTime(Oid type)
{
	Oid element;

	type = getBaseType(type);
	switch (type)
	{
		case DATEOID:
		case TIMEOID:
		case TIMETZOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return true;
		default:
			break;
	}
	element = get_element_type(type);
	if (!OidIsValid(element))
		element = get_range_subtype(type);
	if (!OidIsValid(element))
		element = get_multirange_range(type);
	return OidIsValid(element) && IsDateTime(element);
}

typedef struct ConstCheck
{
	const char *sql; /* of the condition: constants know their place in it */
} ConstCheck;

/* What a value like "today" means would differ from moment to moment. */
static void
RefuseMovingTime(const char *literal)
{
	static const char *const words[] = {"now", "today", "tomorrow", "yesterday"};
	const char *c = literal;

	while (*c != '\0')
	{
		Size length = strspn(c, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ");
		int i;

		for (i = 0; i < lengthof(words); i++)
			if (length == strlen(words[i]) && pg_strncasecmp(c, words[i], length) == 0)
				ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
								errmsg("value \"%s\" in a condition depends on the current time",
									   words[i]),
								errhint("Send the time itself.")));
		c += Max(length, 1);
	}
}

/* The literal that begins there, up to its closing quotation mark. */
static char *
LiteralAt(const char *sql, int location)
{
	const char *start = sql + location;
	const char *end;

	if (*start == 'E')
		start++;
	if (*start != '\'')
		return pstrdup("");
	for (end = start + 1; *end != '\0' && !(end[0] == '\'' && end[1] != '\''); end++)
		if (end[0] == '\'')
			end++;
	return pnstrdup(start + 1, end - start - 1);
}

/* Bad patterns are told at once, not with the first row that meets them. */
static void
TryRegex(Oid function, Oid collation, Node *pattern)
{
	Const *constant = (Const *) pattern;
	Datum empty = PointerGetDatum(cstring_to_text(""));
	Datum *values = &constant->constvalue;
	bool isnull = constant->constisnull;
	bool *nulls = &isnull;
	int n = 1;
	int i;

	if (!IsA(pattern, Const) || constant->constisnull)
		return;
	if (OidIsValid(get_element_type(constant->consttype)))
		deconstruct_array(DatumGetArrayTypeP(constant->constvalue), TEXTOID, -1, false,
						  TYPALIGN_INT, &values, &nulls, &n);
	if (function == F_NAMEREGEXEQ || function == F_BPCHARREGEXEQ)
		function = F_TEXTREGEXEQ;
	else if (function == F_NAMEICREGEXEQ || function == F_BPCHARICREGEXEQ)
		function = F_TEXTICREGEXEQ;
	for (i = 0; i < n; i++)
		if (!nulls[i])
			(void) OidFunctionCall2Coll(function, collation, empty, values[i]);
}

static bool
CheckConstants(Node *node, void *context)
{
	ConstCheck *check = context;

	if (node == NULL)
		return false;
	if (IsA(node, Const) && ((Const *) node)->location >= 0 &&
		IsDateTime(((Const *) node)->consttype))
		RefuseMovingTime(LiteralAt(check->sql, ((Const *) node)->location));
	if (IsA(node, OpExpr) && FilterIsRegex(((OpExpr *) node)->opfuncid, NULL))
		TryRegex(((OpExpr *) node)->opfuncid, ((OpExpr *) node)->inputcollid,
				 lsecond(((OpExpr *) node)->args));
	if (IsA(node, ScalarArrayOpExpr) && FilterIsRegex(((ScalarArrayOpExpr *) node)->opfuncid, NULL))
		TryRegex(((ScalarArrayOpExpr *) node)->opfuncid, ((ScalarArrayOpExpr *) node)->inputcollid,
				 lsecond(((ScalarArrayOpExpr *) node)->args));
	return expression_tree_walker(node, CheckConstants, context);
}

/* A condition as an expression; an error says which condition it was. */
static Node *
Analyze(Relation rel, const char *sql)
{
	MemoryContext context = CurrentMemoryContext;
	ConstCheck check = {sql};
	Node *expr = NULL;

	PG_TRY();
	{
		expr = ChannelAnalyzeFilter(rel, sql);
		fix_opfuncids(expr);
		(void) CheckConstants(expr, &check);
	}
	PG_CATCH();
	{
		ErrorData *error;
		int class;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		class = ERRCODE_TO_CATEGORY(error->sqlerrcode);
		if (class == ERRCODE_TO_CATEGORY(ERRCODE_QUERY_CANCELED) ||
			class == ERRCODE_TO_CATEGORY(ERRCODE_INTERNAL_ERROR) ||
			class == ERRCODE_TO_CATEGORY(ERRCODE_OUT_OF_MEMORY) ||
			class == ERRCODE_TO_CATEGORY(ERRCODE_T_R_SERIALIZATION_FAILURE))
			PG_RE_THROW();
		/* The transaction ends by the error that takes the place of this one. */
		FlushErrorState();
		ereport(ERROR, (errcode(error->sqlerrcode), errmsg("%s", error->message),
						errhint("The condition is %s.", sql)));
	}
	PG_END_TRY();
	return expr;
}

/* ---- Look-up ---- */

/* About how many values the column has. */
static double
DistinctValues(Relation rel, int16 attno, Oid type)
{
	HeapTuple tuple;
	double distinct = 0;

	if (type == BOOLOID)
		return 2;
	tuple = SearchSysCache3(STATRELATTINH, ObjectIdGetDatum(RelationGetRelid(rel)),
							Int16GetDatum(attno),
							BoolGetDatum(rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE));
	if (HeapTupleIsValid(tuple))
	{
		distinct = ((Form_pg_statistic) GETSTRUCT(tuple))->stadistinct;
		if (distinct < 0)
			distinct *= -Max(rel->rd_rel->reltuples, 1000);
		ReleaseSysCache(tuple);
	}
	if (distinct > 0)
		return distinct;
	return get_typtype(type) == TYPTYPE_ENUM ? 10 : 200;
}

/*
 * A condition that rows can be found by: the column equals a constant, or one
 * of several.  Types without parts only, as hashing those calls other types'
 * functions.
 */
static bool
FindLookup(Relation rel, Node *condition, SelectionLookup *lookup)
{
	Node *left;
	Const *right;
	Oid operator;
	Oid type;
	TypeCacheEntry *entry;
	Form_pg_attribute att;
	Datum *values;
	bool *nulls;
	bool isnull;
	int n;
	int i;

	if (IsA(condition, OpExpr) && list_length(((OpExpr *) condition)->args) == 2)
	{
		operator=((OpExpr *) condition)->opno;
		left = linitial(((OpExpr *) condition)->args);
		right = lsecond(((OpExpr *) condition)->args);
		lookup->collation = ((OpExpr *) condition)->inputcollid;
	}
	else if (IsA(condition, ScalarArrayOpExpr) && ((ScalarArrayOpExpr *) condition)->useOr)
	{
		operator=((ScalarArrayOpExpr *) condition)->opno;
		left = linitial(((ScalarArrayOpExpr *) condition)->args);
		right = lsecond(((ScalarArrayOpExpr *) condition)->args);
		lookup->collation = ((ScalarArrayOpExpr *) condition)->inputcollid;
	}
	else
		return false;

	type = exprType(left);
	if (IsA(left, RelabelType))
		left = (Node *) ((RelabelType *) left)->arg;
	if (!IsA(left, Var) || !IsA(right, Const) || right->constisnull)
		return false;
	entry = lookup_type_cache(type, TYPECACHE_EQ_OPR | TYPECACHE_HASH_PROC);
	if (entry->eq_opr != operator|| !OidIsValid(entry->hash_proc) ||
		entry->hash_proc >= FirstNormalObjectId || OidIsValid(get_element_type(type)) ||
		(entry->typtype != TYPTYPE_BASE && entry->typtype != TYPTYPE_ENUM))
		return false;

	isnull = false;
	values = &right->constvalue;
	nulls = &isnull;
	n = 1;
	if (IsA(condition, ScalarArrayOpExpr))
	{
		if (get_element_type(right->consttype) != type)
			return false;
		deconstruct_array(DatumGetArrayTypeP(right->constvalue), type, entry->typlen,
						  entry->typbyval, entry->typalign, &values, &nulls, &n);
	}
	else if (right->consttype != type)
		return false;

	att = TupleDescAttr(RelationGetDescr(rel), ((Var *) left)->varattno - 1);
	lookup->attno = att->attnum;
	lookup->column_type = att->atttypid;
	lookup->type = type;
	lookup->nhashes = 0;
	lookup->hashes = palloc(sizeof(uint32) * Max(n, 1));
	for (i = 0; i < n; i++)
		if (!nulls[i])
			lookup->hashes[lookup->nhashes++] = DatumGetUInt32(
				OidFunctionCall1Coll(entry->hash_proc, lookup->collation, values[i]));
	lookup->selectivity = DistinctValues(rel, att->attnum, type) / Max(n, 1);
	return true;
}

/* ---- The whole ---- */

static void
PutDescription(StringInfo out, const char *filter, Bitmapset *needed, const SelectionLookup *lookup)
{
	int attno = -1;
	int i;

	WirePutString(out, filter);
	WirePutU16(out, (uint16) bms_num_members(needed));
	while ((attno = bms_next_member(needed, attno)) >= 0)
		WirePutU16(out, (uint16) (attno + FirstLowInvalidHeapAttributeNumber));
	WirePutU16(out, (uint16) lookup->attno);
	WirePutU32(out, lookup->column_type);
	WirePutU32(out, lookup->type);
	WirePutU32(out, lookup->collation);
	WirePutU32(out, (uint32) lookup->nhashes);
	for (i = 0; i < lookup->nhashes; i++)
		WirePutU32(out, lookup->hashes[i]);
}

/*
 * Columns first, so that whoever may not read one learns nothing else.  Sets
 * source->conditions and narrows source->columns.
 */
void
SelectionQueryCheck(SourceQuery *source, Relation rel, Oid role)
{
	Selection *selection = source->selection;
	ListCell *lc;

	RequireNodes(source, rel, role, selection->conditions);
	foreach(lc, selection->order)
		(void) SourceQueryRequire(source, rel, ((SelectionOrder *) lfirst(lc))->field.column, role,
								  "order column");
	Project(source, rel, role);
}

void
SelectionQueryDescribe(SourceQuery *source, Relation rel, StringInfo out)
{
	SelectionLookup best = {0};
	Bitmapset *needed = NULL;
	List *conditions = NIL;
	ListCell *lc;

	source->conditions = "";
	if (source->selection != NULL && source->selection->conditions != NIL)
	{
		int nestlevel = EncodePinnedBegin();
		MemoryContext old;
		Node *expr;

		foreach(lc, source->selection->conditions)
		{
			SelectionLookup lookup = {0};

			expr = Analyze(rel, ((SelectionNode *) lfirst(lc))->sql);
			if (FindLookup(rel, expr, &lookup) &&
				(best.attno == 0 || lookup.selectivity > best.selectivity))
				best = lookup;
			conditions = lappend(conditions, expr);
		}
		expr = (Node *) make_ands_explicit(conditions);
		pull_varattnos(expr, 1, &needed);
		old = MemoryContextSwitchTo(query_job_context);
		source->conditions = ChannelFilterText(rel, expr);
		MemoryContextSwitchTo(old);
		EncodePinnedEnd(nestlevel);
	}
	PutDescription(out, source->conditions, needed, &best);
}

void
SelectionQueryDescribeNothing(StringInfo out)
{
	SelectionLookup none = {0};

	PutDescription(out, "", NULL, &none);
}

/* ORDER BY and LIMIT; nothing when every row is read anyway. */
void
SelectionQueryAppendOrder(StringInfo sql, const SourceQuery *source)
{
	const Selection *selection = source->selection;
	const char *separator = " ORDER BY ";
	bool recheck = false;
	ListCell *lc;
	int i;

	if (selection == NULL || (selection->order == NIL && selection->limit == 0))
		return;
	foreach(lc, selection->order)
	{
		SelectionOrder *order = lfirst(lc);

		appendStringInfoString(sql, separator);
		SelectionAppendField(sql, &order->field);
		appendStringInfoString(sql, order->direction);
		separator = ", ";
	}
	for (i = 0; i < source->nkeys; i++)
	{
		appendStringInfo(sql, "%s%s", separator, quote_identifier(source->keys[i]));
		separator = ", ";
	}

	/* Rows that are dropped later must not count. */
	for (i = 0; i < source->nparams; i++)
		recheck = recheck || source->params[i].recheck;
	if (selection->limit > 0 && !recheck)
		appendStringInfo(sql, " LIMIT %d", selection->limit);
}
