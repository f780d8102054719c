/*-------------------------------------------------------------------------
 *
 * policy_safe.h
 *		What the feed worker may evaluate of policies.  See policy_safe.c.
 *
 * Process: feed worker, query workers, and backends that explain.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_POLICY_SAFE_H
#define CHANGEFEED_POLICY_SAFE_H

#include "postgres.h"

#include "nodes/nodes.h"

/*
 * What it uses that it may not, as the end of a sentence, or NULL.  `can_fail`:
 * its evaluation may raise an error on some row.  Functions of operators have
 * been looked up (fix_opfuncids).
 */
extern char *PolicyUnsafe(Node *expression, bool *can_fail);

/* May it take as long as the product of the lengths of two values? */
extern bool PolicyTakesLong(Node *expression);

/* May values of the type be in such an expression? */
extern bool PolicyTypeIsSafe(Oid type);

#endif /* CHANGEFEED_POLICY_SAFE_H */
