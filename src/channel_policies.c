/*-------------------------------------------------------------------------
 *
 * channel_policies.c
 *		Warns of policies whose dependencies cannot be found out.
 *
 * A table that feeds a channel may have policies that call functions into which
 * nobody can look.  When such a function reads a table, changes of that table
 * take effect on clients only after changefeed.recheck_interval, unless they
 * are declared.  The same is so of what depends on time.  The owner should know
 * that when the table becomes a source; changefeed.explain says it at any time.
 *
 * Process: any backend.  Nothing is executed.  Memory: CurrentMemoryContext.
 * Locks: the caller has locked the table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "channel_check.h"
#include "query_internal.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_policy.h"
#include "rewrite/rowsecurity.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/resowner.h"

static void
WarnOfPolicy(Relation rel, const RowSecurityPolicy *policy)
{
	char *table = ChannelTableName(RelationGetRelid(rel));
	Reads reads = {0};
	ListCell *lc;

	ReadsOfExpression((Node *) policy->qual, &reads);
	foreach(lc, reads.unknown)
	{
		char *function = format_procedure_qualified(lfirst_oid(lc));

		ereport(
			WARNING,
			(errmsg(
				 "policy \"%s\" of table \"%s\" calls %s, of which it is not known what it reads",
				 policy->policy_name, table, function),
			 errdetail("What changes there takes effect on clients only after "
					   "changefeed.recheck_interval."),
			 errhint("Declare each table that it reads: SELECT "
					 "changefeed.declare_dependency('%s', 'table'). If it reads none, leave "
					 "out the table.",
					 function)));
	}
	foreach(lc, reads.unsteady)
		ereport(
			WARNING,
			(errmsg("policy \"%s\" of table \"%s\" depends on %s, which changes without notice",
					policy->policy_name, table, (char *) lfirst(lc)),
			 errdetail("That takes effect on clients only after changefeed.recheck_interval.")));
}

/*
 * Bodies of functions are read with the search_path that the session began
 * with, which is a guess: what the subscribers' will be is not known yet.  Where
 * it is wrong nothing is said here.
 */
static void
TryPolicy(Relation rel, const RowSecurityPolicy *policy)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		int nestlevel = NewGUCNestLevel();

		(void) set_config_option("search_path", GetConfigOptionResetString("search_path"),
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
		WarnOfPolicy(rel, policy);
		AtEOXact_GUC(true, nestlevel);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		int category = ERRCODE_TO_CATEGORY(geterrcode());

		if (category != ERRCODE_TO_CATEGORY(ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION) &&
			category != ERRCODE_TO_CATEGORY(ERRCODE_INVALID_SCHEMA_NAME))
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
}

void
ChannelWarnOfPolicies(Oid relid)
{
	Relation rel = table_open(relid, NoLock);
	ListCell *lc;

	if (rel->rd_rsdesc != NULL)
	{
		foreach(lc, rel->rd_rsdesc->policies)
		{
			RowSecurityPolicy *policy = lfirst(lc);

			if (policy->qual != NULL && (policy->polcmd == '*' || policy->polcmd == ACL_SELECT_CHR))
				TryPolicy(rel, policy);
		}
	}
	table_close(rel, NoLock);
}
