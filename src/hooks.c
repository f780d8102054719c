/*-------------------------------------------------------------------------
 *
 * hooks.c
 *		What ordinary backends do for the feed: wake it at commit, and notice
 *		commands that concern its life.
 *
 * Commands are noticed when they are executed and acted on when their
 * transaction commits; `pending_events` holds them until then, each with the
 * nesting level of its subtransaction, so that a rolled-back savepoint takes
 * its events along.
 *
 * The commit callback runs at every commit of the cluster, after the commit
 * has become visible.  It must not raise errors and does next to nothing in a
 * database without a feed.
 *
 * Process: every backend of a server that preloads the library.  Locks: those
 * of SharedRequest and SharedStateOfDatabase.  Memory: events live in
 * TopTransactionContext.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "function_names.h"
#include "pg_changefeed.h"
#include "shared.h"
#include "version.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "nodes/pg_list.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "tcop/utility.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

/* How long DROP DATABASE waits for a feed that is being stopped. */
#define DROP_DATABASE_WAIT_MS 15000

typedef enum HookEventKind
{
	EVENT_FEED_STARTS, /* the extension was created, or is resumed */
	EVENT_FEED_STOPS,  /* it was dropped, or is paused without a slot */
	EVENT_EXTENSION_UPDATED,
	EVENT_DATABASE, /* created, or may begin or cease to have a
								 * feed */
	EVENT_ROLES
} HookEventKind;

typedef struct HookEvent
{
	HookEventKind kind;
	Oid database;
	int nest_level;
} HookEvent;

static ProcessUtility_hook_type prev_process_utility_hook = NULL;
static object_access_hook_type prev_object_access_hook = NULL;

static List *pending_events = NIL; /* of HookEvent */
static bool roles_committed = false;
static char updated_from[NAMEDATALEN];	   /* version before ALTER EXTENSION UPDATE */
static Oid dropping_database = InvalidOid; /* its feed was stopped for that */
static XLogRecPtr seen_commit_end = InvalidXLogRecPtr;

PG_FUNCTION_INFO_V1(changefeed_extension_created);

/* ---- Events, and what becomes of them at the end of the transaction ---- */

static void
AddEvent(HookEventKind kind, Oid database)
{
	MemoryContext old_context = MemoryContextSwitchTo(TopTransactionContext);
	HookEvent *event = palloc(sizeof(HookEvent));

	event->kind = kind;
	event->database = database;
	event->nest_level = GetCurrentTransactionNestLevel();
	pending_events = lappend(pending_events, event);
	MemoryContextSwitchTo(old_context);
}

static void
AnnounceRoleChange(void)
{
	for (int i = 0; i < MAX_DATABASES; i++)
	{
		DatabaseFeed *feed = &shared_feeds->feeds[i];

		if (feed->state == FEED_UNUSED)
			continue;
		pg_atomic_fetch_add_u64(&feed->role_changes, 1);
		SharedWake(&feed->feed_proc);
	}
}

/* After commit: no errors, no allocation. */
static void
ActOnEvents(void)
{
	ListCell *lc;
	bool dropped = false;
	bool created = false;
	bool updated = false;
	bool roles = false;

	foreach(lc, pending_events)
	{
		HookEvent *event = (HookEvent *) lfirst(lc);

		switch (event->kind)
		{
			case EVENT_FEED_STARTS:
				created = true;
				break;
			case EVENT_FEED_STOPS:
				/* Created and dropped in one transaction is as if never. */
				created = false;
				dropped = true;
				break;
			case EVENT_EXTENSION_UPDATED:
				updated = true;
				break;
			case EVENT_DATABASE:
				SharedRequest(event->database, REQUEST_LOOK);
				break;
			case EVENT_ROLES:
				roles = true;
				break;
		}
	}

	if (created)
		SharedRequest(MyDatabaseId, dropped ? REQUEST_RESTART : REQUEST_START);
	else if (dropped)
		SharedRequest(MyDatabaseId, REQUEST_STOP);
	else if (updated)
		SharedRequest(MyDatabaseId, REQUEST_AGAIN);
	roles_committed = roles_committed || roles;
}

/*
 * At the end of the commit, when its invalidations have been sent: whoever
 * looked at the roles before would see them as they were, and not look again.
 */
static void
HooksRelease(ResourceReleasePhase phase, bool is_commit, bool is_top_level, void *arg)
{
	if (phase != RESOURCE_RELEASE_AFTER_LOCKS || !is_top_level || !roles_committed)
		return;
	roles_committed = false;
	AnnounceRoleChange();
}

/* This backend has committed something; the position is in seen_commit_end. */
static void
WakeFeed(DatabaseFeed *feed)
{
	TransactionId xid = GetTopTransactionIdIfAny();
	uint32 awaited;

	/*
	 * Nobody has waited for the WAL of an asynchronous commit to reach the
	 * disk, and only what is there can be decoded.  Without a transaction id
	 * there is nothing to decode (WAL of pruning, say), so no need to hurry.
	 */
	if (synchronous_commit <= SYNCHRONOUS_COMMIT_OFF && TransactionIdIsValid(xid) &&
		seen_commit_end > GetFlushRecPtr(NULL))
		SharedAdvance(&feed->flush_wanted, seen_commit_end);

	pg_memory_barrier();
	SharedWakeDecoder(feed);

	/*
	 * The feed worker says for which transaction it waits, then looks whether
	 * that is still in progress; we have ceased to be, then look at what it has
	 * said.  COMMIT PREPARED ends a transaction that is not ours, and has no id
	 * of its own.
	 */
	awaited = pg_atomic_read_u32(&feed->visibility_wanted);
	if (awaited != 0 && (awaited == xid || !TransactionIdIsValid(xid)) &&
		pg_atomic_read_u32(&feed->feed_proc) != compat_my_procno())
		SharedWakeFeedWorker(feed);
}

static void
HooksXact(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:

			/*
			 * It moves when the transaction has written WAL.  That includes
			 * COMMIT PREPARED, whose commit record is followed by the end of
			 * the transaction that the command itself runs in.
			 */
			if (XactLastCommitEnd != seen_commit_end)
			{
				DatabaseFeed *feed = SharedFeedOfMyDatabase();

				seen_commit_end = XactLastCommitEnd;
				if (feed != NULL)
					WakeFeed(feed);
				if (shared_feeds != NULL)
					SharedWakeSleepers(seen_commit_end);
			}
			if (pending_events != NIL)
			{
				ActOnEvents();
				pending_events = NIL;
			}
			if (OidIsValid(dropping_database))
				SharedEndDrop(dropping_database, false);
			dropping_database = InvalidOid;
			break;

		case XACT_EVENT_ABORT:
			pending_events = NIL;

			/* It is there still, and its feed comes back. */
			if (OidIsValid(dropping_database))
				SharedEndDrop(dropping_database, true);
			dropping_database = InvalidOid;
			break;

		case XACT_EVENT_PRE_PREPARE:
		{
			ListCell *lc;

			/*
				 * Whoever commits it will not know what is in it.  For role
				 * changes there is a flag (see XACT_EVENT_PREPARE).
				 */
			foreach(lc, pending_events)
			{
				HookEvent *pending = (HookEvent *) lfirst(lc);

				if (pending->kind == EVENT_FEED_STARTS || pending->kind == EVENT_FEED_STOPS ||
					pending->kind == EVENT_EXTENSION_UPDATED)
					ereport(
						ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg(
							 "cannot PREPARE a transaction that has started or stopped a change feed"),
						 errdetail(
							 "Creating, updating and dropping extension \"%s\", resuming and resetting do so, and a pause without a slot.",
							 CHANGEFEED_EXTENSION)));
			}
			break;
		}

		case XACT_EVENT_PREPARE:
		{
			ListCell *lc;

			foreach(lc, pending_events)
			{
				if (((HookEvent *) lfirst(lc))->kind == EVENT_ROLES)
					pg_atomic_write_u32(&shared_feeds->roles_prepared, 1);
			}
			pending_events = NIL;
			break;
		}

		default:
			break;
	}
}

static void
HooksSubXact(SubXactEvent event, SubTransactionId subxid, SubTransactionId parent, void *arg)
{
	int level;
	ListCell *lc;

	if (pending_events == NIL ||
		(event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB))
		return;

	level = GetCurrentTransactionNestLevel();
	foreach(lc, pending_events)
	{
		HookEvent *pending = (HookEvent *) lfirst(lc);

		if (pending->nest_level < level)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			pending->nest_level = level - 1;
		else
			pending_events = foreach_delete_current(pending_events, lc);
	}
}

/* ---- The extension comes and goes ---- */

void
HooksFeedRequest(FeedRequest what)
{
	if (what == REQUEST_STOP || what == REQUEST_RESTART)
		AddEvent(EVENT_FEED_STOPS, MyDatabaseId);
	if (what == REQUEST_START || what == REQUEST_RESTART)
		AddEvent(EVENT_FEED_STARTS, MyDatabaseId);
}

/* Called last by the install script. */
Datum
changefeed_extension_created(PG_FUNCTION_ARGS)
{
	HeapTuple tuple;

	RequirePreload();

	if (!creating_extension ||
		CurrentExtensionObject != get_extension_oid(CHANGEFEED_EXTENSION, true))
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("this function can only be called by CREATE EXTENSION %s",
							   CHANGEFEED_EXTENSION)));

	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	if (HeapTupleIsValid(tuple))
	{
		if (((Form_pg_database) GETSTRUCT(tuple))->datistemplate)
			ereport(NOTICE, (errmsg("the change feed does not run in a template database"),
							 errdetail("It runs in databases that are made from this one.")));
		ReleaseSysCache(tuple);
	}

	AddEvent(EVENT_FEED_STARTS, MyDatabaseId);
	PG_RETURN_VOID();
}

/*
 * Also called for extensions that a DROP ... CASCADE of something else takes
 * along.
 */
static void
HooksObjectAccess(ObjectAccessType access, Oid class_id, Oid object_id, int sub_id, void *arg)
{
	if (prev_object_access_hook)
		prev_object_access_hook(access, class_id, object_id, sub_id, arg);

	if (access == OAT_DROP && class_id == ExtensionRelationId && shared_feeds != NULL &&
		object_id == get_extension_oid(CHANGEFEED_EXTENSION, true))
		AddEvent(EVENT_FEED_STOPS, MyDatabaseId);
}

/* ---- Utility commands ---- */

static DefElem *
FindOption(List *options, const char *name)
{
	ListCell *lc;

	foreach(lc, options)
	{
		DefElem *option = (DefElem *) lfirst(lc);

		if (strcmp(option->defname, name) == 0)
			return option;
	}
	return NULL;
}

/*
 * How long the sessions of users in a database are waited for, as the server
 * does it; who has just disconnected may not have ended.
 */
#define SESSIONS_WAIT_MS 5000

static void
RequireNoSessions(Oid database, const char *name)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), SESSIONS_WAIT_MS);
	int n;

	while ((n = CountDBConnections(database)) > 0)
	{
		if (GetCurrentTimestamp() >= end)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("database \"%s\" is being accessed by other users", name),
					 errdetail_plural("There is %d other session using the database.",
									  "There are %d other sessions using the database.", n, n)));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 50,
						 compat_wait_event("ChangefeedDropDatabase"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Core would refuse because of the active slot.  So the feed ends first, and its
 * slot with it; should the command fail all the same, the feed begins
 * anew.
 */
static void
BeforeDropDatabase(DropdbStmt *stmt, bool top_level)
{
	Oid database = get_database_oid(stmt->dbname, true);
	TimestampTz end;

	/* What core refuses for reasons of its own is left to it. */
	if (!OidIsValid(database) || database == MyDatabaseId ||
		!compat_database_ownercheck(database, GetUserId()) ||
		SharedStateOfDatabase(database) == FEED_UNUSED)
		return;
	PreventInTransactionBlock(top_level, "DROP DATABASE");

	if (SharedStateOfDatabase(database) == FEED_WANTED)
	{
		HeapTuple tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
		bool is_template = HeapTupleIsValid(tuple) &&
						   ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;

		if (HeapTupleIsValid(tuple))
			ReleaseSysCache(tuple);
		if (is_template)
			return;
		if (FindOption(stmt->options, "force") == NULL)
			RequireNoSessions(database, stmt->dbname);
		if (!SharedBeginDrop(database))
			ereport(ERROR, (errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
							errmsg("too many databases with a change feed are dropped at once")));
		dropping_database = database;
	}

	end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), DROP_DATABASE_WAIT_MS);
	ConditionVariablePrepareToSleep(&shared_feeds->state_changed);
	while (SharedStateOfDatabase(database) != FEED_UNUSED)
	{
		long left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);

		/* Core finds the slot active, or drops it with the database. */
		if (left <= 0)
			break;
		ConditionVariableTimedSleep(&shared_feeds->state_changed, left,
									compat_wait_event("ChangefeedDropDatabase"));
	}
	ConditionVariableCancelSleep();
}

/*
 * Renaming a database and making a copy of it need it to be without sessions,
 * so they would fail after five seconds because of our workers.
 */
static void
BeforeExclusiveUse(const char *name)
{
	Oid database = get_database_oid(name, true);

	if (OidIsValid(database) && database != MyDatabaseId &&
		compat_database_ownercheck(database, GetUserId()) &&
		SharedStateOfDatabase(database) == FEED_WANTED)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("database \"%s\" has a running change feed", name),
			 errhint(
				 "Stop it with ALTER DATABASE ... ALLOW_CONNECTIONS false; it starts again with ALLOW_CONNECTIONS true, and its clients get fresh snapshots.")));
}

/* Might it give functions another name, or types that functions have? */
static bool
RenamesFunctions(Node *stmt)
{
	switch (IsA(stmt, RenameStmt) ? ((RenameStmt *) stmt)->renameType
								  : ((AlterObjectSchemaStmt *) stmt)->objectType)
	{
		case OBJECT_FUNCTION:
		case OBJECT_AGGREGATE:
		case OBJECT_ROUTINE:
		case OBJECT_SCHEMA:
		case OBJECT_EXTENSION:
		case OBJECT_TYPE:
		case OBJECT_DOMAIN:
		case OBJECT_TABLE:
		case OBJECT_INDEX: /* ALTER INDEX takes tables, too */
		case OBJECT_VIEW:
		case OBJECT_MATVIEW:
		case OBJECT_FOREIGN_TABLE:
			return true;
		default:
			return false;
	}
}

/* `names`: what AfterUtility has to know of functions. */
static void
BeforeUtility(Node *stmt, bool top_level, List **names)
{
	switch (nodeTag(stmt))
	{
		case T_DropdbStmt:
			BeforeDropDatabase((DropdbStmt *) stmt, top_level);
			break;

		case T_CreatedbStmt:
		{
			DefElem *template = FindOption(((CreatedbStmt *) stmt)->options, "template");

			if (template != NULL && template->arg != NULL)
				BeforeExclusiveUse(defGetString(template));
			break;
		}

		case T_RenameStmt:
			if (((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
				BeforeExclusiveUse(((RenameStmt *) stmt)->subname);
			else if (RenamesFunctions(stmt))
				*names = FunctionNamesBefore();
			break;

		case T_AlterObjectSchemaStmt:
			if (RenamesFunctions(stmt))
				*names = FunctionNamesBefore();
			break;

		case T_AlterExtensionStmt:
			if (strcmp(((AlterExtensionStmt *) stmt)->extname, CHANGEFEED_EXTENSION) == 0)
			{
				char *version = VersionOfExtension();

				strlcpy(updated_from, version != NULL ? version : "", sizeof(updated_from));
			}
			break;

		default:
			break;
	}
}

/* The command has succeeded; its transaction may still be rolled back. */
static void
AfterUtility(Node *stmt, List *names)
{
	switch (nodeTag(stmt))
	{
		case T_CreatedbStmt:
		{
			Oid database;

			/* The copy of a template that has the extension has it too. */
			CommandCounterIncrement();
			database = get_database_oid(((CreatedbStmt *) stmt)->dbname, true);
			if (OidIsValid(database))
				AddEvent(EVENT_DATABASE, database);
			break;
		}

		case T_AlterDatabaseStmt:
		{
			AlterDatabaseStmt *alter = (AlterDatabaseStmt *) stmt;

			Oid database = get_database_oid(alter->dbname, true);

			if (OidIsValid(database) && (FindOption(alter->options, "is_template") != NULL ||
										 FindOption(alter->options, "allow_connections") != NULL))
				AddEvent(EVENT_DATABASE, database);
			break;
		}

		case T_CreateRoleStmt:
		{
			List *options = ((CreateRoleStmt *) stmt)->options;

			/*
				 * A new role alone concerns nobody.  Since 16 one that is made
				 * by no superuser gets its maker as a member.
				 */
			if (FindOption(options, "addroleto") != NULL ||
				FindOption(options, "rolemembers") != NULL ||
				FindOption(options, "adminmembers") != NULL || !superuser())
				AddEvent(EVENT_ROLES, InvalidOid);
			break;
		}

		case T_AlterOwnerStmt:
			/* Makes a member of pg_database_owner, without a row that says so. */
			if (((AlterOwnerStmt *) stmt)->objectType == OBJECT_DATABASE)
				AddEvent(EVENT_ROLES, InvalidOid);
			break;

		case T_RenameStmt:
			if (((RenameStmt *) stmt)->renameType == OBJECT_ROLE)
				AddEvent(EVENT_ROLES, InvalidOid);
			FunctionNamesAfter(names);
			break;

		case T_AlterObjectSchemaStmt:
			FunctionNamesAfter(names);
			break;

		case T_AlterExtensionStmt:
			/* Not if it was up to date: that should not cost clients anything. */
			if (strcmp(((AlterExtensionStmt *) stmt)->extname, CHANGEFEED_EXTENSION) == 0)
			{
				char *version = VersionOfExtension();

				if (version != NULL && strcmp(version, updated_from) != 0)
					AddEvent(EVENT_EXTENSION_UPDATED, MyDatabaseId);
			}
			break;

		case T_GrantRoleStmt:
		case T_AlterRoleStmt:
		case T_AlterRoleSetStmt:
		case T_AlterDatabaseSetStmt: /* search_path, see QueryEnterIdentity */
		case T_DropRoleStmt:
			AddEvent(EVENT_ROLES, InvalidOid);
			break;

		case T_TransactionStmt:
			if (((TransactionStmt *) stmt)->kind == TRANS_STMT_COMMIT_PREPARED &&
				pg_atomic_read_u32(&shared_feeds->roles_prepared) != 0)
				AddEvent(EVENT_ROLES, InvalidOid);
			break;

		default:
			break;
	}
}

static void
HooksProcessUtility(PlannedStmt *pstmt, const char *query_string, bool read_only_tree,
					ProcessUtilityContext context, ParamListInfo params,
					QueryEnvironment *query_env, DestReceiver *dest, QueryCompletion *qc)
{
	/*
	 * The statement may be freed by what it does (a transaction command ends
	 * the context of an SQL procedure), so nothing of it is used afterwards
	 * unless it is one of the commands that AfterUtility looks at, all of
	 * which leave it alone.
	 */
	Node *stmt = pstmt->utilityStmt;
	bool mine = false;
	List *names = NIL;

	switch (nodeTag(stmt))
	{
		case T_DropdbStmt:
		case T_CreatedbStmt:
		case T_RenameStmt:
		case T_AlterObjectSchemaStmt:
		case T_AlterExtensionStmt:
		case T_AlterDatabaseStmt:
		case T_CreateRoleStmt:
		case T_GrantRoleStmt:
		case T_AlterRoleStmt:
		case T_AlterRoleSetStmt:
		case T_AlterDatabaseSetStmt:
		case T_AlterOwnerStmt:
		case T_DropRoleStmt:
			mine = shared_feeds != NULL;
			break;
		case T_TransactionStmt:
			mine = shared_feeds != NULL &&
				   ((TransactionStmt *) stmt)->kind == TRANS_STMT_COMMIT_PREPARED;
			break;
		default:
			break;
	}

	if (mine)
		BeforeUtility(stmt, context == PROCESS_UTILITY_TOPLEVEL, &names);

	if (prev_process_utility_hook)
		prev_process_utility_hook(pstmt, query_string, read_only_tree, context, params, query_env,
								  dest, qc);
	else
		standard_ProcessUtility(pstmt, query_string, read_only_tree, context, params, query_env,
								dest, qc);

	if (mine)
		AfterUtility(stmt, names);
}

void
HooksInstall(void)
{
	prev_process_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = HooksProcessUtility;
	prev_object_access_hook = object_access_hook;
	object_access_hook = HooksObjectAccess;
	RegisterXactCallback(HooksXact, NULL);
	RegisterResourceReleaseCallback(HooksRelease, NULL);
	RegisterSubXactCallback(HooksSubXact, NULL);
}
