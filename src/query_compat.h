/*-------------------------------------------------------------------------
 *
 * query_compat.h
 *		Differences between server versions that only the query workers meet.
 *
 * The rest is in compat.h; apart from these two nobody compares
 * PG_VERSION_NUM.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_QUERY_COMPAT_H
#define CHANGEFEED_QUERY_COMPAT_H

#include "compat.h"

#include "nodes/parsenodes.h"
#include "parser/parse_relation.h"
#include "rewrite/rewriteHandler.h"
#include "utils/rel.h"

/* Requested privileges moved from the range table entry into a list in 16. */
#if PG_VERSION_NUM >= 160000
#define compat_require_select(query, rte) \
	(addRTEPermissionInfo(&(query)->rteperminfos, rte)->requiredPerms = ACL_SELECT)
#else
#define compat_require_select(query, rte) \
	((void) (query), (rte)->requiredPerms = ACL_SELECT)
#endif

/* Virtual generated columns came with 18; before, attgenerated is never 'v'. */
#define COMPAT_GENERATED_VIRTUAL	'v'
#if PG_VERSION_NUM >= 180000
#define compat_generation_expression(rel, attno)	build_generation_expression(rel, attno)
#else
#define compat_generation_expression(rel, attno)	((void) (rel), (void) (attno), (Node *) NULL)
#endif

#endif							/* CHANGEFEED_QUERY_COMPAT_H */
