/*-------------------------------------------------------------------------
 *
 * channels.h
 *		The channel catalog as the feed worker keeps it.
 *
 * Read from the extension's tables at start and again whenever the stream
 * shows a commit that changed them.  Channels and sources are identified by
 * their ids; a channel whose definition did not change keeps its object over a
 * reload, so subscriptions may hold pointers to channels that
 * ChannelsReload did not report as changed.
 *
 * A Layout is what is needed to read one source's rows as one description of
 * its table has them: attribute numbers, the filter compiled, the encoder.
 *
 * Process: feed worker.  Memory: a context of its own per channel; layouts
 * live in their channel's context.  Needs a transaction.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_CHANNELS_H
#define CHANGEFEED_CHANNELS_H

#include "pg_changefeed.h"
#include "encode.h"
#include "record.h"
#include "template.h"

#include "executor/executor.h"
#include "nodes/pg_list.h"

typedef enum SourceAction
{
	ACTION_IGNORE = 0,
	ACTION_APPEND,
	ACTION_MERGE,
	ACTION_REPLACE,
	ACTION_REMOVE
} SourceAction;

typedef struct Layout
{
	uint32 version; /* of the description */
	const RecordDescription *desc;
	bool usable; /* false: the table no longer has what the
								 * source needs; `problem` says what */
	char *problem;
	int nkey;
	int16 *key; /* attribute numbers */
	int nparams;
	int16 *params;
	FmgrInfo *param_output;
	ExprState *filter;			  /* NULL: every row */
	MemoryContext filter_context; /* NULL: it has to be compiled */
	TupleTableSlot *slot;
	RowEncoder *encoder;
	struct CompiledEvent **events; /* event_deliver.c's; NULL: none yet */
	MemoryContext events_context;  /* of these, and of what they are evaluated with: */
	ExprContext *events_econtext;
} Layout;

typedef struct SourceEvent
{
	int id;
	char *name;
	char *condition; /* SQL text or NULL */
	char *payload;	 /* likewise */
	uint8 changes;	 /* EVENT_* */
} SourceEvent;

typedef struct Source
{
	int id;
	struct Channel *channel;
	int index; /* within the channel */
	Oid relid;
	char *entity;
	int nkey;
	char **key;
	char *filter; /* SQL text or NULL */
	int ncolumns; /* 0: all */
	char **columns;
	SourceAction on_insert;
	SourceAction on_update;
	SourceAction on_delete;
	int nevents;
	SourceEvent *events; /* by id */
	List *layouts;		 /* of Layout, newest first, few */
} Source;

typedef struct Channel
{
	int id;
	uint64 serial; /* of this object: another definition has another */
	char *name;
	char *join_check;				  /* SQL text or NULL */
	char *publish_check;			  /* likewise */
	int min_interval;				  /* ms between frames; 0: at once */
	struct PresenceOptions *presence; /* NULL: it has none */
	char *presence_text;
	ChannelTemplate *template;
	int nsources;
	Source **sources;
	int nviews;		 /* of a subscription: one for each source; without one, a
					  * view that has only what join_check depends on */
	char *signature; /* text of the whole definition */
	uint64 changed;	 /* the transaction with which we got this one */
	MemoryContext context;
	bool seen; /* mark during a reload */

	/* with min_interval: see pace.c */
	uint64 pace_first; /* first transaction that was put off, or 0 */
	uint64 pace_last;  /* the last, and how many */
	int pace_count;
	uint64 pace_base;				  /* what came up to there was sent */
	TimestampTz pace_at;			  /* when the next may be sent */
	struct ChannelCounters *counters; /* shared with what takes its place */
	struct Channel *replacement;	  /* after a reload changed it: the new one
									 * (NULL: dropped) */
} Channel;

/* A row of one of our tables, by column name. */
typedef struct CatalogRow
{
	TupleDesc tupdesc;
	Datum *values;
	bool *isnull;
} CatalogRow;

typedef void (*CatalogRowCallback)(CatalogRow *row, void *arg);

/* Calls back for every row; false when the table is locked exclusively. */
extern bool CatalogScan(const char *name, CatalogRowCallback callback, void *arg);

/* Then no scan of ours returns false before the end of the turn; false: one would. */
extern bool CatalogLock(void);
extern Datum CatalogRowGet(CatalogRow *row, const char *name, bool *isnull);
extern char *CatalogRowText(CatalogRow *row, const char *name); /* or NULL */

/* Raised with every reload that changed something. */
extern uint64 channels_generation;

/*
 * Up to that transaction definitions may have changed without our seeing it:
 * they were read from a catalog that was further than the log.
 */
extern uint64 channels_unknown_until;

/*
 * Reads the catalog.  `changed` is called for each channel that has a new
 * definition (replacement set) or is gone, before the old object is freed;
 * `number` names the
 * transaction published last.  `roles_changed` tells whether the list of allowed roles differs.  False: the
 * extension's tables are locked exclusively, try again later.
 */
extern bool ChannelsReload(uint64 number, void (*changed)(Channel *old), bool *roles_changed);

/* channels_find.c: tables by what names point to, as keys that are pointers */
extern uint32 ChannelsHashName(const void *key, Size keysize);
extern int ChannelsMatchName(const void *a, const void *b, Size keysize);

/* The channel to which a concrete name (without the part from "?") belongs. */
extern Channel *ChannelsFind(const char *name, Size length, char **values);

/* Sources of that table, in no order. */
extern List *ChannelsSourcesOf(Oid relid);

/* All of them (Channel), to be looked at only. */
extern List *ChannelsAll(void);

extern bool ChannelsRoleAllowed(Oid role);

/* The layout for rows of that description. */
extern Layout *ChannelsLayout(Source *source, const RecordDescription *desc);

/* Constants of filters and events on that table may stand for other values now. */
extern void ChannelsForgetCompiled(Oid relid);

/* Does the row pass the source's filter?  May raise an error of the filter. */
extern bool LayoutFilter(Layout *layout, const Datum *values, const bool *isnull);

/*
 * The parameter values of the row as text (palloc'ed), false when one is null:
 * such a row belongs to no channel.
 */
extern bool LayoutParams(Layout *layout, const Datum *values, const bool *isnull, char **params);

#endif /* CHANGEFEED_CHANNELS_H */
