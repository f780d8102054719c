/*-------------------------------------------------------------------------
 *
 * output_relations.h
 *		What the output plugin knows of the relations whose changes it is given.
 *
 * Process: decoder only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_OUTPUT_RELATIONS_H
#define CHANGEFEED_OUTPUT_RELATIONS_H

#include "postgres.h"

#include "access/tupconvert.h"
#include "access/tupdesc.h"
#include "datatype/timestamp.h"
#include "lib/stringinfo.h"
#include "utils/rel.h"

/* A table that feeds channels, as it was last described to the feed worker. */
typedef struct Source
{
	Oid relid;		/* hash key */
	bool valid;		/* its relcache entry has not changed since */
	uint32 version; /* of the description; 0: none was sent */
	char *bytes;	/* the description */
	Size length;
	TupleDesc tupdesc;	   /* what it describes */
	MemoryContext context; /* of the two */
	uint64 lost;		   /* the transaction that we last lost a change
								 * of */
	TimestampTz lost_said; /* when that was last logged */
} Source;

/* A source that the changes of a relation go to: itself or an ancestor. */
typedef struct Target
{
	Source *source;
	bool is_ancestor;
	uint32 map_version;		 /* version that the map was made for; 0: none */
	TupleConversionMap *map; /* NULL: the row types are laid out alike */
} Target;

typedef enum RelationClass
{
	CLASS_IGNORED, /* nobody can depend on its contents */
	CLASS_CATALOG, /* one of our own tables */
	CLASS_USER
} RelationClass;

/* What we know of a table whose changes we are given. */
typedef struct KnownRelation
{
	Oid relid; /* hash key */
	bool valid;
	bool is_ancestor; /* another entry depends on this one */
	RelationClass class;
	uint64 touched; /* the transaction that last reported it */
	bool told;		/* and said that it sends all its changes */
	int nancestors;
	Oid *ancestors;
	int ntargets;
	Target *targets;
	MemoryContext context; /* of these and their maps; NULL: none needed */
} KnownRelation;

/* Once per process, before the first transaction is replayed. */
extern void RelationsInitialize(void);

/* The entry with that OID, which may be new and empty. */
extern KnownRelation *RelationsFind(Oid relid);

/*
 * Between transactions: forgets tables that are most likely gone, and takes
 * notice of those that the feed worker wants to see.
 */
extern void RelationsRefresh(void);

/*
 * Brings the description of a source up to date.  True: it differs from the
 * last one, and `record` is to be sent before what names its version.
 * `relation` is the source if the caller has it open, else NULL.
 */
extern bool SourceDescribe(Source *source, Relation relation, StringInfo record);

/* Not for direct use; see RelationsLookUp. */
#define RELATIONS_RECENT 16
extern KnownRelation *relations_recent[RELATIONS_RECENT];
extern void RelationsLearn(KnownRelation *known, Relation relation);

/*
 * What is known of a relation, looked up again if it may have changed.  Called
 * for each change: often a few relations are changed many times.
 */
static inline KnownRelation *
RelationsLookUp(Relation relation)
{
	Oid relid = RelationGetRelid(relation);
	KnownRelation **recent = &relations_recent[relid % RELATIONS_RECENT];

	if (*recent == NULL || (*recent)->relid != relid)
		*recent = RelationsFind(relid);
	if (unlikely(!(*recent)->valid))
		RelationsLearn(*recent, relation);
	return *recent;
}

#endif /* CHANGEFEED_OUTPUT_RELATIONS_H */
