/*-------------------------------------------------------------------------
 *
 * channel_check.h
 *		What a table has to be like to feed a channel.
 *
 * Process: any backend that runs create_channel or add_source.  Memory:
 * results are allocated in CurrentMemoryContext.  Locks: the caller holds a
 * lock on the table and its partitions that keeps their definition and their
 * writers still, ShareRowExclusiveLock at least.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_CHANNEL_CHECK_H
#define CHANGEFEED_CHANNEL_CHECK_H

#include "pg_changefeed.h"
#include "template.h"

#include "nodes/pg_list.h"
#include "utils/relcache.h"

/* One source, as given by the user, then completed by ChannelCheckSource. */
typedef struct SourceDefinition
{
	Oid relid;
	const char *channel; /* the channel's name, for messages */
	const ChannelTemplate *template;

	char *entity;  /* NULL: the table's name is filled in */
	List *key;	   /* of char *; NIL: the primary key is */
	char *filter;  /* NULL: every row; is replaced by its
								 * canonical text */
	List *columns; /* of char *; NIL: all */
	const char *on_insert;
	const char *on_update;
	const char *on_delete;
	bool set_replica_identity;

	List *relations; /* Oids of the table and all its partitions,
								 * all locked */
} SourceDefinition;

/* "schema.table", for messages. */
extern char *ChannelTableName(Oid relid);

/*
 * Raises an error when the table is of a kind that cannot be a source.  Needs
 * no lock, but without one the answer may be outdated at once.
 */
extern void ChannelCheckTable(Oid relid);

/* All other checks; errors name what is missing. */
extern void ChannelCheckSource(SourceDefinition *definition);

/* Raises an error unless the old values of these columns (of char *) are in the WAL. */
extern void ChannelCheckIdentity(Oid relid, const List *needed);

/* Whether all values of an old row come with every change of the table. */
extern bool ChannelIdentityIsFull(Oid relid);

/* channel_filter.c: checks a filter and returns its canonical text. */
extern char *ChannelCheckFilter(Relation rel, const char *filter, List **columns);

/* The two halves of it. */
extern Node *ChannelAnalyzeFilter(Relation rel, const char *filter);
extern char *ChannelFilterText(Relation rel, Node *expr);

/* Is nobody's code behind the type? */
extern bool ChannelFilterTypeAllowed(Oid typid);
/*
 * channel_join.c: checks a join_check or publish_check, which is named for
 * messages, and returns its canonical text.  Of the first source, if there is
 * one, are the types of the parameters.
 */
extern char *
ChannelCheckJoin(const char *what, const char *check, const ChannelTemplate *template, Oid relid);

/* channel_policies.c: warns of policies whose dependencies are not known. */
extern void ChannelWarnOfPolicies(Oid relid);

#endif /* CHANGEFEED_CHANNEL_CHECK_H */
