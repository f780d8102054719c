/*-------------------------------------------------------------------------
 *
 * policy_rule.c
 *		Policies that the feed worker evaluates itself.
 *
 * A query worker has made a rule of a table's policies for an identity, if they
 * can be evaluated anywhere (query_inline.c): an expression on the table's
 * columns, and constants.  Most identities have the same expression, which is a
 * *shape*: read, checked and compiled once.  What a rule has for itself are
 * its constants.
 *
 * That a shape uses only what is safe here is checked again (policy_safe.c), so
 * that nothing else can be put under it.
 *
 * A rule is part of a view, so that it is valid as long as that is: behind a
 * barrier that may concern the policies the view is found out anew before
 * anything is delivered (check.c), or the subscription starts again.  What it
 * cannot say of a row is asked of query workers, who compare the fingerprint.
 *
 * Process: feed worker.  Memory: registry_context; compiled shapes in contexts
 * of their own below it.  Needs a transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "policy_rule.h"
#include "policy_safe.h"
#include "wire_write.h"

#include "access/detoast.h"
#include "access/transam.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "nodes/params.h"
#include "optimizer/optimizer.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/typcache.h"

/* Descriptions of a table that a shape is kept compiled for. */
#define MAX_COMPILED 2

/* Columns of which one has to have a value: more are not worth looking at. */
#define MAX_DEMANDS 8

/*
 * Bytes of a row that a shape may read, in all, and if what it does with them
 * takes time in proportion to their product.  More is left to query workers.
 */
#define MAX_VALUES		(1024 * 1024)
#define MAX_SLOW_VALUES (8 * 1024)

typedef struct CompiledShape
{
	uint32 version;	  /* of the description */
	ExprState *state; /* NULL: the shape does not fit it */
	TupleTableSlot *slot;
	ExprContext *econtext; /* what an evaluation keeps goes with `context` */
	MemoryContext context;
} CompiledShape;

/* A demand, and where its values are. */
typedef struct ShapeDemand
{
	PolicyDemand demand;
	int param;			   /* from 1; 0: `value` */
	Const *value;		   /* a constant of the expression */
	bool is_array;		   /* of values, one of which it is */
	TypeCacheEntry *cache; /* of its type, which may be gone by now */
} ShapeDemand;

typedef struct Shape
{
	struct Shape *next; /* with the same hash */
	uint64 hash;
	int refcount;
	MemoryContext context;
	Oid relid;
	char *text;
	int length;
	bool refused;	/* it is not evaluated here */
	Verdict always; /* VERDICT_UNKNOWN: it depends on the row */
	bool can_fail;
	Size limit; /* of what it reads of a row */
	Node *expr;
	int ncolumns;
	Var **columns; /* one of each */
	int nconstants;
	Oid *types; /* of constants */
	int16 *typlens;
	bool *byvals;
	ParamListInfo params;
	int ndemands;
	ShapeDemand *demands;
	CompiledShape compiled[MAX_COMPILED];
	int ncompiled;
} Shape;

struct PolicyRule
{
	PolicyRule *next; /* with the same hash */
	uint64 hash;
	int refcount;
	uint32 size; /* of `data` */
	Shape *shape;

	/* Of each demand: number of hashes, hashes.  NULL: there are no demands. */
	uint32 *hashes;

	/* u32 place of each constant in here, and the constants, MAXALIGNed */
	char data[FLEXIBLE_ARRAY_MEMBER];
};

/* Elements of an array are looked for at aligned addresses, not offsets. */
StaticAssertDecl(offsetof(PolicyRule, data) % MAXIMUM_ALIGNOF == 0, "constants are aligned");

/* Of shapes and of rules: those with that hash, nearly always one. */
typedef struct HashedEntry
{
	uint64 hash;
	void *first;
} HashedEntry;

static HTAB *shapes;
static HTAB *rules;

static HTAB *
MakeTable(const char *name)
{
	HASHCTL ctl;

	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(HashedEntry);
	ctl.hcxt = registry_context;
	return hash_create(name, 256, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* ---- Shapes: demands ---- */

static bool AddDemands(Shape *shape, Node *node, bool *with_param);

/* Column = value, or = ANY (values). */
static bool
AddEquality(Shape *shape, Oid operator, Oid collation, List *args, bool is_array, bool *with_param)
{
	Node *left;
	Node *right;
	Oid type;
	TypeCacheEntry *cache;
	ShapeDemand *demand;

	if (list_length(args) != 2)
		return false;
	left = linitial(args);
	right = lsecond(args);
	if (!is_array && (IsA(left, Const) || IsA(left, Param)))
	{
		left = lsecond(args);
		right = linitial(args);
	}
	type = exprType(left);
	if (IsA(left, RelabelType))
		left = (Node *) ((RelabelType *) left)->arg;
	if (!IsA(left, Var) || !(IsA(right, Const) || IsA(right, Param)) ||
		(is_array ? get_element_type(exprType(right)) : exprType(right)) != type)
		return false;

	/* Types with parts are hashed by functions of the parts' types. */
	cache = lookup_type_cache(type, TYPECACHE_EQ_OPR | TYPECACHE_HASH_PROC_FINFO);
	if (cache->eq_opr != operator|| !OidIsValid(cache->hash_proc) ||
		cache->hash_proc >= FirstNormalObjectId || OidIsValid(get_element_type(type)) ||
		(cache->typtype != TYPTYPE_BASE && cache->typtype != TYPTYPE_ENUM))
		return false;
	if (shape->ndemands == MAX_DEMANDS)
		return false;
	demand = &shape->demands[shape->ndemands++];
	memset(demand, 0, sizeof(ShapeDemand));
	demand->demand.attno = ((Var *) left)->varattno;
	demand->demand.column_type = ((Var *) left)->vartype;
	demand->demand.type = type;
	demand->demand.collation = collation;
	demand->is_array = is_array;
	demand->cache = cache;
	if (IsA(right, Param))
	{
		demand->param = ((Param *) right)->paramid;
		*with_param = true;
	}
	else
		demand->value = (Const *) right;
	return true;
}

static bool
AddBoolean(Shape *shape, Var *var, bool value)
{
	ShapeDemand *demand;

	if (shape->ndemands == MAX_DEMANDS || var->vartype != BOOLOID)
		return false;
	demand = &shape->demands[shape->ndemands++];
	memset(demand, 0, sizeof(ShapeDemand));
	demand->demand.attno = var->varattno;
	demand->demand.column_type = BOOLOID;
	demand->demand.type = BOOLOID;
	demand->cache = lookup_type_cache(BOOLOID, TYPECACHE_HASH_PROC_FINFO);
	demand->value = (Const *) makeBoolConst(value, false);
	return true;
}

/*
 * Of AND one argument's demands do: the fewest, and rather values that tell
 * identities apart.
 */
static bool
AddAnd(Shape *shape, List *args, bool *with_param)
{
	ShapeDemand best[MAX_DEMANDS];
	int nbest = 0;
	bool found = false;
	bool best_with_param = false;
	int before = shape->ndemands;
	ListCell *lc;

	foreach(lc, args)
	{
		bool param = false;
		int n;

		if (AddDemands(shape, lfirst(lc), &param))
		{
			n = shape->ndemands - before;
			if (!found || param > best_with_param || (param == best_with_param && n < nbest))
			{
				memcpy(best, &shape->demands[before], sizeof(ShapeDemand) * n);
				nbest = n;
				best_with_param = param;
				found = true;
			}
		}
		shape->ndemands = before;
	}
	if (!found)
		return false;
	memcpy(&shape->demands[before], best, sizeof(ShapeDemand) * nbest);
	shape->ndemands += nbest;
	*with_param = *with_param || best_with_param;
	return true;
}

/* What has to hold for `node` to be true; false: that is not known. */
static bool
AddDemands(Shape *shape, Node *node, bool *with_param)
{
	ListCell *lc;

	switch (nodeTag(node))
	{
		case T_Const:
			/* Never true, for which nothing would do. */
			return ((Const *) node)->constisnull || !DatumGetBool(((Const *) node)->constvalue);
		case T_Var:
			return AddBoolean(shape, (Var *) node, true);
		case T_OpExpr:
			return AddEquality(shape, ((OpExpr *) node)->opno, ((OpExpr *) node)->inputcollid,
							   ((OpExpr *) node)->args, false, with_param);
		case T_ScalarArrayOpExpr:
			return ((ScalarArrayOpExpr *) node)->useOr &&
				   AddEquality(shape, ((ScalarArrayOpExpr *) node)->opno,
							   ((ScalarArrayOpExpr *) node)->inputcollid,
							   ((ScalarArrayOpExpr *) node)->args, true, with_param);
		case T_BooleanTest:
			if (!IsA(((BooleanTest *) node)->arg, Var))
				return false;
			switch (((BooleanTest *) node)->booltesttype)
			{
				case IS_TRUE:
					return AddBoolean(shape, (Var *) ((BooleanTest *) node)->arg, true);
				case IS_FALSE:
					return AddBoolean(shape, (Var *) ((BooleanTest *) node)->arg, false);
				default:
					return false;
			}
		case T_BoolExpr:
			switch (((BoolExpr *) node)->boolop)
			{
				case AND_EXPR:
					return AddAnd(shape, ((BoolExpr *) node)->args, with_param);
				case OR_EXPR:
					foreach(lc, ((BoolExpr *) node)->args)
						if (!AddDemands(shape, lfirst(lc), with_param))
							return false;
					return true;
				case NOT_EXPR:
					return IsA(linitial(((BoolExpr *) node)->args), Var) &&
						   AddBoolean(shape, linitial(((BoolExpr *) node)->args), false);
			}
			return false;
		default:
			return false;
	}
}

/* ---- Shapes: reading and checking ---- */

/* What functions operators have is for the catalogs to say. */
static bool
ResetFunctions(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, OpExpr) || IsA(node, DistinctExpr) || IsA(node, NullIfExpr))
		((OpExpr *) node)->opfuncid = InvalidOid;
	else if (IsA(node, ScalarArrayOpExpr))
	{
		((ScalarArrayOpExpr *) node)->opfuncid = InvalidOid;
		((ScalarArrayOpExpr *) node)->hashfuncid = InvalidOid;
		((ScalarArrayOpExpr *) node)->negfuncid = InvalidOid;
	}
	return expression_tree_walker(node, ResetFunctions, context);
}

typedef struct CollectContext
{
	List *columns; /* of Var, one of each */
	int nparams;
	Oid types[PG_UINT8_MAX];
	bool good;
} CollectContext;

static bool
Collect(Node *node, CollectContext *context)
{
	ListCell *lc;

	if (node == NULL)
		return false;
	if (IsA(node, Var))
	{
		foreach(lc, context->columns)
			if (((Var *) lfirst(lc))->varattno == ((Var *) node)->varattno)
				return false;
		context->columns = lappend(context->columns, node);
	}
	else if (IsA(node, Param))
	{
		Param *param = (Param *) node;

		if (param->paramid < 1 || param->paramid > lengthof(context->types))
			context->good = false;
		else
		{
			context->types[param->paramid - 1] = param->paramtype;
			context->nparams = Max(context->nparams, param->paramid);
		}
		return false;
	}
	return expression_tree_walker(node, Collect, (void *) context);
}

static bool
ReadShape(Shape *shape)
{
	CollectContext collect = {0};
	bool with_param = false;
	ListCell *lc;
	int i;

	shape->expr = stringToNode(shape->text);
	(void) ResetFunctions(shape->expr, NULL);
	fix_opfuncids(shape->expr);
	collect.good = true;
	(void) Collect(shape->expr, &collect);
	if (PolicyUnsafe(shape->expr, &shape->can_fail) != NULL || !collect.good ||
		exprType(shape->expr) != BOOLOID)
		return false;

	shape->limit = PolicyTakesLong(shape->expr) ? MAX_SLOW_VALUES : MAX_VALUES;
	shape->columns = palloc(sizeof(Var *) * Max(list_length(collect.columns), 1));
	foreach(lc, collect.columns)
		shape->columns[shape->ncolumns++] = lfirst(lc);
	shape->nconstants = collect.nparams;
	shape->types = palloc(sizeof(Oid) * Max(collect.nparams, 1));
	shape->typlens = palloc(sizeof(int16) * Max(collect.nparams, 1));
	shape->byvals = palloc(sizeof(bool) * Max(collect.nparams, 1));
	shape->params = makeParamList(collect.nparams);
	for (i = 0; i < collect.nparams; i++)
	{
		if (!OidIsValid(collect.types[i]))
			return false;
		shape->types[i] = collect.types[i];
		get_typlenbyval(collect.types[i], &shape->typlens[i], &shape->byvals[i]);
		shape->params->params[i].isnull = false;
		shape->params->params[i].pflags = 0;
		shape->params->params[i].ptype = collect.types[i];
	}

	if (IsA(shape->expr, Const))
	{
		Const *value = (Const *) shape->expr;

		shape->always = !value->constisnull && DatumGetBool(value->constvalue) ? VERDICT_VISIBLE
																			   : VERDICT_HIDDEN;
	}
	/* Whose evaluation may fail has to be evaluated for every row. */
	else if (!shape->can_fail)
	{
		shape->demands = palloc(sizeof(ShapeDemand) * MAX_DEMANDS);
		if (!AddDemands(shape, shape->expr, &with_param))
			shape->ndemands = 0;
	}
	return true;
}

/* An error: a type or a collation of it is not there any more. */
static Shape *
ShapeIntern(Oid relid, const char *text, int length)
{
	uint64 hash = hash_bytes_extended((const unsigned char *) text, length, relid);
	HashedEntry *entry;
	Shape *shape;
	bool found;
	MemoryContext context;
	MemoryContext old;

	if (shapes == NULL)
		shapes = MakeTable("changefeed shapes of rules");
	entry = hash_search(shapes, &hash, HASH_FIND, NULL);
	for (shape = entry != NULL ? entry->first : NULL; shape != NULL; shape = shape->next)
		if (shape->relid == relid && shape->length == length &&
			memcmp(shape->text, text, length) == 0)
		{
			shape->refcount++;
			return shape;
		}

	context = AllocSetContextCreate(registry_context, "changefeed shape", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	shape = palloc0(sizeof(Shape));
	shape->context = context;
	shape->hash = hash;
	shape->refcount = 1;
	shape->relid = relid;
	shape->text = pnstrdup(text, length);
	shape->length = length;
	shape->always = VERDICT_UNKNOWN;
	PG_TRY();
	{
		shape->refused = !ReadShape(shape);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(old);
		MemoryContextDelete(context);
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	if (shape->refused)
		ereport(LOG,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a rule for table with OID %u is not evaluated in the feed worker", relid),
				 errdetail("It uses something else than what is known to be safe.")));

	entry = hash_search(shapes, &hash, HASH_ENTER, &found);
	shape->next = found ? entry->first : NULL;
	entry->first = shape;
	return shape;
}

static void
ShapeRelease(Shape *shape)
{
	HashedEntry *entry;
	Shape **link;

	if (--shape->refcount > 0)
		return;
	entry = hash_search(shapes, &shape->hash, HASH_FIND, NULL);
	for (link = (Shape **) &entry->first; *link != shape; link = &(*link)->next)
		;
	*link = shape->next;
	if (entry->first == NULL)
		hash_search(shapes, &shape->hash, HASH_REMOVE, NULL);
	MemoryContextDelete(shape->context);
}

/* ---- Rules ---- */

static Datum
Constant(const PolicyRule *rule, int i)
{
	const char *place = rule->data + ((const uint32 *) rule->data)[i];

	return rule->shape->byvals[i] ? *(const Datum *) place : PointerGetDatum(place);
}

/* Appends the number of values that a demand has, and their hashes. */
static void
HashDemand(const PolicyRule *rule, int number, StringInfo out)
{
	ShapeDemand *demand = &rule->shape->demands[number];
	TypeCacheEntry *cache = demand->cache;
	Datum value = demand->param > 0 ? Constant(rule, demand->param - 1) : demand->value->constvalue;
	bool isnull = demand->param == 0 && demand->value->constisnull;
	Datum *values = &value;
	bool *nulls = &isnull;
	int place = out->len;
	uint32 count = 0;
	int n = 1;
	int i;

	if (demand->is_array && !isnull)
		deconstruct_array(DatumGetArrayTypeP(value), demand->demand.type, cache->typlen,
						  cache->typbyval, cache->typalign, &values, &nulls, &n);
	WirePutU32(out, 0);
	for (i = 0; i < n; i++)
	{
		if (nulls[i])
			continue;
		WirePutU32(out, DatumGetUInt32(FunctionCall1Coll(&cache->hash_proc_finfo,
														 demand->demand.collation, values[i])));
		count++;
	}
	memcpy(out->data + place, &count, sizeof(count));
}

static void
HashDemands(PolicyRule *rule)
{
	StringInfoData hashes;
	int i;

	initStringInfo(&hashes);
	for (i = 0; i < rule->shape->ndemands; i++)
		HashDemand(rule, i, &hashes);
	rule->hashes = MemoryContextAlloc(registry_context, hashes.len);
	memcpy(rule->hashes, hashes.data, hashes.len);
	pfree(hashes.data);
}

/* The constants as a rule keeps them; false: they are not those of the shape. */
static bool
ReadConstants(const Shape *shape, WireReader *r, StringInfo out)
{
	static const char zeros[MAXIMUM_ALIGNOF] = {0};
	int n = WireGetU16(r);
	int i;

	if (n != shape->nconstants)
		return false;
	initStringInfo(out);
	for (i = 0; i < n; i++)
		appendBinaryStringInfo(out, zeros, sizeof(uint32));
	for (i = 0; i < n; i++)
	{
		Oid type = WireGetU32(r);
		WireBytes value = WireGetBytes(r);

		if (r->failed || type != shape->types[i] ||
			(shape->byvals[i]		 ? value.length != sizeof(Datum)
			 : shape->typlens[i] > 0 ? value.length != shape->typlens[i]
									 : value.length < VARHDRSZ_SHORT))
			return false;
		appendBinaryStringInfo(out, zeros, MAXALIGN(out->len) - out->len);
		((uint32 *) out->data)[i] = (uint32) out->len;
		appendBinaryStringInfo(out, value.data, (int) value.length);
		if (shape->typlens[i] == -1 &&
			VARSIZE_ANY(out->data + out->len - value.length) != value.length)
			return false;
	}
	return WireAtEnd(r);
}

static PolicyRule *
RuleIntern(Shape *shape, const char *data, uint32 size)
{
	uint64 hash = hash_bytes_extended(
		(const unsigned char *) data, (int) size,
		hash_bytes_extended((const unsigned char *) &shape, sizeof(shape), 0));
	HashedEntry *entry;
	PolicyRule *rule;
	bool found;

	if (rules == NULL)
		rules = MakeTable("changefeed rules");
	entry = hash_search(rules, &hash, HASH_FIND, NULL);
	for (rule = entry != NULL ? entry->first : NULL; rule != NULL; rule = rule->next)
		if (rule->shape == shape && rule->size == size && memcmp(rule->data, data, size) == 0)
		{
			ShapeRelease(shape);
			rule->refcount++;
			return rule;
		}

	rule = MemoryContextAllocZero(registry_context, offsetof(PolicyRule, data) + size);
	rule->hash = hash;
	rule->refcount = 1;
	rule->shape = shape;
	rule->size = size;
	memcpy(rule->data, data, size);
	if (shape->ndemands > 0)
		HashDemands(rule);
	entry = hash_search(rules, &hash, HASH_ENTER, &found);
	rule->next = found ? entry->first : NULL;
	entry->first = rule;
	return rule;
}

static PolicyRule *
ReadRule(Oid relid, const char *bytes, int length)
{
	WireReader r = WireReaderInit(bytes, length);
	WireBytes text = WireGetBytes(&r);
	Shape *shape;
	PolicyRule *rule;
	StringInfoData constants;

	if (r.failed)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("malformed rule from a query worker")));
	shape = ShapeIntern(relid, text.data, (int) text.length);
	if (shape->refused)
	{
		/* It is kept, so that it is logged once. */
		return NULL;
	}
	if (!ReadConstants(shape, &r, &constants))
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("malformed rule from a query worker")));
	rule = RuleIntern(shape, constants.data, (uint32) constants.len);
	pfree(constants.data);
	return rule;
}

/*
 * What the rule is about may have been dropped since the query worker looked at
 * it: then query workers are asked, until the feed comes to that.
 */
PolicyRule *
PolicyRuleIntern(Oid relid, const char *bytes, int length)
{
	MemoryContext context = CurrentMemoryContext;
	PolicyRule *volatile rule = NULL;

	if (length == 0)
		return NULL;
	PG_TRY();
	{
		rule = ReadRule(relid, bytes, length);
	}
	PG_CATCH();
	{
		int sqlerrcode = geterrcode();

		MemoryContextSwitchTo(context);
		if (sqlerrcode == ERRCODE_ADMIN_SHUTDOWN || sqlerrcode == ERRCODE_OUT_OF_MEMORY ||
			sqlerrcode == ERRCODE_PROTOCOL_VIOLATION)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
	return rule;
}

void
PolicyRuleKeep(PolicyRule *rule)
{
	if (rule != NULL)
		rule->refcount++;
}

void
PolicyRuleRelease(PolicyRule *rule)
{
	HashedEntry *entry;
	PolicyRule **link;

	if (rule == NULL || --rule->refcount > 0)
		return;
	entry = hash_search(rules, &rule->hash, HASH_FIND, NULL);
	for (link = (PolicyRule **) &entry->first; *link != rule; link = &(*link)->next)
		;
	*link = rule->next;
	if (entry->first == NULL)
		hash_search(rules, &rule->hash, HASH_REMOVE, NULL);
	if (rule->hashes != NULL)
		pfree(rule->hashes);
	ShapeRelease(rule->shape);
	pfree(rule);
}

int
PolicyRuleDemands(const PolicyRule *rule)
{
	return rule->shape->ndemands;
}

const PolicyDemand *
PolicyRuleDemand(const PolicyRule *rule, int number, const uint32 **hashes, int *nhashes)
{
	const uint32 *place = rule->hashes;
	int i;

	for (i = 0; i < number; i++)
		place += *place + 1;
	*nhashes = (int) *place;
	*hashes = place + 1;
	return &rule->shape->demands[number].demand;
}

Verdict
PolicyRuleAlways(const PolicyRule *rule)
{
	return rule->shape->always;
}

/* ---- Judging ---- */

/* Are the columns that the shape reads what they were when it was made? */
static bool
Fits(const Shape *shape, const RecordDescription *desc)
{
	int i;

	if (desc->relid != shape->relid)
		return false;
	for (i = 0; i < shape->ncolumns; i++)
	{
		const Var *var = shape->columns[i];

		if (var->varattno > desc->tupdesc->natts ||
			(desc->flags[var->varattno - 1] & (RECORD_ATT_DROPPED | RECORD_ATT_VIRTUAL)) != 0 ||
			TupleDescAttr(desc->tupdesc, var->varattno - 1)->atttypid != var->vartype)
			return false;
	}
	return true;
}

static CompiledShape *
Compile(Shape *shape, const RecordDescription *desc)
{
	CompiledShape *compiled;
	MemoryContext old;
	int i;

	for (i = 0; i < shape->ncompiled; i++)
		if (shape->compiled[i].version == desc->version)
			return &shape->compiled[i];

	/* The oldest makes room. */
	if (shape->ncompiled == MAX_COMPILED)
	{
		MemoryContextDelete(shape->compiled[0].context);
		memmove(&shape->compiled[0], &shape->compiled[1],
				sizeof(CompiledShape) * (MAX_COMPILED - 1));
		shape->ncompiled--;
	}
	compiled = &shape->compiled[shape->ncompiled];
	memset(compiled, 0, sizeof(CompiledShape));
	compiled->version = desc->version;
	compiled->context = AllocSetContextCreate(shape->context, "changefeed rule",
											  ALLOCSET_SMALL_SIZES);
	shape->ncompiled++;
	if (Fits(shape, desc))
	{
		Node *expr;

		old = MemoryContextSwitchTo(compiled->context);
		expr = copyObject(shape->expr);
		convert_saop_to_hashed_saop(expr);
		compiled->slot = MakeSingleTupleTableSlot(CreateTupleDescCopy(desc->tupdesc),
												  &TTSOpsVirtual);
		compiled->econtext = CreateStandaloneExprContext();
		compiled->state = ExecInitExpr((Expr *) expr, NULL);
		MemoryContextSwitchTo(old);
	}
	return compiled;
}

static bool
Evaluate(const PolicyRule *rule, CompiledShape *compiled, const MapImage *image)
{
	ExprContext *econtext = compiled->econtext;
	Shape *shape = rule->shape;
	TupleTableSlot *slot = compiled->slot;
	Datum value;
	bool isnull;
	int i;

	for (i = 0; i < shape->nconstants; i++)
		shape->params->params[i].value = Constant(rule, i);

	/* The image's own arrays, as they are. */
	slot->tts_values = image->values;
	slot->tts_isnull = image->isnull;
	slot->tts_nvalid = (AttrNumber) image->desc->tupdesc->natts;
	slot->tts_flags &= ~TTS_FLAG_EMPTY;
	econtext->ecxt_scantuple = slot;
	econtext->ecxt_param_list_info = shape->params;
	ResetExprContext(econtext);
	value = ExecEvalExprSwitchContext(compiled->state, econtext, &isnull);
	return !isnull && DatumGetBool(value);
}

/* Of what the shape reads of a row, in full length. */
static bool
IsTooLarge(const Shape *shape, const MapImage *image)
{
	Size size = 0;
	int i;

	for (i = 0; i < shape->ncolumns; i++)
	{
		int at = shape->columns[i]->varattno - 1;

		if (!image->isnull[at] && TupleDescAttr(image->desc->tupdesc, at)->attlen == -1)
			size += toast_raw_datum_size(image->values[at]);
	}
	return size > shape->limit;
}

static Verdict
JudgeImage(const PolicyRule *rule, TransactionMap *map, int number)
{
	Shape *shape = rule->shape;
	const MapImage *image = &map->images[number];
	CompiledShape *compiled = Compile(shape, image->desc);
	int i;

	if (compiled->state == NULL)
		return VERDICT_UNKNOWN;
	if (image->incomplete)
		for (i = 0; i < shape->ncolumns; i++)
			if (!MapKnows(map, number, shape->columns[i]->varattno))
				return VERDICT_UNKNOWN;
	if (IsTooLarge(shape, image))
		return VERDICT_UNKNOWN;
	return Evaluate(rule, compiled, image) ? VERDICT_VISIBLE : VERDICT_HIDDEN;
}

/*
 * An error holds nothing that an abort would have to release: built-in functions
 * on values at hand.  Even those that never fail can meet a value too large.
 */
Verdict
PolicyRuleJudge(PolicyRule *rule, TransactionMap *map, int image)
{
	MemoryContext context = CurrentMemoryContext;
	volatile Verdict verdict = VERDICT_UNKNOWN;

	if (!setting_inline_policies)
		return VERDICT_UNKNOWN;
	if (rule->shape->always != VERDICT_UNKNOWN)
		return rule->shape->always;
	PG_TRY();
	{
		verdict = JudgeImage(rule, map, image);
	}
	PG_CATCH();
	{
		int sqlerrcode = geterrcode();

		MemoryContextSwitchTo(context);
		if (sqlerrcode == ERRCODE_ADMIN_SHUTDOWN || sqlerrcode == ERRCODE_OUT_OF_MEMORY)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
	return verdict;
}
