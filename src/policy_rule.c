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
 * That a shape uses only what is safe here is checked again (policy_shape.c), so
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
#include "policy_shape.h"
#include "wire_write.h"

#include "access/detoast.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "utils/array.h"
#include "utils/memutils.h"

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
		shape->refused = !PolicyShapeRead(shape);
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
